"""Where an upload's bytes come from: a local file, or anything that Airflow's ``ObjectStoragePath`` can read.

Both are read in blocks from one open file, and both notice when they change on the way: a silent half of a recording
would be worse than a failed task.
"""

from __future__ import annotations

import os
import socket
import stat
from abc import ABC, abstractmethod
from contextlib import contextmanager
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, cast

from airflow_provider_roughy.api import MAX_UPLOAD_BYTES, MIN_UPLOAD_BYTES
from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.storage import as_text, local_path, may_pass, stored_path, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_roughy.compat import ObjectStoragePath

#: Bytes read at once: one syscall's worth of memory, and no more than one write's timeout can carry.
BLOCK_BYTES = 1024 * 1024
#: Bytes that a storage may read ahead, which is about a third of the memory it takes; s3fs would take 50 MiB.
READ_AHEAD_BYTES = 8 * 1024 * 1024

#: What storages call that which tells one version of an object from another. What follows the content comes first:
#: a time may be told with a resolution of a second here and a finer one there.
_VERSIONS = (
    "ETag",
    "etag",
    "e_tag",
    "md5Hash",
    "generation",
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)


def find_source(source: str | os.PathLike[str] | ObjectStoragePath, *, conn_id: str | None = None) -> Source:
    """Look at a source and return it, ready to be read.

    :param source: A local path, a URI with a scheme that Airflow's object storage knows, or an ``ObjectStoragePath``.
    :param conn_id: The Airflow connection of that storage.
    :raises RoughyUnusableSourceError: If it is missing, no file, unreadable, or not between 64 bytes and 50 GiB.
    """
    text = "" if source is None else str(source)
    if not text:
        raise RoughyUnusableSourceError("The source is empty")
    path = local_path(text)
    if path is not None:
        return LocalSource(path, uri=text)
    return StoredSource(text, conn_id=conn_id or getattr(source, "conn_id", None))


class Source(ABC):
    """Bytes of a known size that can be read from any offset.

    :param uri: What it is called in messages, without credentials or query.
    """

    def __init__(self, uri: str) -> None:
        self.uri = as_text(uri)
        self.fingerprint = self._look()
        #: Bytes in all.
        self.size: int = self.fingerprint["size"]
        if not MIN_UPLOAD_BYTES <= self.size <= MAX_UPLOAD_BYTES:
            raise RoughyUnusableSourceError(
                f"Source {self.uri} has {self.size} bytes; Roughy takes {MIN_UPLOAD_BYTES} to {MAX_UPLOAD_BYTES}"
            )

    @abstractmethod
    def _look(self) -> dict[str, Any]:
        """Return what tells this version of the source from another, with its ``size`` in bytes."""

    @abstractmethod
    def _open(self) -> IO[bytes]:
        """Open it for reading; the file is closed by the caller."""

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """Open it once for a whole transfer.

        :raises RoughySourceError: If it cannot be opened.
        """
        try:
            file = self._open()
        except Exception as err:  # Storages raise errors of their own, and not all of them are OSError.
            raise RoughySourceError(f"Source {self.uri} cannot be opened: {err}") from err
        with file:
            yield Reader(self, file)

    def check_unchanged(self) -> None:
        """Compare it with what it was when it was found.

        :raises RoughySourceError: If it is another one now.
        """
        try:
            now = self._look()
        except RoughyUnusableSourceError as err:
            raise RoughySourceError(f"Source {self.uri} vanished while it was read: {err}") from err
        changed = [
            f"{name} was {value}, is {now.get(name)}"
            for name, value in self.fingerprint.items()
            if now.get(name) != value
        ]
        if changed:
            raise RoughySourceError(f"Source {self.uri} changed while it was read: {'; '.join(changed)}")


