"""Downloads to S3: a real S3 API (moto's server), through the Amazon provider's filesystem."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.exceptions import RoughyDownloadError, RoughyTargetExistsError, RoughyUnusableTargetError
from airflow_provider_roughy.operators import RoughyDownloadOperator
from airflow_provider_roughy.transfer.target import Target
from tests.running import Ended, run_task
from tests.storage import Answer, Storage, lead
from tests.uploading import MIB

pytest.importorskip("s3fs", reason="the group s3 is installed for the newest Airflow only")

SIZE = 24 * MIB + 13

pytestmark = pytest.mark.usefixtures("patient")


class Out:
    """The bucket, seen from outside.

    :param client: A client of S3.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def objects(self) -> dict[str, bytes]:
        """What is there, by key."""
        keys = [each["Key"] for each in self.client.list_objects_v2(Bucket="recordings").get("Contents", [])]
        return {key: self.client.get_object(Bucket="recordings", Key=key)["Body"].read() for key in keys}

    @property
    def unfinished(self) -> list[dict[str, Any]]:
        """Multipart uploads that were begun and not ended, which cost as much as objects do."""
        found: list[dict[str, Any]] = self.client.list_multipart_uploads(Bucket="recordings").get("Uploads", [])
        return found


@pytest.fixture
def out(s3: Any) -> Out:
    return Out(s3)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """The storage that Roughy's links lead to."""
    monkeypatch.setattr("airflow_provider_roughy.transfer.download.time.sleep", lambda seconds: None)
    with Storage(os.urandom(SIZE)) as storage:
        yield storage


def download(roughy: Emulator, storage: Storage, key: str = "out/talk.mp3", **options: Any) -> Ended:
    """Download an asset that is as long as what the storage has."""
    asset_id = roughy.seed_asset(size_bytes=len(storage.content), extension="mp3")
    roughy.clear_faults()
    lead(roughy, asset_id, storage)
    target = f"s3://recordings/{key}"
    return run_task(
        RoughyDownloadOperator(task_id="download", target=target, asset_id=asset_id, target_conn_id="s3", **options)
    )


@pytest.mark.parametrize("size", [1000, SIZE], ids=["one part", "three parts"])
def test_a_download_becomes_an_object(roughy: Emulator, storage: Storage, out: Out, size: int) -> None:
    storage.content = storage.content[:size]
    ended = download(roughy, storage)
    assert ended.result == "s3://recordings/out/talk.mp3", ended.error
    assert out.objects == {"out/talk.mp3": storage.content}
    assert out.unfinished == []


@pytest.mark.parametrize("before", [{}, {"out/talk.mp3": b"before"}], ids=["nothing there", "something there"])
@pytest.mark.parametrize("after", [1000, SIZE - 1], ids=["before the first part", "before the last part"])
def test_no_part_of_an_object_appears(
    roughy: Emulator, storage: Storage, out: Out, before: dict[str, bytes], after: int
) -> None:
    """Files of fsspec send what they have at the end of a ``with``, also after an error."""
    for key, content in before.items():
        out.client.put_object(Bucket="recordings", Key=key, Body=content)
    storage.answers = [Answer(cut_after=after)]
    storage.manner = Answer(status=403)
    ended = download(roughy, storage)
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyDownloadError)
    gc.collect()
    assert out.objects == before
    assert out.unfinished == []


def test_download_to_s3_resumes_at_its_offset(roughy: Emulator, storage: Storage, out: Out) -> None:
    storage.answers = [Answer(cut_after=17 * MIB + 1), Answer(cut_after=MIB)]
    assert download(roughy, storage).state == "success"
    assert out.objects == {"out/talk.mp3": storage.content}
    assert storage.ranges == [None, f"bytes={17 * MIB + 1}-", f"bytes={18 * MIB + 1}-"]


def test_a_download_to_s3_can_start_anew(roughy: Emulator, storage: Storage, out: Out) -> None:
    storage.answers = [Answer(cut_after=17 * MIB, headers={"ETag": None})]
    assert download(roughy, storage).state == "success"
    assert out.objects == {"out/talk.mp3": storage.content}
    assert out.unfinished == []


def test_a_prefix_is_a_folder(roughy: Emulator, storage: Storage, out: Out) -> None:
    storage.content = storage.content[:1000]
    out.client.put_object(Bucket="recordings", Key="there/neighbour", Body=b"")
    for key in ("new/", "there", "there/"):
        ended = download(roughy, storage, key)
        assert ended.result.startswith(f"s3://recordings/{key.rstrip('/')}/"), ended.error
        assert out.objects[ended.result.removeprefix("s3://recordings/")] == storage.content


