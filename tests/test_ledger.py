"""The ledger in a folder: atomic creation, results, and rejected folders."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.exceptions import (
    RoughyClaimedError,
    RoughyLedgerEntryError,
    RoughyLedgerError,
    RoughyUnusableLedgerError,
    RoughyUnusableSourceError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.ledger import (
    LEASE_SECONDS,
    ClaimOwner,
    Entry,
    Lease,
    Ledger,
    Progress,
    Result,
    Version,
    claims,
    entry_key,
    renewing,
)
from airflow_provider_roughy.ledger.folder import LocalFolder
from airflow_provider_roughy.transfer.source import find_source
from airflow_provider_roughy.transfer.target import find_target
from tests.ingesting import Nights

KEY, OTHER = "a" * 40, "b" * 40
ME = ClaimOwner("dag.task", "night 1", "try 1")
VERSION = Version(KEY, 1, ME, "/data/talk.mp3", {"uri": "/data/talk.mp3", "size": 46_000})
RESULT = Result(KEY, "/data/talk.mp3", {"uri": "/data/talk.mp3"}, str(ME), "ready", "asset", credits=2, seconds=61.5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger")
    ledger.check()
    return ledger


# ---- Versions and results


def test_one_of_many_tries_creates_a_version(ledger: Ledger) -> None:
    start = threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait()
        return ledger.create_version(replace(VERSION, owner=replace(ME, try_token=str(number))))

    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(create, range(16)))
    assert created.count(True) == 1
    found = ledger.find_latest(KEY)
    assert found is not None
    assert found.owner.try_token == str(created.index(True))


def test_what_is_stored_is_read_as_it_was(ledger: Ledger) -> None:
    unpaid = {"state": Progress.PENDING_PAYMENT, "acknowledged_at": "2026-01-01", "since": "2026-01-02"}
    version = replace(VERSION, n=3, asset_id="asset", at="x", **unpaid)  # type: ignore[arg-type]
    result = replace(RESULT, source="/data/Größe 1.mp3", state="failed", reason="why", request_id="r", at="y")
    assert ledger.create_version(version)
    assert ledger.create_result(result)
    assert ledger.read_version(KEY, 3) == version
    assert ledger.find_result(KEY) == result


def test_a_create_that_the_client_has_repeated_is_recognised(ledger: Ledger) -> None:
    version = replace(VERSION, at="2026-01-01T00:00:00+00:00")
    assert ledger.create_version(version)
    assert ledger.create_version(version)
    assert not ledger.create_version(replace(version, owner=replace(ME, try_token="try 2")))


def test_a_result_is_never_changed(ledger: Ledger) -> None:
    assert ledger.create_result(RESULT)
    assert not ledger.create_result(replace(RESULT, state="failed", owner="dag.task, run night 2"))
    found = ledger.find_result(KEY)
    assert found is not None
    assert found.state == "ready"
    assert ledger.snapshot().problems == {}


def test_snapshot_has_done_open_and_failed_recordings(ledger: Ledger, tmp_path: Path) -> None:
    for n in (1, 2, 10):
        ledger.create_version(replace(VERSION, n=n))
    ledger.create_result(replace(RESULT, key=OTHER, state="rejected"))
    # Of a try that died before it had stored the result.
    (tmp_path / "ledger" / "problems" / f"{KEY}.failed").touch()
    found = ledger.snapshot()
    assert (found.done, found.open, found.problems) == ({OTHER}, {KEY: 10}, {OTHER: "rejected"})
    assert found.legacy - {name for name in found.legacy if name.startswith("f" * 32)} == set()


def test_versions_are_removed_up_to_a_number(ledger: Ledger) -> None:
    for n in (1, 2, 3):
        ledger.create_version(replace(VERSION, n=n))
    ledger.remove_versions([(KEY, 2), (OTHER, 5)])
    assert ledger.snapshot().open == {KEY: 3}


def test_a_try_that_sleeps_through_the_end_removes_its_own_version_only(ledger: Ledger) -> None:
    """The versions of whoever finished the recording stay until the result has been reported."""
    ledger.create_version(VERSION)
    ledger.create_result(RESULT)
    ended = claims.drive(claims.supersede(VERSION, replace(ME, try_token="late")), ledger.perform)
    assert isinstance(ended, claims.Done)
    assert ledger.snapshot().open == {KEY: 1}


def test_every_step_of_the_storage_is_performed(ledger: Ledger) -> None:
    def perform(step: claims.Step) -> Any:
        match step:
            case claims.CreateAsset():
                return "asset"
            case claims.SendBytes():
                return True
        assert not isinstance(step, (claims.ReadAsset, claims.CancelAsset))
        return ledger.perform(step)

    uploaded = claims.drive(claims.upload(KEY, "/data/talk.mp3", {}, ME, may_supersede=lambda version: False), perform)
    assert isinstance(uploaded, claims.Uploaded)
    sent = claims.drive(claims.checkpoint(uploaded.version, state=Progress.SENT), perform)
    assert isinstance(sent, Version)
    night_2 = replace(ME, run_key="night 2")
    other = claims.drive(claims.upload(KEY, "/", {}, night_2, may_supersede=lambda version: False), perform)
    assert isinstance(other, claims.Held)
    assert other.version is not None
    assert (other.version.n, other.version.state, other.version.asset_id) == (3, "sent", "asset")
    assert claims.drive(claims.complete(RESULT), perform) == RESULT
    assert isinstance(claims.drive(claims.checkpoint(sent), perform), claims.Done)


@pytest.mark.parametrize(
    "content",
    [b"\0" * 300, b"{", b"[]", b"{}", b'{"source": 1}', b"[" * 100_000, b"\xff\xfe"],
    ids=["zeros", "cut off", "list", "empty", "wrong type", "deep", "no text"],
)
def test_an_object_that_cannot_be_read_concerns_its_own_recording(
    ledger: Ledger, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "ledger" / f"{KEY}.json").write_bytes(content)
    (tmp_path / "ledger" / "open" / f"{OTHER}.2.json").write_bytes(content)
    with pytest.raises(RoughyLedgerEntryError, match=rf"{KEY}\.json of ledger .* remove that object"):
        ledger.find_result(KEY)
    with pytest.raises(RoughyLedgerEntryError, match=rf"{OTHER}\.2\.json"):
        ledger.read_version(OTHER, 2)
    assert ledger.snapshot().done == {KEY}


def test_a_broken_version_under_a_good_one_does_not_matter(ledger: Ledger, tmp_path: Path) -> None:
    ledger.create_version(replace(VERSION, n=2))
    (tmp_path / "ledger" / "open" / f"{KEY}.1.json").write_bytes(b"\0" * 300)
    found = ledger.find_latest(KEY)
    assert found is not None
    assert found.n == 2


def test_an_empty_version_is_being_claimed(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "ledger" / "open" / f"{KEY}.1.json").touch()
    with pytest.raises(RoughyClaimedError, match="another run is claiming"):
        ledger.find_latest(KEY)


def test_fields_of_a_later_release_are_ignored(ledger: Ledger, tmp_path: Path) -> None:
    stored = {**json.loads(RESULT.encode()), "new": {"field": 1}, "credits": 10**400, "seconds": "odd"}
    (tmp_path / "ledger" / f"{KEY}.json").write_text(json.dumps(stored))
    assert ledger.find_result(KEY) == replace(RESULT, credits=None, seconds=None)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let writing fail as on a full disk: what fits is written, and only the next write is an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_of_an_object(ledger: Ledger, tmp_path: Path) -> None:
    with file_size_limit(50):
        for create in (lambda: ledger.create_version(VERSION), lambda: ledger.create_result(RESULT)):
            with pytest.raises(RoughyLedgerError) as full:
                create()
            assert not full.value.final
    assert (ledger.find_latest(KEY), ledger.find_result(KEY)) == (None, None)
    assert not [path for path in (tmp_path / "ledger").rglob("*.new")]


def test_a_file_system_without_links(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    ledger.check()
    assert ledger.create_version(VERSION)
    assert not ledger.create_version(replace(VERSION, owner=replace(ME, try_token="try 2")))


def test_a_full_disk_without_links_leaves_no_half_of_an_object(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        raise OSError(1, "Operation not permitted")

    with file_size_limit(10_000), monkeypatch.context() as patched:
        patched.setattr("os.link", refuse)
        with pytest.raises(RoughyLedgerError):
            ledger.create_version(VERSION)
    assert ledger.find_latest(KEY) is None
    assert ledger.create_version(VERSION)


def test_stored_objects_hold_no_secret(ledger: Ledger, tmp_path: Path) -> None:
    ledger.create_version(replace(VERSION, asset_id="asset"))
    ledger.create_result(RESULT)
    stored = [path.read_text() for path in (tmp_path / "ledger").rglob(f"{KEY}*.json")]
    assert len(stored) == 2
    assert not re.search('upload_url|password|"sk_', "".join(stored))


# ---- Leases


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Put the clock forward or back by so many seconds, from the true time."""
    real = time.time

    def jump(seconds: float) -> None:
        monkeypatch.setattr("time.time", lambda: real() + seconds)

    return jump


