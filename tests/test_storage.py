"""Locations: which parts are shown and stored."""

from __future__ import annotations

import traceback
from typing import ClassVar

import pytest

from airflow_provider_roughy.exceptions import RoughySourceError
from airflow_provider_roughy.transfer.storage import storage_errors, storage_id, without_secrets


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
def test_location_is_shown_without_parts_that_may_be_secret(location: str, shown: str) -> None:
    assert without_secrets(location) == shown


@pytest.mark.parametrize(
    ("endpoint", "storage"),
    [
        (None, ""),
        ("https://s3.amazonaws.com", ""),
        ("https://s3.eu-west-1.amazonaws.com/", ""),
        ("https://s3-eu-west-1.amazonaws.com", ""),
        ("https://bucket.vpce-1.s3.eu-west-1.vpce.amazonaws.com", ""),
        ("http://minio:9000", "minio:9000"),
        ("http://MinIO:9000/", "minio:9000"),
        ("https://minio:443", "minio"),
        ("https://s3.example.com", "s3.example.com"),
    ],
)
def test_a_storage_is_the_same_by_each_spelling_of_its_endpoint(endpoint: str | None, storage: str) -> None:
    class FileSystem:
        client_kwargs: ClassVar[dict[str, str | None]] = {"endpoint_url": endpoint}

    assert storage_id(FileSystem()) == storage


def test_error_of_a_storage_does_not_quote_the_signature_of_a_url() -> None:
    with pytest.raises(RoughySourceError) as error, storage_errors("Source s3://a/b cannot be read", RoughySourceError):
        raise OSError("403 at https://s3.example/a/b?X-Amz-Signature=abc, see https://s3.example/why?x=1")
    assert str(error.value) == (
        "Source s3://a/b cannot be read: 403 at https://s3.example/a/b?… see https://s3.example/why?…"
    )
    assert "Signature" not in "".join(traceback.format_exception(error.value))


def test_error_of_a_storage_keeps_its_cause() -> None:
    with pytest.raises(RoughySourceError) as error, storage_errors("Source s3://a/b cannot be read", RoughySourceError):
        raise OSError("the disk is gone")
    assert isinstance(error.value.__cause__, OSError)
