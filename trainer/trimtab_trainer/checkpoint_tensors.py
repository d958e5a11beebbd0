"""The tensors of a checkpoint as files: every rank writes the parts that it holds, and reads those that it will hold.

Files are safetensors as torch.distributed.checkpoint writes them (`HuggingFaceStorageWriter`): the header of each says
which part of a tensor it has, so that any number of ranks reads what any other number wrote. Nothing is pickled. The
ranks must see the same folder; which checkpoint is whole is the affair of `checkpoint`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from trimtab.errors import ConfigError, CorruptData
from trimtab.weights.transfer import file_digest
from trimtab_trainer.distributed import at_one_call, joined, on_every_rank, own_rank, ranks

__all__ = ["Part", "TensorFiles", "check_seen_by_all", "file_digests", "write_tensors"]

_FILE_BYTES = 2**28
"""Of a file, about: each is put together in memory before it is written."""


class Part(Protocol):
    """Something with tensors of which each rank holds its part, such as a `Learner`."""

    def capture(self) -> dict[str, Tensor]:
        """This rank's parts, by the names that they have in a checkpoint; they are not copied."""
        ...


class TensorFiles(Mapping[str, Tensor]):
    """The tensors in the safetensors files of a folder, read when they are asked for; none without a folder.

    A call on every rank takes it along as the folder's name.

    Args:
        folder: of files that are known to be whole.

    Attributes:
        kinds: shape and dtype of each tensor, by its name.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.kinds: dict[str, tuple[torch.Size, torch.dtype]] = {}
        if folder is not None:
            found: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
            self.kinds = {name: (entry.size, entry.properties.dtype) for name, entry in found.items()}

    def __getitem__(self, name: str) -> Tensor:
        """A tensor whole, on the CPU."""
        shape, dtype = self.kinds[name]
        tensor = torch.empty(shape, dtype=dtype)
        self.read_into({name: tensor})
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fills tensors, each rank its parts of them; where all ranks are at the present call they all take part.

        Raises:
            CorruptData: a tensor has another shape, or a part of it is in no file; on all ranks.
        """
        if not tensors:
            return
        targets = {name: tensor.detach() for name, tensor in tensors.items()}
        try:
            with _of_one_process_too():
                load(targets, storage_reader=HuggingFaceStorageReader(str(self._folder)), no_dist=not at_one_call())
        except CheckpointException as error:
            raise CorruptData(
                f"{self._folder}: cannot be read: {_failure(error)}", field="checkpoint", value=self._folder
            ) from error


@on_every_rank
def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *parts: Part) -> Exception | None:
    """Writes tensors of rank 0 and the parts of every rank into a folder, and flushes the files to disk.

    Args:
        folder: there, and empty.
        tensors: small ones, sent to the other ranks with the call.
        parts: of every rank; names are their own.

    Returns:
        Why a rank could not write its files, an OSError where the system says so; None where all did.
    """
    found = dict(tensors)
    for part in parts:
        found |= part.capture()
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, fqn_to_index_mapping=_files_of(found))
    try:
        with _of_one_process_too():
            save(found, storage_writer=writer, no_dist=not at_one_call())
    except CheckpointException as error:
        return _failure(error)
    return None


@on_every_rank
def file_digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of files, each rank reading as many; empty for one that cannot be read.

    Args:
        folder: of the files.
        names: in it, sorted: a rank gets those that it wrote where as many ranks did.
    """
    if at_one_call():
        cuts = [len(names) * rank // ranks() for rank in (own_rank(), own_rank() + 1)]
        names = names[slice(*cuts)]
    return dict(joined([(name, _digest(folder / name)) for name in names]))


def check_seen_by_all(folder: Path) -> None:
    """Checks that all ranks see a folder that rank 0 sees.

    Raises:
        ConfigError: names the ranks that do not.
    """
    blind = _ranks_without(folder)
    if blind:
        raise ConfigError(
            f"directory: rank {', '.join(map(str, blind))} of {ranks()} does not see {folder}, and every rank reads "
            "and writes its part of a checkpoint there: put the run's folder on storage that all of them share",
            field="directory",
            value=folder,
            limit="storage that all ranks share",
        )


@on_every_rank
def _ranks_without(folder: Path) -> list[int]:
    return joined([] if folder.is_dir() else [own_rank()])


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file among its own into which a rank writes each tensor, from 1; alike on all ranks."""
    written = 0
    numbers = {}
    for name, tensor in tensors.items():
        numbers[name] = 1 + written // (_FILE_BYTES * ranks())
        written += tensor.numel() * tensor.element_size()
    return numbers


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError:
        return ""


def _failure(error: CheckpointException) -> Exception:
    """The error of the first rank that has one, which it names where there are several."""
    rank, (failure, _) = min(error.failures.items(), key=lambda of_rank: of_rank[0])
    where = f" on rank {rank} of {ranks()}" if ranks() > 1 else ""
    if isinstance(failure, OSError) and failure.errno is not None:
        return OSError(failure.errno, f"{os.strerror(failure.errno)}{where}")
    return RuntimeError(f"{type(failure).__name__}{where}: {(str(failure).splitlines() or ['no further words'])[0]}")


@contextmanager
def _of_one_process_too() -> Iterator[None]:
    """Without the warning that there are no other ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
