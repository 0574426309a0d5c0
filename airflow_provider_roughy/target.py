"""Where a download's bytes go: a local file, or anything that Airflow's ``ObjectStoragePath`` can write.

A target appears whole or not at all, whatever ends the download: an error, a kill, a full disk. What was there before
stays until then. Of two that write the same target at the same time each writes for itself, and the last one to end
wins.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import stat
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args
from uuid import uuid4

from airflow_provider_roughy.exceptions import (
    RoughyTargetError,
    RoughyTargetExistsError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.storage import as_text, local_path, may_pass, stored_path, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_roughy.compat import ObjectStoragePath

#: What to do about a file that is there already.
Overwrite = Literal["replace", "skip", "fail"]

#: Bytes that a storage gathers before it sends them, which is about a third of the memory it takes. S3 wants 5 MiB at
#: least, and s3fs would take 50.
_GATHERED_BYTES = 8 * 1024 * 1024
#: Bytes that a storage is given at once.
_PIECE_BYTES = 256 * 1024
#: Parts that an object may be sent in; S3 takes 10,000.
_MOST_PARTS = 9_000
#: Storages whose objects appear when their last part has been sent, and not before. In all others a part of a file
#: can be seen, so it is written under another name.
_APPEARS_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl"}
#: Others' unfinished files that are looked at for one to take over.
_MOST_UNFINISHED = 1000

_log = logging.getLogger(__name__)


def check_overwrite(value: str) -> None:
    """Refuse a policy that does not exist.

    :raises ValueError: At DAG parse, where a typing error is cheapest.
    """
    if value not in get_args(Overwrite):
        raise ValueError(f"overwrite must be one of {get_args(Overwrite)}, not {value!r}")


def find_target(target: str | os.PathLike[str] | ObjectStoragePath, *, name: str, conn_id: str | None = None) -> Target:
    """Look at a target and return it, ready to be written.

    :param target: A local path, a URI with a scheme that Airflow's object storage knows, or an ``ObjectStoragePath``.
        One that ends with a slash is a folder, as is one that is there.
    :param name: What the file is called if the target is a folder.
    :param conn_id: The Airflow connection of that storage.
    :raises RoughyUnusableTargetError: If no file can be written there.
    :raises RoughyTargetError: If it cannot be looked at.
    """
    text = str(target)
    if not text:
        raise RoughyUnusableTargetError("The target is empty")
    conn_id = conn_id or getattr(target, "conn_id", None)
    found = _at(text + name if text.endswith("/") else text, conn_id)
    if found.is_folder and not text.endswith("/"):
        found = _at(f"{text}/{name}", conn_id)
    if found.is_folder:
        raise RoughyUnusableTargetError(f"Target {found.uri} is a folder, not a file")
    return found


def _at(location: str, conn_id: str | None) -> Target:
    path = local_path(location)
    return StoredTarget(location, conn_id=conn_id) if path is None else LocalTarget(path, uri=location)


class Target(ABC):
    """A place where a file can be written.

    :param uri: What it is called, without credentials.
    """

    def __init__(self, uri: str) -> None:
        self.uri = as_text(uri)
        #: Whether a folder is there.
        self.is_folder = False
        #: Bytes of the file that is there, or ``None`` if there is none.
        self.size: int | None = None
        #: Why it could not be looked at. Who only replaces files need not be allowed to.
        self._unseen: RoughyTargetError | None = None
        self._look()

    @abstractmethod
    def _look(self) -> None:
        """See what is there."""

    @abstractmethod
    def _start(self, size: int | None) -> Sink:
        """Begin a new file.

        :param size: Its bytes in all, if they are known.
        """

    def wants(self, size: int | None, overwrite: Overwrite = "replace") -> bool:
        """Tell whether a file is to be written here.

        :param size: Its bytes, as far as they are known. A file that is there and is as long is taken for the same
            one: an earlier try of the task has written it.
        :param overwrite: ``"replace"``: always. ``"skip"``: unless it is there already. ``"fail"``: likewise, and
            another one that is there is not replaced.
        :raises RoughyTargetExistsError: If another one is there, and the policy is ``"fail"``.
        :raises RoughyTargetError: If the storage does not tell whether one is there, and the policy has to know.
        """
        if overwrite == "replace":
            return True
        if self._unseen is not None:
            raise self._unseen
        if self.size is None:
            return True
        if self.size == size:
            return False
        if overwrite == "fail":
            promised = "" if size is None else f", where {size} are to be written"
            raise RoughyTargetExistsError(
                f"Target {self.uri} is there already and has {self.size} bytes{promised}; overwrite is 'fail'"
            )
        return True

    @contextmanager
    def open(self, size: int | None = None) -> Iterator[Sink]:
        """Write a file: it appears when the body has ended well, and never if it raises.

        :param size: Its bytes in all, if they are known.
        :raises RoughyUnusableTargetError: If nothing may be written there.
        :raises RoughyTargetError: If it could not be written.
        """
        sink = self._start(size)
        try:
            yield sink
            sink.finish()
        except BaseException:
            sink.discard()
            raise

    def save(self, content: bytes, overwrite: Overwrite = "replace") -> bool:
        """Write a file that is in memory.

        :param content: All of it.
        :param overwrite: As in :meth:`wants`.
        :returns: ``False`` if it was there already.
        """
        if not self.wants(len(content), overwrite):
            return False
        with self.open(len(content)) as sink:
            sink.write(content)
        return True


class Sink(ABC):
    """A file that is being written, and cannot be seen under its name yet.

    :param uri: What the target is called.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        #: Bytes written so far.
        self.offset = 0

    def write(self, block: bytes | memoryview) -> None:
        """Append a block, all of it; it may be reused afterwards.

        :raises RoughyTargetError: If that fails.
        """
        with self._errors():
            self._write(block)
        self.offset += len(block)

    def restart(self) -> None:
        """Forget all that was written.

        :raises RoughyTargetError: If that fails.
        """
        with self._errors():
            self._restart()
        self.offset = 0

    def finish(self) -> None:
        """Let the file appear.

        :raises RoughyTargetError: If that fails; then it does not appear.
        """
        with self._errors():
            self._finish()

    def discard(self) -> None:
        """Remove what was written; never raises, as something else has just gone wrong."""
        try:
            self._discard()
        except Exception as err:
            _log.warning("What was written of %s could not be removed: %s", self.uri, err)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as err:  # Storages raise errors of their own, and not all of them are OSError.
            raise RoughyTargetError(f"Target {self.uri} cannot be written: {err}") from err

    @abstractmethod
    def _write(self, block: bytes | memoryview) -> None: ...

    @abstractmethod
    def _restart(self) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None: ...


