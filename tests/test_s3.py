"""Recordings in S3: a real S3 API (moto's server), through the Amazon provider's filesystem."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.ingest.discover import discover
from airflow_provider_roughy.operators import RoughyIngestOperator
from airflow_provider_roughy.transfer.source import BLOCK_BYTES, READ_AHEAD_BYTES
from tests import uploading
from tests.running import Ended, TaskInstance, run_task
from tests.uploading import MIB, Store, sent

s3fs = pytest.importorskip("s3fs", reason="the group s3 is installed for the newest Airflow only")

SIZE = 24 * MIB + 13

Put = Callable[[bytes], None]


@pytest.fixture
def put(s3: Any) -> Put:
    """Put an object at ``s3://recordings/talk.mp3``."""

    def put(content: bytes) -> None:
        s3.put_object(Bucket="recordings", Key="talk.mp3", Body=content)

    return put


@pytest.fixture
def recording(recordings: dict[str, Path]) -> bytes:
    """Bytes that begin like a recording."""
    head = recordings["audio"].read_bytes()
    return head + os.urandom(SIZE - len(head))


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is read from S3: pairs of begin and end."""
    read: list[tuple[int, int]] = []
    fetch = s3fs.core._fetch_range

    def fetch_and_tell(fs: Any, bucket: str, key: str, version: Any, start: int, end: int, **options: Any) -> Any:
        read.append((start, end))
        return fetch(fs, bucket, key, version, start, end, **options)

    monkeypatch.setattr(s3fs.core, "_fetch_range", fetch_and_tell)
    return read


@pytest.fixture(autouse=True)
def quick(roughy: Emulator, connection: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between tries; and what is uploaded stays in ``processing``, for it is no real recording."""
    roughy.progression = "manual"
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)


def upload(store: Store, key: str = "recordings/talk.mp3", conn_id: str = "s3") -> Ended:
    return uploading.upload(store, f"s3://{key}", source_conn_id=conn_id)


def break_off(roughy: Emulator, store: Store, after: int) -> None:
    uploading.break_off(roughy, store, "s3://recordings/talk.mp3", after, source_conn_id="s3")


def only_asset(roughy: Emulator, ended: Ended, content: bytes) -> dict[str, Any]:
    """Return the only asset there is, which has arrived whole."""
    [asset] = roughy.assets
    assert ended.result == asset["id"], ended.error
    assert asset["sha256"] == hashlib.sha256(content).hexdigest()
    return asset


def test_an_object_arrives_and_is_read_once(
    roughy: Emulator, put: Put, recording: bytes, ranges: list[tuple[int, int]]
) -> None:
    put(recording)
    only_asset(roughy, upload(Store()), recording)
    assert sum(end - start for start, end in ranges) == SIZE


def test_a_cut_is_resumed_by_seeking(
    roughy: Emulator, put: Put, recording: bytes, ranges: list[tuple[int, int]]
) -> None:
    put(recording)
    roughy.inject(Fault(method="PATCH", cut_after=17 * MIB + 1))
    only_asset(roughy, upload(Store()), recording)
    assert sent(roughy) == SIZE
    # What had been read ahead may be read again.
    assert sum(end - start for start, end in ranges) <= SIZE + READ_AHEAD_BYTES + BLOCK_BYTES


def test_a_later_try_reads_only_what_is_missing(
    roughy: Emulator, put: Put, recording: bytes, ranges: list[tuple[int, int]]
) -> None:
    put(recording)
    store = Store()
    break_off(roughy, store, after=17 * MIB + 1)
    ranges.clear()
    asset = only_asset(roughy, upload(store), recording)
    assert sent(roughy) == SIZE - (17 * MIB + 1)
    assert min(start for start, _ in ranges) == 17 * MIB + 1
    assert store.get("roughy_upload")["asset_id"] == asset["id"]
    assert store.get("roughy_upload")["wanted"]["etag"] == f'"{hashlib.md5(recording).hexdigest()}"'


def test_a_complete_upload_is_not_read_again(
    roughy: Emulator, put: Put, recording: bytes, ranges: list[tuple[int, int]]
) -> None:
    put(recording)
    store = Store()
    first = upload(store)
    ranges.clear()
    assert upload(store).result == first.result
    assert ranges == []


