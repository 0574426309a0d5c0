"""Where bytes go: whole or not at all."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_roughy import target as module
from airflow_provider_roughy.compat import AirflowFailException, ObjectStoragePath, attach
from airflow_provider_roughy.exceptions import (
    RoughyTargetError,
    RoughyTargetExistsError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.target import Target, check_overwrite, find_target

OLD = b"what was there before"
NEW = os.urandom(300_000)

#: The ways to name a file in a folder.
WAYS = ["path", "text", "file://", "memory://"]


@pytest.fixture(autouse=True)
def storage() -> Iterator[None]:
    """A storage in memory, attached to Airflow as any other would be."""
    attach("memory", fs=MemoryFileSystem())
    attach("memory", conn_id="me", fs=MemoryFileSystem())
    yield
    MemoryFileSystem.store.clear()


class Place:
    """A folder, named in one of the ways.

    :param way: Which.
    :param folder: Where it is, unless it is in memory.
    """

    def __init__(self, way: str, folder: Path) -> None:
        self._folder = folder
        self._memory = way == "memory://"
        self._prefix = {"path": "", "text": ""}.get(way, way) + ("/out" if self._memory else str(folder))
        self._as_path = way == "path"

    def find(self, name: str, **options: Any) -> Target:
        location = f"{self._prefix}/{name}"
        return find_target(Path(location) if self._as_path else location, **{"name": "talk.mp3", **options})

    def put(self, name: str, content: bytes) -> None:
        if self._memory:
            MemoryFileSystem().pipe(f"/out/{name}", content)
        else:
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """Return what is there, also what was left behind."""
        if self._memory:
            found = MemoryFileSystem().find("/out")
            return {name.removeprefix("/out/"): MemoryFileSystem().cat(name) for name in found}
        paths = [path for path in self._folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self._folder)): path.read_bytes() for path in paths}


@pytest.fixture(params=WAYS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


# ---- Whole or not at all


@pytest.mark.parametrize("before", [{}, {"talk.mp3": OLD}], ids=["nothing there", "something there"])
def test_a_file_appears_when_it_is_whole(place: Place, before: dict[str, bytes]) -> None:
    for name, content in before.items():
        place.put(name, content)
    with place.find("talk.mp3").open(len(NEW)) as sink:
        sink.write(NEW[:100_000])
        sink.write(memoryview(NEW)[100_000:])
        assert sink.offset == len(NEW)
        assert place.files().get("talk.mp3") == before.get("talk.mp3")
    assert place.files() == {"talk.mp3": NEW}


@pytest.mark.parametrize("before", [{}, {"talk.mp3": OLD}], ids=["nothing there", "something there"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_of_a_file_that_is_not_whole(
    place: Place, before: dict[str, bytes], error: type[BaseException]
) -> None:
    for name, content in before.items():
        place.put(name, content)
    with pytest.raises(error), place.find("talk.mp3").open(len(NEW)) as sink:
        sink.write(NEW[:-1])
        raise error
    assert place.files() == before


def test_a_file_can_be_begun_again(place: Place) -> None:
    with place.find("talk.mp3").open() as sink:
        sink.write(OLD * 100)
        sink.restart()
        assert sink.offset == 0
        sink.write(NEW)
    assert place.files() == {"talk.mp3": NEW}


def test_an_empty_file_appears_too(place: Place) -> None:
    assert place.find("empty.srt").save(b"")
    assert place.files() == {"empty.srt": b""}


def test_two_who_write_the_same_do_not_mix(place: Place) -> None:
    first, second = place.find("talk.mp3"), place.find("talk.mp3")
    with first.open() as one:
        one.write(NEW[:1000])
        with second.open() as two:
            two.write(OLD)
        assert place.files()["talk.mp3"] == OLD
        one.write(NEW[1000:])
    assert place.files() == {"talk.mp3": NEW}


def test_who_ends_without_success_leaves_the_other_alone(place: Place) -> None:
    with place.find("talk.mp3").open() as one:
        one.write(NEW[:1000])
        with pytest.raises(RuntimeError), place.find("talk.mp3").open() as two:
            two.write(OLD)
            raise RuntimeError
        one.write(NEW[1000:])
    assert place.files() == {"talk.mp3": NEW}


# ---- Its name


@pytest.mark.parametrize(
    ("name", "found"),
    [("talk.mp3", "talk.mp3"), ("new/", "new/cut.edl"), ("there", "there/cut.edl"), ("there/", "there/cut.edl")],
)
def test_a_folder_gets_a_file_with_a_name(place: Place, name: str, found: str) -> None:
    place.put("there/neighbour", b"")
    target = find_target(f"{place._prefix}/{name}", name="cut.edl")
    assert target.uri == f"{place._prefix}/{found}"
    target.save(NEW)
    assert place.files()[found] == NEW


def test_folders_are_made(tmp_path: Path) -> None:
    find_target(tmp_path / "a" / "b" / "talk.mp3", name="x").save(NEW)
    assert (tmp_path / "a" / "b" / "talk.mp3").read_bytes() == NEW


@pytest.mark.parametrize("name", ["Folge #1.mp3", "a%20b.mp3", "what?.mp3", "x@y.mp3", "n" * 255, "ä\udcff.mp3"])
def test_any_name_of_a_file_is_taken(tmp_path: Path, name: str) -> None:
    find_target(tmp_path / name, name="x").save(NEW)
    find_target(f"file://{tmp_path}/{name}", name="x").save(NEW)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_messages_do_not_show_who_signs_in() -> None:
    assert find_target("memory://me@out/talk.mp3", name="x").uri == "memory://out/talk.mp3"


def test_an_object_storage_path_is_taken() -> None:
    find_target(ObjectStoragePath("memory://out/talk.mp3"), name="x").save(NEW)
    assert MemoryFileSystem().cat("/out/talk.mp3") == NEW


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.mp3").write_bytes(OLD)
    (tmp_path / "link.mp3").symlink_to("real.mp3")
    find_target(tmp_path / "link.mp3", name="x").save(NEW)
    assert (tmp_path / "link.mp3").is_symlink()
    assert (tmp_path / "real.mp3").read_bytes() == NEW


# ---- What is there already


@pytest.mark.parametrize(
    ("there", "overwrite", "written"),
    [
        (None, "replace", True),
        (None, "skip", True),
        (None, "fail", True),
        (b"x" * len(NEW), "replace", True),
        (b"x" * len(NEW), "skip", False),
        (b"x" * len(NEW), "fail", False),
        (OLD, "replace", True),
        (OLD, "skip", True),
        (OLD, "fail", None),
    ],
)
def test_what_is_there_is_replaced_or_not(place: Place, there: bytes | None, overwrite: Any, written: Any) -> None:
    if there is not None:
        place.put("talk.mp3", there)
    target = place.find("talk.mp3")
    if written is None:
        with pytest.raises(RoughyTargetExistsError, match="has 21 bytes, where 300000 are to be written") as refused:
            target.save(NEW, overwrite)
        assert isinstance(refused.value, AirflowFailException)
    else:
        assert target.save(NEW, overwrite) is written
    assert place.files() == {"talk.mp3": NEW if written else there}


def test_a_policy_that_does_not_exist_is_refused() -> None:
    check_overwrite("skip")
    with pytest.raises(ValueError, match="overwrite must be one of"):
        check_overwrite("never")


def test_who_only_replaces_need_not_be_allowed_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "info", refuse)
        target = find_target("memory://out/talk.mp3", name="x")
        with pytest.raises(RoughyTargetError, match="must not be looked at: Forbidden"):
            target.wants(len(NEW), "skip")
        assert target.wants(len(NEW), "replace")


# ---- What cannot be written


@pytest.mark.parametrize(
    ("make", "location", "words"),
    [
        (lambda path: None, "", "is empty"),
        (lambda path: os.mkfifo(path / "x"), "{}/x", "not a regular file"),
        (lambda path: (path / "x").touch(), "{}/x/talk.mp3", "Not a directory"),
        (lambda path: (path / "talk.mp3").mkdir(), "{}/", "is a folder, not a file"),
        (lambda path: None, "{}/a\0b", "null"),
        (lambda path: None, "{}/" + "n" * 256, "File name too long"),
        (lambda path: None, "nowhere://out/talk.mp3", "Is the provider of that storage installed"),
    ],
    ids=["empty", "pipe", "in a file", "a folder of its name", "no path", "too long", "no storage"],
)
def test_a_target_that_cannot_work_is_refused(tmp_path: Path, make: Any, location: str, words: str) -> None:
    make(tmp_path)
    with pytest.raises(RoughyUnusableTargetError, match=words) as refused:
        find_target(location.format(tmp_path), name="talk.mp3").save(NEW)
    assert isinstance(refused.value, AirflowFailException)


def test_a_folder_that_is_read_only_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        root = os.geteuid()
        try:
            # To root everything is allowed.
            os.seteuid(root or 65534)
            with pytest.raises(RoughyUnusableTargetError, match="Permission denied") as refused:
                find_target(f"{name}/talk.mp3", name="x").save(NEW)
        finally:
            os.seteuid(root)
        assert isinstance(refused.value, AirflowFailException)
        assert os.listdir(name) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    target = find_target(tmp_path / "talk.mp3", name="x")
    with pytest.raises(RoughyTargetError, match="No space left on device") as error, target.open() as sink:
        os.dup2(full, sink._file)  # type: ignore[attr-defined]
        sink.write(NEW)
    os.close(full)
    assert not isinstance(error.value, AirflowFailException), "somebody may make room"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_does_not_hide_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "rm", refuse)
    with pytest.raises(RuntimeError, match=r"^it$"), find_target("memory://out/talk.mp3", name="x").open() as sink:
        sink.write(NEW)
        raise RuntimeError("it")
    assert "memory://out/talk.mp3 could not be removed: Forbidden" in caplog.text


# ---- What a killed worker leaves behind

KILLED = """
import os, signal, sys
from airflow_provider_roughy.target import find_target
with find_target(sys.argv[1], name="x").open() as sink:
    sink.write(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_mid_way(path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=env, timeout=100)
    assert died.returncode == -signal.SIGKILL


def test_what_a_killed_worker_left_is_taken_over(tmp_path: Path) -> None:
    kill_in_mid_way(tmp_path / "talk.mp3")
    [left] = tmp_path.iterdir()
    assert left.name != "talk.mp3"
    assert left.stat().st_size == 1000
    find_target(tmp_path / "talk.mp3", name="x").save(OLD)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": OLD}


def test_a_file_that_was_finished_before_its_lock_was_taken_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has opened what the first one writes, and gets its lock when that has its name."""
    target, lock = find_target(tmp_path / "talk.mp3", name="x"), fcntl.flock
    with ExitStack() as first:
        first.enter_context(target.open()).write(NEW)

        def finish_first(file: int, operation: int) -> None:
            monkeypatch.setattr(fcntl, "flock", lock)
            first.close()
            lock(file, operation)

        monkeypatch.setattr(fcntl, "flock", finish_first)
        with target.open() as second:
            second.write(OLD)
            assert (tmp_path / "talk.mp3").read_bytes() == NEW
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": OLD}


def test_how_often_others_are_looked_at_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_UNFINISHED", 2)
    target = find_target(tmp_path / "talk.mp3", name="x")
    with target.open(), target.open(), pytest.raises(RoughyTargetError, match="2 others are writing it"):
        target.save(NEW)
