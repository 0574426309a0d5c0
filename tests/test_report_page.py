"""The page of a report and the text for notifiers: what they show of hostile names, and how large they are."""

from __future__ import annotations

import hashlib
import json
import re
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.observability import report_page
from airflow_provider_roughy.observability.report import read_report, write_report
from airflow_provider_roughy.observability.report_summary import MAX_TEXT, ReportFacts, ReportSummary
from tests.test_report import ASSET, RESULTS

FACTS = ReportFacts(
    dag_id="nightly",
    task_id="ingest",
    run_id="scheduled__2026-11-29",
    try_number=2,
    started_at="2026-11-29T02:00:04+00:00",
    already_ingested={"ready": 11, "rejected": 1},
    balance_before=1000,
    balance_after=1,
)
#: Names that would do harm if a page or a message took them for more than names.
HOSTILE = [
    "<img src=x onerror=alert(1)>.mp4",
    "</script><script>alert(1)</script>.mp4",
    '" onmouseover="alert(1).mp4',
    "</td></tr></table><h1>ready</h1>.mp4",
    "{{ 7 * 7 }}{% raw %}.mp4",
    "invoice_\u202e4pm.exe",
    "a\nready  b.mp4",
    "a\r\x00\x1b[2J\u2028\ufeff\u200f.mp4",
    "javascript:alert(1)",
    "<!channel> &lt;b&gt;.mp4",
    "\U0001f600 \u0645\u0642\u0627\u0628\u0644\u0629.mp4",
    "x" * 4000,
]