def test_an_object_that_changed_between_two_tries_is_uploaded_anew(
    roughy: Emulator, put: Put, recording: bytes
) -> None:
    put(recording)
    store = Store()
    break_off(roughy, store, after=5 * MIB)
    [first] = roughy.assets
    changed = recording[:-1] + bytes([recording[-1] ^ 1])
    put(changed)
    assert only_asset(roughy, upload(store), changed)["id"] != first["id"]


@pytest.mark.parametrize("size", [SIZE, SIZE - 1000, SIZE + 1000], ids=["same size", "shorter", "longer"])
@pytest.mark.parametrize("read", [9 * MIB, SIZE], ids=["in the middle", "after it was read"])
def test_an_object_that_changes_on_the_way_is_never_completed(
    roughy: Emulator, put: Put, recording: bytes, size: int, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(recording)
    changed = recording[:100_000] + os.urandom(size - 100_000)
    fetch = s3fs.core._fetch_range

    def fetch_and_change(*args: Any, **options: Any) -> Any:
        found = fetch(*args, **options)
        if args[5] == read:  # The end of the range.
            put(changed)
        return found

    monkeypatch.setattr(s3fs.core, "_fetch_range", fetch_and_change)
    store = Store()
    ended = upload(store)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughySourceError)
    assert "s3://recordings/talk.mp3" in str(ended.error)
    assert [asset["state"] for asset in roughy.assets] == ["pending_upload"]
    only_asset(roughy, upload(store), changed)


@pytest.mark.parametrize("key", ["recordings/none.mp3", "no-such-bucket/talk.mp3", "recordings"])
def test_what_is_not_there_fails_for_good(roughy: Emulator, put: Put, key: str) -> None:
    ended = upload(Store(), key)
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableSourceError)
    assert roughy.requests == []


#: Uploads in a process of its own, and tells what that took.
CHILD = """
import json, re, sys, tempfile

tempfile.gettempdir()  # It tries out the folder once in a process, by a file of a few bytes.
written = set()

def watch(event, args):
    if event == "open" and isinstance(args[0], str) and args[2] & 3:
        written.add(args[0])
    if event == "import" and args[0] == "airflow_provider_roughy.transfer.tus":
        before.append(peak())  # The bytes are about to move.

from airflow_provider_roughy.operators import RoughyCreateUploadOperator
from tests.running import run_task

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = []
operator = RoughyCreateUploadOperator(task_id="upload", source="s3://recordings/talk.mp3", source_conn_id="s3")
sys.addaudithook(watch)
ended = run_task(operator)
grown = peak() - before[0]
written.discard("/dev/null")
print(json.dumps({"result": ended.result, "error": repr(ended.error), "grown": grown, "written": sorted(written)}))
"""


def test_an_object_is_streamed_and_never_lands_on_the_workers_disk(
    roughy: Emulator, put: Put, recording: bytes, tmp_path: Path
) -> None:
    content = recording * 3
    put(content)
    home = {name: str(tmp_path) for name in ("TMPDIR", "HOME")}
    env = {**os.environ, **home, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True, timeout=100)
    told = json.loads(done.stdout.splitlines()[-1])
    only_asset(roughy, Ended("success", result=told["result"], error=told["error"]), content)
    # Three times what is read ahead, and the libraries of the transfer.
    assert told["grown"] < 48 * MIB
    assert told["written"] == []
    assert list(tmp_path.iterdir()) == []


# ---- Batches


@pytest.fixture
def bucket(s3: Any, roughy: Emulator, recordings: dict[str, Path]) -> Any:
    """The bucket, with two recordings and a folder's placeholder under ``incoming/``."""
    roughy.progression = "immediate"
    for name in ("", "Folge #1.mp3", "b%20.mp3", "deep/c.mp3", "notes.txt"):
        body = recordings["audio"].read_bytes() if name.endswith("mp3") else b""
        s3.put_object(Bucket="recordings", Key=f"incoming/{name}", Body=body)
    return s3


def ingest(run: str, **options: Any) -> tuple[Ended, dict[str, Any]]:
    ti = TaskInstance(run_id=run)
    options = {
        "source": "s3://recordings/incoming/",
        "source_conn_id": "s3",
        "ledger": "s3://s3@recordings/ledger",
        "poll_interval": 0.2,
        "timeout": 60,
        **options,
    }
    ended = run_task(RoughyIngestOperator(task_id="ingest", **options), context={"ti": ti})
    return ended, {name: json.loads(value) for name, value in ti.xcoms.items()}


