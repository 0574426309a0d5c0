"""``identity="content"``: a file that was moved, renamed, copied or touched is the same recording."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.operators import RoughyIngestOperator
from harness import media
from tests.ingesting import Nights, add, names, upload_one
from tests.uploading import asked

pytestmark = [pytest.mark.usefixtures("patient"), pytest.mark.once]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings of different content, oldest first: a, b, c."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    for day, name in enumerate("abc"):
        made = media.make_long_audio(tmp_path / f"{name}.wav", seconds=1 + day)
        add(folder, f"{name}.wav", made, day=day)
    return folder


@pytest.fixture
def nights(folder: Path, tmp_path: Path) -> Nights:
    nights = Nights(folder, ledger=tmp_path / "ledger")
    nights.options["identity"] = "content"
    return nights


def replace_unnoticed(file: Path) -> None:
    """Give a file other bytes, which only somebody who reads it notices."""
    before = file.stat()
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"else")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_moved_renamed_copied_and_touched_files_are_not_paid_for_again(
    roughy: Emulator, folder: Path, nights: Nights
) -> None:
    assert len(nights.run(recursive=True).result) == 3
    (folder / "sub").mkdir()
    (folder / "a.wav").rename(folder / "sub" / "a.wav")
    (folder / "b.wav").rename(folder / "z.wav")
    os.utime(folder / "c.wav")
    shutil.copyfile(folder / "c.wav", folder / "copy.wav")
    roughy.clear_requests()
    ended = nights.run(recursive=True)
    assert (ended.state, ended.result, roughy.requests) == ("success", [], [])
    assert nights.xcoms["already_ingested"] == {"ready": 3, "duplicate": 1}
    assert len(roughy.assets) == 3


def test_by_default_a_moved_file_is_a_new_recording(roughy: Emulator, folder: Path, nights: Nights) -> None:
    del nights.options["identity"]
    nights.run()
    (folder / "a.wav").rename(folder / "z.wav")
    assert len(nights.run().result) == 1
    assert len(roughy.assets) == 4


def test_file_with_other_bytes_is_a_new_recording(roughy: Emulator, folder: Path, nights: Nights) -> None:
    nights.run()
    replace_unnoticed(folder / "a.wav")
    os.utime(folder / "a.wav")
    assert len(nights.run().result) == 1
    assert len(roughy.assets) == 4


@pytest.mark.parametrize("paid", [True, False])
def test_each_file_is_read_once(roughy: Emulator, folder: Path, nights: Nights, paid: bool) -> None:
    roughy.progression = "manual"

    def settle() -> None:
        roughy.balance = 100 if paid else 1
        roughy.settle()

    # Only once all three are uploaded: without credits Roughy creates no asset.
    nights.run(deferrable=True, before_resuming=settle, on_pending_payment="return")
    assert (len(nights.xcoms["ready"]), len(nights.xcoms["pending_payment"])) == ((3, 0) if paid else (1, 2))
    for file in folder.iterdir():
        replace_unnoticed(file)
    roughy.balance = 100
    roughy.progression = "immediate"
    nights.run(on_pending_payment="return")
    assert (len(roughy.assets), nights.xcoms["interrupted"]) == (3, {})


def test_files_of_equal_content_are_one_recording(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, log: Callable[[], str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    add(other, "same.wav", folder / "a.wav", day=20)
    nights.options["source"] = [str(folder), str(other)]
    ended = nights.run(max_credits=3)
    assert (ended.state, len(ended.result), len(roughy.assets)) == ("success", 3, 3)
    assert (nights.xcoms["already_ingested"], nights.xcoms["deferred"]) == ({"duplicate": 1}, {})
    copies = f"{other / 'same.wav'} (as {folder / 'a.wav'})"
    assert f"Skipped 1 file with the same content as another one: {copies}" in log()
    # The first one is gone: the other is known as the same.
    (folder / "a.wav").unlink()
    assert nights.run().result == []
    assert nights.xcoms["already_ingested"] == {"ready": 3}


def test_dry_run_reports_each_content_once_and_binds_no_other_task(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    shutil.copyfile(folder / "a.wav", folder / "copy.wav")
    nights.run(dry_run=True)
    assert (names(nights.xcoms["deferred"]), roughy.assets) == (["a.wav", "b.wav", "c.wav"], [])
    assert not Ledger(tmp_path / "ledger").identifies_by_content()
    assert len(nights.run().result) == 3


def test_upload_of_one_file_finds_what_a_batch_has_ingested(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    ready = nights.run().result
    (folder / "a.wav").rename(folder / "z.wav")
    assert upload_one(folder / "z.wav", tmp_path / "ledger").result in ready
    assert upload_one(folder / "b.wav", tmp_path / "ledger").result in ready
    assert len(roughy.assets) == 3


def test_batch_finds_what_an_upload_of_one_file_has_ingested(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    Ledger(tmp_path / "ledger").check()
    Ledger(tmp_path / "ledger").identify_by_content()
    upload_one(folder / "a.wav", tmp_path / "ledger")
    (folder / "a.wav").rename(folder / "z.wav")
    assert len(nights.run().result) == 2
    assert len(roughy.assets) == 3


def test_recordings_identified_by_location_stay_ingested(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    upload_one(folder / "a.wav", tmp_path / "ledger")
    nights.run(identity="location", source=str(folder / "b.wav"))
    assert len(nights.run().result) == 1
    assert len(roughy.assets) == 3
    # A batch that does not say so identifies by content as well, from now on.
    (folder / "c.wav").rename(folder / "z.wav")
    assert nights.run(identity="location").result == []
    assert len(roughy.assets) == 3


@pytest.mark.parametrize("lost", ["contents", "results"])
def test_ledger_that_lost_the_contents_or_the_results_is_safe(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, lost: str
) -> None:
    """As if the run was killed between the two writes."""
    nights.run(on_failed="return")
    ledger = tmp_path / "ledger"
    if lost == "contents":
        for file in (ledger / "contents").iterdir():
            file.unlink()
        assert nights.run().result == []
        assert len(list((ledger / "contents").iterdir())) == len(roughy.assets) == 3
        return
    for entry in Ledger(ledger).entries():
        Ledger(ledger).forget(entry.key)
    assert len(nights.run().result) == 3


def test_retry_resumes_a_file_that_was_moved(roughy: Emulator, folder: Path, nights: Nights) -> None:
    roughy.inject(Fault(method="POST", path="/v1/assets", nth=3, status=500))
    assert nights.run(parallel=1).state == "up_for_retry"
    for name in "abc":
        (folder / f"{name}.wav").rename(folder / f"moved-{name}.wav")
    assert len(nights.run(again=True).result) == 3
    assert [asset["state"] for asset in roughy.assets] == ["ready"] * 3


def test_unreadable_file_does_not_affect_the_rest(roughy: Emulator, folder: Path, nights: Nights) -> None:
    (folder / "text.wav").write_text("no recording at all " * 50)
    (folder / "tiny.wav").write_text("tiny")
    (folder / "gone.wav").symlink_to(folder / "nowhere")
    nights.run(on_failed="return")
    assert (len(nights.xcoms["ready"]), names(nights.xcoms["rejected"])) == (3, ["gone.wav", "text.wav", "tiny.wav"])
    (folder / "text.wav").rename(folder / "text 2.wav")
    nights.run()
    assert nights.xcoms["already_ingested"] == {"ready": 3, "rejected": 3}


def test_file_still_written_to_is_not_read(roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights) -> None:
    (folder / "new.wav").write_bytes((folder / "a.wav").read_bytes() + b"more")
    for name in "abc":
        (folder / f"{name}.wav").unlink()
    nights.run(stable_for=3600)
    assert names(nights.xcoms["deferred"]) == ["new.wav"]
    assert Ledger(tmp_path / "ledger").contents() == {}


def test_content_needs_a_ledger() -> None:
    with pytest.raises(ValueError, match="needs a `ledger`"):
        RoughyIngestOperator(task_id="ingest", source="/in", identity="content")
    with pytest.raises(ValueError, match="identity must be one of"):
        RoughyIngestOperator(task_id="ingest", source="/in", ledger="/l", identity="bytes")  # type: ignore[arg-type]


def test_recording_is_the_same_in_another_storage(
    roughy: Emulator, folder: Path, nights: Nights, s3: Any, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs", reason="the group s3 is installed for the newest Airflow only")
    for name in "abc":
        s3.upload_file(str(folder / f"{name}.wav"), "recordings", f"in/{name}.wav")
    options: dict[str, Any] = {"source": "s3://s3@recordings/in/", "ledger": "s3://s3@recordings/ledger"}
    assert len(nights.run(**options).result) == 3
    s3.copy_object(Bucket="recordings", CopySource="recordings/in/a.wav", Key="in/z.wav")
    s3.delete_object(Bucket="recordings", Key="in/a.wav")
    roughy.clear_requests()
    assert nights.run(**options).result == []
    assert nights.run(**{**options, "source": str(folder)}).result == []
    assert (asked(roughy, "POST"), nights.xcoms["already_ingested"]) == (0, {"ready": 3})
