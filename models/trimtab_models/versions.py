"""Models in and out of the weights service: a PyTorch model or a Hugging Face folder becomes a version, and back.

A published tensor has exactly the bytes of the safetensors format, so a folder that is published and written again
holds the same weights, bit for bit.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trimtab.client import Client
from trimtab.errors import ConfigError, ModelFolderError
from trimtab.v1 import weights_pb2
from trimtab.weights import MAX_CHAIN, FetchedVersion, Publication, Publisher, TensorData, publish_version
from trimtab_models.anatomy import named_parameter_tensors
from trimtab_models.files import new_model_folder
from trimtab_models.loading import DTYPES
from trimtab_models.tokenizer import chat_template_digest, load_tokenizer, tokenizer_digest

__all__ = [
    "ModelPublisher",
    "publish_folder",
    "publish_model",
    "read_folder_tensors",
    "tensor_to_data",
    "tensors_to_torch",
    "write_model_folder",
]

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPE_OF = {name: dtype for dtype, name in _NAMES.items()}
_NEVER_PUBLISHED = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".h5")
_NEVER_PUBLISHED += (".msgpack", ".gguf", ".onnx", ".pkl")


class ModelPublisher:
    """Publishes one model in training again and again, with its config, tokenizer and template.

    Args:
        client: of the weights service.
        model: its tensors are read, wherever they lie, and not changed.
        tokenizer: the one that belongs to it.
        channels: channels to move to each new version.
        serving_dtype: one of `DTYPES` that floating-point tensors are rounded to; None keeps each as it is. With
            bfloat16 few elements change in a step, and only these are sent.
        max_chain: as of `trimtab.weights.Publisher`.

    Attributes:
        model: as given.
        dtype: that floating-point tensors are rounded to; None keeps each as it is.

    Raises:
        ConfigError: unknown serving_dtype.
    """

    def __init__(
        self,
        client: Client,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        channels: list[str],
        serving_dtype: str | None = None,
        max_chain: int = MAX_CHAIN,
    ) -> None:
        if serving_dtype is not None and serving_dtype not in DTYPES:
            allowed = ", ".join(DTYPES)
            raise ConfigError(
                f"serving_dtype: {serving_dtype!r}; allowed: {allowed}",
                field="serving_dtype",
                value=serving_dtype,
                limit=allowed,
            )
        self.model = model
        self.dtype = DTYPES[serving_dtype] if serving_dtype is not None else None
        self._channels = channels
        self._files = _model_files(model, tokenizer, self.dtype)
        self._digests = _digests(tokenizer)
        self._publisher = Publisher(client, max_chain=max_chain)

    def snapshot(self) -> list[TensorData]:
        """The weights as they are now, rounded, in host memory of their own: training may go on."""
        copies = {name: _copied(tensor, self.dtype) for name, tensor in named_parameter_tensors(self.model).items()}
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return [tensor_to_data(name, tensor) for name, tensor in copies.items()]

    def publish(self, snapshot: list[TensorData], **options: Any) -> Publication:
        """Publishes a snapshot. Not from two threads at once.

        Args:
            snapshot: of `snapshot`.
            options: further arguments of `trimtab.weights.Publisher.publish`, such as `run`, `step` or `lease_id`.

        Raises:
            TrimtabError: as `Publisher.publish`.
        """
        return self._publisher.publish(snapshot, self._files, channels=self._channels, **(self._digests | options))


def publish_model(
    client: Client,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    channels: list[str],
    serving_dtype: str | None = None,
    **options: Any,
) -> weights_pb2.Manifest:
    """Publishes a model once, whole; arguments and errors as of `ModelPublisher` and its `publish`."""
    publisher = ModelPublisher(client, model, tokenizer, channels=channels, serving_dtype=serving_dtype, max_chain=0)
    return publisher.publish(publisher.snapshot(), **options).manifest


def publish_folder(client: Client, folder: str | Path, *, channels: list[str], **options: Any) -> weights_pb2.Manifest:
    """Publishes a Hugging Face folder: the tensors of its safetensors files and every other file, weights aside.

    Hidden files and weights in other formats are left out.

    Args:
        client: of the weights service.
        folder: with config.json, tokenizer and `*.safetensors`, sharded or not.
        channels: channels to move to the new version.
        options: further arguments of `trimtab.weights.publish_version`.

    Raises:
        ModelFolderError: no such folder, no safetensors, one that cannot be read, no tokenizer.
        TrimtabError: as `publish_version`.
    """
    folder = Path(folder)
    shards = _shards(folder)
    tokenizer = load_tokenizer(folder)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.endswith(_NEVER_PUBLISHED)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    tensors = (tensor_to_data(name, tensor) for shard in shards for name, tensor in _read_shard(shard))
    return publish_version(client, tensors, files, channels=channels, **(_digests(tokenizer) | options))


def tensor_to_data(name: str, tensor: Tensor) -> TensorData:
    """A tensor's bytes on the host; no copy when it is contiguous and there already.

    Raises:
        ModelFolderError: its dtype has no name in safetensors.
    """
    if tensor.dtype not in _NAMES:
        found = tensor.dtype
        raise ModelFolderError(f"tensor {name!r}: dtype {found} cannot be published", field=name, value=found)
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
    return TensorData(name, _NAMES[tensor.dtype], tuple(tensor.shape), data)


def tensors_to_torch(fetched: FetchedVersion) -> dict[str, Tensor]:
    """The tensors of a fetched version by name, on the CPU, over the mapped bytes: no copy until somebody writes."""
    return {name: _to_torch(tensor) for name, tensor in fetched.tensors.items()}


def read_folder_tensors(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder's safetensors files by name, on the CPU, in their stored dtype.

    Raises:
        ModelFolderError: no safetensors, or one that cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for shard in _shards(Path(folder)):
        tensors.update(_read_shard(shard))
    return tensors


def write_model_folder(fetched: FetchedVersion, folder: str | Path) -> None:
    """Writes a fetched version as a Hugging Face folder with one model.safetensors. It appears whole or not at all.

    Args:
        fetched: the version.
        folder: a new or empty one, or a model folder, which is replaced.

    Raises:
        ConfigError: it is a file, or a folder that holds something else than a model.
    """
    with new_model_folder(Path(folder)) as partial:
        for name, content in fetched.files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        save_file(tensors_to_torch(fetched), partial / "model.safetensors", metadata={"format": "pt"})


def _to_torch(tensor: TensorData) -> Tensor:
    dtype = _DTYPE_OF[tensor.dtype]
    if not tensor.data.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(tensor.data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:  # packed behind a tensor of smaller elements
        flat = flat.clone()
    return flat.view(dtype).reshape(tensor.shape)


def _copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor of its own in host memory; from a GPU it is there once that has been waited for.

    From a GPU it goes to page-locked memory, which torch keeps for the next time: 50 GB/s instead of the 1.6 of new
    memory, whose every page the system fills with zeros first (measured on an H100).
    """
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if tensor.device.type != "cuda":
        return tensor.detach().to("cpu", wanted, copy=True)
    rounded = tensor.detach().to(wanted)
    return torch.empty(rounded.shape, dtype=wanted, pin_memory=True).copy_(rounded, non_blocking=True)


def _model_files(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype | None
) -> dict[str, bytes]:
    """config.json, generation_config.json and the tokenizer's files, as `save_pretrained` would write them."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype or model.dtype
    with tempfile.TemporaryDirectory(prefix="trimtab-publish-") as name:
        folder = Path(name)
        config.save_pretrained(folder)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such folder", field="folder", value=folder)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        below = sorted({shard.parent.relative_to(folder).as_posix() for shard in folder.glob("*/*.safetensors")})
        hint = f"; there are some in {', '.join(below)}" if below else ""
        raise ModelFolderError(f"{folder}: no *.safetensors file{hint}", field="folder", value=folder)
    return shards


def _read_shard(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise ModelFolderError(f"{path}: not a safetensors file: {error}", field="folder", value=path) from error


def _digests(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {"tokenizer_digest": tokenizer_digest(tokenizer), "chat_template_digest": chat_template_digest(tokenizer)}