def test_a_run_is_alive_while_its_lease_is_renewed(
    ledger: Ledger, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.ledger.lease.RENEW_SECONDS", 0.01)
    assert not ledger.has_started(ME)
    assert not ledger.is_alive(ME)
    with ledger.lease(ME):
        assert ledger.is_alive(str(ME))
        clock(LEASE_SECONDS + 60)
        for _ in range(1000):
            if ledger.is_alive(ME):
                break
            time.sleep(0.01)
        else:
            pytest.fail("it was not renewed")
    assert not ledger.is_alive(ME)
    assert ledger.has_started(ME)
    assert not ledger.has_started(replace(ME, run_key="night 2"))


def test_a_run_that_was_killed_is_dead_after_its_lease(ledger: Ledger, clock: Callable[[float], None]) -> None:
    ledger.write_lease(ME, time.time() + LEASE_SECONDS)
    clock(LEASE_SECONDS - 5)
    assert ledger.is_alive(ME)
    clock(LEASE_SECONDS + 5)
    assert not ledger.is_alive(ME)


def test_lease_that_cannot_be_renewed_or_given_up_names_run_and_ledger(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.ledger.lease.RENEW_SECONDS", 0.01)
    runs = tmp_path / "ledger" / "runs"
    with ledger.lease(ME):
        shutil.rmtree(runs)
        runs.touch()
        for _ in range(1000):
            if "Renewing" in caplog.text:
                break
            time.sleep(0.01)
    where = f"dag.task, run night 1 in ledger {tmp_path / 'ledger'} failed"
    assert f"Renewing the lease of {where}; retrying in" in caplog.text
    assert f"Giving up the lease of {where}. It expires automatically within 10 minutes" in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "held the claim on it until recently, and another run may supersede the claim now"),
        (b"", "held the claim on it until recently, and another run may supersede the claim now"),
        (
            b'{"until": 100}',
            "held the claim on it until recently (its lease expired at 1970-01-01 00:01:40 UTC), and another run",
        ),
        (
            b'{"until": 1e300}',
            "(its lease has not expired); another run supersedes the claim if the lease is not renewed by an unknown",
        ),
        (
            b'{"until": 9e9, "at": "2026-01-01T00:00:00.000+00:00"}',
            "holds the claim on it (its lease was last renewed at 2026-01-01 00:00:00 UTC); another run supersedes "
            "the claim if the lease is not renewed by 2255-03-14 16:00:00 UTC",
        ),
    ],
)
def test_claim_is_described_by_its_run_and_lease(
    ledger: Ledger, tmp_path: Path, content: bytes | None, says: str
) -> None:
    ledger.write_lease(ME, 0)
    (lease,) = (tmp_path / "ledger" / "runs").iterdir()
    if content is None:
        lease.unlink()
    else:
        lease.write_bytes(content)
    assert ledger.describe_claim(ME).startswith("dag.task, run night 1 ")
    assert says in ledger.describe_claim(str(ME))


