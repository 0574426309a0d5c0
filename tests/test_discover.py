"""Discovery of files: the same rules on a local disk, in object storage, and on a server with folders."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.compat import ObjectStoragePath, attach
from airflow_provider_roughy.exceptions import RoughySourceError, RoughyUnusableSourceError
from airflow_provider_roughy.ingest.discover import discover, find_file
from airflow_provider_roughy.ingest.files import Problem

PROJECT = "019de7f5-0000-7000-8000-00000000abcd"


class ServerFiles(LocalFileSystem):  # type: ignore[misc]  # fsspec is untyped.
    """Files of this machine as a server has them that is asked by SFTP: its paths begin at its root, without a host."""

    protocol = ("sftp", "ssh")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if "://" in str(path):
            path = "/" + str(path).partition("://")[2].partition("/")[2]
        return str(path).rstrip("/") or "/"


class ObjectFiles(MemoryFileSystem):  # type: ignore[misc]
    """Objects, as S3 has them: folders are parts of names."""

    protocol = ("s3", "s3a")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    cachable = False

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        # Buckets and names, without a slash before them, and no folders that are empty.
        entries = [entry for entry in super().ls(path, detail=True) if self._has_objects(entry)]
        for entry in entries:
            entry["name"] = entry["name"].lstrip("/")
        return entries if detail else [entry["name"] for entry in entries]

    def _has_objects(self, entry: dict[str, Any]) -> bool:
        folder = entry["name"].rstrip("/") + "/"
        return entry["type"] == "file" or any(name.startswith(folder) for name in self.store)


@pytest.fixture(autouse=True)
def storages() -> None:
    # Airflow keeps what was attached, and other tests attach something else.
    attach("sftp").fs = ServerFiles()
    attach("s3").fs = ObjectFiles()


def names() -> st.SearchStrategy[str]:
    stems = st.text("ab[]*? #ü:.", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
    return st.builds(lambda stem, end: stem + end, stems, st.sampled_from([".wav", ".WAV", ".txt", ""])).filter(
        lambda name: name not in (".", "..") and "::" not in name and not name.endswith(" ")
    )


@given(
    files=st.sets(st.lists(names(), min_size=1, max_size=3).map(tuple), min_size=1, max_size=8),
    recursive=st.booleans(),
)
@settings(deadline=None)
def test_one_tree_gives_the_same_files_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, files: set[tuple[str, ...]], recursive: bool
) -> None:
    # A name is a file or a folder.
    files = {file for file in files if not any(file != other and file == other[: len(file)] for other in files)}
    root = tmp_path_factory.getbasetemp() / uuid4().hex
    bucket, stored = uuid4().hex, ObjectFiles()
    for file in files:
        path = root.joinpath("in", *file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 64)
        stored.pipe_file("/".join(["", bucket, "in", *file]), b"x" * 64)
    found = {
        source: {file.uri.partition("/in/")[2] for file in discover(source, recursive=recursive).files}
        for source in (str(root / "in"), f"sftp://host{root}/in", f"s3://{bucket}/in/", f"file://{root}/in/")
    }
    shutil.rmtree(root)
    expected = {
        "/".join(file)
        for file in files
        if file[-1].lower().endswith(".wav")
        and (recursive or len(file) == 1)
        and not any(part.startswith(".") for part in file)
    }
    assert list(found.values()) == [expected] * 4


def test_hidden_names_and_placeholders_are_left_out_everywhere(tmp_path: Path) -> None:
    stored = ObjectFiles()
    for name in ("a.wav", ".trash/b.wav", ".snapshot/2026/c.wav", "._a.wav", "day/d.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(bytes(64))
        stored.pipe_file(f"/hidden/in/{name}", bytes(64))
    stored.pipe_file("/hidden/in/day_$folder$", b"")
    for root in (str(tmp_path / "in"), "s3://hidden/in", f"sftp://host{tmp_path}/in"):

        def found(source: str) -> list[str]:
            return [file.uri.partition("/in/")[2] for file in discover(source, recursive=True, pattern="*").files]

        assert sorted(found(root)) == ["a.wav", "day/d.wav"]
        assert found(f"{root}/*.wav") == ["a.wav"]
        assert sorted(found(f"{root}/**/*.wav")) == ["a.wav", "day/d.wav"]
        assert found(f"{root}/.*.wav") == ["._a.wav"]
        # What is named is meant.
        assert found(f"{root}/._a.wav") == ["._a.wav"]


@pytest.mark.parametrize("source", ["in/*.wav", "in/", "in/**/*.wav", "in/[ab].wav", "in/a.wav", "in"])
def test_a_place_that_is_missing_is_an_error_with_and_without_a_wildcard(tmp_path: Path, source: str) -> None:
    for root in (f"{tmp_path}/not-mounted", f"sftp://host{tmp_path}/not-mounted", "s3://no-such-bucket"):
        with pytest.raises(RoughyUnusableSourceError, match="does not exist"):
            discover(f"{root}/{source}")


@pytest.mark.parametrize("source", ["in", "in/", "in/*.wav", "in/**/*.wav", "**/*.wav"])
def test_an_empty_folder_is_empty(tmp_path: Path, source: str) -> None:
    (tmp_path / "in").mkdir()
    ObjectFiles().pipe_file("/empty/other/a.txt", b"")
    assert discover(f"{tmp_path}/{source}").files == []
    assert discover(f"sftp://host{tmp_path}/{source}").files == []
    if source != "in":  # Without a slash, it names an object.
        assert discover(f"s3://empty/{source}").files == []


@pytest.fixture
def nobody() -> Any:
    """Airflow's user is not root, who may read everything."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("source", ["in/studio", "in/studio/*.wav", "in/studio/a.wav"])
