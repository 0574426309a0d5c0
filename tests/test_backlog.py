"""An archive that several tasks share: a plan, and shards of its manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_roughy.compat import AirflowTaskTimeout, TaskDeferred
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyLedgerError, RoughyNotFoundError, RoughyTimeoutError
from airflow_provider_roughy.ingest import shard as shards_module
from airflow_provider_roughy.ingest.manifest import Header, Manifest, Planned
from airflow_provider_roughy.ingest.result import RecordingResult
from airflow_provider_roughy.ingest.shares import help_order, portions, shard_of
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, lease
from airflow_provider_roughy.observability.report import combine_report, read_report
from airflow_provider_roughy.operators import (
    RoughyIngestOperator,
    RoughyPlanIngestOperator,
    RoughyProduceOperator,
)
from airflow_provider_roughy.transfer.throttle import Throttle
from tests.running import Ended, TaskInstance, run_task
from tests.uploading import asked
from tests.zygote import Zygote

pytestmark = pytest.mark.usefixtures("patient")

SHARDS = 3
COUNT = 30


class Backlog:
    """A plan and its shards, as tasks of one DAG.

    :param folder: The archive.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.ledger = Ledger(home / "ledger")
        self.manifest = home / "plan.jsonl"
        self.results = home / "plan-results"
        self.xcoms: dict[str, Any] = {}

    def plan(self, run: str = "run 1", **options: Any) -> Ended:
        """Plan; what was pushed is in ``xcoms``."""
        ti = self._ti("plan", run, -1)
        places = {"source": str(self.folder), "ledger": self.ledger.uri, "manifest": str(self.manifest)}
        task = RoughyPlanIngestOperator(task_id="plan", **{**places, "shards": SHARDS, **options})
        return self._run(task, ti)

    def shard(self, number: int, run: str = "run 1", **options: Any) -> Ended:
        """Ingest one shard."""
        ti = self._ti("ingest", run, number)
        options = {"source": str(self.manifest), "poll_interval": 0.1, "timeout": 60, **options}
        task = RoughyIngestOperator(task_id="ingest", shard=number, **options)
        return self._run(task, ti)

    def lines(self, status: str = "planned") -> list[dict[str, Any]]:
        """Return the lines of the manifest with a status."""
        _, *lines = map(json.loads, self.manifest.read_text().splitlines())
        return [line for line in lines if line["status"] == status]

    def rows(self) -> list[RecordingResult]:
        """Return the results of all shards."""
        return list(read_report(self.results))

    def _ti(self, task_id: str, run: str, map_index: int) -> TaskInstance:
        ti = TaskInstance(run_id=run)
        ti.task_id, ti.map_index = task_id, map_index
        return ti

    def _run(self, task: Any, ti: TaskInstance) -> Ended:
        ended = run_task(task, context={"ti": ti})
        self.xcoms = {name: json.loads(value) for name, value in ti.xcoms.items()}
        return ended


@pytest.fixture
def backlog(tmp_path: Path, recordings: dict[str, Path]) -> Backlog:
    """Thirty recordings, no two of the same bytes, the oldest first."""
    folder = tmp_path / "archive"
    folder.mkdir()
    audio = recordings["audio"].read_bytes()
    for number in range(COUNT):
        file = folder / f"{number:02}.mp3"
        file.write_bytes(audio + bytes(number))
        os.utime(file, (1_770_000_000 + number,) * 2)
    return Backlog(folder, tmp_path)


def assert_each_once(backlog: Backlog, roughy: Emulator) -> None:
    """Judge by the bytes that Roughy has, and by the report."""
    wanted = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in backlog.folder.iterdir())
    assert sorted(asset["sha256"] for asset in roughy.assets if asset["stored_bytes"]) == wanted
    assert sorted(row.source for row in backlog.rows()) == sorted(map(str, backlog.folder.iterdir()))
    ready = {row.asset_id for row in backlog.rows() if row.status == "ready"}
    assert ready == {asset["id"] for asset in roughy.assets if asset["stored_bytes"]}


# ---- Pure functions


KEYS = st.lists(st.binary(min_size=20, max_size=20).map(bytes.hex), unique=True, max_size=200)


@given(KEYS, st.integers(1, 64))
def test_each_recording_belongs_to_one_shard(keys: list[str], shards: int) -> None:
    parts = [[key for key in keys if shard_of(key, shards) == shard] for shard in range(shards)]
    assert sorted(key for part in parts for key in part) == sorted(keys)


@given(st.integers(1, 64).flatmap(lambda shards: st.tuples(st.integers(0, shards - 1), st.just(shards))))
def test_a_shard_helps_all_others_and_starts_after_itself(numbers: tuple[int, int]) -> None:
    shard, shards = numbers
    assert sorted([shard, *help_order(shard, shards)]) == list(range(shards))
    assert sorted(portions(shard, shards)) == list(range(shards))
    assert portions(shard, shards)[0] == shard
    assert all((one + 1) % shards == other for one, other in pairwise([shard, *help_order(shard, shards)]))


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
PLANNED = st.builds(
    Planned,
    key=st.binary(min_size=20, max_size=20).map(bytes.hex),
    status=st.sampled_from(["planned", "deferred", "rejected"]),
    uri=TEXTS.filter(bool),
    size_bytes=st.integers(0, 2**40),
    version=TEXTS,
    credits=st.none() | st.integers(0, 10**6),
    seconds=st.none() | st.floats(0, 10**6),
    reason=st.none() | TEXTS.filter(bool),
    name=st.none() | TEXTS.filter(bool),
    storage=TEXTS,
    versions=st.dictionaries(TEXTS, TEXTS, max_size=3),
    path=st.none() | TEXTS.filter(bool),
    resumes=st.booleans(),
)
HEADER = Header("2026-01-01T00:00:00+00:00", "d", "t", "r", ["/a"], ["*"], True, "/ledger", "p", balance=7, spent=3)


