"""Identity: all spellings of one file are one recording, and different files never are."""

from __future__ import annotations

import os
import random
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_roughy.ingest.discover import discover, find_file
from airflow_provider_roughy.ingest.identity import Identity, canonical_uri, version_of

PROJECT = "019de7f5-0000-7000-8000-00000000abcd"


def key(source: object, project_id: str = PROJECT, language: str | None = None) -> str:
    return find_file(source).identity(project_id=project_id, language=language).key  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files, a link to one of them, a link to their folder, and a hard link."""
    root = tmp_path_factory.mktemp("in")
    (root / "day").mkdir()
    for name in ("a.wav", "b.wav"):
        (root / "day" / name).write_bytes(os.urandom(100))
    (root / "latest").symlink_to(root / "day")
    (root / "newest.wav").symlink_to(root / "day" / "a.wav")
    (root / "other.wav").hardlink_to(root / "day" / "a.wav")
    return root


def spelled(path: str, choices: random.Random) -> str:
    """Spell a path in another way that means the same file."""
    parts = path.split("/")
    for _ in range(choices.randrange(4)):
        at = choices.randrange(1, len(parts))
        parts[at:at] = choices.choice(([""], ["."], ["elsewhere", ".."]))
    text = "/".join(parts)
    return choices.choice((text, f"file://{text}", os.path.relpath(text)))


@given(choices=st.randoms(use_true_random=False))
def test_every_spelling_of_a_file_is_one_recording(tree: Path, choices: random.Random) -> None:
    path = choices.choice((tree / "day" / "a.wav", tree / "latest" / "a.wav", tree / "newest.wav"))
    assert key(spelled(str(path), choices)) == key(tree / "day" / "a.wav")


def uri_parts() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
        lambda part: part not in (".", "..")
    )


@given(
    first=st.tuples(uri_parts(), uri_parts(), st.integers(0, 10), st.sampled_from(["1", "2"])),
    second=st.tuples(uri_parts(), uri_parts(), st.integers(0, 10), st.sampled_from(["1", "2"])),
)
def test_different_objects_are_never_one_recording(first: tuple, second: tuple) -> None:  # type: ignore[type-arg]
    def identity(folder: str, name: str, size: int, version: str) -> Identity:
        return Identity(f"s3://{folder}/{name}", size, f"etag={version}", PROJECT)

    assert (identity(*first).key == identity(*second).key) == (first == second)


@pytest.mark.parametrize(
    "project_id", [PROJECT.upper(), PROJECT.replace("-", ""), "{" + PROJECT + "}", f"urn:uuid:{PROJECT}"]
)
def test_every_spelling_of_a_project_is_one_project(tree: Path, project_id: str) -> None:
    assert key(tree / "day" / "a.wav", project_id) == key(tree / "day" / "a.wav")


def test_whatever_else_differs_is_another_recording(tree: Path) -> None:
    file = tree / "day" / "b.wav"
    keys = {key(file), key(file, str(uuid4())), key(file, language="de"), key(tree / "day" / "a.wav")}
    os.utime(file, (1, 1))
    keys.add(key(file))
    file.write_bytes(bytes(101))
    os.utime(file, (1, 1))
    keys.add(key(file))
    assert len(keys) == 6
    assert UUID(PROJECT)


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("s3://conn@bucket/a/b.wav", "s3://bucket/a/b.wav"),
        ("S3A://bucket/a//b.wav", "s3://bucket/a//b.wav"),
        ("gcs://bucket/a b.wav", "gs://bucket/a b.wav"),
        ("abfss://c@account/x", "abfs://account/x"),
        ("sftp://user@host/data/in/", "sftp://host/data/in"),
        ("s3://bucket/a@b.wav", "s3://bucket/a@b.wav"),
    ],
)
def test_uris_have_one_spelling(uri: str, canonical: str) -> None:
    assert canonical_uri(uri) == canonical


def test_a_version_is_what_metadata_does_not_change() -> None:
    stored = {"etag": "2", "generation": "1", "md5hash": "abc", "updated": "today"}
    assert version_of(stored) == "md5hash=abc"
    assert version_of({"etag": 'W/"5"', "lastmodified": "today"}) == "etag=5"
    assert version_of({"mtime": "17"}) == "mtime=17"


def test_a_hard_link_is_known_by_its_other_name(tree: Path) -> None:
    found = discover([str(tree / "day"), str(tree)])
    names = {(Path(file.uri).name, tuple(Path(other).name for other in file.other_names)) for file in found.files}
    assert names in ({("a.wav", ("other.wav",)), ("b.wav", ())}, {("other.wav", ("a.wav",)), ("b.wav", ())})


def test_names_that_are_no_text_are_recordings_of_their_own(tmp_path: Path) -> None:
    for name in (b"\xff.wav", b"\xfe.wav", rb"\xff.wav"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(bytes(64))
        os.utime(os.fsencode(tmp_path) + b"/" + name, (1, 1))
    found = discover(str(tmp_path))
    keys = {file.identity(project_id=PROJECT).key for file in found.files}
    assert len(found.files) == len(keys) == 3
