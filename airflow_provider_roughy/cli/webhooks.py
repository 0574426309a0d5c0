"""``webhooks …``: the endpoints at Roughy, and whether Airflow's route takes what Roughy signs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from airflow_provider_roughy.cli.running import CommandError, confirm, fields_of, open_hook, print_rows, say
from airflow_provider_roughy.compat import conf
from airflow_provider_roughy.lifecycle import ASSET
from airflow_provider_roughy.settings import Address
from airflow_provider_roughy.webhooks.messages import signing_secrets

if TYPE_CHECKING:
    import argparse

    from airflow_provider_roughy.settings import Settings

#: Seconds that the route may take to answer.
_SECONDS = 15.0
#: The type of a test message, which no receiver acts on.
_TEST_TYPE = "roughy.test"


def list_endpoints(args: argparse.Namespace) -> int:
    """List webhook endpoints."""
    with open_hook(args) as hook:
        rows = [fields_of(endpoint) for endpoint in hook.list_webhook_endpoints()]
    print_rows(args, rows, columns=("id", "url", "event_types", "description"))
    return 0


def create(args: argparse.Namespace) -> int:
    """Create a webhook endpoint."""
    events = args.event or [f"asset.{state}" for state in ASSET.ends]
    with open_hook(args) as hook:
        endpoint = hook.create_webhook_endpoint(args.url, events, args.description)
    print_rows(args, [fields_of(endpoint)], columns=("id", "url", "event_types"))
    say(
        args,
        f"Copy its signing secret (whsec_…) from Roughy's dashboard into `webhook_secret` of connection "
        f"{args.conn_id!r}, and run `webhooks test`",
    )
    return 0


def delete(args: argparse.Namespace) -> int:
    """Delete webhook endpoints."""
    with open_hook(args) as hook:
        there = {endpoint.id: endpoint for endpoint in hook.list_webhook_endpoints()}
        if missing := [id for id in args.endpoint_id if id not in there]:
            raise CommandError(f"The account has no webhook endpoint {missing[0]}. Nothing was deleted")
        listed = ", ".join(f"{id} ({there[id].url})" for id in args.endpoint_id)
        confirm(args, f"Delete {listed}? Roughy then sends it nothing more.")
        for id in args.endpoint_id:
            hook.delete_webhook_endpoint(id)
            say(args, f"Deleted webhook endpoint {id}")
    return 0


def test(args: argparse.Namespace) -> int:
    """Send a signed message to Airflow's route."""
    with open_hook(args) as hook:
        answer = send_test(hook.settings, args.url or route())
    row = {
        "url": answer.url,
        "answer": answer.status,
        "error": answer.error,
        "ok": answer.ok,
        "meaning": answer.meaning,
    }
    print_rows(args, [row])
    return int(not answer.ok)


# ---- The route


@dataclass(frozen=True)
class Answer:
    """What the route has answered to a test message.

    :param url: The route.
    :param status: The HTTP status; ``None`` if there was no answer.
    :param error: Why there was no answer.
    :param ok: Whether it takes what Roughy signs.
    :param meaning: What the answer means, and what to do.
    """

    url: str
    status: int | None
    ok: bool
    meaning: str
    error: str = ""

    @property
    def words(self) -> str:
        """What the route has done."""
        return f"{self.url} answers {self.status}" if self.status is not None else f"{self.url}: {self.error}"


def route() -> str:
    """Return the address of the route by Airflow's configuration.

    :raises CommandError: If the configuration does not have it.
    """
    base = conf.get("api", "base_url", fallback="") or conf.get("webserver", "base_url", fallback="")
    if not base:
        raise CommandError("Airflow's [api] base_url is not set: give --url, the address of the route")
    return f"{base.rstrip('/')}/roughy/webhooks"


def send_test(settings: Settings, url: str) -> Answer:
    """Send a signed message of a type that makes no event to the route.

    :param settings: The connection, whose secret signs it. The secret itself is not sent.
    :param url: The route.
    :raises CommandError: If there is no secret, or the address is malformed.
    :raises RoughyConfigurationError: If the secret is malformed.
    """
    secrets = signing_secrets(settings.webhook_secret or "")
    if not secrets:
        raise CommandError(
            f"Connection {settings.conn_id!r} has no `webhook_secret`: copy the signing secret (whsec_…) of the "
            "endpoint from Roughy's dashboard"
        )
    if Address.of(url) is None:
        raise CommandError(
            "The address of the route is not an http or https URL: correct --url, or Airflow's [api] base_url"
        )
    from standardwebhooks import Webhook

    id, now = f"msg_test_{uuid4().hex}", datetime.now(UTC)
    body = json.dumps({"type": _TEST_TYPE, "data": {}})
    headers = {
        "svix-id": id,
        "svix-timestamp": str(int(now.timestamp())),
        "svix-signature": Webhook(secrets[0]).sign(id, now, body),
        "Content-Type": "application/json",
        "User-Agent": "airflow-provider-roughy",
    }
    request = urllib.request.Request(url, body.encode(), headers, method="POST")
    try:
        with _opener(url).open(request, timeout=_SECONDS) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        error.close()
        status = error.code
    except OSError as error:
        words = f"no answer ({getattr(error, 'reason', error)})"
        return Answer(url, None, False, "start the API server, let requests through to it, or give its address", words)
    return Answer(url, status, status == 204, _meaning(status, settings.conn_id))


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Return what sends the request: no redirect is followed, and nothing for this machine goes to a proxy."""

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args: object) -> None:
            return None

    address = Address.of(url)
    proxies = urllib.request.ProxyHandler({}) if address is not None and address.is_loopback else None
    return urllib.request.build_opener(NoRedirect, *([proxies] if proxies is not None else []))


def _meaning(status: int, conn_id: str | None) -> str:
    match status:
        case 204:
            return "the route takes what Roughy signs"
        case 401:
            return (
                "the API server has another secret, or another clock: compare `webhook_secret` of connection "
                f"{conn_id!r} as the API server reads it"
            )
        case 404 | 405:
            return (
                "no connection takes webhooks there, or this is not the route: set `webhook_secret`, name the "
                "connection in [roughy] webhook_conn_ids, install the package where the API server runs, and restart it"
            )
        case 429 | 503:
            return "the API server is overloaded, or cannot read the connection now: try again, and read its log"
        case 301 | 302 | 303 | 307 | 308:
            return "it redirects, which Roughy does not follow: give the address that it leads to, with https"
        case _:
            return "something in front of Airflow answers: let POST requests to this path through"