class Reader:
    """An open source.

    :param source: What is read.
    :param file: The open file.
    """

    def __init__(self, source: Source, file: IO[bytes]) -> None:
        self.source = source
        self.file = file

    def blocks(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a part of it, block by block.

        The source is compared with what it was before its very last block is given away, so that a file which changed
        meanwhile is never completed at Roughy.

        :param offset: Where to start, in bytes.
        :param length: How many bytes to yield in all.
        :raises RoughySourceError: If it ended early, changed, or could not be read.
        """
        source = self.source
        end = offset + length
        place: int | None = offset
        while offset < end:
            block = self._read(place, min(BLOCK_BYTES, end - offset))
            place = None
            if not block:
                raise RoughySourceError(
                    f"Source {source.uri} shrank while it was read: it ended at {offset} of {source.size} bytes"
                )
            offset += len(block)
            if offset == source.size:
                source.check_unchanged()
            yield block

    def _read(self, place: int | None, length: int) -> bytes:
        try:
            if place is not None:
                self.file.seek(place)
            return self.file.read(length)
        except Exception as err:  # As in Source.open.
            raise RoughySourceError(f"Source {self.source.uri} cannot be read: {err}") from err


class LocalSource(Source):
    """A file on this worker.

    :param path: Where it is.
    :param uri: What the user called it.
    """

    def __init__(self, path: str, *, uri: str) -> None:
        self._path = path
        super().__init__(uri)

    def _look(self) -> dict[str, Any]:
        try:
            found = os.stat(self._path)
            if stat.S_ISDIR(found.st_mode):
                raise RoughyUnusableSourceError(f"Source {self.uri} is a directory, not a file")
            if not stat.S_ISREG(found.st_mode):
                raise RoughyUnusableSourceError(f"Source {self.uri} is not a regular file")
            # Only opening it tells whether it may be read, on a network's file system at least.
            os.close(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except FileNotFoundError:
            raise RoughyUnusableSourceError(
                f"Source {self.uri} does not exist on this worker ({socket.gethostname()})"
            ) from None
        except PermissionError as err:
            raise RoughyUnusableSourceError(f"Source {self.uri} is not readable for uid {os.getuid()}: {err}") from err
        except (OSError, ValueError) as err:
            if may_pass(err):
                raise RoughySourceError(f"Source {self.uri} cannot be looked at: {err}") from err
            raise RoughyUnusableSourceError(f"Source {self.uri} is no path of a file: {err}") from err
        return local_fingerprint(self.uri, found)

    def _open(self) -> IO[bytes]:
        return open(self._path, "rb", buffering=0)


class StoredSource(Source):
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

    def _look(self) -> dict[str, Any]:
        try:
            fs = self._path.fs
            fs.invalidate_cache()
            info = fs.info(self._path.path)
        except FileNotFoundError:
            raise RoughyUnusableSourceError(f"Source {self.uri} does not exist") from None
        except (ValueError, ImportError) as err:
            raise RoughyUnusableSourceError(f"Source {self.uri}: {err}") from err
        except Exception as err:  # As in Source.open.
            raise RoughySourceError(f"Source {self.uri} cannot be looked at: {err}") from err
        if info.get("type") == "directory":
            raise RoughyUnusableSourceError(f"Source {self.uri} is a directory, not a file")
        if not isinstance(info.get("size"), int):
            raise RoughyUnusableSourceError(f"Source {self.uri} does not tell its size")
        return stored_fingerprint(self.uri, info)

    def _open(self) -> IO[bytes]:
        # Not by ObjectStoragePath.open(), which tells Airflow's lineage of each block, and who signs in.
        return cast("IO[bytes]", self._path.fs.open(self._path.path, "rb", block_size=READ_AHEAD_BYTES))


def local_fingerprint(uri: str, found: os.stat_result) -> dict[str, Any]:
    """Return what tells this version of a file from another.

    :param uri: What it is called.
    :param found: What the file system tells of it.
    """
    return {"uri": uri, "size": found.st_size, "mtime": str(found.st_mtime_ns)}


def stored_fingerprint(uri: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return what tells this version of an object from another.

    :param uri: What it is called.
    :param info: What its storage tells of it.
    """
    version = next((name for name in _VERSIONS if info.get(name)), None)
    return {"uri": uri, "size": info["size"], **({version.lower(): str(info[version])} if version else {})}