def test_a_source_that_must_not_be_read_is_an_error(tmp_path_factory: Any, nobody: Any, source: str) -> None:
    os.seteuid(0) if os.getuid() == 0 else None
    root = Path("/tmp") / f"roughy-{uuid4().hex}"
    try:
        (root / "in" / "studio").mkdir(parents=True)
        (root / "in" / "studio" / "a.wav").write_bytes(bytes(64))
        (root / "in" / "studio").chmod(0o000)
        if os.getuid() == 0:
            os.seteuid(65534)
        with pytest.raises(RoughyUnusableSourceError, match="Permission denied"):
            discover(str(root / source))
        # Of one in the source, the rest does not depend.
        found = discover(str(root / "in"), recursive=True)
        assert [(file.problem, Path(file.uri).name) for file in found.files] == [(Problem.UNUSABLE, "studio")]
        assert "Permission denied" in found.files[0].reason
        assert [file.problem for file in discover(str(root / "in/**/*.wav")).files] == [Problem.UNUSABLE]
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        (root / "in" / "studio").chmod(0o700)
        shutil.rmtree(root)


def test_links_lead_to_one_recording_and_a_broken_one_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "2026-01-01").mkdir()
    (tmp_path / "2026-01-01" / "a.wav").write_bytes(bytes(64))
    (tmp_path / "latest").symlink_to("2026-01-01")
    (tmp_path / "newest.wav").symlink_to("2026-01-01/a.wav")
    (tmp_path / "z.wav").symlink_to("nowhere.wav")
    (tmp_path / "circle.wav").symlink_to("circle.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    found = discover(
        [str(tmp_path), str(tmp_path / "latest"), f"file://{tmp_path}/2026-01-01/", str(tmp_path / "*.wav")]
    )
    assert {(Path(file.uri).name, file.problem) for file in found.files} == {
        ("newest.wav", None),
        ("z.wav", Problem.UNUSABLE),
        ("circle.wav", Problem.UNUSABLE),
        ("pipe.wav", Problem.UNUSABLE),
    }
    assert "it is a link to nowhere.wav, which does not exist" in {file.reason for file in found.files}
    again = discover(str(tmp_path / "z.wav" / ".." / "*.wav"))
    assert {file.canonical for file in again.files} == {file.canonical for file in found.files}


