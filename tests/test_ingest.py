"""A batch in one task: what is sent, what is not sent twice, and what is said of each recording."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy import ledger as ledger_module
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAuthenticationError,
    RoughyClaimedError,
    RoughyConfigurationError,
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
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyIngestOperator
from harness import media
from tests.running import Ended, TaskInstance, run_task, whenever
from tests.uploading import Store, arrived, asked

pytestmark = pytest.mark.usefixtures("patient")

#: What asks nothing of Airflow that its lines answer differently.
once = pytest.mark.once

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])


@pytest.fixture
def folder(tmp_path: Path, recordings: dict[str, Path]) -> Path:
    """Three recordings, oldest first: a, b, c."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    for number, name in enumerate("abc"):
        add(folder, f"{name}.mp3", recordings["audio"], day=number)
    return folder


def add(folder: Path, name: str, recording: Path, *, day: int = 10) -> Path:
    """Copy a recording into a folder, as if it was made on some day of 2026."""
    file = folder / name
    shutil.copyfile(recording, file)
    os.utime(file, (1_770_000_000 + day * 86400,) * 2)
    return file


class Nights:
    """Runs of one task, night after night.

    :param folder: What is ingested.
    """

    def __init__(self, folder: Path, *, ledger: Path | None) -> None:
        self.options: dict[str, Any] = {"source": str(folder), "ledger": None if ledger is None else str(ledger)}
        self.number = 0
        self.told: dict[str, Any] = {}

    def run(self, *, again: bool = False, store: Store | None = None, **options: Any) -> Ended:
        """Run the next night, or another try of this one; what it told is in ``told``."""
        self.number += not again
        ti = TaskInstance(run_id=f"night {self.number}")
        steps = {name: options.pop(name) for name in ("before_resuming", "kill_once") if name in options}
        task = RoughyIngestOperator(
            task_id="ingest", **{**self.options, "poll_interval": 0.2, "timeout": 60, **options}
        )
        context = {"ti": ti, **({} if store is None else {"task_state_store": store})}
        ended = run_task(task, context=context, **steps)
        self.told = {name: json.loads(value) for name, value in ti.xcoms.items()}
        return ended


@pytest.fixture
def nights(folder: Path, tmp_path: Path) -> Nights:
    return Nights(folder, ledger=tmp_path / "ledger")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the task has said: Airflow 2 says it by the standard library's log, later ones on standard output."""
    caplog.set_level("INFO")
    return lambda: caplog.text + capsys.readouterr().out


def names(sources: dict[str, Any] | list[str]) -> list[str]:
    return sorted(Path(source).name for source in sources)


@MODES
def test_a_night_uploads_all_and_the_next_one_only_what_is_new(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], deferrable: bool
) -> None:
    roughy.progression = "manual"
    if not deferrable:
        roughy.progression = "immediate"
    first = nights.run(deferrable=deferrable, before_resuming=roughy.settle)
    assert (first.state, first.waited) == ("success", "triggerer" if deferrable else "")
    assert len(first.result) == 3
    assert nights.told["ready"] == first.result
    assert names(list(nights.told["sources"].values())) == ["a.mp3", "b.mp3", "c.mp3"]
    for asset_id, source in nights.told["sources"].items():
        assert arrived(roughy, asset_id, Path(source))

    add(folder, "d.mp3", recordings["audio"])
    roughy.clear_requests()
    second = nights.run(deferrable=deferrable, before_resuming=roughy.settle)
    assert (len(second.result), nights.told["known"]) == (1, 3)
    assert names(list(nights.told["sources"].values())) == ["d.mp3"]
    assert asked(roughy, "POST") == asked(roughy, "PATCH") == 1
    assert len(roughy.assets) == 4


