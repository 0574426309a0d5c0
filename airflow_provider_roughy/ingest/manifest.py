"""The manifest of a plan: an object that names each recording to ingest, and that several tasks read.

It is a file of JSON lines. The first line is the header, a :class:`Header`. Each other line is one recording, a
:class:`Planned`, the oldest first. People can read it, and so can ``jq``::

    jq -r 'select(.status == "deferred") | [.uri, .reason] | @tsv' plan.jsonl

It is written completely or not at all, and read strictly: a line that is damaged, a line that is missing and a newer
schema are errors, because an upload that is missing from a plan would not be noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from array import array
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.ingest.identity import Identity
from airflow_provider_roughy.transfer.filesystem import FileSystem
from airflow_provider_roughy.transfer.storage import (
    as_line,
    as_text,
    local_path,
    storage_errors,
    without_secrets,
)
from airflow_provider_roughy.transfer.target import find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

#: The version of the format that this release writes, and the newest that it reads.
SCHEMA = 1
#: How the name of a manifest ends.
SUFFIX = ".jsonl"
#: The field of the header that marks a manifest, with its schema version.
_MARK = "roughy_manifest"
#: The most bytes of a line.
_MAX_LINE = 1024 * 1024
_KEY = re.compile(r"[0-9a-f]{40}")

#: The statuses of a line.
PLANNED, DONE, DEFERRED, REJECTED = "planned", "done", "deferred", "rejected"
_STATUSES = (PLANNED, DONE, DEFERRED, REJECTED)


@dataclass(frozen=True, slots=True)
class Planned:
    """One recording of a manifest.

    :param key: Its key in the ledger.
    :param status: ``planned``; ``done``, which an earlier plan of this run had and which is reported again;
        ``deferred``, which a later plan takes up; or ``rejected``, which cannot be uploaded.
    :param uri: The file, without credentials.
    :param size_bytes: Bytes.
    :param version: Its version in the storage, such as ``etag=…``; empty with ``identity="content"``.
    :param credits: Its costs in credits; ``None`` if the plan has no prices. 0 if its bytes are at Roughy already.
        If it is done, what ``spent`` of the header counts for it.
    :param seconds: Its length in seconds, by its headers; ``None`` if it is unknown.
    :param reason: Why it is not planned.
    :param name: Its name in the identity, if that is not ``uri``: its real path or canonical URI, or ``sha256:…``.
    :param storage: The endpoint or account that keeps it; empty for a local file.
    :param versions: All versions that the storage has, to notice that the file was changed.
    :param path: The bytes of its path in its storage, quoted as in a URL, where ``uri`` cannot show them: if they are
        not UTF-8, or have control characters.
    :param resumes: Whether an earlier try or an earlier run has started it.
    """

    key: str
    status: str
    uri: str
    size_bytes: int
    version: str = ""
    credits: int | None = None
    seconds: float | None = None
    reason: str | None = None
    name: str | None = None
    storage: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    path: str | None = None
    resumes: bool = False

    def identity(self, header: Header) -> Identity:
        """Return the identity of the recording.

        :param header: The header of its manifest.
        """
        name = self.uri if self.name is None else self.name
        return Identity(name, self.size_bytes, self.version, header.project_id, header.language, self.storage)

    def encode(self) -> bytes:
        """Return its line."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        empty = {"version": "", "storage": "", "versions": {}, "resumes": False}
        kept = {n: value for n, value in values.items() if value is not None and (n not in empty or value != empty[n])}
        return json.dumps({**kept, "credits": self.credits}, ensure_ascii=True).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Planned:
        """Read a line.

        :raises ValueError: If it is not the line of a recording.
        """
        fields = _Line(line)
        key, status = fields.text("key"), fields.text("status")
        if not _KEY.fullmatch(key):
            raise ValueError(f"its `key` is not 40 hexadecimal digits: {key[:60]!r}")
        if status not in _STATUSES:
            raise ValueError(f"its `status` is none of {', '.join(_STATUSES)}: {status[:60]!r}")
        return cls(
            key,
            status,
            fields.text("uri"),
            fields.count("size_bytes") or 0,
            fields.text_or("version", ""),
            fields.count_or_none("credits"),
            fields.number_or_none("seconds"),
            fields.text_or("reason", None),
            fields.text_or("name", None),
            fields.text_or("storage", ""),
            fields.texts("versions"),
            fields.text_or("path", None),
            fields.values.get("resumes") is True,
        )