def test_a_folder_reached_by_links_in_a_circle_is_walked_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(bytes(64))
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    assert len(discover(str(tmp_path / "in"), recursive=True).files) == 1
    assert len(discover(f"{tmp_path}/**/*.wav").files) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"source": "['/data/a.mp3', '/data/b.mp3']"},
        {"source": '["/data/a.mp3"]'},
        {"source": "None"},
        {"source": " ('a.mp3',) "},
        {"source": "/", "pattern": "['*.py', '*.mp3']"},
        {"source": "/", "pattern": "None"},
    ],
)
def test_a_list_that_a_template_rendered_as_text_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(RoughyUnusableSourceError, match="render_template_as_native_obj"):
        discover(options["source"], pattern=options.get("pattern", "*.wav"))


@pytest.mark.parametrize("source", ["", "  ", [""]])
def test_an_empty_source_is_refused(source: Any) -> None:
    with pytest.raises(RoughyUnusableSourceError, match="rendered to nothing"):
        discover(source) if isinstance(source, str) else find_file(source[0])


@pytest.mark.parametrize("name", ["Morning 08::30.wav", "a\tb.wav", "a\nb.wav"])
def test_a_uri_that_airflow_would_read_as_another_one_is_refused(name: str) -> None:
    ObjectFiles().pipe_file(f"/odd/in/{name}", bytes(64))
    with pytest.raises(RoughyUnusableSourceError, match="Airflow's object storage reads it as"):
        discover(f"s3://odd/in/{name}")
    with pytest.raises(RoughyUnusableSourceError, match="Airflow's object storage reads it as"):
        find_file(f"s3://odd/in/{name}")
    # On a list it is a name like any other.
    assert name in {file.path.rpartition("/")[2] for file in discover("s3://odd/in/").files}


def test_object_is_another_recording_at_another_endpoint_only() -> None:
    class Files(ObjectFiles):
        cachable = False
        store: ClassVar[dict[str, Any]] = {"/rec/a.wav": MemoryFile(None, "/rec/a.wav", bytes(64))}
        endpoint_url = ""

    def key(conn_id: str, endpoint_url: str) -> str:
        files = Files()
        files.endpoint_url = endpoint_url
        attach("s3", conn_id=conn_id).fs = files
        return find_file("s3://rec/a.wav", conn_id=conn_id).identity(project_id=PROJECT, language=None).key

    assert key("studio", "https://s3.studio.example") == key("nightly", "https://S3.studio.example:443/")
    assert key("studio", "https://s3.studio.example") != key("archive", "https://s3.archive.example")


def test_the_connection_and_host_of_a_uri_survive_listing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(bytes(64))
    attach("sftp", conn_id="studio").fs = ServerFiles()
    for source in (f"sftp://host{tmp_path}/in", f"sftp://studio@host{tmp_path}/in", f"sftp://host{tmp_path}/in/*.wav"):
        (file,) = discover(source).files
        assert (file.uri, file.path) == (f"sftp://host{tmp_path}/in/a.wav", f"{tmp_path}/in/a.wav")


def test_a_single_path_of_airflow_is_a_source() -> None:
    ObjectFiles().pipe_file("/single/in/a.wav", bytes(64))
    (file,) = discover(ObjectStoragePath("s3://single/in/")).files
    assert file.uri == "s3://single/in/a.wav"


def test_an_object_in_an_archive_is_rejected_until_it_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    ObjectFiles().pipe_file("/archive/in/a.wav", bytes(64))
    info = MemoryFileSystem.info
    tier = "GLACIER"

    def with_tier(self: Any, path: str, **options: Any) -> Any:
        return info(self, path, **options) | {"StorageClass": tier}

    ls = ObjectFiles.ls
    monkeypatch.setattr(
        ObjectFiles, "ls", lambda self, *args, **options: [{**each, "StorageClass": tier} for each in ls(self, *args)]
    )
    monkeypatch.setattr(ObjectFiles, "info", with_tier)
    (archived,) = discover("s3://archive/in/").files
    assert (archived.problem, archived.reason) == (
        Problem.UNUSABLE,
        "it is archived (GLACIER): restore it to a tier that can be read",
    )
    with pytest.raises(RoughyUnusableSourceError, match="archived"):
        discover("s3://archive/in/a.wav")
    tier = "STANDARD"
    (restored,) = discover("s3://archive/in/").files
    assert restored.problem is None
    assert restored.versions != archived.versions


