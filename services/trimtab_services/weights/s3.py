"""Files in S3 and in what speaks its API, such as MinIO.

Two processes that write at once are kept apart by conditional requests (`If-None-Match`, `If-Match`), not by clocks: a
process that was taken for dead and wakes up again cannot replace what its successor has written. Uploads and copies,
whose names are digests of their bytes, need no condition.

Credentials and the endpoint come from where boto takes them: `AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, a role, ...;
`AWS_ENDPOINT_URL_S3` for a store that is not Amazon's. Anything else that s3fs takes is given as
`FSSPEC_S3='{"key": ...}'`.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import IO, Any

from fsspec.asyn import sync

from trimtab.errors import ConfigError, NotFound, Unavailable
from trimtab_services.weights.files import TEMPORARY, FileChanged, Stamped
from trimtab_services.weights.remote import RemoteFiles

__all__ = ["S3Files"]

_log = logging.getLogger(__name__)

_TRIES = 2
"""Of s3fs, for bytes that break off; boto itself sends a request up to five times, over 10 s where S3 is in trouble."""

_REFUSALS = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
"""Codes of a conditional write whose file was changed, is being changed, or is gone."""


class S3Files(RemoteFiles):
    """Files below a prefix of a bucket.

    `write` replaces only what this process has read or written last, and makes a file only where none is. Refused once,
    this process is not the store's writer any more, and changes nothing from then on.

    Args:
        filesystem: an `s3fs.S3FileSystem` without a cache of listings.
        root: bucket/prefix.

    Raises:
        ConfigError: no such bucket, or not for these credentials.
        Unavailable: it cannot be reached.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        super().__init__(filesystem, root)
        filesystem.retries = _TRIES
        self._bucket, _, self._prefix = self._root.partition("/")
        self._stamps: dict[str, str] = {}
        self._doubtful: dict[str, bytes] = {}
        self._overtaken = False
        try:
            with self.asking(""):
                self._fs.call_s3("head_bucket", Bucket=self._bucket)
        except NotFound:
            raise ConfigError(f"no such bucket: {self._bucket}", field="store", value=self._bucket) from None
        except Unavailable as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            raise ConfigError(
                f"bucket {self._bucket}: refused to these credentials (403): key or secret is wrong, or their user may "
                "not list it",
                field="store",
                value=self._bucket,
            ) from None

    def read(self, path: str) -> bytes:
        """As `Files.read`."""
        known = self._stamps.get(path)
        found = self.read_stamped(path)
        if self._stamps.get(path) == known:  # else it was written meanwhile, and what was read is older
            self._note(path, known, found)
        return found.content

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """As `RemoteFiles.read_range`."""
        try:
            return super().read_range(path, start, stop)
        except Unavailable as error:
            if _code(error.__cause__) == "InvalidRange":
                return b""
            raise

    def write(self, path: str, content: bytes) -> None:
        """As `Files.write`.

        Raises:
            Unavailable: another process has written the file since this one read or wrote it.
        """
        if path in self._doubtful:  # an answer got lost: what is there decides
            with suppress(NotFound):
                self.read(path)
        self._check_alone()
        self._doubtful[path] = content
        try:
            self._stamps[path] = self.replace(path, content, self._stamps.get(path))
        except FileChanged:
            self._overtaken = True
            self._check_alone()
        del self._doubtful[path]

    def remove(self, path: str) -> None:
        """As `Files.remove`.

        Raises:
            Unavailable: another process has written what only the store's writer writes.
        """
        self._check_alone()
        super().remove(path)
        self._stamps.pop(path, None)

    def age_s(self, path: str, now: float) -> float:
        """As `Files.age_s`, by the clock of S3 alone."""
        bucket, key = self._address(path)
        with self.asking(path):
            return _age_s(self._fs.call_s3("head_object", Bucket=bucket, Key=key))

    def clear_temporary(self) -> None:
        """As `Files.clear_temporary`; ends unfinished uploads in parts too, which no listing shows but S3 charges."""
        super().clear_temporary()
        bucket, prefix = self._address(f"{TEMPORARY}/")
        try:
            with self.asking(TEMPORARY):
                found = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
                for upload in found.get("Uploads", []):
                    self._fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
        except (NotFound, Unavailable) as error:  # it may be forbidden to list them; they only cost money
            _log.warning("unfinished uploads stay", extra={"error": error.message})

    def read_stamped(self, path: str) -> Stamped:
        """As `SharedFiles.read_stamped`."""
        with self.asking(path):
            got: Any = sync(self._fs.loop, self._get, path)
        content, answer = got
        return Stamped(content, answer["ETag"], _age_s(answer))

    def replace(self, path: str, content: bytes, stamp: str | None) -> str:
        """As `SharedFiles.replace`; of two at once one is refused."""
        bucket, key = self._address(path)
        condition = {"IfNoneMatch": "*"} if stamp is None else {"IfMatch": stamp}
        with self.asking(path):
            try:
                answer = self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
                return str(answer["ETag"])
            except OSError as error:
                if _code(error) not in _REFUSALS:
                    raise
        return self._written_already(path, content)

    def abandon(self, file: IO[bytes]) -> None:
        """As `RemoteFiles.abandon`; without sending what is left of it."""
        if not file.closed:
            file.discard()  # type: ignore[attr-defined]  # of s3fs
            file.closed = True  # type: ignore[misc]

    def make_parent(self, path: str) -> None:
        """Nothing: there are no folders. (s3fs would make a bucket that is not there.)"""

    def _note(self, path: str, known: str | None, found: Stamped) -> None:
        """Takes in what a file is now."""
        tried = self._doubtful.get(path)
        if found.content == tried:
            self._stamps[path] = found.stamp
        elif known is None and tried is None:
            self._stamps.setdefault(path, found.stamp)
        elif found.stamp != known:
            self._overtaken = True

    def _check_alone(self) -> None:
        if self._overtaken:
            raise Unavailable(
                f"{self._root}: another process has taken the store over; this one writes no more", field="store"
            )

    def _written_already(self, path: str, content: bytes) -> str:
        """The stamp of a write that was refused because it had succeeded before: its first answer got lost."""
        try:
            found = self.read_stamped(path)
        except NotFound:
            raise FileChanged(path) from None
        if found.content != content:
            raise FileChanged(path)
        return found.stamp

    async def _get(self, path: str) -> tuple[bytes, dict[str, Any]]:
        bucket, key = self._address(path)
        answer = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            return await body.read(), answer

    def _address(self, path: str) -> tuple[str, str]:
        """Bucket and key."""
        return self._bucket, f"{self._prefix}/{path}".lstrip("/")


def _age_s(answer: dict[str, Any]) -> float:
    """Seconds since an object was written when S3 answered, both by its own clock."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date).timestamp() if date else time.time()
    return now - float(answer["LastModified"].timestamp())


def _code(error: BaseException | None) -> str:
    """S3's code of an error that s3fs has translated."""
    answer = getattr(error.__cause__, "response", {}) if error is not None else {}
    return str(answer.get("Error", {}).get("Code", ""))