def test_a_lease_can_be_extended_for_a_wait_elsewhere(ledger: Ledger, clock: Callable[[float], None]) -> None:
    with ledger.lease(ME) as lease:
        lease.extend(time.time() + 86_400)
    clock(86_000)
    assert ledger.is_alive(ME)
    clock(86_500)
    assert not ledger.is_alive(ME)


async def test_a_lease_is_renewed_in_an_event_loop(
    ledger: Ledger, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.write_lease(ME, time.time() + 10)
    clock(100)
    assert not ledger.is_alive(ME)
    async with asyncio.timeout(10), renewing(ledger.lease_to_dict(ME)):
        while not ledger.is_alive(ME):  # noqa: ASYNC110 - another process could ask no more than this.
            await asyncio.sleep(0.01)
    async with renewing(None):
        pass


def test_a_slow_renewal_does_not_overwrite_an_extension() -> None:
    written: list[float] = []
    is_slow, go_on = threading.Event(), threading.Event()

    def write(until: float) -> None:
        if not written and not is_slow.is_set():
            is_slow.set()
            go_on.wait(10)
        written.append(until)

    lease = Lease(write)
    renewal = threading.Thread(target=lease.renew)
    renewal.start()
    is_slow.wait(10)
    extension = threading.Thread(target=lease.extend, args=(9e9,))
    extension.start()
    time.sleep(0.05)
    go_on.set()
    renewal.join(10)
    extension.join(10)
    lease.renew()
    assert written[1:] == [9e9]


def test_a_try_that_ends_leaves_the_lease_to_another_live_try(ledger: Ledger) -> None:
    with ledger.lease(ME):
        ledger.write_lease(replace(ME, try_token="try 2"), time.time() + LEASE_SECONDS)
    assert ledger.is_alive(ME)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_clock_that_jumped_an_hour_blocks_no_run_for_long(
    ledger: Ledger, clock: Callable[[float], None], jump: float
) -> None:
    clock(jump)
    with ledger.lease(ME):
        clock(0)
        assert ledger.is_alive(ME) is (jump > 0)
    ledger.write_lease(ME, time.time() + jump + LEASE_SECONDS)
    clock(abs(jump) + LEASE_SECONDS + 1)
    assert not ledger.is_alive(ME)


def test_a_lease_written_with_a_clock_years_ahead_does_not_count(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_roughy.ledger.lease.utc_now", lambda: "2099-01-01T00:00:00+00:00")
    ledger.write_lease(ME, 4_070_908_800 + LEASE_SECONDS)
    assert not ledger.is_alive(ME)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"until": "soon"}', b'{"until": 1e999, "at": 5}'])
def test_a_lease_that_cannot_be_read_has_expired(ledger: Ledger, tmp_path: Path, content: bytes) -> None:
    ledger.write_lease(ME, 9e9)
    (run,) = (tmp_path / "ledger" / "runs").glob("*.json")
    run.write_bytes(content)
    assert not ledger.is_alive(ME)
    assert ledger.has_started(ME)


def test_a_lease_of_the_previous_release_is_read(ledger: Ledger, tmp_path: Path) -> None:
    ledger.write_lease(ME, 0)
    (run,) = (tmp_path / "ledger" / "runs").glob("*.json")
    run.write_text(json.dumps({"owner": str(ME), "until": time.time() + 7 * 86_400, "at": "2026-01-01T00:00:00+00:00"}))
    assert ledger.is_alive(ME)


def test_a_run_knows_what_its_tries_have_reported(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.reported(ME) == set()
    ledger.record_reported(ME, [KEY])
    ledger.record_reported(ME, [KEY, OTHER])
    ledger.record_reported(replace(ME, try_token="try 2"), ["c" * 40])
    ledger.record_reported(replace(ME, run_key="night 2"), ["d" * 40])
    assert ledger.reported(ME) == {KEY, OTHER, "c" * 40}
    ledger.record_reported(replace(ME, try_token="try 3"), [KEY, OTHER])
    records = sorted((tmp_path / "ledger" / "runs").iterdir(), key=lambda file: file.suffixes)
    assert [file.suffixes[0] for file in records] == [".1", ".1", ".2", ".3"], "and what is known is not stored again"
    records[-1].write_bytes(b"\0")
    assert ledger.reported(ME) == {KEY, OTHER}


def test_tries_that_report_at_the_same_moment_are_all_remembered(ledger: Ledger) -> None:
    keys = [f"{number:040}" for number in range(16)]
    start = threading.Barrier(len(keys))

    def report(key: str) -> None:
        start.wait()
        ledger.record_reported(replace(ME, try_token=f"try {key}"), [key])

    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(report, keys))
    assert ledger.reported(ME) == set(keys)


# ---- Announced assets, notes, and what people see


def test_entry_keeps_the_names_of_0_2_in_python_and_in_storage() -> None:
    entry = Entry("a" * 32, "/in/a.wav", {"uri": "/in/a.wav"}, "dag task, run 1", task_key="dag task")
    stored = json.loads(entry.encode())
    assert (stored["wanted"], stored["series"]) == (entry.wanted, entry.series) == ({"uri": "/in/a.wav"}, "dag task")
    assert Entry.decode(entry.key, 1, entry.encode()) == entry


def announced(asset_id: str, owner: str = "run 1") -> Entry:
    wanted = {"uri": f"roughy://{asset_id}", "state": "ready"}
    return Entry(entry_key(wanted), f"roughy://{asset_id}", wanted, owner, state="taken", asset_id=asset_id)


def test_an_announced_asset_is_taken_by_one_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert [entry.owner for entry in ledger.take([announced("1")])] == ["run 1"]
    both = ledger.take([announced("1", "run 2"), announced("2", "run 2")])
    assert [entry.owner for entry in both] == ["run 1", "run 2"]
    keys = [announced(str(number)).key for number in range(30)]
    assert ledger.known(keys[:3]) == ledger.known(keys) == {keys[1], keys[2]}
    assert [entry.state for entry in ledger.entries()] == ["taken", "taken"]


def test_a_note_is_written_once(ledger: Ledger) -> None:
    assert ledger.note("where it began") is None
    assert ledger.note_once("where it began", {"at": 1}) == {"at": 1}
    assert ledger.note_once("where it began", {"at": 2}) == {"at": 1}


def test_entries_show_results_and_open_recordings(ledger: Ledger) -> None:
    ledger.create_version(replace(VERSION, since="2026-01-02", state="pending_payment", asset_id="asset"))
    ledger.create_version(replace(VERSION, key=OTHER))
    ledger.create_result(replace(RESULT, key=OTHER))
    done, unpaid = ledger.entries()
    assert (done.key, done.state, done.is_done, done.series, done.credits) == (OTHER, "ready", True, "dag.task", 2)
    assert (unpaid.state, unpaid.is_done, unpaid.since) == ("pending_payment", False, "2026-01-02")


def test_what_is_forgotten_is_claimed_anew(ledger: Ledger, tmp_path: Path) -> None:
    for n in (1, 2):
        ledger.create_version(replace(VERSION, n=n))
    ledger.create_result(replace(RESULT, state="failed"))
    assert ledger.forget(KEY)
    assert not ledger.forget(KEY)
    assert not list((tmp_path / "ledger").rglob(f"{KEY}*"))
    assert ledger.create_version(VERSION)


@pytest.mark.parametrize(
    ("folder", "within"),
    [("/data", True), ("/data/", True), ("file:///data/in/..", True), ("/dat", False), ("/data/ledger/x", False)],
)
def test_it_knows_whether_it_is_in_a_folder(folder: str, within: bool) -> None:
    assert Ledger("/data/ledger").is_within(folder) is within
    assert Ledger("s3://conn@bucket/a/ledger").is_within("s3a://bucket/a/") is True


def test_it_knows_whether_it_is_in_a_folder_by_links(tmp_path: Path) -> None:
    (tmp_path / "real" / "ledger").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "ledger").symlink_to("real/ledger")
    assert Ledger(tmp_path / "real" / "ledger").is_within(tmp_path / "link")
    assert Ledger(tmp_path / "link" / "ledger").is_within(tmp_path / "real")
    assert Ledger(tmp_path / "ledger").is_within(tmp_path / "real")
    assert not Ledger(tmp_path / "ledger").is_within(tmp_path / "link" / "other")


