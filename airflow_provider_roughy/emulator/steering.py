"""The methods with which tests control an emulator, from Python and, by ``control.py``, over HTTP."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .choices import Choices
from .delivery import Deliverer, secret_keys
from .faults import Fault, FaultBook
from .gate import Request, RequestLog
from .store import Asset, Cut, Delivery, Job, Progression, Render, Store, WebhookEndpoint, well_known_id
from .wire import as_id, as_number, timestamp


class Steering:
    """State, faults and request log of an emulator, whether it is being served or not.

    :param choices: The behaviour where Roughy's documentation is silent.
    :param progression: How long Roughy's work takes.
    :param faults: Rules in force from the start.
    :param on_request: Called with each request that has ended.
    :param webhook_secret: The signing secret of webhooks; ``None`` for the store's own.
    """

    def __init__(
        self,
        *,
        choices: Choices,
        progression: str,
        faults: Iterable[Fault],
        on_request: Callable[[Request], None] | None,
        webhook_secret: str | None,
    ) -> None:
        Progression.parse(progression)
        if not isinstance(choices, Choices):
            raise ValueError(f"choices must be Choices, such as Choices(delete_status=200), not {choices!r}")
        if webhook_secret is not None:
            if not isinstance(webhook_secret, str):
                raise ValueError("a webhook secret is text")
            secret_keys(webhook_secret)
        self._webhook_secret = webhook_secret
        self.choices = choices
        self.project_id = well_known_id(1)
        self._start_progression = progression
        self._start_faults = tuple(faults)
        self._faults = FaultBook()
        self._log = RequestLog(on_request)
        self._open_store: Store | None = None
        self._deliverer: Deliverer | None = None
        for fault in self._start_faults:
            self._faults.inject(fault)

    @property
    def requests(self) -> list[Request]:
        """The requests so far, oldest first, without those of ``/_emulator/``; the last 50,000 are kept."""
        return self._log.requests

    def clear_requests(self) -> None:
        """Clear the request log."""
        self._log.clear()

    def inject(self, fault: Fault) -> None:
        """Add a fault.

        :raises TypeError: If it is not a :class:`Fault`.
        """
        self._faults.inject(fault)

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    @property
    def balance(self) -> int:
        """Credits of the default account; setting it writes an ``adjustment`` entry and activates nothing."""
        self._store.refresh()
        return self._store.credits.balance(1)

    @balance.setter
    def balance(self, balance: int) -> None:
        self._store.credits.adjust(1, as_credits(balance))

    def top_up(self, credits: int) -> None:
        """Add credits to the default account; unpaid assets become ready, oldest first.

        :param credits: The number of credits.
        """
        self._store.refresh()
        self._store.top_up(as_credits(credits))

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock on, and apply what is due by then.

        :param seconds: How far.
        """
        self._store.advance(seconds)

    @property
    def progression(self) -> str:
        """How long Roughy's work takes; a new value applies to unfinished work, too."""
        return str(self._store.clock.progression)

    @progression.setter
    def progression(self, progression: str) -> None:
        self._store.clock.progression = Progression.parse(progression)

    def settle(self, resource_id: str | None = None) -> list[str]:
        """Let Roughy finish its work now, whatever the progression.

        :param resource_id: An asset, cut or render, or ``None`` for all.
        :returns: The ids that were being processed.
        :raises KeyError: If there is no resource of that id.
        """
        return self._store.settle(None if resource_id is None else as_id(resource_id))

    @property
    def assets(self) -> list[dict[str, Any]]:
        """Every asset of every account, oldest first, as :meth:`asset` returns it."""
        self._store.refresh()
        return [self._facts(asset) for asset in self._store.assets.all()]

    @property
    def cuts(self) -> list[dict[str, Any]]:
        """Every cut, oldest first, as :meth:`cut` returns it."""
        self._store.refresh()
        return [self._facts(cut) for cut in self._store.cuts.all()]

    @property
    def renders(self) -> list[dict[str, Any]]:
        """Every render, oldest first, as :meth:`render` returns it."""
        self._store.refresh()
        return [self._facts(render) for render in self._store.renders.all()]

    def asset(self, asset_id: str) -> dict[str, Any]:
        """Return the state of an asset, the API's fields and more; does not count as a poll.

        ``size_bytes`` is the declared size; ``stored_bytes`` and ``sha256`` are those of the bytes on disk; ``states``
        is the history: pairs of state and time.

        :raises KeyError: If there is no such asset.
        """
        self._store.refresh()
        return self._facts(self._store.assets.known(as_id(asset_id)))

    def cut(self, cut_id: str) -> dict[str, Any]:
        """Return the state of a cut, as :meth:`asset` does.

        ``segments`` are the kept parts of the recording: start and end of each in seconds, once they are known.

        :raises KeyError: If there is no such cut.
        """
        self._store.refresh()
        return self._facts(self._store.cuts.known(as_id(cut_id)))

    def render(self, render_id: str) -> dict[str, Any]:
        """Return the state of a render, as :meth:`asset` does.

        :raises KeyError: If there is no such render.
        """
        self._store.refresh()
        return self._facts(self._store.renders.known(as_id(render_id)))

    def _facts(self, row: Asset | Job) -> dict[str, Any]:
        facts = self._times(row)
        if isinstance(row, Cut):
            facts["segments"] = [(float(begin), float(end)) for begin, end in row.kept]
        else:
            facts |= {"stored_bytes": self._store.files.size(row.id), "sha256": self._store.files.sha256(row.id)}
        if isinstance(row, Render):
            facts["output"] = row.output_options
        return facts | {"states": self._store.history.of(row.id)}

    @staticmethod
    def _times(row: Asset | Job | Delivery | WebhookEndpoint) -> dict[str, Any]:
        """Return the columns of a row, with times in the format of the API."""
        facts = dataclasses.asdict(row)
        for name in facts:
            if name.endswith(("_at", "_since")) and facts[name] is not None:
                facts[name] = timestamp(facts[name])
        return facts

    def seed_asset(
        self, /, state: str = "ready", *, account: int = 1, content: bytes | None = None, **fields: Any
    ) -> str:
        """Create an asset in a given state: no upload, no charge.

        :param state: Any word; a state of the API sets the fields that belong to it.
        :param account: The account it belongs to; 1 is that of the first API key.
        :param content: Bytes to store; without them, the asset cannot be downloaded.
        :param fields: ``project_id``, ``size_bytes``, ``language``, ``type``, ``extension``, ``content_type``,
            ``duration_seconds``, ``error_code``, ``error_message``.
        :returns: Its id.
        :raises KeyError: If there is no such project.
        :raises ValueError: If there is another field, or a value has the wrong type.
        """
        return self._store.assets.seed(state, fields, account=account, content=content).id

    def seed_cut(
        self, /, state: str = "completed", *, asset_id: str | None = None, script: str | None = None, **fields: Any
    ) -> str:
        """Create a cut in a given state; by default, it keeps the whole recording.

        :param state: Any word; a state of the API sets the fields that belong to it.
        :param asset_id: The asset; by default a new one that is ready.
        :param script: The script of the cut.
        :param fields: ``segments`` (pairs of start and end in seconds), ``frame_rate``, ``error_code``,
            ``error_message``.
        :returns: Its id.
        :raises KeyError: If there is no such asset.
        :raises ValueError: If there is another field, or a value has the wrong type.
        """
        asset_id = None if asset_id is None else as_id(asset_id)
        return self._store.cuts.seed(state, fields, asset_id=asset_id, script=script).id

    def seed_render(
        self,
        /,
        state: str = "completed",
        *,
        asset_id: str | None = None,
        cut_id: str | None = None,
        output: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        **fields: Any,
    ) -> str:
        """Create a render in a given state; nothing is rendered.

        :param state: Any word; a state of the API sets the fields that belong to it.
        :param asset_id: The asset; by default that of the cut, or a new one that is ready.
        :param cut_id: The cut, if it is the render of one.
        :param output: The output options; by default ``{"format": "mp4"}``.
        :param content: Bytes to store; without them, the render cannot be downloaded.
        :param fields: ``size_bytes``, ``error_code``, ``error_message``.
        :returns: Its id.
        :raises KeyError: If there is no such asset or cut.
        :raises ValueError: If there is another field, or a value has the wrong type.
        """
        render = self._store.renders.seed(
            state,
            fields,
            asset_id=None if asset_id is None else as_id(asset_id),
            cut_id=None if cut_id is None else as_id(cut_id),
            output={"format": "mp4"} if output is None else output,
            content=content,
        )
        return render.id

    def set_state(self, resource_id: str, /, state: str, **fields: Any) -> None:
        """Put an asset, cut or render into a given state: nothing is charged, no work is done.

        :param state: Any word, also one that the API does not know.
        :param fields: See :meth:`seed_asset`, :meth:`seed_cut`, :meth:`seed_render`: those that describe the media
            or the error.
        :raises KeyError: If there is no resource of that id.
        :raises ValueError: If there is another field, or a value has the wrong type.
        """
        resource_id = as_id(resource_id)
        self._store.collection_of(resource_id).set_state(resource_id, state, fields)

    # Webhooks

    @property
    def webhook_secret(self) -> str:
        """The signing secret of webhooks."""
        return self._webhook_secret or self._store.webhook_secret

    @property
    def webhook_endpoints(self) -> list[dict[str, Any]]:
        """Every webhook endpoint of every account, oldest first: the API's fields, and when it was disabled."""
        return [self._times(endpoint) | {"event_types": endpoint.subscribed} for endpoint in self._store.webhooks.all()]

    @property
    def webhook_deliveries(self) -> list[dict[str, Any]]:
        """Every delivery of an event to an endpoint, oldest first.

        ``state`` is ``pending``, ``delivered``, ``given_up`` (the last attempt has failed) or ``stopped`` (the endpoint
        was removed or disabled). ``attempts`` has for each attempt when it ended, by the emulator's clock, the HTTP
        ``status`` and, if it failed, the ``problem``; the last 50 are kept.
        """
        deliveries = self._store.webhooks.deliveries()
        return [
            self._times(each) | {"payload": json.loads(each.payload), "attempts": json.loads(each.attempts)}
            for each in deliveries
        ]

    def resend_webhook(self, svix_id: str) -> int:
        """Send an event again to every endpoint that it was sent to, with the retries of a new event.

        :param svix_id: The id of the event, as in its header.
        :returns: To how many endpoints it is sent.
        :raises KeyError: If it was sent to no endpoint that still exists and is not disabled.
        """
        return self._store.webhooks.resend(as_id(svix_id))

    def flush_webhooks(self, timeout: float = 20.0) -> None:
        """Wait until every webhook that is due by now has been attempted, with or without success.

        :param timeout: The maximum number of seconds to wait.
        :raises TimeoutError: If it takes longer.
        """
        timeout = as_number(0, 1_000_000)(timeout)
        self._store.refresh()
        if self._deliverer is not None and not self._deliverer.flush(timeout):
            raise TimeoutError(f"webhooks are still under way after {timeout:g} s")

    @property
    def state(self) -> dict[str, Any]:
        """Settings, clock, credits and faults at one moment; without the key."""
        return {
            "project_id": self.project_id,
            "now": timestamp(self._store.clock.now()),
            "progression": self.progression,
            "balance": self.balance,
            "faults": self._faults.describe(),
            "requests": len(self.requests),
            "choices": dataclasses.asdict(self.choices),
        }

    def reset(self) -> None:
        """Restore the initial state: only the first project; balance, clock, progression and faults as given."""
        self._store.reset(progression=self._start_progression)
        self._faults.clear()
        for fault in self._start_faults:
            self._faults.inject(fault)
        self._log.clear()

    @property
    def _store(self) -> Store:
        if self._open_store is None:
            raise RuntimeError("the emulator is not running")
        return self._open_store


def as_credits(value: object) -> int:
    """Return a number of credits that the ledger can hold, or raise ``ValueError``."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 1_000_000_000_000:
        raise ValueError("credits must be a whole number, of at most a million millions")
    return value
