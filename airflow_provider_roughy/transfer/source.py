"""Where an upload's bytes come from: a local file, or an object that Airflow's ``ObjectStoragePath`` can read.

A source is read in blocks from one open file. If it changes while it is read, an error is raised before its last block
is sent, so that Roughy never gets a mixture of two versions.
"""

from __future__ import annotations

import os
import socket
import stat
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_roughy.api import MAX_UPLOAD_BYTES, MIN_UPLOAD_BYTES
from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.transfer.filesystem import FileSystem
from airflow_provider_roughy.transfer.storage import (
    ErrorKind,
    as_line,
    kind_of,
    local_path,
    storage_errors,
    stored_versions,
    without_secrets,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from airflow_provider_roughy.compat import ObjectStoragePath

#: Bytes read at once. A block has to be sent within the timeout of one write.
BLOCK_BYTES = 1024 * 1024
#: Bytes that a storage reads ahead. It takes about three times as much memory. The default of s3fs is 50 MiB.
READ_AHEAD_BYTES = 8 * 1024 * 1024


def find_source(source: str | os.PathLike[str] | ObjectStoragePath, *, conn_id: str | None = None) -> Source:
    """Return a source that exists and can be read.

    :param source: A local path, a URI with a scheme that Airflow's object storage knows, or an ``ObjectStoragePath``.
    :param conn_id: The Airflow connection of that storage.
    :raises RoughyUnusableSourceError: If it is missing, not a file, unreadable, or not between 64 bytes and 50 GiB.
    :raises RoughySourceError: If its storage is down.
    """
    text = "" if source is None else str(source)
    if not text.strip():
        raise RoughyUnusableSourceError("`source` is empty; if it is a template, it rendered to nothing")
    path = local_path(text)
    if path is not None:
        return LocalSource(path, uri=text)
    return StoredSource.of(text, conn_id=conn_id or getattr(source, "conn_id", None))


class Source(ABC):
    """Bytes of a known size that can be read from any offset.

    :param uri: Its name in messages, without credentials or query.
    """

    def __init__(self, uri: str) -> None:
        self.uri = as_line(uri)
        #: What identifies this version: ``uri``, ``size`` in bytes, and the best version that the storage has.
        self.fingerprint: dict[str, Any]
        #: All versions that the storage has, by name. Earlier releases have put another one into a fingerprint.
        self.versions: dict[str, str] = {}
        #: What else changes if the bytes may have changed, such as the inode of a local file. It decides whether an
        #: upload may be resumed. It does not identify the recording, as a chmod or a hard link changes it, too.
        self.revision: dict[str, Any]
        self.fingerprint, self.revision = self._stat()
        #: Bytes in all.
        self.size: int = self.fingerprint["size"]
        if not MIN_UPLOAD_BYTES <= self.size <= MAX_UPLOAD_BYTES:
            raise RoughyUnusableSourceError(
                f"Source {self.uri} has {self.size} bytes; Roughy takes {MIN_UPLOAD_BYTES} to {MAX_UPLOAD_BYTES}"
            )

    @abstractmethod
    def _stat(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the current fingerprint, with the ``size`` in bytes, and the current revision."""

    @abstractmethod
    def _open(self) -> IO[bytes]:
        """Open it for reading. The caller closes the file."""

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """Open it for a whole transfer.

        :raises RoughySourceError: If it cannot be opened.
        """
        with _read_errors(f"Source {self.uri} cannot be opened"):
            file = self._open()
        with file:
            yield Reader(self, file)

    def check_unchanged(self) -> None:
        """Check that it is still the version that was found.

        :raises RoughySourceError: If it has changed or is gone.
        """
        try:
            fingerprint, revision = self._stat()
        except RoughyUnusableSourceError as err:
            raise RoughySourceError(f"Source {self.uri} vanished while it was read: {err}") from err
        now = {**fingerprint, **revision}
        changed = [
            f"{name} was {value}, is {now.get(name)}"
            for name, value in {**self.fingerprint, **self.revision}.items()
            if now.get(name) != value
        ]
        if changed:
            raise RoughySourceError(
                f"Source {self.uri} changed while it was read: {'; '.join(changed)}. Let it be written completely "
                "before the task runs; a retry uploads it as it is then"
            )


class Reader:
    """An open source.

    :param source: The source.
    :param file: The open file.
    """

    def __init__(self, source: Source, file: IO[bytes]) -> None:
        self.source = source
        self.file = file

    def blocks(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a part of it in blocks.

        Before the last block of the source, it is checked for changes, so that an upload of a file that has changed is
        never completed.

        :param offset: Where to start, in bytes.
        :param length: How many bytes to yield in all.
        :raises RoughySourceError: If it has become shorter, has changed, or cannot be read.
        """
        source = self.source
        end = offset + length
        position: int | None = offset
        while offset < end:
            block = self._read(position, min(BLOCK_BYTES, end - offset))
            position = None
            if not block:
                raise RoughySourceError(
                    f"Source {source.uri} shrank while it was read: it ended at {offset} of {source.size} bytes"
                )
            offset += len(block)
            if offset == source.size:
                source.check_unchanged()
            yield block

    def _read(self, position: int | None, length: int) -> bytes:
        with _read_errors(f"Source {self.source.uri} cannot be read"):
            if position is not None:
                self.file.seek(position)
            return self.file.read(length)


class LocalSource(Source):
    """A file on this worker.

    :param path: Its path.
    :param uri: Its name, as the user wrote it.
    """

    def __init__(self, path: str, *, uri: str) -> None:
        self._path = path
        super().__init__(uri)

    def _stat(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            with storage_errors(
                f"Source {self.uri} cannot be read",
                RoughySourceError,
                RoughyUnusableSourceError,
                through=(FileNotFoundError, PermissionError),
            ):
                found = os.stat(self._path)
                if stat.S_ISDIR(found.st_mode):
                    raise RoughyUnusableSourceError(f"Source {self.uri} is a directory, not a file")
                if not stat.S_ISREG(found.st_mode):
                    raise RoughyUnusableSourceError(f"Source {self.uri} is not a regular file")
                # On a network file system, only opening a file shows whether it may be read.
                os.close(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except FileNotFoundError:
            raise RoughyUnusableSourceError(
                f"Source {self.uri} does not exist on this worker ({socket.gethostname()})"
            ) from None
        except PermissionError as err:
            raise RoughyUnusableSourceError(f"Source {self.uri} is not readable for uid {os.getuid()}: {err}") from err
        # Without the device number, which a network file system may have another of on each worker.
        revision = {"inode": str(found.st_ino), "ctime": str(found.st_ctime_ns)}
        return local_fingerprint(self.uri, found), revision

    def _open(self) -> IO[bytes]:
        return open(self._path, "rb", buffering=0)


class StoredSource(Source):
    """An object in any storage that Airflow knows.

    :param uri: ``scheme://…``
    :param fs: The file system.
    :param path: The object's name in that file system.
    """

    def __init__(self, uri: str, *, fs: FileSystem, path: str) -> None:
        self._fs = fs
        self._path = path
        super().__init__(without_secrets(uri))

    @classmethod
    def of(cls, uri: str, *, conn_id: str | None = None) -> StoredSource:
        """Return the object that a URI names.

        :param uri: ``scheme://…``
        :param conn_id: The Airflow connection of that storage.
        :raises RoughyUnusableSourceError: See :func:`find_source`.
        """
        what = f"Source {as_line(without_secrets(uri))} cannot be read"
        with storage_errors(what, RoughySourceError, RoughyUnusableSourceError):
            fs, path = FileSystem.of(uri, conn_id)
        return cls(uri, fs=fs, path=path)

    def _stat(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            with storage_errors(
                f"Source {self.uri} cannot be read",
                RoughySourceError,
                RoughyUnusableSourceError,
                through=(FileNotFoundError,),
            ):
                info = self._fs.info(self._path)
        except FileNotFoundError:
            raise RoughyUnusableSourceError(f"Source {self.uri} does not exist") from None
        if info.get("type") == "directory":
            raise RoughyUnusableSourceError(f"Source {self.uri} is a directory, not a file")
        if not isinstance(info.get("size"), int):
            raise RoughyUnusableSourceError(f"Source {self.uri} has no size that its storage reports")
        self.versions = stored_versions(info)
        return stored_fingerprint(self.uri, info), {}

    def _open(self) -> IO[bytes]:
        return self._fs.open(self._path, READ_AHEAD_BYTES)


def _read_errors(what: str) -> AbstractContextManager[None]:
    """Raise the errors of reading a file that was found: only missing permissions are lasting."""
    return storage_errors(
        what,
        RoughySourceError,
        RoughyUnusableSourceError,
        is_final=lambda error: kind_of(error) is ErrorKind.FORBIDDEN,
    )


def local_fingerprint(uri: str, found: os.stat_result) -> dict[str, Any]:
    """Return the fingerprint of a file.

    :param uri: Its name.
    :param found: Its status.
    """
    return {"uri": uri, "size": found.st_size, "mtime": str(found.st_mtime_ns)}


def stored_fingerprint(uri: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return the fingerprint of an object.

    :param uri: Its name.
    :param info: Its fsspec ``info``, with a ``size`` in bytes.
    """
    version = next(iter(stored_versions(info).items()), None)
    return {"uri": uri, "size": info["size"], **(dict([version]) if version else {})}
