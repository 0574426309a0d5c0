"""How folders and files are listed: on this worker's disk, and in a storage that Airflow knows. No file is opened."""

from __future__ import annotations

import ast
import os
import socket
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.ingest.files import Problem, SourceFile
from airflow_provider_roughy.ingest.identity import canonical_uri, name_of_path
from airflow_provider_roughy.transfer.filesystem import FileSystem
from airflow_provider_roughy.transfer.storage import (
    as_line,
    cause_of,
    local_path,
    may_pass,
    storage_errors,
    storage_id,
    stored_versions,
    without_secrets,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_roughy.compat import ObjectStoragePath

    #: A path, a URI, or Airflow's path to an object.
    SourceLocation = str | os.PathLike[str] | ObjectStoragePath

#: Seconds that the clock of a file system may be ahead of this worker's.
_MAX_CLOCK_LEAD = 3600.0
#: Tiers in which an object cannot be read until it was restored.
_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE", "Archive"}
#: Names by which storages return the tier of an object, and the time of its last change.
_TIERS = ("StorageClass", "blob_tier")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


@dataclass(frozen=True, slots=True)
class Child:
    """A name in a folder.

    :param name: Its last part.
    :param path: The whole path.
    :param is_folder: Whether it is a folder, or a link to one.
    :param is_link: Whether it is a link.
    :param info: Its metadata, if the list has them.
    """

    name: str
    path: str
    is_folder: bool
    is_link: bool = False
    info: Any = None


class Tree(Protocol):
    """The operations of a storage that the walker needs."""

    def uri(self, path: str) -> str:
        """Return the name of a path in messages."""

    def is_folder(self, path: str) -> bool:
        """Return whether a path is a folder."""

    def exists(self, path: str) -> bool:
        """Return whether a path exists, taken literally."""

    def children(self, path: str) -> list[Child]:
        """List a folder. Errors of the storage are raised as they are."""

    def file(self, path: str) -> SourceFile:
        """Return a file that is a source itself. Errors of the storage are raised as they are."""

    def child_file(self, child: Child) -> SourceFile | None:
        """Return a file of a folder; ``None`` if it has vanished."""

    def unreadable_folder(self, path: str, error: Exception) -> SourceFile:
        """Return a file with a problem, for a folder that cannot be listed."""


@contextmanager
def errors_of(tree: Tree, path: str) -> Iterator[None]:
    """Turn errors of a storage about a source into errors of this package.

    :param tree: The storage.
    :param path: The source.
    """
    uri = tree.uri(path)
    try:
        with storage_errors(
            f"Source {uri} cannot be read",
            RoughySourceError,
            RoughyUnusableSourceError,
            through=(FileNotFoundError,),
        ):
            yield
    except FileNotFoundError as err:
        where = f" on this worker ({socket.gethostname()})" if isinstance(tree, _LocalTree) else ""
        raise RoughyUnusableSourceError(f"Source {uri} does not exist{where}") from cause_of(err)


class _LocalTree:
    """The local files of this worker."""

    def __init__(self) -> None:
        self._real_folder = cache(os.path.realpath)

    def uri(self, path: str) -> str:
        return as_line(path)

    def is_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except FileNotFoundError:
            return False
        except OSError as err:
            if may_pass(err):
                raise
            return False

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def children(self, path: str) -> list[Child]:
        with os.scandir(path) as entries:
            return sorted(map(self._child, entries), key=lambda child: child.name)

    def _child(self, entry: os.DirEntry[str]) -> Child:
        try:
            is_folder = entry.is_dir()
        except OSError:  # A link in a circle, or a network that does not answer: the error of stat is more specific.
            is_folder = False
        return Child(entry.name, entry.path, is_folder, entry.is_symlink())

    def file(self, path: str) -> SourceFile:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise RoughyUnusableSourceError(f"Source {self.uri(path)} is not a regular file")
        return self._file_of(path, found, is_link=os.path.islink(path))

    def child_file(self, child: Child) -> SourceFile | None:
        try:
            return self._file_of(child.path, os.stat(child.path), is_link=child.is_link)
        except FileNotFoundError as err:
            return self._broken_link(child.path, err) if child.is_link else None
        except OSError as err:
            if child.is_link and not may_pass(err):
                return self._broken_link(child.path, err)
            return self._problem(child.path, err, Problem.PASSING if may_pass(err) else Problem.UNREADABLE)

    def _file_of(self, path: str, found: os.stat_result, *, is_link: bool) -> SourceFile:
        # A copy may have the modification time of its original: only `ctime` is the time at which it was written here.
        # A camera's clock may be years ahead.
        ahead = found.st_mtime > time.time() + _MAX_CLOCK_LEAD
        regular = stat.S_ISREG(found.st_mode)
        return SourceFile(
            self.uri(path),
            name_of_path(os.path.realpath(path) if is_link else self._real_path(path)),
            path,
            size=found.st_size if regular else 0,
            versions=_local_versions(found),
            modified=found.st_mtime,
            changed=found.st_ctime if ahead else max(found.st_mtime, found.st_ctime),
            problem=None if regular else Problem.UNUSABLE,
            reason="" if regular else "it is not a regular file",
        )

    def _real_path(self, path: str) -> str:
        """Return the real path of a file that is not a link."""
        folder, name = os.path.split(path)
        real = self._real_folder(folder)
        return path if real == folder else os.path.join(real, name)

    def _broken_link(self, path: str, error: OSError) -> SourceFile | None:
        """Return a broken link with its own metadata, so that it is rejected once."""
        try:
            found, target = os.lstat(path), os.readlink(path)
        except OSError:
            return None
        reason = f"it is a link to {as_line(target)}, which "
        reason += "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return SourceFile(
            self.uri(path),
            name_of_path(self._real_path(path)),
            path,
            versions=_local_versions(found),
            modified=found.st_mtime,
            changed=found.st_ctime,
            problem=Problem.UNUSABLE,
            reason=reason,
        )

    def unreadable_folder(self, path: str, error: Exception) -> SourceFile:
        return self._problem(path, error, Problem.PASSING if may_pass(error) else Problem.UNUSABLE)

    def _problem(self, path: str, error: Exception, problem: Problem) -> SourceFile:
        name = name_of_path(path)
        return SourceFile(self.uri(path), name, path, problem=problem, reason=words_of(error))