@dataclass(frozen=True)
class Header:
    """The first line of a manifest.

    :param created: When it was written, in UTC (ISO 8601).
    :param dag_id: The DAG that planned it.
    :param task_id: The task.
    :param run_id: The run.
    :param source: The sources, without credentials.
    :param source_conn_id: The Airflow connection of their storage.
    :param pattern: Which files of a folder were taken.
    :param recursive: Whether subfolders were listed.
    :param ledger: The ledger, without credentials.
    :param ledger_conn_id: The Airflow connection of its storage.
    :param project_id: The project of the assets.
    :param language: The language spoken; ``None`` lets Roughy detect it.
    :param shards: How many tasks are to share it.
    :param dry_run: Whether it is only a price list: no task uploads anything of it.
    :param max_credits: The most credits that the run may cost; ``None`` for no limit.
    :param spent: Credits of recordings that earlier manifests of this run had planned, and that this one does not
        have: they are done, or a task may still be uploading them.
    :param balance: The credits of the account when it was written; ``None`` if there are no prices.
    :param recordings: How many recordings are planned.
    :param size_bytes: Their bytes.
    :param credits: What they cost in credits; ``None`` if there are no prices.
    :param done: How many an earlier plan of this run had, and are done.
    :param deferred: How many are deferred.
    :param rejected: How many are rejected.
    :param already_ingested: How many files the ledger has, by state.
    :param ledger_id: The id of the ledger, which another one at that location does not have.
    :param by_content: Whether recordings are identified by their content; ``None`` if that is not known.
    :param digest: The SHA-256 of the lines that follow, in hexadecimal.
    """

    created: str
    dag_id: str
    task_id: str
    run_id: str
    source: list[str]
    pattern: list[str]
    recursive: bool
    ledger: str
    project_id: str
    language: str | None = None
    source_conn_id: str | None = None
    ledger_conn_id: str | None = None
    shards: int = 1
    dry_run: bool = False
    max_credits: int | None = None
    spent: int = 0
    balance: int | None = None
    recordings: int = 0
    size_bytes: int = 0
    credits: int | None = None
    done: int = 0
    deferred: int = 0
    rejected: int = 0
    already_ingested: dict[str, int] = field(default_factory=dict)
    ledger_id: str | None = None
    by_content: bool | None = None
    digest: str | None = None

    @property
    def lines(self) -> int:
        """How many lines follow it."""
        return self.recordings + self.done + self.deferred + self.rejected

    def counts(self) -> dict[str, int]:
        """Return the counts of the plan by status, as its XCom has them."""
        known = self.done + sum(self.already_ingested.values())
        return {
            "planned": self.recordings,
            "size_bytes": self.size_bytes,
            "deferred": self.deferred,
            "rejected": self.rejected,
            "already_ingested": known,
            **({"credits": self.credits} if self.credits is not None else {}),
        }

    def encode(self) -> bytes:
        """Return its line."""
        return json.dumps({_MARK: SCHEMA, **asdict(self)}, ensure_ascii=True).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Header:
        """Read a header.

        :raises ValueError: If it is no header, or that of a newer schema.
        """
        fields = _Line(line)
        schema = fields.values.get(_MARK)
        if isinstance(schema, bool) or not isinstance(schema, int):
            raise ValueError("its first line is not the header of a manifest")
        if schema > SCHEMA:
            raise ValueError(
                f"it has schema version {schema}, and this release of airflow-provider-roughy reads versions up to "
                f"{SCHEMA}: upgrade the workers, or plan again with this release"
            )
        known: dict[str, Any] = {}
        for name in ("created", "dag_id", "task_id", "run_id", "ledger", "project_id"):
            known[name] = fields.text(name)
        for name in ("language", "source_conn_id", "ledger_conn_id", "ledger_id", "digest"):
            known[name] = fields.text_or(name, None)
        for name in ("spent", "recordings", "size_bytes", "deferred", "rejected"):
            known[name] = fields.count(name)
        known["done"] = fields.count_or_none("done") or 0
        for name in ("max_credits", "balance", "credits"):
            known[name] = fields.count_or_none(name)
        by_content = fields.values.get("by_content")
        return cls(
            **known,
            source=fields.list("source"),
            pattern=fields.list("pattern"),
            recursive=fields.values.get("recursive") is True,
            dry_run=fields.values.get("dry_run") is True,
            by_content=by_content if isinstance(by_content, bool) else None,
            shards=fields.count("shards") or 1,
            already_ingested=fields.counts("already_ingested"),
        )