class LocalTarget(Target):
    """A file on this worker. Its folder is made if need be.

    :param path: Where it is.
    :param uri: What the user called it.
    """

    def __init__(self, path: str, *, uri: str) -> None:
        self._path = path
        super().__init__(uri)

    def _look(self) -> None:
        with _local_errors(self.uri):
            # Where a link leads to: what is replaced is the file, not the link.
            self._path = os.path.realpath(self._path)
            try:
                found = os.stat(self._path)
            except FileNotFoundError:
                return
        self.is_folder = stat.S_ISDIR(found.st_mode)
        if stat.S_ISREG(found.st_mode):
            self.size = found.st_size
        elif not self.is_folder:
            raise RoughyUnusableTargetError(f"Target {self.uri} is not a regular file")

    def _start(self, size: int | None) -> Sink:
        with _local_errors(self.uri):
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            return _LocalSink(self.uri, self._path)


class _LocalSink(Sink):
    """An unfinished file beside the target.

    A killed worker leaves its file behind; the next one takes it over, as nobody holds its lock.

    :param path: Where the target is.
    """

    def __init__(self, uri: str, path: str) -> None:
        super().__init__(uri)
        self._path = path
        self._unfinished, self._file = self._claim()

    def _claim(self) -> tuple[str, int]:
        folder, name = os.path.split(self._path)
        # The target's own name may be as long as a name can be.
        stem = os.path.join(folder, f".roughy-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}")
        for number in range(_MOST_UNFINISHED):
            path = f"{stem}-{number}.part"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                if _is_ours(path, file):
                    os.ftruncate(file, 0)
                    return path, file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        raise OSError(errno.EAGAIN, f"{_MOST_UNFINISHED} others are writing it")

    def _write(self, block: bytes | memoryview) -> None:
        left = memoryview(block)
        while left:
            left = left[os.write(self._file, left) :]

    def _restart(self) -> None:
        os.lseek(self._file, 0, os.SEEK_SET)
        os.ftruncate(self._file, 0)

    def _finish(self) -> None:
        os.fsync(self._file)
        os.replace(self._unfinished, self._path)
        os.close(self._file)

    def _discard(self) -> None:
        # Before the lock is let go, so that it is nobody else's yet.
        with suppress(FileNotFoundError):
            os.unlink(self._unfinished)
        os.close(self._file)


