"""The names of outputs."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.produce.names import (
    PLACEHOLDERS,
    SourceName,
    TargetTemplate,
    length_problem,
    unknown_cut,
)

pytestmark = pytest.mark.once

VALUES = dict.fromkeys(PLACEHOLDERS, "") | {
    "source_name": "talk.mp4",
    "source_stem": "talk",
    "source_dir": "cam1/day 2",
    "kind": "captions",
    "format": "srt",
    "cut_id": unknown_cut("asset"),
}


@pytest.mark.parametrize(
    ("source", "root", "expected"),
    [
        ("/in/a.mp3", None, ("a.mp3", "in", "a", "mp3")),
        ("/in/cam1/a.mp3", "/in", ("a.mp3", "cam1", "a", "mp3")),
        ("/in/cam1/a.mp3", "/in/", ("a.mp3", "cam1", "a", "mp3")),
        ("/in/a.mp3", "/in", ("a.mp3", "", "a", "mp3")),
        ("/inside/a.mp3", "/in", ("a.mp3", "inside", "a", "mp3")),
        ("/in/a.mp3", "/in/*.mp3", ("a.mp3", "", "a", "mp3")),
        ("/in/x/a.mp3", "/in/**/*.mp3", ("a.mp3", "x", "a", "mp3")),
        ("/in/a.mp3", "/in/a.mp3", ("a.mp3", "", "a", "mp3")),
        ("/in/[2024] x/cam1/a.mp3", "/in/[2024] x", ("a.mp3", "cam1", "a", "mp3")),
        ("s3://bucket/in/a.tar.gz", "s3://bucket", ("a.tar.gz", "in", "a.tar", "gz")),
        ("s3://conn@bucket/in/a", "s3://bucket/in", ("a", "", "a", "")),
        ("/in/.hidden", None, (".hidden", "in", ".hidden", "")),
        ("019de7f7-3a52", None, ("019de7f7-3a52", "", "019de7f7-3a52", "")),
    ],
)
def test_source_is_split_relative_to_the_root(source: str, root: str | None, expected: tuple[str, ...]) -> None:
    found = SourceName.of(source, root)
    assert (found.name, found.folder, found.stem, found.extension) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/out/{source_dir}/{source_name}/", "/out/cam1/day 2/talk.mp4/captions.srt"),
        ("/out/{project_id}/{source_stem}.{format}", "/out/talk.srt"),
        ("s3://conn@bucket/{source_stem}/", "s3://conn@bucket/talk/captions.srt"),
        ("/out/{cut_id}.{format}", "/out/{cut of asset}.srt"),
        ("/out/{{x}}/{kind}", "/out/{x}/captions"),
    ],
)
def test_target_is_filled(target: str, expected: str) -> None:
    assert TargetTemplate(target).fill(VALUES) == expected


@pytest.mark.parametrize("target", ["/out/{}", "/out/{0}", "/out/{source_stem.__class__}", "/out/{a[0]}", "/out/{"])
def test_other_fields_are_refused(target: str) -> None:
    with pytest.raises(RoughyConfigurationError, match="nothing was made"):
        TargetTemplate(target)


ANYTHING = st.text(max_size=30) | st.sampled_from(["..", "/", "a/../b", "\\..\\", "../../x"])


@given(st.dictionaries(st.sampled_from(sorted(PLACEHOLDERS)), ANYTHING))
def test_no_value_leads_out_of_the_target(values: dict[str, str]) -> None:
    target = "/".join(["/out", *(f"{{{name}}}" for name in PLACEHOLDERS), "{kind}.{format}"])
    filled = TargetTemplate(target).fill({**VALUES, **values})
    assert os.path.normpath(filled).startswith("/out")
    assert ".." not in PurePosixPath(filled).parts
    assert not any(char < " " or char == "\x7f" for char in filled)


@given(st.text(max_size=30))
def test_value_on_an_object_storage_stays_one_key(value: str) -> None:
    filled = TargetTemplate("s3://bucket/out/{source_stem}/x").fill({**VALUES, "source_stem": value})
    assert filled.startswith("s3://bucket/out/")
    assert "::" not in filled
    assert filled.count("/") == (5 if value else 4)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("out/{source_name}/", "absolute path"),
        ("{source_dir}/x/", "absolute path"),
        ("~/out/", "absolute path"),
        ("file://{source_name}/", "absolute path"),
        ("{source_name}://bucket/x", "absolute path"),
        ("s3://{source_name}/x", "bucket or host"),
        ("s3://conn@a-{source_dir}/x", "bucket or host"),
    ],
)
def test_place_that_a_value_or_the_worker_decides_is_refused(target: str, words: str) -> None:
    with pytest.raises(RoughyConfigurationError, match=words):
        TargetTemplate(target)


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        (f"/out/{'x' * 255}", None),
        (f"/out/{'x' * 256}", "a part of its name has 256 bytes, and the storage allows 255"),
        (f"/out/{'ä' * 128}/a", "a part of its name has 256 bytes, and the storage allows 255"),
        (f"sftp://host/{'x' * 256}", "a part of its name has 256 bytes, and the storage allows 255"),
        (f"s3://bucket/{'x' * 1024}", None),
        (f"s3://bucket/a/{'x' * 1023}", "its name has 1,025 bytes, and the storage allows 1,024"),
        (f"gs://bucket/{'ä' * 513}", "its name has 1,026 bytes, and the storage allows 1,024"),
    ],
    ids=range(7),
)
def test_names_are_as_long_as_their_storage_allows(location: str, problem: str | None) -> None:
    assert length_problem(location) == problem