@pytest.mark.parametrize("overwrite", ["replace", "skip", "fail"])
def test_an_object_that_is_there_is_not_downloaded_twice(
    roughy: Emulator, storage: Storage, out: Out, overwrite: str
) -> None:
    for _ in range(2):
        assert download(roughy, storage, overwrite=overwrite).state == "success"
    assert len(storage.asked) == (2 if overwrite == "replace" else 1)
    out.client.put_object(Bucket="recordings", Key="out/talk.mp3", Body=b"another")
    assert download(roughy, storage, overwrite=overwrite).state == ("failed" if overwrite == "fail" else "success")
    assert out.objects == {"out/talk.mp3": b"another" if overwrite == "fail" else storage.content}


@pytest.mark.parametrize("size", [1000, SIZE], ids=["one part", "three parts"])
@pytest.mark.parametrize("same", [True, False], ids=["the same", "another"])
def test_object_that_comes_meanwhile_is_not_replaced(
    roughy: Emulator, storage: Storage, out: Out, monkeypatch: pytest.MonkeyPatch, size: int, same: bool
) -> None:
    """S3 itself refuses it: the look that comes before finds nothing."""
    storage.content = storage.content[:size]
    comes = storage.content if same else storage.content[::-1]
    publish = Target._publish

    def meanwhile(target: Target, *args: Any) -> None:
        inspect = target._inspect

        def inspect_first() -> None:
            inspect()
            target.__dict__.pop("_inspect")
            out.client.put_object(Bucket="recordings", Key="out/talk.mp3", Body=comes)

        target.__dict__["_inspect"] = inspect_first
        publish(target, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "_publish", meanwhile)
        ended = download(roughy, storage, overwrite="fail")
    if same:
        assert ended.state == "success", ended.error
    else:
        assert (ended.state, type(ended.error)) == ("failed", RoughyTargetExistsError)
    gc.collect()
    assert out.objects == {"out/talk.mp3": comes}
    assert out.unfinished == []


@pytest.mark.parametrize("size", [1000, SIZE])
def test_a_missing_bucket_fails_for_good(roughy: Emulator, storage: Storage, out: Out, size: int) -> None:
    storage.content = storage.content[:size]
    asset_id = roughy.seed_asset(size_bytes=size)
    lead(roughy, asset_id, storage)
    target = "s3://no-such-bucket/talk.mp3"
    ended = run_task(RoughyDownloadOperator(task_id="download", target=target, asset_id=asset_id, target_conn_id="s3"))
    assert (ended.state, type(ended.error)) == ("failed", RoughyUnusableTargetError)
    assert target in str(ended.error)


#: Downloads in a process of its own, and tells how much memory that took from the first byte on.
DOWNLOADING = """
import json, re, sys
from airflow_provider_roughy.operators import RoughyDownloadOperator
from airflow_provider_roughy.transfer import download
from tests.running import run_task

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = []

class Noting(download.Downloader):
    def download(self):
        before.append(peak())
        super().download()

download.Downloader = Noting
operator = RoughyDownloadOperator(
    task_id="download", target="s3://recordings/talk.mp3", asset_id=sys.argv[1], target_conn_id="s3"
)
ended = run_task(operator)
print(json.dumps({"result": ended.result, "error": repr(ended.error), "grown": peak() - before[0]}))
"""


def start_download(asset_id: str, folder: Path) -> subprocess.Popen[str]:
    """Start it, with a home that is a folder of its own."""
    home = {name: str(folder) for name in ("TMPDIR", "HOME")}
    env = {**os.environ, **home, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", DOWNLOADING, asset_id]
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_a_download_takes_little_memory_and_no_disk(
    roughy: Emulator, storage: Storage, out: Out, tmp_path: Path
) -> None:
    storage.content *= 6
    asset_id = roughy.seed_asset(size_bytes=len(storage.content))
    lead(roughy, asset_id, storage)
    with start_download(asset_id, tmp_path) as process:
        told, _ = process.communicate(timeout=100)
    ended = json.loads(told.splitlines()[-1])
    assert ended["result"] == "s3://recordings/talk.mp3", ended
    assert out.objects == {"talk.mp3": storage.content}
    # A few parts of 8 MiB, whatever the size: how many depends on how busy the machine is.
    assert ended["grown"] < len(storage.content) / 2
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_leaves_no_object(roughy: Emulator, storage: Storage, out: Out, tmp_path: Path) -> None:
    storage.answers = [Answer(stall_after=20 * MIB)]
    reached = threading.Event()
    storage.on_sent = lambda sent: reached.set() if sent == 20 * MIB else None
    asset_id = roughy.seed_asset(size_bytes=SIZE)
    lead(roughy, asset_id, storage)
    with start_download(asset_id, tmp_path) as process:
        assert reached.wait(60)
        process.kill()
    assert out.objects == {}
    # Nobody can tell them from those of others that are alive: what a lifecycle rule of the bucket is for.
    for left in out.unfinished:
        out.client.abort_multipart_upload(Bucket="recordings", Key=left["Key"], UploadId=left["UploadId"])
    assert download(roughy, storage, "talk.mp3").state == "success"
    assert out.objects == {"talk.mp3": storage.content}
