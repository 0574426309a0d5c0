"""An archive that several tasks share, whose storages, manifest or arguments are not as they were."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.compat import TaskDeferred
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyLedgerError, RoughyProtocolError
from airflow_provider_roughy.ingest import journal
from airflow_provider_roughy.ingest import shard as shards
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.ledger.entries import result_name, version_name
from airflow_provider_roughy.observability.report import combine_report, read_report
from airflow_provider_roughy.operators import RoughyIngestOperator, RoughyProduceOperator
from airflow_provider_roughy.transfer.filesystem import FileSystem
from airflow_provider_roughy.transfer.storage import check_no_password, without_secrets
from tests.running import _first_event
from tests.test_backlog import COUNT, SHARDS, Backlog, assert_each_once, ingest
from tests.test_backlog import backlog as backlog

pytestmark = [pytest.mark.usefixtures("patient"), pytest.mark.once]

SECRET = "wJalr/XUtnFEMI"


def uploads(roughy: Emulator) -> int:
    return sum(bool(asset["stored_bytes"]) for asset in roughy.assets)


def begin_wait(backlog: Backlog, **options: Any) -> tuple[TaskDeferred, Any]:
    """Run the only shard until it waits in the triggerer."""
    task, context = ingest(backlog, 0, deferrable=True, on_failed="return", **options)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(context)
    return deferred.value, context


def resume(backlog: Backlog, deferred: TaskDeferred, context: Any, *, event: Any = None) -> Any:
    """Continue the shard after its wait."""
    event = event or asyncio.run(_first_event(json.dumps(deferred.trigger.serialize())))
    task, _ = ingest(backlog, 0, deferrable=True, on_failed="return")
    kwargs = {**(deferred.kwargs or {}), "event": event}
    return task.resume_execution(deferred.method_name, kwargs, context)


# ---- The ledger


@pytest.mark.parametrize("there", ["nothing", "another ledger"])
@pytest.mark.parametrize("max_credits", [None, 5])
def test_shard_without_the_ledger_of_the_plan_uploads_nothing(
    backlog: Backlog, roughy: Emulator, there: str, max_credits: int | None
) -> None:
    backlog.plan(max_credits=max_credits, shards=2)
    assert backlog.shard(0).state == "success"
    sent = uploads(roughy)
    # The worker of the other shard has a disk of its own at that path.
    Path(backlog.ledger.uri).rename(f"{backlog.ledger.uri}-of-the-first-worker")
    if there == "another ledger":
        backlog.ledger.check()
    ended = backlog.shard(1)
    assert (ended.state, "this worker finds" in str(ended.error)) == ("failed", True)
    assert "Mount the volume" in str(ended.error)
    assert uploads(roughy) == sent
    assert there == "another ledger" or not Path(backlog.ledger.uri).exists()


def test_ledger_that_vanishes_is_not_taken_for_empty(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog.plan(shards=1)
    assert backlog.shard(0).state == "success"
    away = f"{backlog.ledger.uri}-unmounted"

    def unmount(ledger: Any, *args: Any, do: Any, **options: Any) -> Any:
        if Path(backlog.ledger.uri).exists():
            os.rename(backlog.ledger.uri, away)
        return do(ledger, *args, **options)

    def mount() -> None:
        if Path(away).exists():
            os.rename(away, backlog.ledger.uri)

    # In the middle of the plan, and at the end of a shard.
    snapshot, leave = Ledger.snapshot, shards.Shard.leave_waiting
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "snapshot", lambda self: unmount(self, do=snapshot))
        ended = backlog.plan("run 2")
    mount()
    assert ended.state != "success"
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shard, "leave_waiting", lambda self: unmount(self, do=leave))
        ended = backlog.shard(0)
    mount()
    assert ended.state != "success"
    assert {row.status for row in backlog.rows()} == {"ready"}


def test_ledger_by_content_refuses_a_manifest_by_location(backlog: Backlog, roughy: Emulator, tmp_path: Path) -> None:
    backlog.plan("run 1", shards=1)
    first, backlog.manifest = backlog.manifest, tmp_path / "plan 2.jsonl"
    backlog.plan("run 2", shards=1, identity="content")
    assert backlog.shard(0, "run 2").state == "success"
    backlog.manifest = first
    ended = backlog.shard(0, "run 1")
    assert (ended.state, "plan again" in str(ended.error)) == ("failed", True)
    assert uploads(roughy) == COUNT


def test_shard_that_is_done_may_be_cleared_after_the_ledger_began_to_identify_by_content(
    backlog: Backlog, roughy: Emulator
) -> None:
    backlog.plan(shards=1)
    assert backlog.shard(0).state == "success"
    backlog.ledger.identify_by_content()
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


def test_budget_of_a_plan_by_location_is_that_of_the_plan_by_content(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(shards=1, max_credits=COUNT)
    backlog.ledger.identify_by_content()
    assert backlog.shard(0).state == "failed"
    backlog.plan(shards=1, max_credits=COUNT)
    assert len(backlog.lines()) == COUNT
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


@pytest.mark.parametrize("name", ["archive ?", "[archive]"])
def test_ledger_whose_name_looks_like_a_glob(backlog: Backlog, roughy: Emulator, s3: Any, name: str) -> None:
    for path in backlog.folder.glob("[12]*.mp3"):
        path.unlink()
    backlog.plan(ledger=f"s3://recordings/{name}/ledger", ledger_conn_id="s3", shards=1)
    others = [f"s3://recordings/{other}/ledger" for other in ("archive 1", "a")]
    for other in others:
        ledger = Ledger(other, conn_id="s3")
        ledger.check()
        for line in backlog.lines():
            for n in range(1, 4):
                ledger._folder.create(version_name(line["key"], n), b"{}")
    before = [sorted(Ledger(other, conn_id="s3").snapshot().open) for other in others]
    for _ in range(2):
        assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)
    assert Ledger(f"s3://recordings/{name}/ledger", conn_id="s3").snapshot().open == {}
    assert [sorted(Ledger(other, conn_id="s3").snapshot().open) for other in others] == before


def test_damaged_state_of_a_wait_is_an_error_and_a_retry_reports_all(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan(shards=1)
    deferred, context = begin_wait(backlog)
    roughy.settle()
    for path in (Path(backlog.ledger.uri) / "runs").glob("*waiting-*.json"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RoughyLedgerError, match="cannot be read"):
        resume(backlog, deferred, context)
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


# ---- The budget


def test_budget_is_kept_if_the_earlier_manifest_cannot_be_looked_at(
    backlog: Backlog, roughy: Emulator, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = FileSystem.info

    def forbidden(self: FileSystem, path: str) -> Any:
        if path.endswith("plan.jsonl"):
            raise PermissionError("Forbidden")
        return info(self, path)

    monkeypatch.setattr(FileSystem, "info", forbidden)
    manifest = "s3://s3@recordings/plans/plan.jsonl"
    for _ in range(3):
        ended = backlog.plan(manifest=manifest, shards=1, max_credits=5)
        assert (ended.state, "cannot be checked" in str(ended.error)) == ("failed", True)
    assert roughy.assets == []


def test_budget_counts_what_was_deleted_since(backlog: Backlog, roughy: Emulator, hook: Any) -> None:
    roughy.progression = "manual"
    before = roughy.balance
    for _ in range(3):
        backlog.plan(shards=1, max_credits=5)
        if not backlog.lines():
            break
        deferred, context = begin_wait(backlog)
        roughy.settle()
        for asset in list(roughy.assets):
            hook.delete_asset(asset["id"])
        resume(backlog, deferred, context)
    assert before - roughy.balance <= 5


# ---- The manifest and the report


def test_clearing_the_whole_run_keeps_what_is_done_in_the_report(
    backlog: Backlog, roughy: Emulator, tmp_path: Path
) -> None:
    backlog.plan()
    roughy.inject(Fault(method="PATCH", status=400, times=1))
    assert "success" in [backlog.shard(number).state for number in range(SHARDS)]
    roughy.clear_faults()
    backlog.plan()
    assert len(backlog.lines()) + len(backlog.lines("done")) == COUNT
    assert backlog.xcoms["counts"]["planned"] <= 2
    assert [backlog.shard(number).state for number in range(SHARDS)] == ["success"] * SHARDS
    assert_each_once(backlog, roughy)
    captions = RoughyProduceOperator(
        task_id="captions",
        from_report=str(backlog.results),
        captions="srt",
        target=f"{tmp_path}/captions/{{source_name}}.srt",
        ledger=backlog.ledger.uri,
        poll_interval=0.1,
        timeout=60,
    )
    roughy.progression = "immediate"
    assert len(backlog._run(captions, backlog._ti("captions", "run 1", -1)).result) == COUNT


def test_clearing_the_whole_run_after_a_kill_counts_each_recording_once(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: Any) -> None:
        raise Killed

    backlog.plan(shards=1, max_credits=COUNT)
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "store", lambda *args, **options: None)
        patch.setattr(shards.Shard, "leave_waiting", die)
        with pytest.raises(Killed):
            backlog.shard(0)
    assert uploads(roughy) == COUNT
    backlog.plan(shards=1, max_credits=COUNT)
    assert backlog.lines("deferred") == []
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


@pytest.mark.parametrize("change", ["removed", "renamed"])
def test_clearing_the_whole_run_keeps_files_that_were_moved_in_the_report(
    backlog: Backlog, roughy: Emulator, change: str
) -> None:
    backlog.plan(shards=1, max_credits=COUNT)
    assert backlog.shard(0).state == "success"
    wanted = sorted(row.source for row in backlog.rows())
    for path in backlog.folder.glob("1*.mp3"):
        if change == "removed":
            path.unlink()
        else:
            path.rename(backlog.folder.parent / path.name)
    for _ in range(2):
        backlog.plan(shards=1, max_credits=COUNT)
        assert (len(backlog.lines("done")), backlog.lines()) == (COUNT, [])
        assert backlog.shard(0).state == "success"
        assert sorted(row.source for row in backlog.rows()) == wanted


def test_budget_counts_what_was_done_without_prices(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(shards=1, pattern="0*.mp3")
    assert backlog.shard(0).state == "success"
    backlog.plan(shards=1, pattern="0*.mp3")
    for _ in range(2):
        backlog.plan(shards=1, max_credits=15)
        assert backlog.shard(0).state == "success"
        assert uploads(roughy) == 15


def test_budget_counts_what_is_done_once_over_plans_with_and_without_prices(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(shards=1, pattern="0*.mp3", max_credits=COUNT)
    assert backlog.shard(0).state == "success"
    for max_credits in (None, 15, None, 15):
        backlog.plan(shards=1, pattern="0*.mp3", max_credits=max_credits)
        assert json.loads(backlog.manifest.read_text().splitlines()[0])["spent"] == 10
    backlog.plan(shards=1, max_credits=15)
    assert len(backlog.lines()) == 5


def test_damaged_result_is_reported_as_such(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(shards=1)
    assert backlog.shard(0).state == "success"
    backlog.plan(shards=1)
    key = backlog.lines("done")[0]["key"]
    (Path(backlog.ledger.uri) / result_name(key)).write_bytes(b"{")
    for path in (Path(backlog.ledger.uri) / "runs").iterdir():
        path.unlink()
    backlog.shard(0, on_failed="return")
    (row,) = (row for row in backlog.rows() if row.status != "ready")
    assert (row.status, "cannot be read" in (row.reason or "")) == ("interrupted", True)


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0)])
def test_no_shard_is_missing_whatever_the_order_of_the_tasks(
    backlog: Backlog, roughy: Emulator, tmp_path: Path, order: tuple[int, ...]
) -> None:
    backlog.plan()
    for report in (None, str(tmp_path / "report")):
        for index, number in enumerate(order):
            task, context = ingest(backlog, number, report=report, poll_interval=0.1)
            context["ti"].map_index = index
            task.execute(context)
        summary = combine_report(report or str(backlog.results))
        assert (summary.facts.error, summary.counts["ready"]) == (None, COUNT)


def test_what_is_done_and_forgotten_is_not_uploaded_beyond_the_plan(backlog: Backlog, roughy: Emulator) -> None:
    backlog.plan(shards=1, max_credits=5)
    backlog.shard(0)
    backlog.plan(shards=1, max_credits=5)
    backlog.ledger.forget(backlog.lines("done")[0]["key"])
    assert backlog.shard(0).state == "success"
    assert uploads(roughy) == 5


def test_tasks_mapped_over_manifests_share_a_report(backlog: Backlog, roughy: Emulator, tmp_path: Path) -> None:
    manifests = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for manifest, pattern in zip(manifests, ("0*.mp3", "1*.mp3"), strict=True):
        backlog.plan(manifest=str(manifest), pattern=pattern)
    report = tmp_path / "report"
    for index, manifest in enumerate(manifests):
        task = RoughyIngestOperator(task_id="ingest", source=str(manifest), report=str(report), poll_interval=0.1)
        assert backlog._run(task, backlog._ti("ingest", "run 1", index)).state == "success"
    assert sorted(row.source[-6:] for row in read_report(report)) == [f"{number:02}.mp3" for number in range(20)]
    assert uploads(roughy) == 20


EDITS: dict[str, Callable[[list[str]], list[str]]] = {
    "a line twice": lambda lines: [*lines[:5], lines[4], *lines[6:]],
    "statuses exchanged": lambda lines: [line.replace('"deferred"', '"planned"') for line in lines],
    "another size": lambda lines: [*lines[:-1], lines[-1].replace('"size_bytes": ', '"size_bytes": 1')],
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_manifest_uploads_nothing(backlog: Backlog, roughy: Emulator, edit: str) -> None:
    backlog.plan(shards=1, max_credits=10)
    lines = backlog.manifest.read_text().splitlines()
    edited = EDITS[edit](lines)
    if edit == "statuses exchanged":
        edited[0] = json.dumps({**json.loads(edited[0]), "recordings": COUNT, "deferred": 0})
    assert edited != lines
    backlog.manifest.write_text("".join(f"{line}\n" for line in edited))
    ended = backlog.shard(0)
    assert (ended.state, "it was edited or damaged" in str(ended.error)) == ("failed", True)
    assert roughy.assets == []


@pytest.mark.parametrize("trouble", ["removed", "cut off"])
def test_results_are_reported_without_the_manifest(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    backlog.plan(shards=1)
    leave = shards.Shard.leave_waiting

    def lose(self: shards.Shard) -> None:
        if trouble == "removed":
            backlog.manifest.unlink()
        else:
            with open(backlog.manifest, "r+b") as file:
                file.truncate(3000)
        leave(self)

    monkeypatch.setattr(shards.Shard, "leave_waiting", lose)
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


def test_manifest_that_is_cut_off_while_it_is_read_is_named(
    backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_CHUNK", 5)
    backlog.plan(shards=1)
    take, taken = shards.Shard._take, [0]

    def cut_off(self: shards.Shard, *args: Any, **options: Any) -> Any:
        taken[0] += 1
        if taken[0] == 3:
            with open(backlog.manifest, "r+b") as file:
                file.truncate(3000)
        return take(self, *args, **options)

    monkeypatch.setattr(shards.Shard, "_take", cut_off)
    ended = backlog.shard(0)
    assert (ended.state, "it has changed since this task has opened it" in str(ended.error)) == ("failed", True)
    backlog.manifest.unlink()
    backlog.plan(shards=1)
    assert backlog.shard(0).state == "success"
    assert_each_once(backlog, roughy)


def test_wait_ends_for_the_manifest_that_it_began_for(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan(shards=1)
    deferred, context = begin_wait(backlog)
    roughy.settle()
    event = asyncio.run(_first_event(json.dumps(deferred.trigger.serialize())))
    # Its plan was cleared meanwhile, so that the template has nothing to render.
    task = RoughyIngestOperator(task_id="ingest", source="None", shard=0, deferrable=True)
    task.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": event}, context)
    assert_each_once(backlog, roughy)


def test_bad_event_is_reported_once(backlog: Backlog, roughy: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    roughy.progression = "manual"
    backlog.plan(shards=1)
    deferred, context = begin_wait(backlog)
    reports = []
    leave = shards.Shard.leave_waiting

    def count(self: shards.Shard) -> None:
        reports.append(self)
        leave(self)

    monkeypatch.setattr(shards.Shard, "leave_waiting", count)
    with pytest.raises(RoughyProtocolError):
        resume(backlog, deferred, context, event={"odd": 1})
    assert len(reports) == 1
    assert all(row.asset_id for row in backlog.rows())


# ---- Arguments


@pytest.mark.parametrize("pattern", [None, "", [], [""], [None]], ids=str)
def test_empty_pattern_is_an_error(backlog: Backlog, roughy: Emulator, pattern: Any) -> None:
    ended = backlog.plan(pattern=pattern)
    assert (ended.state, "`pattern` must be" in str(ended.error)) == ("failed", True)


@pytest.mark.parametrize("where", ["manifest", "source", "sources", "ledger", "manifest of the shard", "report"])
def test_password_with_a_slash_is_shown_nowhere(
    backlog: Backlog, s3: Any, where: str, log: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"s3://AKIA:{SECRET}@recordings/x"
    if where == "manifest":
        ended = backlog.plan(manifest=f"{uri}.jsonl")
    elif where == "source":
        ended = backlog.plan(source=uri)
    elif where == "sources":
        ended = backlog.plan(source=[str(backlog.folder), uri])
    elif where == "ledger":
        ended = backlog.plan(ledger=uri)
    elif where == "manifest of the shard":
        ended = backlog.shard(0, source=f"{uri}.jsonl")
    else:
        backlog.plan()
        ended = backlog.shard(0, report=uri)
    # A list may have files that cannot be used: their lines say so.
    assert ended.state == ("success" if where == "sources" else "failed")
    cause = None if ended.error is None else ended.error.__cause__
    told = f"{ended.error!r} {cause!r} {log()} {caplog.text} {json.dumps(backlog.xcoms)}"
    assert "XUtnFEMI" not in told
    assert not backlog.manifest.exists() or "XUtnFEMI" not in backlog.manifest.read_text()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:se/cr@et@bucket/a", "s3://bucket/a"),
        ("s3://conn@bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("sftp://host:22/a@b", "sftp://host:22/a@b"),
        ("sftp://host:/a@b", "sftp://host:/a@b"),
        ("s3://arn:aws:s3:region:1:accesspoint/ap/me@home.mp4", "s3://arn:aws:s3:region:1:accesspoint/ap/me@home.mp4"),
        ("sftp://[::1]:22/a@b", "sftp://[::1]:22/a@b"),
        ("sftp://user:22@host/a", "sftp://host/a"),
        ("/a:b@c", "/a:b@c"),
    ],
)
def test_credentials_of_a_uri(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown
    if shown == uri or "conn@" in uri:
        check_no_password(uri)
    else:
        with pytest.raises(ValueError, match="names an Airflow connection"):
            check_no_password(uri)


def test_budget_after_a_plan_without_prices_whose_costs_are_open_is_refused(backlog: Backlog, roughy: Emulator) -> None:
    roughy.progression = "manual"
    backlog.plan(shards=1, pattern="0*.mp3")
    begin_wait(backlog)
    for path in backlog.folder.glob("0*.mp3"):
        path.unlink()
    before = backlog.manifest.read_bytes()
    ended = backlog.plan(shards=1, max_credits=10)
    assert (ended.state, "10 recordings that may yet be charged" in str(ended.error)) == ("failed", True)
    assert backlog.manifest.read_bytes() == before
    roughy.progression = "immediate"
    roughy.settle()
    assert backlog.shard(0).state == "success"
    backlog.plan(shards=1, max_credits=15)
    assert len(backlog.lines()) == 5