@dataclass
class Page(HTMLParser):
    """What a page without JavaScript consists of."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)
    inline: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open_tags.append(tag)
        if tag == "tr":
            self.tables.append([])
        elif tag in ("td", "th"):
            self.tables[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open_tags and self.open_tags[-1] in ("script", "style"):
            self.inline[self.open_tags[-1]] = data
            return
        self.text += data
        if "td" in self.open_tags or "th" in self.open_tags:
            self.tables[-1][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parse(folder: Path, name: str = "index.html") -> Page:
    page = Page()
    page.feed((folder / name).read_text())
    page.close()
    assert page.open_tags == []
    return page


def test_page_shows_without_javascript_what_the_results_hold(tmp_path: Path) -> None:
    write_report(tmp_path, RESULTS, facts=FACTS)
    head, *rows = parse(tmp_path).tables
    assert head == ["File", "Outcome", "Reason", "Minutes", "Credits", "Asset", "Request id"]
    shown = [
        [
            each.source,
            each.status,
            (each.reason or "") + (f"key {each.key}" if each.key else ""),
            "" if each.seconds is None else f"{each.seconds / 60:.1f}",
            "" if each.credits is None else str(each.credits),
            each.asset_id or "",
            each.request_id or "",
        ]
        for status in ("failed", "rejected", "interrupted", "pending_payment", "deferred", "ready")
        for each in read_report(tmp_path)
        if each.status == status
    ]
    assert rows == shown


def test_page_says_the_totals_and_what_to_do(tmp_path: Path) -> None:
    write_report(tmp_path, RESULTS, facts=replace(FACTS, advice="forget it by its key"))
    text = " ".join(parse(tmp_path).text.split())
    for said in (
        "nightly · ingest",
        "run scheduled__2026-11-29 · try 2 · started 2026-11-29 02:00 UTC".replace(" · ", ""),
        "7 recordings",
        "12 already ingested (11 ready, 1 rejected)",
        "Balance before1,000 credits",
        "Balance after1 credit",
        "1 recording is not paid for: 8 credits needed, the balance is 1; Roughy keeps it until 2026-12-20.",
        "forget it by its key",
    ):
        assert said in text, said
    bar = parse(tmp_path).attributes("rect")
    assert sum(int(each["width"] or 0) for each in bar) == 1000
    assert [each["class"] for each in bar] == [
        "ready", "deferred", "pending_payment", "interrupted", "rejected", "failed"
    ]  # fmt: skip


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    harmless = [RecordingResult(f"/in/{number}.mp4", Status.FAILED, reason="x") for number in range(len(HOSTILE))]
    write_report(tmp_path / "harmless", harmless, facts=FACTS)
    results = [
        replace(each, source=f"/in/{name}", reason=name, request_id=name, asset_id=name, key=name)
        for each, name in zip(harmless, HOSTILE, strict=True)
    ]
    evil = " ".join(HOSTILE[:-1])
    facts = replace(FACTS, dag_id=evil, task_id=evil, run_id=evil, error=evil, advice=evil, started_at=evil)
    write_report(tmp_path / "hostile", results, facts=replace(facts, already_ingested={evil: 1}))
    # Apart from the reasons and the error, the page has the same elements and attributes as one of harmless names.
    page, other = parse(tmp_path / "hostile"), parse(tmp_path / "harmless")
    extra = {"section", "h2", "p", "small", "li", "bdi"}
    allowed = {"class", "scope", "id", "aria-labelledby"}
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in other.tags}
    assert [each for each in page.tags if each[0] not in extra and each[0] != "svg"] == [
        each for each in other.tags if each[0] not in extra and each[0] != "svg"
    ]
    assert {name for tag, attributes in page.tags if tag in extra for name in attributes} <= allowed
    # Nothing invisible is left that could change how the text around it reads.
    written = (tmp_path / "hostile" / "index.html").read_text()
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]", written) == []
    shown = [row[0] for row in page.tables[1:]]
    assert shown[:5] == [f"/in/{name}" for name in HOSTILE[:5]]
    assert shown[5:8] == [
        r"/in/invoice_\u202e4pm.exe", r"/in/a\nready  b.mp4", r"/in/a\r\x00\x1b[2J\u2028\ufeff\u200f.mp4"
    ]  # fmt: skip


def test_page_allows_only_its_own_style_and_script(tmp_path: Path) -> None:
    write_report(tmp_path, RESULTS, facts=FACTS)
    page = parse(tmp_path)
    (policy,) = (each["content"] for each in page.attributes("meta") if "http-equiv" in each)
    hashes = {
        tag: f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for tag, text in page.inline.items()
    }
    assert policy == (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; base-uri 'none'; "
        "form-action 'none'"
    )
    assert [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "base")] == []
    names = {name for _, attributes in page.tags for name in attributes}
    assert [name for name in names if name == "style" or name.startswith("on")] == [], "the policy blocks them"
    assert [each["href"] for each in page.attributes("a")] == ["results.jsonl", "summary.json"]


def test_table_is_accessible(tmp_path: Path) -> None:
    write_report(tmp_path, RESULTS, facts=FACTS)
    page = parse(tmp_path)
    assert all(each["scope"] == "col" for each in page.attributes("th"))
    assert page.attributes("caption") == [{}]
    assert page.attributes("html") == [{"lang": "en"}]
    assert [each["aria-label"] for each in page.attributes("svg")] == [
        "2 ready, 1 deferred, 1 pending_payment, 1 interrupted, 1 rejected, 1 failed, "
        "12 already ingested (11 ready, 1 rejected)"
    ]
    script = page.inline["script"]
    assert "aria-sort" in script
    # Each element that the script looks for exists.
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert set(re.findall(r'getElementById\("(\w+)"\)', script)) <= ids


@dataclass(frozen=True, slots=True)
class Produced(RecordingResult):
    """A result with the files that were made of a recording."""

    outputs: dict[str, str] | None = None


def test_outputs_are_links_only_where_a_browser_can_open_them(tmp_path: Path) -> None:
    outputs = {
        "video": "https://cdn.example.org/a.mp4?sig=secret",
        "captions": "s3://out/a.srt",
        "evil": "javascript:alert(1)",
        "<b>": 'https://x/"><script>',
    }
    write_report(tmp_path, [Produced("/in/a.mp3", "ready", outputs=outputs), RESULTS[0]])
    page = parse(tmp_path)
    assert page.tables[0][-1] == "Outputs"
    assert page.tables[1][-1] == "videocaptions: s3://out/a.srtevil: javascript:alert(1)<b>"
    hrefs = [each["href"] for each in page.attributes("a")][:-2]
    assert hrefs == ["https://cdn.example.org/a.mp4", 'https://x/"><script>']
    assert "secret" not in (tmp_path / "index.html").read_text()
    assert page.attributes("script") == [{}]


def many(number: int) -> Iterator[RecordingResult]:
    for each in range(number):
        failed = each % 1000 == 999
        yield RecordingResult(
            f"s3://recordings/incoming/2026-11-28/interview-{each:06d}.mp4",
            "failed" if failed else "ready",
            asset_id=ASSET,
            reason="Asset failed: the recording is cut off at 00:14:02" if failed else None,
            seconds=600.0,
            credits=10,
            request_id="req_0123456789abcdef",
        )


def test_page_shows_the_most_important_rows_of_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "MAX_ROWS", 10)
    write_report(tmp_path, many(4000))
    page = parse(tmp_path)
    assert [row[1] for row in page.tables[1:]] == ["failed"] * 4 + ["ready"] * 6
    assert [row[0][-10:] for row in page.tables[5:]] == [f"{number:06d}.mp4" for number in range(6)]
    assert "This page shows the 10 most important of 4,000 recordings; results.jsonl has all of them." in page.text
    assert sum(1 for _ in read_report(tmp_path)) == 4000


@pytest.mark.parametrize(("number", "limit"), [(10, 25_000), (1000, 300_000), (10_000, 2_700_000)])
def test_size_of_the_page(number: int, limit: int, tmp_path: Path) -> None:
    write_report(tmp_path, many(number), facts=FACTS)
    assert (tmp_path / "index.html").stat().st_size < limit
    assert (tmp_path / "index.html").read_text().count("<tr><td>") == number


def test_large_reports_are_written_and_read_in_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "MAX_ROWS", 100)
    write_report(tmp_path, many(100))
    peaks = []
    for number in (1_000, 8_000):
        tracemalloc.start()
        write_report(tmp_path, many(number))
        assert sum(1 for _ in read_report(tmp_path)) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000, "7,000 more rows are 2 MB of JSON"


# ---- The text for notifiers


def test_text_names_files_and_says_what_to_do() -> None:
    text = ReportSummary.of(RESULTS, FACTS).text(report="s3://reports/2026-11-29/")
    lines = text.splitlines()
    assert lines[:3] == [
        "nightly.ingest, run scheduled__2026-11-29",
        "2 ready, 1 deferred, 1 pending_payment, 1 interrupted, 1 rejected, 1 failed, "
        "12 already ingested (11 ready, 1 rejected)",
        "1 recording is not paid for: 8 credits needed, the balance is 1; Roughy keeps it until 2026-12-20",
    ]
    assert "- damaged.mp3: its data is damaged" in lines
    assert any(line.startswith("These are uploaded. Top up at Roughy") for line in lines)
    assert lines[-1] == "Report: s3://reports/2026-11-29/"
    assert "a.mp3" not in text, "what is ready needs nothing"


def test_text_of_many_results_keeps_its_length() -> None:
    results = [
        replace(each, source=f"/in/{'long name ' * 20}{number}.mp3", reason=each.reason and each.reason * 20)
        for each in RESULTS
        for number in range(100)
    ]
    text = ReportSummary.of(results, FACTS).text(report="s3://reports/2026-11-29/")
    assert len(text) <= MAX_TEXT
    assert text.endswith("Report: s3://reports/2026-11-29/")
    for status in ("failed", "rejected", "interrupted", "pending_payment", "deferred"):
        assert f"\n{status}:\n" in text


def test_text_of_hostile_names_is_no_markup() -> None:
    results = [RecordingResult(f"/in/{name}", Status.FAILED, reason=name) for name in HOSTILE]
    for some in (results[:5], results[5:10], results[10:]):
        text = ReportSummary.of(some, FACTS).text()
        assert not set(text) & set("<>\r\x00\u202e\u2028")
        assert len(text) <= MAX_TEXT
        assert text.count("\n- ") == len(some)


@pytest.mark.parametrize(
    ("facts", "results", "line"),
    [
        (FACTS, [], "12 already ingested (11 ready, 1 rejected)"),
        (ReportFacts(), [], "no recordings"),
        (ReportFacts(error="boom"), [], "Error: boom"),
        (ReportFacts(), [replace(RESULTS[3], credits=None)],
         "1 recording is not paid for: at least 0 credits needed; Roughy keeps it until 2026-12-20"),
        (ReportFacts(), [replace(RESULTS[0], status="curious")], "1 curious"),
    ],
)  # fmt: skip
def test_text_of_odd_nights(facts: ReportFacts, results: list[RecordingResult], line: str, tmp_path: Path) -> None:
    assert line in ReportSummary.of(results, facts).text().splitlines()
    written: Any = write_report(tmp_path, results, facts=facts).to_dict()
    assert json.loads((tmp_path / "summary.json").read_text()) == written
    assert parse(tmp_path).text.strip()
