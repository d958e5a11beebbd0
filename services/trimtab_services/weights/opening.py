"""From what a configuration calls the store to the files of it."""

from __future__ import annotations

from pathlib import Path

from trimtab.errors import ConfigError, TrimtabError
from trimtab_services.weights.files import Files, LocalFiles

__all__ = ["open_files"]


def open_files(store: str) -> Files:
    """Opens a store by folder or URL.

    Raises:
        ConfigError: the folder cannot be made; fsspec does not know the URL or lacks a package for it; or the object
            store cannot be reached or used.
    """
    if "://" not in store:
        return LocalFiles(Path(store))
    if store.startswith(("file://", "local://")):
        return LocalFiles(Path(store.partition("://")[2]))
    try:
        return _open_remote(store)
    except Exception as error:  # each file system has its own exceptions
        message = error.message if isinstance(error, TrimtabError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"store: {store}: {message}", field="store", value=store) from error


def _open_remote(store: str) -> Files:
    import fsspec  # which a local store needs not

    from trimtab_services.weights.remote import RemoteFiles

    # Listings that are kept would hide what another process has written; an instance that is shared keeps them.
    filesystem, root = fsspec.core.url_to_fs(store, use_listings_cache=False, skip_instance_cache=True)
    if store.startswith(("s3://", "s3a://")):
        from trimtab_services.weights.s3 import S3Files  # needs the extra `s3`

        return S3Files(filesystem, root)
    return RemoteFiles(filesystem, root)
