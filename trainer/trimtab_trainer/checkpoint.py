"""Checkpoints: exact, atomic, checked by digest; a torn or corrupt one is told and the one before it is used.

A checkpoint is a folder `step-00000120` with

    shard-*.safetensors   every tensor: weights, moments, random state; each rank of the run has files of its own
    state.json            everything else, as JSON
    manifest.json         SHA-256 and size of the others

Nothing is ever pickled. The folder is written under another name, synced to disk and renamed, so at whatever instant
a process is killed there is either a whole checkpoint or none; one that cannot be written, such as on a full disk,
leaves those before it as they are. `checkpoint_tensors` writes and reads the tensors, on any number of ranks, none of
which ever holds more than its part. `capture_*` and `restore_*` move models, optimizers and random generators in and
out; how a stage composes them is its own affair.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trimtab.errors import CorruptData, Mismatch
from trimtab_models.files import sync
from trimtab_trainer.checkpoint_tensors import Part, TensorFiles, check_seen_by_all, file_digests, write_tensors

__all__ = [
    "CheckpointStore",
    "Snapshot",
    "capture_model",
    "capture_optimizer",
    "capture_random_state",
    "restore_model",
    "restore_optimizer",
    "restore_random_state",
    "write_file_atomically",
]

_FORMAT = 2
_READABLE = (1, _FORMAT)
"""In format 1 all tensors were in one file."""
_PREFIX = "step-"
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"


@dataclass
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        step: steps done in the stage; the checkpoint's number.
        tensors: name to tensor, any dtype that safetensors knows: small ones of rank 0, on the CPU, to be saved.
        state: JSON values only.
        parts: what else is to be saved, each rank its part.
        saved: all tensors of one that was loaded.
    """

    step: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    saved: TensorFiles = field(default_factory=TensorFiles)


