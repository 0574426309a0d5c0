"""``retry`` of a batch: which recordings a run ingests again, and how often."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.ingest.again import names_of
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.operators import RoughyIngestOperator
from tests.commanding import Run
from tests.ingesting import Nights, add, names, upload_one
from tests.running import Ended, TaskInstance, run_task
from tests.test_legacy import Release02
from tests.uploading import asked

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def ledger(nights: Nights) -> Ledger:
    return Ledger(str(nights.options["ledger"]))


def key_of(ledger: Ledger, name: str) -> str:
    (key,) = (entry.key for entry in ledger.entries() if entry.source.endswith(f"/{name}"))
    return key


def failed_at_first(roughy: Emulator, nights: Nights) -> None:
    """A night that Roughy has failed all of."""
    roughy.progression = "manual"

    def fail() -> None:
        for asset in roughy.assets:
            roughy.set_state(asset["id"], "failed", error_code="corrupt", error_message="Cut off.")

    nights.run(deferrable=True, before_resuming=fail, on_failed="return")
    assert len(nights.xcoms["failed"]) == 3
    roughy.progression = "immediate"


@pytest.mark.parametrize("named", ["key", "name", "path", "uri"])
def test_a_run_ingests_again_what_retry_names(
    roughy: Emulator, nights: Nights, folder: Path, ledger: Ledger, named: str, log: Any
) -> None:
    failed_at_first(roughy, nights)
    name = {
        "key": key_of(ledger, "b.mp3"),
        "name": "b.mp3",
        "path": str(folder / "b.mp3"),
        "uri": f"file://{folder}/b.mp3",
    }[named]
    log()
    nights.run(retry=[name], deferrable=named == "uri")
    assert names(list(nights.xcoms["sources"].values())) == ["b.mp3"]
    assert nights.xcoms["already_ingested"] == {"failed": 2}
    text = log()
    assert f"Ingesting again, as `retry` names it: {folder}/b.mp3, which was failed; Roughy charges this upload" in text
    # Later runs leave it out, and count it by its latest result.
    nights.run()
    assert nights.xcoms["already_ingested"] == {"failed": 2, "ready": 1}
    assert sorted(entry.state for entry in ledger.entries()) == ["failed", "failed", "ready"]
    # The other operator takes what has succeeded, too.
    assert upload_one(folder / "b.mp3", Path(str(nights.options["ledger"]))).state == "success"
    assert len(roughy.assets) == 4


def test_a_ready_recording_is_ingested_and_charged_again(roughy: Emulator, nights: Nights) -> None:
    (before,) = (set(nights.run().result),)
    again = nights.run(retry=["a.mp3", "a.mp3"])
    assert len(again.result) == 1
    assert not set(again.result) & before
    assert roughy.balance == 1000 - 4
    # Another run with the same names ingests it once more: it was asked to.
    assert len(nights.run(retry=["a.mp3"]).result) == 1
    assert nights.run().result == []
    assert len(roughy.assets) == 5


def test_a_retry_and_a_cleared_task_do_not_ingest_it_once_more(roughy: Emulator, nights: Nights) -> None:
    nights.run()
    first = nights.run(retry=["a.mp3", "b.mp3"])
    assert len(roughy.assets) == 5
    for _ in range(2):
        assert sorted(nights.run(again=True, retry=["a.mp3", "b.mp3"]).result) == sorted(first.result)
    assert len(roughy.assets) == 5


def test_a_killed_task_resumes_what_it_ingests_again(
    roughy: Emulator, nights: Nights, connection: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.run()
    roughy.clear_requests()
    roughy.inject(Fault(method="PATCH", nth=1, delay=1.0))
    ended = nights.run(retry=["a.mp3", "b.mp3"], parallel=1, kill_once=lambda: asked(roughy, "PATCH") >= 1)
    assert (ended.state, len(ended.result), len(roughy.assets)) == ("success", 2, 5)


def test_two_live_tries_ingest_it_again_once(roughy: Emulator, nights: Nights) -> None:
    nights.run()
    roughy.inject(Fault(method="POST", path="/v1/assets", times=None, delay=0.4))
    ended: list[Ended] = []

    def one() -> None:
        task = RoughyIngestOperator(
            task_id="ingest", poll_interval=0.2, timeout=60, retry=["a.mp3", "b.mp3"], **nights.options
        )
        ended.append(run_task(task, context={"ti": TaskInstance(run_id="night 2")}))

    first = threading.Thread(target=one)
    first.start()
    time.sleep(0.2)
    one()
    first.join()
    whole = [asset for asset in roughy.assets if asset["state"] == "ready"]
    assert len(whole) == 5
    nights.number = 1
    assert len(nights.run(again=False, retry=["a.mp3", "b.mp3"]).result) == 2
    assert len(roughy.assets) == 5


def test_what_a_dead_run_began_to_ingest_again_is_finished_by_a_later_run(
    roughy: Emulator, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No pauses between requests that are repeated.
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    nights.run()
    roughy.inject(Fault(method="PATCH", times=8, status=503))
    broken = nights.run(retry=["a.mp3"])
    assert (broken.state, len(roughy.assets)) == ("up_for_retry", 4)
    roughy.clear_faults()
    # It is not named any more.
    assert len(nights.run().result) == 1
    assert len(roughy.assets) == 4
    assert nights.run().result == []


def test_what_is_done_meanwhile_is_not_ingested_again_by_a_retry(roughy: Emulator, nights: Nights, log: Any) -> None:
    """It was not paid for when the run started, so that there was nothing to ingest again."""
    roughy.progression = "manual"

    def spend() -> None:
        roughy.balance = 2
        roughy.settle()

    nights.run(deferrable=True, before_resuming=spend, on_pending_payment="return")
    (unpaid,) = nights.xcoms["pending_payment"]
    name = Path(nights.xcoms["sources"][unpaid]).name
    log()
    nights.run(on_pending_payment="return", retry=[name])
    assert "Not ingesting again, as it was not done when this run started:" in log()
    roughy.top_up(10)
    assert nights.run(again=True, retry=[name]).result == [unpaid]
    assert nights.run(again=True, retry=[name]).result == [unpaid]
    assert len(roughy.assets) == 3


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (["x.mp3"], "'x.mp3', which is neither a key of ledger"),
        (["a.mp3", "0" * 40], "'0000000000000000000000000000000000000000', which is neither a key"),
        (["same.mp3"], "which may be any of"),
    ],
    ids=["name", "key", "ambiguous"],
)
def test_a_name_that_is_nothing_fails_before_anything_is_created(
    roughy: Emulator, nights: Nights, folder: Path, recordings: dict[str, Path], named: list[str], words: str
) -> None:
    nights.run()
    for name in ("x", "y"):
        (folder / name).mkdir()
        add(folder / name, "same.mp3", recordings["video"])
    add(folder, "new.mp3", recordings["audio"])
    roughy.clear_requests()
    ended = nights.run(retry=named, recursive=True)
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert words in str(ended.error)
    assert asked(roughy, "POST") == 0


def test_a_recording_whose_file_is_gone_cannot_be_ingested_again(
    roughy: Emulator, nights: Nights, folder: Path, ledger: Ledger
) -> None:
    nights.run()
    key = key_of(ledger, "a.mp3")
    (folder / "a.mp3").unlink()
    assert nights.run(retry=[key]).state == "failed"
    assert len(roughy.assets) == 3


@pytest.mark.parametrize("state", ["failed", "rejected"])
def test_a_file_that_failed_is_new_once_its_content_changes(
    roughy: Emulator, nights: Nights, folder: Path, recordings: dict[str, Path], ledger: Ledger, state: str
) -> None:
    if state == "failed":
        failed_at_first(roughy, nights)
    else:
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "b.mp3").write_text("no recording " * 10)
        nights.run(on_failed="return")
    key = key_of(ledger, "b.mp3")
    assert nights.run().result == []
    shutil.copyfile(recordings["video"], folder / "b.mp3")
    assert len(nights.run().result) == 1
    # Its old key is the same file, which is done as it is now.
    assert len(nights.run(retry=[key]).result) == 1
    assert nights.run().result == []


def test_forgetting_it_forgets_all_of_its_results(
    roughy: Emulator, nights: Nights, ledger: Ledger, folder: Path, run: Run
) -> None:
    failed_at_first(roughy, nights)
    nights.run(retry=["b.mp3"])
    again = key_of(ledger, "b.mp3")
    assert ledger.find_result(again) is not None
    assert ledger.forget(again)
    assert sorted(Path(entry.source).name for entry in ledger.entries()) == ["a.mp3", "c.mp3"]
    assert len(nights.run().result) == 1
    assert nights.xcoms["already_ingested"] == {"failed": 2}
    assert ledger.forget(key_of(ledger, "b.mp3"))
    assert not ledger.forget(again)


def test_a_recording_of_0_2_is_ingested_again(roughy: Emulator, nights: Nights, folder: Path, ledger: Ledger) -> None:
    before = Release02(Path(str(nights.options["ledger"])))
    file = folder / "a.mp3"
    about: dict[str, Any] = {
        "size": file.stat().st_size,
        "mtime": str(file.stat().st_mtime_ns),
        "project_id": roughy.project_id,
    }
    key = before.write(str(file), "failed", asset_id=roughy.seed_asset("failed"), **about)
    nights.number = 8
    nights.run()
    assert nights.xcoms["already_ingested"] == {"failed": 1}
    assert len(nights.run(retry=[key]).result) == 1
    assert nights.run().result == []
    assert len(roughy.assets) == 4


def test_recordings_that_are_identified_by_content_are_ingested_again(
    roughy: Emulator, nights: Nights, folder: Path
) -> None:
    nights.options["identity"] = "content"
    shutil.copyfile(folder / "a.mp3", folder / "copy.mp3")
    os.utime(folder / "copy.mp3", (1_790_000_000,) * 2)
    first = nights.run()
    assert len(nights.run(retry=["a.mp3"]).result) == 1
    assert len(roughy.assets) == len(first.result) + 1
    assert nights.run().result == []
    refused = nights.run(retry=["copy.mp3"])
    assert "has the same content as another file" in str(refused.error)


def test_a_dry_run_prices_it_and_decides_nothing(roughy: Emulator, nights: Nights, log: Any) -> None:
    pytest.importorskip("av")
    nights.run()
    log()
    nights.run(retry=["a.mp3"], dry_run=True)
    assert "Planned 1 upload for 1 credit" in log()
    assert len(nights.run(again=True, retry=["a.mp3"]).result) == 1


@pytest.mark.parametrize(
    ("rendered", "expected"),
    [
        (None, []),
        ("", []),
        ("None", []),
        ("[]", []),
        (["a.mp3", "", "None"], ["a.mp3"]),
        ("a.mp3", ["a.mp3"]),
        ("['a.mp3', 'b.mp3']", ["a.mp3", "b.mp3"]),
        ('["a.mp3"]', ["a.mp3"]),
        ("[take 1].mp3", ["[take 1].mp3"]),
        (("a.mp3",), ["a.mp3"]),
    ],
)
def test_names_are_read_as_templates_render_them(rendered: Any, expected: list[str]) -> None:
    assert names_of(rendered) == expected


@pytest.mark.parametrize("rendered", [7, [7], "[7]"])
def test_anything_else_is_refused(rendered: Any) -> None:
    with pytest.raises(RoughyConfigurationError, match="must be a list of ledger keys, file names or URIs"):
        names_of(rendered)


def test_retry_needs_a_ledger() -> None:
    assert "retry" in RoughyIngestOperator.template_fields
    with pytest.raises(ValueError, match="`retry` needs a `ledger`"):
        RoughyIngestOperator(task_id="ingest", source="/in", retry=["a.mp3"])