class _StoredTree:
    """An object storage, or any other storage that Airflow knows.

    :param fs: Its file system.
    :param head: The part of URIs before the names of ``fs``, such as ``s3://`` or ``sftp://user@host/``.
    """

    def __init__(self, fs: FileSystem, head: str) -> None:
        self._fs = fs
        self._head = head
        self._storage = storage_id(fs.fs)

    @classmethod
    def of(cls, uri: str, conn_id: str | None) -> tuple[_StoredTree, str]:
        """Open the storage of a URI, and return it with the path in it. A slash at the end marks a folder.

        :raises RoughyUnusableSourceError: If Airflow has no such storage, or would take the URI for another one.
        :raises RoughySourceError: If the storage is down.
        """
        with storage_errors(
            f"Source {as_line(without_secrets(uri))} cannot be read", RoughySourceError, RoughyUnusableSourceError
        ):
            fs, bare = FileSystem.of(uri, conn_id)
        head = uri.rstrip("/").removesuffix(bare.lstrip("/"))
        return cls(fs, head), bare + ("/" if uri.endswith("/") else "")

    def uri(self, path: str) -> str:
        return as_line(without_secrets(self._head + path.lstrip("/")))

    def is_folder(self, path: str) -> bool:
        if path.endswith("/"):
            return True
        with suppress(FileNotFoundError):
            info = self._fs.info(path)
            if info.get("type") == "directory":
                return True
            # An empty object of the same name may represent a folder.
            return info.get("size") == 0 and not self._fs.has_folders and bool(self.children(path))
        return False

    def exists(self, path: str) -> bool:
        return self._fs.exists(path)

    def children(self, path: str) -> list[Child]:
        bare = path.rstrip("/")
        try:
            infos = self._fs.children(bare)
        except FileNotFoundError:
            if self._fs.has_folders:
                raise
            # A prefix without objects is empty, if the bucket exists.
            self._fs.children(bare.strip("/").partition("/")[0])
            return []
        folders = {info["name"].rstrip("/") for info in infos if info.get("type") == "directory"}
        children = [
            Child(name.rpartition("/")[2], name, info.get("type") == "directory", bool(info.get("islink")), info)
            for info in infos
            # A storage may list the folder itself, or an empty object that represents it.
            if (name := info["name"].rstrip("/")).strip("/") != bare.strip("/")
            and not (info["name"].endswith("/") and info.get("type") != "directory")
            and not (info.get("size") == 0 and info.get("type") != "directory" and name in folders)
        ]
        # For an object such as `in//a.wav`, which s3fs cannot list, it returns the folder `in/` itself.
        if any(info.get("StorageClass") == "DIRECTORY" and info["name"] == f"{bare.strip('/')}/" for info in infos):
            children.append(Child("", f"{bare}//*", is_folder=True))
        return sorted(children, key=lambda child: child.name)

    def file(self, path: str) -> SourceFile:
        file = self._file_of(path, self._fs.info(path))
        if file.problem is not None:
            raise RoughyUnusableSourceError(f"Source {file.uri}: {file.reason}")
        return file

    def child_file(self, child: Child) -> SourceFile | None:
        return self._file_of(child.path, child.info)

    def _file_of(self, path: str, info: dict[str, Any]) -> SourceFile:
        changed = _changed(info)
        has_size = isinstance(info.get("size"), int)
        tier = next((info[name] for name in _TIERS if info.get(name) in _ARCHIVES), None)
        reason = self._fs.why_not_addressed(path)
        if not has_size:
            reason = "the storage does not return its size"
        if tier:
            reason = f"it is archived ({tier}): restore it to a tier that can be read"
        versions = stored_versions(info)
        return SourceFile(
            self.uri(path),
            canonical_uri(self._head + path.lstrip("/")),
            path,
            size=info["size"] if has_size else 0,
            # Once restored, it is a new recording.
            versions={"etag": f"{tier} {versions}"} if tier else versions,
            modified=changed,
            changed=changed,
            storage=self._storage,
            fs=self._fs,
            problem=Problem.UNUSABLE if reason else None,
            reason=reason,
        )

    def unreadable_folder(self, path: str, error: Exception) -> SourceFile:
        problem = Problem.PASSING if may_pass(error) else Problem.UNUSABLE
        name = canonical_uri(self._head + path.lstrip("/"))
        return SourceFile(self.uri(path), name, path, storage=self._storage, problem=problem, reason=words_of(error))


