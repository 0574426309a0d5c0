"""What every storage guarantees, run on each of them: `docs/storages.md`."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from airflow_provider_roughy.emulator import Emulator
from airflow_provider_roughy.exceptions import (
    RoughyError,
    RoughyLedgerError,
    RoughySourceError,
    RoughyTargetError,
    RoughyUnusableLedgerError,
    RoughyUnusableSourceError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.ingest.discover import discover
from airflow_provider_roughy.ledger import ClaimOwner, Ledger, Result, Version
from airflow_provider_roughy.operators import RoughyIngestOperator
from airflow_provider_roughy.transfer.source import find_source
from airflow_provider_roughy.transfer.target import find_target
from harness.storages.kinds import ERRORS, USES, Guarantee
from tests.running import Ended, TaskInstance, run_task
from tests.storages.conftest import Place
from tests.storages.processes import Processes
from tests.storages.proxy import Answer, Breaking, proxy_of
from tests.uploading import MIB, Store, break_off, sent, upload

for each in ("adlfs", "gcsfs", "sshfs"):
    pytest.importorskip(each, reason=f"the dependency group `storages` is not installed ({each})")

#: Rounds of two batches over one ledger.
ROUNDS = int(os.environ.get("ROUGHY_STORAGE_ROUNDS", "3"))

ODD_NAMES = [
    "plain.mp3",
    "with space.mp3",
    " leading.mp3",
    "trailing.mp3 ",
    "100%.mp3",
    "%2F.mp3",
    "%20.mp3",
    "#.mp3",
    "a#b.mp3",
    "?.mp3",
    "What now? 1.mp3",
    "q?versionid=1.mp3",
    "ünïcödé.mp3",
    "e\u0301.mp3",
    "日本語.mp3",
    "😀.mp3",
    "*.mp3",
    "[2026].mp3",
    "a&b=c.mp3",
    "a+b.mp3",
    "a;b,c.mp3",
    "a@b.mp3",
    "a:b.mp3",
    "'quotes\".mp3",
    "-rf.mp3",
    "~.mp3",
    "$HOME.mp3",
    "{x}.mp3",
    "a|b<c>.mp3",
    f"{'long' * 30}.mp3",
]

ME = ClaimOwner("dag.task", "night 1", "try 1")
KEY = "a" * 40
VERSION = Version(KEY, 1, ME, "a", {"uri": "a"}, at="now")


def covers(*guarantees: Guarantee) -> pytest.MarkDecorator:
    """Mark a test with what it proves."""
    return pytest.mark.guarantees(*guarantees)


def ingest(place: Place, run: str, **options: Any) -> tuple[Ended, dict[str, Any]]:
    ti = TaskInstance(run_id=run)
    conn_ids = {"source_conn_id": place.conn_id, "ledger_conn_id": place.conn_id}
    ledger = {"source": f"{place.uri}/in/", "ledger": f"{place.uri}/ledger", "pattern": "*"}
    options = {**conn_ids, **ledger, "poll_interval": 0.2, "timeout": 60, **options}
    ended = run_task(RoughyIngestOperator(task_id="ingest", **options), context={"ti": ti})
    return ended, {name: json.loads(value) for name, value in ti.xcoms.items()}


# ---- Source


@covers(Guarantee.NAMES)
@pytest.mark.usefixtures("patient")
def test_files_of_odd_names_are_ingested_once(roughy: Emulator, place: Place, recordings: dict[str, Path]) -> None:
    head = recordings["audio"].read_bytes()
    contents = {name: head + bytes(number) for number, name in enumerate(ODD_NAMES)}
    for name, content in contents.items():
        place.put(f"in/{name}", content)
    first, told = ingest(place, "night 1", on_failed="return")
    assert {source.rpartition("/")[2] for source in told["rejected"]} == set(place.kind.odd_names)
    for name in place.kind.odd_names:
        del contents[name]
    names = list(contents)
    assert (first.state, len(first.result)) == ("success", len(names)), first.error
    hashes = {hashlib.sha256(content).hexdigest() for content in contents.values()}
    assert {asset["sha256"] for asset in roughy.assets} == hashes
    assert {source.rpartition("/")[2] for source in told["sources"].values()} == set(names)
    second, told = ingest(place, "night 2")
    assert (second.result, told["known"]) == ([], len(ODD_NAMES))
    place.put("in/new.mp3", head + bytes(1000))
    place.put(f"in/{names[1]}", head + bytes(1001))
    third, told = ingest(place, "night 3")
    assert (len(third.result), told["known"]) == (2, len(ODD_NAMES) - 1), third.error
    assert {source.rpartition("/")[2] for source in told["sources"].values()} == {"new.mp3", names[1]}


@covers(Guarantee.METADATA)
def test_edit_of_metadata_makes_no_new_version(place: Place) -> None:
    place.put("in/talk.mp3", b"t" * 1000)

    def versions() -> tuple[str, dict[str, Any]]:
        [file] = discover(f"{place.uri}/in/", conn_id=place.conn_id).files
        return file.identity(project_id="p").key, file.open().fingerprint

    before = versions()
    edit_metadata(place, "in/talk.mp3")
    assert versions() == before


def edit_metadata(place: Place, name: str) -> None:
    """Change what a storage has about a file, and not its content."""
    time.sleep(1.1)  # Some have whole seconds.
    local = place.local(name)
    if local is not None:
        local.chmod(0o600)
        return
    assert place.server is not None
    if place.kind.name == "azure":
        from azure.storage.blob import BlobServiceClient

        text = place.server.connection["extra"]["connection_string"]
        container, _, blob = place.at(name).partition("/")
        with BlobServiceClient.from_connection_string(text).get_blob_client(container, blob) as client:
            client.set_blob_metadata({"reviewed": "yes"})
    elif place.kind.name == "gcs":
        bucket, _, key = place.at(name).partition("/")
        url = f"{place.server.url}/storage/v1/b/{bucket}/o/{quote(key, safe='')}"
        httpx.patch(url, json={"metadata": {"reviewed": "yes"}}, trust_env=False).raise_for_status()
    else:
        place.fs.setxattr(place.at(name), reviewed="yes")


@covers(Guarantee.RESUMED)
def test_upload_resumes_at_its_offset(
    roughy: Emulator, place: Place, recordings: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.001)
    roughy.progression = "manual"
    content = recordings["audio"].read_bytes() + os.urandom(10 * MIB)
    place.put("talk.mp3", content)
    store, source = Store(), f"{place.uri}/talk.mp3"
    break_off(roughy, store, source, after=7 * MIB, source_conn_id=place.conn_id)
    ended = upload(store, source, source_conn_id=place.conn_id)
    assert ended.state == "success", ended.error
    [asset] = roughy.assets
    assert asset["sha256"] == hashlib.sha256(content).hexdigest()
    assert sent(roughy) == len(content) - 7 * MIB


@covers(Guarantee.CHANGED)
def test_file_that_changes_while_it_is_read_is_an_error(place: Place) -> None:
    place.put("talk.mp3", b"a" * 3 * MIB)
    source = find_source(f"{place.uri}/talk.mp3", conn_id=place.conn_id)
    time.sleep(1.1)
    with pytest.raises(RoughySourceError, match=r"changed|shrank"), source.open() as reader:
        for block in reader.blocks(0, source.size):
            place.put("talk.mp3", b"b" * 3 * MIB)
            assert block


# ---- Ledger


@covers(Guarantee.ONE_WINNER)
def test_one_of_eight_claimers_wins(place: Place, processes: Processes, tmp_path: Path) -> None:
    place.ledger().check()
    keys = [f"{number:040x}" for number in range(8)]
    go = tmp_path / "go"
    children = [
        processes.start(
            "claim", ledger=f"{place.uri}/ledger", conn_id=place.conn_id, owner=str(number), keys=keys, go=str(go)
        )
        for number in range(8)
    ]
    for child in children:
        child.wait_for("ready")
    go.touch()
    claims = [child.result() for child in children]
    for key, answers in zip(keys, zip(*claims, strict=True), strict=True):
        assert sorted(answers, key=str) == [False] * 7 + [True]
        version = place.ledger().find_latest(key)
        assert version is not None
        assert version.owner.try_token == str(answers.index(True))


@covers(Guarantee.ONE_WINNER)
def test_ledger_keeps_what_it_is_told(place: Place) -> None:
    ledger = place.ledger()
    ledger.check()
    with ledger.lease(ME):
        for n in range(1, 4):
            assert ledger.create_version(replace(VERSION, n=n))
        assert ledger.is_alive(ME)
        result = Result(KEY, "a", {"uri": "a"}, str(ME), "failed", "asset")
        assert ledger.create_result(result)
        assert not ledger.create_result(replace(result, owner="another"))
        found = ledger.snapshot()
        assert (found.done, found.open, found.problems) == ({KEY}, {KEY: 3}, {KEY: "failed"})
        ledger.record_reported(ME, [KEY])
        ledger.remove_versions([(KEY, 3), ("b" * 40, 2)])
    assert ledger.snapshot().open == {}
    assert (ledger.reported(ME), ledger.has_started(ME), ledger.is_alive(ME)) == ({KEY}, True, False)
    assert ledger.forget(KEY)
    assert ledger.snapshot().done == set()
    # Half of an object, or one that is being written, would be listed here.
    assert {name for name in place.names("ledger/open") if name.startswith(".")} == set()


@covers(Guarantee.LOST_REPLY)
# asyncssh leaves the sockets of a connection that was reset to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_create_whose_reply_is_lost_is_mine(place: Place, connect: Callable[..., str]) -> None:
    assert place.server is not None
    with ExitStack() as stack:
        if place.server.folder:
            link = stack.enter_context(Breaking(place.server.port))
            port = link.port
            losses: list[Callable[[], None]] = [partial(link.lose, nth) for nth in (1, 4, 5, 6)]
        else:
            proxy = stack.enter_context(proxy_of(place.server.port))
            port = proxy.port
            losses = [lambda: proxy.answers.append(Answer(lost=True, times=1))]
        ledger = place.ledger(conn_id=connect(place.server.connection_to(port)))
        ledger.check()
        for number, lose in enumerate(losses):
            version = replace(VERSION, key=f"{number:040x}")
            lose()
            assert ledger.create_version(version)
            assert not ledger.create_version(replace(version, owner=replace(ME, try_token="try 2")))
        assert not (link.is_armed if place.server.folder else proxy.answers)


@covers(Guarantee.BATCHES)
@pytest.mark.usefixtures("patient")
def test_two_batches_at_once_upload_each_file_once(
    roughy: Emulator, place: Place, recordings: dict[str, Path], processes: Processes, tmp_path: Path
) -> None:
    head = recordings["audio"].read_bytes()
    conn_ids = {"source_conn_id": place.conn_id, "ledger_conn_id": place.conn_id}
    for number in range(4):
        place.put(f"in/{number}.mp3", head + bytes(number))
    for turn in range(ROUNDS):
        go = tmp_path / f"go{turn}"
        options = {"source": f"{place.uri}/in/", "ledger": f"{place.uri}/ledger{turn}", **conn_ids}
        children = [processes.start("ingest", run=f"night {each}", go=str(go), **options) for each in (1, 2)]
        for child in children:
            child.wait_for("ready")
        go.touch()
        results = [child.result() for child in children]
        assert [result["state"] for result in results] == ["success", "success"], results
        with_bytes = [asset for asset in roughy.assets if asset["state"] != "pending_upload"]
        assert len(with_bytes) == 4 * (turn + 1), results
        ledger = place.ledger(f"ledger{turn}")
        assert len(ledger.snapshot().done) == 4


@covers(Guarantee.CHECK)
def test_check_finds_a_storage_that_overwrites(place: Place, connect: Callable[..., str]) -> None:
    assert place.server is not None
    overwrites = "its storage overwrites an object"
    if place.server.folder:
        (Path(place.server.folder) / place.folder / "careless").mkdir()
        with pytest.raises(RoughyUnusableLedgerError, match=overwrites):
            place.ledger("careless/ledger").check()
        return
    with proxy_of(place.server.port) as proxy:
        ledger = place.ledger(conn_id=connect(place.server.connection_to(proxy.port)))
        proxy.answers.append(Answer(overwrites=201 if place.kind.name == "azure" else 200))
        with pytest.raises(RoughyUnusableLedgerError, match=overwrites):
            ledger.check()


# ---- Target

OLD = b"old" * 1000


@covers(Guarantee.WHOLE, Guarantee.FOLDERS, Guarantee.LEFT_OVER)
def test_file_appears_whole_or_not_at_all(place: Place, processes: Processes) -> None:
    place.put("out/old.mp4", OLD)
    for name in ("old.mp4", "deep/er/new.mp4"):
        child = processes.start(
            "write", target=f"{place.uri}/out/{name}", conn_id=place.conn_id, size=20 * MIB, stall_at=18 * MIB
        )
        child.wait_for("stalled")
        child.kill()
    assert place.get("out/old.mp4") == OLD
    assert place.get("out/deep/er/new.mp4") is None
    visible = {name for folder in ("out", "out/deep/er") for name in place.names(folder) if not name.startswith(".")}
    assert visible - {"deep"} == {"old.mp4"}
    for name in ("old.mp4", "deep/er/new.mp4"):
        with find_target(f"{place.uri}/out/{name}", name="x", conn_id=place.conn_id).open(20 * MIB) as sink:
            for _ in range(20):
                sink.write(b"n" * MIB)
        assert place.get(f"out/{name}") == b"n" * 20 * MIB


@covers(Guarantee.KEPT)
@pytest.mark.parametrize("size", [1000, 9 * MIB], ids=["small", "large"])
def test_one_of_two_downloads_keeps_the_name(place: Place, processes: Processes, tmp_path: Path, size: int) -> None:
    go = tmp_path / "go"
    options = {"target": f"{place.uri}/out/new.mp4", "conn_id": place.conn_id, "overwrite": "fail", "go": str(go)}
    children = [processes.start("write", size=size + number, **options) for number in range(4)]
    for child in children:
        child.wait_for("ready")
    go.touch()
    ended = [child.result() for child in children]
    if size > 5 * MIB and Guarantee.KEPT in place.kind.differs:
        # Which of them is seen in a race is chance; a file that exists before is kept.
        assert "written" in ended
        return
    assert sorted(ended) == ["RoughyTargetExistsError"] * 3 + ["written"]
    assert place.get("out/new.mp4") == b"n" * (size + ended.index("written"))


# ---- Errors


def uses(uri: str, conn_id: str | None) -> dict[str, Callable[[], Any]]:
    """The first thing that each use of a storage does."""
    return {
        "batch": lambda: discover(f"{uri}/in/", conn_id=conn_id),
        "upload": lambda: find_source(f"{uri}/talk.mp3", conn_id=conn_id),
        "ledger": lambda: Ledger(f"{uri}/ledger", conn_id=conn_id).check(),
        "target": lambda: find_target(f"{uri}/talk.mp3", name="x", conn_id=conn_id).save(b"x" * 1000),
    }


FINAL = {
    "batch": RoughyUnusableSourceError,
    "upload": RoughyUnusableSourceError,
    "ledger": RoughyUnusableLedgerError,
    "target": RoughyUnusableTargetError,
}
TRANSIENT = {
    "batch": RoughySourceError,
    "upload": RoughySourceError,
    "ledger": RoughyLedgerError,
    "target": RoughyTargetError,
}


def raised(do: Callable[[], Any]) -> type[Exception] | None:
    try:
        do()
    except RoughyError as error:
        text = str(error)
        assert "\n" not in text, text
        assert len(text) < 600, text
        return type(error)
    return None


@covers(Guarantee.MISSING)
def test_missing_bucket_fails_for_good(place: Place) -> None:
    if place.server is None or place.server.folder:
        found = {use: raised(do) for use, do in uses(f"{place.uri}/missing", place.conn_id).items() if use != "target"}
        assert found == {use: error for use, error in FINAL.items() if use != "target"}
        return
    root = place.root.rpartition("/")[0]
    expected: dict[str, Any] = dict(FINAL)
    if Guarantee.MISSING in place.kind.differs:
        expected |= {"ledger": None, "target": None}
    found = {use: raised(do) for use, do in uses(f"{root}/no{place.folder}/x", place.conn_id).items()}
    assert found == expected


@covers(Guarantee.FORBIDDEN)
def test_rejected_credentials_fail_for_good(place: Place, connect: Callable[..., str]) -> None:
    if place.kind.name not in WRONG:
        pytest.skip("the server that stands for it takes any credentials")
    assert place.server is not None
    conn_id = connect({**place.server.connection, **WRONG[place.kind.name](place.server.connection)})
    assert {use: raised(do) for use, do in uses(place.uri, conn_id).items()} == FINAL


WRONG: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "s3-compatible": lambda fields: {"password": "wrong"},
    "sftp": lambda fields: {"password": "wrong"},
    "azure": lambda fields: {
        "extra": {"connection_string": fields["extra"]["connection_string"].replace("AccountKey=E", "AccountKey=F")}
    },
}


@covers(Guarantee.FORBIDDEN)
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", [401, 403])
def test_missing_permissions_fail_for_good(place: Place, connect: Callable[..., str], status: int) -> None:
    assert place.server is not None
    if place.server.folder:
        assert {use: raised(do) for use, do in uses(f"{place.uri}/forbidden", place.conn_id).items()} == FINAL
        return
    with proxy_of(place.server.port) as proxy:
        conn_id = connect(place.server.connection_to(proxy.port))
        proxy.answers.append(Answer(status, writes=False))
        began = time.monotonic()
        assert {use: raised(do) for use, do in uses(place.uri, conn_id).items()} == FINAL
        assert time.monotonic() - began < 10


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries of the storages do not wait between their own attempts, which takes them up to minutes."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for module, name in (
        ("gcsfs.retry", "min"),
        ("azure.storage.blob._shared.policies", "ExponentialRetry.get_backoff_time"),
        ("azure.storage.blob._shared.policies_async", "ExponentialRetry.get_backoff_time"),
    ):
        if find_spec(module.partition(".")[0]):
            import_module(module)
            monkeypatch.setattr(f"{module}.{name}", lambda *args: 0.0, raising=False)


@covers(Guarantee.AWAY)
@pytest.mark.usefixtures("impatient")
def test_storage_that_is_down_is_tried_again(place: Place, connect: Callable[..., str]) -> None:
    assert place.server is not None
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    conn_id = connect(place.server.connection_to(port))
    assert {use: raised(do) for use, do in uses(place.uri, conn_id).items()} == TRANSIENT


def test_each_guarantee_has_a_test() -> None:
    """The table of ``docs/storages.md`` has a row for each."""
    marks = [mark for test in globals().values() for mark in getattr(test, "pytestmark", ())]
    covered = {guarantee for mark in marks if mark.name == "guarantees" for guarantee in mark.args}
    assert covered == set(Guarantee)
    assert {each for use in USES.values() for each in use} | set(ERRORS) == set(Guarantee)
