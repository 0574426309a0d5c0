"""How the ledger's objects are stored: on a local or network file system, or in a storage that Airflow knows.

Only this module knows the storage. A :class:`Folder` creates an object completely, and only if it does not exist. It
cannot tell which try created an object that exists; :class:`~airflow_provider_roughy.ledger.Ledger` reads it to find
out.
"""

from __future__ import annotations

import errno
import inspect
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from airflow_provider_roughy.transfer.storage import as_text, may_pass, stored_path

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import ObjectStoragePath

T = TypeVar("T")
U = TypeVar("U")

#: The subfolders of a ledger.
SUBFOLDERS = ("contents", "open", "outputs", "problems", "runs")
#: Attempts to create an object while another client is creating it, which S3 answers with 409.
_MAX_CONFLICTS = 5
#: HTTP statuses that no retry changes: rejected credentials, a missing bucket, and an unsupported request.
_FINAL_STATUSES = {401, 403, 404, 501}


class Folder(Protocol):
    """The operations of a storage. Names are relative to the ledger, with ``/`` between folder and object."""

    #: How many objects to read or write at once: a disk gains nothing by threads.
    at_once: int

    def prepare(self) -> None:
        """Create the folder and its subfolders, if the storage has folders.

        :raises OSError: If the parent folder does not exist.
        """

    def names(self, subfolder: str = "") -> Iterable[str]:
        """List a folder; an empty list if it does not exist."""

    def read(self, name: str) -> bytes | None:
        """Return an object, or ``None`` if it does not exist."""

    def create(self, name: str, content: bytes) -> bool:
        """Create an object if it does not exist, and return whether this call created it."""

    def write(self, name: str, content: bytes) -> None:
        """Write an object, completely or not at all. It replaces one that exists."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects. Missing ones are no error."""


class LocalFolder:
    """A folder on this worker, or on a network file system.

    :param path: Its absolute path.
    """

    at_once = 1

    def __init__(self, path: str) -> None:
        self.path = path

    def prepare(self) -> None:
        """Create the folder and its subfolders, but not its parent, which may be a volume that is not mounted."""
        parent = os.path.dirname(self.path)
        try:
            os.stat(parent)
        except FileNotFoundError:
            raise _missing_parent(parent) from None
        if not os.path.isdir(parent):
            raise NotADirectoryError(f"{as_text(parent)}, which should contain the ledger, is a file, not a folder")
        if not os.path.isdir(self.path):
            if os.path.lexists(self.path):
                raise NotADirectoryError(
                    f"it is a file, not a folder: give another path as `ledger`, or remove {as_text(self.path)}"
                )
            with suppress(FileExistsError):
                os.mkdir(self.path)
        for name in SUBFOLDERS:
            self._make(name)

    def _make(self, subfolder: str) -> None:
        """Create a subfolder with the permissions of the ledger's folder."""
        path = os.path.join(self.path, subfolder)
        if os.path.isdir(path):
            return
        with suppress(FileExistsError):
            os.mkdir(path)
            with suppress(PermissionError):
                os.chmod(path, stat.S_IMODE(os.stat(self.path).st_mode))
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)

    def names(self, subfolder: str = "") -> Iterator[str]:
        """List a folder."""
        with suppress(FileNotFoundError), os.scandir(os.path.join(self.path, subfolder)) as entries:
            for entry in entries:
                yield entry.name

    def read(self, name: str) -> bytes | None:
        """Return an object, or ``None``."""
        with suppress(FileNotFoundError), open(os.path.join(self.path, name), "rb") as file:
            return file.read()
        return None

    def create(self, name: str, content: bytes) -> bool:
        """Create an object if it does not exist."""
        path = os.path.join(self.path, name)
        try:
            with self._beside(path, content) as new:
                os.link(new, path)
        except FileExistsError:
            return False
        except OSError as err:
            if err.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            return self._create_without_links(path, content)
        return True

    def _create_without_links(self, path: str, content: bytes) -> bool:
        try:
            _write_new(path, content)
        except FileExistsError:
            return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Write an object. It replaces one that exists."""
        path = os.path.join(self.path, name)
        with self._beside(path, content) as new:
            os.replace(new, path)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        for name in names:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, name))

    @contextmanager
    def _beside(self, path: str, content: bytes) -> Iterator[str]:
        """Write a temporary file beside the final path."""
        new = f"{os.path.dirname(path)}/.{uuid4().hex}.new"
        try:
            _write_new(new, content)
            yield new
        finally:
            with suppress(FileNotFoundError):
                os.unlink(new)


def _missing_parent(folder: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"the folder {as_text(folder)}, which contains the ledger, does not exist. Is the volume mounted on this "
        "worker? If it is, create that folder"
    )


def _write_new(path: str, content: bytes) -> None:
    """Write a file that does not exist yet. This runs often, and a file object would cost more than the write."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(content)
        while left:
            # On a full disk, a call writes a part, and the next one raises an error.
            left = left[os.write(descriptor, left) :]
    except OSError:
        # Half an object would stay for ever. It is this call's own, which has opened it exclusively.
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


