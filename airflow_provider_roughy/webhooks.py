"""Roughy's webhooks: whether a request is one, and what it says. Knows neither Airflow nor the network.

Roughy delivers by Svix, which signs as Standard Webhooks do (API page "Webhooks"; standardwebhooks.com). In a receiver
of your own::

    headers = request.headers.items()
    account = verify(headers, body, {"production": "whsec_…"})
    event = parse(body, id=message_id(headers))

An event is a nudge: what became of the resource, only Roughy's API says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from standardwebhooks import Webhook, WebhookVerificationError

from airflow_provider_roughy.api import resource_id
from airflow_provider_roughy.exceptions import RoughyConfigurationError, RoughyWebhookError

T = TypeVar("T")

#: What the headers of a signed request look like, by the end of their names.
_HEADERS = {
    "id": re.compile(r"[\w.~-]{1,255}", re.ASCII),
    "timestamp": re.compile(r"[0-9]{1,12}"),
    # Several, while secrets are rotated; of whatever version.
    "signature": re.compile(r"[!-~ ]{1,4096}"),
}
#: The usual names, and those of a white-labelled sender.
_PREFIXES = ("svix-", "webhook-")
#: The one version of signatures that is known.
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")

#: A key of 16 bytes at least, so that a word somebody made up is none.
_SECRET = re.compile(r"(whsec_)?[A-Za-z0-9+/]{22,}={0,2}")

_TYPE = re.compile(r"[a-z_]{1,50}\.[a-z_]{1,50}")
#: Ids and states.
_WORD = re.compile(r"[\w.~:-]{1,255}", re.ASCII)


@dataclass(frozen=True)
class RoughyWebhook:
    """What a webhook says (API page "Webhooks").

    :param id: The message, the same each time that it is delivered: ``svix-id``.
    :param type: What happened, such as ``asset.ready``.
    :param entity_id: What it happened to: an asset, a cut or a render.
    :param asset_id: The asset that this is or belongs to.
    :param previous_state: For ``asset.ready``, the state that it was in before.
    """

    id: str
    type: str
    entity_id: str
    asset_id: str
    previous_state: str | None = None


def signing_secrets(text: str) -> list[str]:
    """Return the secrets of a connection's ``webhook_secret``: one, or several while they are rotated.

    :param text: As Roughy shows them (``whsec_…``), separated by spaces.
    :raises RoughyConfigurationError: If one of them is none; it is not shown.
    """
    secrets = text.split()
    for secret in secrets:
        # In base64, a last character alone stands for nothing.
        if not _SECRET.fullmatch(secret) or len(secret.removeprefix("whsec_").rstrip("=")) % 4 == 1:
            raise RoughyConfigurationError("webhook_secret is no signing secret of a webhook (whsec_…)")
    return secrets


def message_id(headers: Iterable[tuple[str, str]]) -> str:
    """Return the id of a message, by which repetitions are told, if the headers look like those of a signed request.

    :param headers: Names, in any case, and values; ``svix-…`` or ``webhook-…``.
    :raises RoughyWebhookError: If they do not.
    """
    return _signed_headers(headers)["webhook-id"]


def verify(headers: Iterable[tuple[str, str]], body: bytes, secrets: Mapping[T, str]) -> T:
    """Check that a request was signed within the last five minutes by somebody who knows a secret.

    :param headers: As for :func:`message_id`.
    :param body: The body, byte for byte.
    :param secrets: The secrets to try, as for :func:`signing_secrets`, by whose they are.
    :returns: Whose secret it was.
    :raises RoughyWebhookError: If it was not.
    :raises RoughyConfigurationError: If a secret is none.
    """
    signed = _signed_headers(headers)
    for name, text in secrets.items():
        for secret in signing_secrets(text):
            try:
                Webhook(secret).verify(body, signed, json_parse=False)
            except (WebhookVerificationError, ValueError):  # A body that is no UTF-8, base64 that is none.
                continue
            return name
    raise RoughyWebhookError("No secret fits the signature, or it is more than five minutes old")


def parse(body: bytes, *, id: str) -> RoughyWebhook:
    """Read the body of a request that was verified.

    :param body: The body.
    :param id: The id of the message.
    :raises RoughyWebhookError: If it is not what Roughy sends.
    """
    try:
        content = json.loads(body.decode(), object_pairs_hook=_without_duplicates)
        data = content["data"]
        previous = data.get("previous_state")
        asset_id = resource_id("asset_id", data["asset_id"])
        # Of what happens to an asset, the API page does not say that this is named.
        entity_id = data.get("entity_id")
        return RoughyWebhook(
            id=id,
            type=_matching(_TYPE, content["type"]),
            entity_id=asset_id if entity_id is None else _matching(_WORD, entity_id),
            asset_id=asset_id,
            previous_state=None if previous is None else _matching(_WORD, previous),
        )
    # Not JSON, not UTF-8, a number of 5,000 digits; another shape; brackets within brackets.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, RoughyConfigurationError) as err:
        raise RoughyWebhookError(f"The webhook is none of Roughy's: {type(err).__name__}") from None


def _signed_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers of a signature, under the names that the library knows."""
    given: dict[str, list[str]] = {}
    for name, value in headers:
        given.setdefault(name.lower(), []).append(value.strip())
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}id" in given), _PREFIXES[0])
    signed = {}
    for name, pattern in _HEADERS.items():
        values = given.get(prefix + name, [])
        # Given twice, two readers may take two of them.
        if len(values) != 1 or not pattern.fullmatch(values[0]):
            raise RoughyWebhookError(f"The request bears no {prefix}{name}, or one that is none")
        signed[f"webhook-{name}"] = values[0]
    # The library stumbles over what it does not know.
    known = [each for each in signed["webhook-signature"].split() if _SIGNATURE.fullmatch(each)]
    if not known:
        raise RoughyWebhookError(f"The request bears no signature of version 1 in {prefix}signature")
    return signed | {"webhook-signature": " ".join(known)}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError("another kind of text was expected")
    return value
