"""How the ledger's objects are stored: on a local or network file system, or in a storage that Airflow knows.

Only this module knows where the objects are. How each storage creates one exclusively is in
:mod:`~airflow_provider_roughy.transfer.filesystem`. A :class:`Folder` creates an object completely, and only if it does
not exist. It cannot tell which try created an object that exists; :class:`~airflow_provider_roughy.ledger.Ledger` reads
it to find out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Protocol
from uuid import uuid4

from airflow_provider_roughy.transfer.filesystem import FileSystem, for_each
from airflow_provider_roughy.transfer.storage import as_text, stored_path

__all__ = ["SUBFOLDERS", "Folder", "LocalFolder", "StoredFolder", "for_each"]

#: The subfolders of a ledger.
SUBFOLDERS = ("contents", "open", "outputs", "problems", "runs")


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

    @cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        path = stored_path(self._uri, self._conn_id)
        return FileSystem(path.fs), path.path.rstrip("/")

    @property
    def _fs(self) -> FileSystem:
        return self._opened[0]

    def _at(self, name: str) -> str:
        return f"{self._opened[1]}/{name}".rstrip("/")

    def prepare(self) -> None:
        """Make the folder and its subfolders, where the storage has folders."""
        if not self._fs.has_folders:
            return
        parent = self._opened[1].rpartition("/")[0]
        if not self._fs.exists(parent or "/"):
            raise _missing_parent(parent)
        for name in SUBFOLDERS:
            self._fs.make_folder(self._at(name))

    def names(self, subfolder: str = "") -> Iterator[str]:
        """List a folder."""
        try:
            infos = self._fs.children(self._at(subfolder))
        except FileNotFoundError:
            return
        for info in infos:
            yield info["name"].rstrip("/").rpartition("/")[2]

    def read(self, name: str) -> bytes | None:
        """Return an object, or ``None``."""
        return self._fs.read(self._at(name))

    def create(self, name: str, content: bytes) -> bool:
        """Create an object if it does not exist."""
        return self._fs.create(self._at(name), content)

    def write(self, name: str, content: bytes) -> None:
        """Write an object. It replaces one that exists."""
        self._fs.write(self._at(name), content)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects."""
        self._fs.remove([self._at(name) for name in names], at_once=self.at_once)
