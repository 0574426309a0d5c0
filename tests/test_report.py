"""The report of a batch: files for programs and for people, and the text for notifiers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.exceptions import RoughyUnusableSourceError, RoughyUnusableTargetError
from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.observability.report import read_report, write_report
from airflow_provider_roughy.observability.report_summary import ReportFacts
from tests.ingesting import Nights

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
    assert __import__("re").search(why, str(ended.error)), ended.error
    assert roughy.assets == []
    assert nights.xcoms["summary"].startswith("dag.task")


def test_part_with_a_slash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="part must consist of"):
        write_report(tmp_path, [], part="../elsewhere")


# ---- As a task writes it


@pytest.mark.usefixtures("connection")
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
    assert sorted(each.asset_id for each in results if each.status == "ready") == sorted(ended.result)
    summary = json.loads((report / "summary.json").read_text())
    assert (summary["run_id"], summary["balance_before"], summary["balance_after"]) == (
        "night 1", before, before - 3
    )  # fmt: skip
