"""Locations: what of them is shown and kept."""

from __future__ import annotations

import pytest

from airflow_provider_roughy.storage import without_secrets


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("s3://me@bucket/talk.mp3", "s3://bucket/talk.mp3"),
        ("s3://me@bucket/x@y.mp3?part=a@b", "s3://bucket/x@y.mp3?part=a@b"),
        ("https://me:topsecret@home/talk.mp3?signed=topsecret", "https://home/talk.mp3"),
        ("hdfs://me@node:8020/", "hdfs://node:8020/"),
        ("file://me@/data/talk.mp3", "file:///data/talk.mp3"),
        ("S3://me:topsecret@home@bucket", "S3://bucket"),
        # Names of objects and files, which may be any.
        ("s3://bucket/http://me@home/talk.mp3", "s3://bucket/http://me@home/talk.mp3"),
        ("/data/http://me@home/talk.mp3", "/data/http://me@home/talk.mp3"),
        ("x@y.mp3", "x@y.mp3"),
    ],
)
def test_what_may_be_a_secret_is_not_shown_and_all_else_is(location: str, shown: str) -> None:
    assert without_secrets(location) == shown
