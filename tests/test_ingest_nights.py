"""A batch over several runs: identity, retries, overlaps, unpaid assets, errors, and costs."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import fsspec.implementations.memory
import pytest

from airflow_provider_roughy.compat import TaskDeferred, attach
from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyClaimedError,
    RoughyConfigurationError,
    RoughyIngestError,
    RoughyIngestFailedError,
    RoughyUnsupportedMediaError,
    RoughyUnusableLedgerError,
)
from airflow_provider_roughy.ingest.discover import find_file
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, Version
from airflow_provider_roughy.operators import RoughyCreateUploadOperator, RoughyIngestOperator
from harness import media
from tests.ingesting import Nights, add, names, upload_one
from tests.running import Ended, TaskInstance, run_task
from tests.uploading import asked

#: Called with each request that Roughy has answered.
ON_REQUEST: list[Callable[[Any], None]] = []

pytestmark = [
    pytest.mark.usefixtures("patient"),
    pytest.mark.roughy(on_request=lambda request: [each(request) for each in ON_REQUEST]),
]


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    yield
    ON_REQUEST.clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between requests that are repeated."""
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)


# ---- Identity


def test_recording_is_uploaded_once_however_its_path_is_spelled(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    nights.run()
    (tmp_path / "latest").symlink_to(folder)
    file = folder / "a.mp3"
    for spelled in (
        f"file://{file}",
        f"{folder}/../{folder.name}//a.mp3",
        os.path.relpath(file),
        tmp_path / "latest" / "a.mp3",
    ):
        assert upload_one(str(spelled), tmp_path / "ledger").result in nights.xcoms["ready"]
    assert nights.run(source=[str(tmp_path / "latest"), str(folder)]).result == []
    assert len(roughy.assets) == 3


def test_project_is_the_same_in_any_spelling(roughy: Emulator, nights: Nights) -> None:
    for project_id in (
        roughy.project_id,
        roughy.project_id.upper(),
        UUID(roughy.project_id).hex,
        f"{{{roughy.project_id}}}",
    ):
        nights.run(project_id=project_id)
    assert len(roughy.assets) == 3


def test_file_that_links_and_sources_lead_to_is_one_recording(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    (tmp_path / "latest").symlink_to(folder)
    (folder / "twin.mp3").hardlink_to(folder / "c.mp3")
    assert len(nights.run(source=[str(folder), str(tmp_path / "latest"), str(folder / "a.mp3")]).result) == 3
    # The other name of a recording that is done is no other recording.
    (folder / "0.mp3").hardlink_to(folder / "b.mp3")
    assert nights.run().result == []
    assert len(roughy.assets) == 3


def test_object_whose_metadata_was_edited_is_not_paid_for_again(
    roughy: Emulator, tmp_path: Path, recordings: dict[str, Path]
) -> None:

    class Objects(fsspec.implementations.memory.MemoryFileSystem):  # type: ignore[misc]  # fsspec is untyped.
        """Says of an object what gcsfs says: an edit of its metadata changes the etag."""

        protocol = ("gs", "gcs")
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]
        edits = 0

        def info(self, path: str, **options: Any) -> Any:
            found = super().info(path, **options)
            facts = {
                "etag": f"CIE{self.edits}",
                "generation": "17",
                "metageneration": str(self.edits),
                "updated": f"{self.edits}",
            }
            return found | facts if found["type"] == "file" else found

        def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
            return [self.info(each["name"]) if detail else each["name"] for each in super().ls(path, detail=True)]

    objects = Objects()
    objects.pipe_file("/recordings/in/a.mp3", recordings["audio"].read_bytes())
    attach("gs").fs = objects
    nights = Nights(tmp_path, ledger=tmp_path / "ledger")
    assert len(nights.run(source="gs://recordings/in/").result) == 1
    Objects.edits = 1
    assert nights.run(source="gs://recordings/in/").result == []
    assert len(roughy.assets) == 1


def test_file_replaced_before_its_upload_is_not_paid_for_twice(roughy: Emulator, folder: Path, nights: Nights) -> None:
    """Tags that are written into a padding leave the size as it is; another file grows, and one is moved away."""
    (folder / "d.mp3").write_bytes((folder / "a.mp3").read_bytes())

    def change(request: Any) -> None:
        if request.method == "POST" and (folder / "d.mp3").exists():
            content = bytearray((folder / "b.mp3").read_bytes())
            content[-1] ^= 1
            (folder / "b.mp3").write_bytes(content)
            with (folder / "c.mp3").open("ab") as file:
                file.write(b"more")
            (folder / "d.mp3").unlink()

    ON_REQUEST.append(change)
    first = nights.run(parallel=1)
    assert (first.state, names(nights.xcoms["interrupted"])) == ("up_for_retry", ["b.mp3", "c.mp3", "d.mp3"])
    again = nights.run(again=True)
    assert (again.state, len(again.result)) == ("success", 3)
    assert nights.run().result == []
    assert len(roughy.assets) == 3


# ---- What is in the way


def test_broken_link_is_rejected_once(roughy: Emulator, folder: Path, nights: Nights) -> None:
    (folder / "z.mp3").symlink_to("/nowhere.mp3")
    os.mkfifo(folder / "pipe.mp3")
    first = nights.run()
    assert (type(first.error), names(nights.xcoms["rejected"])) == (RoughyIngestFailedError, ["pipe.mp3", "z.mp3"])
    second = nights.run()
    assert (second.state, second.result) == ("success", [])
    assert nights.xcoms["already_ingested"] == {"ready": 3, "rejected": 2}


def test_unreadable_folder_in_the_source_does_not_stop_the_rest(
    roughy: Emulator,
    folder: Path,
    tmp_path: Path,
    nights: Nights,
    log: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "lost+found").mkdir()
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    first = nights.run(recursive=True)
    assert (type(first.error), len(nights.xcoms["ready"])) == (RoughyIngestFailedError, 3)
    assert "Permission denied" in nights.xcoms["rejected"][str(folder / "lost+found")]
    log()
    second = nights.run(recursive=True)
    assert second.state == "success"
    assert "lost+found" in log(), "it is in the log of each run"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the task has logged, since it was asked last."""
    caplog.set_level("INFO")

    def read() -> str:
        text = caplog.text + capsys.readouterr().out
        caplog.clear()
        return text

    return read


def test_text_false_is_refused_as_a_boolean() -> None:
    for name in ("dry_run", "recursive"):
        with pytest.raises(ValueError, match=f"{name} must be True or False, not 'False'"):
            RoughyIngestOperator(task_id="ingest", source="/data", **{name: "False"})  # type: ignore[arg-type]


@pytest.mark.parametrize("location", ["None", "", "ledger", "./ledger", "null"])
def test_relative_path_as_ledger_is_refused(roughy: Emulator, nights: Nights, location: str) -> None:
    ended = nights.run(ledger=location)
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableLedgerError)
    assert roughy.requests == []


def test_ledger_on_an_unmounted_volume_is_refused(roughy: Emulator, tmp_path: Path, nights: Nights) -> None:
    (tmp_path / "nas" / "roughy").mkdir(parents=True)
    where = tmp_path / "nas" / "roughy" / "ledger"
    assert len(nights.run(ledger=str(where)).result) == 3
    (tmp_path / "nas").rename(tmp_path / "elsewhere")
    (tmp_path / "nas").mkdir()
    ended = nights.run(ledger=str(where))
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableLedgerError)
    assert "Is the volume mounted" in str(ended.error)
    assert len(roughy.assets) == 3


def test_ledger_linked_into_the_source_is_refused(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    (tmp_path / "by-link").symlink_to(folder)
    for source, ledger in ((tmp_path / "by-link", folder / "ledger"), (folder, tmp_path / "by-link" / "ledger")):
        ended = nights.run(source=str(source), ledger=str(ledger))
        assert type(ended.error) is RoughyUnusableLedgerError
    assert roughy.requests == []


def test_ledger_matched_by_the_glob_is_refused(roughy: Emulator, tmp_path: Path, nights: Nights) -> None:
    nights.run(source=str(tmp_path / "*" / "*"))
    ended = nights.run(source=str(tmp_path / "*" / "*"))
    assert type(ended.error) is RoughyUnusableLedgerError
    assert len(roughy.assets) == 3


def test_unavailable_source_does_not_stop_the_others(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.stat

    def away(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("/nas"):
            raise OSError(5, "Input/output error")
        return look(path, *args, **options)

    monkeypatch.setattr(os, "stat", away)
    ended = nights.run(source=[str(tmp_path / "nas"), str(folder)])
    assert (ended.state, len(nights.xcoms["ready"])) == ("up_for_retry", 3)
    assert list(nights.xcoms["interrupted"]) == [str(tmp_path / "nas")]


# ---- Retries and overlaps


def test_two_live_tries_of_one_run_upload_each_recording_once(roughy: Emulator, folder: Path, nights: Nights) -> None:
    roughy.inject(Fault(method="POST", path="/v1/assets", times=None, delay=0.5))
    ended: list[Ended] = []

    def one() -> None:
        task = RoughyIngestOperator(task_id="ingest", poll_interval=0.2, timeout=60, **nights.options)
        ended.append(run_task(task, context={"ti": TaskInstance(run_id="night 1")}))

    first = threading.Thread(target=one)
    first.start()
    time.sleep(0.3)
    one()
    first.join()
    whole = [asset for asset in roughy.assets if asset["state"] != "pending_upload"]
    assert len(whole) == len({asset["sha256"] for asset in whole}) or len(whole) == 3
    assert len(whole) == 3
    last = nights.run()
    assert (last.state, len(roughy.assets)) == ("success", 3)


def test_retry_reports_files_that_were_moved_away(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, quick: None
) -> None:
    roughy.inject(Fault(method="POST", path="/v1/assets", nth=3, status=500))
    first = nights.run(parallel=1)
    assert (first.state, len(nights.xcoms["ready"])) == ("up_for_retry", 2)
    ready = nights.xcoms["ready"]
    for name in ("a.mp3", "b.mp3"):
        (folder / name).rename(tmp_path / name)
    again = nights.run(again=True)
    assert (again.state, len(again.result)) == ("success", 3)
    assert set(ready) < set(again.result)
    # And so does a run that is cleared after its success; another run does not.
    assert sorted(nights.run(again=True).result) == sorted(again.result)
    assert nights.run().result == []


def test_recording_that_was_forgotten_is_ingested_when_its_run_is_cleared(
    roughy: Emulator, nights: Nights, tmp_path: Path
) -> None:
    before = nights.run().result
    ledger = Ledger(tmp_path / "ledger")
    forgotten = next(entry for entry in ledger.entries() if Path(entry.source).name == "b.mp3")
    assert ledger.forget(forgotten.key)
    after = nights.run(again=True).result
    assert set(before) - set(after) == {forgotten.asset_id}
    assert (len(after), len(roughy.assets)) == (3, 4)
    assert sorted(nights.run(again=True).result) == sorted(after)


def test_run_that_dies_before_it_reports_is_reported_by_the_next_one(
    roughy: Emulator, nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(TaskInstance, "xcom_push", lambda self, key, value: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nights.run()
    assert [asset["state"] for asset in roughy.assets] == ["ready"] * 3
    assert len(nights.run().result) == 3
    assert len(roughy.assets) == 3
    assert nights.run().result == []


def test_acknowledged_bytes_are_remembered_over_a_retry(
    roughy: Emulator, folder: Path, nights: Nights, quick: None
) -> None:
    """GET lags behind: it says ``pending_upload`` for long after all bytes were acknowledged."""
    nights.options["source"] = str(folder / "a.mp3")
    lagging: list[str] = []

    def lag(request: Any) -> None:
        if request.method == "POST" and not lagging:
            (asset,) = roughy.assets
            lagging.append(asset["id"])
            facts = (
                "id",
                "project_id",
                "type",
                "state",
                "extension",
                "content_type",
                "duration_seconds",
                "language",
                "created_at",
            )
            body = {name: asset.get(name) for name in facts} | {
                "size_bytes": None,
                "upload_url": f"{roughy.url}/v1/uploads/{asset['upload_id']}",
                "download_url": None,
                "cuttable": False,
            }
            roughy.inject(Fault(method="GET", path=f"/v1/assets/{asset['id']}", times=30, status=200, body=body))

    ON_REQUEST.append(lag)
    ended = nights.run()
    for _ in range(4):
        if ended.state == "success":
            break
        ended = nights.run(again=True)
    assert (ended.state, len(roughy.assets)) == ("success", 1)
    assert asked(roughy, "POST") == 1


def test_unnoticed_end_of_an_upload_starts_anew_after_a_day(
    roughy: Emulator, folder: Path, nights: Nights, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.options["source"] = str(folder / "a.mp3")
    roughy.inject(Fault(method="PATCH", path="/v1/uploads/*", miss_end=True, times=None))
    for _ in range(2):
        ended = nights.run()
        assert (ended.state, len(roughy.assets), asked(roughy, "POST")) == ("up_for_retry", 1, 1)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 25 * 3600)
    nights.run()
    roughy.clear_faults()
    ended = nights.run()
    assert (ended.state, len(ended.result)) == ("success", 1)
    assert [asset["id"] for asset in roughy.assets] == ended.result


def test_stable_for_does_not_defer_a_started_upload(
    roughy: Emulator, folder: Path, nights: Nights, quick: None
) -> None:
    nights.options["source"] = str(folder / "a.mp3")
    roughy.inject(Fault(method="PATCH", cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    nights.run()
    roughy.clear_faults()
    roughy.clear_requests()
    # Or a rename, a hard link of a backup: only the inode's time moves.
    (folder / "a.mp3").chmod(0o640)
    again = nights.run(again=True, stable_for=3600)
    assert (again.state, len(again.result)) == ("success", 1)


def test_stable_for_defers_files_that_have_no_bytes_yet(roughy: Emulator, folder: Path, nights: Nights) -> None:
    (folder / "new.mp3").touch()
    ended = nights.run(stable_for=600)
    assert (ended.state, len(nights.xcoms["deferred"])) == ("success", 4)


def test_unconfirmed_upload_of_a_moved_file_does_not_stop_the_batch(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    """Its run died when Roughy had acknowledged all bytes and did not show it yet."""
    ledger, asset = Ledger(tmp_path / "ledger"), roughy.seed_asset("pending_upload")
    version = claimed(ledger, folder / "a.mp3", roughy, asset_id=asset, state="sent")
    assert ledger.create_version(version.next(ClaimOwner("dag.task", "night 0", "a try")))
    (folder / "a.mp3").unlink()
    ended = nights.run(timeout=0.5)
    assert (type(ended.error), len(nights.xcoms["ready"])) == (RoughyIngestFailedError, 2)
    assert names(nights.xcoms["interrupted"]) == ["a.mp3"]


def test_retry_happens_if_it_can_fix_any_recording(roughy: Emulator, nights: Nights, quick: None) -> None:
    roughy.progression = "manual"
    roughy.inject(Fault(method="POST", path="/v1/assets", nth=2, status=500))
    ended = nights.run(parallel=1, timeout=0.5)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyIngestError)
    assert len(nights.xcoms["interrupted"]) == 3
    roughy.settle()
    roughy.progression = "immediate"
    again = nights.run(again=True)
    assert (again.state, len(again.result), len(roughy.assets)) == ("success", 3, 3)


def test_recordings_that_failed_before_go_last(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], quick: None
) -> None:
    """Five old files at which Roughy fails each time do not keep the others from being uploaded."""
    for number in range(5):
        add(folder, f"0{number}.mp3", recordings["audio"], day=-9).write_bytes(
            recordings["audio"].read_bytes() + b"\0" * 7
        )
        os.utime(folder / f"0{number}.mp3", (1_700_000_000 + number,) * 2)
    poisoned = (folder / "00.mp3").stat().st_size
    seen: set[str] = set()

    def poison(request: Any) -> None:
        for asset in roughy.assets if request.method == "POST" else ():
            if asset["size_bytes"] == poisoned and asset["id"] not in seen:
                seen.add(asset["id"])
                roughy.inject(Fault(method="PATCH", path=f"/v1/uploads/{asset['upload_id']}", times=None, status=500))

    ON_REQUEST.append(poison)
    # So that it breaks before the first bytes come.
    roughy.inject(Fault(method="POST", path="/v1/assets", times=None, delay=0.05))
    first = nights.run(parallel=1)
    assert (first.state, nights.xcoms["ready"]) == ("up_for_retry", [])
    second = nights.run(parallel=1)
    assert second.state == "up_for_retry"
    assert len(nights.xcoms["ready"]) == 3


def test_403_for_one_asset_does_not_stop_the_batch(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], log: Callable[[], str]
) -> None:
    roughy.progression = "manual"
    nights.options["source"] = str(folder / "a.mp3")
    nights.run(timeout=0.3)
    (hidden,) = roughy.assets
    roughy.settle()
    roughy.progression = "immediate"
    roughy.inject(Fault(method="GET", path=f"/v1/assets/{hidden['id']}", times=None, status=403))
    nights.options["source"] = str(folder)
    second = nights.run(on_failed="return")
    assert len(second.result) == 2
    assert "403" in nights.xcoms["interrupted"][str(folder / "a.mp3")]


def test_rejected_media_is_not_stored_as_a_success(roughy: Emulator, tmp_path: Path) -> None:
    """Roughy may fail the asset at its first bytes, instead of refusing them."""
    for how, errors in (("failed", (RoughyAssetFailedError,)), ("kept", (RoughyUnsupportedMediaError,))):
        with Emulator(choices=Choices(rejected_upload=how), progression="immediate") as strict:  # type: ignore[arg-type]
            os.environ["AIRFLOW_CONN_STRICT"] = json.dumps(strict.airflow_connection)
            (tmp_path / f"{how}.mp3").write_bytes(b"this is no media. " * 400)
            task = RoughyCreateUploadOperator(
                task_id="upload",
                source=str(tmp_path / f"{how}.mp3"),
                ledger=str(tmp_path / how),
                roughy_conn_id="strict",
            )
            ended = run_task(task)
            del os.environ["AIRFLOW_CONN_STRICT"]
        assert (ended.state, isinstance(ended.error, errors)) == ("failed", True)
        assert {entry.state for entry in Ledger(tmp_path / how).entries()} <= {
            "failed",
            "rejected",
            "uploading",
            "sent",
        }


# ---- Claims of others

OTHER = ClaimOwner("dag.other", "night 0", "a try")


def claimed(ledger: Ledger, file: Path, roughy: Emulator, **fields: Any) -> Version:
    """Claim a file for another run, which is alive."""
    identity = find_file(file).identity(project_id=roughy.project_id)
    version = Version(identity.key, 1, OTHER, str(file), identity.to_dict(), **fields)
    ledger.check()
    assert ledger.create_version(version)
    ledger.write_lease(OTHER, time.time() + 1000)
    return version


def test_live_run_keeps_its_claims_and_a_dead_one_does_not(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    nights.options["source"] = [str(folder / "a.mp3"), str(folder / "b.mp3")]
    waiting = roughy.seed_asset("processing")
    claimed(ledger, folder / "a.mp3", roughy)
    claimed(ledger, folder / "b.mp3", roughy, asset_id=waiting, state="sent")

    assert nights.run().result == []
    assert nights.xcoms["already_ingested"] == {"sent": 1}
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    (reason,) = nights.xcoms["deferred"].values()
    assert re.fullmatch(
        rf"dag\.other, run night 0 holds the claim on it \(its lease was last renewed at {at}\); "
        rf"another run supersedes the claim if the lease is not renewed by {at}",
        reason,
    )
    assert roughy.requests == []

    ledger.write_lease(OTHER, time.time() - 1)
    roughy.settle()
    ended = nights.run()
    assert (ended.state, len(ended.result)) == ("success", 2)
    assert waiting in ended.result
    assert asked(roughy, "POST") == 1, "one had its asset already"
    assert ledger.snapshot().open == {}


def test_recording_claimed_by_a_faster_run_is_deferred(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    ledger = Ledger(tmp_path / "ledger")

    def claim_b(request: Any) -> None:
        if request.method == "POST" and not ledger.snapshot().open.keys() & {key_of_b}:
            claimed(ledger, folder / "b.mp3", roughy)

    key_of_b = find_file(folder / "b.mp3").identity(project_id=roughy.project_id).key
    ON_REQUEST.append(claim_b)
    assert len(nights.run(parallel=1).result) == 2
    assert list(nights.xcoms["deferred"]) == [str(folder / "b.mp3")]


def test_run_whose_claim_was_superseded_cancels_its_asset_and_stops(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    nights.options["source"] = str(folder / "a.mp3")

    def supersede(request: Any) -> None:
        if request.method == "POST":
            ((key, n),) = ledger.snapshot().open.items()
            mine = ledger.read_version(key, n)
            assert mine is not None
            assert ledger.create_version(mine.next(OTHER))

    roughy.inject(Fault(method="POST", path="/v1/assets", delay=0.0))
    ON_REQUEST.append(supersede)
    ended = nights.run()
    assert (ended.state, ended.result) == ("success", [])
    assert list(nights.xcoms["deferred"]) == [str(folder / "a.mp3")]
    assert roughy.assets == [], "its own is cancelled"


def test_one_recording_is_left_to_the_live_run_that_uploads_it(roughy: Emulator, folder: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    claimed(ledger, folder / "a.mp3", roughy)
    ended = upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2")
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyClaimedError)
    ledger.write_lease(OTHER, 0.0)
    assert upload_one(folder / "a.mp3", tmp_path / "ledger", run="night 2").state == "success"
    assert len(roughy.assets) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"{}"])
def test_unreadable_entry_affects_its_own_recording_only(
    roughy: Emulator, tmp_path: Path, folder: Path, nights: Nights, content: bytes
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    version = claimed(ledger, folder / "b.mp3", roughy)
    # As a power cut may leave it, and that of a recording of another task.
    for key in (version.key, "0" * 40):
        (tmp_path / "ledger" / "open" / f"{key}.1.json").write_bytes(content)
    ended = nights.run()
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyIngestError)
    assert (len(nights.xcoms["ready"]), names(nights.xcoms["interrupted"])) == (2, ["b.mp3"])
    assert f"{version.key}.1.json of ledger" in str(ended.error)
    assert len(roughy.assets) == 2


def test_unreadable_result_affects_its_own_recording_only(
    roughy: Emulator, tmp_path: Path, folder: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(TaskInstance, "xcom_push", lambda self, key, value: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nights.run()
    key = find_file(folder / "b.mp3").identity(project_id=roughy.project_id).key
    (tmp_path / "ledger" / f"{key}.json").write_bytes(b"")
    for _ in range(2):
        ended = nights.run()
        assert (ended.state, names(nights.xcoms["interrupted"])) == ("up_for_retry", ["b.mp3"])
    assert (nights.xcoms["already_ingested"], len(roughy.assets)) == ({"ready": 2}, 3)


def test_result_of_another_run_during_a_wait_is_reported_once(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights
) -> None:
    """The triggerer was down for longer than the lease."""
    roughy.progression = "manual"
    ledger, others = Ledger(tmp_path / "ledger"), Nights(folder, ledger=tmp_path / "ledger")
    others.number = 1

    def go_on() -> None:
        ledger.write_lease(ClaimOwner("dag.task", "night 1"), 0.0)
        roughy.settle()
        assert len(others.run().result) == 3

    ended = nights.run(deferrable=True, before_resuming=go_on)
    assert (ended.state, ended.result) == ("success", [])
    assert nights.xcoms["already_ingested"] == {"ready": 3}
    assert {entry.state for entry in ledger.entries()} == {"ready"}
    assert not (tmp_path / "ledger" / ".json").exists()


def test_killed_wait_is_reported_by_the_next_run(roughy: Emulator, nights: Nights, tmp_path: Path) -> None:
    """Nobody renews the lease of a wait that was killed, so ten minutes later another run takes its recordings over."""
    roughy.progression = "manual"
    task = RoughyIngestOperator(task_id="ingest", deferrable=True, timeout=7 * 86_400, **nights.options)
    with pytest.raises(TaskDeferred):
        task.execute({"ti": TaskInstance(run_id="night 0")})  # type: ignore[typeddict-item]
    roughy.settle()
    roughy.progression = "immediate"
    ledger = Ledger(tmp_path / "ledger")
    (lease,) = (tmp_path / "ledger" / "runs").glob("*.json")
    until = json.loads(lease.read_text())["until"]
    assert 500 < until - time.time() <= 600
    assert nights.run().result == [], "its run may be alive"
    ledger.write_lease(ClaimOwner("dag.task", "night 0"), time.time() - 1)
    assert len(nights.run().result) == 3


def test_wait_in_the_triggerer_keeps_its_claims(
    roughy: Emulator, nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trigger renews the lease, however long the wait is."""
    monkeypatch.setattr("airflow_provider_roughy.ledger.ledger.RENEW_SECONDS", 0.05)
    roughy.progression = "manual"

    def settle() -> None:
        (lease,) = (tmp_path / "ledger" / "runs").glob("*.json")
        lease.write_text(json.dumps({**json.loads(lease.read_text()), "until": 0}))
        while json.loads(lease.read_text())["until"] < time.time():
            time.sleep(0.02)
        roughy.settle()

    ended = nights.run(deferrable=True, before_resuming=lambda: threading.Thread(target=settle).start())
    assert (ended.state, len(ended.result)) == ("success", 3)


# ---- Not paid for


def spend(roughy: Emulator) -> None:
    """Let all assets settle with a balance of one credit, which pays for one of them."""
    roughy.balance = 1
    roughy.settle()


def test_unpaid_recordings_are_reported_every_night_until_they_are_paid_for(roughy: Emulator, nights: Nights) -> None:
    roughy.progression = "manual"
    nights.run(deferrable=True, before_resuming=lambda: spend(roughy), on_pending_payment="return")
    unpaid = sorted(nights.xcoms["pending_payment"])
    assert len(unpaid) == 2
    for _ in range(2):
        # Those of earlier nights are reported, and fail nothing.
        later = nights.run(on_pending_payment="fail")
        assert (later.state, sorted(nights.xcoms["pending_payment"])) == ("success", unpaid)
    roughy.top_up(10)
    assert sorted(nights.run().result) == unpaid
    assert nights.xcoms["pending_payment"] == []
    assert nights.run().result == []


def test_log_says_what_an_unpaid_recording_costs_and_until_when_it_is_kept(
    roughy: Emulator, nights: Nights, log: Callable[[], str]
) -> None:
    roughy.progression = "manual"
    nights.run(deferrable=True, before_resuming=lambda: spend(roughy), on_pending_payment="return")
    log()
    nights.run()
    text = log()
    assert "it costs 1 credit; top up at Roughy by 20" in text
    assert "2 recordings are not paid for: 2 credits needed, the balance is 0; Roughy keeps the oldest until 20" in text


def test_recording_that_was_never_paid_for_is_reported_when_it_is_gone(roughy: Emulator, nights: Nights) -> None:
    roughy.progression = "manual"
    nights.run(deferrable=True, before_resuming=lambda: spend(roughy), on_pending_payment="return")
    unpaid = nights.xcoms["pending_payment"]
    roughy.advance(31 * 86400)
    ended = nights.run()
    assert (ended.state, sorted(nights.xcoms["failed"])) == ("failed", sorted(unpaid))
    assert "it was not paid for within 30 days, or it was deleted" in str(ended.error)
    assert nights.run().state == "success"
    assert nights.xcoms["already_ingested"] == {"ready": 1, "gone": 2}


# ---- Budget


def test_max_credits_bounds_a_run_over_all_its_tries(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], quick: None
) -> None:
    for number in range(10):
        add(folder, f"{number}.mp3", recordings["audio"], day=20 + number)
    before = roughy.balance
    for attempt in range(4):
        roughy.inject(Fault(method="POST", path="/v1/assets", status=500))
        nights.run(again=attempt > 0, parallel=1, max_credits=4)
    assert before - roughy.balance <= 4
    roughy.clear_faults()
    nights.run(again=True, max_credits=4)
    assert before - roughy.balance == 4


