"""Find the files to ingest: one walker and one filter for local folders and object storages.

===================================================  ==============================================================
What is found                                        What becomes of it
===================================================  ==============================================================
a source that is missing, unreadable, not mounted    an error, with or without a wildcard; in a list of several
                                                     sources, that one is ``rejected`` (``interrupted`` where a retry
                                                     may fix it) and the others are listed
an empty folder, or a prefix of an existing bucket   empty
a name that begins with a dot                        left out, unless the source names it or its pattern begins with
                                                     a dot
a name that ``pattern`` does not match               left out, if the source is a folder; counted in the log
an object that represents a folder                   left out
a subfolder                                          listed with ``recursive`` or ``**``, which follow no links to
                                                     folders
a file by several names (links, hard links, sources) one recording
a link that leads nowhere, a pipe, a device          ``rejected``, once
an object in an archive (Glacier and the like)       ``rejected``, once: it has to be restored first
a folder in the source that cannot be read           ``rejected`` once, and in the log of each run; others are listed
a file or folder on a network that does not answer   ``interrupted``; a retry looks again
a file that vanishes while folders are listed        left out
===================================================  ==============================================================

No file is opened here.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.ingest.files import Problem, SourceFile
from airflow_provider_roughy.ingest.trees import Child, Tree, check_no_rendered_value, errors_of, open_tree
from airflow_provider_roughy.transfer.storage import as_line, without_secrets

if TYPE_CHECKING:
    from airflow_provider_roughy.ingest.trees import SourceLocation

#: How many names that the pattern does not match are kept for the log.
_MAX_NAMES_LEFT_OUT = 5
#: Names of audio and video files. Roughy inspects their content.
MEDIA = tuple(
    f"*.{extension}"
    for extension in """
        3gp aac ac3 aif aiff amr avi caf flac flv m2ts m4a m4v mka mkv mov mp3 mp4 mpeg mpg mts mxf oga ogg ogv opus ts
        wav weba webm wma wmv
    """.split()  # noqa: SIM905 - one a line would be a page.
)


@dataclass
class Discovered:
    """The files of a source.

    :param files: The files, the oldest first.
    :param left_out: How many files of folders the pattern does not match.
    :param names_left_out: The names of the first of those.
    """

    files: list[SourceFile] = field(default_factory=list)
    left_out: int = 0
    names_left_out: list[str] = field(default_factory=list)

    @property
    def listed_left_out(self) -> str:
        """The first of the names that the pattern does not match, for a message."""
        return ", ".join(self.names_left_out) + (", …" if self.left_out > len(self.names_left_out) else "")


def discover(
    sources: SourceLocation | Sequence[SourceLocation],
    *,
    pattern: str | Sequence[str] = MEDIA,
    recursive: bool = False,
    conn_id: str | None = None,
) -> Discovered:
    """List folders, prefixes, globs and files, and return the files in them.

    :param sources: A source, or a list of them. A folder or a prefix gives its files. A name with ``*``, ``?`` or ``[``
        that is not the name of a file or folder is a glob. Any other name is a file.
    :param pattern: Which files of a folder to take, by their names, in capitals or not. It does not apply to a file or
        a glob that is a source itself.
    :param recursive: Whether to take the files of subfolders, too.
    :param conn_id: The Airflow connection of their storage.
    :raises RoughyUnusableSourceError: If a single source is missing or unreadable, or an argument is unusable.
    :raises RoughySourceError: If the storage does not answer.
    """
    patterns = [pattern.lower()] if isinstance(pattern, str) else [each.lower() for each in pattern]
    for text in [pattern] if isinstance(pattern, str) else []:
        check_no_rendered_value("pattern", text)
    named = list_of(sources)
    several = not isinstance(sources, str) and isinstance(sources, Sequence)
    found = Discovered()

    def matches(name: str) -> bool:
        lower = name.lower()
        if any(fnmatchcase(lower, each) for each in patterns):
            return True
        found.left_out += 1
        if len(found.names_left_out) < _MAX_NAMES_LEFT_OUT:
            found.names_left_out.append(as_line(name))
        return False

    files: list[SourceFile] = []
    for source in named:
        try:
            tree, path = open_tree(source, conn_id)
            files += _Walk(tree, matches, recursive=recursive).files(path)
        except RoughySourceError as err:
            if not several:
                raise
            name = as_line(without_secrets(str(source)))
            lasting = isinstance(err, RoughyUnusableSourceError)
            problem = Problem.UNREADABLE if lasting else Problem.PASSING
            files.append(SourceFile(name, name, str(source), problem=problem, reason=str(err)))
    found.files = sorted(_without_duplicates(files), key=lambda file: (file.modified or 0.0, file.uri))
    return found


def list_of(sources: SourceLocation | Sequence[SourceLocation]) -> list[SourceLocation]:
    """Return one source, or several, as a list."""
    if isinstance(sources, Sequence) and not isinstance(sources, str):
        return list(sources)
    return [sources]


def find_file(source: SourceLocation, *, conn_id: str | None = None) -> SourceFile:
    """Return the one file that a source names, without opening it.

    :param source: A local path, a URI, or an ``ObjectStoragePath``.
    :param conn_id: The Airflow connection of its storage.
    :raises RoughyUnusableSourceError: If there is no such file.
    :raises RoughySourceError: If the storage does not answer.
    """
    tree, path = open_tree(source, conn_id)
    with errors_of(tree, path):
        if tree.is_folder(path):
            raise RoughyUnusableSourceError(f"Source {tree.uri(path)} is a directory, not a file")
        return tree.file(path)


def _without_duplicates(files: list[SourceFile]) -> Iterator[SourceFile]:
    """Yield each file once, by its shortest name, if several links or sources lead to it."""
    unique: dict[tuple[str, str], SourceFile] = {}
    for file in files:
        place = (file.storage, file.canonical)
        known = unique.get(place)
        if known is None or (len(file.uri), file.uri) < (len(known.uri), known.uri):
            unique[place] = file
    by_inode: dict[str, SourceFile] = {}
    for file in sorted(unique.values(), key=lambda file: (len(file.canonical), file.canonical)):
        inode = file.versions.get("inode") if file.problem is None else None
        if inode is None:
            yield file
        elif inode in by_inode:
            first = by_inode[inode]
            by_inode[inode] = replace(first, other_names=(*first.other_names, file.canonical))
        else:
            by_inode[inode] = file
    yield from by_inode.values()


class _Walk:
    """One walk from a source to its files.

    :param tree: The storage.
    :param matches: Returns whether ``pattern`` matches the name of a file in a folder.
    :param recursive: Whether to list subfolders.
    """

    def __init__(self, tree: Tree, matches: Any, *, recursive: bool) -> None:
        self._tree = tree
        self._matches = matches
        self._recursive = recursive

    def files(self, path: str) -> Iterator[SourceFile]:
        """Yield the files of a source.

        :raises RoughyUnusableSourceError: If it is missing or unreadable.
        :raises RoughySourceError: If its storage does not answer.
        """
        tree = self._tree
        with errors_of(tree, path):
            if tree.is_folder(path):
                children = tree.children(path)
                yield from self._folder(children)
                return
            root, parts = self._split_glob(path)
            if parts and not tree.exists(path):
                yield from self._glob(tree.children(root), parts)
            else:
                yield tree.file(path)

    def _split_glob(self, path: str) -> tuple[str, list[str]]:
        """Return the folder before the first wildcard of a glob, and the parts after it; none if it is no glob."""
        parts = path.split("/")
        for number, part in enumerate(parts):
            # A folder may have brackets in its name.
            if glob.has_magic(part) and not self._tree.is_folder("/".join(parts[: number + 1])):
                return "/".join(parts[:number]) or "/", parts[number:]
        return path, []

    def _folder(self, children: list[Child]) -> Iterator[SourceFile]:
        for child in children:
            if _is_hidden(child.name):
                continue
            if not child.is_folder:
                if self._matches(child.name):
                    yield from self._file(child)
            elif self._recursive and not child.is_link:
                inner, problem = self._open(child)
                yield from problem
                yield from self._folder(inner)

    def _glob(self, children: list[Child], parts: list[str]) -> Iterator[SourceFile]:
        part, rest = parts[0], parts[1:]
        if part == "**":
            yield from self._glob(children, rest or ["*"])
        for child in children:
            if part == "**":
                into = child.is_folder and not child.is_link and not _is_hidden(child.name)
                below = parts
            else:
                matches = fnmatchcase(child.name, part) and (not _is_hidden(child.name) or part.startswith("."))
                into, below = matches and child.is_folder and bool(rest), rest
                if matches and not child.is_folder and not rest:
                    yield from self._file(child)
            if into:
                inner, problem = self._open(child)
                yield from problem
                yield from self._glob(inner, below)

    def _open(self, child: Child) -> tuple[list[Child], list[SourceFile]]:
        """List a subfolder; return a file with a problem instead if it cannot be listed."""
        try:
            if not child.name:
                raise ValueError("a folder without a name cannot be listed: name its objects, or rename them")
            return self._tree.children(child.path), []
        except FileNotFoundError:
            return [], []
        except Exception as err:
            return [], [self._tree.unreadable_folder(child.path, err)]

    def _file(self, child: Child) -> Iterator[SourceFile]:
        file = self._tree.child_file(child)
        if file is not None:
            yield file


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith("_$folder$")
