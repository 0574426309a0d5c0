"""Targets on this worker's disk or a network file system."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import socket
import stat
import time
from contextlib import suppress
from functools import lru_cache
from typing import IO, TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyTargetError, RoughyUnusableTargetError
from airflow_provider_roughy.transfer.storage import as_text, storage_errors
from airflow_provider_roughy.transfer.target_base import Sink, Target

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

#: The names of unfinished files: the host, and a random part.
_UNFINISHED = re.compile(r"\.roughy-([0-9a-f]+)-[0-9a-f]+\.part")
#: Seconds after which an unfinished file of another host counts as left by a killed worker. Not every network file
#: system shows the locks of other hosts.
_ABANDONED_SECONDS = 24 * 3600.0
#: Errors of file systems without hard links, such as FAT and many FUSE file systems.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
#: Links on the way to a file, as Linux follows at most.
_MAX_LINKS = 40
#: The folders that :data:`_search_again_at` remembers.
_MAX_FOLDERS = 1000


class LocalTarget(Target):
    """A file on this worker. Its folder is created if it does not exist.

    :param path: Its path.
    :param uri: Its name, as the user wrote it.
    """

    def __init__(self, path: str, *, uri: str) -> None:
        self._path = path
        super().__init__(uri)

    def _inspect(self) -> None:
        self.is_folder, self.size = False, None
        with _errors(self.uri):
            _check_links(self._path, self.uri)
            # The file that a link leads to is replaced, not the link.
            self._path = os.path.realpath(self._path)
            try:
                found = os.stat(self._path)
            except FileNotFoundError:
                found = None
        self.is_folder = found is not None and stat.S_ISDIR(found.st_mode)
        if not self.is_folder and os.path.dirname(self._path) == os.path.sep:
            raise RoughyUnusableTargetError(
                f"Target {self.uri} is a file in the root folder of this worker. Is a template empty?"
            )
        if found is None:
            return
        if stat.S_ISREG(found.st_mode):
            self.size = found.st_size
        elif not self.is_folder:
            raise RoughyUnusableTargetError(f"Target {self.uri} is not a regular file")

    def _start(self, size: int | None, *, exclusive: bool) -> Sink:
        folder = os.path.dirname(self._path)
        with _errors(self.uri):
            os.makedirs(folder, exist_ok=True)
            _remove_leftovers(folder)
            return _LocalSink(self.uri, self._path, exclusive=exclusive)

    def _read(self) -> IO[bytes]:
        return open(self._path, "rb", buffering=0)


def _check_links(path: str, uri: str) -> None:
    """Refuse links of other users in world-writable sticky folders, as Linux does by default.

    Such a link may lead to any file of this user. The kernel checks only links that it follows itself, and this module
    resolves them to replace the file that they lead to.

    :param path: The path, on which each link is checked, and each one that those lead to.
    :param uri: The target's name in messages.
    :raises RoughyUnusableTargetError: If there is such a link.
    """
    folder = os.path.sep if os.path.isabs(path) else os.getcwd()
    parts, left = path.split(os.path.sep)[::-1], _MAX_LINKS
    while parts and left:
        part = parts.pop()
        if part == os.path.pardir:
            folder = os.path.dirname(folder)
            continue
        here = os.path.join(folder, part) if part else folder
        if not part or not os.path.islink(here):
            folder = os.path.normpath(here)
            continue
        left -= 1
        above, owner = os.stat(folder), os.lstat(here).st_uid
        world_writable = above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH
        if world_writable and owner not in (os.geteuid(), above.st_uid):
            raise RoughyUnusableTargetError(
                f"Target {uri} leads through {as_text(here)}, a link of uid {owner} in a world-writable "
                "folder, and is not followed"
            )
        target = os.readlink(here)
        folder = os.path.sep if os.path.isabs(target) else folder
        parts += target.split(os.path.sep)[::-1]


class _LocalSink(Sink):
    """A new, unfinished file beside the target, which is locked while it is written.

    A killed worker leaves its unfinished file behind. A later download to that folder removes it.

    :param uri: The target's name in messages.
    :param path: The target's path.
    :param exclusive: Whether it must not replace another file.
    """

    def __init__(self, uri: str, path: str, *, exclusive: bool) -> None:
        super().__init__(uri, exclusive=exclusive)
        self._path = path
        self._unfinished, self._file = _create_unfinished(os.path.dirname(path))

    def _write(self, block: bytes | memoryview) -> None:
        left = memoryview(block)
        while left:
            left = left[os.write(self._file, left) :]

    def _restart(self) -> None:
        os.lseek(self._file, 0, os.SEEK_SET)
        os.ftruncate(self._file, 0)

    def _finish(self) -> bool:
        os.fsync(self._file)
        if not self.exclusive:
            os.replace(self._unfinished, self._path)
        elif not self._link():
            return False
        os.close(self._file)
        return True

    def _link(self) -> bool:
        """Give the file its name, unless another file has it."""
        try:
            os.link(self._unfinished, self._path)
        except OSError as err:
            if self._has_name():
                # A network file system may report a failure if only its reply was lost.
                pass
            elif isinstance(err, FileExistsError):
                return False
            elif err.errno in _NO_LINKS:
                return self._replace_own()
            else:
                raise
        os.unlink(self._unfinished)
        return True

    def _has_name(self) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        return False

    def _replace_own(self) -> bool:
        """Create an empty file of that name exclusively, and replace it."""
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        except FileExistsError:
            return False
        try:
            os.replace(self._unfinished, self._path)
        except BaseException:
            os.unlink(self._path)
            raise
        return True

    def _discard(self) -> None:
        # While it is locked, no other process removes it or has created another of that name.
        with suppress(FileNotFoundError):
            os.unlink(self._unfinished)
        os.close(self._file)


def _create_unfinished(folder: str) -> tuple[str, int]:
    """Create and lock an unfinished file, whose name is unpredictable.

    :param folder: The folder of the target.
    :returns: Its path and its descriptor.
    """
    while True:
        path = os.path.join(folder, f".roughy-{_host()}-{secrets.token_hex(16)}.part")
        # The mode that the target will have.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            if _lock(file):
                return path, file
            with suppress(FileNotFoundError):
                os.unlink(path)
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int) -> bool:
    """Lock a new file, and return whether it is this process's own.

    Another process may take it for one that was left behind, before it is locked: it locks and removes it.

    :param file: Its descriptor.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Not every file system supports locks.
        pass
    return os.fstat(file).st_nlink > 0