# ---- What cannot be a ledger


@pytest.mark.parametrize(
    "location", ["", "/", "s3://", "file:///", "None", " none ", "null", None, "ledger", "./ledger", "file://ledger"]
)
def test_a_location_that_is_no_folder_or_another_on_each_worker_is_refused(location: Any) -> None:
    with pytest.raises(RoughyUnusableLedgerError, match=r"names no folder|is a relative path"):
        Ledger(location)


def test_a_volume_that_is_not_mounted_is_no_new_ledger(tmp_path: Path) -> None:
    for make in (lambda ledger: ledger.check(), lambda ledger: ledger.take([announced("1")])):
        with pytest.raises(RoughyUnusableLedgerError, match="Is the volume mounted"):
            make(Ledger(tmp_path / "nas" / "roughy" / "ledger"))
    assert list(tmp_path.iterdir()) == []


def test_a_new_ledger_is_a_warning_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        Ledger(tmp_path / "ledger").check()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / f"{'a' * 32}.json").touch()
    Ledger(tmp_path / "old").check()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.partition(".")[0] for message in warnings] == [f"Ledger {tmp_path}/ledger is new: 0 recordings"]


def test_subfolders_have_the_permissions_of_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger").chmod(0o2777)
    Ledger(tmp_path / "ledger").check()
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "ledger").iterdir() if path.is_dir()} == {"0o777"}


