"""The receiver of Roughy's webhooks: what Airflow 3's API server answers at ``POST /roughy/webhooks``.

Nobody has logged in here, so a request costs little until its signature is verified: no database, no log line of its
own, a body of 64 KiB at most. Of one that is verified, nothing counts but which asset it is about: what became of the
asset, Roughy's API is asked for. The answer is 204 once the event is stored in Airflow's database; whatever stands in
the way is answered 503, upon which Roughy delivers again, for some 28 hours.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from airflow_provider_roughy.compat import AirflowNotFoundException, Announced, announce, conf
from airflow_provider_roughy.exceptions import (
    RoughyConfigurationError,
    RoughyError,
    RoughyMissingConnectionError,
    RoughyNotFoundError,
    RoughyWebhookError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET
from airflow_provider_roughy.webhooks import message_id, parse, signing_secrets, verify

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from airflow_provider_roughy.settings import Settings

#: Bytes of a body that are read; Roughy's have some 200.
MOST_BODY_BYTES = 64 * 1024
#: Seconds that a body may take to arrive.
BODY_SECONDS = 5.0
#: Seconds that a delivery may take in all: Svix gives up after 15.
_DELIVERY_SECONDS = 12.0
#: Seconds that Roughy may take to say what became of an asset.
_ASK_SECONDS = 8.0
#: Requests under way at once, whoever sends them.
MOST_AT_ONCE = 300
#: Questions to Roughy under way at once.
_ASK_AT_ONCE = 8
#: Seconds that what the connections say is believed, and that it is taken for unreadable after it was.
_BELIEVED_SECONDS, _UNREADABLE_SECONDS = 30.0, 5.0
#: Requests without a valid signature that are answered 401 at once, and in a second from then on; the others, 429.
REFUSALS_AT_ONCE, _REFUSALS_A_SECOND = 100, 2.0
#: For how long no message makes a second event. Svix repeats for 27 hours and 35 minutes.
_REPEATED_WITHIN = timedelta(hours=28)
#: Seconds until events that Airflow leaves behind at the end of a burst are seen to, and the most that they grow to.
_NUDGE_SECONDS, _LONGEST_NUDGE_SECONDS = 5.0, 600.0
#: Messages that a process remembers, to spare Roughy and the database.
_REMEMBERED = 10_000
#: Seconds between two log lines that say the same.
_TELL_SECONDS = 60.0
#: What the sender is asked to wait, in seconds.
_LATER = {"Retry-After": "5"}
#: Of an answer before the body was read.
_UNREAD = {"Connection": "close"}

_log = logging.getLogger(__name__)


def build_app(receiver: Receiver | None = None) -> Starlette:
    """Return the ASGI application, which has one route and no pages about itself.

    :param receiver: Answers; by default a new one.
    """
    app = Starlette(routes=[Route("/webhooks", receiver or Receiver())])
    # It would repeat what a caller says of the host.
    app.router.redirect_slashes = False
    return app


@dataclass(frozen=True)
class _Account:
    """An account of Roughy's whose webhooks are taken.

    :param conn_id: The Airflow connection.
    :param settings: What that says.
    :param hook: Asks Roughy.
    """

    conn_id: str
    settings: Settings
    hook: RoughyHook

    @property
    def secrets(self) -> str:
        """What its webhooks are signed with."""
        return self.settings.webhook_secret or ""


class _Later(Exception):
    """Why a webhook that was verified should be delivered again."""


class Receiver:
    """The one route, as an ASGI application."""

    def __init__(self) -> None:
        self._accounts = _Accounts()
        self._at_once = 0
        self._refusals = _Bucket(REFUSALS_AT_ONCE, _REFUSALS_A_SECOND)
        self._told: dict[str, tuple[float, int]] = {}
        self._done: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._nudges: dict[str, asyncio.Task[None]] = {}
        self._askers = ThreadPoolExecutor(_ASK_AT_ONCE, thread_name_prefix="roughy-webhooks-ask")
        # One at a time: they would wait for the same row, each with one of the API server's database connections.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="roughy-webhooks-write")

    def close(self) -> None:
        """End its threads and network connections."""
        self._askers.shutdown()
        self._writer.shutdown()
        self._accounts.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever it is, and never with a 500."""
        response = await self._answered(Request(scope, receive))
        await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response:
        if self._at_once >= MOST_AT_ONCE:
            return Response(status_code=503, headers=_LATER | _UNREAD)
        self._at_once += 1
        try:
            async with asyncio.timeout(_DELIVERY_SECONDS):
                return await self._answer(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=400)
        except TimeoutError:
            self._tell("late", logging.WARNING, "A webhook could not be dealt with in %.0f s", _DELIVERY_SECONDS)
        except (RoughyError, _Later) as error:
            self._tell(type(error).__name__, logging.WARNING, "A webhook could not be dealt with: %s", error)
        except Exception:
            self._tell("unexpected", logging.ERROR, "A webhook could not be dealt with", exc_info=True)
        finally:
            self._at_once -= 1
        return Response(status_code=503, headers=_LATER)

    async def _answer(self, request: Request) -> Response:
        accounts = await self._accounts.current(self._tell)
        if not accounts:
            # As of a path that is not there.
            raise HTTPException(404)
        if request.method != "POST":
            return Response(status_code=405, headers={"Allow": "POST"} | _UNREAD)
        headers = request.headers.items()
        try:
            # Before anything of the body is read.
            id = message_id(headers)
            body = await _read(request)
            if isinstance(body, Response):
                return body
            account = verify(headers, body, {account: account.secrets for account in accounts})
        except RoughyWebhookError:
            return self._refuse()
        try:
            event = parse(body, id=id)
        except RoughyWebhookError as error:
            self._tell("malformed", logging.WARNING, "Webhook %s was signed by Roughy, and refused: %s", id, error)
            return Response(status_code=400)
        if event.type.startswith("asset.") and (account.conn_id, id) not in self._done:
            await self._deliver(account, id, event.asset_id)
            self._done[account.conn_id, id] = None
            if len(self._done) > _REMEMBERED:
                self._done.popitem(last=False)
        return Response(status_code=204)

    async def _deliver(self, account: _Account, id: str, asset_id: str) -> None:
        """See to it that there is one event, if Roughy says that there is something to tell.

        :raises _Later: If there is nothing to tell yet, or nowhere to tell it.
        :raises RoughyError: If Roughy does not say.
        """
        loop = asyncio.get_running_loop()
        state = await loop.run_in_executor(self._askers, _state_of, account.hook, asset_id)
        if state is None:
            conn_id = account.conn_id
            _log.warning("Webhook %s is dropped: by connection %r Roughy has no asset %s", id, conn_id, asset_id)
            return
        if state not in ASSET.ends:
            raise _Later(f"it came early, asset {asset_id} is still {state}")
        name = account.settings.webhook_asset
        extra = {"payload": {state: [asset_id]}, "svix_id": id}
        made = await self._announce(name, extra, once=id)
        if made is Announced.NO_ASSET:
            raise _Later(f"no DAG declares the asset {name!r}, which connection {account.conn_id!r} asks for")
        if made is not Announced.KNOWN:
            _log.info("Webhook %s: asset %s is %s; made an event of Airflow's asset %r", id, asset_id, state, name)

    async def _announce(self, name: str, extra: dict[str, Any], *, once: str | None = None) -> Announced:
        """Make an event, and see to it that a run takes it."""
        loop = asyncio.get_running_loop()

        def make() -> Announced:
            made = announce(name, extra, once=once, within=_REPEATED_WITHIN)
            # Not by whoever waits for this: their time may be up, and the event is there all the same.
            loop.call_soon_threadsafe(self._see_to, name, made)
            return made

        return await loop.run_in_executor(self._writer, make)

    def _see_to(self, name: str, made: Announced) -> None:
        nudge = self._nudges.get(name)
        if made is Announced.LEFT_BEHIND and nudge is None:
            self._nudges[name] = asyncio.get_running_loop().create_task(self._nudge(name))
        elif made is Announced.MADE and nudge is not None:
            # The run that is due takes all that was left behind.
            del self._nudges[name]
            nudge.cancel()

    async def _nudge(self, name: str) -> None:
        """Make an event that says nothing, until a run is due that takes those left behind at the end of a burst."""
        pause = _NUDGE_SECONDS
        while name in self._nudges:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_NUDGE_SECONDS)
            try:
                if await self._announce(name, {"payload": {}}) is Announced.NO_ASSET:
                    del self._nudges[name]
            except Exception:
                self._tell("nudge", logging.WARNING, "Could not make an event of asset %r", name, exc_info=True)

    def _refuse(self) -> Response:
        """Refuse a request that nobody has signed, always in the same words: none."""
        self._tell("refused", logging.INFO, "Refused a request to the webhook route that Roughy had not signed")
        if self._refusals.take():
            return Response(status_code=401, headers=_UNREAD)
        return Response(status_code=429, headers=_LATER | _UNREAD)

    def _tell(self, what: str, level: int, message: str, *args: Any, exc_info: bool = False) -> None:
        """Log something that may happen often, once a minute.

        :param what: Names it.
        :param level: As for a logger, like the others.
        """
        since, untold = self._told.get(what, (float("-inf"), 0))
        if time.monotonic() - since < _TELL_SECONDS:
            self._told[what] = since, untold + 1
            return
        self._told[what] = time.monotonic(), 0
        if untold:
            message, args = message + " (and %d more like this since it was last told)", (*args, untold)
        _log.log(level, message, *args, exc_info=exc_info)


