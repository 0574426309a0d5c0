"""The page of a report for people: one HTML file that loads nothing, and works without JavaScript as a plain table.

Names of files are untrusted. Jinja2 escapes all values; invisible characters are shown as escapes, so that a name
cannot change how the text around it reads; and a Content-Security-Policy allows only the style and the script of this
package, by their hashes.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy import __version__
from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.observability.report_summary import ReportSummary, importance, visible
from airflow_provider_roughy.transfer.storage import without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jinja2 import Template

#: Recordings that the page shows, the most important ones. A browser sorts so many in less than a second.
MAX_ROWS = 10_000
#: Characters of a reason on the page; ``results.jsonl`` has all of it.
_MAX_REASON = 500
#: The least width of a segment of the bar, in thousandths: one of 10,000 must be visible, too.
_MIN_WIDTH = 8
_COLUMNS = ("File", "Outcome", "Reason", "Minutes", "Credits", "Asset", "Request id")
_NUMBERS = ("Minutes", "Credits")


class ImportantRows:
    """The most important results, at most :data:`MAX_ROWS`, of any number that are added."""

    def __init__(self) -> None:
        self._by_importance: dict[int, list[RecordingResult]] = {}
        self._number = 0

    def add(self, result: RecordingResult) -> None:
        """Add a result, and drop the last of the least important ones if there are too many."""
        self._by_importance.setdefault(importance(result.status), []).append(result)
        self._number += 1
        if self._number > MAX_ROWS:
            least = max(self._by_importance)
            self._by_importance[least].pop()
            if not self._by_importance[least]:
                del self._by_importance[least]
            self._number -= 1

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[RecordingResult]:
        for place in sorted(self._by_importance):
            yield from self._by_importance[place]


def page(summary: ReportSummary, rows: ImportantRows, *, results_name: str | None, summary_name: str) -> Iterator[str]:
    """Yield the parts of the page.

    :param summary: The totals of all results.
    :param rows: The results that the table shows.
    :param results_name: The name of the file with all results, in the same folder; ``None`` if they are in parts.
    :param summary_name: The name of the file with the totals, in the same folder.
    """
    facts, number = summary.facts, summary.counts.total()
    style, script = _asset("report.css"), _asset("report.js")
    has_outputs = any(_outputs(result) for result in rows)
    return _template().generate(
        title=visible(" · ".join(filter(None, (facts.dag_id, facts.task_id))) or "Report of Roughy"),
        where=[visible(each) for each in _where(summary)],
        facts=facts,
        summary=summary,
        total=counted(number, "recording"),
        bar=_bar(summary.counts),
        totals=_totals(summary),
        rows=_Rows(rows),
        left_out=number - len(rows),
        columns=(*_COLUMNS, "Outputs") if has_outputs else _COLUMNS,
        numbers=_NUMBERS,
        has_outputs=has_outputs,
        results_name=results_name,
        summary_name=summary_name,
        version=__version__,
        style=_trusted(style),
        script=_trusted(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    style: str
    x: int
    width: int


class _Rows:
    """The rows of the table, which are formatted one by one."""

    def __init__(self, results: ImportantRows) -> None:
        self._results = results

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(_row, self._results)


def _row(result: RecordingResult) -> dict[str, Any]:
    folder, slash, name = result.source.rpartition("/")
    reason = result.reason or ""
    return {
        "folder": visible(folder + slash),
        "name": visible(name),
        "status": visible(result.status),
        "reason": visible(reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}…"),
        "key": visible(result.key or ""),
        "minutes": "" if result.seconds is None else f"{result.seconds / 60:,.1f}",
        "credits": "" if result.credits is None else f"{result.credits:,}",
        "asset_id": visible(result.asset_id or ""),
        "request_id": visible(result.request_id or ""),
        "outputs": [(visible(name), _link(uri)) for name, uri in _outputs(result).items()],
    }


def _outputs(result: RecordingResult) -> Mapping[str, str]:
    """Return the files that were made of a recording, by name."""
    outputs = getattr(result, "outputs", None)
    return {str(name): str(uri) for name, uri in outputs.items() if uri} if isinstance(outputs, dict) else {}


def _link(uri: str) -> dict[str, str]:
    """Return how a URI is shown: as a link only if a browser can open it."""
    shown = without_secrets(uri)
    return {"text": visible(shown), "href": shown if re.match(r"https?://[!-~]+\Z", shown) else ""}


def _where(summary: ReportSummary) -> Iterator[str]:
    facts = summary.facts
    if facts.run_id:
        yield f"run {facts.run_id}"
    if facts.map_index is not None:
        yield f"map index {facts.map_index}"
    if facts.try_number:
        yield f"try {facts.try_number}"
    if facts.started_at:
        yield f"started {_moment(facts.started_at)}"


def _totals(summary: ReportSummary) -> Iterator[tuple[str, str]]:
    """Yield the totals, with their names."""
    facts = summary.facts
    yield "Media ready", f"{summary.seconds / 60:,.1f} minutes"
    yield "Credits of ready", counted(summary.credits, "credit")
    if summary.counts[Status.PENDING_PAYMENT]:
        least = "at least " if summary.unpaid_unknown else ""
        yield "Not paid for", least + counted(summary.unpaid_credits, "credit")
        if summary.unpaid_until:
            yield "Kept unpaid until", summary.unpaid_until
    if facts.balance_before is not None:
        yield "Balance before", counted(facts.balance_before, "credit")
    if facts.balance_after is not None:
        yield "Balance after", counted(facts.balance_after, "credit")


def _bar(counts: Mapping[str, int]) -> list[_Segment]:
    """Return the segments of the bar, each at least a little wide."""
    total = sum(counts.values())
    statuses = sorted(counts, key=importance, reverse=True)
    widths = [max(_MIN_WIDTH, round(1000 * counts[status] / total)) for status in statuses]
    if widths:
        # The widest one gives what the others have too much.
        widths[widths.index(max(widths))] += 1000 - sum(widths)
    segments, x = [], 0
    for status, width in zip(statuses, widths, strict=True):
        segments.append(_Segment(_style_of(status), x, width))
        x += width
    return segments


def _style_of(status: str) -> str:
    """Return the name of a status in the style sheet."""
    return status if status in set(Status) else "other"


def _moment(written: str | None) -> str:
    """Return a time as people read it, to the minute."""
    try:
        return f"{datetime.fromisoformat(written or ''):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return visible(written or "")


def _visible_lines(text: str) -> str:
    return "\n".join(visible(line) for line in text.splitlines())


@lru_cache(maxsize=1)
def _template() -> Template:
    # Imported here: the DAG processor imports this module at every parse.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "moment": _moment,
        "style_of": _style_of,
        "visible": visible,
        "visible_lines": _visible_lines,
    }
    return environment.from_string(_asset("report.html"))


def _trusted(text: str) -> Any:
    """Mark a text of this package as one that is not escaped."""
    from markupsafe import Markup

    return Markup(text)


@lru_cache
def _asset(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
