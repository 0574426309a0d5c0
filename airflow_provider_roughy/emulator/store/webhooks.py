"""Webhook endpoints, the events that each subscribes to, and their deliveries. ``delivery.py`` sends them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import ipaddress
import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from airflow_provider_roughy.emulator.choices import Choices
from airflow_provider_roughy.emulator.wire import ApiError, Reader, as_text, timestamp, uuid7

from .assets import Asset, Assets
from .clock import Clock
from .database import Database, UnknownId
from .history import History
from .jobs import Job, Jobs
from .renders import Render

#: The event types (webhooks page): the kind of the resource, and the state that it has entered.
EVENTS = (
    "cut.completed",
    "cut.failed",
    "render.completed",
    "render.failed",
    "render.cancelled",
    "asset.ready",
    "asset.pending_payment",
    "asset.failed",
)

#: Seconds from a failed attempt to the next one; the first attempt is immediate (Svix, "Retries").
RETRY_SECONDS = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600)

#: How many attempts of a delivery are stored. More only follow from repeated requests to resend it.
_ATTEMPTS_KEPT = 50

_SCHEMA = """
CREATE TABLE IF NOT EXISTS webhook_endpoints (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, url TEXT NOT NULL, event_types TEXT NOT NULL, description TEXT,
    created_at INTEGER NOT NULL, failing_since INTEGER, disabled_at INTEGER);
CREATE TABLE IF NOT EXISTS deliveries (
    id TEXT PRIMARY KEY, svix_id TEXT NOT NULL, endpoint_id TEXT NOT NULL, event TEXT NOT NULL, payload TEXT NOT NULL,
    state TEXT NOT NULL, tries INTEGER NOT NULL, attempts TEXT NOT NULL, created_at INTEGER NOT NULL,
    next_at INTEGER, clock_offset INTEGER NOT NULL, UNIQUE (svix_id, endpoint_id));
CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (endpoint_id, state, next_at);
"""


@dataclasses.dataclass(frozen=True)
class WebhookEndpoint:
    """One endpoint. The last two fields, and times in microseconds, are not part of the API.

    :param event_types: The subscribed event types, as JSON; see :attr:`subscribed`.
    :param failing_since: When the first attempt failed since one succeeded.
    :param disabled_at: When it was disabled.
    """

    id: str
    account: int
    url: str
    event_types: str
    description: str | None
    created_at: int
    failing_since: int | None = None
    disabled_at: int | None = None

    @property
    def subscribed(self) -> list[str]:
        """The event types that it subscribes to."""
        return list(json.loads(self.event_types))


@dataclasses.dataclass(frozen=True)
class Delivery:
    """One event for one endpoint.

    :param svix_id: The id of the event: the same at every attempt, and at every endpoint.
    :param payload: The body, as it is signed.
    :param state: ``pending``, ``delivered``, ``given_up`` (the last attempt has failed) or ``stopped`` (the endpoint
        was removed or disabled).
    :param tries: The attempts of this pass through :data:`RETRY_SECONDS`.
    :param attempts: All attempts, as JSON.
    :param next_at: When the next attempt is due; ``None`` if there is none.
    :param clock_offset: The offset of emulator time when the pause before :attr:`next_at` started.
    """

    id: str
    svix_id: str
    endpoint_id: str
    event: str
    payload: str
    state: str
    tries: int
    attempts: str
    created_at: int
    next_at: int | None
    clock_offset: int


def as_url(choices: Choices) -> Reader[str]:
    """Return a reader of an endpoint's URL."""

    def read(value: object) -> str:
        url = as_text(1, 2048)(value)
        try:
            parts = urlsplit(url)
            secure = parts.scheme == "https" or (
                parts.scheme == "http" and choices.webhook_http == "loopback" and _is_loopback(parts)
            )
            usable = secure and parts.hostname and parts.port != 0 and "@" not in parts.netloc and not parts.fragment
        except ValueError:
            usable = False
        if not usable or not re.fullmatch(r"[!-~]+", url):
            raise ValueError("Input should be an HTTPS URL")
        return url

    return read


def _is_loopback(parts: SplitResult) -> bool:
    try:
        return parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def as_event_types(choices: Choices) -> Reader[list[str]]:
    """Return a reader of the event types that an endpoint subscribes to."""

    def read(value: object) -> list[str]:
        if not isinstance(value, list) or not 1 <= len(value) <= 100:
            raise ValueError("Input should be a list of 1 to 100 event types")
        names = [as_text(1, 256)(name) for name in value]
        if choices.unknown_event_type == "refused" and set(names) - set(EVENTS):
            raise ValueError("Input should be " + ", ".join(f"'{event}'" for event in EVENTS))
        return names

    return read