class _Accounts:
    """The accounts whose webhooks are taken, read from Airflow's connections every half a minute, if anybody asks."""

    def __init__(self) -> None:
        self._known: tuple[_Account, ...] = ()
        self._error: RoughyError | None = None
        self._until = float("-inf")
        self._lock = asyncio.Lock()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="roughy-webhooks-read")

    async def current(self, tell: Callable[..., None]) -> tuple[_Account, ...]:
        """Return them; none if webhooks are switched off.

        :param tell: Logs.
        :raises RoughyError: If a connection cannot be read now, so that nobody can say who may have signed.
        """
        async with self._lock:
            if time.monotonic() >= self._until:
                read = asyncio.get_running_loop().run_in_executor(self._reader, self._read, tell)
                try:
                    self._known, self._error = await read, None
                except RoughyError as error:
                    self._error = error
                seconds = _UNREADABLE_SECONDS if self._error else _BELIEVED_SECONDS
                self._until = time.monotonic() + seconds
        if self._error is not None:
            raise self._error
        return self._known

    def _read(self, tell: Callable[..., None]) -> tuple[_Account, ...]:
        before = {account.conn_id: account for account in self._known}
        found = []
        for conn_id in conf.get("roughy", "webhook_conn_ids", fallback=RoughyHook.default_conn_name).split(","):
            account = self._account(conn_id.strip(), before, tell)
            if account is not None:
                found.append(account)
        for account in before.values():
            if account not in found:
                account.hook.close()
        return tuple(found)

    def _account(self, conn_id: str, before: dict[str, _Account], tell: Callable[..., None]) -> _Account | None:
        hook = RoughyHook(conn_id)
        try:
            settings = hook.settings
            if not signing_secrets(settings.webhook_secret or ""):
                return None
        except RoughyMissingConnectionError as error:
            if not isinstance(error.__cause__, AirflowNotFoundException):
                raise
            # Airflow says the same if its secrets backends cannot be asked; either way, Roughy delivers again.
            if conn_id in before:
                tell(conn_id, logging.WARNING, "Takes no more webhooks by connection %r: %s", conn_id, error)
            return None
        except RoughyConfigurationError as error:
            tell(conn_id, logging.WARNING, "Takes no webhooks by connection %r: %s", conn_id, error)
            return None
        known = before.get(conn_id)
        if known is not None and known.settings == settings:
            return known
        # Made here, once, and not by several threads that ask for it.
        hook.get_conn()
        return _Account(conn_id, settings, hook)

    def close(self) -> None:
        """End its thread, and close their network connections."""
        self._reader.shutdown()
        for account in self._known:
            account.hook.close()


class _Bucket:
    """So many at once, and so many a second from then on."""

    def __init__(self, most: int, a_second: float) -> None:
        self._most = most
        self._a_second = a_second
        self._left = float(most)
        self._since = time.monotonic()

    def take(self) -> bool:
        """Take one, if there is one left."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._since) * self._a_second)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


async def _read(request: Request) -> bytes | Response:
    """Return the body, or the answer to one that is too long or too slow."""
    too_long = Response(status_code=413, headers=_UNREAD)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MOST_BODY_BYTES:
        return too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BODY_BYTES:
                    return too_long
    except TimeoutError:
        return Response(status_code=408, headers=_UNREAD)
    return bytes(body)


def _state_of(hook: RoughyHook, asset_id: str) -> str | None:
    """Return the state of an asset as Roughy has it now, or ``None`` if it has no such asset.

    :raises RoughyError: If it does not tell.
    """
    try:
        state: str = hook.client.once(ASSET.read(asset_id), within=_ASK_SECONDS).state
    except RoughyNotFoundError:
        return None
    return state