def test_recording_started_by_a_run_counts_once_for_its_budget(
    roughy: Emulator, folder: Path, nights: Nights, recordings: dict[str, Path], quick: None
) -> None:
    roughy.progression = "manual"
    for nth in (2, 3):
        roughy.inject(Fault(method="POST", path="/v1/assets", nth=nth, status=500))
    nights.run(parallel=1, max_credits=3, timeout=0.3)
    roughy.settle()
    # One is ready by now, and of another a half is sent.
    roughy.inject(Fault(method="PATCH", cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    nights.run(again=True, parallel=1, max_credits=2, timeout=0.3)
    assert names(nights.xcoms["deferred"]) == ["c.mp3"]
    roughy.clear_faults()
    roughy.progression = "immediate"
    add(folder, "0.mp3", recordings["audio"], day=-1)
    last = nights.run(again=True, parallel=1, max_credits=2)
    assert (last.state, names(list(nights.xcoms["sources"].values()))) == ("success", ["a.mp3", "b.mp3"])


def test_recording_started_by_a_dead_run_does_not_count(
    roughy: Emulator, folder: Path, tmp_path: Path, nights: Nights, recordings: dict[str, Path]
) -> None:
    roughy.progression = "manual"
    task = RoughyIngestOperator(task_id="ingest", deferrable=True, **nights.options)
    with pytest.raises(TaskDeferred):
        task.execute({"ti": TaskInstance(run_id="night 0")})  # type: ignore[typeddict-item]
    roughy.settle()
    roughy.progression = "immediate"
    Ledger(tmp_path / "ledger").write_lease(ClaimOwner("dag.task", "night 0"), 0.0)
    add(folder, "new.mp3", recordings["audio"], day=20)
    assert len(nights.run(max_credits=1).result) == 4


@pytest.mark.parametrize("value", ["", "None", " ", "1.5", True])
def test_max_credits_that_is_not_a_number_is_refused(roughy: Emulator, nights: Nights, value: Any) -> None:
    ended = nights.run(max_credits=value)
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert roughy.requests == []


def test_unreadable_headers_do_not_stop_the_plan(
    roughy: Emulator, folder: Path, nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_roughy import probe

    seconds_of = probe.seconds_of

    def fail(source: Any) -> float | None:
        if source.uri.endswith("b.mp3"):
            raise RuntimeError("the storage breaks off")
        return seconds_of(source)

    monkeypatch.setattr(probe, "seconds_of", fail)
    assert len(nights.run(max_credits=100).result) == 3


def test_planning_opens_nothing_but_the_file_itself(roughy: Emulator, folder: Path, nights: Nights) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/latest/meta-data/x.ts"
        (folder / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n")
        (folder / "list.txt").write_text(f"ffconcat version 1.0\nfile {url}\n")
        nights.run(pattern="*", dry_run=True)
        with pytest.raises(TimeoutError):
            server.accept()
    assert len(nights.xcoms["deferred"]) == 5


def test_mp3_without_declared_length_costs_credits_if_unknown(roughy: Emulator, folder: Path, nights: Nights) -> None:
    media.make_audio(folder / "recorder.mp3", seconds=3, format="mp3", options={"write_xing": "0"})
    nights.run(max_credits=9, credits_if_unknown=7)
    assert names(nights.xcoms["deferred"]) == ["recorder.mp3"]
    (folder / "recorder.mp3").write_bytes((folder / "recorder.mp3").read_bytes() * 9)
    # By default as much as its size can hold.
    nights.run(dry_run=True)
    size = (folder / "recorder.mp3").stat().st_size
    assert nights.xcoms["deferred"][str(folder / "recorder.mp3")] == f"dry run, {-(-size // 60_000)} credits"