def fails(monkeypatch: pytest.MonkeyPatch, call: str, path: Path, number: int) -> None:
    original = getattr(os, call)

    def fail(target: Any = ".", *args: Any, **options: Any) -> Any:
        if str(target) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return original(target, *args, **options)

    monkeypatch.setattr(os, call, fail)


def test_a_network_that_does_not_answer_is_an_error_that_a_retry_may_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "day").mkdir(parents=True)
    (tmp_path / "in" / "a.wav").write_bytes(bytes(64))
    with monkeypatch.context() as patched:
        fails(patched, "scandir", tmp_path / "in", errno.ESTALE)
        with pytest.raises(RoughySourceError, match="Stale file handle") as caught:
            discover(str(tmp_path / "in"))
        assert not isinstance(caught.value, RoughyUnusableSourceError)
    with monkeypatch.context() as patched:
        fails(patched, "scandir", tmp_path / "in" / "day", errno.ESTALE)
        found = discover(str(tmp_path / "in"), recursive=True)
        assert {(Path(file.uri).name, file.problem) for file in found.files} == {
            ("a.wav", None),
            ("day", Problem.PASSING),
        }
    with monkeypatch.context() as patched:
        fails(patched, "stat", tmp_path / "in" / "a.wav", errno.EIO)
        (file,) = discover(str(tmp_path / "in")).files
        assert file.problem is Problem.PASSING


def test_a_file_that_vanishes_while_folders_are_listed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(bytes(64))
    fails(monkeypatch, "stat", tmp_path / "a.wav", errno.ENOENT)
    assert [Path(file.uri).name for file in discover(str(tmp_path)).files] == ["b.wav"]


def test_a_missing_source_of_several_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(bytes(64))
    found = discover([str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), str(tmp_path / "no" / "*.wav")])
    assert sorted((Path(file.uri).name, file.problem) for file in found.files if file.problem) == [
        ("*.wav", Problem.UNREADABLE),
        ("b.wav", Problem.UNREADABLE),
    ]
    assert len(found.files) == 3


def test_what_the_pattern_does_not_match_is_named(tmp_path: Path) -> None:
    for name in ("a.wav", "notes.txt", "cover.jpg"):
        (tmp_path / name).write_bytes(bytes(64))
    found = discover(str(tmp_path))
    assert (found.left_out, found.names_left_out) == (2, ["cover.jpg", "notes.txt"])


def test_a_hundred_thousand_files_are_found_in_seconds(tmp_path: Path) -> None:
    for number in range(5_000):
        os.close(os.open(tmp_path / f"{number}.wav", os.O_CREAT | os.O_WRONLY))
    started = time.process_time()
    assert len(discover(str(tmp_path)).files) == 5_000
    # A twentieth of them, with room for a slow machine.
    assert time.process_time() - started < 1.5


def test_brackets_in_the_name_of_a_folder_make_no_glob(tmp_path: Path) -> None:
    (tmp_path / "take [1]").mkdir()
    with pytest.raises(RoughyUnusableSourceError, match=r"x\.mp3 does not exist"):
        discover(str(tmp_path / "take [1]" / "x.mp3"))
    (tmp_path / "take [1]" / "x.mp3").write_bytes(bytes(64))
    assert [file.path for file in discover(str(tmp_path / "take [1]" / "*.mp3")).files] == [
        f"{tmp_path}/take [1]/x.mp3"
    ]


def test_the_parent_of_a_link_is_the_parent_of_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "volume" / "today").mkdir(parents=True)
    (tmp_path / "latest").symlink_to(tmp_path / "volume" / "today")
    for folder in (tmp_path, tmp_path / "volume"):
        (folder / "x.mp3").write_bytes(bytes(64))
    for source in (f"{tmp_path}/latest/../x.mp3", f"{tmp_path}/latest/../*.mp3"):
        assert [file.canonical for file in discover(source).files] == [f"{tmp_path}/volume/x.mp3"]
