"""Sources of uploads."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_provider_roughy.compat import AIRFLOW_VERSION, AirflowFailException, ObjectStoragePath, attach
from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.transfer.source import BLOCK_BYTES, Source, find_source
from airflow_provider_roughy.transfer.storage import without_secrets

CONTENT = os.urandom(3 * BLOCK_BYTES + 17)


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """Object storage in memory, attached to Airflow as any other would be."""
    filesystem = MemoryFileSystem()
    # Airflow keeps what was attached first, whatever is said later.
    attach("memory").fs = filesystem
    attach("memory", conn_id="me").fs = filesystem
    yield filesystem
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["path", "text", "file://", "memory://", "ObjectStoragePath"])
def source(request: pytest.FixtureRequest, tmp_path: Path, memory: MemoryFileSystem) -> Source:
    """The same bytes, named in each of the ways."""
    path = tmp_path / "a recording #1.mp3"
    path.write_bytes(CONTENT)
    memory.pipe("/bucket/a recording.mp3", CONTENT)
    stored = "memory://bucket/a recording.mp3"
    named: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "file://": f"file://{path}",
        "memory://": stored,
        "ObjectStoragePath": ObjectStoragePath(stored),
    }
    return find_source(named[request.param])


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, len(CONTENT)), (5, 64), (BLOCK_BYTES, BLOCK_BYTES + 1), (len(CONTENT) - 1, 1), (7, 0)],
)
def test_any_part_can_be_read_in_blocks(source: Source, offset: int, length: int) -> None:
    assert source.size == len(CONTENT)
    with source.open() as reader:
        blocks = list(reader.blocks(offset, length))
        again = list(reader.blocks(offset, length))
    assert b"".join(blocks) == b"".join(again) == CONTENT[offset : offset + length]
    assert all(len(block) <= BLOCK_BYTES for block in blocks)


def test_fingerprint_distinguishes_versions(source: Source) -> None:
    assert source.fingerprint["size"] == len(CONTENT)
    assert len(source.fingerprint) >= 3
    source.check_unchanged()


@pytest.mark.parametrize("change", ["shorter", "longer", "rewritten", "removed"])
def test_a_local_file_that_changes_is_never_completed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "growing.mp3"
    path.write_bytes(CONTENT)
    source = find_source(path)
    given = 0
    with pytest.raises(RoughySourceError, match=r"changed|shrank|vanished") as error, source.open() as reader:
        for block in reader.blocks(0, source.size):
            if given == 0:
                if change == "removed":
                    path.unlink()
                elif change == "rewritten":
                    path.write_bytes(CONTENT[::-1])
                    os.utime(path, ns=(1, 1))
                else:
                    path.write_bytes(CONTENT[:-BLOCK_BYTES] if change == "shorter" else CONTENT + b"more")
            given += len(block)
    assert given < source.size
    assert not isinstance(error.value, AirflowFailException), "the next try may find a finished file"


def test_a_stored_object_that_changes_is_never_completed(memory: MemoryFileSystem) -> None:
    memory.pipe("/bucket/x", CONTENT)
    source = find_source("memory://bucket/x")
    with pytest.raises(RoughySourceError, match="changed"), source.open() as reader:
        for _ in reader.blocks(0, source.size):
            memory.pipe("/bucket/x", CONTENT + b"more")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist on this worker"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b"x" * 63), "has 63 bytes; Roughy takes 64 to 53687091200"),
        (lambda path: path.touch(), "has 0 bytes"),
        (lambda path: sparse(path, 50 * 1024**3 + 1), "has 53687091201 bytes"),
        (lambda path: os.mkfifo(path), "is not a regular file"),
    ],
    ids=["missing", "directory", "too small", "empty", "too big", "pipe"],
)
def test_a_local_source_that_cannot_work_is_refused(tmp_path: Path, make: object, words: str) -> None:
    path = tmp_path / "recording.mp3"
    make(path)  # type: ignore[operator]
    with pytest.raises(RoughyUnusableSourceError, match=words) as refused:
        find_source(path)
    assert isinstance(refused.value, AirflowFailException)
    assert str(path) in str(refused.value)


NAMES = ["Folge #1.mp3", "a%20b.mp3", "what?.mp3", "x@y.mp3", "50%.mp3", "a#b?c%23.mp3"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["path", "file://", "ObjectStoragePath", "ObjectStoragePath of file://", "local://"])
def test_a_name_is_read_as_airflow_reads_it(tmp_path: Path, name: str, form: str) -> None:
    if form == "local://" and AIRFLOW_VERSION.startswith("2."):
        pytest.skip("Airflow 2 knows no scheme local://")
    path = tmp_path / name
    path.write_bytes(CONTENT)
    # What another reading of the name would lead to.
    for other in {unquote(name), re.split("[#?]", name)[0]} - {name}:
        (tmp_path / other).write_bytes(CONTENT[::-1])
    forms: dict[str, Any] = {
        "path": str(path),
        "file://": f"file://{path}",
        "ObjectStoragePath": ObjectStoragePath(str(path)),
        "ObjectStoragePath of file://": ObjectStoragePath(f"file://{tmp_path}") / name,
        "local://": f"local://{path}",
    }
    named = forms[form]
    if not isinstance(named, str):
        assert named.read_bytes() == CONTENT
    elif form != "path":
        assert ObjectStoragePath(named).read_bytes() == CONTENT
    source = find_source(named)
    with source.open() as reader:
        assert b"".join(reader.blocks(0, source.size)) == CONTENT


def test_a_connection_in_a_file_uri_is_no_part_of_the_path(tmp_path: Path) -> None:
    path = tmp_path / "x@y.mp3"
    path.write_bytes(CONTENT)
    assert find_source(f"file://me@{path}").size == len(CONTENT)


FINAL = [errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG]
PASSING = [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN]


@pytest.mark.parametrize("call", ["stat", "open"])
@pytest.mark.parametrize("number", [*FINAL, *PASSING], ids=lambda number: errno.errorcode[number])
def test_unavailable_file_system_may_be_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    path = tmp_path / "recording.mp3"
    path.write_bytes(CONTENT)
    original = getattr(os, call)

    def fail(target: object, *args: object, **options: object) -> object:
        if str(target) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return original(target, *args, **options)

    monkeypatch.setattr(f"airflow_provider_roughy.transfer.source.os.{call}", fail)
    with pytest.raises(RoughySourceError) as refused:
        find_source(path)
    assert isinstance(refused.value, AirflowFailException) == (number in FINAL)
    assert refused.value.final == (number in FINAL)


def test_undecodable_file_name_is_reported_as_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"G\xe4ste.mp3")
    path.write_bytes(CONTENT)
    source = find_source(path)
    assert source.uri.endswith("G\\udce4ste.mp3")
    assert source.fingerprint["uri"].encode() == source.uri.encode()
    with pytest.raises(RoughyUnusableSourceError, match="does not exist") as refused:
        find_source(tmp_path / os.fsdecode(b"\xff.mp3"))
    assert str(refused.value).encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.mp3"
    path.write_bytes(CONTENT)
    path.chmod(0)
    with pytest.raises(RoughyUnusableSourceError, match="not readable"):
        find_source(path)


@pytest.mark.parametrize("size", [64, 50 * 1024**3])
def test_the_bounds_themselves_are_fine(tmp_path: Path, size: int) -> None:
    sparse(tmp_path / "x", size)
    assert find_source(tmp_path / "x").size == size


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("memory://bucket/missing", "does not exist"),
        ("memory://bucket", "is a directory"),
        ("nosuch://bucket/x", "provider of that storage"),
    ],
)
def test_a_stored_source_that_cannot_work_is_refused(memory: MemoryFileSystem, uri: str, words: str) -> None:
    memory.pipe("/bucket/x", CONTENT)
    with pytest.raises(RoughyUnusableSourceError, match=words):
        find_source(uri)


@pytest.mark.parametrize("nothing", ["", None])
def test_invalid_source_is_rejected(nothing: Any) -> None:
    with pytest.raises(RoughyUnusableSourceError, match="is empty"):
        find_source(nothing)


def test_credentials_and_queries_of_a_uri_are_not_reported(memory: MemoryFileSystem) -> None:
    memory.pipe("/bucket/x?y", CONTENT)
    assert find_source("memory://me@bucket/x?y").uri == "memory://bucket/x?y"
    assert without_secrets("https://me:pw@bucket.example/a?X-Amz-Signature=s\n") == "https://bucket.example/a"
    assert without_secrets("https://bucket.example?sig=s") == "https://bucket.example"
    assert without_secrets("/data/what?@.mp3") == "/data/what?@.mp3"


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
