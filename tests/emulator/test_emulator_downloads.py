"""Downloads: signed URLs on another origin, ranges, and faults during the transfer."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from tests.emulator.api import Api, problem

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def url(api: Api, roughy: Emulator) -> str:
    asset = api.get(roughy.seed_asset(content=CONTENT, content_type="audio/mpeg"))
    return str(asset["download_url"])


def get(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()})


def s3_error(reply: httpx.Response) -> tuple[int, str]:
    assert reply.headers["Content-Type"] == "application/xml"
    return reply.status_code, reply.text.partition("<Code>")[2].partition("</Code>")[0]


def test_the_object_store_is_another_origin(api: Api, roughy: Emulator, url: str) -> None:
    assert url.startswith(f"{roughy.storage_url}/storage/assets/{roughy.project_id}/")
    assert urlsplit(url).port != urlsplit(roughy.url).port
    reply = get(url)
    assert reply.content == CONTENT
    assert reply.headers["Content-Type"] == "audio/mpeg"
    assert reply.headers["Content-Length"] == str(len(CONTENT))
    assert reply.headers["Accept-Ranges"] == "bytes"
    # Neither serves what is the other's.
    assert problem(api.http.get(urlsplit(url)._replace(netloc=urlsplit(roughy.url).netloc).geturl())) == (
        404,
        "not_found",
    )
    assert httpx.get(f"{roughy.storage_url}/v1/assets").status_code == 404
    assert httpx.get(f"{roughy.storage_url}/_emulator/state").status_code == 404


def test_a_key_that_comes_there_is_refused_and_on_record(roughy: Emulator, url: str) -> None:
    roughy.clear_requests()
    assert s3_error(get(url, Authorization=f"Bearer {roughy.api_key}")) == (400, "InvalidArgument")
    get(url)
    first, second = roughy.requests
    assert first.headers["authorization"] == f"Bearer {roughy.api_key}"
    assert "authorization" not in second.headers
    assert second.headers["host"] == urlsplit(roughy.storage_url).netloc


def test_a_url_expires(api: Api, roughy: Emulator, url: str) -> None:
    roughy.advance(850)
    assert get(url).status_code == 200
    roughy.advance(60)
    assert s3_error(get(url)) == (403, "AccessDenied")
    assert s3_error(get(url.replace("X-Amz-Expires=900", "X-Amz-Expires=9000"))) == (403, "SignatureDoesNotMatch")
    asset_id = roughy.assets[0]["id"]
    fresh = api.get(asset_id)["download_url"]
    assert get(fresh).status_code == 200
    assert s3_error(get(fresh.replace(asset_id, roughy.seed_asset()))) == (403, "SignatureDoesNotMatch")
    api.http.delete(f"/v1/assets/{asset_id}")
    assert s3_error(get(fresh)) == (404, "NoSuchKey")


@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=1000-", 1000, len(CONTENT)),
        ("bytes=-5", len(CONTENT) - 5, len(CONTENT)),
        (f"bytes=-{len(CONTENT) + 9}", 0, len(CONTENT)),
        (f"bytes=100-{len(CONTENT) + 9}", 100, len(CONTENT)),
    ],
)
def test_ranges(url: str, wanted: str, begin: int, end: int) -> None:
    reply = get(url, Range=wanted)
    assert reply.status_code == 206
    assert reply.content == CONTENT[begin:end]
    assert reply.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(CONTENT)}"
    head = get(url, "HEAD", Range=wanted)
    assert (head.status_code, head.content) == (206, b"")
    assert {**head.headers, "x-request-id": "", "date": ""} == {**reply.headers, "x-request-id": "", "date": ""}


@pytest.mark.parametrize("wanted", ["bytes=5-4", "bytes=-", "bytes=a-b", "lines=0-5", "bytes=0-1,5-6"])
def test_what_is_no_range_gets_all(url: str, wanted: str) -> None:
    reply = get(url, Range=wanted)
    assert (reply.status_code, reply.content) == (200, CONTENT)


@pytest.mark.parametrize("wanted", [f"bytes={len(CONTENT)}-", "bytes=-0"])
def test_ranges_beyond_the_end(url: str, wanted: str) -> None:
    reply = get(url, Range=wanted)
    assert s3_error(reply) == (416, "InvalidRange")
    assert reply.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_a_range_of_what_has_not_changed(roughy: Emulator, api: Api, url: str) -> None:
    first = get(url)
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    assert etag.startswith('"')
    for validator in (etag, modified):
        assert get(url, Range="bytes=5-9", If_Range=validator).content == CONTENT[5:10]
    for validator in (f"W/{etag}", '"other"', "Thu, 01 Jan 1970 00:00:00 GMT"):
        assert get(url, Range="bytes=5-9", If_Range=validator).content == CONTENT
    other = api.get(roughy.seed_asset(content=CONTENT))["download_url"]
    assert get(other).headers["ETag"] != etag


@pytest.mark.parametrize("cut", [0, 1, 300_000, len(CONTENT) - 1])
def test_a_reply_that_is_cut(roughy: Emulator, url: str, cut: int) -> None:
    roughy.inject(Fault(path="/storage/*", cut_reply_after=cut))
    arrived = b""
    with httpx.stream("GET", url) as reply, pytest.raises(httpx.RemoteProtocolError):
        for block in reply.iter_raw():
            arrived += block
    assert arrived == CONTENT[:cut]
    assert get(url, Range=f"bytes={cut}-").content == CONTENT[cut:]


def test_a_reply_that_ends_before_its_cut(roughy: Emulator, url: str) -> None:
    roughy.inject(Fault(path="/storage/*", cut_reply_after=len(CONTENT)))
    assert get(url).content == CONTENT


@pytest.mark.parametrize(
    ("fault", "holds"),
    [
        (Fault(request_headers={"Range": None}), lambda reply: (reply.status_code, reply.content) == (200, CONTENT)),
        (Fault(request_headers={"Range": "bytes=7-8"}), lambda reply: reply.content == CONTENT[7:9]),
        (Fault(reply_headers={"ETag": '"other"'}), lambda reply: reply.headers["ETag"] == '"other"'),
        (Fault(reply_headers={"ETag": None}), lambda reply: "ETag" not in reply.headers),
        (
            Fault(reply_headers={"Content-Range": "bytes 0-4/5"}),
            lambda reply: reply.headers["Content-Range"][-1] == "5",
        ),
        (Fault(status=403, body="<Error/>"), lambda reply: (reply.status_code, reply.text) == (403, "<Error/>")),
        (Fault(status=200, body="short", cut_reply_after=5), lambda reply: reply.content == b"short"),
        (Fault(status=503, headers={"Retry-After": "1"}), lambda reply: reply.headers["Retry-After"] == "1"),
        (Fault(garbage=True), lambda reply: reply.headers["Content-Type"].startswith("text/html")),
    ],
)
def test_other_faults(roughy: Emulator, url: str, fault: Fault, holds: Callable[[httpx.Response], bool]) -> None:
    roughy.inject(fault)
    assert holds(get(url, Range="bytes=2-5"))
    assert get(url, Range="bytes=2-5").content == CONTENT[2:6]


def test_an_empty_file(api: Api, roughy: Emulator) -> None:
    url = api.get(roughy.seed_asset(content=b""))["download_url"]
    assert (get(url).content, get(url).headers["Content-Length"]) == (b"", "0")
    assert get(url, Range="bytes=0-").status_code == 416


def test_a_slow_reply(roughy: Emulator, url: str) -> None:
    roughy.inject(Fault(reply_rate=10_000_000))
    started = time.monotonic()
    assert get(url).content == CONTENT
    assert time.monotonic() - started >= len(CONTENT) / 10_000_000


def test_ports_can_be_chosen(unused_ports: tuple[int, int]) -> None:
    port, storage_port = unused_ports
    choices = Choices(download_ttl_seconds=60)
    with Emulator(port, storage_port=storage_port, choices=choices) as roughy, Api(roughy) as api:
        assert (roughy.url, roughy.storage_url) == (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{storage_port}")
        url = api.get(roughy.seed_asset(content=CONTENT))["download_url"]
        assert get(url).content == CONTENT
        roughy.advance(61)
        assert get(url).status_code == 403
        roughy.close()
        roughy.start()
        assert roughy.storage_url == f"http://127.0.0.1:{storage_port}"
