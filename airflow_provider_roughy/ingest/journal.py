"""The results of a shard of a manifest, which are stored in the ledger and not kept in memory.

A shard may have tens of thousands of recordings. Each result is stored once, with others, in a record of its run
(``runs/<run>.<n>.json``), before the versions of its recordings are removed. A later try of the shard reads the
records, and reports those results again. Recordings that are not done are in memory only: a later try finds them by
the ledger.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.ingest.recorder import Recorder, row_of
from airflow_provider_roughy.ingest.result import RecordingResult, Status, numbers_of, record_metrics, summary_of
from airflow_provider_roughy.ledger.claims import Done, Held

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_roughy.ingest.upload import UploadItem
    from airflow_provider_roughy.ledger import ClaimOwner, Ledger
    from airflow_provider_roughy.ledger.entries import Result, Version

#: Results in one record, and the seconds after which fewer are stored.
_RECORD_RESULTS, _RECORD_SECONDS = 1000, 300.0
#: The most request ids that the totals keep.
_MAX_REQUEST_IDS = 100


class Journal(Recorder):
    """The results of one try of a shard. Several threads may use it.

    :param owner: This try of this run.
    :param ledger: The ledger.
    """

    ledger: Ledger

    def __init__(self, owner: ClaimOwner, ledger: Ledger) -> None:
        super().__init__(owner, ledger)
        self._lock = threading.Lock()
        self._next = 1
        self._stored_at = time.monotonic()
        #: Results that are not stored in a record yet, by key, each with the last version of its recording.
        self._rows: dict[str, tuple[RecordingResult, Version | None]] = {}
        #: The recordings whose results are stored in records of this run.
        self.reported: set[str] = set()
        #: The results of this try that are not final, by key.
        self.not_final: dict[str, RecordingResult] = {}
        #: The recordings that other tries hold.
        self.held: set[str] = set()

    def load(self) -> None:
        """Read which results earlier tries of this run have stored.

        :raises RoughyLedgerError: If they cannot be read.
        """
        for record in self.ledger.read_reports(self.owner):
            self.reported |= record.keys()
            self._next += 1

    def note(self, item: UploadItem, result: RecordingResult) -> None:
        """Report a result, which is in the ledger if it is final."""
        if result.status not in (Status.READY, Status.FAILED) and not (result.status == Status.REJECTED and result.key):
            with self._lock:
                self.not_final[item.key] = result

    def complete(self, item: UploadItem, state: str, **fields: Any) -> bool:
        """Store the result of a recording in the ledger."""
        if not super().complete(item, state, **fields):
            return False
        self._take(item.result(self.owner, state, **fields), item.version)
        return True

    def report(self, result: Result, version: Version | None) -> None:
        """Report a result of the ledger."""
        self._take(result, version)

    def leave(self, item: UploadItem, ended: Done | Held) -> None:
        """Leave a recording to the shard or run that has it; report it if an earlier try of this run has ended it."""
        if isinstance(ended, Done):
            if ended.result.owner == str(self.owner):
                self._take(ended.result, item.version)
            return
        self.held.add(item.key)

    def _take(self, result: Result, version: Version | None) -> None:
        with self._lock:
            self._rows[result.key] = (row_of(result), version)
            self.not_final.pop(result.key, None)

    def store(self, *, now: bool = False) -> None:
        """Store the results in a record, if there are enough of them, and remove the versions of their recordings.

        :param now: Whether to store them in any case.
        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        due = len(self._rows) >= _RECORD_RESULTS or time.monotonic() - self._stored_at >= _RECORD_SECONDS
        if not (now or due):
            return
        with self._lock:
            rows, self._rows = self._rows, {}
        self._stored_at = time.monotonic()
        while rows:
            part = {key: rows.pop(key) for key in list(rows)[:_RECORD_RESULTS]}
            results = {key: row.to_dict() for key, (row, _) in part.items()}
            self._next = self.ledger.append_report(self.owner, self._next, results)
            # A later try reports these results, too, and does not record them again.
            record_metrics(row for row, _ in part.values())
            self.ledger.remove_versions(
                [(key, version.n) for key, (_, version) in part.items() if version is not None and version.n]
            )
            self.reported |= part.keys()
            for key in part:
                self.to_report.pop(key, None)

    def rows(self) -> Iterator[tuple[str, RecordingResult]]:
        """Yield the key and the result of each recording that is in a record of this run, one record at a time.

        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        last: dict[str, int] = {}
        for number, record in enumerate(self.ledger.read_reports(self.owner)):
            last.update(dict.fromkeys(record, number))
        for number, record in enumerate(self.ledger.read_reports(self.owner)):
            for key, row in record.items():
                # A recording that was forgotten and ingested again has two results; the last one counts.
                if last[key] == number:
                    yield key, RecordingResult.from_dict(row)

    def finish(self) -> None:
        """Store all results.

        :raises RoughyLedgerError: If the ledger cannot be written.
        """
        self.store(now=True)


@dataclass
class ShardTotals:
    """Counts many results without keeping them, for the log, the XComs and the error of a task.

    :param most_lines: How many lines about recordings that are not ready are kept.
    """

    most_lines: int = 200
    counts: Counter[str] = field(default_factory=Counter)
    already_ingested: Counter[str] = field(default_factory=Counter)
    credits: int = 0
    #: Seconds of the recordings that are ready.
    seconds: float = 0.0
    #: The first request ids of Roughy's replies.
    request_ids: list[str] = field(default_factory=list)
    #: Lines about recordings that are not ready, and how many there are in all.
    lines: list[str] = field(default_factory=list)
    not_ready: int = 0
    #: Whether a retry may change a result.
    retryable: bool = False
    #: The key of a recording that failed or was rejected.
    ended_key: str | None = None
    #: Unpaid recordings that this run has uploaded, and the credits that all unpaid ones need.
    unpaid: int = 0
    credits_needed: int = 0

    def add(self, result: RecordingResult) -> None:
        """Count a result."""
        self.counts[result.status] += 1
        if result.status in (Status.READY, Status.PENDING_PAYMENT):
            self.credits += result.credits or 0
        if result.request_id and len(self.request_ids) < _MAX_REQUEST_IDS:
            self.request_ids.append(result.request_id)
        if result.status == Status.READY:
            self.seconds += result.seconds or 0.0
            return
        self.not_ready += 1
        if len(self.lines) < self.most_lines:
            self.lines.append(result.line)
        self.retryable = self.retryable or result.retryable
        if result.status in (Status.FAILED, Status.REJECTED):
            self.ended_key = self.ended_key or result.key
        if result.status == Status.PENDING_PAYMENT:
            self.unpaid += not result.earlier
            self.credits_needed += result.credits or 0

    def counting(self, results: Iterable[RecordingResult]) -> Iterator[RecordingResult]:
        """Yield all results, and count those without ``elsewhere``."""
        for result in results:
            if not result.elsewhere:
                self.add(result)
            yield result

    def numbers(self) -> dict[str, int]:
        """Count the recordings by status, without zeros."""
        return numbers_of(self.counts, self.already_ingested)

    def summary(self) -> str:
        """Return the counts as a line."""
        return summary_of(self.numbers(), self.already_ingested)
