"""Targets in any storage that Airflow knows."""

from __future__ import annotations

import secrets
from contextlib import suppress
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, cast

from airflow_provider_roughy.exceptions import RoughyTargetError, RoughyUnusableTargetError
from airflow_provider_roughy.transfer.storage import (
    is_unusable,
    storage_errors,
    stored_path,
    without_secrets,
    words_of,
)
from airflow_provider_roughy.transfer.target_base import Sink, Target

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import ObjectStoragePath

#: Bytes that a storage gathers before it sends them. It takes about three times as much memory. S3 requires at least
#: 5 MiB, and the default of s3fs is 50 MiB.
_PART_BYTES = 8 * 1024 * 1024
#: Bytes handed to a storage at once.
_PIECE_BYTES = 256 * 1024
#: The number of parts in which an object may be sent. S3 allows 10,000.
_MAX_PARTS = 9_000
#: Storages whose objects appear once their last part was sent. In all others an unfinished file is visible, so it is
#: written under another name.
APPEARS_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"}


class StoredTarget(Target):
    """An object in any storage that Airflow knows.

    :param uri: ``scheme://…``
    :param conn_id: The Airflow connection of that storage.
    """

    def __init__(self, uri: str, *, conn_id: str | None = None) -> None:
        self._uri = uri
        self._conn_id = conn_id
        super().__init__(without_secrets(uri))

    @cached_property
    def _path(self) -> ObjectStoragePath:
        return stored_path(self._uri, self._conn_id)

    def _inspect(self) -> None:
        self.is_folder, self.size, self._unseen = False, None, None
        what = f"Target {self.uri} cannot be checked"
        try:
            with storage_errors(
                what,
                RoughyTargetError,
                RoughyUnusableTargetError,
                is_final=is_unusable,
                through=(FileNotFoundError, PermissionError),
            ):
                fs = self._path.fs
                fs.invalidate_cache()
                info = fs.info(self._path.path)
        except FileNotFoundError:
            return
        except PermissionError as err:
            self._unseen = RoughyTargetError(f"{what}: {words_of(err)}")
            return
        self.is_folder = info.get("type") == "directory"
        if not self.is_folder:
            self.size = info.get("size")

    def _start(self, size: int | None, *, exclusive: bool) -> Sink:
        return _StoredSink(self.uri, self._path.fs, self._path.path, size, exclusive=exclusive)

    def _read(self) -> IO[bytes]:
        # ObjectStoragePath.open() would report each block to Airflow's lineage.
        return cast("IO[bytes]", self._path.fs.open(self._path.path, "rb"))


class _StoredSink(Sink):
    """An object that is being sent.

    The fsspec files are not used as context managers: these send what they have at the end, also after an error.

    :param uri: The target's name in messages.
    :param fs: The fsspec file system.
    :param path: The target's name in it.
    :param size: Its size in bytes, if it is known.
    :param exclusive: Whether it must not replace another object.
    """

    def __init__(self, uri: str, fs: Any, path: str, size: int | None, *, exclusive: bool) -> None:
        super().__init__(uri, exclusive=exclusive)
        self._fs = fs
        self._path = path
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._appears_whole = bool(protocols & APPEARS_WHOLE)
        folder, slash, _ = path.rpartition("/")
        self._folder = f"{folder}{slash}"
        self._unfinished = path if self._appears_whole else f"{self._folder}.roughy-{secrets.token_hex(16)}.part"
        mib = 1024 * 1024
        #: Whether this sink has created an empty file under the target's name.
        self._has_claimed_name = False
        self._block_size = max(_PART_BYTES, -(-(size or 0) // _MAX_PARTS // mib) * mib)
        with self._errors():
            self._file = self._open()

    def _open(self) -> Any:
        # As in StoredTarget._read.
        if self._appears_whole:
            if self.exclusive:
                # Old versions of a storage's library do not know this mode; then only the earlier check is left.
                with suppress(NotImplementedError, ValueError):
                    return self._fs.open(self._unfinished, "xb", block_size=self._block_size)
            return self._fs.open(self._unfinished, "wb", block_size=self._block_size)
        # Without a block size, which SFTP would use as the size of a packet.
        problem: Exception | None = None
        try:
            return self._fs.open(self._unfinished, "wb")
        except Exception:  # Each storage has its own error for a missing folder.
            try:
                self._fs.makedirs(self._folder.rstrip("/") or "/", exist_ok=True)
            except Exception as err:
                problem = err
        try:
            return self._fs.open(self._unfinished, "wb")
        except Exception as err:
            raise problem or err from None

    def _write(self, block: bytes | memoryview) -> None:
        # In small pieces: the buffer, which is copied when it is sent, exceeds its size by at most one of them.
        for start in range(0, len(block), _PIECE_BYTES):
            self._file.write(bytes(block[start : start + _PIECE_BYTES]))

    def _restart(self) -> None:
        self._discard()
        self._file = self._open()

    def _finish(self) -> bool:
        try:
            self._file.close()
        except Exception:
            if self.exclusive and self._appears_whole and self._exists():
                return False
            raise
        if not self._appears_whole:
            if self.exclusive and not self._claim_name():
                return False
            try:
                self._fs.mv(self._unfinished, self._path)
            except BaseException:
                if self._has_claimed_name:
                    with suppress(Exception):
                        self._fs.rm(self._path)
                raise
        self._fs.invalidate_cache()
        return True

    def _claim_name(self) -> bool:
        """Create an empty file of that name exclusively, where the storage can do that.

        :returns: ``False`` if there is a file of that name.
        """
        try:
            self._fs.open(self._path, "xb").close()
            self._has_claimed_name = True
        except Exception as err:
            if self._exists():
                return False
            if not isinstance(err, (NotImplementedError, ValueError)):
                raise
        return True

    def _exists(self) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._path))

    def _discard(self) -> None:
        if self._appears_whole:
            self._file.discard()
            # Otherwise, the garbage collector closes the file, which sends what it has.
            self._file.closed = True
        else:
            with suppress(Exception):
                self._file.close()
            self._fs.rm(self._unfinished)
