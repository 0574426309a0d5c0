"""Webhooks are verified and read as Svix and Standard Webhooks document it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyWebhookError
from airflow_provider_roughy.settings import Settings
from airflow_provider_roughy.webhooks import RoughyWebhook, event_type, message_id, parse, signing_secrets, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + base64.b64encode(b"another secret, of 24 b.").decode()
ASSET_ID = "019d0000-0000-7000-8000-000000000001"
BODY = json.dumps({"type": "asset.ready", "data": {"entity_id": ASSET_ID, "asset_id": ASSET_ID}}).encode()


def signed(
    body: bytes = BODY, *, secret: str = SECRET, id: str = "msg_1", age: float = 0, prefix: str = "svix-"
) -> dict[str, str]:
    """Sign as the page of Standard Webhooks describes, without the library."""
    timestamp = int(time.time() - age)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        f"{prefix}id": id,
        f"{prefix}timestamp": str(timestamp),
        f"{prefix}signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def verified(headers: dict[str, str], body: bytes = BODY) -> str:
    return verify(headers.items(), body, {"ours": SECRET})


def test_signature_of_the_published_example_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Then:
            return cls.fromtimestamp(1614265330, tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Then)
    headers = {
        "svix-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "svix-timestamp": "1614265330",
        "svix-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert verified(headers, b'{"test": 2432232314}') == "ours"
    with pytest.raises(RoughyWebhookError):
        verified(headers, b'{"test": 2432232315}')


@pytest.mark.parametrize("prefix", ["svix-", "webhook-", "Svix-", "WEBHOOK-"])
def test_headers_of_either_prefix_are_accepted(prefix: str) -> None:
    assert verified(signed(prefix=prefix)) == "ours"
    assert message_id(signed(prefix=prefix).items()) == "msg_1"


def test_verify_returns_the_key_of_the_secret() -> None:
    secrets = {1: OTHER_SECRET, 2: f"{OTHER_SECRET} {SECRET}"}
    assert verify(signed().items(), BODY, secrets) == 2
    assert verify(signed(secret=OTHER_SECRET).items(), BODY, secrets) == 1


def test_one_valid_signature_of_several_is_enough() -> None:
    headers = signed()
    fitting = headers["svix-signature"]
    other = signed(secret=OTHER_SECRET)["svix-signature"]
    headers["svix-signature"] = f"v1a,ed25519== garbage v1,!!! {other} {fitting}"
    assert verified(headers) == "ours"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: signed(secret=OTHER_SECRET), id="wrong secret"),
        pytest.param(lambda: signed(age=400), id="old"),
        pytest.param(lambda: signed(age=-400), id="from the future"),
        pytest.param(lambda: signed(b"{}"), id="another body"),
        pytest.param(lambda: {**signed(), "svix-id": "msg_2"}, id="another id"),
        pytest.param(lambda: {**signed(), "svix-timestamp": str(int(time.time()) + 1)}, id="another time"),
        pytest.param(lambda: {**signed(), "svix-id": "../../etc"}, id="no id"),
        pytest.param(lambda: {**signed(), "svix-timestamp": "yesterday"}, id="no time"),
        pytest.param(lambda: {**signed(), "svix-timestamp": "nan"}, id="a time that is no number"),
        pytest.param(lambda: {**signed(), "svix-timestamp": "9" * 400}, id="a time beyond all times"),
        pytest.param(lambda: {**signed(), "svix-signature": "v1"}, id="a signature without a comma"),
        pytest.param(lambda: {**signed(), "svix-signature": "v1,A"}, id="base64 that is none"),
        pytest.param(lambda: {**signed(), "svix-signature": "v1,\u00e9"}, id="not ASCII"),
        pytest.param(lambda: {**signed(), "svix-signature": "v1," * 10_000}, id="an endless signature"),
        pytest.param(lambda: {name: value for name, value in signed().items() if name != "svix-signature"}, id="none"),
        pytest.param(lambda: {"webhook-signature": signed()["svix-signature"], **signed(prefix="x-")}, id="a mixture"),
        pytest.param(lambda: {}, id="nothing"),
    ],
)
def test_invalid_signatures_are_refused(make: Callable[[], dict[str, str]]) -> None:
    headers = make()
    with pytest.raises(RoughyWebhookError):
        verified(headers)


def test_header_given_twice_is_refused() -> None:
    headers = [*signed().items(), ("svix-id", "msg_1")]
    with pytest.raises(RoughyWebhookError):
        verify(headers, BODY, {"ours": SECRET})


def test_body_that_is_not_utf_8_is_refused() -> None:
    body = b'{"type": "\xff"}'
    with pytest.raises(RoughyWebhookError):
        verified(signed(body), body)


@given(
    headers=some.lists(
        some.tuples(some.sampled_from(["svix-id", "svix-timestamp", "svix-signature", "webhook-id"]), some.text())
    ),
    body=some.binary(),
)
def test_random_headers_and_bodies_are_refused(headers: list[tuple[str, str]], body: bytes) -> None:
    with pytest.raises(RoughyWebhookError):
        verify(headers, body, {"ours": SECRET})
    with pytest.raises(RoughyWebhookError):
        parse(body, id="msg_1")


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!", "whsec_\u00e9", "tiger", SECRET + "A"])
def test_malformed_secret_is_refused_without_showing_it(secret: str) -> None:
    for use in (signing_secrets, lambda text: verify(signed().items(), BODY, {"ours": text})):
        with pytest.raises(RoughyConfigurationError) as caught:
            use(secret)
        assert secret not in str(caught.value).replace("whsec_…", "")


def test_secret_without_prefix_and_padding_is_accepted() -> None:
    bare = base64.b64encode(b"a secret of some 25 bytes").decode()
    assert bare.endswith("=")
    for secret in (bare, bare.rstrip("="), f"whsec_{bare}"):
        assert verify(signed(secret=bare).items(), BODY, {"ours": secret}) == "ours"


def test_parse_returns_the_fields_of_a_webhook() -> None:
    cut = "019d0000-0000-7000-8000-0000000000c1"
    body = {"type": "cut.completed", "data": {"entity_id": cut, "asset_id": ASSET_ID.upper()}}
    assert parse(json.dumps(body).encode(), id="m") == RoughyWebhook("m", "cut.completed", cut, ASSET_ID)
    body = {
        "type": "asset.ready",
        "data": {"entity_id": ASSET_ID, "asset_id": ASSET_ID, "previous_state": "pending_payment", "new": 1},
        "new": [],
    }
    found = parse(json.dumps(body).encode(), id="m")
    assert found == RoughyWebhook("m", "asset.ready", ASSET_ID, ASSET_ID, "pending_payment")


@pytest.mark.parametrize("body", [BODY.replace(f'"entity_id": "{ASSET_ID}", '.encode(), b""), b""])
def test_entity_id_defaults_to_the_asset(body: bytes) -> None:
    assert parse(body or changed(entity_id=None), id="m") == RoughyWebhook("m", "asset.ready", ASSET_ID, ASSET_ID)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param('"data": {"n": ' + "9" * 5000 + "}", id="a huge number"),
        pytest.param('"data": {"n": [NaN, -Infinity, 1e999]}', id="numbers that are none"),
        pytest.param('"data": ' + '{"a":' * 10_000 + "1" + "}" * 10_000, id="deep objects"),
        pytest.param('"data": {"a": 1, "a": 2}', id="a key twice"),
        pytest.param('"data": {"a": "\\ud800\\u0000"}', id="half a character"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_event_type_is_read_whatever_other_fields_there_are(more: str, mark: bytes) -> None:
    assert event_type(mark + f'{{"type": "recording.transcribed", {more}}}'.encode()) == "recording.transcribed"


def changed(**fields: Any) -> bytes:
    content = json.loads(BODY)
    data = {name: fields.pop(name) for name in list(fields) if name != "type"}
    return json.dumps({**content, **fields, "data": content["data"] | data}).encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'"asset.ready"', id="text"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(b'{"type": "asset.ready"}', id="no data"),
        pytest.param(b'{"type": "asset.ready", "data": []}', id="data of another kind"),
        pytest.param(b"\xff\xfe{\x00}\x00", id="UTF-16"),
        pytest.param(b"[" * 65_000, id="deep"),
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, id="deep objects"),
        pytest.param(BODY.replace(b'"type"', b'"n": ' + b"9" * 60_000 + b', "type"'), id="a huge number"),
        pytest.param(BODY.replace(b'"type"', b'"type": "asset.failed", "type"'), id="a key twice"),
        pytest.param(BODY.replace(b'"entity_id"', b'"asset_id": "x", "entity_id"'), id="an inner key twice"),
        pytest.param(changed(type="\ud800.ready"), id="half a character"),
        pytest.param(changed(type=1), id="a type that is a number"),
        pytest.param(changed(type="a" * 1000 + ".b"), id="an endless type"),
        pytest.param(changed(asset_id=1), id="an id that is a number"),
        pytest.param(changed(asset_id="../v1/users"), id="an id that is a path"),
        pytest.param(changed(entity_id=["a"]), id="an id that is a list"),
        pytest.param(changed(entity_id="a\nb"), id="an id of two lines"),
        pytest.param(changed(previous_state={}), id="a state that is none"),
    ],
)
def test_malformed_bodies_are_refused_with_a_short_error(body: bytes) -> None:
    with pytest.raises(RoughyWebhookError) as caught:
        parse(body, id="msg_1")
    assert len(str(caught.value)) < 100


def test_repr_of_settings_hides_the_webhook_secret() -> None:
    fields: dict[str, Any] = {"host": None, "schema": None, "port": None, "password": "sk_key"}
    settings = Settings.from_connection(**fields, extra={"webhook_secret": f" {SECRET} ", "webhook_asset": ""})
    assert (settings.webhook_secret, settings.webhook_asset) == (SECRET, "roughy_media")
    assert SECRET not in repr(settings)
    with pytest.raises(RoughyConfigurationError):
        Settings.from_connection(**fields, extra={"webhook_secret": ["whsec_needle"]})
