"""Verify that Roughy signed a request, and read its content. This module uses neither Airflow nor the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from standardwebhooks import Webhook, WebhookVerificationError

from airflow_provider_roughy.api import decode, resource_id
from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyWebhookError

T = TypeVar("T")

#: Patterns for the headers of a signed request, by the end of their names.
_HEADERS = {
    "id": re.compile(r"[\w.~-]{1,255}", re.ASCII),
    "timestamp": re.compile(r"[0-9]{1,12}"),
    # Several signatures while a secret is rotated, of any version.
    "signature": re.compile(r"[!-~ ]{1,4096}"),
}
#: Prefixes of the header names: the usual one, and that of a white-labelled sender.
_PREFIXES = ("svix-", "webhook-")
#: A signature of version 1, the only one that is supported.
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")

#: A key of at least 16 bytes, so that a made-up password is refused.
_SECRET = re.compile(r"(whsec_)?[A-Za-z0-9+/]{22,}={0,2}")

_TYPE = re.compile(r"[a-z_]{1,50}\.[a-z_]{1,50}")
#: An id or a state.
_WORD = re.compile(r"[\w.~:-]{1,255}", re.ASCII)
#: Errors from a malformed body: no JSON, no UTF-8, a number of 5,000 digits, missing fields, deep nesting.
_PARSE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, RecursionError, RoughyConfigurationError)


@dataclass(frozen=True)
class RoughyWebhook:
    """The content of a webhook (API page "Webhooks").

    :param id: The id of the message (``svix-id``), the same for each delivery.
    :param type: The event, such as ``asset.ready``.
    :param entity_id: The asset, cut or render that the event concerns.
    :param asset_id: The asset, or the asset to which the cut or render belongs.
    :param previous_state: For ``asset.ready``, the state before it, if Roughy sends it.
    """

    id: str
    type: str
    entity_id: str
    asset_id: str
    previous_state: str | None = None


def signing_secrets(text: str) -> list[str]:
    """Return the secrets in the field ``webhook_secret`` of a connection: several while a secret is rotated.

    :param text: The secrets as Roughy displays them (``whsec_…``), separated by spaces.
    :raises RoughyConfigurationError: If one of them is not a signing secret; the error does not contain it.
    """
    secrets = text.split()
    for secret in secrets:
        # A single last character of base64 encodes no byte.
        if not _SECRET.fullmatch(secret) or len(secret.removeprefix("whsec_").rstrip("=")) % 4 == 1:
            raise RoughyConfigurationError(
                "webhook_secret is not a signing secret of a webhook; copy the whole value (whsec_…) from Roughy"
            )
    return secrets


def message_id(headers: Iterable[tuple[str, str]]) -> str:
    """Return the id of a message, which is the same for each delivery, from the headers of a signed request.

    :param headers: Names, in any case, and values; ``svix-…`` or ``webhook-…``.
    :raises RoughyWebhookError: If a header is missing, given twice or malformed.
    """
    return _signed_headers(headers)["webhook-id"]


def verify(headers: Iterable[tuple[str, str]], body: bytes, secrets: Mapping[T, str]) -> T:
    """Check that a request was signed with one of several secrets, within the last five minutes.

    :param headers: As for :func:`message_id`.
    :param body: The body, byte for byte.
    :param secrets: The secrets, as for :func:`signing_secrets`, by any key, such as the name of an account.
    :returns: The key of the secret that fits.
    :raises RoughyWebhookError: If no secret fits.
    :raises RoughyConfigurationError: If a secret is not a signing secret.
    """
    signed = _signed_headers(headers)
    for name, text in secrets.items():
        for secret in signing_secrets(text):
            try:
                Webhook(secret).verify(body, signed, json_parse=False)
            except (WebhookVerificationError, ValueError):  # Malformed UTF-8 or base64.
                continue
            return name
    raise RoughyWebhookError("No secret fits the signature, or the signature is more than five minutes old")


def event_type(body: bytes) -> str:
    """Return the type of a verified webhook, such as ``asset.ready``, whatever other fields it has.

    Roughy may add types, with other fields. A receiver should acknowledge types that it does not know: otherwise Roughy
    repeats them, and finally disables the endpoint.

    :param body: The body of the request.
    :raises RoughyWebhookError: If the body is not a webhook of Roughy.
    """
    try:
        return _text("type", decode.loads(body)["type"])
    except _PARSE_ERRORS as err:
        raise _malformed(err) from None


def parse(body: bytes, *, id: str) -> RoughyWebhook:
    """Return the content of a verified webhook.

    :param body: The body of the request.
    :param id: The id of the message, from :func:`message_id`.
    :raises RoughyWebhookError: If the body is not a webhook of Roughy, or its type has other fields.
    """
    try:
        content = _read(body)
        data = content["data"]
        previous = data.get("previous_state")
        asset_id = resource_id("asset_id", data["asset_id"])
        # The API page does not promise this field in events of assets.
        entity_id = data.get("entity_id")
        return RoughyWebhook(
            id=id,
            type=_matching("type", _TYPE, content["type"]),
            entity_id=asset_id if entity_id is None else _matching("entity_id", _WORD, entity_id),
            asset_id=asset_id,
            previous_state=None if previous is None else _matching("previous_state", _WORD, previous),
        )
    except _PARSE_ERRORS as err:
        raise _malformed(err) from None


def _malformed(error: Exception) -> RoughyWebhookError:
    """Return the error of a body, which says what is wrong with it and does not quote it."""
    if isinstance(error, KeyError):
        why = f"its field {error} is missing"
    elif isinstance(error, RoughyConfigurationError):
        why = "its 'asset_id' is not a UUID"
    elif isinstance(error, _OddFieldError):
        why = str(error)
    elif isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, RecursionError)):
        why = "it is not JSON that can be read"
    else:
        why = "it is not a JSON object with an object `data`"
    return RoughyWebhookError(f"The body is not a webhook of Roughy: {why}")


class _OddFieldError(ValueError):
    """A field has another form than Roughy's documentation promises. The message does not quote its value."""


def _signed_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the three headers of a signature, by the names that ``standardwebhooks`` expects."""
    given: dict[str, list[str]] = {}
    for name, value in headers:
        given.setdefault(name.lower(), []).append(value.strip())
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}id" in given), _PREFIXES[0])
    signed = {}
    for name, pattern in _HEADERS.items():
        values = given.get(prefix + name, [])
        # Of a header that is given twice, two readers may use different values.
        if len(values) != 1 or not pattern.fullmatch(values[0]):
            raise RoughyWebhookError(f"The header {prefix}{name} is missing, given twice or malformed")
        signed[f"webhook-{name}"] = values[0]
    # The library raises an error at a signature of another version.
    known = [each for each in signed["webhook-signature"].split() if _SIGNATURE.fullmatch(each)]
    if not known:
        raise RoughyWebhookError(f"The header {prefix}signature has no signature of version 1")
    return signed | {"webhook-signature": " ".join(known)}


def _read(body: bytes) -> Any:
    return json.loads(body.decode(), object_pairs_hook=_without_duplicates)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _OddFieldError(f"its {name!r} is not text")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _OddFieldError("a key is given twice")
    return found


def _matching(name: str, pattern: re.Pattern[str], value: Any) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _OddFieldError(f"its {name!r} has another form than Roughy documents")
    return value
