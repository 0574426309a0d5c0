"""The report of a batch: files for programs and for people, and the text for notifiers."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.compat import AirflowTaskTimeout, TaskDeferred
from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.exceptions import (
    RoughyIngestFailedError,
    RoughyTargetError,
    RoughyTimeoutError,
    RoughyUnusableSourceError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.observability.links import report_links, report_url
from airflow_provider_roughy.observability.report import combine_report, read_report, write_report
from airflow_provider_roughy.observability.report_summary import ReportFacts
from airflow_provider_roughy.operators import RoughyIngestOperator
from tests.ingesting import Nights
from tests.running import TaskInstance, run_task

ASSET = "019de7f5-7e21-7402-92a8-1c0e1fa84411"

#: One result of each status, and more than one of some.
RESULTS = [
    RecordingResult("/in/a.mp3", Status.READY, asset_id=ASSET, size_bytes=100, seconds=61.5, credits=2),
    RecordingResult("/in/b.mp3", Status.READY, asset_id=ASSET[:-1] + "2", seconds=30.0, credits=1),
    RecordingResult("/in/late.mp3", Status.DEFERRED, reason="it costs 9 credits, and the balance leaves 1", credits=9),
    RecordingResult(
        "/in/unpaid.mp3",
        Status.PENDING_PAYMENT,
        asset_id=ASSET[:-1] + "3",
        reason="top up",
        credits=8,
        since="2026-11-20T02:00:00+00:00",
        until="2026-12-20",
    ),
    RecordingResult("/in/notes.mp3", Status.REJECTED, reason="neither audio nor video", key="ab" * 32),
    RecordingResult("/in/damaged.mp3", Status.FAILED, reason="its data is damaged", request_id="req_1"),
    RecordingResult("/in/cut.mp3", Status.INTERRUPTED, reason="Roughy did not answer", retryable=True),
]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str | None]:
    """Where a report is written, and the connection of that storage."""
    if request.param == "folder":
        return str(tmp_path / "reports" / "2026-11-29"), None
    request.getfixturevalue("s3")
    return "s3://recordings/reports/2026-11-29", "s3"


def test_report_is_read_as_it_was_written(place: tuple[str, str | None]) -> None:
    location, conn_id = place
    write_report(location, iter(RESULTS), conn_id=conn_id)
    assert list(read_report(location, conn_id=conn_id)) == RESULTS
    assert list(read_report(f"{location}/results.jsonl", conn_id)) == RESULTS


def test_parts_of_a_report_are_read_together_and_replaced_alone(place: tuple[str, str | None]) -> None:
    location, conn_id = place
    for part in ("shard-1", "shard-0"):
        write_report(location, RESULTS[:2], conn_id=conn_id, part=part)
    write_report(location, RESULTS[2:], conn_id=conn_id, part="shard-1")
    assert list(read_report(location, conn_id)) == RESULTS


def test_parts_are_combined_into_one_page(place: tuple[str, str | None]) -> None:
    location, conn_id = place
    for number, part in enumerate(("one", "two")):
        facts = ReportFacts(
            dag_id="nightly",
            map_index=number,
            started_at=f"2026-11-29T02:0{number}:00+00:00",
            already_ingested={"ready": 5},
            balance_before=100 - number,
            balance_after=50 - number,
            error=f"error {number}",
        )
        write_report(location, RESULTS[3 * number :: 2], facts=facts, conn_id=conn_id, part=part)
    expected = [*RESULTS[::2], *RESULTS[3::2]]
    summary = combine_report(location, conn_id=conn_id)
    assert list(read_report(location, conn_id)) == expected
    assert summary.counts == Counter(each.status for each in expected)
    facts = summary.facts
    assert (facts.dag_id, facts.map_index, facts.already_ingested) == ("nightly", None, {"ready": 10})
    assert (facts.balance_before, facts.balance_after) == (100, 49)
    assert facts.error == "error 0\nerror 1"
    if conn_id is None:
        page = Path(location, "index.html").read_text()
        assert page.count("<tr><td>") == len(expected)
        assert "results-*.jsonl" in page


def test_results_hold_one_line_of_plain_json_for_each_recording(tmp_path: Path) -> None:
    odd = replace(RESULTS[0], source="/in/two\nlines\u2028\x85.mp3")
    write_report(tmp_path, [odd, RESULTS[1]])
    text = (tmp_path / "results.jsonl").read_bytes().decode("ascii")
    assert [json.loads(line) for line in text.splitlines()] == [odd.to_dict(), RESULTS[1].to_dict()]
    assert list(read_report(tmp_path)) == [odd, RESULTS[1]]


def test_summary_file_has_the_totals(tmp_path: Path) -> None:
    facts = ReportFacts(dag_id="nightly", balance_before=9, balance_after=1, already_ingested={"ready": 12})
    write_report(tmp_path, RESULTS, facts=facts)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["recordings"] == len(RESULTS)
    assert found["counts"] == {
        "failed": 1, "rejected": 1, "interrupted": 1, "pending_payment": 1, "deferred": 1, "ready": 2
    }  # fmt: skip
    assert [found[name] for name in ("dag_id", "balance_before", "balance_after", "seconds", "credits")] == [
        "nightly", 9, 1, 91.5, 3
    ]  # fmt: skip
    assert found["unpaid"] == {"recordings": 1, "credits": 8, "of_unknown_cost": 0, "until": "2026-12-20"}
    assert found["already_ingested"] == {"ready": 12}
    assert ReportFacts.from_dict(found) == replace(facts, written_at=found["written_at"])


def test_report_that_fails_midway_leaves_the_earlier_one(place: tuple[str, str | None]) -> None:
    location, conn_id = place
    write_report(location, RESULTS[:2], conn_id=conn_id)

    def breaking() -> Iterator[RecordingResult]:
        yield from RESULTS * 2000
        raise RuntimeError("the ledger is gone")

    with pytest.raises(RuntimeError, match="the ledger is gone"):
        write_report(location, breaking(), conn_id=conn_id)
    assert list(read_report(location, conn_id)) == RESULTS[:2]


def test_missing_and_damaged_reports_are_errors(tmp_path: Path) -> None:
    for location in (tmp_path / "none", tmp_path):
        with pytest.raises(RoughyUnusableSourceError, match=r"There is no report in .*no `results\.jsonl`"):
            list(read_report(location))
    with pytest.raises(RoughyUnusableSourceError, match=r"Report .*/results\.jsonl cannot be read: .*No such file"):
        list(read_report(tmp_path / "results.jsonl"))
    write_report(tmp_path, RESULTS[:1])
    for line, why in (("[]", "no `source`"), ("{", "Expecting"), ('{"source": 1, "status": "ready"}', "no `source`")):
        (tmp_path / "results.jsonl").write_text(f"{json.dumps(RESULTS[0].to_dict())}\n{line}\n")
        with pytest.raises(RoughyUnusableSourceError, match=rf"damaged in line 2: .*{why}"):
            list(read_report(tmp_path))


def test_report_of_a_later_release_is_read() -> None:
    row = {**RESULTS[0].to_dict(), "colour": "blue", "credits": "many", "seconds": 10**400}
    assert RecordingResult.from_dict(row) == replace(RESULTS[0], credits=None, seconds=None)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("reports/tonight", "relative path"),
        ("", "empty|relative"),
        ("s3:///tonight", "names no bucket"),
        ("/reports/None/", "part `None`"),
        ("ftp9://host/reports", "cannot open"),
    ],
)
def test_unusable_folder_is_refused_before_anything_is_uploaded(
    location: str, why: str, roughy: Emulator, nights: Nights
) -> None:
    ended = nights.run(report=location)
    assert isinstance(ended.error, RoughyUnusableTargetError), ended
    assert re.search(why, str(ended.error)), ended.error
    assert roughy.assets == []
    assert nights.xcoms["summary"].startswith("dag.task")


def test_part_with_a_slash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part must consist of"):
        write_report(tmp_path, [], part="../elsewhere")


# ---- As a task writes it


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("deferrable", [False, True])
def test_task_writes_the_report_of_its_night(
    deferrable: bool, roughy: Emulator, nights: Nights, folder: Path, tmp_path: Path
) -> None:
    (folder / "notes.mp3").write_bytes(b"x" * 100)
    before = roughy.balance
    roughy.progression = "manual" if deferrable else "immediate"
    report = tmp_path / "reports" / "tonight"
    ended = nights.run(
        report=f"{report}/", on_failed="return", deferrable=deferrable, before_resuming=lambda: roughy.settle()
    )
    assert ended.state == "success", ended.error
    assert (ended.waited == "triggerer") is deferrable
    assert nights.xcoms["report"] == f"{report}/"
    results = list(read_report(nights.xcoms["report"]))
    assert {Path(each.source).name: each.status for each in results} == {
        "a.mp3": "ready", "b.mp3": "ready", "c.mp3": "ready", "notes.mp3": "rejected"
    }  # fmt: skip
    assert {each.asset_id for each in results if each.status == "ready"} == set(ended.result)
    summary = json.loads((report / "summary.json").read_text())
    assert (summary["run_id"], summary["balance_before"], summary["balance_after"]) == (
        "night 1", before, before - 3
    )  # fmt: skip


@pytest.mark.usefixtures("patient")
def test_retry_replaces_the_report_of_a_failed_try(roughy: Emulator, nights: Nights, tmp_path: Path) -> None:
    roughy.progression = "manual"
    assert nights.run(report=tmp_path / "report", timeout=0.1).state == "failed"
    assert {each.status for each in read_report(tmp_path / "report")} == {"interrupted"}
    assert nights.xcoms["report"] == str(tmp_path / "report")
    assert re.search(r"\ninterrupted:\n- [abc]\.mp3: Asset .* was not done in time", nights.xcoms["summary"])
    roughy.settle()
    assert nights.run(report=tmp_path / "report", again=True).state == "success"
    assert [each.status for each in read_report(tmp_path / "report")] == ["ready"] * 3


@pytest.mark.usefixtures("patient")
def test_error_that_stops_the_batch_is_in_the_report(roughy: Emulator, nights: Nights, tmp_path: Path) -> None:
    ended = nights.run(report=tmp_path / "report", source=str(tmp_path / "nowhere"))
    assert ended.state == "failed"
    assert list(read_report(tmp_path / "report")) == []
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["error"] == str(ended.error)
    assert str(ended.error)[:50] in nights.xcoms["summary"]
    assert "Stopped by an error" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.usefixtures("patient")
def test_execution_timeout_leaves_a_report(roughy: Emulator, nights: Nights, folder: Path, tmp_path: Path) -> None:
    """Airflow raises its timeout from a signal handler."""
    (folder / "notes.mp3").write_bytes(b"x")
    roughy.progression = "manual"

    def expire(*_: object) -> None:
        raise AirflowTaskTimeout("Timeout")

    def expire_in_the_wait() -> None:
        while sum(bool(asset["stored_bytes"]) for asset in roughy.assets) < 3:
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, expire)
    waits = threading.Thread(target=expire_in_the_wait, daemon=True)
    waits.start()
    try:
        with pytest.raises(AirflowTaskTimeout):
            nights.run(report=tmp_path / "report")
        waits.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert {Path(each.source).name: each.status for each in read_report(tmp_path / "report")} == {
        "notes.mp3": "rejected",
        **dict.fromkeys(("a.mp3", "b.mp3", "c.mp3"), "interrupted"),
    }


@pytest.mark.usefixtures("patient")
def test_wait_that_no_triggerer_ends_leaves_a_report(roughy: Emulator, nights: Nights, tmp_path: Path) -> None:
    roughy.progression = "manual"
    options: dict[str, Any] = {**nights.options, "report": tmp_path / "report", "deferrable": True}
    context: Any = {"ti": TaskInstance(run_id="night 1")}
    with pytest.raises(TaskDeferred):
        RoughyIngestOperator(task_id="ingest", **options).execute(context)
    resumed = RoughyIngestOperator(task_id="ingest", **options)
    with pytest.raises(RoughyTimeoutError):
        resumed.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
    results = list(read_report(tmp_path / "report"))
    assert [each.status for each in results] == ["interrupted"] * 3
    assert {each.asset_id for each in results} == {asset["id"] for asset in roughy.assets}
    assert "is a triggerer running?" in str(results[0].reason)


@pytest.fixture
def no_folder(roughy: Emulator, tmp_path: Path) -> tuple[Path, Callable[[], None]]:
    """The folder of a report, and what makes it impossible to write there while the task waits."""
    roughy.progression = "manual"

    def resume() -> None:
        (tmp_path / "report").write_bytes(b"a file")
        roughy.settle()

    return tmp_path / "report", resume


@pytest.mark.usefixtures("patient")
def test_task_fails_if_its_report_cannot_be_written_and_a_retry_writes_it(
    roughy: Emulator, nights: Nights, no_folder: tuple[Path, Callable[[], None]], log: Callable[[], str]
) -> None:
    report, resume = no_folder
    ended = nights.run(report=report, deferrable=True, before_resuming=resume)
    assert isinstance(ended.error, RoughyTargetError), ended
    assert f"Writing the report to {report} failed: Target {report}/" in log()
    assert "report" not in nights.xcoms
    assert nights.xcoms["summary"].splitlines() == ["dag.task, run night 1", "3 ready"]
    report.unlink()
    assert nights.run(report=report, again=True).state == "success"
    assert len(roughy.assets) == 3
    assert [each.status for each in read_report(report)] == ["ready"] * 3


@pytest.mark.usefixtures("patient")
def test_unwritten_report_fails_no_task_that_a_retry_would_upload_again(
    nights: Nights, no_folder: tuple[Path, Callable[[], None]], log: Callable[[], str]
) -> None:
    report, resume = no_folder
    ended = nights.run(report=report, deferrable=True, before_resuming=resume, ledger=None)
    assert (ended.state, len(ended.result)) == ("success", 3)
    assert "Writing the report to" in log()


@pytest.mark.usefixtures("patient")
def test_unwritten_report_never_masks_the_error_of_the_task(
    nights: Nights, folder: Path, no_folder: tuple[Path, Callable[[], None]]
) -> None:
    report, resume = no_folder
    (folder / "notes.mp3").write_bytes(b"x")
    ended = nights.run(report=report, deferrable=True, before_resuming=resume)
    assert isinstance(ended.error, RoughyIngestFailedError), ended
    assert str(ended.error).startswith("3 ready, 1 rejected")


@pytest.mark.usefixtures("patient")
def test_task_warns_of_a_report_that_another_run_has_written(
    nights: Nights, tmp_path: Path, log: Callable[[], str]
) -> None:
    warning = f"Replacing the report of task dag.task of run night 1 in {tmp_path}/report: give each task and each run"
    for again in (False, True):
        nights.run(report=tmp_path / "report", again=again)
        assert warning not in log()
    nights.run(report=tmp_path / "report")
    assert warning in log()


@pytest.mark.usefixtures("patient")
def test_mapped_tasks_write_parts_of_one_report(nights: Nights, folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        ti = TaskInstance(run_id="night 1")
        ti.map_index = number
        options = {**nights.options, "source": str(folder / f"{name}.mp3"), "report": tmp_path / "report"}
        assert run_task(RoughyIngestOperator(task_id="ingest", **options), context={"ti": ti}).state == "success"
    assert [Path(each.source).name for each in read_report(tmp_path / "report")] == ["a.mp3", "b.mp3"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        f"{stem}-part-000{number}.{ending}"
        for stem, ending in (("index", "html"), ("results", "jsonl"), ("summary", "json"))
        for number in range(2)
    ]


@pytest.mark.usefixtures("patient")
def test_link_leads_to_the_report(nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nights.run(report=tmp_path / "tonight #1")
    assert "roughy_report_link" not in nights.xcoms
    assert str(tmp_path / "tonight #1") in nights.xcoms["summary"]
    monkeypatch.setenv("AIRFLOW__ROUGHY__REPORT_LINK", "https://reports.example.org/{path}?view=1")
    nights.run(report=tmp_path / "tonight #1")
    url = f"https://reports.example.org{tmp_path}/tonight%20%231/index.html?view=1"
    assert nights.xcoms["roughy_report_link"] == url
    assert nights.xcoms["summary"].endswith(f"Report: {url}")


@pytest.mark.parametrize(
    ("template", "page", "url"),
    [
        ("https://x.org/{path}", "s3://aws_default@reports/2026/index.html", "https://x.org/reports/2026/index.html"),
        ("https://{bucket}.x.org/{key}", "gs://reports/2026/index.html", "https://reports.x.org/2026/index.html"),
        ("https://x.org/{path}", "s3://reports/{key}/é.html", "https://x.org/reports/%7Bkey%7D/%C3%A9.html"),
        ("javascript:{path}", "s3://reports/index.html", None),
        ("https://x.org/", "s3://reports/index.html", None),
    ],
)
def test_address_of_a_report(template: str, page: str, url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ROUGHY__REPORT_LINK", template)
    assert report_url(page) == url
    assert len(report_links()) == (url is not None)
