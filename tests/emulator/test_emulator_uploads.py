"""The upload protocol: TUS 1.0.0 and Roughy's rules on top of it."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from tests.emulator.api import CHUNK, TUS, Api, RawPatch, problem
from tests.properties import examples


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for what another connection brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_capabilities(api: Api) -> None:
    reply = api.http.options("/v1/uploads")
    assert reply.status_code == 204
    assert reply.headers["Tus-Version"] == "1.0.0"
    assert reply.headers["Tus-Max-Size"] == "53687091200"
    assert reply.headers["Tus-Extension"] == "termination,expiration"


def test_head_returns_the_offset(api: Api, speech: bytes) -> None:
    url = api.create(len(speech))["upload_url"]
    for offset in (0, 100, 1000):
        if offset:
            api.patch(url, api.offset(url), speech[api.offset(url) : offset])
        reply = api.head(url)
        assert reply.status_code == 200
        assert reply.headers["Upload-Offset"] == str(offset)
        assert reply.headers["Upload-Length"] == str(len(speech))
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Tus-Resumable"] == "1.0.0"
        assert reply.content == b""


def test_a_chunk_is_answered_as_tus_demands(api: Api, speech: bytes) -> None:
    url = api.create(len(speech))["upload_url"]
    reply = api.patch(url, 0, speech[:5000])
    assert (reply.status_code, reply.content) == (204, b"")
    assert reply.headers["Upload-Offset"] == "5000"
    assert reply.headers["Tus-Resumable"] == "1.0.0"
    expires = parsedate_to_datetime(reply.headers["Upload-Expires"])
    assert 86_300 < expires.timestamp() - time.time() < 86_500
    # An empty chunk changes nothing and is no error.
    assert api.patch(url, 5000, b"").headers["Upload-Offset"] == "5000"


@pytest.mark.parametrize("version", [None, "0.2.2", "1.0", "2.0.0", ""])
@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
def test_another_version_is_refused_and_nothing_is_processed(
    api: Api, speech: bytes, method: str, version: str | None
) -> None:
    url = api.create(len(speech))["upload_url"]
    headers = {"Upload-Offset": "0", "Content-Type": CHUNK} | ({} if version is None else {"Tus-Resumable": version})
    reply = api.http.request(method, url, content=speech if method == "PATCH" else None, headers=headers)
    assert reply.status_code == 412
    assert reply.headers["Tus-Version"] == "1.0.0"
    if method != "HEAD":
        assert problem(reply) == (412, "precondition_failed")
    assert api.offset(url) == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Content-Type": "application/octet-stream"}, (415, "unsupported_media_type")),
        ({"Content-Type": None}, (415, "unsupported_media_type")),
        ({"Upload-Offset": None}, (400, "bad_request")),
        ({"Upload-Offset": "-1"}, (400, "bad_request")),
        ({"Upload-Offset": "0x0"}, (400, "bad_request")),
        ({"Upload-Offset": "1.0"}, (400, "bad_request")),
        ({"Upload-Offset": ""}, (400, "bad_request")),
        ({"Upload-Offset": "²"}, (400, "bad_request")),
        ({"Upload-Offset": "1"}, (409, "conflict")),
        ({"Upload-Offset": "99999"}, (409, "conflict")),
    ],
)
def test_bad_headers_of_a_chunk(
    api: Api, roughy: Emulator, speech: bytes, changes: dict[str, str | None], expected: tuple[int, str]
) -> None:
    asset = api.create(len(speech))
    fields: dict[str, str | None] = {**TUS, "Upload-Offset": "0", "Content-Type": CHUNK, **changes}
    headers = [(name.encode(), value.encode()) for name, value in fields.items() if value is not None]
    reply = api.http.patch(asset["upload_url"], content=speech, headers=headers)
    assert problem(reply) == expected
    assert reply.headers["Tus-Resumable"] == "1.0.0"
    assert api.offset(asset["upload_url"]) == roughy.asset(asset["id"])["stored_bytes"] == 0
    assert api.patch(asset["upload_url"], 0, speech).status_code == 204


def test_a_chunk_needs_a_content_length(api: Api, speech: bytes) -> None:
    url = api.create(len(speech))["upload_url"]
    headers = {**TUS, "Upload-Offset": "0", "Content-Type": CHUNK}
    reply = api.http.patch(url, content=iter([speech]), headers=headers)
    assert problem(reply) == (400, "bad_request")
    assert api.offset(url) == 0


def test_unknown_uploads(api: Api) -> None:
    url = f"/v1/uploads/{uuid.uuid4()}"
    assert problem(api.patch(url, 0, b"x" * 100)) == (404, "not_found")
    assert problem(api.http.delete(url, headers=TUS)) == (404, "not_found")
    reply = api.head(url)
    assert reply.status_code == 404
    assert "Upload-Offset" not in reply.headers
    assert reply.headers["Cache-Control"] == "no-store"


def test_an_offset_mismatch_leaves_the_bytes_alone(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    api.patch(asset["upload_url"], 0, speech[:2000])
    for offset in (0, 1999, 2001):
        assert problem(api.patch(asset["upload_url"], offset, speech[offset:])) == (409, "conflict")
    assert roughy.asset(asset["id"])["sha256"] == sha256(speech[:2000])


@pytest.mark.parametrize("status", [400, 409, 413])
def test_a_body_over_the_declared_size_is_refused_whole(speech: bytes, status: int) -> None:
    with Emulator(choices=Choices(over_length_status=status)) as roughy, Api(roughy) as api:  # type: ignore[arg-type]
        asset = api.create(len(speech))
        assert api.patch(asset["upload_url"], 0, speech + b"x").status_code == status
        assert roughy.asset(asset["id"])["stored_bytes"] == 0
        api.patch(asset["upload_url"], 0, speech[:1000])
        assert api.patch(asset["upload_url"], 1000, speech[1000:] + b"x").status_code == status
        assert roughy.asset(asset["id"])["stored_bytes"] == 1000


def test_a_huge_body_over_the_declared_size_is_answered_before_it_is_sent(api: Api, speech: bytes) -> None:
    url = api.create(len(speech))["upload_url"]
    raw = RawPatch(api, url, 0, 40 * 1024**3)
    assert b" 413 " in raw.reply().split(b"\r\n")[0]
    raw.close()
    assert api.offset(url) == 0


@pytest.mark.parametrize("status", [400, 409, 422])
def test_a_first_chunk_below_64_bytes(speech: bytes, status: int) -> None:
    choices = Choices(short_first_chunk_status=status)  # type: ignore[arg-type]
    with Emulator(choices=choices) as roughy, Api(roughy) as api:
        url = api.create(len(speech))["upload_url"]
        for size in (0, 1, 63):
            assert api.patch(url, 0, speech[:size]).status_code == status
            assert api.offset(url) == 0
        assert api.patch(url, 0, speech[:64]).status_code == 204
        assert api.patch(url, 64, speech[64:65]).status_code == 204


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n" + bytes(1000), b"%PDF-1.7\n" * 100, b"name,age\n" * 2_000_000]
)
def test_neither_audio_nor_video(api: Api, roughy: Emulator, content: bytes) -> None:
    asset = api.create(len(content))
    assert problem(api.patch(asset["upload_url"], 0, content)) == (409, "conflict")
    assert api.head(asset["upload_url"]).status_code == 404
    assert problem(api.http.get(f"/v1/assets/{asset['id']}")) == (404, "not_found")
    assert (roughy.balance, roughy.assets) == (1000, [])


def test_rejected_media_may_keep_its_asset() -> None:
    choices = Choices(rejected_upload="kept", unsupported_media_code="unsupported_format", cancelled_upload="gone")
    with Emulator(choices=choices) as roughy, Api(roughy) as api:
        asset = api.create(1000)
        assert problem(api.patch(asset["upload_url"], 0, b"text" * 250)) == (409, "unsupported_format")
        assert api.get(asset["id"])["state"] == "pending_upload"
        assert api.head(asset["upload_url"]).status_code == 410
        assert roughy.asset(asset["id"])["stored_bytes"] == 0


def test_rejected_media_may_fail_its_asset() -> None:
    with Emulator(choices=Choices(rejected_upload="failed")) as roughy, Api(roughy) as api:
        asset = api.create(1000)
        assert problem(api.patch(asset["upload_url"], 0, b"text" * 250)) == (409, "conflict")
        assert api.head(asset["upload_url"]).status_code == 404
        found = api.get(asset["id"])
        assert (found["state"], found["error_code"], found["upload_url"]) == ("failed", "probe_failed", None)
        assert (roughy.asset(asset["id"])["stored_bytes"], roughy.balance) == (0, 1000)


@pytest.mark.parametrize(("choice", "status"), [("gone", 410), ("not_found", 404)])
def test_a_finished_upload_is_gone(speech: bytes, choice: str, status: int) -> None:
    with Emulator(choices=Choices(finished_upload=choice)) as roughy, Api(roughy) as api:  # type: ignore[arg-type]
        asset = api.create(len(speech))
        api.patch(asset["upload_url"], 0, speech)
        assert api.head(asset["upload_url"]).status_code == status
        assert api.patch(asset["upload_url"], len(speech), b"").status_code == status
        assert api.http.delete(asset["upload_url"], headers=TUS).status_code == status
        assert api.get(asset["id"])["upload_url"] is None


def test_finished_upload_may_still_return_its_offset(speech: bytes) -> None:
    with Emulator(choices=Choices(finished_upload="offset")) as roughy, Api(roughy) as api:
        asset = api.create(len(speech))
        api.patch(asset["upload_url"], 0, speech)
        assert api.offset(asset["upload_url"]) == len(speech)
        assert api.patch(asset["upload_url"], len(speech), b"").status_code == 204
        assert problem(api.patch(asset["upload_url"], 0, speech)) == (409, "conflict")
        assert problem(api.http.delete(asset["upload_url"], headers=TUS)) == (409, "conflict")
        assert api.get(asset["id"])["state"] == "processing"


@pytest.mark.parametrize("lost", [True, False])
def test_a_missed_end_is_noticed_by_an_empty_chunk(api: Api, roughy: Emulator, speech: bytes, lost: bool) -> None:
    asset = api.create(len(speech))
    roughy.inject(Fault(method="PATCH", miss_end=True, lose_reply=lost))
    if lost:
        with pytest.raises(httpx.TransportError):
            api.patch(asset["upload_url"], 0, speech)
    else:
        assert api.patch(asset["upload_url"], 0, speech).headers["Upload-Offset"] == str(len(speech))
    assert api.offset(asset["upload_url"]) == len(speech)
    assert api.get(asset["id"])["state"] == "pending_upload"
    assert api.patch(asset["upload_url"], len(speech), b"").status_code == 204
    assert api.get(asset["id"])["state"] == "processing"
    assert roughy.asset(asset["id"])["sha256"] == sha256(speech)


def test_cancelling_removes_the_asset(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    api.patch(asset["upload_url"], 0, speech[:1000])
    reply = api.http.delete(asset["upload_url"], headers=TUS)
    assert (reply.status_code, reply.headers["Tus-Resumable"]) == (204, "1.0.0")
    assert api.head(asset["upload_url"]).status_code == 404
    assert problem(api.http.get(f"/v1/assets/{asset['id']}")) == (404, "not_found")
    assert roughy.assets == []


def test_an_upload_expires(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    api.patch(asset["upload_url"], 0, speech[:1000])
    roughy.advance(24 * 3600 - 60)
    assert api.offset(asset["upload_url"]) == 1000
    roughy.advance(120)
    assert api.head(asset["upload_url"]).status_code == 410
    assert problem(api.patch(asset["upload_url"], 1000, speech[1000:])) == (410, "gone")
    assert api.http.get(f"/v1/assets/{asset['id']}").status_code == 404


def test_an_expired_upload_may_keep_its_asset(speech: bytes) -> None:
    choices = Choices(expired_upload="not_found", expired_asset="kept", upload_ttl_seconds=60)
    with Emulator(choices=choices) as roughy, Api(roughy) as api:
        asset = api.create(len(speech))
        roughy.advance(61)
        assert api.head(asset["upload_url"]).status_code == 404
        assert api.get(asset["id"])["state"] == "pending_upload"


def test_deleting_the_asset_ends_a_chunk_under_way(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset = api.create(len(speech))
    raw = RawPatch(api, asset["upload_url"], 0, len(speech))
    raw.send(speech[:1000])
    until(lambda: [r for r in roughy.requests if r.method == "PATCH"])
    assert api.http.delete(f"/v1/assets/{asset['id']}").status_code == 204
    raw.send(speech[1000:])
    assert b" 404 " in raw.reply()
    assert roughy.assets == []


def test_the_method_may_be_overridden_by_choice(api: Api, speech: bytes) -> None:
    url = api.create(len(speech))["upload_url"]
    headers = {**TUS, "X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0", "Content-Type": CHUNK}
    assert api.http.post(url, content=speech, headers=headers).status_code == 405
    with Emulator(choices=Choices(method_override=True)) as roughy, Api(roughy) as other:
        url = other.create(len(speech))["upload_url"]
        assert other.http.post(url, content=speech, headers=headers).status_code == 204


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("sent", [100, 70_000, 1_500_000, 3_000_001])
def test_a_broken_chunk_keeps_exactly_what_arrived(api: Api, roughy: Emulator, how: str, sent: int) -> None:
    content = b"fLaC" + bytes(range(256)) * 20_000
    asset = api.create(len(content))
    raw = RawPatch(api, asset["upload_url"], 0, len(content))
    raw.send(content[:sent])
    if how == "reset":
        # What is still on its way is lost with a reset: let it arrive first.
        until(lambda: api.offset(asset["upload_url"]) >= sent // 2**20 * 2**20)
        time.sleep(0.05)
        raw.reset()
    else:
        raw.close()
    until(lambda: api.offset(asset["upload_url"]) == sent)
    assert roughy.asset(asset["id"])["sha256"] == sha256(content[:sent])
    until(lambda: [(r.status, r.body_bytes) for r in roughy.requests if r.method == "PATCH"] == [(None, sent)])
    assert api.patch(asset["upload_url"], sent, content[sent:]).status_code == 204
    assert roughy.asset(asset["id"])["sha256"] == sha256(content)


def test_a_broken_chunk_may_keep_nothing(speech: bytes) -> None:
    with Emulator(choices=Choices(keep_partial=False)) as roughy, Api(roughy) as api:
        asset = api.create(4_000_000)
        content = speech + bytes(4_000_000 - len(speech))
        for start in (0, 1000):
            raw = RawPatch(api, asset["upload_url"], start, 3_000_000)
            raw.send(content[start : start + 2_500_000])
            # While it is under way, and after it broke off, only what came before counts.
            until(lambda: roughy.asset(asset["id"])["stored_bytes"] > 2_000_000)
            assert api.offset(asset["upload_url"]) == start
            raw.close()
            until(lambda: roughy.asset(asset["id"])["stored_bytes"] == start)  # noqa: B023
            assert api.offset(asset["upload_url"]) == start
            if start == 0:
                assert api.get(asset["id"])["type"] is None
                assert api.patch(asset["upload_url"], 0, content[:1000]).status_code == 204
        assert api.patch(asset["upload_url"], 1000, content[1000:]).status_code == 204
        assert roughy.asset(asset["id"])["sha256"] == sha256(content)


def test_a_second_patch_waits_for_the_first(api: Api, roughy: Emulator) -> None:
    content = b"fLaC" + bytes(3_000_000)
    asset = api.create(len(content))
    first = RawPatch(api, asset["upload_url"], 0, len(content))
    first.send(content[:2_000_000])
    until(lambda: api.offset(asset["upload_url"]) > 0)
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(api.patch(asset["upload_url"], 0, content)))
    thread.start()
    time.sleep(0.1)
    assert replies == []
    first.send(content[2_000_000:])
    assert b" 204 " in first.reply()
    first.close()
    thread.join(5)
    assert problem(replies[0]) == (410, "gone")
    assert roughy.asset(asset["id"])["sha256"] == sha256(content)


def test_a_second_patch_may_be_refused(speech: bytes) -> None:
    with Emulator(choices=Choices(concurrent_patch="locked")) as roughy, Api(roughy) as api:
        asset = api.create(len(speech))
        first = RawPatch(api, asset["upload_url"], 0, len(speech))
        first.send(speech[:100])
        until(lambda: [r for r in roughy.requests if r.method == "PATCH"])
        assert problem(api.patch(asset["upload_url"], 0, speech)) == (423, "conflict")
        assert problem(api.http.delete(asset["upload_url"], headers=TUS)) == (423, "conflict")
        first.send(speech[100:])
        assert b" 204 " in first.reply()
        first.close()
        assert roughy.asset(asset["id"])["sha256"] == sha256(speech)


def test_waiting_for_the_lock_ends(speech: bytes) -> None:
    with Emulator(choices=Choices(lock_wait_seconds=0.1)) as roughy, Api(roughy) as api:
        asset = api.create(len(speech))
        first = RawPatch(api, asset["upload_url"], 0, len(speech))
        until(lambda: [r for r in roughy.requests if r.method == "PATCH"])
        assert api.patch(asset["upload_url"], 0, speech).status_code == 423
        first.close()
        assert api.patch(asset["upload_url"], 0, speech).status_code == 204


def test_many_patches_at_once_never_mix(api: Api, roughy: Emulator) -> None:
    content = b"fLaC" + bytes(range(256)) * 8000
    asset = api.create(len(content))

    start = threading.Barrier(4)

    def push() -> None:
        with Api(roughy) as client:
            # All of them have seen the offset 0 before any of them sends.
            reply = client.head(asset["upload_url"])
            start.wait(20)
            while reply.status_code == 200:
                offset = int(reply.headers["Upload-Offset"])
                client.patch(asset["upload_url"], offset, content[offset : offset + 100_000])
                reply = client.head(asset["upload_url"])

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert roughy.asset(asset["id"])["sha256"] == sha256(content)
    assert 409 in {r.status for r in roughy.requests}


def test_expect_100_continue(api: Api, speech: bytes) -> None:
    asset = api.create(len(speech))
    raw = RawPatch(api, asset["upload_url"], 0, len(speech), "Expect: 100-continue\r\n")
    assert raw.reply().startswith(b"HTTP/1.1 100 ")
    raw.send(speech)
    assert b" 204 " in raw.reply()
    raw.close()


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(64, 24_000), max_size=6, unique=True))
def test_any_cutting_into_chunks_gives_the_same_bytes(
    api: Api, roughy: Emulator, speech: bytes, cuts: list[int]
) -> None:
    asset = api.create(len(speech))
    ends = [*sorted(cut for cut in cuts if cut < len(speech)), len(speech)]
    start = 0
    for end in ends:
        assert api.offset(asset["upload_url"]) == start
        assert api.patch(asset["upload_url"], start, speech[start:end]).headers["Upload-Offset"] == str(end)
        start = end
    assert roughy.asset(asset["id"])["sha256"] == sha256(speech)
