"""Which recordings there are to ingest: what folders, prefixes, globs and lists stand for. None of them is opened."""

from __future__ import annotations

import glob
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.lifecycle import counted
from airflow_provider_roughy.source import local_fingerprint, stored_fingerprint
from airflow_provider_roughy.storage import as_text, local_path, may_pass, stored_path, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Seconds that the clock of a file system may be ahead of ours.
_CLOCKS_DIFFER = 3600.0
#: What storages call the time of the last change.
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")

#: Names of audio and video. What is in a file, Roughy finds out by itself.
MEDIA = tuple(
    f"*.{extension}"
    for extension in """
        3gp aac ac3 aif aiff amr avi caf flac flv m2ts m4a m4v mka mkv mov mp3 mp4 mpeg mpg mts mxf oga ogg ogv opus ts
        wav weba webm wma wmv
    """.split()  # noqa: SIM905 - one a line would be a page.
)


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that was found, and not opened yet.

    :param location: Where it is, as :func:`find_source` takes it.
    :param fingerprint: What tells this version of it from another: ``uri``, ``size`` in bytes, and a version.
    :param modified: When its content was written, in seconds since the epoch; ``None`` if the storage does not tell.
    :param changed: When anything of it was changed last, likewise.
    :param problem: Why it cannot be read, if it cannot.
    :param passing: Whether that may pass, as of a network's file system that is away for a while.
    :param conn_id: The Airflow connection of its storage.
    """

    location: str
    fingerprint: dict[str, Any]
    modified: float | None = None
    changed: float | None = None
    problem: str | None = None
    passing: bool = False
    conn_id: str | None = None

    @property
    def uri(self) -> str:
        """What it is called in messages."""
        return str(self.fingerprint["uri"])

    @property
    def size(self) -> int:
        """Bytes in all."""
        return int(self.fingerprint["size"])


@dataclass(frozen=True)
class Found:
    """What is there to be ingested.

    :param recordings: The files, the oldest first.
    :param left_out: How many files of folders are none by their names.
    """

    recordings: list[Recording]
    left_out: int


def find_recordings(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    pattern: str | Sequence[str] = MEDIA,
    recursive: bool = False,
    conn_id: str | None = None,
) -> Found:
    """Look at folders, prefixes, globs and files, and return what there is.

    :param sources: One, or a list. A folder or a prefix of an object storage stands for its files; a name with ``*``,
        ``?`` or ``[`` that is no file or folder itself, for those that it matches; and any other one for itself. A file
        of a folder or a glob that links lead to as well is taken once.
    :param pattern: Which files of a folder are taken, by their names whatever their case; names that begin with a dot
        are not. A file or a glob that is named is taken as it is.
    :param recursive: Whether folders stand for what is in their folders, too. Links to folders are not followed,
        neither then nor by ``**`` in a glob.
    :param conn_id: The Airflow connection of their storage.
    :raises RoughyUnusableSourceError: If a folder or a single file is missing or unreadable, or a file is named twice.
    :raises RoughySourceError: If the storage is away.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    several = not isinstance(sources, (str, os.PathLike))
    named = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    found: list[Recording] = []
    left_out = 0

    def is_media(name: str) -> bool:
        nonlocal left_out
        lower = name.lower()
        taken = not name.startswith(".") and any(fnmatchcase(lower, each.lower()) for each in patterns)
        left_out += not taken
        return taken

    for source in named:
        text = str(source)
        if not text:
            raise RoughyUnusableSourceError("The source is empty")
        path = local_path(text)
        if path is not None:
            found += _find_local(path, is_media, recursive=recursive, alone=not several)
        else:
            own_id = conn_id or getattr(source, "conn_id", None)
            found += _find_stored(text, own_id, is_media, recursive=recursive, alone=not several)
    twice = [name for name, count in Counter(recording.uri for recording in found).items() if count > 1]
    if twice:
        raise RoughyUnusableSourceError(f"The source names {counted(len(twice), 'file')} twice: {', '.join(twice[:5])}")
    found.sort(key=lambda recording: (recording.modified or 0.0, recording.uri))
    return Found(found, left_out)


def _find_local(path: str, is_media: Callable[[str], bool], *, recursive: bool, alone: bool) -> list[Recording]:
    path = os.path.abspath(path)
    try:
        if os.path.isdir(path):
            return [_local_recording(file) for file in _once(_walk(path, is_media, recursive))]
        if glob.has_magic(path) and not os.path.lexists(path):
            return [_local_recording(file) for file in _once(_glob(path)) if not os.path.isdir(file)]
    except (OSError, ValueError) as err:
        cls = RoughySourceError if may_pass(err) else RoughyUnusableSourceError
        raise cls(f"Source {as_text(path)} cannot be listed: {err}") from err
    recording = _local_recording(path)
    if alone and recording.problem is not None:
        cls = RoughySourceError if recording.passing else RoughyUnusableSourceError
        raise cls(f"Source {recording.uri}: {recording.problem}")
    return [recording]


def _glob(path: str) -> Iterator[str]:
    """Yield what a glob matches.

    Python's own ``**`` follows links, of which two that lead in a circle keep it busy for ever.
    """
    before, folders_of_folders, after = (f"{path}/*" if path.endswith("/**") else path).partition("/**/")
    if not folders_of_folders:
        yield from glob.iglob(path)
        return
    for root in glob.iglob(before or "/"):
        for parent, folders, _ in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _glob(f"{glob.escape(parent)}/{after}")


def _once(files: Iterable[str]) -> Iterator[str]:
    """Leave out the names by which links lead to a file once more: it would be paid for by each of them."""
    folder_of = cache(os.path.realpath)
    seen = set()
    for file in sorted(files, key=lambda file: (os.path.islink(file), len(file), file)):
        folder, name = os.path.split(file)
        place = os.path.realpath(file) if os.path.islink(file) else os.path.join(folder_of(folder), name)
        if place not in seen:
            seen.add(place)
            yield file


def _walk(folder: str, is_media: Callable[[str], bool], recursive: bool) -> Iterator[str]:
    def fail(err: OSError) -> None:
        raise err

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        yield from (os.path.join(parent, name) for name in sorted(files) if is_media(name))


def _local_recording(path: str) -> Recording:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as err:
        missing = f"it does not exist on this worker ({socket.gethostname()})"
        reason = missing if isinstance(err, FileNotFoundError) else as_text(str(err))
        return Recording(path, {"uri": as_text(path), "size": 0}, problem=reason, passing=may_pass(err))
    problem = None if stat.S_ISREG(found.st_mode) else "it is no regular file"
    # A copy may have the time of its original; when it was written here, only its inode tells. A camera's clock may be
    # years ahead.
    ahead = found.st_mtime > time.time() + _CLOCKS_DIFFER
    changed = found.st_ctime if ahead else max(found.st_mtime, found.st_ctime)
    return Recording(path, local_fingerprint(as_text(path), found), found.st_mtime, changed, problem)


def _find_stored(
    uri: str, conn_id: str | None, is_media: Callable[[str], bool], *, recursive: bool, alone: bool
) -> list[Recording]:
    shown = without_secrets(uri)
    try:
        path = stored_path(uri, conn_id)
        fs = path.fs
        fs.invalidate_cache()
        bare = path.path.rstrip("/")
        scheme, _, rest = uri.partition("://")
        root = f"{scheme}://{''.join(rest.partition('/')[0].rpartition('@')[:2])}"
        info = None if uri.endswith("/") else _info_of_file(fs, bare)
        if info is not None:
            taken = {bare: info}
        elif glob.has_magic(bare) and not fs.isdir(bare):
            taken = {name: info for name, info in fs.glob(bare, detail=True).items() if info.get("type") != "directory"}
        else:
            entries = fs.find(bare, maxdepth=None if recursive else 1, detail=True)
            if not entries and not fs.isdir(bare):
                if alone:
                    raise RoughyUnusableSourceError(f"Source {shown} does not exist")
                return [Recording(uri, {"uri": shown, "size": 0}, problem="it does not exist", conn_id=conn_id)]
            taken = {
                name: info
                for name, info in entries.items()
                # An object storage may keep an empty object for a folder.
                if info.get("type") != "directory" and not name.endswith("/") and is_media(name.rpartition("/")[2])
            }
        fs.invalidate_cache()
    except RoughyUnusableSourceError:
        raise
    except (ValueError, ImportError) as err:
        raise RoughyUnusableSourceError(f"Source {shown}: {err}") from err
    except PermissionError as err:
        raise RoughyUnusableSourceError(f"Source {shown} must not be listed: {err}") from err
    except Exception as err:  # As in Source.open.
        raise RoughySourceError(f"Source {shown} cannot be listed: {err}") from err
    return [_stored_recording(root + name.lstrip("/"), info, conn_id) for name, info in taken.items()]


def _info_of_file(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = fs.info(path)
    except FileNotFoundError:
        return None
    return None if info.get("type") == "directory" else info


def _stored_recording(uri: str, info: dict[str, Any], conn_id: str | None) -> Recording:
    shown = without_secrets(uri)
    if not isinstance(info.get("size"), int):
        problem = "the storage does not tell its size"
        return Recording(uri, {"uri": shown, "size": 0}, problem=problem, conn_id=conn_id)
    modified = _modified(info)
    return Recording(uri, stored_fingerprint(shown, info), modified, modified, conn_id=conn_id)


def _modified(info: dict[str, Any]) -> float | None:
    told: Any = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(told, str):
        with suppress(ValueError):
            told = datetime.fromisoformat(told)
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, (int, float)) else None
