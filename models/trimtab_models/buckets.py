"""Model folders in object stores: S3, and whatever else fsspec has a package for."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from trimtab.errors import ConfigError
from trimtab_models.files import new_model_folder

__all__ = ["download_folder"]

_READ = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""What a Hugging Face folder is read from; checkpoints that would have to be unpickled stay where they are."""


def download_folder(url: str, folder: Path) -> int:
    """Copies a model folder out of an object store. It appears whole or not at all.

    Credentials and endpoint come from where the store's own tools take them, such as `AWS_ACCESS_KEY_ID` and
    `AWS_ENDPOINT_URL_S3`.

    Args:
        url: such as s3://bucket/models/base; the files right below it are taken.
        folder: as of `new_model_folder`.

    Returns:
        Bytes that were copied.

    Raises:
        ConfigError: the URL is not known to fsspec, the store cannot be reached or read, no model lies there, or a file
            did not come whole.
        ModuleNotFoundError: fsspec, or its package for this store, is not installed.
    """
    if "://" not in url:
        raise ConfigError(
            f"url: {url!r} is no URL of an object store, such as s3://bucket/folder", field="url", value=url
        )
    with new_model_folder(folder) as partial:
        try:
            sizes = _copy(url, partial)
        except (ConfigError, ModuleNotFoundError):
            raise
        except Exception as error:  # each file system has its own exceptions
            raise _wrong(url, f"{type(error).__name__}: {error}") from error
        for name, size in sizes.items():
            if (partial / name).stat().st_size != size:
                raise _wrong(url, f"{name} has {size} bytes there, and {(partial / name).stat().st_size} of them came")
    return sum(sizes.values())


def _copy(url: str, folder: Path) -> dict[str, int]:
    """Copies the files of a model, and says how large each is in the store."""
    import fsspec  # of the extras that have a store

    filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    listed: list[dict[str, Any]] = filesystem.ls(root, detail=True) if filesystem.exists(root) else []
    files = {PurePosixPath(one["name"]).name: one for one in listed if one["type"] == "file"}
    wanted = {name: one for name, one in files.items() if name.endswith(_READ)}
    if "config.json" not in wanted or not any(name.endswith(".safetensors") for name in wanted):
        there = f"there are {', '.join(sorted(files)[:5])}" if files else "there is no file"
        raise _wrong(url, f"needs config.json and .safetensors files to be a model; {there}")
    for name, one in wanted.items():
        filesystem.get_file(one["name"], str(folder / name))
    return {name: int(one["size"]) for name, one in wanted.items()}


def _wrong(url: str, what: str) -> ConfigError:
    return ConfigError(f"url: {url}: {' '.join(what.split())}", field="url", value=url)
