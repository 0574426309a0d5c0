"""Targets of downloads: written completely or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import infer_storage_options

from airflow_provider_roughy.compat import AirflowFailException, ObjectStoragePath, attach
from airflow_provider_roughy.exceptions import (
    RoughyTargetError,
    RoughyTargetExistsError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.transfer import target_local as module
from airflow_provider_roughy.transfer.target import Target, check_overwrite, find_target

OLD = b"what was there before"
NEW = os.urandom(300_000)
OTHER = NEW[::-1]
#: What templates make of values that are missing.
NOTHING = [
    *("/", "//", " ", "/ /", "file://", "file:///", "file:////", "/talk.mp3", "//talk.mp3", "/./talk.mp3", "/tmp/.."),
    *("/tmp/../talk.mp3", "file:///talk.mp3", "s3://", "s3:///", "s3:///talk.mp3", "s3://me@/talk.mp3", "gs:///a/b"),
    *(" ", "/data/ /talk.mp3", "{}/\n", "s3:// /talk.mp3", "s3://bucket/ ", "memory://out/\t/talk.mp3"),
    *("sftp:///", "None", "None/talk.mp3", "{}/None/talk.mp3", "{}/None", "s3://None/talk.mp3", "s3://bucket/None/"),
]

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


def test_file_can_be_started_again(place: Place) -> None:
    with place.find("talk.mp3").open() as sink:
        sink.write(OLD * 100)
        sink.restart()
        assert sink.offset == 0
        sink.write(NEW)
    assert place.files() == {"talk.mp3": NEW}


def test_an_empty_file_appears_too(place: Place) -> None:
    assert place.find("empty.srt").save(b"")
    assert place.files() == {"empty.srt": b""}


def test_concurrent_writers_of_one_target_do_not_mix(place: Place) -> None:
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


def test_target_uri_is_reported_without_its_user() -> None:
    assert find_target("memory://me@out/talk.mp3", name="x").uri == "memory://out/talk.mp3"


def test_an_object_storage_path_is_taken() -> None:
    find_target(ObjectStoragePath("memory://out/talk.mp3"), name="x").save(NEW)
    assert MemoryFileSystem().cat("/out/talk.mp3") == NEW


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of another user")
@pytest.mark.parametrize("leads_to", ["mine.mp3", "nowhere/mine.mp3"])
def test_link_that_another_user_left_in_a_shared_folder_is_not_followed(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "mine.mp3").write_bytes(OLD)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "talk.mp3"
    link.symlink_to(tmp_path / leads_to)
    os.lchown(link, 12345, 12345)
    with pytest.raises(RoughyUnusableTargetError, match="a link of uid 12345 in a world-writable folder"):
        find_target(link, name="x")
    # In a folder that its owner alone may write, or by the same user, it is one like any other.
    os.lchown(link, 0, 0)
    find_target(link, name="x").save(NEW)
    assert (tmp_path / leads_to).read_bytes() == NEW


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a link of another user")
@pytest.mark.parametrize(
    "name", ["shared/out/talk.mp3", "shared/./x/../out/talk.mp3", "shared/out/", "mine", "mine/new/"]
)
def test_folder_that_another_user_linked_in_a_shared_folder_is_not_entered(tmp_path: Path, name: str) -> None:
    """Wherever on the way to the target the link is, also behind a link of this user."""
    shared, private = tmp_path / "shared", tmp_path / "private"
    for folder in (shared, shared / "x", private):
        folder.mkdir()
    shared.chmod(0o1777)
    (shared / "out").symlink_to(private)
    (tmp_path / "mine").symlink_to("shared/out")
    os.lchown(shared / "out", 12345, 12345)
    with pytest.raises(
        RoughyUnusableTargetError, match=r"leads through .*/shared/out, a link of uid 12345 in a world-w"
    ):
        find_target(f"{tmp_path}/{name}", name="talk.mp3").save(NEW)
    assert list(private.iterdir()) == []
    os.lchown(shared / "out", 0, 0)
    find_target(f"{tmp_path}/{name}", name="talk.mp3").save(NEW)
    assert [path.read_bytes() for path in private.rglob("talk.mp3")] == [NEW]


def test_target_in_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RoughyUnusableTargetError, match="cannot be written"):
        find_target(tmp_path / "a", name="x").save(NEW)


@pytest.mark.parametrize("location", ["{}/a\0b.mp3", "s3://bucket/a\0b.mp3", "memory://out/a\0/b.mp3"])
def test_target_with_nul_is_refused_in_words_without_it(tmp_path: Path, location: str) -> None:
    with pytest.raises(RoughyUnusableTargetError, match="contains a NUL character") as refused:
        find_target(location.format(tmp_path), name="x")
    assert "\0" not in str(refused.value)


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
        (NEW, "replace", True),
        (NEW, "skip", False),
        (NEW, "fail", False),
        (OTHER, "replace", True),
        (OTHER, "skip", True),
        (OTHER, "fail", "has 300000 bytes with another content than the new file"),
        (OLD, "replace", True),
        (OLD, "skip", True),
        (OLD, "fail", "has 21 bytes; the new file has 300000"),
    ],
)
def test_what_is_there_is_replaced_or_not(place: Place, there: bytes | None, overwrite: Any, written: Any) -> None:
    if there is not None:
        place.put("talk.mp3", there)
    target = place.find("talk.mp3")
    if isinstance(written, str):
        with pytest.raises(RoughyTargetExistsError, match=written) as refused:
            target.save(NEW, overwrite)
        assert isinstance(refused.value, AirflowFailException)
    else:
        assert target.save(NEW, overwrite) is written
    assert place.files() == {"talk.mp3": NEW if written is True else there}


@pytest.mark.parametrize(
    ("comes", "overwrite", "stays"),
    [
        (OLD, "replace", False),
        (OLD, "skip", False),
        (NEW, "skip", True),
        # Of a download, only its length is known before.
        (OTHER, "skip", True),
        (OLD, "fail", None),
        (OTHER, "fail", None),
        (NEW, "fail", True),
        (b"", "fail", None),
    ],
)
def test_file_that_comes_meanwhile_is_replaced_or_not(
    place: Place, comes: bytes, overwrite: Any, stays: bool | None
) -> None:
    target = place.find("talk.mp3")
    assert target.wants(len(NEW), overwrite)
    with ExitStack() as stack:
        if stays is None:
            stack.enter_context(pytest.raises(RoughyTargetExistsError))
        sink = stack.enter_context(target.open(len(NEW), overwrite))
        sink.write(OLD)
        sink.restart()
        sink.write(NEW)
        place.put("talk.mp3", comes)
    assert place.files() == {"talk.mp3": NEW if stays is False else comes}
    # One that is the same may be this one, of which the storage has lost its answer.
    assert sink.written is (overwrite != "skip" or not stays)


@pytest.mark.parametrize("there", [None, OTHER])
@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_links_replaces_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bytes | None, error: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)
    refused = pytest.raises(RoughyTargetExistsError) if there else nullcontext()
    with refused, find_target(tmp_path / "talk.mp3", name="x").open(len(NEW), "fail") as sink:
        sink.write(NEW)
        if there:
            (tmp_path / "talk.mp3").write_bytes(there)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": there or NEW}


def test_answer_that_a_network_has_lost_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def lose_answer(*paths: str) -> None:
        link(*paths)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", lose_answer)
    assert find_target(tmp_path / "talk.mp3", name="x").save(NEW, "fail")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": NEW}


def test_one_of_many_writers_with_overwrite_fail_succeeds(place: Place) -> None:
    """Each writes bytes of its own; all appear at the same moment."""
    contents = [bytes([number]) * 1000 for number in range(8)]
    together, written = threading.Barrier(len(contents)), []

    def write(content: bytes) -> None:
        with suppress(RoughyTargetExistsError):
            with place.find("talk.mp3").open(1000, "fail") as sink:
                sink.write(content)
                together.wait(20)
            written.append(content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if place._memory:
        # It looks, then it writes, and its threads may come in between; so it shows that nothing is mixed.
        assert place.files()["talk.mp3"] in contents
        return
    assert place.files() == {"talk.mp3": written[0]}
    assert len(written) == 1


def test_a_policy_that_does_not_exist_is_refused() -> None:
    check_overwrite("skip")
    with pytest.raises(ValueError, match="overwrite must be one of"):
        check_overwrite("never")


def test_replacing_needs_no_permission_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "info", refuse)
        target = find_target("memory://out/talk.mp3", name="x")
        with pytest.raises(RoughyTargetError, match="cannot be checked: Forbidden"):
            target.wants(len(NEW), "skip")
        assert target.wants(len(NEW), "replace")


# ---- What cannot be written


@pytest.mark.parametrize(
    ("make", "location", "words"),
    [
        (lambda path: None, "", "is empty"),
        *((lambda path: None, nothing, "Is a template empty") for nothing in NOTHING),
        (lambda path: os.mkfifo(path / "x"), "{}/x", "not a regular file"),
        (lambda path: (path / "x").touch(), "{}/x/talk.mp3", "Not a directory"),
        (lambda path: (path / "talk.mp3").mkdir(), "{}/", "is a folder, not a file"),
        (lambda path: None, "{}/a\0b", "NUL"),
        (lambda path: None, "{}/" + "n" * 256, "File name too long"),
        (lambda path: None, "nowhere://out/talk.mp3", "Install the Airflow provider of that storage"),
    ],
    ids=[
        "empty",
        *map(repr, NOTHING),
        "pipe",
        "in a file",
        "a folder of its name",
        "no path",
        "too long",
        "no storage",
    ],
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


def test_folder_that_vanishes_while_a_file_is_written_takes_a_retry(tmp_path: Path) -> None:
    target = find_target(tmp_path / "out" / "talk.mp3", name="x")
    with pytest.raises(RoughyTargetError) as error, target.open() as sink:
        sink.write(NEW)
        shutil.rmtree(tmp_path / "out")
        sink.finish()
    assert not error.value.final


def test_name_that_became_a_folder_while_a_file_is_written_takes_no_retry(tmp_path: Path) -> None:
    target = find_target(tmp_path / "talk.mp3", name="x")
    with pytest.raises(RoughyUnusableTargetError), target.open() as sink:
        sink.write(NEW)
        (tmp_path / "talk.mp3").mkdir()
        sink.finish()


def test_failed_cleanup_does_not_hide_the_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "rm_file", refuse)
    with pytest.raises(RuntimeError, match=r"^it$"), find_target("memory://out/talk.mp3", name="x").open() as sink:
        sink.write(NEW)
        raise RuntimeError("it")
    assert (
        "Removing the unfinished file beside target memory://out/talk.mp3 failed; you may remove it: Forbidden"
        in caplog.text
    )


# ---- What a killed worker leaves behind

KILLED = """
import os, signal, sys
from airflow_provider_roughy.transfer.target import find_target
with find_target(sys.argv[1], name="x").open() as sink:
    sink.write(b"x" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_mid_way(path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=env, timeout=100)
    assert died.returncode == -signal.SIGKILL


@pytest.mark.once
def test_what_a_killed_worker_left_is_removed(tmp_path: Path) -> None:
    """Whatever it was to become."""
    kill_in_mid_way(tmp_path / "other.mp3")
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [1000]
    find_target(tmp_path / "talk.mp3", name="x").save(OLD)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": OLD}


def part_in(folder: Path) -> Path:
    (part,) = folder.glob(".roughy-*.part")
    return part


def test_what_is_still_written_is_left_alone(tmp_path: Path) -> None:
    with find_target(tmp_path / "talk.mp3", name="x").open() as sink:
        sink.write(OLD)
        part = part_in(tmp_path)
        os.utime(part, (0, 0))
        module._search_again_at.clear()
        find_target(tmp_path / "talk.mp3", name="x").save(NEW)
        assert part.read_bytes() == OLD
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": OLD}


def test_what_another_host_has_left_is_removed_after_a_day(tmp_path: Path) -> None:
    """Whether somebody there still writes it, not every file system knows. So does 0.2's name."""
    fresh, old = tmp_path / f".roughy-0a-{'0' * 32}.part", tmp_path / f".roughy-{'0' * 16}-0.part"
    for path in (fresh, old):
        path.write_bytes(OLD)
    os.utime(old, (time.time() - 86_401,) * 2)
    find_target(tmp_path / "talk.mp3", name="x").save(NEW)
    assert {path.name for path in tmp_path.iterdir()} == {fresh.name, "talk.mp3"}


def test_file_that_only_resembles_an_unfinished_one_stays(tmp_path: Path) -> None:
    name = f".roughy-{module._host()}"
    (tmp_path / "mine").write_bytes(OLD)
    (tmp_path / f"{name}-0.part").symlink_to("mine")
    os.mkfifo(tmp_path / f"{name}-1.part")
    (tmp_path / f"{name}-2.part").mkdir()
    (tmp_path / f"{name}-3.partly").write_bytes(OLD)
    before = set(tmp_path.iterdir())
    find_target(tmp_path / "talk.mp3", name="x").save(NEW)
    assert set(tmp_path.iterdir()) == before | {tmp_path / "talk.mp3"}
    assert (tmp_path / "mine").read_bytes() == OLD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_other_users_can_neither_block_nor_own_the_file() -> None:
    """In a folder that all may write, somebody has put files of all names that could be guessed."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o1777)
        guessed = hashlib.sha256(b"talk.mp3").hexdigest()[:16]
        for left in (f".roughy-{guessed}-0.part", f".roughy-{module._host()}-{'0' * 32}.part"):
            Path(name, left).touch()
            os.chmod(Path(name, left), 0o600)
        os.seteuid(65534)
        try:
            with find_target(f"{name}/talk.mp3", name="x").open() as sink:
                sink.write(NEW)
                begun = {path.name: path.stat().st_uid for path in Path(name).iterdir()}
        finally:
            os.seteuid(0)
        assert sorted(begun.values()) == [0, 0, 65534]
        found = Path(name, "talk.mp3").stat()
        assert (found.st_uid, found.st_size) == (65534, len(NEW))
        assert len(os.listdir(name)) == 3, "what is somebody else's stays"


def test_looks_for_leftovers_take_a_small_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand files into one folder are not ten thousand lists of ten thousand names."""
    looks, scandir = [], os.scandir

    def slow(folder: str) -> Any:
        looks.append(folder)
        time.sleep(0.02)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", slow)
    for number in range(50):
        find_target(tmp_path / f"{number}.srt", name="x").save(OLD)
    assert 1 <= len(looks) <= 3


def test_file_removed_before_it_is_locked_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock

    def remove_first(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        part_in(tmp_path).unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    find_target(tmp_path / "talk.mp3", name="x").save(NEW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": NEW}


def test_file_that_somebody_is_removing_as_left_behind_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has locked it before this writer could, and removes it a moment later."""
    lock = fcntl.flock

    def lock_first(file: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        part = part_in(tmp_path)
        with part.open() as theirs:
            lock(theirs, fcntl.LOCK_EX)
            try:
                lock(file, operation)
            finally:
                removals.append(part)

    def remove() -> None:
        for part in removals:
            part.unlink(missing_ok=True)

    removals: list[Path] = []
    monkeypatch.setattr(fcntl, "flock", lock_first)
    with find_target(tmp_path / "talk.mp3", name="x").open() as sink:
        remove()
        sink.write(NEW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": NEW}


def test_file_system_without_locks_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    find_target(tmp_path / "talk.mp3", name="x").save(NEW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": NEW}


# ---- Storages with real folders


class Folders(LocalFileSystem):  # type: ignore[misc]
    """A storage whose folders have to be there, as SFTP's, and whose files appear at once."""

    protocol = ("sftp",)
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(infer_storage_options(str(path))["path"]).rstrip("/") or "/"


@pytest.fixture
def folders() -> type[Folders]:
    attach("sftp").fs = Folders()
    return Folders


@pytest.mark.parametrize("overwrite", ["replace", "skip", "fail"])
def test_folders_of_a_storage_are_created(folders: type[Folders], tmp_path: Path, overwrite: Any) -> None:
    for place in ("a/b/talk.mp3", "a/b/c/", "a/d"):
        for written in (True, overwrite == "replace"):
            target = find_target(f"sftp://host{tmp_path}/{place}", name="x.mp3")
            assert target.save(NEW, overwrite) is written
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        *("a/b/talk.mp3", "a/b/c/x.mp3", "a/d")
    }


def test_folder_created_concurrently_is_used(
    folders: type[Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def come_too_late(storage: Folders, path: str, exist_ok: bool = False) -> None:
        os.makedirs(path)
        raise OSError("Failure")

    monkeypatch.setattr(folders, "makedirs", come_too_late)
    find_target(f"sftp://host{tmp_path}/a/talk.mp3", name="x").save(NEW)
    assert (tmp_path / "a" / "talk.mp3").read_bytes() == NEW


def test_folder_that_cannot_be_created_is_named(folders: type[Folders], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RoughyTargetError, match="file") as refused:
        find_target(f"sftp://host{tmp_path}/file/a/talk.mp3", name="x").save(NEW)
    assert isinstance(refused.value.__cause__, (NotADirectoryError, FileExistsError))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_storage_that_cannot_create_exclusively_is_asked_before(
    folders: type[Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = folders.open

    def refuse(storage: Folders, path: str, mode: str = "rb", **options: Any) -> Any:
        if "x" in mode:
            raise NotImplementedError("File mode not supported")
        return open_file(storage, path, mode, **options)

    monkeypatch.setattr(folders, "open", refuse)
    target = find_target(f"sftp://host{tmp_path}/talk.mp3", name="x")
    assert target.save(NEW, "fail")
    with pytest.raises(RoughyTargetExistsError), target.open(len(OLD), "fail") as sink:
        sink.write(OLD)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": NEW}


def test_move_that_fails_removes_no_file_of_another_writer(
    folders: type[Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a storage that cannot create exclusively, and refuses to move a file onto another one."""
    open_file = folders.open

    def refuse(storage: Folders, path: str, mode: str = "rb", **options: Any) -> Any:
        if "x" in mode:
            raise NotImplementedError("File mode not supported")
        return open_file(storage, path, mode, **options)

    def come_too_late(storage: Folders, source: str, path: str) -> None:
        Path(path).write_bytes(OLD)
        raise OSError("Failure")

    monkeypatch.setattr(folders, "open", refuse)
    monkeypatch.setattr(folders, "mv", come_too_late)
    with pytest.raises(RoughyTargetError, match="Failure"):
        find_target(f"sftp://host{tmp_path}/talk.mp3", name="x").save(NEW, "fail")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"talk.mp3": OLD}


def test_move_that_fails_leaves_no_empty_file(
    folders: type[Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Failure")

    monkeypatch.setattr(folders, "mv", refuse)
    with pytest.raises(RoughyTargetError, match="Failure"):
        find_target(f"sftp://host{tmp_path}/talk.mp3", name="x").save(NEW, "fail")
    assert list(tmp_path.iterdir()) == []