class _Line:
    """The fields of a line, whose types are checked as they are read.

    :param line: The bytes.
    :raises ValueError: If they are not a JSON object.
    """

    def __init__(self, line: bytes) -> None:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"it is not JSON: {line[:60]!r}") from None
        if not isinstance(values, dict):
            raise ValueError(f"it is not a JSON object: {line[:60]!r}")
        self.values: dict[str, Any] = values

    def text(self, name: str) -> str:
        value: str | None = self.text_or(name, None)
        if value is None:
            raise ValueError(f"its `{name}` is missing")
        return value

    def text_or(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or decode.text(value, limit=_MAX_LINE) != value:
            raise ValueError(f"its `{name}` is not a text that can be stored: {value!r:.60}")
        return value

    def count(self, name: str) -> int:
        value = self.count_or_none(name)
        if value is None:
            raise ValueError(f"its `{name}` is missing")
        return value

    def count_or_none(self, name: str) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise ValueError(f"its `{name}` is not a whole number from 0 on: {value!r:.60}")
        return value

    def number_or_none(self, name: str) -> float | None:
        value = self.values.get(name)
        if value is not None and (isinstance(value, bool) or decode.number(value) is None):
            raise ValueError(f"its `{name}` is not a number: {value!r:.60}")
        return None if value is None else float(value)

    def list(self, name: str) -> list[str]:
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"its `{name}` is not a list of texts: {value!r:.60}")
        return value

    def texts(self, name: str) -> dict[str, str]:
        value = self.values.get(name, {})
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise ValueError(f"its `{name}` is not an object of texts: {value!r:.60}")
        return value

    def counts(self, name: str) -> dict[str, int]:
        value = self.values.get(name, {})
        if not isinstance(value, dict) or not all(type(each) is int for each in value.values()):
            raise ValueError(f"its `{name}` is not an object of numbers: {value!r:.60}")
        return value