@pytest.mark.skipif(os.getuid() != 0, reason="needs two users")
def test_files_of_another_user_block_no_run(tmp_path: Path) -> None:
    """Of root, as of a test by hand; objects are read and created, and never opened for writing."""
    ledger = Ledger(tmp_path / "ledger")
    ledger.check()
    ledger.create_version(VERSION)
    ledger.write_lease(ME, 0)
    for folder in (path for path in (tmp_path / "ledger").rglob("*") if path.is_dir()):
        folder.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o755)
    (tmp_path / "ledger").chmod(0o777)
    os.seteuid(65534)
    try:
        ledger.check()
        with ledger.lease(replace(ME, try_token="try 2")):
            found = ledger.find_latest(KEY)
            assert found == replace(VERSION, at=found.at if found else "")
            assert isinstance(claims.drive(claims.supersede(VERSION, ME), ledger.perform), Version)
            assert ledger.create_result(RESULT)
            ledger.remove_versions([(KEY, 2)])
    finally:
        os.seteuid(0)
    assert ledger.snapshot().open == {}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RoughyUnusableLedgerError, match="Permission denied"):
        Ledger(tmp_path).check()


@pytest.mark.parametrize(
    ("file", "location"),
    [("file", "file"), ("file", "file/ledger"), ("ledger/open", "ledger"), ("ledger/runs", "ledger")],
)
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, file: str, location: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(RoughyUnusableLedgerError, match="cannot be used"):
        Ledger(tmp_path / location).check()