class Webhooks:
    """All endpoints, and their deliveries.

    Each row of ``deliveries`` is one event for one endpoint. This class sends nothing: ``delivery.py`` reads
    :meth:`due`, and records each attempt with :meth:`note_attempt`.

    :param collections: Kind of resource -> all resources of that kind.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        history: History,
        choices: Choices,
        collections: Mapping[str, Assets | Jobs[Any]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._history = history
        self._choices = choices
        self._collections = collections
        #: Called when a delivery may have become due. The caller may be within a transaction.
        self.on_due: Callable[[], None] = lambda: None
        database.create(_SCHEMA)
        history.on_noted.append(self._announce)

    # Endpoints

    def register(self, account: int, url: str, event_types: list[str], description: str | None) -> WebhookEndpoint:
        """Create an endpoint (API page "Create a webhook endpoint"). The same URL again creates another one."""
        now = self._clock.now()
        made = WebhookEndpoint(_name("ep"), account, url, json.dumps(event_types), description, now)
        self._database.insert("webhook_endpoints", made)
        self.on_due()
        return made

    def page(self, account: int, limit: int, offset: int) -> tuple[list[WebhookEndpoint], int]:
        """Return one page of endpoints, newest first, and the number of all."""
        return self._database.page(WebhookEndpoint, "webhook_endpoints", {"account": account}, limit, offset)

    def remove(self, account: int, endpoint_id: str) -> None:
        """Remove an endpoint, or raise the 404; pending deliveries to it stop."""
        with self._database.change():
            found = self.endpoint(endpoint_id)
            if found is None or found.account != account:
                raise ApiError(404, "Webhook endpoint not found.")
            self._database.execute("DELETE FROM webhook_endpoints WHERE id = ?", endpoint_id)
            self._stop(endpoint_id)
            self.on_due()

    def endpoint(self, endpoint_id: str) -> WebhookEndpoint | None:
        """Return an endpoint of any account; ``None`` if there is none of that id."""
        return self._database.row(WebhookEndpoint, "SELECT * FROM webhook_endpoints WHERE id = ?", endpoint_id)

    def all(self) -> list[WebhookEndpoint]:
        """Return every endpoint of every account, oldest first."""
        return self._database.rows(WebhookEndpoint, "SELECT * FROM webhook_endpoints ORDER BY created_at, rowid")

    def listening(self) -> list[WebhookEndpoint]:
        """Return every endpoint that is not disabled."""
        return self._database.rows(WebhookEndpoint, "SELECT * FROM webhook_endpoints WHERE disabled_at IS NULL")

    def _stop(self, endpoint_id: str) -> None:
        query = "UPDATE deliveries SET state = 'stopped', next_at = NULL WHERE endpoint_id = ? AND state = 'pending'"
        self._database.execute(query, endpoint_id)

    # Events

    def _announce(self, resource_id: str, state: str) -> None:
        """Queue an event for its subscribers, if the state that was entered has one.

        A state of a resource is announced once, however often it is entered (webhooks page).
        """
        endpoints = self.listening()
        if not endpoints:
            return
        for kind, collection in self._collections.items():
            row = collection.find(resource_id)
            if row is None:
                continue
            # If a cancelled render counts as failed, its event is `render.cancelled` nevertheless.
            cancelled = isinstance(row, Render) and row.cancelled and state == "failed"
            event = "render.cancelled" if cancelled else f"{kind}.{state}"
            for endpoint in endpoints:
                if event in EVENTS and event in endpoint.subscribed and endpoint.account == row.account:
                    self._put(endpoint, event, row)

    def _put(self, endpoint: WebhookEndpoint, event: str, row: Asset | Job) -> None:
        event_key = f"{event} {row.id}".encode()
        svix_id = f"msg_{base64.b32encode(hashlib.sha256(event_key).digest()).decode()[:27]}"
        known = "SELECT 1 FROM deliveries WHERE svix_id = ? AND endpoint_id = ?"
        if self._database.execute(known, svix_id, endpoint.id).fetchone():
            return
        now = self._clock.now()
        payload = json.dumps({"type": event, "data": self._data(event, row)}, separators=(",", ":"))
        delivery = Delivery(
            id=uuid7(now),
            svix_id=svix_id,
            endpoint_id=endpoint.id,
            event=event,
            payload=payload,
            state="pending",
            tries=0,
            attempts="[]",
            created_at=now,
            next_at=now,
            clock_offset=self._clock.offset,
        )
        self._database.insert("deliveries", delivery)
        self.on_due()

    def _data(self, event: str, row: Asset | Job) -> dict[str, str | None]:
        if isinstance(row, Job):
            return {"entity_id": row.id, "asset_id": row.asset_id}
        entity_id = row.id if self._choices.asset_event_entity == "asset" else None
        data = {"entity_id": entity_id, "asset_id": row.id}
        if event == "asset.ready":
            unpaid = [state for state, _ in self._history.of(row.id)][-2:-1] == ["pending_payment"]
            # `set_state` may set it from any state; only two are documented.
            data["previous_state"] = "pending_payment" if unpaid else "processing"
        return data

    # Deliveries

    def due(self, endpoint_id: str, limit: int) -> list[Delivery]:
        """Return the deliveries to an endpoint that are due by now, oldest first, including those being sent.

        :param limit: The maximum number of deliveries.
        """
        query = (
            "SELECT * FROM deliveries WHERE endpoint_id = ? AND state = 'pending' AND next_at <= ? "
            "ORDER BY next_at, rowid LIMIT ?"
        )
        return self._database.rows(Delivery, query, endpoint_id, self._clock.now(), limit)

    def is_due(self) -> bool:
        """Whether any delivery is due by now."""
        query = "SELECT 1 FROM deliveries WHERE state = 'pending' AND next_at <= ? LIMIT 1"
        return self._database.execute(query, self._clock.now()).fetchone() is not None

    def note_attempt(self, tried: Delivery, seconds: float, status: int | None, problem: str | None) -> None:
        """Record the result of an attempt, and when the next one is due.

        If the clock was moved on by a day, all attempts of that day follow, one after the other.

        :param tried: The delivery as it was when the attempt started.
        :param seconds: How long the attempt took.
        :param status: The HTTP status of the reply; ``None`` if there was none.
        :param problem: Why it failed; ``None`` if it succeeded.
        """
        with self._database.change():
            delivery = self._database.row(Delivery, "SELECT * FROM deliveries WHERE id = ?", tried.id)
            if delivery is None:
                return
            at = self._when(tried, seconds)
            attempt = {"at": timestamp(at), "status": status, "problem": problem}
            attempts = [*json.loads(delivery.attempts), attempt][-_ATTEMPTS_KEPT:]
            self._database.update("deliveries", delivery.id, attempts=json.dumps(attempts))
            if (delivery.state, delivery.next_at) == ("pending", tried.next_at):
                # Otherwise the delivery was stopped or resent during the attempt.
                self._schedule_next(delivery, at, failed=problem is not None)
            self._disable_if_failing(delivery.endpoint_id, at, failed=problem is not None)

    def _when(self, tried: Delivery, seconds: float) -> int:
        """Return when an attempt ended, had the clock not been moved beyond the time at which it was due."""
        now, moved = self._clock.now(), self._clock.offset - tried.clock_offset
        at_once = (tried.next_at or now) + round(seconds * 1_000_000)
        # The attempt may have been queued behind others, too.
        return min(now, max(at_once, now - moved))

    def _schedule_next(self, delivery: Delivery, at: int, *, failed: bool) -> None:
        state, next_at = "delivered", None
        if failed and delivery.tries < len(RETRY_SECONDS):
            state, next_at = "pending", at + RETRY_SECONDS[delivery.tries] * 1_000_000
        elif failed:
            state = "given_up"
        behind = self._clock.offset - (self._clock.now() - at)
        values = {"state": state, "tries": delivery.tries + 1, "next_at": next_at, "clock_offset": behind}
        self._database.update("deliveries", delivery.id, **values)

    def _disable_if_failing(self, endpoint_id: str, at: int, *, failed: bool) -> None:
        """Disable an endpoint that has failed for days without interruption."""
        endpoint = self.endpoint(endpoint_id)
        if endpoint is None:
            return
        if not failed:
            self._database.update("webhook_endpoints", endpoint_id, failing_since=None)
            return
        since = at if endpoint.failing_since is None else endpoint.failing_since
        self._database.update("webhook_endpoints", endpoint_id, failing_since=since)
        if at - since >= self._choices.webhook_off_after_seconds * 1_000_000:
            self._database.update("webhook_endpoints", endpoint_id, disabled_at=at)
            self._stop(endpoint_id)

    # Steering

    def deliveries(self) -> list[Delivery]:
        """Return every delivery to every endpoint, oldest first."""
        return self._database.rows(Delivery, "SELECT * FROM deliveries ORDER BY created_at, rowid")

    def resend(self, svix_id: str) -> int:
        """Send an event again to the endpoints that it was sent to, with the retries of a new event.

        :returns: To how many endpoints it is sent.
        :raises UnknownId: If it was sent to no endpoint that still exists and is not disabled.
        """
        query = (
            "UPDATE deliveries SET state = 'pending', tries = 0, next_at = ?, clock_offset = ? "
            "WHERE svix_id = ? AND endpoint_id = ?"
        )
        with self._database.change():
            values = (self._clock.now(), self._clock.offset, svix_id)
            sent = sum(self._database.execute(query, *values, each.id).rowcount for each in self.listening())
            if not sent:
                raise UnknownId(svix_id)
            self.on_due()
        return sent


def _name(kind: str) -> str:
    """Return a new id in Svix's format."""
    return f"{kind}_{base64.b32encode(secrets.token_bytes(17)).decode()[:27]}"