class StoredFolder:
    """A folder in any storage that Airflow knows.

    :param uri: ``scheme://…``
    :param conn_id: The Airflow connection of that storage.
    """

    at_once = 16

    def __init__(self, uri: str, conn_id: str | None) -> None:
        self._uri = uri
        self._conn_id = conn_id
        # From the location, as not every file system has its protocol.
        scheme = uri.partition("://")[0].lower()
        self._is_s3 = scheme in ("s3", "s3a", "s3n")
        self._is_sftp = scheme in ("sftp", "ssh")

    @cached_property
    def _path(self) -> ObjectStoragePath:
        return stored_path(self._uri, self._conn_id)

    @cached_property
    def _fs(self) -> Any:
        return self._path.fs

    @cached_property
    def _read_options(self) -> dict[str, Any]:
        # Otherwise s3fs requests the size first, to read several parts at once.
        options = inspect.signature(getattr(self._fs, "_cat_file", self._fs.cat_file)).parameters
        return {"max_concurrency": 1} if "max_concurrency" in options else {}

    def _at(self, name: str) -> str:
        return f"{self._path.path.rstrip('/')}/{name}"

    def prepare(self) -> None:
        """Make the folder and its subfolders, where the storage has folders."""
        if self._is_sftp:
            parent = self._path.path.rstrip("/").rpartition("/")[0]
            if not self._fs.exists(parent or "/"):
                raise _missing_parent(parent)
        # S3 has no folders, and s3fs would create a bucket.
        if not self._is_s3:
            for name in SUBFOLDERS:
                self._fs.makedirs(self._at(name), exist_ok=True)

    def names(self, subfolder: str = "") -> Iterator[str]:
        """List a folder."""
        # fsspec caches lists, which would hide new objects of other workers.
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._at(subfolder).rstrip("/"), detail=False)
        except FileNotFoundError:
            return
        finally:
            self._fs.invalidate_cache()
        for path in paths:
            yield path.rstrip("/").rpartition("/")[2]

    def read(self, name: str) -> bytes | None:
        """Return an object, or ``None``."""
        try:
            content: bytes = self._fs.cat_file(self._at(name), **self._read_options)
        except FileNotFoundError:
            return None
        return content

    def create(self, name: str, content: bytes) -> bool:
        """Create an object if it does not exist."""
        for attempt in range(1, _MAX_CONFLICTS + 1):
            try:
                self._create(self._at(name), content)
                return True
            except FileExistsError:
                return False
            except Exception as err:
                # Storages with the API of S3 have error codes of their own; the HTTP status is the same.
                status = http_status(err)
                if status == 412:
                    return False
                if status != 409 or attempt == _MAX_CONFLICTS:
                    raise
                # Another client is creating it right now.
                time.sleep(0.1 * attempt)
        raise AssertionError

    def _create(self, path: str, content: bytes) -> None:
        if self._is_sftp:
            # SFTP file systems ignore mode="create".
            with self._open_new(path) as file:
                file.write(content)
        else:
            self._fs.pipe_file(path, content, mode="create")

    def _open_new(self, path: str) -> IO[bytes]:
        try:
            file: IO[bytes] = self._fs.open(path, "xb")
        except Exception:
            # SFTP has no error for "exists"; servers answer "Failure".
            if self._fs.exists(path):
                raise FileExistsError(path) from None
            raise
        return file

    def write(self, name: str, content: bytes) -> None:
        """Write an object. It replaces one that exists."""
        self._fs.pipe_file(self._at(name), content)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        paths = [self._at(name) for name in names]
        if self._is_s3 and len(paths) > 1:
            # One request for up to 1,000 of them.
            self._fs.rm(paths)
            return
        for _ in for_each(self._remove, paths, at_once=self.at_once):
            pass

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)


def for_each(do: Callable[[T], U], values: Iterable[T], *, at_once: int) -> Iterator[U]:
    """Call a function for each value, and yield the results in order.

    :param do: The function.
    :param values: The values.
    :param at_once: How many calls to run at once.
    """
    values = list(values)
    if at_once == 1 or len(values) <= 1:
        yield from map(do, values)
        return
    with ThreadPoolExecutor(min(at_once, len(values)), thread_name_prefix="roughy-ledger") as pool:
        yield from pool.map(do, values)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the reply that caused an error, or ``None`` if no reply did.

    :param error: What a storage raised.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for status in (response, getattr(cause, "status_code", None), getattr(cause, "code", None)):
            with suppress(TypeError, ValueError):
                if 400 <= int(str(status)) < 600:
                    return int(str(status))
        cause = cause.__cause__ or cause.__context__
    return None


def is_final(error: Exception) -> bool:
    """Return whether no retry can fix an error of a storage, so that a user has to.

    :param error: What the storage raised.
    """
    # ImportError: the Airflow provider of the storage is not installed.
    return isinstance(error, ImportError) or not may_pass(error) or http_status(error) in _FINAL_STATUSES
