"""The results of a run: verdicts, a table for people, and JSON for an issue, without anything secret."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from airflow_provider_roughy.conformance.fact import DEFAULTS, Fact, Mark, shown
from airflow_provider_roughy.conformance.seen import Seen

Verdict = Literal["holds", "differs", "not testable"]

#: The version of the JSON.
SCHEMA = "airflow-provider-roughy verify 1"
#: The widest cell of the table, but for a request id.
_WIDEST = 34


@dataclass(frozen=True)
class Result:
    """The result of one check.

    :param fact: The fact.
    :param expected: The expected observation: the documented one, or that of an earlier run.
    :param verdict: The verdict.
    :param seen: What was observed; if nothing was, why.
    :param request_id: Of the reply that shows it.
    :param value: Of a choice, the value of the emulator's option that agrees; ``None`` if none does.
    :param is_unclear: Whether a fault prevented the check.
    """

    fact: Fact
    expected: str
    verdict: Verdict
    seen: str
    request_id: str | None = None
    value: Any = None
    is_unclear: bool = False

    @property
    def option(self) -> str | None:
        """The emulator's option that agrees with what was seen; ``None`` if it is no choice or no value agrees."""
        if self.fact.choice is None or self.value is None:
            return None
        return f"--choice {self.fact.choice}={shown(self.value)}"


@dataclass
class Report:
    """All results of a run.

    :param host: The address of the API.
    :param version: The version of this package.
    :param started_at: When the run started, ISO 8601.
    :param results: In the order of the checks.
    :param stopped: Why the run ended early; ``None`` if it did not.
    :param left_behind: What could not be removed.
    :param seconds: How long it took.
    :param requests: How many replies it got.
    :param throttled: How many of them were 429.
    :param max_credits: The credits that were allowed.
    :param news: What replies and the published specification have beyond the documentation, by resource.
    :param states: The states that were seen, by resource.
    """

    host: str
    version: str
    started_at: str
    results: list[Result] = field(default_factory=list)
    stopped: str | None = None
    left_behind: list[str] = field(default_factory=list)
    seconds: float = 0.0
    requests: int = 0
    throttled: int = 0
    max_credits: int = 0
    news: dict[str, list[str]] = field(default_factory=dict)
    states: dict[str, list[str]] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The exit status: 0 if all facts hold, 1 if one differs, 2 if the run could not say."""
        if self.stopped or self.left_behind or any(each.is_unclear for each in self.results):
            return 2
        return 1 if any(each.verdict == "differs" for each in self.results) else 0

    @property
    def choices(self) -> dict[str, Any]:
        """The emulator's options that agree with what was seen."""
        return {each.fact.choice: each.value for each in self.results if each.fact.choice and each.value is not None}

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "schema": SCHEMA,
            "version": self.version,
            "host": self.host,
            "started_at": self.started_at,
            "seconds": round(self.seconds, 1),
            "requests": self.requests,
            "throttled": self.throttled,
            "max_credits": self.max_credits,
            "stopped": self.stopped,
            "left_behind": self.left_behind,
            "counts": dict(Counter(each.verdict for each in self.results)),
            "choices": self.choices,
            "news": self.news,
            "states": self.states,
            "facts": [
                {
                    "id": each.fact.id,
                    "known": each.fact.mark,
                    "documented": each.fact.url,
                    "fact": each.fact.text,
                    "expected": each.expected,
                    "verdict": each.verdict,
                    "seen": each.seen,
                    "request_id": each.request_id,
                    **({"choice": each.fact.choice, "value": each.value} if each.fact.choice else {}),
                    **({"promise": each.fact.promise} if each.fact.promise else {}),
                }
                for each in self.results
            ],
        }

    def lines(self) -> Iterator[str]:
        """Yield the table, what differs, and the counts."""
        yield from table(self.results)
        yield ""
        for each in self.results:
            if each.verdict == "differs":
                yield from _difference(each)
        for kind, found in sorted(self.news.items()):
            yield f"Not documented ({kind}): {', '.join(found)}"
        for kind, found in sorted(self.states.items()):
            yield f"States seen ({kind}): {', '.join(found)}"
        yield from summary(self.results)
        yield f"{self.requests} replies in {self.seconds:.0f} s, {self.throttled} of them 429"
        for left in self.left_behind:
            yield f"Not removed: {left}. A later run removes it, or remove it in Roughy's dashboard"
        if self.stopped:
            yield f"Stopped: {self.stopped}"
        elif any(each.is_unclear for each in self.results):
            yield "Faults prevented some checks; run it again"


def judge(fact: Fact, seen: Seen, recorded: Mapping[str, Any] | None) -> Result:
    """Return the verdict on an observation.

    :param fact: The fact.
    :param seen: The observation.
    :param recorded: The fact in the JSON of an earlier run, if there is one: where that differed, it is what is
        expected now.
    """
    expected, value = fact.expected, DEFAULTS.get(fact.choice or "")
    if recorded is not None and recorded.get("verdict") == "differs":
        expected, value = str(recorded.get("seen")), recorded.get("value")
    if fact.choice is not None and value is not None:
        # A number may be whole or not, and true is no number.
        holds = isinstance(seen.value, bool) == isinstance(value, bool) and seen.value == value
    elif seen.holds is not None and expected == fact.expected:
        holds = seen.holds
    else:
        holds = seen.text == expected
    text = _clean(seen.text)
    return Result(fact, expected, "holds" if holds else "differs", text, seen.request_id, seen.value)


def _clean(text: str) -> str:
    """Return an observation as one line, without the query of a URL."""
    return re.sub(r"\?\S*", "?…", re.sub(r"[^ -~…]+", " ", text))[:200]


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table of results."""
    head = ("fact", "known", "page", "expected", "seen", "verdict", "request")
    rows = [
        (
            each.fact.id,
            each.fact.mark,
            each.fact.page or "-",
            _short(each.expected),
            _short(each.seen) if each.verdict != "not testable" else each.seen,
            each.verdict,
            each.request_id or "-",
        )
        for each in results
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    widths[4] = min(widths[4], _WIDEST)
    for row in (head, tuple("-" * width for width in widths), *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _difference(result: Result) -> Iterator[str]:
    fact = result.fact
    yield f"Differs: {fact.id} ({fact.mark}). {fact.text} {fact.url}".rstrip()
    yield f"  Expected: {result.expected}. Seen: {result.seen}. Request: {result.request_id or 'none'}"
    if fact.choice is not None:
        yield f"  The emulator agrees with: {result.option or 'no value of ' + fact.choice}"
    if fact.promise:
        yield f"  What rests on it: {fact.promise}"
    yield ""


def summary(results: Sequence[Result]) -> Iterator[str]:
    """Yield the counts of verdicts by mark."""
    marks: tuple[Mark, ...] = ("documented", "inferred", "unknown")
    for mark in marks:
        counts = Counter(each.verdict for each in results if each.fact.mark == mark)
        yield (
            f"{sum(counts.values())} {mark} facts: {counts['holds']} hold, {counts['differs']} differ, "
            f"{counts['not testable']} not testable"
        )


def read_record(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the facts of an earlier run's JSON, by id.

    :raises ValueError: If the file is not a result of ``verify``.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']!r}, not {SCHEMA!r}")
        return {str(each["id"]): dict(each) for each in found["facts"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a result of `verify`: {error}") from None