class _Files(LocalFileSystem):  # type: ignore[misc]  # fsspec is untyped.
    """Files as sshfs has them: paths without the host, ``mode="create"`` without effect, and errors without reason."""

    cachable = False
    protocol = "abstract"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return re.sub(r"\A[a-z]+://[^/]*", "", str(path)).rstrip("/") or "/"

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        try:
            return super()._open(path, mode, **kwargs)
        except FileExistsError:
            raise OSError("Failure") from None

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value, mode="overwrite", **kwargs)


class _OverwritingFiles(_Files):
    """And as a storage without any exclusive create has them."""

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return super()._open(path, mode.replace("x", "w"), **kwargs)


class _LaggingFiles(_Files):
    """And as a network file system that remembers lists for a while has them."""

    lags = False

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        return [] if self.lags else super().ls(path, detail=detail, **kwargs)


@pytest.fixture
def files() -> Callable[..., None]:
    """Let a scheme lead to such files."""
    from airflow_provider_roughy.compat import ObjectStoragePath  # noqa: F401 - only with it is there such a registry.

    attach = pytest.importorskip("airflow.sdk.io").attach
    return lambda scheme, fs=None: setattr(attach(scheme), "fs", fs or _Files())


def test_a_run_knows_what_its_tries_have_reported_although_lists_lag(
    files: Callable[..., None], tmp_path: Path
) -> None:
    storage = _LaggingFiles()
    files("sftp", storage)
    ledger = Ledger(f"sftp://host{tmp_path}/ledger")
    ledger.check()
    storage.lags = True
    with ledger.lease(ME):
        ledger.record_reported(ME, [KEY])
    again = replace(ME, try_token="try 2")
    ledger.record_reported(again, [OTHER])
    assert ledger.has_started(again)
    assert ledger.reported(again) == {KEY, OTHER}


