"""What a test steers an emulator by: one object, used from Python and, by ``control.py``, over HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from .choices import Choices
from .faults import Fault, FaultBook
from .gate import Request, RequestLog
from .store import Asset, Progression, Store, well_known_id
from .wire import timestamp


class Steering:
    """State, faults and request log of an emulator, whether it is being served or not.

    :param choices: answers where Roughy's documentation is silent.
    :param progression: how long Roughy's work lasts.
    :param faults: rules in force from the start.
    :param on_request: called with each request that is over.
    """

    def __init__(
        self,
        *,
        choices: Choices,
        progression: str,
        faults: Iterable[Fault],
        on_request: Callable[[Request], None] | None,
    ) -> None:
        Progression.parse(progression)
        self.choices = choices
        self.project_id = well_known_id(1)
        self._start_progression = progression
        self._start_faults = tuple(faults)
        self._faults = FaultBook()
        self._log = RequestLog(on_request)
        self._open_store: Store | None = None
        for fault in self._start_faults:
            self._faults.inject(fault)

    @property
    def requests(self) -> list[Request]:
        """The requests so far, oldest first, without those of ``/_emulator/``; the last 50,000 are kept."""
        return self._log.requests

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        self._log.clear()

    def inject(self, fault: Fault) -> None:
        """Put a fault in force."""
        self._faults.inject(fault)

    def clear_faults(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    @property
    def balance(self) -> int:
        """Credits of the default account; setting it writes an ``adjustment`` entry and activates nothing."""
        self._store.look()
        return self._store.credits.balance(1)

    @balance.setter
    def balance(self, balance: int) -> None:
        self._store.credits.adjust(1, _credits(balance))

    def top_up(self, credits: int) -> None:
        """Add credits to the default account; unpaid assets become ready, oldest first.

        :param credits: how many.
        """
        self._store.look()
        self._store.top_up(_credits(credits))

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock on, and let happen what is due by then.

        :param seconds: how far.
        """
        self._store.advance(seconds)

    @property
    def progression(self) -> str:
        """How long ``processing`` lasts; setting it concerns assets that are processing, too."""
        return str(self._store.clock.progression)

    @progression.setter
    def progression(self, progression: str) -> None:
        self._store.clock.progression = Progression.parse(progression)

    def settle(self, resource_id: str | None = None) -> list[str]:
        """Let processing assets finish now, whatever the progression.

        :param resource_id: one of them, or ``None`` for all.
        :returns: the ids that were processing.
        :raises KeyError: when there is no such asset.
        """
        return self._store.settle(resource_id)

    @property
    def assets(self) -> list[dict[str, Any]]:
        """Every asset of every account, oldest first, as :meth:`asset` returns it."""
        self._store.look()
        return [self._asset_facts(asset) for asset in self._store.assets.all()]

    def asset(self, asset_id: str) -> dict[str, Any]:
        """Return what the emulator knows of an asset, the API's fields and more; does not count as a poll.

        ``size_bytes`` is what was declared; ``stored_bytes`` and ``sha256`` are of the bytes on disk; ``states``
        is the history: pairs of state and time.

        :raises KeyError: when there is no such asset.
        """
        self._store.look()
        return self._asset_facts(self._store.assets.known(asset_id))

    def _asset_facts(self, asset: Asset) -> dict[str, Any]:
        facts = dataclasses.asdict(asset)
        for name in ("processing_at", "unpaid_at", "created_at"):
            facts[name] = None if facts[name] is None else timestamp(facts[name])
        return facts | {
            "stored_bytes": self._store.files.size(asset.id),
            "sha256": self._store.files.sha256(asset.id),
            "states": self._store.assets.history.of(asset.id),
        }

    def seed_asset(
        self, /, state: str = "ready", *, account: int = 1, content: bytes | None = None, **fields: Any
    ) -> str:
        """Put a new asset straight into a state: no upload, no charge.

        :param state: any word; the API's own states get the fields that belong to them.
        :param account: whose it is: 1 belongs to the first API key.
        :param content: bytes to store; without them the asset has none and cannot be downloaded.
        :param fields: ``project_id``, ``size_bytes``, ``language``, ``type``, ``extension``, ``content_type``,
            ``duration_seconds``, ``error_code``, ``error_message``.
        :returns: its id.
        :raises KeyError: when there is no such project.
        :raises ValueError: for another field, or a value of a wrong type.
        """
        return self._store.assets.seed(state, fields, account=account, content=content).id

    def set_state(self, asset_id: str, /, state: str, **fields: Any) -> None:
        """Put an asset into a state by decree: nothing is charged.

        :param state: any word, also one that the API does not know.
        :param fields: as of :meth:`seed_asset`, those that describe the media or the error.
        :raises KeyError: when there is no such asset.
        :raises ValueError: for another field, or a value of a wrong type.
        """
        self._store.assets.set_state(asset_id, state, fields)

    @property
    def state(self) -> dict[str, Any]:
        """Settings, clock, credits and faults in one look; without the key."""
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
        """Go back to the start: only the first project, balance, clock, progression and faults as given."""
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


def _credits(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 1_000_000_000_000:
        raise ValueError("credits must be a whole number, of at most a million millions")
    return value