class CheckpointStore:
    """The checkpoints of one stage in one folder.

    Args:
        folder: made when the first checkpoint is saved.
        keep: newest checkpoints kept; at least 2, so that a corrupt one has another before it.
        warn: called with one sentence for each checkpoint that could not be used.
    """

    def __init__(self, folder: Path, *, keep: int = 2, warn: Callable[[str], None] = lambda text: None) -> None:
        self.folder = folder
        self._keep = max(keep, 2)
        self._warn = warn

    def steps(self) -> list[int]:
        """Steps of all checkpoints here, whole or not, oldest first."""
        names = (path.name for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir())
        return sorted(int(name.removeprefix(_PREFIX)) for name in names if name.removeprefix(_PREFIX).isdigit())

    def save(self, snapshot: Snapshot) -> Path:
        """Writes a checkpoint and removes those that are too old. Once it returns, the checkpoint is on disk.

        Raises:
            OSError: it cannot be written; names it and says what to do. Those before it are as they were.
            ConfigError: a rank does not see the folder.
        """
        final = self._path(snapshot.step)
        partial = self.folder / f"{_PARTIAL}{final.name}"
        try:
            for left_over in self.folder.glob(f"{_PARTIAL}*"):  # of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            partial.mkdir(parents=True)
            _write_files(partial, snapshot)
            replaced = self.folder / f"{_REPLACED}{final.name}"
            shutil.rmtree(replaced, ignore_errors=True)
            if final.exists():  # one that could not be used, or a step done again after a resume
                final.rename(replaced)
            partial.rename(final)
            sync(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk the run needs that space to say how it ended
            raise _unwritten(final, error) from error
        self._prune()
        return final

    def load_latest(self) -> Snapshot | None:
        """The newest whole checkpoint, or None where none was ever finished.

        Raises:
            CorruptData: there are checkpoints, and not one of them is whole.
        """
        for replaced in self.folder.glob(f"{_REPLACED}*"):  # a kill came between two renames
            final = self.folder / replaced.name.removeprefix(_REPLACED)
            if not final.exists():
                replaced.rename(final)
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step)
            except CorruptData as error:
                before = [s for s in steps if s < step]
                instead = f"checkpoint {before[-1]} is tried instead" if before else "there is none before it"
                self._warn(f"{error.message}; {instead}")
        if steps:
            raise CorruptData(
                f"{self.folder}: none of the checkpoints {', '.join(map(str, steps))} is whole; delete the folder to "
                "begin the stage anew",
                field="checkpoint",
                value=self.folder,
            )
        return None

    def load(self, step: int) -> Snapshot:
        """Reads one checkpoint.

        Raises:
            CorruptData: a file is missing, cut short, or does not have the digest of the manifest.
        """
        path = self._path(step).resolve()
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            if manifest["format"] not in _READABLE:
                raise CorruptData(
                    f"{path}: format is {manifest['format']}; readable: {', '.join(map(str, _READABLE))}",
                    field="format",
                    limit=_FORMAT,
                )
            check_seen_by_all(path)
            names = sorted(manifest["files"])
            for name, found in file_digests(path, names).items():
                if found != (expected := manifest["files"][name]["sha256"]):
                    raise CorruptData(
                        f"{path / name}: SHA-256 is {found or 'none, it cannot be read'}; the manifest says {expected}",
                        field=name,
                        value=found,
                        limit=expected,
                    )
            has_tensors = any(name.endswith(".safetensors") for name in names)
            saved = TensorFiles(path if has_tensors else None)
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CorruptData(f"{path}: not a whole checkpoint: {error}", field="checkpoint", value=path) from error
        return Snapshot(step=manifest["step"], state=state, saved=saved)

    def _path(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step:08d}"

    def discard(self, step: int) -> None:
        """Removes a checkpoint, if it is there."""
        if self._path(step).exists():
            shutil.rmtree(self._path(step))
            sync(self.folder)

    def _prune(self) -> None:
        for step in self.steps()[: -self._keep]:
            shutil.rmtree(self._path(step))


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    """Writes the files of a checkpoint into a new folder and flushes them to disk."""
    folder = folder.resolve()
    check_seen_by_all(folder)
    if snapshot.tensors or snapshot.parts:
        tensors = {name: tensor.detach() for name, tensor in snapshot.tensors.items()}
        if failed := write_tensors(folder, tensors, *snapshot.parts):
            raise failed
    state = json.dumps(snapshot.state, indent=1, allow_nan=False)
    (folder / "state.json").write_text(state, encoding="utf-8")
    digests = file_digests(folder, sorted(path.name for path in folder.iterdir()))
    files = {name: {"sha256": found, "bytes": (folder / name).stat().st_size} for name, found in digests.items()}
    manifest = {"format": _FORMAT, "step": snapshot.step, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (folder / "state.json", folder / "manifest.json", folder):
        sync(path)


def capture_model(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters (tied ones once) and persistent buffers as `prefix/name`."""
    return {f"{prefix}/{name}": tensor.detach() for name, tensor in _model_tensors(model).items()}


def restore_model(model: nn.Module, tensors: TensorFiles, prefix: str) -> None:
    """Reads what `capture_model` took back into a model of the same shape.

    Raises:
        Mismatch: a name, shape or dtype differs.
    """
    own = _model_tensors(model)
    names = _under(tensors, prefix)
    if own.keys() != names.keys():
        odd = sorted(own.keys() ^ names.keys())
        raise Mismatch(
            f"checkpoint: {prefix}: {len(odd)} tensors are on one side only, such as {odd[0]!r}", field=prefix
        )
    for name, tensor in own.items():
        shape, dtype = tensors.kinds[names[name]]
        if (tensor.shape, tensor.dtype) != (shape, dtype):
            raise Mismatch(
                f"checkpoint: {prefix}/{name} is {dtype} {tuple(shape)}; the model's is "
                f"{tensor.dtype} {tuple(tensor.shape)}",
                field=f"{prefix}/{name}",
            )
    tensors.read_into({names[name]: tensor for name, tensor in own.items()})


def capture_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, prefix: str) -> dict[str, Tensor]:
    """State tensors of every parameter as `prefix/parameter/key`; hyperparameters are the spec's, so not kept."""
    captured = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            captured[f"{prefix}/{name}/{key}"] = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
    return captured


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: TensorFiles, prefix: str) -> None:
    """Reads back what `capture_optimizer` took of this optimizer's parameters; those without state there have none."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    wanted = {}
    for name, parameter in model.named_parameters():
        names = _under(tensors, f"{prefix}/{name}")
        if names and id(parameter) in own:
            state = {key: _moment(key, tensors.kinds[full], parameter) for key, full in names.items()}
            optimizer.state[parameter] = state
            wanted |= {full: state[key] for key, full in names.items()}
    tensors.read_into(wanted)


def capture_random_state(prefix: str = "random") -> dict[str, Tensor]:
    """State of torch's generators: `prefix/cpu` and `prefix/cuda-N` for each GPU in use."""
    captured = {f"{prefix}/cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        captured |= {f"{prefix}/cuda-{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    return captured


def restore_random_state(tensors: Mapping[str, Tensor], prefix: str = "random") -> None:
    """Puts back what `capture_random_state` took; states of GPUs that are not here are left out."""
    for name, full in _under(tensors, prefix).items():
        if name == "cpu":
            torch.set_rng_state(tensors[full])
        elif torch.cuda.is_available() and int(name.removeprefix("cuda-")) < torch.cuda.device_count():
            torch.cuda.set_rng_state(tensors[full], int(name.removeprefix("cuda-")))


def write_file_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 text file so that at any instant either the old or the new one is there, whole.

    Raises:
        OSError: it cannot be written; names it and says what to do.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> OSError:
    """The error of something that cannot be written: the system's own has no path when a disk is full."""
    advice = "what was there before is whole. Make space or mend the disk, then go on (a run: with --resume)"
    return OSError(error.errno or errno.EIO, f"not written: {error.strerror or error}; {advice}", str(path))


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict(keep_vars=True).keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return dict(model.named_parameters()) | buffers


def _moment(key: str, kind: tuple[torch.Size, torch.dtype], parameter: Tensor) -> Tensor:
    """Room for a state tensor where the optimizer has it: AdamW's step count on the CPU, moments beside the weights."""
    shape, dtype = kind
    return torch.empty(shape, dtype=dtype) if key == "step" else torch.empty_like(parameter, requires_grad=False)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Names below a prefix, without and with it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): name for name in tensors if name.startswith(start)}
