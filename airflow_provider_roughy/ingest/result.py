"""The results of a batch: one list of recordings, of which XComs, the table in the log and error texts are views."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.instruments import CREDITS, FILES
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.transfer.storage import as_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


class Status(StrEnum):
    """The status of a recording in a batch.

    ==================== ===============================================================================================
    ``ready``            Roughy has prepared its asset
    ``pending_payment``  it is uploaded, and the credits do not cover it
    ``failed``           Roughy could not prepare the asset, or the asset is gone
    ``rejected``         it cannot be uploaded: neither audio nor video, too small, unreadable, archived
    ``deferred``         it is left to a later run: ``max_credits``, ``stable_for``, no credits, another run uploads it
    ``interrupted``      an error that a retry or a later run may fix, or ``timeout`` was over
    ==================== ===============================================================================================

    Recordings that other runs have ingested or sent, and copies of other files, are only counted, as
    ``already_ingested``.
    """

    READY = "ready"
    PENDING_PAYMENT = "pending_payment"
    FAILED = "failed"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    INTERRUPTED = "interrupted"


#: How each field of a result is read; others are any JSON.
_DECODERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("status", "asset_id", "reason", "request_id", "since", "until", "key"), decode.text),
    # A path may be longer than other texts.
    "source": partial(decode.text, limit=10_000),
    **dict.fromkeys(("size_bytes", "credits"), decode.integer),
    **dict.fromkeys(("retryable", "earlier"), decode.boolean),
    "seconds": decode.number,
}


@dataclass(frozen=True, slots=True)
class RecordingResult:
    """The result of one recording.

    :param source: The file, as the log names it.
    :param status: A :class:`Status`.
    :param asset_id: Its asset at Roughy, once it has one.
    :param reason: Why it is not ready.
    :param size_bytes: Bytes.
    :param seconds: How long the recording is, in seconds, as Roughy measured it.
    :param credits: Its costs in credits.
    :param request_id: The ``X-Request-Id`` of Roughy's answer, for Roughy's support.
    :param since: Since when it is unpaid, in UTC (ISO 8601).
    :param until: The date until which Roughy keeps it unpaid, in UTC.
    :param retryable: Whether a retry of the task may change it.
    :param earlier: Whether an earlier run has reported it already, so that it does not fail this one.
    :param key: Its key in the ledger, with which ``Ledger.forget`` forgets it, if it failed or was rejected.
    :param outputs: The URI of each output that ``RoughyProduceOperator`` has written, by name: ``captions.srt``.
    :param elsewhere: Whether another shard or run has it, which reports it, too.
    :param repeated: Whether an earlier try of this run has reported it, so that metrics do not count it again.
    """

    source: str
    status: str
    asset_id: str | None = None
    reason: str | None = None
    size_bytes: int = 0
    seconds: float | None = None
    credits: int | None = None
    request_id: str | None = None
    since: str | None = None
    until: str | None = None
    retryable: bool = False
    earlier: bool = False
    key: str | None = None
    outputs: dict[str, str] | None = None
    elsewhere: bool = False
    repeated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, without empty fields."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False, 0)}

    @classmethod
    def from_dict(cls, values: Any) -> RecordingResult:
        """Read what :meth:`to_dict` returned. Fields that this release does not know are left out.

        :raises ValueError: If it is no such result.
        """
        if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in ("source", "status")):
            raise ValueError("it has no `source` or no `status`")
        known = {each.name: each for each in fields(cls) if values.get(each.name) is not None}
        read = {name: _DECODERS.get(name, decode.plain)(values[name]) for name in known}
        return cls(**{name: value for name, value in read.items() if value is not None})

    @property
    def line(self) -> str:
        """A line of the table in the log."""
        # Errors of an asset begin with its id.
        asset = f"asset {self.asset_id}" if self.asset_id and self.asset_id not in (self.reason or "") else ""
        key = f" (key {self.key})" if self.key else ""
        files = counted(len(self.outputs), "file") if self.outputs else ""
        why = ": ".join(part for part in (asset, files, self.reason) if part)
        # One line, whatever Roughy's text and names that an earlier release stored contain.
        return as_line(f"{self.status:<16}{self.source}  {why}{key}".rstrip())


@dataclass
class BatchResults:
    """The results of a batch.

    :param results: One for each recording, in the order in which they were added.
    :param already_ingested: How many recordings other runs have ingested or sent, by their state in the ledger, and how
        many files have the same bytes as another one, as ``duplicate``.
    """

    results: list[RecordingResult] = field(default_factory=list)
    already_ingested: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, result: RecordingResult) -> None:
        """Add a result. Several threads may call this."""
        with self._lock:
            self.results.append(result)

    def count_ingested(self, state: str) -> None:
        """Count a recording that another run has ingested or sent, or a copy.

        :param state: Its state in the ledger; ``duplicate`` for a file that has the same bytes as another one.
        """
        with self._lock:
            self.already_ingested[{"refused": "rejected"}.get(state, state)] += 1

    def record_metrics(self) -> None:
        """Record how many recordings there are by status, and what they cost."""
        record_metrics(result for result in self.results if not result.repeated)
        FILES.add(self.already_ingested.total(), status="already_ingested")

    def of(self, *statuses: str) -> list[RecordingResult]:
        """Return the results with some statuses."""
        return [result for result in self.results if result.status in statuses]

    def ids(self, status: str) -> list[str]:
        """Return the asset ids of the results with a status."""
        return [result.asset_id for result in self.results if result.status == status and result.asset_id]

    @property
    def sources(self) -> dict[str, str]:
        """The file of each asset."""
        return {result.asset_id: result.source for result in self.results if result.asset_id}

    def numbers(self) -> dict[str, int]:
        """Count the recordings by status, without zeros."""
        return numbers_of(Counter(result.status for result in self.results), self.already_ingested)

    def summary(self) -> str:
        """Return the counts as a line: ``3 ready, 1 failed, 12 already ingested (11 ready, 1 failed)``."""
        return summary_of(self.numbers(), self.already_ingested)

    def table(self, *, without: Iterable[str] = ()) -> Iterator[str]:
        """Yield a line for each recording, by status.

        :param without: Statuses that are left out.
        """
        left_out = set(without)
        for status in Status:
            if status not in left_out:
                yield from (result.line for result in self.results if result.status == status)

    def xcoms(self) -> dict[str, Any]:
        """Return the XComs of the operator, by key. The last four keys are those of 0.2."""

        def reasons(status: str, *, by_asset: bool = False) -> dict[str, str]:
            return {
                (result.asset_id or result.source) if by_asset else result.source: result.reason or ""
                for result in self.of(status)
            }

        rejected, deferred = reasons(Status.REJECTED), reasons(Status.DEFERRED)
        interrupted = reasons(Status.INTERRUPTED)
        return {
            "ready": self.ids(Status.READY),
            "pending_payment": self.ids(Status.PENDING_PAYMENT),
            "failed": reasons(Status.FAILED, by_asset=True),
            "rejected": rejected,
            "deferred": deferred,
            "interrupted": interrupted,
            "already_ingested": dict(self.already_ingested),
            "sources": self.sources,
            "names": short_names([result.source for result in self.of(Status.READY) if result.asset_id]),
            "refused": rejected,
            "postponed": deferred,
            "unfinished": interrupted,
            "known": self.already_ingested.total(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, from which :meth:`from_dict` makes the same."""
        return {
            "results": [result.to_dict() for result in self.results],
            "already_ingested": dict(self.already_ingested),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BatchResults:
        """Read what :meth:`to_dict` returned, or the ``report`` of 0.2."""
        if "results" in values:
            return cls(
                [RecordingResult(**row) for row in values["results"]], Counter(values.get("already_ingested", {}))
            )
        return cls(list(_results_of_0_2(values)), Counter({"ready": known} if (known := values.get("known")) else {}))


def numbers_of(counts: Mapping[str, int], already_ingested: Counter[str]) -> dict[str, int]:
    """Return how many recordings there are by status, without zeros.

    :param counts: How many results there are by status.
    :param already_ingested: As that of :class:`BatchResults`.
    """
    numbers = {status.value: counts.get(status, 0) for status in Status}
    numbers["already_ingested"] = already_ingested.total()
    return {name: number for name, number in numbers.items() if number}


def summary_of(numbers: Mapping[str, int], already_ingested: Counter[str]) -> str:
    """Return such numbers as a line.

    :param numbers: How many recordings there are by status.
    :param already_ingested: As that of :class:`BatchResults`.
    """
    parts = [f"{number:,} {status}" for status, number in numbers.items() if status != "already_ingested"]
    if total := already_ingested.total():
        states = ", ".join(f"{number:,} {state}" for state, number in already_ingested.most_common())
        parts.append(f"{total:,} already ingested ({states})")
    return ", ".join(parts) or "no recordings"


def record_metrics(results: Iterable[RecordingResult]) -> None:
    """Record how many results there are by status, and what their recordings cost.

    :param results: Results that were not recorded before.
    """
    files: Counter[str] = Counter()
    credits: Counter[str] = Counter()
    for result in results:
        files[str(result.status)] += 1
        # Unpaid recordings of earlier runs are reported in each run.
        if result.status in (Status.READY, Status.PENDING_PAYMENT) and not result.earlier:
            credits[str(result.status)] += result.credits or 0
    for status, count in files.items():
        FILES.add(count, status=status)
    for status, count in credits.items():
        CREDITS.add(count, status=status)


def short_names(sources: Sequence[str]) -> list[str]:
    """Return a short name of each file: its own, with as many folders before it as distinguish it from the others.

    :param sources: Paths or URIs.
    """
    parts = [source.split("/") for source in sources]
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(each[-length:]) for each, length in zip(parts, lengths, strict=True)]
        counts = Counter(names)
        longer = [i for i, name in enumerate(names) if counts[name] > 1 and lengths[i] < len(parts[i])]
        if not longer:
            return names
        for i in longer:
            lengths[i] += 1


def _results_of_0_2(report: Mapping[str, Any]) -> Iterator[RecordingResult]:
    sources: Mapping[str, str] = report.get("sources", {})
    for status in (Status.READY, Status.PENDING_PAYMENT):
        for id in report.get(status, ()):
            yield RecordingResult(sources.get(id, id), status, asset_id=id)
    for id, reason in report.get("failed", {}).items():
        yield RecordingResult(sources.get(id, id), Status.FAILED, asset_id=id, reason=reason)
    names = {"refused": Status.REJECTED, "postponed": Status.DEFERRED, "unfinished": Status.INTERRUPTED}
    for name, status in names.items():
        for source, reason in report.get(name, {}).items():
            interrupted = status is Status.INTERRUPTED
            yield RecordingResult(sources.get(source, source), status, reason=reason, retryable=interrupted)