#: When each folder may be searched for unfinished files again, in seconds of ``time.monotonic()``.
_search_again_at: dict[str, float] = {}


def _remove_leftovers(folder: str) -> None:
    """Remove the unfinished files that killed workers of this user have left in a folder.

    Listing a folder of 100,000 files takes long, so at most a twentieth of the time is spent on it.

    :param folder: The folder.
    """
    began = time.monotonic()
    if began < _search_again_at.get(folder, began):
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if found := _UNFINISHED.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_leftover(entry.path, here=found[1] == _host())
    if len(_search_again_at) > _MAX_FOLDERS:
        _search_again_at.clear()
    ended = time.monotonic()
    _search_again_at[folder] = ended + 20 * (ended - began)


def _remove_leftover(path: str, *, here: bool) -> None:
    """Remove an unfinished file, unless it belongs to another user or may still be written.

    :param path: The file.
    :param here: Whether it was created on this host.
    """
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return
    if not here and time.time() - found.st_mtime < _ABANDONED_SECONDS:
        return
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Raises an error if a live worker writes it.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(file)


@lru_cache(maxsize=1)
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _errors(uri: str) -> AbstractContextManager[None]:
    return storage_errors(
        f"Target {uri} cannot be written by uid {os.getuid()}", RoughyTargetError, RoughyUnusableTargetError
    )