def test_a_night_in_object_storage(roughy: Emulator, bucket: Any) -> None:
    first, told = ingest("night 1")
    assert (first.state, len(first.result)) == ("success", 2)
    assert sorted(told["sources"].values()) == [
        "s3://recordings/incoming/Folge #1.mp3",
        "s3://recordings/incoming/b%20.mp3",
    ]
    roughy.clear_requests()
    second, told = ingest("night 2", recursive=True)
    assert (len(second.result), told["known"]) == (1, 2)
    assert sent(roughy) > 0
    _, told = ingest("night 3", source="s3://recordings/incoming/*.mp3")
    assert told["known"] == 2
    _, told = ingest("night 4", source=["s3://recordings/incoming/deep/c.mp3", "s3://recordings/incoming/no.mp3"])
    assert (told["known"], list(told["refused"])) == (1, ["s3://recordings/incoming/no.mp3"])
    assert len(roughy.assets) == 3


def test_odd_names_in_object_storage_are_names(roughy: Emulator, bucket: Any, recordings: dict[str, Path]) -> None:
    folder = "[2026] talks"
    odd = ["What now? Part 1.mp3", "What now? Part 2.mp3", "a@b.mp3", "*.mp3", "-rf '\".mp3"]
    for name in odd:
        bucket.upload_file(str(recordings["audio"]), "recordings", f"{folder}/{name}")
    first, told = ingest("night 1", source=f"s3://recordings/{folder}/")
    assert (first.state, len(first.result)) == ("success", len(odd))
    assert sorted(told["sources"].values()) == sorted(f"s3://recordings/{folder}/{name}" for name in odd)
    second, told = ingest("night 2", source=f"s3://recordings/{folder}")
    assert (second.result, told["known"]) == ([], len(odd))


def test_upload_from_object_storage_is_resumed_by_another_worker(
    roughy: Emulator, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.inject(Fault(method="PATCH", cut_after=10_000, times=None))
    roughy.inject(Fault(method="HEAD", status=503, times=None))
    assert ingest("night 1")[0].state == "up_for_retry"
    roughy.clear_faults()
    ended, _ = ingest("night 1")
    assert (ended.state, len(ended.result), len(roughy.assets)) == ("success", 2, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ledger": "s3://s3@nobucket/ledger"}, "nobucket"),
        ({"source": "s3://nobucket/nothing/"}, "does not exist"),
        ({"source": "s3://recordings/nothing.mp3"}, "does not exist"),
        ({"source": "s3://recordings/ledgers/", "ledger": "s3://s3@recordings/ledgers/x"}, "is in the source"),
    ],
)
def test_missing_source_fails_before_anything_is_created(
    roughy: Emulator, bucket: Any, options: dict[str, str], words: str
) -> None:
    bucket.put_object(Bucket="recordings", Key="ledgers/x.mp3", Body=b"")
    ended, _ = ingest("night 1", **options)
    assert ended.state == "failed"
    assert words in str(ended.error)
    assert roughy.requests == []


def test_objects_that_cannot_be_listed_are_reported(s3: Any) -> None:
    for key in ("in/a.mp3", "in//b.mp3", "in/", "in/d.mp3 ", "in/e%2Ff.mp3", "in/q?x#y.mp3"):
        s3.put_object(Bucket="recordings", Key=key, Body=b"" if key.endswith("/") else bytes(64))
    found = discover("s3://recordings/in/", pattern="*", recursive=True, conn_id="s3")
    assert sorted(file.uri for file in found.files if file.problem is None) == [
        f"s3://recordings/in/{name}" for name in ("a.mp3", "d.mp3 ", "e%2Ff.mp3", "q?x#y.mp3")
    ]
    assert [file.uri for file in found.files if file.problem is not None] == ["s3://recordings/in//*"]
    assert [file.size for file in discover("s3://recordings/in//b.mp3", conn_id="s3").files] == [64]


def test_an_empty_object_may_represent_the_folder_of_its_name(s3: Any) -> None:
    for key, content in (("in", b""), ("in/a.mp3", bytes(64)), ("in/sub", b""), ("in/sub/b.mp3", bytes(64))):
        s3.put_object(Bucket="recordings", Key=key, Body=content)
    for source in ("s3://recordings/in", "s3://recordings/in/", "s3://recordings"):
        found = discover(source, pattern="*", recursive=True, conn_id="s3")
        assert sorted(file.uri for file in found.files) == [
            "s3://recordings/in/a.mp3",
            "s3://recordings/in/sub/b.mp3",
        ]