def open_tree(source: SourceLocation, conn_id: str | None) -> tuple[Tree, str]:
    """Return the storage of a source, and its path there.

    :param source: A local path, a URI, or an ``ObjectStoragePath``.
    :param conn_id: The Airflow connection of its storage.
    :raises RoughyUnusableSourceError: If it is empty, the text of a list, or a URI that cannot be used.
    """
    text = str(source)
    if not text.strip():
        raise RoughyUnusableSourceError("`source` is empty; if it is a template, it rendered to nothing")
    path = local_path(text)
    if path is not None:
        if not os.path.lexists(path):
            check_no_rendered_value("source", text)
        # A parent of a link is the parent of where it leads.
        return _LocalTree(), os.path.realpath(path) if ".." in path.split("/") else os.path.abspath(path)
    return _StoredTree.of(text, conn_id or getattr(source, "conn_id", None))


def find_again(uri: str, conn_id: str | None, path: str | None = None) -> tuple[FileSystem | None, str]:
    """Return the file system of a file that was found before, and its path there, without asking the storage.

    :param uri: Its name in messages, as :class:`SourceFile` has it.
    :param conn_id: The Airflow connection of its storage.
    :param path: Its path there, if ``uri`` is not the exact spelling.
    :returns: ``None`` as file system of a local file.
    :raises RoughyUnusableSourceError: If Airflow has no such storage.
    """
    local = local_path(uri)
    if local is not None:
        return None, path or local
    try:
        fs, stored = FileSystem.of(uri, conn_id)
    except (ValueError, ImportError) as err:
        raise RoughyUnusableSourceError(f"Source {without_secrets(uri)}: {err}") from err
    return fs, path or stored


def check_no_rendered_value(name: str, text: str) -> None:
    """Refuse a list or ``None`` that a template has rendered as text: as a glob, it would silently match nothing."""
    value: object = text
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        value = ast.literal_eval(text.strip())
    if value is None or isinstance(value, (list, tuple, set, dict)):
        raise RoughyUnusableSourceError(
            f"`{name}` is the text {text[:200]!r}: a template has rendered a value as text. Set "
            "render_template_as_native_obj=True on the DAG, or pass the value itself, such as an XComArg"
        )


def _local_versions(found: os.stat_result) -> dict[str, str]:
    inode = {"inode": f"{found.st_dev}:{found.st_ino}"} if found.st_nlink > 1 else {}
    return {"mtime": str(found.st_mtime_ns), **inode}


def _changed(info: dict[str, Any]) -> float | None:
    changed: Any = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(changed, str):
        with suppress(ValueError):
            changed = datetime.fromisoformat(changed)
    if isinstance(changed, datetime):
        return changed.timestamp()
    return float(changed) if isinstance(changed, (int, float)) else None