def _is_ours(path: str, file: int) -> bool:
    """Lock an unfinished file, and tell whether nobody else writes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock may have finished the file, which then has another name.
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


@contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as err:
        cls = RoughyTargetError if may_pass(err) else RoughyUnusableTargetError
        raise cls(f"Target {uri} cannot be written by uid {os.getuid()}: {err}") from err


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

    def _look(self) -> None:
        try:
            fs = self._path.fs
            fs.invalidate_cache()
            info = fs.info(self._path.path)
        except FileNotFoundError:
            return
        except (ValueError, ImportError) as err:
            raise RoughyUnusableTargetError(f"Target {self.uri}: {err}") from err
        except PermissionError as err:
            self._unseen = RoughyTargetError(f"Target {self.uri} must not be looked at: {err}")
            return
        except Exception as err:  # As in Sink.
            raise RoughyTargetError(f"Target {self.uri} cannot be looked at: {err}") from err
        self.is_folder = info.get("type") == "directory"
        if not self.is_folder:
            self.size = info.get("size")

    def _start(self, size: int | None) -> Sink:
        return _StoredSink(self.uri, self._path.fs, self._path.path, size)


class _StoredSink(Sink):
    """An object that is being sent.

    fsspec's files are no context managers here: at the end of a ``with`` they send what they have, also after an error.

    :param fs: The storage.
    :param path: Where the target is.
    :param size: Its bytes in all, if they are known.
    """

    def __init__(self, uri: str, fs: Any, path: str, size: int | None) -> None:
        super().__init__(uri)
        self._fs = fs
        self._path = path
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._appears_whole = bool(protocols & _APPEARS_WHOLE)
        folder, slash, _ = path.rpartition("/")
        self._unfinished = path if self._appears_whole else f"{folder}{slash}.roughy-{uuid4().hex}.part"
        mib = 1024 * 1024
        self._block_size = max(_GATHERED_BYTES, -(-(size or 0) // _MOST_PARTS // mib) * mib)
        with self._errors():
            self._file = self._open()

    def _open(self) -> Any:
        # Not by ObjectStoragePath.open(), which tells Airflow's lineage of each block.
        return self._fs.open(self._unfinished, "wb", block_size=self._block_size)

    def _write(self, block: bytes | memoryview) -> None:
        # Small pieces: what is gathered, and is copied when it is sent, grows beyond its size by one of them at most.
        for start in range(0, len(block), _PIECE_BYTES):
            self._file.write(bytes(block[start : start + _PIECE_BYTES]))

    def _restart(self) -> None:
        self._discard()
        self._file = self._open()

    def _finish(self) -> None:
        self._file.close()
        if not self._appears_whole:
            self._fs.mv(self._unfinished, self._path)
        self._fs.invalidate_cache()

    def _discard(self) -> None:
        if self._appears_whole:
            self._file.discard()
            # Or the end of the object closes the file, which sends what it has.
            self._file.closed = True
        else:
            with suppress(Exception):
                self._file.close()
            self._fs.rm(self._unfinished)
