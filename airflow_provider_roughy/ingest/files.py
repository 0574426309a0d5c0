"""A file that was found: where it is, which version, and what keeps it from being uploaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughySourceError
from airflow_provider_roughy.ingest.identity import Identity, canonical_project, normal, version_of
from airflow_provider_roughy.transfer.source import LocalSource, StoredSource

if TYPE_CHECKING:
    from airflow_provider_roughy.transfer.filesystem import FileSystem
    from airflow_provider_roughy.transfer.source import Source


class Problem(StrEnum):
    """Why a file that was found cannot be uploaded."""

    #: It cannot be uploaded until it is changed: rejected once.
    UNUSABLE = "unusable"
    #: It cannot be read now, such as a file of a list that is missing: rejected in each run.
    UNREADABLE = "unreadable"
    #: Its storage does not answer: interrupted, a retry may succeed.
    PASSING = "passing"


class ChangedSinceFoundError(RoughySourceError):
    """A file is not the version that was found."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was found. It has not been opened.

    :param uri: Its name in messages, without credentials.
    :param canonical: Its name in a ledger: its real path, or its canonical URI.
    :param path: Where it is: a local path, or the name by which ``fs`` knows it.
    :param size: Bytes.
    :param versions: Its version in the storage, by names of ``identity.VERSION_NAMES``.
    :param modified: When its content was written, in seconds since the epoch; ``None`` if the storage does not say.
    :param changed: When its content or metadata was changed last, likewise.
    :param storage: The endpoint or account that keeps it; empty for a local file.
    :param fs: Its file system; ``None`` for a local file.
    :param problem: The kind of problem, if it cannot be uploaded.
    :param reason: Why it cannot be uploaded, in words.
    :param other_names: Canonical names of the same file, by hard links.
    """

    uri: str
    canonical: str
    path: str
    size: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    modified: float | None = None
    changed: float | None = None
    storage: str = ""
    fs: FileSystem | None = None
    problem: Problem | None = None
    reason: str = ""
    other_names: tuple[str, ...] = ()

    def identity(self, *, project_id: str, language: str | None = None) -> Identity:
        """Return its identity as a recording.

        :param project_id: The project of its asset.
        :param language: The language spoken.
        """
        version, project = version_of(self.versions), canonical_project(project_id)
        return Identity(self.canonical, self.size, version, project, language, self.storage)

    def open(self) -> Source:
        """Return the file as a source that can be read.

        :raises RoughySourceError: If it is missing, unreadable, or not between 64 bytes and 50 GiB; or another version
            than the one that was found, which would be known by the identity of that one and paid for again.
        """
        source: Source
        if self.fs is None:
            source = LocalSource(self.path, uri=self.uri)
        else:
            source = StoredSource(self.uri, fs=self.fs, path=self.path)
        was = {"size": str(self.size), **self.versions}
        for name, value in source.fingerprint.items():
            if name in was and normal(was[name]) != normal(str(value)):
                raise ChangedSinceFoundError(f"Source {self.uri} was changed since it was found; a retry looks again")
        return source