class ManifestWriter:
    """Collects the lines of a manifest in a temporary file, and writes it once its totals are known.

    It is a context manager.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._lines: IO[bytes] = tempfile.TemporaryFile(prefix="roughy-plan-")  # noqa: SIM115 - it is closed at the end.

    def add(self, planned: Planned) -> None:
        """Add a recording."""
        line = planned.encode()
        self._digest.update(line)
        self._lines.write(line)

    def write(self, header: Header, location: str, *, conn_id: str | None = None) -> None:
        """Write the manifest, completely or not at all. It replaces one of that name.

        :param header: Its header.
        :param location: A local path or a URI.
        :param conn_id: The Airflow connection of that storage.
        :raises RoughyTargetError: If it cannot be written.
        """
        first = replace(header, digest=self._digest.hexdigest()).encode()
        target = find_target(location, name=f"plan{SUFFIX}", conn_id=conn_id)
        self._lines.flush()
        size = len(first) + os.fstat(self._lines.fileno()).st_size
        self._lines.seek(0)
        with target.open(size) as sink:
            sink.write(first)
            while block := self._lines.read(_MAX_LINE):
                sink.write(block)

    def planned(self) -> Iterator[Planned]:
        """Yield the recordings that were added."""
        self._lines.seek(0)
        yield from map(Planned.decode, self._lines)
        self._lines.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lines.close()


class Manifest:
    """A manifest that was read and checked. It keeps 37 bytes for each recording that is planned or done.

    Their lines are read again.

    :param uri: Its location, without credentials.
    :param file: A file that stays the same, whatever replaces the manifest.
    :raises RoughyUnusableSourceError: If it is no manifest, damaged, or of a newer schema.
    """

    def __init__(self, uri: str, file: IO[bytes]) -> None:
        self.uri = uri
        self._file = file
        self._keys = bytearray()
        self._offsets = array("Q")
        self._sizes = array("Q")
        self._is_done = bytearray()
        number = 1
        try:
            line = file.readline(_MAX_LINE)
            if not line:
                raise ValueError("it is empty")
            self.header = Header.decode(line)
            offset = len(line)
            digest = hashlib.sha256()
            while line := file.readline(_MAX_LINE):
                number += 1
                digest.update(line)
                if not line.endswith(b"\n"):
                    raise ValueError("the line is cut off")
                planned = Planned.decode(line)
                if planned.status in (PLANNED, DONE):
                    self._is_done.append(planned.status == DONE)
                    self._keys += bytes.fromhex(planned.key)
                    self._offsets.append(offset)
                    self._sizes.append(planned.size_bytes)
                offset += len(line)
            self._check_counts(number - 1)
            if self.header.digest not in (None, digest.hexdigest()):
                raise ValueError("its lines are not those that the plan has written: it was edited or damaged")
        except ValueError as err:
            where = f", line {number}," if number > 1 else ""
            raise self._unusable(str(err), where=where) from None

    def _unusable(self, why: str, *, where: str = "") -> RoughyUnusableSourceError:
        return RoughyUnusableSourceError(
            f"Manifest {self.uri}{where} cannot be used: {why}. Write it again: clear the task that planned it"
        )

    def _check_counts(self, lines: int) -> None:
        header = self.header
        planned = self._is_done.count(False)
        if lines != header.lines or planned != header.recordings:
            raise ValueError(
                f"its header counts {header.lines:,} recordings ({header.recordings:,} planned), and it has {lines:,} "
                f"({planned:,} planned): it was cut off or edited"
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def key(self, number: int) -> str:
        """Return the key of a recording that is planned or done.

        :param number: Its number, from 0.
        """
        return self._keys[20 * number : 20 * number + 20].hex()

    def is_planned(self, number: int) -> bool:
        """Return whether a recording is planned, and not done.

        :param number: Its number.
        """
        return not self._is_done[number]

    def size(self, number: int) -> int:
        """Return the bytes of a recording that is planned or done."""
        return self._sizes[number]

    def lines(self) -> Iterator[Planned]:
        """Read all recordings again, also those that are not planned."""
        self._file.seek(0)
        self._file.readline(_MAX_LINE)
        while line := self._file.readline(_MAX_LINE):
            yield Planned.decode(line)

    def read(self, numbers: Sequence[int]) -> Iterator[Planned]:
        """Read recordings again that are planned or done.

        :param numbers: Their numbers.
        :raises RoughyUnusableSourceError: If the file has changed.
        """
        for number in numbers:
            self._file.seek(self._offsets[number])
            try:
                planned = Planned.decode(self._file.readline(_MAX_LINE))
                if planned.key != self.key(number):
                    raise ValueError("it has another recording now")
            except ValueError as err:
                raise self._unusable(f"it has changed since this task has opened it: {err}") from None
            yield planned


def is_manifest(source: object) -> bool:
    """Return whether a source is a manifest, by its name. No recording has such a name.

    :param source: The argument of the operator.
    """
    return not isinstance(source, (list, tuple)) and str(source).strip().lower().endswith(SUFFIX)


@contextmanager
def reading(location: str, *, conn_id: str | None = None) -> Iterator[Manifest]:
    """Read a manifest, and keep it open: a copy of it, if it is not on this worker's disk.

    :param location: A local path or a URI.
    :param conn_id: The Airflow connection of that storage.
    :raises RoughyUnusableSourceError: If it is missing, no manifest, damaged, or of a newer schema.
    :raises RoughySourceError: If its storage does not answer.
    """
    uri = as_text(without_secrets(location))
    try:
        with storage_errors(
            f"Manifest {uri} cannot be read",
            RoughySourceError,
            RoughyUnusableSourceError,
            through=(FileNotFoundError,),
        ):
            file = _open(location, conn_id)
    except FileNotFoundError:
        raise RoughyUnusableSourceError(
            f"Manifest {uri} does not exist. Give the output of RoughyPlanIngestOperator as `source`, on a storage "
            "that all workers reach"
        ) from None
    with file:
        yield Manifest(uri, file)


def _open(location: str, conn_id: str | None) -> IO[bytes]:
    path = local_path(location)
    if path is not None:
        return open(path, "rb")
    fs, stored = FileSystem.of(location, conn_id)
    copy: IO[bytes] = tempfile.TemporaryFile(prefix="roughy-manifest-")  # noqa: SIM115 - the caller closes it.
    try:
        with fs.open(stored, _MAX_LINE) as reader:
            shutil.copyfileobj(reader, copy, _MAX_LINE)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


def quoted_path(path: str) -> str | None:
    """Return the bytes of a path quoted, if a line of text cannot show them as they are; else ``None``."""
    return None if as_line(path) == path else quote(os.fsencode(path))


def unquoted_path(quoted: str) -> str:
    """Return the path that :func:`quoted_path` quoted."""
    return os.fsdecode(unquote_to_bytes(quoted))