@given(st.lists(PLANNED, max_size=20))
def test_a_manifest_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, lines: list[Planned]) -> None:
    assert [Planned.decode(line.encode()) for line in lines] == lines
    assert all(line.encode().count(b"\n") == 1 for line in lines)
    assert Header.decode(HEADER.encode()) == HEADER


def test_bandwidth_is_shared_by_all_transfers() -> None:
    now, lock = [0.0], threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            now[0] += seconds

    throttle = Throttle(1_000_000, clock=lambda: now[0], sleep=sleep)
    one, other = (throttle.limiting(lambda done, total: None) for _ in range(2))
    for block in range(1, 6):
        one(block * 1_000_000, 5_000_000)
        other(block * 1_000_000, 5_000_000)
    assert now[0] == pytest.approx(10.0)
    # A transfer that resumes in its middle has sent one block, and not all before it.
    throttle.limiting(lambda done, total: None)(50_000_000, 60_000_000)
    assert now[0] == pytest.approx(10.0 + 1.048576)


# ---- The plan


def test_plan_leaves_out_what_the_ledger_has(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    assert [ended.state for ended in map(backlog.shard, range(SHARDS))] == ["success"] * SHARDS
    (backlog.folder / "new.mp3").write_bytes((backlog.folder / "00.mp3").read_bytes() + b"new")
    backlog.plan("run 2")
    assert [Path(line["uri"]).name for line in backlog.lines()] == ["new.mp3"]
    assert backlog.xcoms["counts"] == {
        "planned": 1,
        "size_bytes": (backlog.folder / "new.mp3").stat().st_size,
        "deferred": 0,
        "rejected": 0,
        "already_ingested": COUNT,
    }


def test_plan_names_what_cannot_be_uploaded_again_on_a_retry(backlog: Backlog, log: Callable[[], str]) -> None:
    (backlog.folder / "tiny.mp3").write_bytes(b"x")
    (backlog.folder / "empty.mp3").touch()
    for _ in range(2):
        backlog.plan()
        rejected = {Path(line["uri"]).name: line["reason"] for line in backlog.lines("rejected")}
        assert rejected.keys() == {"tiny.mp3", "empty.mp3"}
        assert rejected["tiny.mp3"].startswith("it has 1 bytes")
        assert "tiny.mp3" in log()
    assert backlog.plan("run 2", stable_for=3600).state == "success"
    assert backlog.lines("rejected") == []
    assert len(backlog.lines("deferred")) == COUNT
    assert all("it may still be written to" in line["reason"] for line in backlog.lines("deferred"))


def test_budget_is_spent_by_the_oldest_over_all_plans_of_a_run(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(max_credits=10)
    first = [line["uri"] for line in backlog.lines()]
    assert first == [str(backlog.folder / f"{number:02}.mp3") for number in range(10)]
    assert {line["reason"] for line in backlog.lines("deferred")} == {"it costs 1 credit, and `max_credits` leaves 0"}
    assert backlog.shard(1).state == "success"
    assert len(roughy.assets) == 10, "a shard helps the others, and uploads nothing that is not planned"

    # In the same run, what was planned before counts as spent, also where an older file has come since.
    older = backlog.folder / "older.mp3"
    shutil.copyfile(backlog.folder / "00.mp3", older)
    older.write_bytes(older.read_bytes() + b"older")
    os.utime(older, (1_600_000_000,) * 2)
    for again in (1, 2):
        backlog.plan(max_credits=12)
        assert len(backlog.lines()) == 2, again
        assert str(older) == backlog.lines()[0]["uri"]
        assert json.loads(backlog.manifest.read_text().splitlines()[0])["spent"] == 10
    backlog.shard(0)
    assert sum(asset["state"] == "ready" for asset in roughy.assets) == 12
    backlog.plan(max_credits=12)
    assert backlog.lines() == []
    # The next run has a budget of its own.
    backlog.plan("run 2", max_credits=5)
    assert len(backlog.lines()) == 5


def test_what_a_run_has_planned_stays_planned_until_it_is_done(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(max_credits=10)
    planned = {line["key"] for line in backlog.lines()}
    older = backlog.folder / "older.mp3"
    older.write_bytes((backlog.folder / "00.mp3").read_bytes() + b"older")
    os.utime(older, (1_600_000_000,) * 2)
    backlog.plan(max_credits=10)
    assert {line["key"] for line in backlog.lines()} == planned


def test_budget_never_exceeds_the_balance(backlog: Backlog, roughy: Emulator) -> None:
    roughy.balance = 4
    backlog.plan(max_credits=10)
    assert len(backlog.lines()) == 4
    assert {line["reason"] for line in backlog.lines("deferred")} == {"it costs 1 credit, and the balance leaves 0"}


def test_price_list_is_a_manifest_of_which_nothing_is_uploaded(
    backlog: Backlog, roughy: Emulator, log: Callable[[], str]
) -> None:
    assert backlog.plan(dry_run=True).result == str(backlog.manifest)
    assert backlog.xcoms["counts"]["credits"] == COUNT
    assert {line["credits"] for line in backlog.lines()} == {1}
    assert "recording\n        1     0:00:03" in log()
    ended = backlog.shard(0)
    assert (ended.state, "price list" in str(ended.error)) == ("skipped", True)
    assert roughy.assets == []


def test_plan_of_a_project_that_does_not_exist_writes_nothing(backlog: Backlog) -> None:
    ended = backlog.plan(project_id="9b2d7a52-0000-4000-8000-000000000000")
    assert type(ended.error) is RoughyNotFoundError
    assert not backlog.manifest.exists()


def test_sources_of_several_connections_are_refused(backlog: Backlog) -> None:
    ended = backlog.plan(source=["s3://a@recordings/in/", "s3://b@recordings/in/"])
    assert (ended.state, "several connections: a, b" in str(ended.error)) == ("failed", True)


# Airflow 2 runs a task only in the main thread of a process.
def test_two_plans_at_once_leave_one_whole_manifest(backlog: Backlog) -> None:
    ended: list[Ended] = []
    threads = [threading.Thread(target=lambda run=run: ended.append(backlog.plan(run))) for run in ("run 1", "run 2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.state for each in ended] == ["success"] * 2, [each.error for each in ended]
    assert len(backlog.lines()) == COUNT


def test_plan_does_not_replace_another_file(backlog: Backlog) -> None:
    backlog.manifest.write_text("a list of mine\n")
    ended = backlog.plan()
    assert (ended.state, "is not replaced" in str(ended.error)) == ("failed", True)
    assert backlog.manifest.read_text() == "a list of mine\n"


@pytest.mark.parametrize("manifest", ["plan.jsonl", "/plans/None", "None"])
def test_plan_refuses_a_place_that_others_cannot_find(backlog: Backlog, manifest: str) -> None:
    ended = backlog.plan(manifest=manifest)
    assert (ended.state, "`manifest`" in str(ended.error)) == ("failed", True)


# ---- Shards


def test_shards_upload_each_planned_recording_once(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ROUGHY__REPORT_LINK", "https://reports.example.org/{path}")
    planned = backlog.plan()
    assert (planned.state, planned.result) == ("success", str(backlog.manifest))
    assert backlog.xcoms["counts"]["planned"] == len(backlog.lines()) == COUNT
    results = [backlog.shard(number) for number in range(SHARDS)]
    assert [ended.state for ended in results] == ["success"] * SHARDS, [ended.error for ended in results]
    assert sorted(Path(ended.result) for ended in results) == sorted(backlog.results.glob("results-*.jsonl"))
    assert_each_once(backlog, roughy)
    assert len(roughy.assets) == COUNT
    assert f"{backlog.results}/index-shard-0002-of-0003.html".lstrip("/") in str(backlog.xcoms)
    summary = json.loads((backlog.results / "summary-shard-0002-of-0003.json").read_text())
    assert summary["balance_after"] == roughy.balance


def test_captions_are_made_of_the_report_of_all_shards_once(backlog: Backlog, roughy: Emulator, tmp_path: Path) -> None:
    backlog.plan()
    assert [backlog.shard(number).state for number in range(SHARDS)] == ["success"] * SHARDS
    task = RoughyProduceOperator(
        task_id="produce",
        from_report=backlog.results,
        source_root=str(backlog.folder),
        captions="srt",
        target=f"{tmp_path}/out/{{source_stem}}.srt",
        ledger=backlog.ledger.uri,
        poll_interval=0.1,
    )
    assert len(backlog._run(task, backlog._ti("produce", "run 1", -1)).result) == COUNT
    wanted = sorted(f"{path.stem}.srt" for path in backlog.folder.iterdir())
    assert sorted(os.listdir(tmp_path / "out")) == wanted
    roughy.clear_requests()
    assert len(backlog._run(task, backlog._ti("produce", "run 2", -1)).result) == COUNT
    assert asked(roughy, "POST") == 0
    assert not [request.path for request in roughy.requests if "/export" in request.path]


@pytest.mark.parametrize("deferrable", [False, True])
def test_shards_wait_and_a_cleared_one_reports_the_same(backlog: Backlog, roughy: Emulator, deferrable: bool) -> None:
    roughy.progression = "polls=6"
    backlog.plan()
    ended = backlog.shard(1, deferrable=deferrable)
    assert (ended.state, ended.waited) == ("success", "triggerer" if deferrable else "")
    first = sorted(backlog.rows(), key=lambda row: row.source)
    assert [row.status for row in first] == ["ready"] * COUNT
    # Whatever there is to keep is in the ledger.
    assert all(len(json.dumps(value)) < 1500 for value in backlog.xcoms.values()), backlog.xcoms
    assert not [name for name in os.listdir(Path(backlog.ledger.uri) / "runs") if "waiting" in name]

    roughy.clear_requests()
    again = backlog.shard(1, deferrable=deferrable)
    assert (again.state, again.result) == ("success", ended.result)
    assert sorted(backlog.rows(), key=lambda row: row.source) == first
    assert {request.method for request in roughy.requests} <= {"GET"}
    # A shard that starts late has nothing to do.
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


def test_a_shard_whose_wait_no_triggerer_ends_reports_what_it_has_uploaded(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan(shards=1)
    options: dict[str, Any] = {"source": backlog.manifest, "shard": 0, "deferrable": True}
    context: Any = {"ti": backlog._ti("ingest", "run 1", 0)}
    with pytest.raises(TaskDeferred):
        RoughyIngestOperator(task_id="ingest", **options).execute(context)
    resumed = RoughyIngestOperator(task_id="ingest", **options)
    with pytest.raises(RoughyTimeoutError):
        resumed.resume_execution("__fail__", {"error": "Trigger timeout"}, context)
    assert {row.asset_id for row in backlog.rows()} == {asset["id"] for asset in roughy.assets}
    assert [row.status for row in backlog.rows()] == ["interrupted"] * COUNT
    roughy.settle()
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


def test_a_file_that_changed_since_the_plan_is_left_to_a_new_one(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    changed, gone = backlog.folder / "03.mp3", backlog.folder / "04.mp3"
    changed.write_bytes(changed.read_bytes() + b"more")
    gone.unlink()
    assert [ended.state for ended in map(backlog.shard, range(SHARDS))] == ["success"] * SHARDS
    left = {row.source: row.reason for row in backlog.rows() if row.status == "deferred"}
    assert left.keys() == {str(changed), str(gone)}
    assert all("a new plan" in str(reason) for reason in left.values())
    assert len(backlog.rows()) == COUNT
    assert len(roughy.assets) == COUNT - 2
    backlog.plan("run 2")
    assert [line["uri"] for line in backlog.lines()] == [str(changed)]


def test_a_failed_recording_fails_its_shard_only(backlog: Backlog, roughy: Emulator) -> None:
    (backlog.folder / "05.mp3").write_text("These are notes, whatever the name says. " * 50)
    backlog.plan()
    ended = [backlog.shard(number) for number in range(SHARDS)]
    assert sorted(each.state for each in ended) == ["failed", "success", "success"]
    [error] = [str(each.error) for each in ended if each.error]
    assert "05.mp3" in error
    assert "results-shard-" in error
    assert len(backlog.rows()) == COUNT
    assert [row.status for row in backlog.rows()].count("ready") == COUNT - 1


def test_a_shard_that_cannot_upload_says_what_it_has_not_started(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    roughy.inject(Fault(method="POST", path="/v1/assets", status=401, times=None))
    ended = backlog.shard(0)
    assert ended.error is not None
    assert "401" in str(ended.error)
    own = {line["uri"] for line in backlog.lines() if shard_of(line["key"], SHARDS) == 0}
    assert {row.source for row in backlog.rows()} == own
    roughy.clear_faults()
    assert [each.state for each in map(backlog.shard, range(SHARDS))] == ["success"] * SHARDS
    assert_each_once(backlog, roughy)


BROKEN: dict[str, tuple[Callable[[str], str | None], str]] = {
    "missing": (lambda text: None, "does not exist"),
    "empty": (lambda text: "", "it is empty"),
    "something else": (lambda text: "id,name\n1,a\n", "it is not JSON"),
    "no header": (lambda text: text.partition("\n")[2], "not the header of a manifest"),
    "newer": (lambda text: text.replace('"roughy_manifest": 1', '"roughy_manifest": 2'), "schema version 2"),
    "cut": (lambda text: text[:-20], "the line is cut off"),
    "line missing": (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "it was cut off or edited"),
    "damaged": (lambda text: text.replace('"size_bytes"', '"size"', 2), "`size_bytes` is missing"),
    "edited": (lambda text: text.replace('"version": "mtime=17', '"version": "mtime=18'), "it was edited"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_manifest_uploads_nothing(backlog: Backlog, roughy: Emulator, name: str) -> None:
    backlog.plan()
    break_it, why = BROKEN[name]
    text = break_it(backlog.manifest.read_text())
    backlog.manifest.unlink()
    if text is not None:
        backlog.manifest.write_text(text)
    ended = backlog.shard(0)
    assert ended.state == "failed"
    assert why in str(ended.error)
    assert roughy.assets == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_credits": 0}, "`max_credits` has no effect on a manifest"),
        ({"ledger": "/data/other"}, "the manifest was planned with"),
        ({"shards": 2, "number": 1, "ledger": None}, ""),
        ({"project_id": "01900000-0000-7000-8000-000000000009"}, "`project_id` is"),
        ({"project_id": "01900000-0000-7000-8000-000000000001"}, ""),
        ({"language": "de"}, "`language` is 'de'"),
        ({"number": 5}, "`shard` is 5, and there are 3 `shards`"),
    ],
)
def test_arguments_that_contradict_the_manifest_are_refused(
    backlog: Backlog, roughy: Emulator, options: dict[str, Any], why: str
) -> None:
    backlog.plan()
    ended = backlog.shard(options.pop("number", 0), **options)
    assert (ended.state == "failed") == bool(why), ended.error
    assert why in str(ended.error)


def test_a_folder_is_not_ingested_by_shards(backlog: Backlog, roughy: Emulator) -> None:
    task = RoughyIngestOperator(task_id="ingest", source=str(backlog.folder), shard=0, ledger=backlog.ledger.uri)
    ended = run_task(task)
    assert "`source` is no manifest" in str(ended.error)
    assert roughy.requests == []


# ---- Odd places and names


def test_all_manifests_of_a_run_together_keep_to_the_budget(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(max_credits=5)
    planned = [Path(line["uri"]) for line in backlog.lines()]
    first = backlog.manifest.read_bytes()
    hidden = backlog.folder.parent / "hidden"
    hidden.mkdir()
    for path in planned:
        shutil.move(path, hidden / path.name)
    backlog.plan(max_credits=5)
    assert backlog.lines() == []
    # A task that has read the first manifest is at work, and the files are there again.
    for path in planned:
        shutil.move(hidden / path.name, path)
    second = backlog.manifest.read_bytes()
    backlog.manifest.write_bytes(first)
    backlog.shard(0)
    backlog.manifest.write_bytes(second)
    backlog.plan(max_credits=5)
    assert (len(roughy.assets), backlog.lines()) == (5, [])


def test_budget_counts_what_the_run_has_planned_without_prices(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    first, *_ = backlog.lines()
    for path in backlog.folder.iterdir():
        if str(path) != first["uri"]:
            path.rename(path.with_suffix(".hidden"))
    backlog.shard(0)
    for path in backlog.folder.glob("*.hidden"):
        path.rename(path.with_suffix(".mp3"))
    backlog.plan(max_credits=5)
    assert (len(backlog.lines()), len(roughy.assets)) == (4, 1)
    assert json.loads(backlog.manifest.read_text().splitlines()[0])["spent"] == 1


@pytest.mark.parametrize("name", [b"new\nline.mp3", b"tab\t.mp3", "right\u202eleft.mp3".encode(), b"bad\xff.mp3"])
def test_any_file_name_is_planned_and_uploaded(backlog: Backlog, roughy: Emulator, name: bytes) -> None:
    for path in sorted(backlog.folder.iterdir())[1:]:
        path.unlink()
    [path] = backlog.folder.iterdir()
    os.rename(path, os.fsencode(backlog.folder) + b"/" + name)
    backlog.plan()
    assert [backlog.shard(number).state for number in range(SHARDS)] == ["success"] * SHARDS
    assert [row.status for row in backlog.rows()] == ["ready"], backlog.rows()


def test_any_object_name_is_planned_and_uploaded(
    backlog: Backlog, roughy: Emulator, s3: Any, recordings: dict[str, Path]
) -> None:
    names = ["in/tab\t.mp3", "in/right\u202eleft.mp3"]
    for number, name in enumerate(names):
        s3.put_object(Bucket="recordings", Key=name, Body=recordings["audio"].read_bytes() + bytes(number))
    places = {"source": "s3://recordings/in/", "source_conn_id": "s3"}
    assert backlog.plan(**places).state == "success"
    backlog.shard(0)
    assert [(row.status, row.reason) for row in backlog.rows()] == [("ready", None)] * len(names)


@pytest.mark.parametrize("wrap", [lambda path: [str(path)], lambda path: [path, path]])
def test_a_list_of_manifests_is_refused(backlog: Backlog, roughy: Emulator, wrap: Callable[[Path], Any]) -> None:
    backlog.plan()
    task = RoughyIngestOperator(task_id="ingest", source=wrap(backlog.manifest), ledger=backlog.ledger.uri)
    ended = run_task(task)
    assert (ended.state, "`source` is a list with a manifest" in str(ended.error)) == ("failed", True)
    assert asked(roughy, "POST") == 0


def test_a_manifest_may_be_a_path(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    assert backlog.shard(0, source=backlog.manifest).state == "success"
    assert len(roughy.assets) == COUNT


# ---- Several processes


@pytest.mark.timeout(180)
def test_others_finish_what_a_killed_shard_has_left(
    backlog: Backlog, roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    warm_up = {"source": str(recordings["audio"]), "ledger": str(tmp_path / "warm-up")}
    options = {"source": str(backlog.manifest), "poll_interval": 0.2}

    with Zygote(tmp_path, json.dumps(roughy.airflow_connection), **warm_up) as zygote:

        def start(*numbers: int, **more: Any) -> list[str | None]:
            children = [zygote.start("run 1", map_index=n, shard=n, **options, **more) for n in numbers]
            return [zygote.wait(child).state for child in children]

        # Claimed and not created, uploading, sent and not reported.
        for dies_at in (40, 130, 260):
            shutil.rmtree(backlog.ledger.uri, ignore_errors=True)
            shutil.rmtree(backlog.results, ignore_errors=True)
            roughy.reset()
            backlog.manifest.unlink(missing_ok=True)
            backlog.plan()
            assert start(1, dies_at=dies_at) == [None]
            assert start(0, 2) == ["success", "success"], dies_at
            assert_each_once(backlog, roughy)
            # Its retry finds nothing left to upload.
            roughy.clear_requests()
            assert start(1) == ["success"]
            assert asked(roughy, "POST") == asked(roughy, "PATCH") == 0
            assert_each_once(backlog, roughy)


@pytest.mark.timeout(180)
def test_a_failed_upload_of_a_helper_is_reported_once(
    backlog: Backlog, roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    warm_up = {"source": str(recordings["audio"]), "ledger": str(tmp_path / "warm-up")}
    options = {"source": str(backlog.manifest), "poll_interval": 0.2, "parallel": 1}
    with Zygote(tmp_path, json.dumps(roughy.airflow_connection), **warm_up) as zygote:
        # While its shard uploads; while its shard waits; and with a key that is rejected.
        for status, seconds in ((400, 0), (400, 6), (403, 6)):
            for path in backlog.manifest, Path(backlog.ledger.uri), backlog.results:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            roughy.reset()
            roughy.progression = f"seconds={seconds}"
            backlog.plan()
            own = sum(shard_of(line["key"], SHARDS) == 1 for line in backlog.lines())
            # The first recording with which it helps.
            roughy.inject(Fault(method="PATCH", nth=own + 1, delay=seconds / 2, status=status))
            helper = zygote.start("run 1", map_index=1, shard=1, **options)
            # It has claimed it, as its asset exists.
            while asked(roughy, "POST") <= own:
                time.sleep(0.02)
            others = [zygote.start("run 1", map_index=n, shard=n, **options) for n in (0, 2)]
            assert [zygote.wait(child).state for child in others] == ["success"] * 2
            ended = zygote.wait(helper)
            assert (ended.state, f"{status} " in ended.error) == ("failed", True)
            assert sorted(row.source for row in backlog.rows()) == sorted(map(str, backlog.folder.iterdir()))
            left = [str(row.reason) for row in backlog.rows() if row.status == "interrupted"]
            assert len([reason for reason in left if f"{status} " in reason]) == 1
            # With a key that is rejected, it does not wait for what it has uploaded either.
            still_preparing = own if status == 403 else 0
            assert len([reason for reason in left if "still preparing" in reason]) == len(left) - 1 == still_preparing
            # Its retry uploads it, and nobody else.
            assert zygote.wait(zygote.start("run 1", map_index=1, shard=1, **options)).state == "success"
            assert_each_once(backlog, roughy)
            assert len(roughy.assets) == COUNT


@pytest.mark.timeout(180)
def test_shards_at_once_meet_rarely(
    backlog: Backlog, roughy: Emulator, recordings: dict[str, Path], tmp_path: Path
) -> None:
    warm_up = {"source": str(recordings["audio"]), "ledger": str(tmp_path / "warm-up")}
    options = {"source": str(backlog.manifest), "poll_interval": 0.2}
    with Zygote(tmp_path, json.dumps(roughy.airflow_connection), **warm_up) as zygote:
        roughy.reset()
        backlog.plan()
        first = [zygote.start("run 1", map_index=n, shard=n, **options) for n in range(SHARDS)]
        # Start shard 1 twice, as Airflow does when it misses the heartbeat of a task that still runs.
        second = zygote.start("run 1", map_index=1, shard=1, **options)
        states = [zygote.wait(child).state for child in [*first, second]]
        assert states.count("success") >= SHARDS, states
        assert zygote.wait(zygote.start("run 1", map_index=1, shard=1, **options)).state == "success"
    assert_each_once(backlog, roughy)
    assert len(roughy.assets) <= COUNT + 4


def test_a_shard_leaves_what_an_active_run_uploads(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog.plan()
    line = backlog.lines()[7]
    planned = Planned.decode(json.dumps(line).encode())
    with backlog.manifest.open("rb") as file:
        header = Manifest("plan", file).header
    other = ClaimOwner("other.ingest", "night", "1")
    from airflow_provider_roughy.ledger.entries import Version

    identity = planned.identity(header).to_dict()
    assert backlog.ledger.create_version(Version(planned.key, 1, other, planned.uri, identity))
    backlog.ledger.write_lease(other, time.time() + lease.LEASE_SECONDS)
    assert [ended.state for ended in map(backlog.shard, range(SHARDS))] == ["success"] * SHARDS
    [left] = [row for row in backlog.rows() if row.status != "ready"]
    assert (left.source, left.status) == (planned.uri, "deferred")
    assert "other.ingest, run night holds the claim" in str(left.reason)
    assert len(backlog.rows()) == COUNT
    # A shard ends as soon as the others have renewed their leases.
    sibling = ClaimOwner("dag.ingest", "run 2[1]", "1")
    backlog.ledger.write_lease(sibling, time.time() + lease.LEASE_SECONDS)
    monkeypatch.setattr(shards_module, "_WATCH_SECONDS", 0.05)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.5):
            backlog.ledger.write_lease(sibling, time.time() + lease.LEASE_SECONDS)

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        assert backlog.shard(0, "run 2").state == "success"
    finally:
        ended.set()
        renewing.join()


def test_a_shard_says_what_is_to_be_paid(backlog: Backlog, roughy: Emulator, log: Callable[[], str]) -> None:
    # Each costs a credit, and is charged when it is uploaded: eight are created before the first is charged.
    roughy.balance = 3
    roughy.inject(Fault(method="PATCH", path="/v1/uploads/*", delay=1.0, times=None))
    backlog.plan(shards=1)
    assert backlog.shard(0, on_pending_payment="return", parallel=8).state == "success"
    unpaid = [row.status for row in backlog.rows()].count("pending_payment")
    said = re.search(r"(\d+) recordings? (?:is|are) not paid for: (\d+) credits? needed, the balance is 0", log())
    assert said is not None
    assert (int(said[1]), int(said[2])) == (unpaid, unpaid)
    assert unpaid


def test_a_shard_that_waits_leaves_the_lease_of_another_live_try(
    backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog.plan()
    sibling, other_try = ClaimOwner("dag.ingest", "run 1[1]", "1"), ClaimOwner("dag.ingest", "run 1[0]", "another")
    backlog.ledger.write_lease(sibling, time.time() + lease.LEASE_SECONDS)
    monkeypatch.setattr(shards_module, "_WATCH_SECONDS", 0.05)
    read_lease, checks = Ledger.read_lease, []

    def read(ledger: Ledger, owner: Any) -> Any:
        if str(owner) == str(sibling):
            checks.append(owner)
            if len(checks) == 1:
                backlog.ledger.write_lease(other_try, time.time() + lease.LEASE_SECONDS)
            if len(checks) == 4:
                backlog.ledger.write_lease(sibling, 0.0)
        return read_lease(ledger, owner)

    monkeypatch.setattr(Ledger, "read_lease", read)
    assert backlog.shard(0).state == "success"
    assert len(checks) >= 4
    assert backlog.ledger.is_alive(other_try)


def test_a_shard_that_cannot_renew_its_lease_ends_as_usual(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch, log: Callable[[], str]
) -> None:
    backlog.plan()
    sibling = ClaimOwner("dag.ingest", "run 1[1]", "1")
    backlog.ledger.write_lease(sibling, time.time() + lease.LEASE_SECONDS)
    monkeypatch.setattr(shards_module, "_WATCH_SECONDS", 0.05)
    write_lease = Ledger.write_lease
    failed: list[ClaimOwner] = []

    def write(ledger: Ledger, owner: ClaimOwner, until: float) -> None:
        if until and owner.run_key.endswith("[0]") and asked(roughy, "PATCH") == COUNT and not failed:
            failed.append(owner)
            write_lease(backlog.ledger, sibling, 0.0)
            raise RoughyLedgerError("the storage is busy")
        write_lease(ledger, owner, until)

    monkeypatch.setattr(Ledger, "write_lease", write)
    assert backlog.shard(0).state == "success"
    assert failed
    assert "Renewing the lease of" in log()


def test_shards_that_end_together_do_not_wait_for_the_next_renewal(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    # None of them ends before all are at work.
    roughy.inject(Fault(method="PATCH", times=None, delay=0.2))
    started = time.monotonic()
    with ThreadPoolExecutor(SHARDS) as pool:
        assert [ended.state for ended in pool.map(backlog.shard, range(SHARDS))] == ["success"] * SHARDS
    assert time.monotonic() - started < lease.RENEW_SECONDS
    assert_each_once(backlog, roughy)


@pytest.mark.parametrize("is_in_the_uri", [False, True])
def test_archive_manifest_ledger_and_report_are_in_a_storage(
    backlog: Backlog, roughy: Emulator, s3: Any, recordings: dict[str, Path], is_in_the_uri: bool
) -> None:
    conn_ids = {} if is_in_the_uri else dict.fromkeys(("source_conn_id", "ledger_conn_id", "manifest_conn_id"), "s3")
    bucket = "s3://s3@recordings" if is_in_the_uri else "s3://recordings"
    audio = recordings["audio"].read_bytes()
    names = [f"in/{number}/a b{number}.mp3" for number in range(6)]
    for number, name in enumerate(names):
        s3.put_object(Bucket="recordings", Key=name, Body=audio + bytes(number))
    planned = backlog.plan(
        source=f"{bucket}/in/",
        recursive=True,
        ledger=f"{bucket}/ledger",
        manifest=f"{bucket}/plans/one.jsonl",
        **conn_ids,
    )
    # The connection of the manifest is a part of its URI, so that the shards need no other argument.
    assert planned.result == "s3://s3@recordings/plans/one.jsonl"
    s3.put_object(Bucket="recordings", Key=names[2], Body=audio + b"changed")
    ended = [backlog.shard(number, source=planned.result) for number in range(SHARDS)]
    assert [each.state for each in ended] == ["success"] * SHARDS, [each.error for each in ended]
    assert len(roughy.assets) == 5
    rows = list(read_report("s3://s3@recordings/plans/one-results/"))
    assert rows == [row for each in ended for row in read_report(each.result) if not row.elsewhere]
    assert sorted(row.source for row in rows) == sorted(f"s3://recordings/{name}" for name in names)
    assert [row.source for row in rows if row.status == "deferred"] == [f"s3://recordings/{names[2]}"]


# ---- Whatever goes wrong, the report has each recording once


def assert_reported_once(backlog: Backlog) -> None:
    assert sorted(row.source for row in backlog.rows()) == sorted(map(str, backlog.folder.iterdir()))


def ingest(backlog: Backlog, number: int, **options: Any) -> tuple[RoughyIngestOperator, Any]:
    task = RoughyIngestOperator(task_id="ingest", source=str(backlog.manifest), shard=number, **options)
    return task, {"ti": backlog._ti("ingest", "run 1", number)}


SHARD_1_OWNER = ClaimOwner("dag.ingest", "run 1[1]", "1")


def test_recordings_that_fail_in_each_try_are_reported(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    for _ in range(2):  # A try, and its retry.
        roughy.inject(Fault(method="PATCH", status=400, times=None))
        assert backlog.shard(0, parallel=1).state != "success"
    roughy.clear_faults()
    assert [backlog.shard(number).state for number in (1, 2)] == ["success"] * 2
    assert_reported_once(backlog)


def test_a_rejected_key_during_the_wait_still_reports_all(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan(shards=1)
    backlog.shard(0, timeout=0.3)
    roughy.inject(Fault(path="/v1/assets*", method="GET", status=401, times=None))
    assert backlog.shard(0).state == "failed"
    assert_reported_once(backlog)


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_nothing_that_a_backlog_writes_holds_a_secret(
    backlog: Backlog, roughy: Emulator, method: str, caplog: pytest.LogCaptureFixture, log: Callable[[], str]
) -> None:
    caplog.set_level(logging.DEBUG)
    backlog.plan()
    page = f"<html>Authorization: Bearer {roughy.api_key}</html>"
    told = ""
    # A gateway's page, and errors of Roughy, that repeat what was sent; a mended service in the end.
    for number, status in enumerate((502, 404, 400, 401)):
        body: Any = page if status == 502 else {"error": {"code": "odd", "message": page}}
        roughy.inject(Fault(method=method, status=status, body=body, nth=2, times=2))
        told += repr(backlog.shard(number % SHARDS, parallel=1, timeout=5)) + json.dumps(backlog.xcoms)
        roughy.clear_faults()
    for number in range(SHARDS):
        told += repr(backlog.shard(number)) + json.dumps(backlog.xcoms)
    written = [path for path in backlog.folder.parent.rglob("*") if path.is_file() and path.suffix != ".mp3"]
    assert {"plan.jsonl", "index-shard-0000-of-0003.html", "results-shard-0000-of-0003.jsonl"} <= {
        path.name for path in written
    }
    told += caplog.text + log() + "".join(path.read_text() for path in written)
    uploads = {request.path.rpartition("/")[2] for request in roughy.requests if request.method == "PATCH"}
    assert len(uploads) >= COUNT
    assert not [secret for secret in (roughy.api_key, *uploads) if secret in told]


def test_a_failed_upload_of_a_forgotten_recording_fails(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(shards=1)
    backlog.shard(0)
    backlog.ledger.forget(backlog.lines()[0]["key"])
    roughy.inject(Fault(method="PATCH", status=400, times=None))
    assert backlog.shard(0).state != "success"
    assert [row.status for row in backlog.rows()].count("ready") == COUNT - 1
    assert_reported_once(backlog)


def test_a_file_that_was_changed_has_one_result(backlog: Backlog, roughy: Emulator, tmp_path: Path) -> None:
    backlog.plan(shards=1)
    backlog.shard(0)
    file = backlog.folder / "03.mp3"
    file.write_bytes(file.read_bytes() + b"changed")
    # The same run, cleared.
    backlog.plan(shards=1)
    roughy.inject(Fault(method="PATCH", status=400, times=None))
    assert backlog.shard(0).state != "success"
    assert {row.source: row.status for row in backlog.rows() if row.status != "ready"} == {str(file): "interrupted"}
    assert len(backlog.rows()) == COUNT
    roughy.clear_faults()
    assert backlog.shard(0).state == "success"
    assert sorted(row.source for row in backlog.rows()) == sorted(map(str, backlog.folder.iterdir()))
    assert {row.status for row in backlog.rows()} == {"ready"}


def test_others_upload_what_a_shard_could_not_start(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    roughy.inject(Fault(method="POST", path="/v1/assets", status=401, times=None))
    assert backlog.shard(0).state == "failed"
    roughy.clear_faults()
    assert [backlog.shard(number).state for number in (1, 2)] == ["success"] * 2
    assert_reported_once(backlog)
    assert len(roughy.assets) >= COUNT - 4
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


def test_a_timeout_during_an_upload_still_reports_all(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog.plan()
    roughy.inject(Fault(method="PATCH", nth=4, delay=8))
    tick = shards_module.Shard._tick

    def expire(self: Any, pool: Any) -> None:
        if self._shard == 0 and asked(roughy, "POST") >= 4:
            raise AirflowTaskTimeout("execution_timeout")
        tick(self, pool)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module.Shard, "_tick", expire)
        task, context = ingest(backlog, 0, parallel=1)
        with pytest.raises(AirflowTaskTimeout):
            task.execute(context)
    assert [backlog.shard(number).state for number in (1, 2)] == ["success"] * 2
    assert_reported_once(backlog)
    # It knows its own claim.
    assert not [row for row in backlog.rows() if "run 1[0] holds" in str(row.reason)]


def test_a_shard_that_others_have_replaced_reports_no_failures(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan()
    task, context = ingest(backlog, 1, deferrable=True)
    with pytest.raises(TaskDeferred):
        task.execute(context)
    # As if no triggerer had run for ten minutes.
    backlog.ledger.write_lease(SHARD_1_OWNER, time.time() - 1)
    roughy.settle()
    assert [backlog.shard(number).state for number in (0, 2)] == ["success"] * 2
    with pytest.raises(RoughyTimeoutError):
        ingest(backlog, 1, deferrable=True)[0].resume_execution("__fail__", {"error": "Trigger timeout"}, context)
    assert_each_once(backlog, roughy)


class Killed(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("step", ["append_report", "remove_versions", "write_report"])
def test_others_report_what_a_dead_shard_has_stored(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    backlog.plan()

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step == "write_report":
            # It has stored everything, and only its report is missing.
            patch.setattr("airflow_provider_roughy.operators.shards.write_report", die)
        else:
            patch.setattr(Ledger, step, die)
        task, context = ingest(backlog, 1, poll_interval=0.1)
        task.execute(context)
    backlog.ledger.write_lease(SHARD_1_OWNER, time.time() - 1)
    assert [backlog.shard(number).state for number in (0, 2)] == ["success"] * 2
    assert_each_once(backlog, roughy)
    assert "No results of 1 shard of 3: 1." in str(combine_report(backlog.results).facts.error)
    # It is started again after all.
    assert backlog.shard(1).state == "success"
    assert_each_once(backlog, roughy)
    assert combine_report(backlog.results).facts.error is None


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_parts_of_another_number_of_shards_count_once(backlog: Backlog, roughy: Emulator, shards: int) -> None:
    backlog.plan()
    backlog.shard(0)
    assert all(backlog.shard(number, shards=shards).state == "success" for number in range(shards))
    assert_each_once(backlog, roughy)


def test_a_manifest_of_an_earlier_run_reports_all_of_it_again(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan()
    assert [backlog.shard(number).state for number in range(SHARDS)] == ["success"] * SHARDS
    assert [backlog.shard(number, "run 2").state for number in range(SHARDS)] == ["success"] * SHARDS
    assert backlog.xcoms["counts"] == {"already_ingested": len(own_of(backlog, SHARDS - 1)), "credits": 0}
    assert_each_once(backlog, roughy)
    assert combine_report(backlog.results).counts == {"ready": COUNT}
    shutil.rmtree(backlog.results)
    assert backlog.shard(0, "run 3", shards=1).state == "success"
    assert combine_report(backlog.results).counts == {"ready": COUNT}


def own_of(backlog: Backlog, shard: int) -> list[str]:
    return [line["uri"] for line in backlog.lines() if shard_of(line["key"], SHARDS) == shard]


def test_a_wait_whose_state_is_deleted_starts_again(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan(shards=1)
    task, context = ingest(backlog, 0, deferrable=True)
    with pytest.raises(TaskDeferred):
        task.execute(context)
    roughy.settle()
    context["ti"].xcoms.clear()
    event: dict[str, Any] = {"batch": []}
    resumed = ingest(backlog, 0, deferrable=False)[0]
    assert resumed.execute_complete(context, event) == str(backlog.results / "results-shard-0000-of-0001.jsonl")
    assert_each_once(backlog, roughy)


@pytest.mark.timeout(60)
def test_tasks_mapped_over_manifests_do_not_wait_for_each_other(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(shards=1)
    backlog.ledger.write_lease(ClaimOwner("dag.ingest", "run 1[0]", "1"), time.time() + lease.LEASE_SECONDS)
    task, context = ingest(backlog, 0, shards=1)
    task.shard, context["ti"].map_index = None, 1
    task.execute(context)
    assert_each_once(backlog, roughy)


def test_a_price_list_does_not_replace_the_plan_of_its_run(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(max_credits=5)
    backlog.shard(0)
    ended = backlog.plan(max_credits=5, dry_run=True)
    assert (ended.state, "does not replace it" in str(ended.error)) == ("failed", True)
    backlog.plan(max_credits=5)
    assert backlog.lines() == []


def test_budget_counts_what_the_run_has_sent(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan(pattern="00.mp3")  # Without prices.
    backlog.shard(0, timeout=0.3)
    backlog.plan(max_credits=5)
    assert [line["credits"] for line in backlog.lines()] == [1] * 5
