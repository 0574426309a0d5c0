"""A batch in one task: which files are uploaded, which are left out, and the reported results."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy import ingest
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyIngestError,
    RoughyIngestFailedError,
    RoughyInsufficientCreditsError,
    RoughyNotFoundError,
    RoughyServerError,
    RoughySourceError,
    RoughyUnusableLedgerError,
    RoughyUnusableSourceError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ingest.result import short_names
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyIngestOperator
from harness import media
from tests.ingesting import Nights, add, names, upload_one
from tests.running import TaskInstance, whenever
from tests.uploading import Store, arrived, asked

pytestmark = pytest.mark.usefixtures("patient")

#: Tests that do not depend on the version of Airflow, and run on one of them only.
once = pytest.mark.once

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])


@once
@pytest.mark.parametrize(
    ("sources", "short"),
    [
        ([], []),
        (["/in/a.mp3", "s3://b/in/c.mp3"], ["a.mp3", "c.mp3"]),
        (["/in/x/a.mp3", "/in/y/a.mp3", "/in/b.mp3"], ["x/a.mp3", "y/a.mp3", "b.mp3"]),
        (["/1/x/a.mp3", "/2/x/a.mp3", "/2/y/a.mp3"], ["1/x/a.mp3", "2/x/a.mp3", "y/a.mp3"]),
        (["a.mp3", "in/a.mp3", "in/a.mp3"], ["a.mp3", "in/a.mp3", "in/a.mp3"]),
    ],
)
def test_names_of_files_are_as_short_as_they_differ(sources: list[str], short: list[str]) -> None:
    assert short_names(sources) == short


@MODES
def test_second_run_uploads_only_new_files(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], deferrable: bool
) -> None:
    roughy.progression = "manual"
    if not deferrable:
        roughy.progression = "immediate"
    first = nights.run(deferrable=deferrable, before_resuming=roughy.settle)
    assert (first.state, first.waited) == ("success", "triggerer" if deferrable else "")
    assert len(first.result) == 3
    assert nights.xcoms["ready"] == first.result
    assert names(list(nights.xcoms["sources"].values())) == ["a.mp3", "b.mp3", "c.mp3"]
    for asset_id, source in nights.xcoms["sources"].items():
        assert arrived(roughy, asset_id, Path(source))
    # In the order of the result, which the next tasks are mapped over.
    assert nights.xcoms["names"] == [Path(nights.xcoms["sources"][asset_id]).name for asset_id in first.result]

    add(folder, "d.mp3", recordings["audio"])
    roughy.clear_requests()
    second = nights.run(deferrable=deferrable, before_resuming=roughy.settle)
    assert (len(second.result), sum(nights.xcoms["already_ingested"].values())) == (1, 3)
    assert names(list(nights.xcoms["sources"].values())) == ["d.mp3"]
    assert asked(roughy, "POST") == asked(roughy, "PATCH") == 1
    assert len(roughy.assets) == 4


@once
def test_large_batch_is_deferred_in_parts_of_limited_size(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.operators.ingest.MAX_IDS", 2)
    roughy.progression = "manual"
    left: list[dict[str, Any]] = []

    class Noting(TaskInstance):
        def xcom_push(self, key: str, value: Any) -> None:
            super().xcom_push(key, value)
            left.extend([value] if key == "roughy_before_the_wait" else [])

    monkeypatch.setattr("tests.ingesting.TaskInstance", Noting)
    ended = nights.run(deferrable=True, before_resuming=roughy.settle)
    assert (ended.state, len(ended.result)) == ("success", 3)
    assert [len(each["waiting"]) for each in left] == [3, 1]
    assert ended.event is not None
    assert [len(row["ids"]) for row in ended.event["batch"]] == [1]
    # All parts end at the one deadline.
    assert left[0]["deadline"] == left[1]["deadline"]


@once
def test_batch_is_not_deferred_if_all_assets_are_ready(roughy: Emulator, nights: Nights) -> None:
    ended = nights.run(deferrable=True)
    assert (ended.state, ended.waited, len(ended.result)) == ("success", "", 3)


@once
def test_each_file_takes_two_requests_and_a_share_of_a_list(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    for number in range(60):
        add(folder, f"{number}.mp3", recordings["audio"])
    roughy.clear_requests()
    assert len(nights.run().result) == 63
    assert asked(roughy, "POST") == asked(roughy, "PATCH") == 63
    assert len(roughy.requests) <= 63 * 2.2


@once
def test_run_without_new_files_sends_no_request(roughy: Emulator, nights: Nights) -> None:
    nights.run()
    roughy.clear_requests()
    assert nights.run().result == []
    assert sum(nights.xcoms["already_ingested"].values()) == 3
    assert roughy.requests == []


@once
def test_bad_files_do_not_affect_the_rest(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    (folder / "text.mp3").write_text("no recording at all " * 50)
    (folder / "empty.mp3").touch()
    media.corrupt(add(folder, "noise.mp3", recordings["audio"]), keep=2000)
    (folder / "gone.mp3").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("left out")
    (folder / "._a.mp3").write_text("left out")

    ended = nights.run()
    assert (ended.state, type(ended.error)) == ("failed", RoughyIngestFailedError)
    assert "3 ready, 1 failed, 3 rejected" in str(ended.error)
    assert len(nights.xcoms["ready"]) == 3
    assert names(nights.xcoms["rejected"]) == ["empty.mp3", "gone.mp3", "text.mp3"]
    assert "0 bytes" in nights.xcoms["rejected"][str(folder / "empty.mp3")]
    assert "neither audio nor video" in nights.xcoms["rejected"][str(folder / "text.mp3")]
    (failed,) = nights.xcoms["failed"]
    assert roughy.asset(failed)["state"] == "failed"
    assert "probe_failed" in nights.xcoms["failed"][failed]

    # Another try of this run reports the same and uploads nothing; another run counts them as already ingested.
    roughy.clear_requests()
    again = nights.run(again=True)
    assert (again.state, sorted(nights.xcoms["failed"])) == ("failed", [failed])
    assert names(nights.xcoms["rejected"]) == ["empty.mp3", "gone.mp3", "text.mp3"]
    assert len(nights.xcoms["ready"]) == 3
    assert asked(roughy, "POST") == 0
    assert nights.run().result == []
    assert nights.xcoms["already_ingested"] == {"ready": 3, "rejected": 3, "failed": 1}


@once
def test_files_are_left_out_as_the_table_says(
    folder: Path, nights: Nights, recordings: dict[str, Path], log: Callable[[], str]
) -> None:
    """The table is in the docstring of ``ingest``, and on the page about the nightly folder."""
    nights.run()

    def new(name: str, content: bytes = recordings["audio"].read_bytes(), *, day: int = 20) -> Path:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, (1_770_000_000 + day * 86400,) * 2)
        return folder / name

    files = {
        new(".hidden.mp3"): "has a name that begins with a dot",
        new("notes.txt"): "has a name that ``pattern`` does not match",
        new("subfolder/d.mp3"): "is in a subfolder, and ``recursive`` is off",
        folder / "a.mp3": "was ingested by an earlier run",
        media.make_long_audio(folder / "long.wav", seconds=100): "costs more than ``max_credits`` or the balance",
        new("empty.mp3", b""): "has less than 64 bytes, or more than 50 GiB",
        new("text.mp3", b"no recording at all " * 50, day=15): "is neither audio nor video",
        folder / "link.mp3": "is a link that leads nowhere, a pipe or a device",
        folder / "missing.mp3": "does not exist, and a list of sources names it",
    }
    (folder / "link.mp3").symlink_to(folder / "nowhere")
    ended = nights.run(
        source=[str(folder), str(folder / "missing.mp3")], max_credits=1, credits_if_unknown=1, on_failed="return"
    )
    assert (ended.state, ended.result) == ("success", [])
    reported = {status: names(nights.xcoms[status]) for status in ("rejected", "deferred", "interrupted")}
    assert nights.xcoms["already_ingested"] == {"ready": 3}
    assert "Skipped 1 file that `pattern` does not match: notes.txt" in log()
    from from_code.tables import rows_of

    rows = rows_of(ingest.__doc__ or "")
    for decided_in in (each for row in rows for each in row[3].split(", ")):
        module, _, function = decided_in.partition(".")
        text = Path(ingest.__file__).with_name(f"{module}.py").read_text()
        assert re.search(rf"^ *def {function}\(", text, re.MULTILINE), decided_in

    def documented(condition: str) -> str:
        (row,) = (row for row in rows if row[0].startswith(condition))
        return str(row[1]).strip("`")

    for file, condition in files.items():
        status = next((status for status, reported_names in reported.items() if file.name in reported_names), None)
        assert (status or documented(condition)) == documented(condition), file
        assert status or documented(condition) in ("not reported", "already ingested"), file

    # Just written, for `stable_for`.
    (folder / "new.mp3").write_bytes(recordings["audio"].read_bytes())
    nights.run(stable_for=60, on_failed="return")
    assert "new.mp3" in names(nights.xcoms["deferred"])
    assert documented("was changed less than ``stable_for`` ago") == "deferred"
    # Files that were rejected for good are counted from the second run on.
    assert nights.xcoms["already_ingested"]["rejected"] == 3
    assert nights.xcoms["rejected"] == {}


@once
def test_rejected_file_does_not_fail_the_task_with_on_failed_return(folder: Path, nights: Nights) -> None:
    (folder / "text.mp3").write_text("no recording at all " * 50)
    ended = nights.run(on_failed="return")
    assert (ended.state, len(ended.result), names(nights.xcoms["rejected"])) == ("success", 3, ["text.mp3"])


@once
def test_missing_file_of_a_list_is_rejected_and_retry_uploads_it(
    roughy: Emulator, folder: Path, nights: Nights
) -> None:
    (folder / "b.mp3").rename(folder / "b.mp3.away")
    nights.options["source"] = [str(folder / f"{name}.mp3") for name in "abc"]
    ended = nights.run()
    # A file that a list names and that is missing is rejected; the others are uploaded.
    assert (type(ended.error), names(nights.xcoms["rejected"])) == (RoughyIngestFailedError, ["b.mp3"])
    (folder / "b.mp3.away").rename(folder / "b.mp3")
    again = nights.run(again=True)
    assert (again.state, len(again.result), len(roughy.assets)) == ("success", 3, 3)


@once
@pytest.mark.parametrize(
    ("fault", "error", "state"),
    [
        ({"status": 401}, RoughyAuthenticationError, "failed"),
        ({"status": 402}, RoughyInsufficientCreditsError, "failed"),
        ({"status": 404}, RoughyNotFoundError, "failed"),
        ({"status": 503}, RoughyServerError, "up_for_retry"),
    ],
    ids=["key", "credits", "project", "outage"],
)
def test_error_that_affects_all_files_stops_the_batch(
    roughy: Emulator,
    folder: Path,
    nights: Nights,
    recordings: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    error: type[Exception],
    state: str,
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    for number in range(40):
        add(folder, f"{number}.mp3", recordings["audio"])
    roughy.inject(Fault(method="POST", path="/v1/assets", nth=4, times=None, **fault))
    ended = nights.run(parallel=2)
    assert (ended.state, type(ended.error)) == (state, error)
    # The batch stops after five files in a row, each with all retries of a request; after one that is final, at once.
    assert asked(roughy, "POST") <= (3 + 7 * 5 if state == "up_for_retry" else 3 + 2)
    assert len(roughy.assets) == 3

    roughy.clear_faults()
    again = nights.run(again=True)
    assert (again.state, len(again.result), len(roughy.assets)) == ("success", 43, 43)


@once
def test_files_are_deferred_when_credits_run_out(roughy: Emulator, folder: Path, nights: Nights) -> None:
    roughy.balance = 1
    ended = nights.run(on_pending_payment="return", parallel=1)
    # One credit pays for the first one; then the balance is not above zero.
    assert (ended.state, len(ended.result)) == ("success", 1)
    assert names(nights.xcoms["deferred"]) == ["b.mp3", "c.mp3"]
    assert "402" in nights.xcoms["deferred"][str(folder / "b.mp3")]
    roughy.top_up(10)
    assert len(nights.run().result) == 2


@MODES
def test_used_up_credits_fail_the_task_at_its_end_in_every_mode(
    roughy: Emulator, nights: Nights, deferrable: bool
) -> None:
    roughy.progression = "manual" if deferrable else "immediate"
    roughy.inject(Fault(method="POST", path="/v1/assets", nth=2, status=402, times=None))
    ended = nights.run(deferrable=deferrable, before_resuming=roughy.settle, parallel=1)
    assert (ended.state, type(ended.error)) == ("failed", RoughyInsufficientCreditsError)
    assert (len(nights.xcoms["ready"]), names(nights.xcoms["deferred"])) == (1, ["b.mp3", "c.mp3"])


@pytest.mark.parametrize(
    ("policy", "state", "error"),
    [("fail", "failed", RoughyIngestFailedError), ("skip", "skipped", Exception), ("return", "success", None)],
)
def test_unpaid_recordings_end_the_task_as_on_pending_payment_says(
    roughy: Emulator, nights: Nights, policy: Any, state: str, error: type[Exception] | None
) -> None:
    roughy.progression = "manual"

    def spend() -> None:
        roughy.balance = 1
        roughy.settle()

    ended = nights.run(deferrable=True, before_resuming=spend, on_pending_payment=policy)
    assert ended.state == state
    assert error is None or isinstance(ended.error, error)
    assert (len(nights.xcoms["ready"]), len(nights.xcoms["pending_payment"])) == (1, 2)


def test_run_waits_for_payment_with_on_pending_payment_wait(roughy: Emulator, nights: Nights) -> None:
    roughy.progression = "manual"

    def spend() -> None:
        roughy.balance = 1
        roughy.settle()
        roughy.clear_requests()

    with whenever(lambda: asked(roughy, "GET") >= 6, lambda: roughy.top_up(10)):
        ended = nights.run(deferrable=True, before_resuming=spend, on_pending_payment="wait")
    assert (ended.state, len(ended.result)) == ("success", 3)


def test_timeout_uses_no_retry_and_next_run_reports_the_assets(roughy: Emulator, nights: Nights) -> None:
    roughy.progression = "manual"
    ended = nights.run(timeout=0.5)
    assert (ended.state, type(ended.error)) == ("failed", RoughyIngestFailedError)
    assert "3 interrupted" in str(ended.error)
    roughy.settle()
    second = nights.run()
    assert (len(second.result), len(roughy.assets)) == (3, 3)


# ---- Killed tasks and overlapping runs


def test_retry_resumes_the_uploads_of_a_failed_try(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", nth=2, cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    first = nights.run(parallel=1)
    assert (first.state, type(first.error)) == ("up_for_retry", RoughyIngestError)
    assert len(nights.xcoms["interrupted"]) == 2
    roughy.clear_faults()
    roughy.clear_requests()
    again = nights.run(again=True)
    assert (again.state, len(again.result), len(roughy.assets)) == ("success", 3, 3)
    assert asked(roughy, "POST") == 0
    for asset_id, source in nights.xcoms["sources"].items():
        assert arrived(roughy, asset_id, Path(source))


def test_killed_task_ends_at_once_and_retry_resumes_it(
    roughy: Emulator,
    folder: Path,
    nights: Nights,
    connection: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that the upload that hangs ends soon.
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(connection))
    roughy.inject(Fault(method="PATCH", nth=2, hang=True))
    ended: list[float] = []
    # A signal whose handler raises, as Airflow's for a task that is killed or takes too long.
    result = nights.run(
        parallel=1,
        kill_once=lambda: asked(roughy, "PATCH") >= 2,
        before_resuming=lambda: ended.append(time.monotonic()),
    )
    assert ended
    assert (result.state, len(result.result), len(roughy.assets)) == ("success", 3, 3)
    for asset_id, source in nights.xcoms["sources"].items():
        assert arrived(roughy, asset_id, Path(source))


@once
@pytest.mark.parametrize("remembers", [True, False])
def test_task_that_airflow_3_kills_fails(roughy: Emulator, folder: Path, nights: Nights, remembers: bool) -> None:
    task = RoughyIngestOperator(task_id="ingest", parallel=1, poll_interval=0.2, **nights.options)
    if not remembers:
        task.ledger = None
    context: Any = {"ti": TaskInstance(run_id="night 1")}
    # A signal whose handler only calls on_kill().
    before = signal.signal(signal.SIGUSR1, lambda *_: task.on_kill())
    roughy.inject(Fault(method="PATCH", nth=2, delay=1.0))
    try:
        with (
            whenever(lambda: asked(roughy, "PATCH") >= 2, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
            pytest.raises(RoughyIngestError, match=r"killed after [12] of 3 files"),
        ):
            task.execute(context)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(roughy.assets) <= 2
    nights.options["ledger"] = task.ledger
    ended = nights.run()
    assert (ended.state, len(ended.result)) == ("success", 3)


@once
@pytest.mark.parametrize("operator", [RoughyIngestOperator, RoughyCreateUploadOperator])
def test_kill_ends_a_pause_before_a_retry_of_an_upload(
    roughy: Emulator, folder: Path, nights: Nights, operator: type[Any]
) -> None:
    options = {**nights.options, "source": str(folder / "a.mp3")}
    task = operator(task_id="ingest", **options)
    roughy.inject(Fault(method="PATCH", status=503, headers={"Retry-After": "30"}))
    killed: list[float] = []

    def kill() -> None:
        time.sleep(0.5)  # The reply has arrived, and the pause has begun.
        killed.append(time.monotonic())
        task.on_kill()

    with whenever(lambda: asked(roughy, "PATCH") > 0, kill), pytest.raises(RoughyError):
        task.execute({"ti": TaskInstance(run_id="night 1")})
    assert time.monotonic() - killed[0] < 5
    assert nights.run(source=options["source"]).state == "success"
    assert len(roughy.assets) == 1


@once
def test_changed_file_is_a_new_recording(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    nights.run()
    shutil.copyfile(recordings["video"], folder / "b.mp3")
    assert len(nights.run().result) == 1
    assert len(roughy.assets) == 4


@once
def test_retry_cancels_the_upload_of_a_changed_file(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", nth=3, cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    nights.run(parallel=1)
    assert names(nights.xcoms["interrupted"]) == ["c.mp3"]
    roughy.clear_faults()
    shutil.copyfile(recordings["video"], folder / "c.mp3")
    again = nights.run(again=True)
    assert (len(again.result), len(roughy.assets)) == (3, 3)


@once
def test_retry_uploads_anew_if_the_assets_were_deleted(
    roughy: Emulator, nights: Nights, hook: RoughyHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    nights.run(parallel=1)
    roughy.clear_faults()
    for asset in roughy.assets:
        hook.delete_asset(asset["id"])
    assert len(nights.run(again=True).result) == 3


@once
def test_acknowledged_bytes_are_sent_again_if_roughy_lost_them(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", nth=2, swallow=True))
    ended = nights.run(parallel=1)
    assert (ended.state, len(ended.result)) == ("success", 3)
    for asset_id, source in nights.xcoms["sources"].items():
        assert arrived(roughy, asset_id, Path(source))


def test_retry_without_ledger_resumes_from_the_task_state_store(
    roughy: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    nights, store = Nights(folder, ledger=None), Store()
    roughy.inject(Fault(method="PATCH", nth=2, cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    assert type(nights.run(store=store, parallel=1).error) is RoughyIngestError
    roughy.clear_faults()
    again = nights.run(again=True, store=store)
    assert (len(again.result), len(roughy.assets)) == (3, 3)
    assert store.get("roughy_progress")["of"] == 3


@once
def test_failed_try_without_ledger_or_store_leaves_no_partial_upload(
    roughy: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    nights = Nights(folder, ledger=None)
    roughy.inject(Fault(method="PATCH", nth=2, cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    nights.run(parallel=1)
    assert [asset["state"] for asset in roughy.assets] == ["ready"]


# ---- A single upload with the same ledger


@once
def test_batch_and_single_upload_share_a_ledger(roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights) -> None:
    alone = upload_one(folder / "a.mp3", tmp_path / "ledger")
    assert upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2").result == alone.result
    assert (len(nights.run().result), sum(nights.xcoms["already_ingested"].values()), len(roughy.assets)) == (2, 1, 3)
    roughy.clear_requests()
    batched = upload_one(folder / "b.mp3", tmp_path / "ledger").result
    assert nights.xcoms["sources"][batched] == str(folder / "b.mp3")
    assert asked(roughy, "POST") == asked(roughy, "PATCH") == 0


def test_single_upload_with_ledger_resumes_after_a_failed_try(
    roughy: Emulator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    assert upload_one(folder / "a.mp3", tmp_path / "ledger").state == "up_for_retry"
    roughy.clear_faults()
    ended = upload_one(folder / "a.mp3", tmp_path / "ledger")
    assert (len(roughy.assets), ended.result) == (1, roughy.assets[0]["id"])
    assert arrived(roughy, ended.result, folder / "a.mp3")


@once
def test_single_upload_with_ledger_uploads_anew_after_asset_was_deleted(
    roughy: Emulator, folder: Path, tmp_path: Path, hook: RoughyHook
) -> None:
    first = upload_one(folder / "a.mp3", tmp_path / "ledger").result
    hook.delete_asset(first)
    second = upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2").result
    assert second != first
    assert upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 3").result == second


@once
def test_batch_counts_what_a_single_upload_has_sent_whatever_becomes_of_it(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    roughy.progression = "manual"
    alone = upload_one(folder / "a.mp3", tmp_path / "ledger").result
    roughy.set_state(alone, "failed")
    nights.options["source"] = str(folder / "a.mp3")
    ended = nights.run()
    assert (ended.state, nights.xcoms["failed"], nights.xcoms["already_ingested"]) == ("success", {}, {"ready": 1})


# ---- Ledger maintenance


@once
def test_recheck_ledger_forgets_deleted_assets_only_if_asked(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, hook: RoughyHook
) -> None:
    nights.run()
    ledger = Ledger(tmp_path / "ledger")
    assert hook.recheck_ledger(ledger) == []
    deleted = nights.xcoms["ready"][1]
    hook.delete_asset(deleted)
    assert nights.run().result == [], "the ledger has it"
    roughy.clear_requests()
    assert [entry.asset_id for entry in hook.recheck_ledger(ledger)] == [deleted]
    assert len(roughy.requests) == 2
    assert [entry.asset_id for entry in hook.recheck_ledger(ledger, forget=True)] == [deleted]
    assert len(nights.run().result) == 1
    assert [entry.state for entry in ledger.entries()] == ["ready"] * 3


# ---- Costs


def long(folder: Path, name: str, minutes: float, day: int) -> None:
    media.make_long_audio(folder / name, seconds=minutes * 60 - 1)
    os.utime(folder / name, (1_770_000_000 + day * 86400,) * 2)


@once
def test_dry_run_reports_costs_and_creates_nothing(
    roughy: Emulator, folder: Path, nights: Nights, log: Callable[[], str]
) -> None:
    long(folder, "talk.wav", 3, day=5)
    ended = nights.run(dry_run=True)
    assert (ended.state, ended.result) == ("success", [])
    assert nights.xcoms["deferred"][str(folder / "talk.wav")] == "dry run, 3 credits"
    assert "Planned 4 uploads for 6 credits" in log()
    assert {request.method for request in roughy.requests} == {"GET"}
    assert roughy.assets == []
    assert len(nights.run().result) == 4


@once
def test_dry_run_takes_over_nothing_from_earlier_runs(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    roughy.progression = "manual"
    assert nights.run(timeout=0.3).state == "failed"
    roughy.settle()
    add(folder, "d.mp3", recordings["audio"])
    roughy.clear_requests()
    assert nights.run(dry_run=True).result == []
    assert (names(nights.xcoms["deferred"]), sum(nights.xcoms["already_ingested"].values())) == (["d.mp3"], 3)
    assert {request.path for request in roughy.requests} == {"/v1/credits/balance"}
    roughy.progression = "immediate"
    assert len(nights.run().result) == 4


@once
def test_max_credits_defers_the_newest_files(roughy: Emulator, folder: Path, nights: Nights) -> None:
    long(folder, "old.wav", 3, day=-1)
    long(folder, "new.wav", 2, day=20)
    balance = roughy.balance
    ended = nights.run(max_credits="5")
    assert len(ended.result) == 3
    assert names(nights.xcoms["deferred"]) == ["c.mp3", "new.wav"]
    assert "it costs 2 credits, and `max_credits` leaves 0" in nights.xcoms["deferred"][str(folder / "new.wav")]
    assert balance - roughy.balance == 5
    assert len(nights.run(max_credits=5).result) == 2


@once
def test_balance_limits_a_run_with_max_credits(roughy: Emulator, nights: Nights) -> None:
    roughy.balance = 2
    ended = nights.run(max_credits=100)
    assert (len(ended.result), names(nights.xcoms["deferred"])) == (2, ["c.mp3"])


@once
def test_unknown_length_counts_for_credits_if_unknown(
    roughy: Emulator, folder: Path, nights: Nights, log: Callable[[], str]
) -> None:
    media.make_audio(folder / "raw.aac", seconds=3, format="aac")
    nights.run(max_credits=9, credits_if_unknown=7)
    assert names(nights.xcoms["deferred"]) == ["raw.aac"]
    assert "1 recording of unknown length: each counts for 7 credits" in log()


# ---- Still being written


@once
def test_stable_for_defers_files_that_were_just_changed(folder: Path, nights: Nights) -> None:
    # They have just been created, although their times of modification are old.
    assert nights.run(stable_for=3600).result == []
    assert names(nights.xcoms["deferred"]) == ["a.mp3", "b.mp3", "c.mp3"]
    time.sleep(0.3)
    # A file whose camera has a wrong clock is not taken for one that is being written.
    os.utime(folder / "a.mp3", (4_000_000_000,) * 2)
    time.sleep(0.3)
    assert len(nights.run(stable_for=0.2).result) == 3


# ---- Bad input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"source": "/no/such/folder"}, RoughyUnusableSourceError, "does not exist"),
        ({"source": "nosuch://bucket/x/"}, RoughyUnusableSourceError, "nosuch"),
        ({"source": ""}, RoughyUnusableSourceError, "empty"),
        ({"ledger": "nosuch://bucket/ledger"}, RoughyUnusableLedgerError, "nosuch"),
        ({"ledger": "/proc/1/ledger"}, RoughyUnusableLedgerError, "cannot be used"),
        ({"project_id": "no uuid"}, RoughyConfigurationError, "must be a UUID"),
        ({"language": "german"}, RoughyConfigurationError, "ISO 639-1"),
        ({"language": 49}, RoughyConfigurationError, "ISO 639-1"),
        ({"max_credits": "many"}, RoughyConfigurationError, "max_credits"),
        ({"max_credits": 1.5}, RoughyConfigurationError, "max_credits"),
        ({"max_credits": -1}, RoughyConfigurationError, "max_credits"),
    ],
)
def test_bad_input_fails_before_anything_is_created(
    roughy: Emulator, nights: Nights, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    ended = nights.run(**options)
    assert (ended.state, type(ended.error)) == ("failed", error)
    assert words in str(ended.error)
    assert roughy.requests == []


@once
def test_error_names_a_missing_project(nights: Nights, log: Callable[[], str]) -> None:
    nobody = "01900000-0000-7000-8000-00000000dead"
    ended = nights.run(project_id=nobody)
    assert (ended.state, type(ended.error)) == ("failed", RoughyNotFoundError)
    assert f"no project {nobody}" in log()


@once
def test_ledger_inside_the_source_is_refused(roughy: Emulator, folder: Path, nights: Nights) -> None:
    ended = nights.run(ledger=f"file://{folder}/ledger")
    assert type(ended.error) is RoughyUnusableLedgerError
    assert not (folder / "ledger").exists()
    assert roughy.requests == []


@pytest.mark.parametrize(("on_empty", "state"), [("return", "success"), ("skip", "skipped"), ("fail", "failed")])
def test_empty_folder_ends_as_on_empty_says(
    roughy: Emulator, tmp_path: Path, nights: Nights, on_empty: Any, state: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    assert nights.run(source=str(tmp_path / "empty"), on_empty=on_empty).state == state
    assert nights.run(source=str(tmp_path / "empty" / "*.mp3"), on_empty=on_empty).state == state
    assert roughy.requests == []


@pytest.mark.parametrize(
    "options",
    [{"parallel": 0}, {"parallel": True}, {"on_empty": "no"}, {"on_failed": "no"}, {"credits_if_unknown": -1}],
)
def test_invalid_option_is_refused_when_the_dag_is_parsed(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RoughyIngestOperator(task_id="ingest", source="/data", **options)


@once
def test_files_with_odd_names_are_ingested_once(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    odd = ["two words.mp3", "Folge #1.mp3", "a%20b.mp3", "new\nline.mp3", "what?.MP3", "[x].mp3", "ü" * 100 + ".mp3"]
    for name in odd:
        add(folder, name, recordings["audio"])
    # A hard link is the same recording.
    os.link(folder / "a.mp3", os.fsencode(folder) + b"/\xff\xfe.mp3")
    assert len(nights.run().result) == 10
    assert sorted(asset["sha256"] for asset in roughy.assets) == [roughy.assets[0]["sha256"]] * 10
    assert nights.run().result == []
    assert sum(nights.xcoms["already_ingested"].values()) == 10


@once
def test_recursive_ingests_subfolders_and_rejects_circular_links(
    folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    (folder / "monday").mkdir()
    add(folder / "monday", "d.mp3", recordings["audio"])
    (folder / "monday" / "up").symlink_to(folder)
    (folder / "loop.mp3").symlink_to(folder / "loop.mp3")
    assert len(nights.run(on_failed="return").result) == 3
    assert "symbolic links" in nights.xcoms["rejected"][str(folder / "loop.mp3")]
    assert len(nights.run(recursive=True).result) == 1


@once
def test_file_with_several_links_is_ingested_once(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    for name in ("circle", "another circle"):
        (folder / name).symlink_to(folder)
    (folder / "Latest.mp3").symlink_to("c.mp3")
    (folder.parent / "elsewhere.mp3").write_bytes(recordings["audio"].read_bytes())
    (folder / "d.mp3").symlink_to(folder.parent / "elsewhere.mp3")
    nights.run(dry_run=True, source=f"{folder}/**/*.mp3")
    assert sorted(nights.xcoms["deferred"]) == [str(folder / f"{name}.mp3") for name in "abcd"]
    assert len(nights.run().result) == 4
    assert nights.run(source=f"{folder}/**/*.mp3").result == []
    assert len(roughy.assets) == 4


def make_unreachable(monkeypatch: pytest.MonkeyPatch, call: str, path: Path) -> None:
    """Let one call of the file system fail as on a network share that does not answer."""
    original = getattr(os, call)

    def fail(target: Any = ".", *args: Any, **options: Any) -> Any:
        if str(target) == str(path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return original(target, *args, **options)

    monkeypatch.setattr(os, call, fail)


@once
@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_unreachable_folder_fails_and_may_be_retried(
    roughy: Emulator, folder: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    make_unreachable(monkeypatch, call, folder)
    ended = nights.run()
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughySourceError)
    assert "Stale file handle" in str(ended.error)
    assert roughy.requests == []


@once
def test_unreachable_file_is_interrupted_and_retry_uploads_it(
    folder: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        make_unreachable(patched, "stat", folder / "b.mp3")
        ended = nights.run()
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyIngestError)
    assert names(nights.xcoms["interrupted"]) == ["b.mp3"]
    assert len(nights.xcoms["ready"]) == 2
    assert len(nights.run(again=True).result) == 3


@once
def test_pattern_selects_files_by_name(folder: Path, nights: Nights) -> None:
    assert len(nights.run(pattern=["A*.mp3", "c.*"]).result) == 2
    assert len(nights.run(source=str(folder / "[ab].mp3")).result) == 1