@once
def test_a_large_batch_is_waited_for_in_parts_that_any_database_stores(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.operators.ingest._MOST_IDS", 2)
    roughy.progression = "manual"
    left: list[dict[str, Any]] = []

    class Noting(TaskInstance):
        def xcom_push(self, key: str, value: Any) -> None:
            super().xcom_push(key, value)
            left.extend([value] if key == "roughy_before_the_wait" else [])

    monkeypatch.setattr("tests.test_ingest.TaskInstance", Noting)
    ended = nights.run(deferrable=True, before_resuming=roughy.settle)
    assert (ended.state, len(ended.result)) == ("success", 3)
    assert [len(each["waiting"]) for each in left] == [3, 1]
    assert ended.event is not None
    assert [len(row["ids"]) for row in ended.event["batch"]] == [1]
    # All parts end at the one deadline.
    assert left[0]["deadline"] == left[1]["deadline"]


@once
def test_a_batch_that_is_ready_when_it_has_arrived_is_waited_for_nowhere(roughy: Emulator, nights: Nights) -> None:
    ended = nights.run(deferrable=True)
    assert (ended.state, ended.waited, len(ended.result)) == ("success", "", 3)


@once
def test_each_file_costs_two_requests_and_a_share_of_a_list(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    for number in range(60):
        add(folder, f"{number}.mp3", recordings["audio"])
    roughy.clear_requests()
    assert len(nights.run().result) == 63
    assert asked(roughy, "POST") == asked(roughy, "PATCH") == 63
    assert len(roughy.requests) <= 63 * 2.2


@once
def test_a_night_of_nothing_new_asks_roughy_nothing(roughy: Emulator, nights: Nights) -> None:
    nights.run()
    roughy.clear_requests()
    assert nights.run().result == []
    assert nights.told["known"] == 3
    assert roughy.requests == []


@once
def test_bad_files_do_not_sink_the_rest(
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
    assert "3 ready, 1 failed, 3 refused" in str(ended.error)
    assert len(nights.told["ready"]) == 3
    assert names(nights.told["refused"]) == ["empty.mp3", "gone.mp3", "text.mp3"]
    assert "0 bytes" in nights.told["refused"][str(folder / "empty.mp3")]
    assert "neither audio nor video" in nights.told["refused"][str(folder / "text.mp3")]
    (failed,) = nights.told["failed"]
    assert roughy.asset(failed)["state"] == "failed"
    assert "probe_failed" in nights.told["failed"][failed]

    # Another try of this run says the same again, and asks for nothing; another run knows them.
    roughy.clear_requests()
    again = nights.run(again=True)
    assert (again.state, sorted(nights.told["failed"])) == ("failed", [failed])
    assert names(nights.told["refused"]) == ["empty.mp3", "gone.mp3", "text.mp3"]
    assert len(nights.told["ready"]) == 3
    assert asked(roughy, "POST") == 0
    assert nights.run(on_failed="return").result == []
    assert names(nights.told["refused"]) == ["gone.mp3"], "what is not there today may be there tomorrow"
    assert nights.told["known"] == 6


@once
def test_what_failed_can_be_returned(folder: Path, nights: Nights) -> None:
    (folder / "text.mp3").write_text("no recording at all " * 50)
    ended = nights.run(on_failed="return")
    assert (ended.state, len(ended.result), names(nights.told["refused"])) == ("success", 3, ["text.mp3"])


@once
def test_trouble_of_one_is_mended_by_the_next_try(roughy: Emulator, folder: Path, nights: Nights) -> None:
    (folder / "b.mp3").rename(folder / "b.mp3.away")
    nights.options["source"] = [str(folder / f"{name}.mp3") for name in "abc"]
    ended = nights.run()
    # What a list names and is not there is refused, and the rest goes on.
    assert (type(ended.error), names(nights.told["refused"])) == (RoughyIngestFailedError, ["b.mp3"])
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
    ids=["key", "credits", "project", "away"],
)
def test_trouble_of_all_ends_the_uploads_once(
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
    # Five files in a row are taken for all, each with the tries of a request; a refusal is believed at once.
    assert asked(roughy, "POST") <= (3 + 7 * 5 if state == "up_for_retry" else 3 + 2)
    assert len(roughy.assets) == 3

    roughy.clear_faults()
    again = nights.run(again=True)
    assert (again.state, len(again.result), len(roughy.assets)) == ("success", 43, 43)


@once
def test_credits_that_run_out_postpone_the_rest(roughy: Emulator, folder: Path, nights: Nights) -> None:
    roughy.balance = 1
    ended = nights.run(on_pending_payment="return", parallel=1)
    # One credit pays for the first one; then the balance is not above zero.
    assert (ended.state, len(ended.result)) == ("success", 1)
    assert names(nights.told["postponed"]) == ["b.mp3", "c.mp3"]
    assert "402" in nights.told["postponed"][str(folder / "b.mp3")]
    roughy.top_up(10)
    assert len(nights.run().result) == 2


@MODES
def test_credits_that_run_out_are_told_at_the_end_in_every_mode(
    roughy: Emulator, nights: Nights, deferrable: bool
) -> None:
    roughy.progression = "manual" if deferrable else "immediate"
    roughy.inject(Fault(method="POST", path="/v1/assets", nth=2, status=402, times=None))
    ended = nights.run(deferrable=deferrable, before_resuming=roughy.settle, parallel=1)
    assert (ended.state, type(ended.error)) == ("failed", RoughyInsufficientCreditsError)
    assert (len(nights.told["ready"]), names(nights.told["postponed"])) == (1, ["b.mp3", "c.mp3"])


@once
def test_unpaid_recordings_of_earlier_nights_are_reported_once_when_they_become_ready(
    roughy: Emulator, nights: Nights
) -> None:
    roughy.progression = "manual"

    def spend() -> None:
        roughy.balance = 1
        roughy.settle()

    first = nights.run(deferrable=True, before_resuming=spend, on_pending_payment="return")
    unpaid = nights.told["pending_payment"]
    assert (first.state, len(first.result), len(unpaid)) == ("success", 1, 2)

    second = nights.run(on_pending_payment="return")
    assert (second.result, nights.told["pending_payment"], nights.told["known"]) == ([], [], 3)
    roughy.top_up(10)
    third = nights.run()
    assert sorted(third.result) == sorted(unpaid)
    assert nights.run().result == []


@pytest.mark.parametrize(
    ("policy", "state", "error"),
    [("fail", "failed", RoughyIngestFailedError), ("skip", "skipped", Exception), ("return", "success", None)],
)
def test_unpaid_recordings_end_the_task_as_the_policy_says(
    roughy: Emulator, nights: Nights, policy: Any, state: str, error: type[Exception] | None
) -> None:
    roughy.progression = "manual"

    def spend() -> None:
        roughy.balance = 1
        roughy.settle()

    ended = nights.run(deferrable=True, before_resuming=spend, on_pending_payment=policy)
    assert ended.state == state
    assert error is None or isinstance(ended.error, error)
    assert (len(nights.told["ready"]), len(nights.told["pending_payment"])) == (1, 2)


def test_a_run_waits_for_unpaid_recordings_if_it_is_told_to(roughy: Emulator, nights: Nights) -> None:
    roughy.progression = "manual"

    def spend() -> None:
        roughy.balance = 1
        roughy.settle()
        roughy.clear_requests()

    with whenever(lambda: asked(roughy, "GET") >= 6, lambda: roughy.top_up(10)):
        ended = nights.run(deferrable=True, before_resuming=spend, on_pending_payment="wait")
    assert (ended.state, len(ended.result)) == ("success", 3)


def test_what_is_not_done_in_time_burns_no_retry_and_is_known_to_be_waited_for(
    roughy: Emulator, nights: Nights
) -> None:
    roughy.progression = "manual"
    ended = nights.run(timeout=0.5)
    assert (ended.state, type(ended.error)) == ("failed", RoughyIngestFailedError)
    assert "3 unfinished" in str(ended.error)
    roughy.settle()
    second = nights.run()
    assert (len(second.result), len(roughy.assets)) == (3, 3)


# ---- Deaths and overlaps


def test_a_killed_run_is_gone_on_with_by_its_next_try(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", nth=2, cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    first = nights.run(parallel=1)
    assert (first.state, type(first.error)) == ("up_for_retry", RoughyIngestError)
    assert len(nights.told["unfinished"]) == 2
    roughy.clear_faults()
    roughy.clear_requests()
    again = nights.run(again=True)
    assert (again.state, len(again.result), len(roughy.assets)) == ("success", 3, 3)
    assert asked(roughy, "POST") == 0
    for asset_id, source in nights.told["sources"].items():
        assert arrived(roughy, asset_id, Path(source))


def test_a_task_that_is_ended_in_mid_batch_ends_at_once_and_is_gone_on_with(
    roughy: Emulator,
    folder: Path,
    nights: Nights,
    connection: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that the upload that hangs lets go of Roughy's side soon.
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
    for asset_id, source in nights.told["sources"].items():
        assert arrived(roughy, asset_id, Path(source))


@once
@pytest.mark.parametrize("remembers", [True, False])
def test_a_batch_that_airflow_3_kills_is_no_success(
    roughy: Emulator, folder: Path, nights: Nights, remembers: bool
) -> None:
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
            pytest.raises(RoughyIngestError, match=r"killed when [12] of 3 files were done"),
        ):
            task.execute(context)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(roughy.assets) <= 2
    nights.options["ledger"] = task.ledger
    ended = nights.run()
    assert (ended.state, len(ended.result)) == ("success", 3)


@once
def test_a_run_that_is_alive_is_left_its_claims_and_a_dead_one_is_not(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.run()
    ledger = Ledger(tmp_path / "ledger")
    mine, half = list(ledger.entries())[:2]
    # As if another run had claimed one, and had begun to upload another.
    for taken, fields in ((mine, {"asset_id": None, "state": "claimed"}), (half, {"state": "uploading"})):
        ledger.forget(taken.key)
        assert ledger.claim(replace(taken, owner="another run", **fields)) is not None
    ledger.keep_alive("another run", time.time() + 1000)
    roughy.clear_requests()

    assert nights.run().result == []
    assert (nights.told["known"], list(nights.told["postponed"])) == (2, [mine.source])
    assert roughy.requests == []

    ledger.keep_alive("another run", time.time() - 1)
    ended = nights.run()
    assert (ended.state, len(ended.result)) == ("success", 2)
    assert asked(roughy, "POST") == 1, "one had its asset already"
    taken_over = {entry.key: entry for entry in ledger.entries()}
    assert [taken_over[entry.key].generation for entry in (mine, half)] == [2, 2]
    assert ledger.names(()).open == set()


@once
def test_a_claim_that_another_run_was_faster_with_is_left_to_it(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Ledger.claim

    def claim_after_another(ledger: Ledger, entry: Any) -> Any:
        if entry.source.endswith("b.mp3"):
            claim(ledger, replace(entry, owner="another run"))
        return claim(ledger, entry)

    monkeypatch.setattr(Ledger, "claim", claim_after_another)
    assert len(nights.run().result) == 2
    assert nights.told["postponed"] == {str(folder / "b.mp3"): "another run was faster"}


@once
def test_a_run_that_was_away_too_long_gives_up_what_was_taken_over(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "LEASE_SECONDS", 0.0)
    ledger, write = Ledger(tmp_path / "ledger"), Ledger.write

    def write_after_another(self: Ledger, entry: Any) -> Any:
        if entry.source.endswith("b.mp3"):
            ledger.claim(replace(entry, owner="another run", asset_id=None, generation=2))
        return write(self, entry)

    monkeypatch.setattr(Ledger, "write", write_after_another)
    assert len(nights.run().result) == 2
    assert "took it over" in nights.told["postponed"][str(folder / "b.mp3")]
    assert len(roughy.assets) == 2, "its own is discarded"


@once
def test_a_recording_that_was_changed_is_another_one(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    nights.run()
    shutil.copyfile(recordings["video"], folder / "b.mp3")
    assert len(nights.run().result) == 1
    assert len(roughy.assets) == 4


@once
def test_an_upload_whose_recording_was_changed_is_cancelled_by_its_run(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", nth=3, cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    nights.run(parallel=1)
    assert names(nights.told["unfinished"]) == ["c.mp3"]
    roughy.clear_faults()
    shutil.copyfile(recordings["video"], folder / "c.mp3")
    again = nights.run(again=True)
    assert (len(again.result), len(roughy.assets)) == (3, 3)


@once
def test_uploads_that_roughy_has_forgotten_are_begun_anew(
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
def test_acknowledged_bytes_that_roughy_does_not_have_are_sent_again(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", nth=2, swallow=True))
    ended = nights.run(parallel=1)
    assert (ended.state, len(ended.result)) == ("success", 3)
    for asset_id, source in nights.told["sources"].items():
        assert arrived(roughy, asset_id, Path(source))


def test_without_a_ledger_the_task_state_store_remembers_for_the_next_try(
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
def test_without_any_memory_a_try_that_fails_leaves_no_half_upload(
    roughy: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    nights = Nights(folder, ledger=None)
    roughy.inject(Fault(method="PATCH", nth=2, cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    nights.run(parallel=1)
    assert [asset["state"] for asset in roughy.assets] == ["ready"]


# ---- One recording by itself, with the same ledger


def upload_one(source: Path, ledger: Path, *, run: str = "night 1", dag: str = "other") -> Ended:
    ti = TaskInstance(run_id=run)
    ti.dag_id = dag
    task = RoughyCreateUploadOperator(task_id="upload", source=str(source), ledger=str(ledger))
    return run_task(task, context={"ti": ti})


@once
def test_a_recording_is_uploaded_once_whoever_uploads_it(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    alone = upload_one(folder / "a.mp3", tmp_path / "ledger")
    assert upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2").result == alone.result
    assert (len(nights.run().result), nights.told["known"], len(roughy.assets)) == (2, 1, 3)
    roughy.clear_requests()
    batched = upload_one(folder / "b.mp3", tmp_path / "ledger").result
    assert nights.told["sources"][batched] == str(folder / "b.mp3")
    assert asked(roughy, "POST") == asked(roughy, "PATCH") == 0


def test_a_ledger_makes_an_upload_outlive_its_try_on_every_airflow(
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
def test_a_recording_that_somebody_is_about_to_upload_is_left_to_them(
    roughy: Emulator, folder: Path, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    upload_one(folder / "a.mp3", tmp_path / "ledger")
    (entry,) = ledger.entries()
    ledger.forget(entry.key)
    assert ledger.claim(replace(entry, owner="another run", asset_id=None, state="claimed")) is not None
    ledger.keep_alive("another run", time.time() + 1000)
    ended = upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2")
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyClaimedError)
    ledger.keep_alive("another run", 0.0)
    assert upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2").state == "success"
    assert len(roughy.assets) == 2


@once
def test_a_recording_whose_asset_was_deleted_is_uploaded_anew_by_itself(
    roughy: Emulator, folder: Path, tmp_path: Path, hook: RoughyHook
) -> None:
    first = upload_one(folder / "a.mp3", tmp_path / "ledger").result
    hook.delete_asset(first)
    second = upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2").result
    assert second != first
    assert upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 3").result == second


# ---- What people do with a ledger


@once
def test_what_was_deleted_at_roughy_is_ingested_again_if_somebody_says_so(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, hook: RoughyHook
) -> None:
    nights.run()
    ledger = Ledger(tmp_path / "ledger")
    assert hook.recheck_ledger(ledger) == []
    deleted = nights.told["ready"][1]
    hook.delete_asset(deleted)
    assert nights.run().result == [], "it is known"
    roughy.clear_requests()
    assert [entry.asset_id for entry in hook.recheck_ledger(ledger)] == [deleted]
    assert len(roughy.requests) == 2
    assert [entry.asset_id for entry in hook.recheck_ledger(ledger, forget=True)] == [deleted]
    assert len(nights.run().result) == 1
    assert [entry.state for entry in ledger.entries()] == ["ready"] * 3


# ---- Plan before pay


def long(folder: Path, name: str, minutes: float, day: int) -> None:
    media.make_long_audio(folder / name, seconds=minutes * 60 - 1)
    os.utime(folder / name, (1_770_000_000 + day * 86400,) * 2)


@once
def test_a_dry_run_tells_the_price_and_creates_nothing(
    roughy: Emulator, folder: Path, nights: Nights, log: Callable[[], str]
) -> None:
    long(folder, "talk.wav", 3, day=5)
    ended = nights.run(dry_run=True)
    assert (ended.state, ended.result) == ("success", [])
    assert nights.told["postponed"][str(folder / "talk.wav")] == "dry run, 3 credits"
    assert "4 recordings to upload, for 6 credits in all" in log()
    assert {request.method for request in roughy.requests} == {"GET"}
    assert roughy.assets == []
    assert len(nights.run().result) == 4


@once
def test_a_dry_run_leaves_alone_what_others_have_left(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    roughy.progression = "manual"
    assert nights.run(timeout=0.3).state == "failed"
    roughy.settle()
    add(folder, "d.mp3", recordings["audio"])
    roughy.clear_requests()
    assert nights.run(dry_run=True).result == []
    assert (names(nights.told["postponed"]), nights.told["known"]) == (["d.mp3"], 3)
    assert {request.path for request in roughy.requests} == {"/v1/credits/balance"}
    roughy.progression = "immediate"
    assert len(nights.run().result) == 4


@once
def test_what_does_not_fit_is_left_to_the_next_run_the_oldest_going_first(
    roughy: Emulator, folder: Path, nights: Nights
) -> None:
    long(folder, "old.wav", 3, day=-1)
    long(folder, "new.wav", 2, day=20)
    balance = roughy.balance
    ended = nights.run(max_credits="5")
    assert len(ended.result) == 3
    assert names(nights.told["postponed"]) == ["c.mp3", "new.wav"]
    assert "it costs 2 credits, and 0 are left" in nights.told["postponed"][str(folder / "new.wav")]
    assert balance - roughy.balance == 5
    assert len(nights.run(max_credits=5).result) == 2


@once
def test_the_balance_bounds_a_run_with_max_credits(roughy: Emulator, nights: Nights) -> None:
    roughy.balance = 2
    ended = nights.run(max_credits=100)
    assert (len(ended.result), names(nights.told["postponed"])) == (2, ["c.mp3"])


@once
def test_an_unknown_length_counts_as_the_user_says(
    roughy: Emulator, folder: Path, nights: Nights, log: Callable[[], str]
) -> None:
    media.make_audio(folder / "raw.aac", seconds=3, format="aac")
    nights.run(max_credits=9, credits_if_unknown=7)
    assert names(nights.told["postponed"]) == ["raw.aac"]
    assert "The headers of 1 recording do not tell how long it is; it counts for 7 credits each" in log()


# ---- Still being written


@once
def test_files_that_are_still_being_written_are_left_for_later(folder: Path, nights: Nights) -> None:
    # They have just been made, however old their times of modification say they are.
    assert nights.run(stable_for=3600).result == []
    assert names(nights.told["postponed"]) == ["a.mp3", "b.mp3", "c.mp3"]
    time.sleep(0.3)
    # Nor is one still being written whose camera has a wrong clock.
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
def test_bad_input_is_told_before_anything_is_created(
    roughy: Emulator, nights: Nights, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    ended = nights.run(**options)
    assert (ended.state, type(ended.error)) == ("failed", error)
    assert words in str(ended.error)
    assert roughy.requests == []


@once
def test_a_project_that_does_not_exist_is_named(nights: Nights, log: Callable[[], str]) -> None:
    nobody = "01900000-0000-7000-8000-00000000dead"
    ended = nights.run(project_id=nobody)
    assert (ended.state, type(ended.error)) == ("failed", RoughyNotFoundError)
    assert f"no project {nobody}" in log()


@once
def test_an_entry_that_cannot_be_read_concerns_its_own_recording_only(
    roughy: Emulator, tmp_path: Path, folder: Path, nights: Nights
) -> None:
    nights.run(source=str(folder / "b.mp3"))
    (entry,) = (tmp_path / "ledger").glob("*.json")
    # As a power cut may leave it, and that of a recording of another task.
    for name in (entry.stem, "0" * 32):
        (entry.parent / f"{name}.json").write_bytes(b"")
        (entry.parent / f"{name}.open").touch()
    ended = nights.run()
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyIngestError)
    assert (len(nights.told["ready"]), names(nights.told["unfinished"])) == (2, ["b.mp3"])
    assert f"{entry.name} of ledger" in str(ended.error)
    assert len(roughy.assets) == 3


@once
def test_a_ledger_in_the_source_is_refused(roughy: Emulator, folder: Path, nights: Nights) -> None:
    ended = nights.run(ledger=f"file://{folder}/ledger")
    assert type(ended.error) is RoughyUnusableLedgerError
    assert not (folder / "ledger").exists()
    assert roughy.requests == []


@once
def test_a_file_that_is_named_twice_is_refused(roughy: Emulator, folder: Path, nights: Nights) -> None:
    ended = nights.run(source=[str(folder / "a.mp3"), f"{folder}/./a.mp3", str(folder)])
    assert type(ended.error) is RoughyUnusableSourceError
    assert "1 file twice" in str(ended.error)
    assert roughy.requests == []


@pytest.mark.parametrize(("on_empty", "state"), [("return", "success"), ("skip", "skipped"), ("fail", "failed")])
def test_an_empty_folder_is_what_the_user_says(
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
def test_an_option_that_is_none_is_refused_when_the_dag_is_read(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RoughyIngestOperator(task_id="ingest", source="/data", **options)


@once
def test_odd_names_are_names(roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]) -> None:
    odd = ["two words.mp3", "Folge #1.mp3", "a%20b.mp3", "new\nline.mp3", "what?.MP3", "[x].mp3", "ü" * 100 + ".mp3"]
    for name in odd:
        add(folder, name, recordings["audio"])
    os.link(folder / "a.mp3", os.fsencode(folder) + b"/\xff\xfe.mp3")
    assert len(nights.run().result) == 11
    assert sorted(asset["sha256"] for asset in roughy.assets) == [roughy.assets[0]["sha256"]] * 11
    assert nights.run().result == []
    assert nights.told["known"] == 11


@once
def test_folders_of_folders_and_links_in_a_circle(folder: Path, nights: Nights, recordings: dict[str, Path]) -> None:
    (folder / "monday").mkdir()
    add(folder / "monday", "d.mp3", recordings["audio"])
    (folder / "monday" / "up").symlink_to(folder)
    (folder / "loop.mp3").symlink_to(folder / "loop.mp3")
    assert len(nights.run(on_failed="return").result) == 3
    assert len(nights.run(recursive=True, on_failed="return").result) == 1
    assert "symbolic links" in nights.told["refused"][str(folder / "loop.mp3")]


@once
def test_a_file_that_links_lead_to_as_well_is_paid_for_once(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    for name in ("circle", "another circle"):
        (folder / name).symlink_to(folder)
    (folder / "Latest.mp3").symlink_to("c.mp3")
    (folder.parent / "elsewhere.mp3").write_bytes(recordings["audio"].read_bytes())
    (folder / "d.mp3").symlink_to(folder.parent / "elsewhere.mp3")
    nights.run(dry_run=True, source=f"{folder}/**/*.mp3")
    assert sorted(nights.told["postponed"]) == [str(folder / f"{name}.mp3") for name in "abcd"]
    assert len(nights.run().result) == 4
    assert nights.run(source=f"{folder}/**/*.mp3").result == []
    assert len(roughy.assets) == 4


def away(monkeypatch: pytest.MonkeyPatch, call: str, path: Path) -> None:
    """Let a network's file system be away, as one call of it shows."""
    original = getattr(os, call)

    def fail(target: Any = ".", *args: Any, **options: Any) -> Any:
        if str(target) == str(path):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return original(target, *args, **options)

    monkeypatch.setattr(os, call, fail)


@once
@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_is_away_for_a_while_may_be_retried(
    roughy: Emulator, folder: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    away(monkeypatch, call, folder)
    ended = nights.run()
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughySourceError)
    assert "Stale file handle" in str(ended.error)
    assert roughy.requests == []


@once
def test_a_file_that_is_away_for_a_while_is_left_to_the_next_try(
    folder: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        away(patched, "stat", folder / "b.mp3")
        ended = nights.run()
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyIngestError)
    assert names(nights.told["unfinished"]) == ["b.mp3"]
    assert len(nights.told["ready"]) == 2
    assert len(nights.run(again=True).result) == 3


@once
def test_patterns_choose_by_name(folder: Path, nights: Nights) -> None:
    assert len(nights.run(pattern=["A*.mp3", "c.*"]).result) == 2
    assert len(nights.run(source=str(folder / "[ab].mp3")).result) == 1
