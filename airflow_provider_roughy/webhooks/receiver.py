"""The receiver of Roughy's webhooks: the route ``POST /roughy/webhooks`` in Airflow 3's API server.

Requests are anonymous, so a request costs little until its signature is verified: no database, no log line of its own,
a body of 64 KiB at most. Only the asset id of a verified webhook is used; the asset's state is read from Roughy's API.
The answer is 204 once the event is stored in Airflow's database. The receiver answers 503 to every error before that,
and Roughy delivers again, for about 28 hours.

There is one event for each state of an asset, whichever messages and watchers report it. The receiver reads from
Airflow's database which DAGs still have to be started for an event: when it has stored the event, some seconds later,
and when the API server starts (:func:`~airflow_provider_roughy.airflow_db.queue_unconsumed`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from airflow_provider_roughy.airflow_db import Announced, announce, queue_unconsumed
from airflow_provider_roughy.exceptions import RoughyError, RoughyNotFoundError, RoughyWebhookError
from airflow_provider_roughy.instruments import WEBHOOKS
from airflow_provider_roughy.lifecycle import ASSET
from airflow_provider_roughy.observability import metrics
from airflow_provider_roughy.webhooks.accounts import Account, Accounts, webhook_conn_ids
from airflow_provider_roughy.webhooks.checks import DelayedChecks
from airflow_provider_roughy.webhooks.messages import event_type, message_id, parse, verify
from airflow_provider_roughy.webhooks.throttle import LogThrottle, TokenBucket

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from airflow_provider_roughy.hooks import RoughyHook

#: Most bytes of a body; Roughy sends about 200.
MAX_BODY_BYTES = 64 * 1024
#: Seconds that a body may take to arrive.
BODY_SECONDS = 5.0
#: Seconds that a delivery may take in all: Svix gives up after 15.
_DELIVERY_SECONDS = 12.0
#: Seconds that Roughy's API may take to answer with the state of an asset.
_READ_ASSET_SECONDS = 8.0
#: Most requests at a time, from all senders.
MAX_CONCURRENT_REQUESTS = 300
#: Most requests to Roughy's API at a time.
_MAX_CONCURRENT_READS = 8
#: How many requests without a valid signature get 401: in a burst, and in each second after that. Others get 429.
REFUSALS_BURST, _REFUSALS_PER_SECOND = 100, 2.0
#: How long a message makes no second event. Svix repeats a message for 27 hours and 35 minutes.
_REPEATED_WITHIN = timedelta(hours=28)
#: The types of webhooks that make an event. The receiver acknowledges all others.
_EVENT_TYPES = frozenset(f"asset.{state}" for state in ASSET.ends)
#: Most messages that a process remembers, so that a repeated one costs no request and no query.
_MAX_REMEMBERED = 10_000
#: Seconds between two log lines about a missing setting, which anonymous requests cause.
_LOG_SETTING_SECONDS = 3600.0
#: Headers that ask the sender to retry after 5 seconds.
_LATER = {"Retry-After": "5"}
#: Headers of an answer that is sent before the body was read.
_UNREAD = {"Connection": "close"}

_FAILED = "Processing a webhook failed; Roughy delivers it again"

_log = logging.getLogger(__name__)


def build_app(receiver: Receiver | None = None) -> Starlette:
    """Return the ASGI application, which has one route and no documentation pages, and start its receiver.

    :param receiver: The receiver; by default a new one.
    """
    receiver = receiver or Receiver()
    receiver.start()
    app = Starlette(routes=[Route("/webhooks", receiver)])
    # A redirect would repeat the host name that the caller sent.
    app.router.redirect_slashes = False
    return app


class _Later(Exception):
    """Roughy should deliver this verified webhook again; the text has the reason."""


class Receiver:
    """The route, as an ASGI application."""

    def __init__(self) -> None:
        self._log = LogThrottle(_log)
        self._accounts = Accounts(self._log)
        self._open_requests = 0
        self._refusals = TokenBucket(REFUSALS_BURST, _REFUSALS_PER_SECOND)
        #: Messages that need nothing more, by connection and id, the oldest first.
        self._done: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._readers = ThreadPoolExecutor(_MAX_CONCURRENT_READS, thread_name_prefix="roughy-webhooks-ask")
        # One thread: several would wait for the same row, each with one of the API server's database connections.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="roughy-webhooks-write")
        self._checks = DelayedChecks(self._check)

    def start(self) -> None:
        """Start the DAGs that an earlier process has left waiting for events, and the metrics."""
        metrics.start()
        self._checks.begin()

    def close(self) -> None:
        """End the threads, and close the network connections."""
        self._checks.close()
        self._readers.shutdown()
        self._writer.shutdown()
        self._accounts.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; no error makes it a 500."""
        try:
            response = await self._answered(Request(scope, receive))
        except HTTPException as error:
            WEBHOOKS.add(answer=str(error.status_code))
            raise
        WEBHOOKS.add(answer=str(response.status_code))
        await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response:
        if self._open_requests >= MAX_CONCURRENT_REQUESTS:
            return Response(status_code=503, headers=_LATER | _UNREAD)
        self._open_requests += 1
        try:
            async with asyncio.timeout(_DELIVERY_SECONDS):
                return await self._answer(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=400)
        except TimeoutError:
            self._log("late", logging.WARNING, "%s: it took more than %.0f s", _FAILED, _DELIVERY_SECONDS)
        except (RoughyError, _Later) as error:
            self._log(type(error).__name__, logging.WARNING, "%s: %s", _FAILED, error)
        except Exception:
            self._log("unexpected", logging.ERROR, _FAILED, exc_info=True)
        finally:
            self._open_requests -= 1
        return Response(status_code=503, headers=_LATER)

    async def _answer(self, request: Request) -> Response:
        accounts = await self._accounts.current()
        if not accounts:
            if request.method == "POST":
                self._log_missing_setting()
            # As for a path that does not exist.
            raise HTTPException(404)
        if request.method != "POST":
            return Response(status_code=405, headers={"Allow": "POST"} | _UNREAD)
        headers = request.headers.items()
        try:
            # Before the body is read.
            id = message_id(headers)
            body = await _read(request)
            if isinstance(body, Response):
                return body
            account = verify(headers, body, {account: account.secrets for account in accounts})
        except RoughyWebhookError:
            return self._refuse()
        try:
            if event_type(body) not in _EVENT_TYPES:
                return Response(status_code=204)
            event = parse(body, id=id)
        except RoughyWebhookError as error:
            self._log("malformed", logging.WARNING, "Refused webhook %s (400), which Roughy signed: %s", id, error)
            return Response(status_code=400)
        if (account.conn_id, id) not in self._done:
            await self._deliver(account, id, event.asset_id)
            self._done[account.conn_id, id] = None
            if len(self._done) > _MAX_REMEMBERED:
                self._done.popitem(last=False)
        return Response(status_code=204)

    async def _deliver(self, account: Account, id: str, asset_id: str) -> None:
        """Store one event if the asset is ready, failed or unpaid.

        :raises _Later: If the asset is still in work, or no DAG declares the Airflow asset.
        :raises RoughyError: If the state of the asset cannot be read.
        """
        loop = asyncio.get_running_loop()
        state = await loop.run_in_executor(self._readers, _state_of, account.hook, asset_id)
        if state is None:
            conn_id = account.conn_id
            _log.warning(
                "Ignored webhook %s about asset %s, which the account of connection %r does not have: it was deleted, "
                "or `webhook_secret` of that connection is of another account",
                id,
                asset_id,
                conn_id,
            )
            return
        if state not in ASSET.ends:
            raise _Later(f"webhook {id}: asset {asset_id} is still {state}")
        name = account.settings.webhook_asset
        made = await loop.run_in_executor(self._writer, self._make_event, name, state, asset_id, id)
        if made is Announced.NO_ASSET:
            raise _Later(
                f"webhook {id}: no DAG declares the Airflow asset {name!r}, which connection {account.conn_id!r} names "
                "in `webhook_asset`. Name one there that an active DAG has as its schedule"
            )
        if made is not Announced.KNOWN:
            _log.info("Created an event of Airflow's asset %r: asset %s is %s (webhook %s)", name, asset_id, state, id)

    def _make_event(self, name: str, state: str, asset_id: str, message_id: str) -> Announced:
        def is_same(extra: dict[str, Any]) -> bool:
            payload = extra.get("payload")
            ids = payload.get(state) if isinstance(payload, dict) else None
            return extra.get("svix_id") == message_id or (isinstance(ids, list) and asset_id in ids)

        made = announce(
            name,
            {"payload": {state: [asset_id]}, "svix_id": message_id},
            words=(message_id, asset_id),
            is_same=is_same,
            within=_REPEATED_WITHIN,
        )
        # Here, not in the caller: its time may be up although the event exists.
        if made is Announced.MADE:
            self._checks.after_event(name)
        return made

    def _check(self, names: Iterable[str] | None) -> None:
        """Start the DAGs that still have to consume events of Airflow assets.

        :param names: Names of the assets; ``None`` for all that the connections name.
        """
        for name in self._accounts.asset_names() if names is None else names:
            if dag_ids := self._writer.submit(queue_unconsumed, name).result():
                _log.info("Queued %s for events of asset %r that Airflow left waiting", ", ".join(dag_ids), name)

    def _log_missing_setting(self) -> None:
        conn_ids = ", ".join(repr(conn_id) for conn_id in webhook_conn_ids())
        self._log(
            "off",
            logging.WARNING,
            "Refused a webhook (404), because no connection takes webhooks. Put the endpoint's signing secret "
            "(whsec_…) into `webhook_secret` of the connection %s, or name the connection that has it in [roughy] "
            "webhook_conn_ids (AIRFLOW__ROUGHY__WEBHOOK_CONN_IDS)",
            conn_ids,
            seconds=_LOG_SETTING_SECONDS,
        )

    def _refuse(self) -> Response:
        """Refuse a request without a valid signature. The answer does not say why."""
        self._log(
            "refused",
            logging.INFO,
            "Refused a request to the webhook route that Roughy had not signed. If Roughy sent it, compare the "
            "endpoint's signing secret with `webhook_secret` of the connection, and the clocks",
        )
        if self._refusals.take():
            return Response(status_code=401, headers=_UNREAD)
        return Response(status_code=429, headers=_LATER | _UNREAD)


async def _read(request: Request) -> bytes | Response:
    """Return the body, or the answer to a body that is too long or too slow."""
    too_long = Response(status_code=413, headers=_UNREAD)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
        return too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return too_long
    except TimeoutError:
        return Response(status_code=408, headers=_UNREAD)
    return bytes(body)


def _state_of(hook: RoughyHook, asset_id: str) -> str | None:
    """Return the state of an asset from Roughy's API, or ``None`` if there is no such asset.

    :raises RoughyError: If the state cannot be read.
    """
    try:
        state: str = hook.client.once(ASSET.read(asset_id), within=_READ_ASSET_SECONDS).state
    except RoughyNotFoundError:
        return None
    return state
