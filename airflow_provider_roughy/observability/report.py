"""The report of a task: the result of each recording, for programs and for people, in a folder of any storage.

================= =====================================================================================================
File              Content
================= =====================================================================================================
``results.jsonl`` One JSON object per line, one line per recording: the fields of
                  :class:`~airflow_provider_roughy.ingest.result.RecordingResult` that are not empty, and nothing else
``summary.json``  The totals, the balance, and which run wrote it
``index.html``    The same as one page for people, which loads nothing from elsewhere
================= =====================================================================================================

A task that shares its folder with others writes a *part*: ``results-PART.jsonl``, ``summary-PART.json`` and
``index-PART.html``. Mapped tasks write parts ``part-0000``, ``part-0001``, … by their map index; the shards of a
manifest write ``shard-0000-of-0008``, …, which may name the same recording. :func:`read_report` reads all parts of a
folder and yields one result of each such recording. :func:`combine_report` makes one page of all parts.

Each file appears whole or not at all, and none of the three appears before all are complete. A report that exists is
replaced.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.exceptions import (
    RoughySourceError,
    RoughyUnusableSourceError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.observability.report_page import ImportantRows, page
from airflow_provider_roughy.observability.report_summary import ReportFacts, ReportSummary, combine_facts
from airflow_provider_roughy.transfer.filesystem import FileSystem
from airflow_provider_roughy.transfer.storage import (
    as_text,
    local_path,
    location_digest,
    storage_errors,
    without_secrets,
)
from airflow_provider_roughy.transfer.target import find_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from airflow_provider_roughy.compat import ObjectStoragePath
    from airflow_provider_roughy.transfer.target import Sink

    #: The folder of a report: a path or a URI.
    ReportLocation = str | os.PathLike[str] | ObjectStoragePath

#: Bytes that are gathered before they are written, and that a storage reads ahead.
_BLOCK_BYTES, _READ_BYTES = 256 * 1024, 8 * 1024 * 1024
#: The names of results in a folder, and those of the totals of a part.
_RESULTS = re.compile(r"results(-[A-Za-z0-9._-]+)?\.jsonl")
_SHARD = re.compile(r"(?:^|/)(?:results|summary)-(?:([0-9a-f]{8})-)?shard-(\d+)-of-(\d+)\.jsonl?$")
_SUMMARY_OF_PART = re.compile(r"summary-[A-Za-z0-9._-]+\.json")


def check_location(location: ReportLocation, *, conn_id: str | None = None) -> str:
    """Check that a report can be written into a folder, as far as that is possible without writing.

    :param location: The folder, an absolute path or a URI.
    :param conn_id: The Airflow connection of its storage.
    :returns: Its path or URI, which ends with a slash.
    :raises RoughyUnusableTargetError: If it is a relative path, a template has rendered parts of it as empty, or
        Airflow cannot open that storage.
    :raises RoughyTargetError: If the storage does not answer.
    """
    folder = _folder(location)
    path = local_path(folder)
    if path is not None and not os.path.isabs(path):
        raise RoughyUnusableTargetError(
            f"Report {as_text(folder)!r} is a relative path, which each worker takes for another folder: give an "
            "absolute path or a URI"
        )
    find_target(f"{folder}results.jsonl", name="", conn_id=conn_id or getattr(location, "conn_id", None))
    return folder


def write_report(
    location: ReportLocation,
    results: Iterable[RecordingResult],
    *,
    facts: ReportFacts | None = None,
    conn_id: str | None = None,
    part: str | None = None,
) -> ReportSummary:
    """Write the report of a task, in constant memory.

    :param location: The folder, an absolute path or a URI. It is created if it does not exist.
    :param results: The results. They are read once.
    :param facts: What the report says of the task.
    :param conn_id: The Airflow connection of its storage.
    :param part: The name of this part of a report that several tasks write: letters, digits, ``.``, ``_`` and ``-``.
        By default, this is the whole report.
    :returns: The totals.
    :raises ValueError: If ``part`` has other characters.
    :raises RoughyUnusableTargetError: If no file can be written there.
    :raises RoughyTargetError: If writing fails. None of the files has changed, unless it fails between their
        appearances; then a retry replaces them.
    """
    return _write(location, results, facts or ReportFacts(), conn_id=conn_id, part=part, with_results=True)


def combine_report(location: ReportLocation, *, conn_id: str | None = None) -> ReportSummary:
    """Write one page and one ``summary.json`` for all parts of a report, in constant memory.

    :param location: The folder, as :func:`write_report` takes it. The parts stay as they are.
    :param conn_id: The Airflow connection of its storage.
    :returns: The totals.
    :raises RoughyUnusableSourceError: As :func:`read_report`.
    :raises RoughyTargetError: As :func:`write_report`.
    """
    conn_id = conn_id or getattr(location, "conn_id", None)
    folder = _folder(location)
    names = sorted(filter(_SUMMARY_OF_PART.fullmatch, _names(folder, conn_id)))
    facts = combine_facts(_read_facts(f"{folder}{name}", conn_id) for name in names)
    if missing := _missing_shards(names):
        facts = replace(facts, error="\n".join(filter(None, [facts.error, missing])))
    return _write(location, read_report(location, conn_id), facts, conn_id=conn_id, part=None, with_results=False)


def find_facts(location: ReportLocation, *, conn_id: str | None = None, part: str | None = None) -> ReportFacts | None:
    """Return what an existing report says of its task; ``None`` if there is no report.

    :param location: The folder, as :func:`write_report` takes it.
    :param conn_id: The Airflow connection of its storage.
    :param part: The part, as :func:`write_report` takes it.
    :raises RoughySourceError: If it cannot be read.
    """
    conn_id = conn_id or getattr(location, "conn_id", None)
    try:
        return _read_facts(f"{_folder(location)}{_name('summary', part, 'json')}", conn_id)
    except FileNotFoundError:
        return None


def _read_facts(uri: str, conn_id: str | None) -> ReportFacts:
    with _reading(as_text(without_secrets(uri)), through=(FileNotFoundError,)), _open(uri, conn_id) as file:
        found = decode.loads(file.read())
    return ReportFacts.from_dict(found if isinstance(found, dict) else {})


def _write(
    location: ReportLocation,
    results: Iterable[RecordingResult],
    facts: ReportFacts,
    *,
    conn_id: str | None,
    part: str | None,
    with_results: bool,
) -> ReportSummary:
    folder = check_location(location, conn_id=conn_id)
    conn_id = conn_id or getattr(location, "conn_id", None)
    summary = ReportSummary(replace(facts, written_at=datetime.now(UTC).isoformat(timespec="seconds")))
    rows = ImportantRows()
    with ExitStack() as stack:

        def open_file(stem: str, ending: str) -> Sink:
            target = find_target(f"{folder}{_name(stem, part, ending)}", name="", conn_id=conn_id)
            return stack.enter_context(target.open())

        # They appear in reverse order: a page that appears has its results.
        page_file, summary_file = open_file("index", "html"), open_file("summary", "json")
        with _Blocks(open_file("results", "jsonl") if with_results else None) as blocks:
            for result in results:
                if not result.elsewhere:
                    summary.add(result)
                    rows.add(result)
                # Escaped, so that no character within a line is taken for the end of it.
                blocks.write(json.dumps(result.to_dict()) + "\n")
        summary_file.write((json.dumps(summary.to_dict(), indent=2) + "\n").encode())
        results_name = _name("results", part, "jsonl") if with_results else None
        with _Blocks(page_file) as blocks:
            for text in page(summary, rows, results_name=results_name, summary_name=_name("summary", part, "json")):
                blocks.write(text)
    return summary


def read_report(location: ReportLocation, conn_id: str | None = None) -> Iterator[RecordingResult]:
    """Yield the results of a report, all parts of it, one of each recording, with little memory.

    :param location: The folder, as :func:`write_report` takes it, or one ``.jsonl`` file in it.
    :param conn_id: The Airflow connection of its storage.
    :raises RoughyUnusableSourceError: If there is no report, it may not be read, or a line of it is damaged.
    :raises RoughySourceError: If the storage does not answer.
    """
    conn_id = conn_id or getattr(location, "conn_id", None)
    uris = _files(str(location), conn_id)
    shards = [] if str(location).endswith(".jsonl") else [uri for uri in uris if _SHARD.search(uri)]
    newest = _newest(shards, conn_id)
    for uri in uris:
        number = shards.index(uri) if uri in shards else None
        for result in _read(uri, conn_id):
            rank = (*_rank(result), number)
            if number is None:
                yield result
            elif newest.get(location_digest(result.source), rank) == rank:
                yield replace(result, elsewhere=False)


def _newest(shards: list[str], conn_id: str | None) -> dict[bytes, tuple[bool, bool, int]]:
    """Return the rank of the result of each recording that counts, and in which part it is.

    Several shards may have a result of one recording: the one that it belongs to, and one that has helped or replaced
    it. A final result counts before one that is not, then that of the shard that has the recording, then the newest.

    :param shards: The parts, which are sorted by the time of their writing.
    :param conn_id: The Airflow connection of their storage.
    """
    written = {}
    for uri in shards:
        folder, _, name = uri.rpartition("results-")
        with suppress(FileNotFoundError):
            written[uri] = _read_facts(f"{folder}summary-{name.removesuffix('l')}", conn_id).written_at or ""
    shards.sort(key=lambda uri: (written.get(uri, ""), uri))
    found: dict[bytes, tuple[bool, bool, int]] = {}
    for number, uri in enumerate(shards):
        for result in _read(uri, conn_id):
            source, rank = location_digest(result.source), (*_rank(result), number)
            found[source] = max(found.get(source, rank), rank)
    return found


def find_missing_shards(location: ReportLocation, *, conn_id: str | None = None) -> str | None:
    """Say which shards of each manifest have written no results into a report; ``None`` if none is missing.

    :param location: The folder, as :func:`write_report` takes it.
    :param conn_id: The Airflow connection of its storage.
    :raises RoughySourceError: If it cannot be read.
    """
    if str(location).endswith(".jsonl"):
        return None
    return _missing_shards(_names(_folder(location), conn_id or getattr(location, "conn_id", None)))


def _missing_shards(names: Iterable[str]) -> str | None:
    """Say which shards of each manifest have written no part."""
    # By manifest, then by the number of its shards: parts with another number may be left of an earlier plan.
    found: dict[str, dict[int, set[int]]] = {}
    for name in names:
        if match := _SHARD.search(name):
            found.setdefault(match[1] or "", {}).setdefault(int(match[3]), set()).add(int(match[2]))
    texts = []
    for prefix, by_shards in sorted(found.items()):
        missing = {of: sorted(set(range(of)) - numbers) for of, numbers in by_shards.items()}
        if not all(missing.values()):
            continue
        of, numbers = max(missing.items())
        listed = ", ".join(map(str, numbers[:20])) + (", …" if len(numbers) > 20 else "")
        parts = f", whose parts begin with {prefix}" if prefix else ""
        texts.append(f"No results of {counted(len(numbers), 'shard')} of {of:,}{parts}: {listed}")
    return f"{'; '.join(texts)}. Clear the task of each, or let it end" if texts else None


def _rank(result: RecordingResult) -> tuple[bool, bool]:
    return result.status in (Status.READY, Status.FAILED, Status.REJECTED), not result.elsewhere


def _read(uri: str, conn_id: str | None) -> Iterator[RecordingResult]:
    """Yield the results of one file."""
    shown = as_text(without_secrets(uri))
    with _reading(shown), _open(uri, conn_id) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield RecordingResult.from_dict(decode.loads(line))
            except ValueError as error:
                raise RoughyUnusableSourceError(
                    f"Report {shown} is damaged in line {number}: {error}. Clear the task that writes it"
                ) from error


def page_uri(location: ReportLocation, *, part: str | None = None) -> str:
    """Return the path or the URI of the page of a report.

    :param location: The folder, as :func:`write_report` takes it.
    :param part: The part, as :func:`write_report` takes it.
    """
    return f"{_folder(location)}{_name('index', part, 'html')}"


class _Blocks:
    """Gathers text into blocks of bytes, which are written into a file.

    :param file: The file; ``None`` to write nothing.
    """

    def __init__(self, file: Sink | None) -> None:
        self._file = file
        self._block = bytearray()

    def write(self, text: str) -> None:
        self._block += text.encode("utf-8", "backslashreplace")
        if len(self._block) >= _BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.write(bytes(self._block))
        self._block.clear()

    def __enter__(self) -> _Blocks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()


def _name(stem: str, part: str | None, ending: str) -> str:
    """Return the name of a file of a report.

    :raises ValueError: If the name of the part has other characters than a file name of every storage may have.
    """
    if part is None:
        return f"{stem}.{ending}"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", part):
        raise ValueError(f"part must consist of letters, digits, '.', '_' and '-', not {part!r}")
    return f"{stem}-{part}.{ending}"


def _folder(location: ReportLocation) -> str:
    text = str(location)
    return text if text.endswith("/") or not text else f"{text}/"


def _reading(shown: str, *, through: tuple[type[Exception], ...] = ()) -> AbstractContextManager[None]:
    what = f"Report {shown} cannot be read"
    return storage_errors(what, RoughySourceError, RoughyUnusableSourceError, through=through)


def _files(location: str, conn_id: str | None) -> list[str]:
    """Return the paths or URIs of the files with the results of a report.

    :raises RoughyUnusableSourceError: If there are none.
    """
    if location.endswith(".jsonl"):
        return [location]
    folder = _folder(location)
    found = sorted(filter(_RESULTS.fullmatch, _names(folder, conn_id)))
    if not found:
        shown = as_text(without_secrets(folder))
        raise RoughyUnusableSourceError(
            f"There is no report in {shown}: it has no `results.jsonl`. Did the task that writes it run?"
        )
    return [f"{folder}{name}" for name in found]


def _names(folder: str, conn_id: str | None) -> list[str]:
    """Return the names of the files in a folder; none if there is no such folder."""
    path = local_path(folder)
    try:
        with _reading(as_text(without_secrets(folder)), through=(FileNotFoundError,)):
            if path is not None:
                return os.listdir(path)
            fs, stored = FileSystem.of(folder, conn_id)
            return [str(each["name"]).rstrip("/").rpartition("/")[2] for each in fs.children(stored)]
    except FileNotFoundError:
        return []


def _open(uri: str, conn_id: str | None) -> IO[bytes]:
    path = local_path(uri)
    if path is not None:
        return open(path, "rb")
    fs, stored = FileSystem.of(uri, conn_id)
    return fs.open(stored, _READ_BYTES)
