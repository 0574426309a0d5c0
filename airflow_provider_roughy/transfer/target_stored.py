"""Targets in any storage that Airflow knows."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from functools import cached_property
from typing import IO, Any

from airflow_provider_roughy.exceptions import RoughyTargetError, RoughyUnusableTargetError
from airflow_provider_roughy.transfer.filesystem import OBJECT_STORES, FileSystem, pieces
from airflow_provider_roughy.transfer.storage import (
    ErrorKind,
    kind_of,
    storage_errors,
    stored_path,
    without_secrets,
    words_of,
)
from airflow_provider_roughy.transfer.target_base import Sink, Target

#: Bytes that a storage gathers before it sends them. It takes about three times as much memory. S3 requires at least
#: 5 MiB, and the default of s3fs is 50 MiB.
_PART_BYTES = 8 * 1024 * 1024
#: The number of parts in which an object may be sent. S3 allows 10,000.
_MAX_PARTS = 9_000
#: Storages whose objects appear once their last part was sent.
APPEARS_WHOLE = OBJECT_STORES


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
    def _opened(self) -> tuple[FileSystem, str]:
        path = stored_path(self._uri, self._conn_id)
        return FileSystem(path.fs), path.path

    def _inspect(self) -> None:
        self.is_folder, self.size, self.unseen = False, None, None
        what = f"Target {self.uri} cannot be checked"
        with storage_errors(what, RoughyTargetError, RoughyUnusableTargetError):
            fs, path = self._opened
            try:
                info = fs.info(path)
            except Exception as err:
                kind = kind_of(err)
                if kind is ErrorKind.FORBIDDEN:
                    self.unseen = RoughyUnusableTargetError(f"{what}: {words_of(err)}")
                    self.unseen.is_forbidden = True
                elif kind is not ErrorKind.MISSING:
                    raise
                return
        self.is_folder = info.get("type") == "directory"
        if not self.is_folder:
            self.size = info.get("size")

    def _start(self, size: int | None, *, exclusive: bool) -> Sink:
        fs, path = self._opened
        kind = _ObjectSink if not fs.has_folders else _FileSink
        return kind(self.uri, fs, path, size, exclusive=exclusive)

    def _read(self) -> IO[bytes]:
        fs, path = self._opened
        return fs.open(path, _PART_BYTES)


class _StoredSink(Sink):
    """A file in a storage.

    The fsspec files are not used as context managers: these send what they have at the end, also after an error.

    :param uri: The target's name in messages.
    :param fs: The file system.
    :param path: The target's name in it.
    :param size: Its size in bytes, if it is known.
    :param exclusive: Whether it must not replace another file.
    """

    def __init__(self, uri: str, fs: FileSystem, path: str, size: int | None, *, exclusive: bool) -> None:
        super().__init__(uri, exclusive=exclusive)
        self._fs = fs
        self._path = path
        mib = 1024 * 1024
        self._block_size = max(_PART_BYTES, -(-(size or 0) // _MAX_PARTS // mib) * mib)
        with self._errors():
            self._file: Any = self._open()

    def _errors(self) -> AbstractContextManager[None]:
        return storage_errors(
            f"Target {self.uri} cannot be written", RoughyTargetError, RoughyUnusableTargetError, is_final=_is_final
        )

    def _open(self) -> Any:
        raise NotImplementedError

    def _write(self, block: bytes | memoryview) -> None:
        for piece in pieces(block):
            self._file.write(piece)

    def _restart(self) -> None:
        self._discard()
        self._file = self._open()


def _is_final(error: Exception) -> bool:
    """Return whether no retry can fix an error of writing: the bucket is missing, or may not be written."""
    return kind_of(error) in (ErrorKind.MISSING, ErrorKind.FORBIDDEN)


class _ObjectSink(_StoredSink):
    """An object, which appears once its last part was sent."""

    def _open(self) -> Any:
        if self.exclusive:
            # Old versions of a storage's library do not know this mode; then only the earlier check is left.
            with suppress(NotImplementedError, ValueError):
                return self._fs.fs.open(self._path, "xb", block_size=self._block_size)
        return self._fs.fs.open(self._path, "wb", block_size=self._block_size)

    def _finish(self) -> bool:
        try:
            self._file.close()
        except Exception:
            if self.exclusive and self._fs.exists(self._path):
                return False
            raise
        self._fs.fs.invalidate_cache()
        return True

    def _discard(self) -> None:
        self._file.discard()
        # Otherwise, the garbage collector closes the file, which sends what it has.
        self._file.closed = True


class _FileSink(_StoredSink):
    """A file under another name, which is moved when it is complete.

    A killed worker leaves its unfinished file behind. A later download to that folder removes it, after a day.
    """

    def _open(self) -> Any:
        self._unfinished = self._fs.unfinished_beside(self._path)
        # Without a block size, which SFTP would use as the size of a packet.
        problem: Exception | None = None
        try:
            file = self._fs.call(self._fs.fs.open, self._unfinished, "wb")
        except Exception:  # Each storage has its own error for a missing folder.
            try:
                self._fs.make_folder(self._path.rpartition("/")[0])
            except Exception as err:
                problem = err
            try:
                file = self._fs.call(self._fs.fs.open, self._unfinished, "wb")
            except Exception as err:
                raise problem or err from None
        self._fs.remove_abandoned(self._unfinished)
        return file

    def _finish(self) -> bool:
        self._file.close()
        moved = self._fs.move(self._unfinished, self._path, exclusive=self.exclusive)
        self._fs.fs.invalidate_cache()
        return moved

    def _discard(self) -> None:
        with suppress(Exception):
            self._file.close()
        self._fs.call(self._fs.fs.rm_file, self._unfinished)
