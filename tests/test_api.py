"""Requests and replies as data."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from airflow_provider_roughy import api, exceptions
from airflow_provider_roughy.api import Reply, RoughyAsset, decode
from airflow_provider_roughy.api.calls import Resource, parse_as, parse_page_of
from airflow_provider_roughy.compat import AirflowException, AirflowFailException
from airflow_provider_roughy.http import client

ID = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
OTHER = "019de7f7-3a52-74d1-9eeb-323e0bfb7bba"
ASSET = {
    "id": ID,
    "project_id": "019de7f5-7e21-7402-92a8-1c0e1fa84411",
    "type": "audio",
    "state": "ready",
    "extension": "mp3",
    "size_bytes": 4823572,
    "content_type": "audio/mpeg",
    "duration_seconds": "324.412",
    "language": "de",
    "error_code": None,
    "error_message": None,
    "created_at": "2026-05-02T08:54:52.423000Z",
    "upload_url": None,
    "download_url": "https://fly.storage.tigris.dev/assets/x?X-Amz-Signature=sig",
}


def reply(status: int, body: Any = None, **headers: str) -> Reply:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"x-request-id": "req-1", **names}, content)


def envelope(code: str, message: str = "Words.", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **more}}


def raised(answer: Reply, call: api.Call[Any] | None = None) -> exceptions.RoughyError:
    with pytest.raises(exceptions.RoughyError) as caught:
        api.decipher(call or api.get_asset(ID), answer)
    return caught.value


def test_an_asset_is_read_with_every_field_and_ignores_new_ones() -> None:
    asset = api.decipher(api.get_asset(ID), reply(200, {**ASSET, "cuttable": True, "mood": "merry"}))
    assert {name: getattr(asset, name) for name in ASSET} == ASSET
    assert asset.cuttable is True
    assert asset.request_id == "req-1"


def test_an_asset_keeps_its_signed_urls_to_itself() -> None:
    asset = RoughyAsset.from_json({**ASSET, "upload_url": "https://api.roughy.ai/v1/uploads/secret"})
    assert "upload_url" not in asset.to_dict()
    assert "download_url" not in asset.to_dict()
    assert "sig" not in repr(asset)
    assert "secret" not in repr(asset)
    assert json.loads(json.dumps(asset.to_dict()))["duration_seconds"] == "324.412"


def test_an_asset_that_a_task_returns_is_stored_without_its_signed_urls() -> None:
    try:
        serde: Any = import_module("airflow.sdk.serde")
    except ImportError:
        serde = import_module("airflow.serialization.serde")
    signed = {"upload_url": "https://a.example/secret", "download_url": "https://b.example/?sig=secret"}
    asset = RoughyAsset.from_json({**ASSET, **signed}, request_id="req-1")
    stored = serde.serialize([asset])
    assert "secret" not in str(stored)
    again = RoughyAsset.deserialize(stored[0]["__data__"], 0)
    assert (again, again.request_id) == (asset, "req-1")


def test_a_request_keeps_an_upload_url_to_itself() -> None:
    call = api.send_bytes("https://api.roughy.ai/v1/uploads/secret?signature=secret", [], offset=0, length=64)
    assert str(call.request) == "PATCH /v1/uploads/…"
    assert "secret" not in repr(call)


#: Roughy's list (API page "List assets"), with the statuses of page "Errors" and the likeliest for those it leaves out.
CODES = {
    "bad_request": (400, exceptions.RoughyValidationError),
    "unauthenticated": (401, exceptions.RoughyAuthenticationError),
    "forbidden": (403, exceptions.RoughyAuthenticationError),
    "not_found": (404, exceptions.RoughyNotFoundError),
    "conflict": (409, exceptions.RoughyConflictError),
    "gone": (410, exceptions.RoughyNotFoundError),
    "precondition_failed": (412, exceptions.RoughyValidationError),
    "payload_too_large": (413, exceptions.RoughyValidationError),
    "unsupported_media_type": (415, exceptions.RoughyValidationError),
    "validation_error": (422, exceptions.RoughyValidationError),
    "account_locked": (423, exceptions.RoughyAuthenticationError),
    "rate_limited": (429, exceptions.RoughyRateLimitError),
    "insufficient_credits": (402, exceptions.RoughyInsufficientCreditsError),
    "internal_error": (500, exceptions.RoughyServerError),
    "upstream_error": (502, exceptions.RoughyServerError),
    "upstream_unavailable": (503, exceptions.RoughyServerError),
    "asset_processing": (409, exceptions.RoughyAssetProcessingError),
    "asset_payment_required": (409, exceptions.RoughyConflictError),
    "asset_failed": (409, exceptions.RoughyConflictError),
    "asset_not_ready": (409, exceptions.RoughyAssetProcessingError),
    "modifier_not_ready": (409, exceptions.RoughyCutNotReadyError),
    "unsupported_format": (409, exceptions.RoughyUnsupportedFormatError),
    "frame_rate_required": (409, exceptions.RoughyFrameRateRequiredError),
    "cut_not_proposed": (409, exceptions.RoughyConflictError),
}


def test_all_24_codes_are_known() -> None:
    assert len(CODES) == 24
    assert set(exceptions.ERRORS_BY_CODE) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_its_error(code: str) -> None:
    status, cls = CODES[code]
    error = raised(reply(status, envelope(code)))
    assert type(error) is cls
    assert isinstance(error, exceptions.RoughyApiError)
    assert (error.status, error.code, error.message, error.request_id) == (status, code, "Words.", "req-1")
    assert str(error).startswith(f"GET /v1/assets/{ID}: {status} {code}: Words. (request req-1)")


NO_ENVELOPE = [b"", b"<html>Bad gateway</html>", b'{"error": {"co', b"[]", b'{"detail": "x"}', b"\xff\xfe"]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 413, 415, 418])
@pytest.mark.parametrize("body", NO_ENVELOPE)
def test_a_refusal_without_an_envelope_is_not_roughys(status: int, body: bytes) -> None:
    error = raised(reply(status, body))
    assert type(error) is exceptions.RoughyGatewayError
    assert error.transient
    assert not isinstance(error, AirflowFailException)


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (408, exceptions.RoughyApiError),
        (423, exceptions.RoughyApiError),
        (429, exceptions.RoughyRateLimitError),
        (500, exceptions.RoughyServerError),
        (502, exceptions.RoughyServerError),
        (504, exceptions.RoughyServerError),
    ],
)
@pytest.mark.parametrize("body", NO_ENVELOPE)
def test_later_needs_no_envelope(status: int, cls: type, body: bytes) -> None:
    error = raised(reply(status, body))
    assert type(error) is cls
    assert error.transient


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b""),
        reply(200, b"<html>Log in to the Wi-Fi</html>", content_type="text/html"),
        reply(200, b'{"id": "019de7'),
        reply(200, []),
        reply(200, {"state": "ready"}),
        reply(200, {**ASSET, "state": None}),
        reply(302, b"", location="https://elsewhere.example/?token=secret"),
        reply(304),
    ],
    ids=["empty", "html", "truncated", "list", "no id", "no state", "redirect", "not modified"],
)
def test_a_reply_that_breaks_the_contract_is_named(answer: Reply) -> None:
    error = raised(answer)
    assert type(error) is exceptions.RoughyProtocolError
    assert "req-1" in str(error)
    assert "secret" not in str(error)


def test_fields_of_a_validation_error_are_in_the_message() -> None:
    fields = [{"field": "body.size_bytes", "message": "Too small."}]
    error = raised(reply(422, envelope("validation_error", "Invalid.", fields=fields)))
    assert isinstance(error, exceptions.RoughyValidationError)
    assert error.fields == fields
    assert "body.size_bytes: Too small." in str(error)


def test_an_error_keeps_no_more_than_a_page_of_words() -> None:
    words = "w" * 1_000_000
    fields = [{"field": words[:10_000], "message": words[:10_000]}] * 100
    error = raised(reply(422, envelope("validation_error", words, fields=fields), x_request_id=words))
    assert isinstance(error, exceptions.RoughyApiError)
    assert len(str(error)) < 100_000
    assert len(json.dumps(error.to_dict())) < 100_000
    again = exceptions.api_error(**error.to_dict())
    assert (str(again), again.to_dict()) == (str(error), error.to_dict())
    failed = exceptions.RoughyAssetFailedError(ID, error_code=words, error_message=words, request_id="req-1")
    assert len(str(failed)) < 10_000


def test_a_request_id_that_is_printed_can_be_read() -> None:
    failed = exceptions.RoughyAssetFailedError(ID, error_code="probe_failed", request_id="req-1")
    unpaid = exceptions.RoughyPaymentRequiredError(ID, request_id="req-1")
    for error in (failed, unpaid):
        assert error.request_id == "req-1"
        assert "req-1" in str(error)
        assert pickle.loads(pickle.dumps(error)).request_id == "req-1"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("²", None),
    ],
)
def test_both_forms_of_retry_after(header: str, seconds: float | None) -> None:
    answer = reply(429, envelope("rate_limited"), retry_after=header, date="Sun, 22 Nov 2026 12:00:00 GMT")
    error = raised(answer)
    assert isinstance(error, exceptions.RoughyRateLimitError)
    assert error.retry_after == seconds


def test_errors_that_no_retry_mends_burn_none_and_the_others_are_no_airflow_exception() -> None:
    for cls in CODES.values():
        error = cls[1]("GET /", status=cls[0])
        assert not (error.transient and isinstance(error, AirflowFailException))
        assert isinstance(error, AirflowFailException) or not isinstance(error, AirflowException)


def test_errors_survive_pickling() -> None:
    error = raised(reply(422, envelope("validation_error", fields=[{"field": "query.limit", "message": "m"}])))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    failed = pickle.loads(pickle.dumps(exceptions.RoughyAssetFailedError(ID, error_code="probe_failed")))
    assert failed.asset_id == ID


@pytest.mark.parametrize(
    "value", ["", "None", "../projects", "019de7f7", None, 7, "{{ ti.xcom_pull('upload') }}"], ids=str
)
def test_invalid_id_is_rejected_before_anything_is_sent(value: Any) -> None:
    for call in (api.get_asset, api.delete_asset, api.get_project):
        with pytest.raises(exceptions.RoughyConfigurationError, match="UUID"):
            call(value)


@pytest.mark.parametrize("size", [0, 63, 50 * 1024**3 + 1, -1])
def test_a_size_out_of_bounds_is_refused_before_anything_is_sent(size: int) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match="size_bytes"):
        api.create_asset(ID, size)


@pytest.mark.parametrize("language", ["eng", "d", "d1", "", "de-DE", "dé"])
def test_a_language_of_more_or_less_than_two_letters_is_refused(language: str) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match="language"):
        api.create_asset(ID, 64, language=language)


def test_a_language_is_sent_as_roughy_stores_it() -> None:
    assert api.create_asset(ID, 64, language="DE").request.json == {
        "project_id": ID,
        "size_bytes": 64,
        "language": "de",
    }


def test_the_upload_url_may_come_in_the_location_alone() -> None:
    created = reply(201, {**ASSET, "state": "pending_upload"}, location="https://api.roughy.ai/v1/uploads/u")
    assert api.decipher(api.create_asset(ID, 64), created).upload_url == "https://api.roughy.ai/v1/uploads/u"


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_of_a_delete_will_do(status: int) -> None:
    api.decipher(api.delete_asset(ID), reply(status, b"whatever"))


@pytest.mark.parametrize("value", ["", "-1", "1.5", "ten", "²", "9" * 5000])
def test_an_offset_that_is_no_number_breaks_the_contract(value: str) -> None:
    error = raised(reply(204, upload_offset=value), api.send_bytes("https://x/u", [], offset=0, length=64))
    assert type(error) is exceptions.RoughyProtocolError


def test_a_page_knows_where_the_next_one_starts() -> None:
    def page(items: int, total: int, offset: int) -> int | None:
        # What the reply repeats of the question counts for nothing: a wrong echo would turn the same page for ever.
        body = {"items": [ASSET] * items, "total": total, "limit": 100, "offset": 0}
        return api.decipher(api.list_assets(offset=offset), reply(200, body)).next_offset

    assert page(100, 250, 0) == 100
    assert page(50, 250, 200) is None
    assert page(0, 250, 200) is None


ODD = [b"[" * 100_000 + b"]" * 100_000, b"[" * 100_000, json.dumps(ASSET).encode("utf-16") + b"\xff"]


@pytest.mark.parametrize("body", ODD, ids=["deep", "endless", "no text"])
@pytest.mark.parametrize("status", [200, 404])
def test_odd_json_breaks_the_contract_and_nothing_else(status: int, body: bytes) -> None:
    error = raised(reply(status, body))
    assert type(error) is (exceptions.RoughyProtocolError if status == 200 else exceptions.RoughyGatewayError)


@pytest.mark.parametrize("value", ["Fri, 31 Dec 99999 23:59:59 GMT", "9" * 400, "1e999", "-5"])
def test_an_odd_retry_after_is_a_number_that_json_knows_or_none(value: str) -> None:
    error = raised(reply(429, envelope("rate_limited"), retry_after=value, date="Tue, 24 Nov 2026 00:00:00 GMT"))
    assert isinstance(error, exceptions.RoughyApiError)
    json.loads(json.dumps(error.to_dict(), allow_nan=False))
    assert error.retry_after is None or error.retry_after <= 366 * 86400


def test_the_words_of_others_are_cut() -> None:
    long = "x" * 20_000_000
    error = raised(
        reply(422, {"error": {"code": "validation_error", "message": long, "fields": [{"field": long[:50_000]}] * 99}})
    )
    assert len(str(error)) < 50_000
    assert isinstance(error, exceptions.RoughyApiError)
    assert len(json.dumps(error.to_dict())) < 50_000
    asset = api.decipher(api.get_asset(ID), reply(200, {**ASSET, "error_message": long}))
    assert len(json.dumps(asset.to_dict())) < 5_000


@pytest.mark.parametrize("url", [5, ["https://api.roughy.ai/u"], {"a": 1}, True])
def test_url_that_is_not_text_is_none(url: Any) -> None:
    created = api.create_asset(ID, 64)
    assert api.decipher(created, reply(201, {**ASSET, "upload_url": url})).upload_url is None


@pytest.mark.parametrize(
    ("name", "value", "decoded"),
    [
        ("error_message", "tag \x00", "tag \ufffd"),
        ("error_message", "half: \ud83d", "half: \ufffd"),
        ("error_message", "whole: \U0001f600", "whole: \U0001f600"),
        ("error_message", ["x"], None),
        ("error_code", 17, "17"),
        ("extension", "\udc00", "\ufffd"),
        ("extension", "x" * 1_000_000, "x" * 1960 + "… (1000000 characters)"),
        ("size_bytes", 10**400, None),
        ("size_bytes", 1e20, None),
        ("size_bytes", float("nan"), None),
        ("size_bytes", -1, None),
        ("size_bytes", "597", 597),
        ("duration_seconds", 324.412, "324.412"),
        ("duration_seconds", "long", None),
        ("language", {"code": "de"}, None),
        ("cuttable", "yes", None),
        ("state", 17, "17"),
        ("state", "resting", "resting"),
        ("project_id", ID.upper(), ID),
    ],
    ids=lambda value: str(value)[:12] if isinstance(value, str) and value.isidentifier() else "",
)
def test_field_that_cannot_be_stored_is_text_or_none(name: str, value: Any, decoded: Any) -> None:
    asset = api.decipher(api.get_asset(ID), reply(200, {**ASSET, name: value}))
    assert getattr(asset, name) == decoded
    json.dumps(asset.to_dict(), allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize("value", [None, [], "yesterday", 17, "missing"], ids=str)
@pytest.mark.parametrize("name", ["id", "project_id", "created_at"])
def test_an_asset_without_a_required_field_is_an_error_of_its_own(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = "0197c2f0-3a52-74d1-9eeb-323e0bfb7bb9"
    bad = {**ASSET, "id": str(uuid4()), name: value}
    if value == "missing":
        del bad[name]
    assert name in str(raised(reply(200, bad)))
    for _ in range(2):
        listed = {"items": [bad, {**ASSET, "id": other}], "total": 3, "limit": 2, "offset": 0}
        page = api.decipher(api.list_assets(limit=2), reply(200, listed))
        assert ([asset.id for asset in page.items], page.next_offset) == ([other], 2)
    told = [line for record in caplog.records if (line := record.getMessage()).startswith("Skipped asset ")]
    # What has no id is told from the others by what is wrong with it, which another test may have met.
    assert len(told) == 1 or (name == "id" and not told)
    assert all(f"{name} is " in line for line in told)


def test_an_error_of_other_types_is_an_error_all_the_same() -> None:
    error = raised(
        reply(
            422,
            {"error": {"code": 17, "message": "no \x00", "fields": [{"field": {}, "message": "\ud800"}, 5]}},
            x_request_id="req\x00",
        )
    )
    assert isinstance(error, exceptions.RoughyValidationError)
    assert (error.code, error.message, error.request_id) == ("17", "no \ufffd", "req\ufffd")
    assert error.fields == [{"field": "", "message": "\ufffd"}]
    assert "\x00" not in str(error)


@pytest.mark.parametrize("total", [None, "many", [], -1, 1e999])
def test_list_without_a_total_continues_while_pages_are_full(total: Any) -> None:
    def next_offset(items: int) -> int | None:
        listed = {"items": [ASSET] * items, "total": total}
        return api.decipher(api.list_assets(offset=200), reply(200, listed)).next_offset

    assert (next_offset(100), next_offset(99), next_offset(0)) == (300, None, None)


@pytest.mark.parametrize("text", ["a\x00b", "\ud83d", "b\udc00"], ids=ascii)
@pytest.mark.parametrize(
    "ask",
    [
        lambda text: api.create_cut(ID, script=text),
        lambda text: api.export_cut(ID, text),
        lambda text: api.export_cut(ID, "edl", frame_rate=text),
        lambda text: api.export_subtitles(ID, text),
        lambda text: api.create_project(text),
        lambda text: api.update_project(ID, name=text),
        lambda text: api.list_assets(state=text),
        lambda text: api.create_render(ID, {"format": text}),
        lambda text: api.create_render(ID, {"format": "mp3", "tags": [{text: 1}]}),
        lambda text: api.create_webhook_endpoint("https://hooks.example.com/", [text]),
        lambda text: api.create_webhook_endpoint("https://hooks.example.com/", ["a.b"], description=text),
    ],
)
def test_text_that_cannot_be_stored_is_not_sent(ask: Any, text: str) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match=r"character [01] is (a NUL|half of a surrogate)"):
        ask(text)


@pytest.mark.parametrize("value", [float("nan"), 10**30, object, b"x", {1: 2}], ids=str)
def test_an_output_that_is_no_json_is_not_sent(value: Any) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match="output"):
        api.create_render(ID, {"format": "mp3", "loudness": value})


def test_malformed_reply_has_a_short_message() -> None:
    long = "9x" * 1_000_000
    answer = reply(200, {"items": long}, content_type=long, x_request_id=long)
    assert len(str(raised(answer, api.list_assets()))) < 10_000


ENDPOINT = {
    "id": "ep_2Qx/7",
    "url": "https://airflow.example.com/roughy/hooks",
    "event_types": ["asset.ready"],
    "description": None,
}


@pytest.mark.parametrize("name", ["secret", "signing_secret"])
def test_a_webhook_endpoint_keeps_its_secret_to_itself(name: str) -> None:
    call = api.create_webhook_endpoint("https://airflow.example.com/roughy/hooks", ["asset.ready"])
    made = api.decipher(call, reply(201, {**ENDPOINT, name: "whsec_x", "new": 1}))
    assert (made.signing_secret, made.request_id) == ("whsec_x", "req-1")
    assert made.to_dict() == ENDPOINT
    assert "whsec" not in repr(made)
    broken = raised(reply(201, {"id": "ep_1", name: "whsec_x"}), call)
    assert type(broken) is exceptions.RoughyProtocolError
    assert "whsec" not in str(broken)


@pytest.mark.parametrize("status", [200, 201])
def test_a_webhook_endpoint_is_asked_for_in_the_users_words(status: int) -> None:
    url, words = "https://airflow.example.com/roughy/hooks?team=1", ("asset.ready", "asset.mood")
    call = api.create_webhook_endpoint(url, words, description="Airflow")
    assert call.request.json == {"url": url, "event_types": list(words), "description": "Airflow"}
    assert "description" not in (api.create_webhook_endpoint(url, words).request.json or {})
    assert api.decipher(call, reply(status, ENDPOINT)).id == "ep_2Qx/7"
    assert not call.idempotent


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:80/", "http://localhost/x", "http://[::1]:8321/x", "HTTPS://a.example"]
)
def test_urls_that_a_webhook_may_go_to(url: str) -> None:
    assert api.create_webhook_endpoint(url, ["asset.ready"]).request.json == {
        "url": url,
        "event_types": ["asset.ready"],
    }


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/token",
        "http://127.0.0.1.example.com/token",
        "https://user:token@hooks.example.com/",
        "https:///token",
        "ftp://127.0.0.1/token",
        "hooks.example.com/token",
        "https://hooks.example.com/a token",
        "",
        None,
    ],
)
def test_urls_that_no_webhook_may_go_to(url: Any) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match="must be an https URL") as caught:
        api.create_webhook_endpoint(url, ["asset.ready"])
    assert "token" not in str(caught.value)


@pytest.mark.parametrize("event_types", [[], "asset.ready", None, 7, ["asset.ready", None], [""]], ids=str)
def test_event_types_that_are_none(event_types: Any) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match="event_types"):
        api.create_webhook_endpoint("https://hooks.example.com/", event_types)
    text: Any = 7
    with pytest.raises(exceptions.RoughyConfigurationError, match="description"):
        api.create_webhook_endpoint("https://hooks.example.com/", ["asset.ready"], description=text)


@pytest.mark.parametrize(
    ("body", "next_offset"),
    [
        ({"items": [ENDPOINT, ENDPOINT], "total": 5, "limit": 2, "offset": 2}, 4),
        ({"items": [ENDPOINT, ENDPOINT], "total": 4, "limit": 2, "offset": 2}, None),
        ({"items": [ENDPOINT, ENDPOINT]}, None),
        ([ENDPOINT, ENDPOINT], None),
        ([], None),
    ],
    ids=["page", "last page", "no total", "array", "nothing"],
)
def test_a_list_of_webhook_endpoints_may_be_a_page_or_an_array(body: Any, next_offset: int | None) -> None:
    page = api.decipher(api.list_webhook_endpoints(limit=2, offset=2), reply(200, body))
    assert [endpoint.to_dict() for endpoint in page.items] == [ENDPOINT] * (2 if body else 0)
    assert page.next_offset == next_offset


@pytest.mark.parametrize("body", [None, 5, "ep_1", {"data": []}, {"items": None}], ids=str)
def test_a_list_of_anything_else_breaks_the_contract(body: Any) -> None:
    assert type(raised(reply(200, body), api.list_webhook_endpoints())) is exceptions.RoughyProtocolError


def test_the_id_of_a_webhook_endpoint_is_text_and_no_path() -> None:
    target = api.delete_webhook_endpoint("ep_1/../../assets?x=%2e#ä").request.target
    assert target == "/v1/webhook-endpoints/ep_1%2F..%2F..%2Fassets%3Fx%3D%252e%23%C3%A4"
    for nothing in ("", " ", ".", "..", None, 7, "\ud800"):
        with pytest.raises(exceptions.RoughyConfigurationError, match="endpoint_id"):
            api.delete_webhook_endpoint(nothing)  # type: ignore[arg-type]


CUT = {
    "id": ID,
    "asset_id": ID,
    "state": "completed",
    "script": "Leave out the pauses.",
    "error_code": None,
    "error_message": None,
    "created_at": "2026-05-02T08:54:52.423000Z",
    "started_at": "2026-05-02T08:54:53.423000Z",
    "completed_at": "2026-05-02T08:55:52.423000Z",
}
RENDER = {
    **{name: value for name, value in CUT.items() if name != "script"},
    "cut_id": None,
    "output": {"format": "mp4", "resolution": "1080p", "frame_rate": 120},
    "size_bytes": 4823572,
    "download_url": "https://fly.storage.tigris.dev/renders/x?X-Amz-Signature=sig",
}


@pytest.mark.parametrize(
    ("call", "body"), [(api.get_cut(ID), CUT), (api.get_render(ID), RENDER)], ids=["cut", "render"]
)
def test_what_is_made_of_an_asset_is_read_with_every_field(call: api.Call[Any], body: dict[str, Any]) -> None:
    found = api.decipher(call, reply(200, {**body, "new": 1}))
    assert {name: getattr(found, name) for name in body} == body
    shown = found.to_dict()
    assert shown == {name: value for name, value in body.items() if name != "download_url"}
    assert "sig" not in repr(found)


def test_a_cut_is_asked_for_with_a_script_only_if_there_is_one() -> None:
    assert api.create_cut(ID.upper()).request.json == {"asset_id": ID}
    assert api.create_cut(ID, script="").request.json == {"asset_id": ID, "script": ""}
    longest = "ä" * api.MAX_SCRIPT_CHARACTERS
    assert api.create_cut(ID, script=longest).request.json == {"asset_id": ID, "script": longest}


@pytest.mark.parametrize("script", ["x" * 100_001, 5, ["x"]], ids=["long", "number", "list"])
def test_invalid_script_is_rejected(script: Any) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match="script must be text of at most 100000 characters"):
        api.create_cut(ID, script=script)


@pytest.mark.parametrize("output", [None, "mp4", {}, {"resolution": "720p"}, {"format": None}], ids=str)
def test_an_output_that_names_no_format_is_refused(output: Any) -> None:
    with pytest.raises(exceptions.RoughyConfigurationError, match="output must be an object that names a format"):
        api.create_render(ID, output)


def test_an_output_goes_to_roughy_as_it_is() -> None:
    output = {"format": "opus", "loudness": -16}
    assert api.create_render(ID, output, cut_id=ID).request.json == {"asset_id": ID, "output": output, "cut_id": ID}


def test_what_may_be_asked_for_again_is() -> None:
    """The same request finds what there is (API pages "Cut an asset", "Render an asset")."""
    assert api.create_cut(ID).idempotent
    assert api.create_render(ID, {"format": "mp3"}).idempotent
    assert not api.create_asset(ID, 64).idempotent


def test_an_export_is_asked_for_in_the_users_words() -> None:
    asked = api.export_cut(ID, "fcpxml", frame_rate=29.97).request
    assert (asked.target, asked.params) == (f"/v1/cuts/{ID}/export", {"format": "fcpxml", "frame_rate": "29.97"})
    assert api.export_cut(ID, "edl").request.params == {"format": "edl"}
    asked = api.export_subtitles(ID).request
    assert (asked.target, asked.params) == (f"/v1/cuts/{ID}/subtitle/export", {"format": "srt"})


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ('attachment; filename="talk.edl"', "talk.edl"),
        ("attachment; filename*=UTF-8''%C3%BCber.edl", "über.edl"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="C:\\\\talk.edl"', "talk.edl"),
        ("attachment", None),
        ("", None),
    ],
)
def test_an_export_names_its_file_and_no_folder(disposition: str, filename: str | None) -> None:
    headers = {"content_type": "text/plain; charset=utf-8", "content_disposition": disposition}
    export = api.decipher(api.export_cut(ID, "edl"), reply(200, b"TITLE: talk", **headers))
    assert (export.content, export.filename) == (b"TITLE: talk", filename)
    assert "TITLE" not in repr(export)


def test_a_web_page_is_no_export() -> None:
    page = reply(200, b"<html>Log in to the Wi-Fi</html>", content_type="text/html; charset=utf-8")
    assert type(raised(page, api.export_cut(ID, "edl"))) is exceptions.RoughyProtocolError


def test_update_of_a_project_sends_only_the_changes() -> None:
    assert api.update_project(ID, state="archived").request.json == {"state": "archived"}
    with pytest.raises(exceptions.RoughyConfigurationError, match="Nothing to change"):
        api.update_project(ID)


def test_an_id_is_asked_for_as_roughy_writes_it() -> None:
    for spelling in (ID.upper(), ID.replace("-", ""), f"{{{ID}}}"):
        assert api.resource_id("asset_id", spelling) == ID
        assert api.get_asset(spelling).request.target == f"/v1/assets/{ID}"


def test_the_names_of_the_first_version_are_still_here() -> None:
    names = """
        MAX_UPLOAD_BYTES MIN_UPLOAD_BYTES PAGE_SIZE TUS_HEADERS Call Page Reply Request RoughyAsset RoughyProject
        cancel_upload create_asset create_project decipher delete_asset get_asset get_credit_balance get_project
        language_code list_assets list_projects read_offset retry_after send_bytes
    """
    assert set(names.split()) <= set(api.__all__)
    assert {"AsyncClient", "Backoff", "Client", "DEFAULT_BASE_URL", "Settings"} <= set(client.__all__)


def test_an_asset_without_its_url_is_known_all_the_same() -> None:
    """It can be deleted, which one whose reply counts as broken could not."""
    assert api.decipher(api.create_asset(ID, 64), reply(201, ASSET)).id == ID


def test_every_secret_is_kept_from_sight_by_one_word() -> None:
    resources = [cls for cls in vars(api).values() if isinstance(cls, type) and issubclass(cls, api.Resource)]
    assert {api.RoughyAsset, api.RoughyRender} < set(resources)
    for cls in resources:
        for entry in fields(cls):
            assert ("secret" in entry.metadata) == entry.name.endswith(("_url", "_secret")), entry.name


def test_field_of_another_type_is_decoded_by_its_name() -> None:
    @dataclass(frozen=True)
    class Measured(Resource):
        duration_seconds: float | None = None
        level: float | None = None
        _decoders: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"level": decode.integer}

    read = Measured.from_json({"id": ID, "duration_seconds": "1.5", "level": 3})
    assert (read.duration_seconds, read.level) == (decode.decimal("1.5"), 3)


def test_field_that_nothing_decodes_is_named_before_a_request_is_sent() -> None:
    @dataclass(frozen=True)
    class Measured(Resource):
        level: float | None = None

    for parser in (lambda: parse_as(Measured), lambda: parse_page_of(Measured, limit=1, offset=0)):
        with pytest.raises(TypeError, match=r"Measured\.level .*`_decoders`.* type 'float \| None'"):
            parser()


def test_reply_with_a_missing_part_is_explained_in_words() -> None:
    with pytest.raises(exceptions.RoughyProtocolError, match=r"GET /v1/assets: .* 'items' is missing"):
        api.decipher(api.list_assets(), reply(200, {"total": 1}))


@pytest.mark.parametrize(
    ("call", "made"),
    [
        (api.get_asset(ID), {**ASSET, "id": OTHER}),
        (api.get_cut(ID), {"id": OTHER, "asset_id": ID, "state": "completed"}),
        (api.create_cut(ID), {"id": ID, "asset_id": OTHER, "state": "completed"}),
        (api.get_render(ID), {"id": OTHER, "asset_id": ID, "state": "completed"}),
        (api.create_render(ID, {"format": "mp4"}), {"id": ID, "asset_id": OTHER, "state": "completed"}),
        (api.create_render(ID, {"format": "mp4"}), {"id": ID, "asset_id": ID, "cut_id": OTHER, "state": "completed"}),
        (
            api.create_render(ID, {"format": "mp4"}, cut_id=ID),
            {"id": ID, "asset_id": ID, "cut_id": None, "state": "completed"},
        ),
        (
            api.create_render(ID, {"format": "mp4"}, cut_id=ID),
            {"id": ID, "asset_id": ID, "cut_id": OTHER, "state": "completed"},
        ),
        (api.get_project(ID), {"id": OTHER}),
        (api.update_project(ID, name="a"), {"id": OTHER}),
    ],
    ids=range(10),
)
def test_a_reply_about_another_resource_is_refused(call: api.Call[Any], made: dict[str, Any]) -> None:
    times = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    rest = {"output": {}, "name": "a", "state": "active", **times}
    assert "it is about another resource" in str(raised(reply(200, {**rest, **made}), call))


@pytest.mark.parametrize("asked", [{}, {"cut_id": ID}], ids=["asset", "cut"])
def test_a_reply_without_an_id_that_it_may_leave_out_is_accepted(asked: dict[str, Any]) -> None:
    made = {"id": OTHER, "asset_id": ID.upper(), "state": "pending", "created_at": "2026-01-01T00:00:00Z", "output": {}}
    assert api.decipher(api.create_render(ID, {"format": "mp4"}, **asked), reply(201, made)).id == OTHER


@pytest.mark.parametrize(
    "text",
    [
        "https://s/x?X-Amz-Signature=needle",
        "HTTPS://s/x?a=1&X-Amz-Signature=needle",
        "'https://s/it's.mp4?X-Amz-Signature=needle'",
        "https://s/x?f='a'&X-Amz-Signature=needle",
        "GET /bucket/key?X-Amz-Signature=needle",
        "storage.example/key?X-Amz-Signature=needle",
        "https%3A%2F%2Fs%2Fk%3FX-Amz-Signature%3Dneedle",
        'https://s/x?a=1\\u0026sig=needle"',
        "https://s/x?a=1&amp;sig=needle",
        "https://s/x?download&X-Amz-Signature=needle",
        "https://s/x?needle",
        "https://s/x#access_token=needle",
        "https://user:needle@s/x",
        "https://user:need@needle@s/x",
        "what?https://s/x?needle",
        "/bucket/key?a[0]=1&sig=needle",
        "/bucket/key?a;b&sig=needle",
        "/bucket/key?=x&sig=needle",
        "https%3A%2F%2Fs%2Fk%3Fdownload%26sig%3Dneedle",
    ],
)
def test_a_signature_in_an_error_is_not_shown(text: str) -> None:
    for error in (
        raised(reply(400, envelope("bad_request", f"words {text} more"))),
        raised(reply(422, {"error": {"code": "validation_error", "fields": [{"field": "a", "message": text}]}})),
        exceptions.RoughyAssetFailedError(ID, error_code="odd", error_message=text),
    ):
        assert "needle" not in f"{error} {error!r} {vars(error)}"
    asset = RoughyAsset.from_json({**ASSET, "error_message": f"Why? {text}"})
    assert "Why?" in str(asset.error_message)
    assert "needle" not in f"{asset!r} {asset.to_dict()}"


@pytest.mark.parametrize(
    "text",
    ["Option #frame_rate=24 is unsupported", "cannot read '/data/take#2=b.mp4'", "Why? Ask s3://bucket/a?b", "a?"],
)
def test_words_that_are_no_signature_are_shown(text: str) -> None:
    assert exceptions.without_queries(text) == text


def test_a_long_error_is_searched_for_signatures_at_once() -> None:
    for text in ("http://a" * 100_000, "?" * 500_000, "?a" * 300_000, "%3F%" * 200_000):
        began = time.process_time()
        exceptions.without_queries(text)
        assert time.process_time() - began < 10
