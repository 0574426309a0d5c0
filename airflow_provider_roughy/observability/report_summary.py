"""What a report says of all recordings together: counts, totals, what is unpaid and until when, and what to do next."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.logs import counted

#: The statuses, the ones that need a person first. Statuses that are not listed come last.
BY_IMPORTANCE = (
    Status.FAILED,
    Status.REJECTED,
    Status.INTERRUPTED,
    Status.PENDING_PAYMENT,
    Status.DEFERRED,
    Status.READY,
)
#: What to do about recordings with a status; nothing about those that are ready.
WHAT_TO_DO: Mapping[str, str] = {
    Status.FAILED: (
        "Roughy could not prepare these, or no longer has their assets. Read the reasons. Later runs skip them, unless "
        "you replace the file or forget it in the ledger."
    ),
    Status.REJECTED: "These files cannot be uploaded. Read the reasons; replace the files, or remove them.",
    Status.INTERRUPTED: (
        "An error stopped these. Clear the task, or wait for the next run: with a ledger, both upload only what is "
        "missing."
    ),
    Status.PENDING_PAYMENT: (
        "These are uploaded. Top up at Roughy: they then become ready automatically, the oldest first, and the next "
        "run reports them."
    ),
    Status.DEFERRED: "Nothing: a later run uploads these. The reasons say why this run did not.",
}
#: The same for a task that makes outputs of recordings.
_WHAT_TO_DO_OF_OUTPUTS: Mapping[str, str] = {
    Status.FAILED: (
        "Some outputs of these recordings cannot be made. Read the reason; the next run asks Roughy for them again."
    ),
    Status.REJECTED: "The names of these outputs are taken. Read the reason, and change `target`.",
    Status.INTERRUPTED: (
        "An error stopped these recordings. Clear the task, or wait for the next run: with a ledger, both make only "
        "what is missing."
    ),
    Status.PENDING_PAYMENT: (
        "These recordings are not paid for, so nothing can be made of them. Top up at Roughy, then clear the task."
    ),
    Status.DEFERRED: "The batch was stopped before these. Read the reason, then clear the task.",
}
#: Characters of the text for notifiers. Chat services cut longer messages.
MAX_TEXT = 1500
#: Recordings of one status that the text names, and characters of a file's name and of a reason in it.
_MAX_NAMED, _MAX_NAME, _MAX_REASON = 5, 60, 120
#: Characters that change how text around them is shown: controls, line ends, formats such as a change of direction.
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
#: Characters that begin markup in HTML and in Slack, and quotation marks that look like them.
_NO_MARKUP = str.maketrans("<>", "\u2039\u203a")
#: Formats that scripts and emoji need: they join letters, or keep them apart.
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFacts:
    """What a report says of the task, besides the results of its recordings.

    :param dag_id: The DAG.
    :param task_id: The task.
    :param run_id: The run.
    :param map_index: The index of a mapped task instance, from 0; ``None`` if it is not mapped.
    :param try_number: The number of the try, from 1; 0 if it is unknown.
    :param started_at: When the try started, in UTC (ISO 8601).
    :param written_at: When the report was written, in UTC (ISO 8601).
    :param already_ingested: How many recordings other runs have ingested, by their state in the ledger.
    :param balance_before: The balance in credits before the uploads; ``None`` if it is unknown.
    :param balance_after: The balance in credits at the end; ``None`` if it is unknown.
    :param error: The error that failed the task, without secrets.
    :param advice: What to do next, besides what the report says for each status.
    :param work: What the task does: ``ingest`` recordings, or ``produce`` outputs of them.
    """

    dag_id: str = ""
    task_id: str = ""
    run_id: str = ""
    map_index: int | None = None
    try_number: int = 0
    started_at: str | None = None
    written_at: str | None = None
    already_ingested: Mapping[str, int] = field(default_factory=dict)
    balance_before: int | None = None
    balance_after: int | None = None
    error: str | None = None
    advice: str | None = None
    work: str = "ingest"

    @property
    def what_to_do(self) -> Mapping[str, str]:
        """What to do about recordings, by status."""
        return _WHAT_TO_DO_OF_OUTPUTS if self.work == "produce" else WHAT_TO_DO

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, from which :meth:`from_dict` makes the same."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReportFacts:
        """Read what :meth:`to_dict` returned, also from a ``summary.json``. What is of another type is left out."""
        known: dict[str, Any] = {each.name: values.get(each.name) for each in fields(cls)}
        for name in ("dag_id", "task_id", "run_id"):
            known[name] = decode.text(known[name]) or ""
        for name in ("started_at", "written_at", "error", "advice"):
            known[name] = decode.text(known[name])
        for name in ("map_index", "balance_before", "balance_after"):
            known[name] = decode.integer(known[name])
        known["work"] = decode.text(known["work"]) or "ingest"
        known["try_number"] = decode.integer(known["try_number"]) or 0
        states = known["already_ingested"] if isinstance(known["already_ingested"], dict) else {}
        known["already_ingested"] = {str(state): decode.integer(number) or 0 for state, number in states.items()}
        return cls(**known)


@dataclass
class ReportSummary:
    """The totals of a report, which :meth:`add` counts one by one, in constant memory.

    :param facts: What the report says of the task.
    """

    facts: ReportFacts = field(default_factory=ReportFacts)
    #: Recordings by status.
    counts: Counter[str] = field(default_factory=Counter)
    #: Bytes of all files.
    size_bytes: int = 0
    #: Seconds of the recordings that are ready.
    seconds: float = 0.0
    #: Credits of the recordings that are ready.
    credits: int = 0
    #: Credits of those that are unpaid, as far as they are known.
    unpaid_credits: int = 0
    #: Unpaid recordings whose costs are unknown.
    unpaid_unknown: int = 0
    #: The first date until which Roughy keeps an unpaid recording, in UTC (ISO 8601).
    unpaid_until: str | None = None
    #: The first recordings of each status that needs something.
    _named: dict[str, list[RecordingResult]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, results: Iterable[RecordingResult], facts: ReportFacts) -> ReportSummary:
        """Count some results."""
        summary = cls(facts)
        for result in results:
            summary.add(result)
        return summary

    def add(self, result: RecordingResult) -> None:
        """Count a result."""
        self.counts[result.status] += 1
        self.size_bytes += result.size_bytes
        if result.status == Status.READY:
            self.seconds += result.seconds or 0.0
            self.credits += result.credits or 0
            return
        if result.status == Status.PENDING_PAYMENT:
            self.unpaid_credits += result.credits or 0
            self.unpaid_unknown += result.credits is None
            if result.until and (self.unpaid_until is None or result.until < self.unpaid_until):
                self.unpaid_until = result.until
        named = self._named.setdefault(result.status, [])
        if len(named) < _MAX_NAMED:
            named.append(result)

    @property
    def statuses(self) -> list[str]:
        """The statuses of the recordings, by importance."""
        return sorted(self.counts, key=importance)

    @property
    def headline(self) -> str:
        """The counts as a line: ``3 ready, 1 failed, 12 already ingested (11 ready, 1 failed)``."""
        parts = [f"{self.counts[status]:,} {visible(status)}" for status in reversed(self.statuses)]
        return ", ".join([*parts, *filter(None, [self.already_ingested])]) or "no recordings"

    @property
    def already_ingested(self) -> str:
        """How many recordings other runs have ingested: ``12 already ingested (11 ready, 1 failed)``; may be empty."""
        known = sorted(self.facts.already_ingested.items(), key=lambda pair: -pair[1])
        if not known:
            return ""
        states = ", ".join(f"{number:,} {visible(state)}" for state, number in known)
        return f"{sum(number for _, number in known):,} already ingested ({states})"

    @property
    def unpaid(self) -> str | None:
        """What is unpaid, as a sentence; ``None`` if nothing is."""
        number = self.counts[Status.PENDING_PAYMENT]
        if not number:
            return None
        least = "at least " if self.unpaid_unknown else ""
        balance = self.facts.balance_after
        return (
            f"{'1 recording is' if number == 1 else f'{number:,} recordings are'} not paid for: "
            f"{least}{counted(self.unpaid_credits, 'credit')} needed"
            + ("" if balance is None else f", the balance is {balance:,}")
            + (f"; Roughy keeps {'it' if number == 1 else 'the oldest'} until {self.unpaid_until}"
               if self.unpaid_until else "")
        )  # fmt: skip

    @property
    def what_to_do(self) -> dict[str, str]:
        """What to do, by status, the most important first."""
        known = self.facts.what_to_do
        return {status: known[status] for status in self.statuses if status in known}

    def to_dict(self) -> dict[str, Any]:
        """Return what ``summary.json`` contains."""
        return {
            "schema_version": 1,
            **{name: value for name, value in asdict(self.facts).items() if name != "already_ingested"},
            "recordings": self.counts.total(),
            "counts": {status: self.counts[status] for status in self.statuses},
            "already_ingested": dict(self.facts.already_ingested),
            "size_bytes": self.size_bytes,
            "seconds": round(self.seconds, 3),
            "credits": self.credits,
            "unpaid": {
                "recordings": self.counts[Status.PENDING_PAYMENT],
                "credits": self.unpaid_credits,
                "of_unknown_cost": self.unpaid_unknown,
                "until": self.unpaid_until,
            },
        }

    def text(self, *, report: str | None = None) -> str:
        """Return a text for people, for any notifier: at most 1,500 characters, without secrets.

        It has no ``<`` and no ``>``, so that the name of a file can be neither HTML in a mail nor a mention in Slack.

        :param report: Where the report is.
        """
        facts = self.facts
        task = ".".join(filter(None, (facts.dag_id, facts.task_id)))
        place = ", ".join(filter(None, (task, facts.run_id and f"run {facts.run_id}")))
        head = [visible(place), self.headline, self.unpaid]
        tail = [f"Report: {report}" if report else None]
        if facts.error and not self.counts:
            head.append(f"Error: {_cut(visible(facts.error), 300)}")
        begin, end = "\n".join(filter(None, head)), "\n".join(filter(None, tail))
        # As many names as fit; the counts at the top name all statuses.
        for names in range(_MAX_NAMED, -1, -1):
            blocks = [self._block(status, names) for status in sorted(self._named, key=importance)]
            text = "\n\n".join(filter(None, (begin, *blocks, end)))
            if len(text) <= MAX_TEXT:
                break
        return _cut(text.translate(_NO_MARKUP), MAX_TEXT)

    def _block(self, status: str, names: int) -> str:
        """Return what the text says of the recordings with a status, at most some of them by name."""
        lines = [f"{visible(status)}:"]
        for result in self._named[status][:names]:
            name = _cut(visible(result.source.rpartition("/")[2]), _MAX_NAME)
            reason = "" if status == Status.PENDING_PAYMENT else _cut(visible(result.reason or ""), _MAX_REASON)
            lines.append(f"- {name}" + (f": {reason}" if reason else ""))
        if (more := self.counts[status] - len(lines) + 1) > 0:
            lines.append(f"- {'and ' if names else ''}{more:,} more")
        return "\n".join((*lines, *filter(None, [self.facts.what_to_do.get(status)])))


def combine_facts(parts: Iterable[ReportFacts]) -> ReportFacts:
    """Return what a report says of a task, from what its parts say of each mapped task.

    :param parts: The facts of the parts.
    """
    parts = list(parts)
    if not parts:
        return ReportFacts()
    first = min(parts, key=lambda part: part.started_at or "")
    last = sorted(parts, key=lambda part: part.written_at or "")[-1]
    known: Counter[str] = Counter()
    for part in parts:
        known.update(part.already_ingested)
    return replace(
        first,
        map_index=None,
        try_number=0,
        balance_after=last.balance_after,
        already_ingested=dict(known),
        error="\n".join(dict.fromkeys(filter(None, (part.error for part in parts)))) or None,
        advice=next(filter(None, (part.advice for part in parts)), None),
    )


def importance(status: str) -> int:
    """Return the place of a status in :data:`BY_IMPORTANCE`."""
    return BY_IMPORTANCE.index(Status(status)) if status in set(BY_IMPORTANCE) else len(BY_IMPORTANCE)


def visible(text: str) -> str:
    """Return text with its invisible characters written as escapes, such as line ends and changes of direction.

    :param text: Any text, such as the name of a file.
    """
    if text.isprintable():
        return text
    return re.sub(r"[^ -~]", _escape, text)


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    if unicodedata.category(char) not in _INVISIBLE or char in _JOINERS:
        return char
    return char.encode("unicode_escape").decode()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