def test_a_batch_and_its_retry_keep_their_ledger_on_another_host(
    roughy: Emulator, connection: dict[str, object], files: Callable[..., None], nights: Nights, tmp_path: Path
) -> None:
    files("sftp")
    nights.options["ledger"] = f"sftp://host{tmp_path}/ledger"
    first = nights.run()
    assert (first.state, len(first.result)) == ("success", 3), first.error
    assert sorted(nights.run(again=True).result) == sorted(first.result)
    assert nights.run().result == []
    assert len(roughy.assets) == 3


def test_a_storage_that_overwrites_is_refused_with_the_reason(files: Callable[..., None], tmp_path: Path) -> None:
    files("smb", _OverwritingFiles())
    with pytest.raises(RoughyUnusableLedgerError, match="its storage overwrites an object"):
        Ledger(f"smb://host{tmp_path}/ledger").check()


def test_files_on_another_host_are_opened_exclusively(files: Callable[[str], None], tmp_path: Path) -> None:
    files("sftp")
    with pytest.raises(RoughyUnusableLedgerError, match="Is the volume mounted"):
        Ledger(f"sftp://host{tmp_path}/nas/ledger").check()
    ledger = Ledger(f"sftp://host{tmp_path}/ledger")
    ledger.check()
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return ledger.create_version(replace(VERSION, owner=replace(ME, try_token=str(number))))

    for n in range(1, 6):
        with ThreadPoolExecutor(8) as pool:
            created = list(pool.map(lambda number, n=n: create(number), range(8)))
        assert created.count(True) == 1
        ledger.remove_versions([(KEY, n)])


USES: dict[str, Callable[[str], object]] = {
    "ledger": lambda uri: Ledger(uri).check(),
    "source": find_source,
    "target": lambda uri: find_target(uri, name="talk.mp3"),
}
UNUSABLE = (RoughyUnusableLedgerError, RoughyUnusableSourceError, RoughyUnusableTargetError)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_password_in_a_uri_is_refused_before_airflow_logs_it(
    use: Callable[[str], object], capfd: pytest.CaptureFixture[str]
) -> None:
    """Airflow takes it for the id of a connection, which it does not find, and says so."""
    with pytest.raises(UNUSABLE, match="before its @, a URI names an Airflow connection") as refused:
        use("memory://me:topsecret@bucket/talk")
    out, err = capfd.readouterr()
    assert "topsecret" not in f"{refused.value} {refused.value.__cause__} {out} {err}"
    assert "provider" not in str(refused.value), "which is not what is missing"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("uri", ["nosuch://bucket/talk", "hdfs://me@bucket/talk"])
def test_unknown_storage_error_names_the_missing_provider(uri: str, use: Callable[[str], object]) -> None:
    with pytest.raises(UNUSABLE, match="Install the Airflow provider of that storage"):
        use(uri)


def test_a_folder_that_is_missing_is_empty(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    folder.prepare()
    folder.write("runs/a.json", b"1")
    assert (list(folder.names("runs")), list(folder.names("none"))) == (["a.json"], [])
