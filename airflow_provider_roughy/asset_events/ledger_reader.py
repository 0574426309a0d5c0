"""The ledger of the watchers of one feed, read and written in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.asset_events.payload import taken_key
from airflow_provider_roughy.exceptions import RoughyError, RoughyLedgerError
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.ledger.objects import uri_without_secrets

if TYPE_CHECKING:
    from airflow_provider_roughy.asset_events.baseline import AssetSnapshot

T = TypeVar("T")

#: Seconds that one operation on the ledger may take.
_STORAGE_SECONDS = 120.0


class LedgerReader:
    """A ledger that all watchers of a feed share. It works in a thread, so that a hanging storage blocks no event loop.

    :param location: The folder of the ledger.
    :param conn_id: The Airflow connection of its storage.
    """

    def __init__(self, location: str, conn_id: str | None) -> None:
        self._location = location
        self._conn_id = conn_id
        self._ledger: Ledger | None = None
        # A single thread, so that a hanging storage blocks no more than one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="roughy-watch")
        #: Ids and states that runs have taken, which no run gives back.
        self._taken: set[tuple[str, str]] = set()

    def close(self) -> None:
        """Release the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def is_taken(self, asset: AssetSnapshot) -> bool:
        """Return whether an asset is known to be taken in its state.

        :param asset: The asset.
        """
        return (asset.id, asset.state) in self._taken

    def forget_all_but(self, ids: Collection[str]) -> None:
        """Forget other assets, which will not be read again.

        :param ids: The assets to keep.
        """
        self._taken = {(id, state) for id, state in self._taken if id in ids}

    async def refresh(self, assets: Iterable[AssetSnapshot]) -> None:
        """Read from the ledger which assets were taken.

        :param assets: The assets.
        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        unknown = [(asset.id, asset.state) for asset in assets if not self.is_taken(asset)]
        if unknown:
            self._taken |= await self._run(lambda ledger: _taken(ledger, unknown))

    async def note(self, name: str) -> dict[str, Any] | None:
        """Return the note of a name, if there is one.

        :param name: The name.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        return await self._run(lambda ledger: ledger.note(name))

    async def note_once(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Create the note of a name unless there is one, and return the note in the ledger.

        :param name: The name.
        :param content: The content, plain JSON.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        return await self._run(lambda ledger: ledger.note_once(name, content))

    async def last_note(self, name: str) -> tuple[int, dict[str, Any] | None]:
        """Return the number and content of the last of the notes ``name 1``, ``name 2``, …; ``(0, None)`` without one.

        :param name: The name without a number.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        return await self._run(lambda ledger: _last_note(ledger, name))

    async def announced(self, name: str, assets: Sequence[AssetSnapshot]) -> dict[AssetSnapshot, datetime]:
        """Return which assets are noted as announced, and when they were.

        :param name: The name of the subscription.
        :param assets: The assets.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        return await self._run(lambda ledger: _announced(ledger, name, assets))

    async def note_announced(self, name: str, assets: Iterable[AssetSnapshot]) -> None:
        """Note that assets were announced now.

        :param name: The name of the subscription.
        :param assets: The assets.
        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        at = datetime.now(UTC).isoformat()

        def note(ledger: Ledger) -> None:
            for asset in assets:
                note_name = _announcement(name, asset)
                ledger.note_once(note_name, {"of": note_name, "at": at})

        await self._run(note)

    async def _run(self, operation: Callable[[Ledger], T]) -> T:
        # In a thread of asgiref: only from such a thread does Airflow find the event loop, through which it reads the
        # connection of the storage.
        from asgiref.sync import sync_to_async

        def run() -> T:
            ledger = self._ledger or Ledger(self._location, conn_id=self._conn_id)
            if self._ledger is None:
                ledger.check()
            self._ledger = ledger
            return operation(ledger)

        try:
            async with asyncio.timeout(_STORAGE_SECONDS):
                return await sync_to_async(run, thread_sensitive=False, executor=self._thread)()
        except TimeoutError:
            uri = uri_without_secrets(self._location)
            raise RoughyLedgerError(f"Ledger {uri} did not answer within {_STORAGE_SECONDS:.0f} s") from None
        except RoughyError:
            # The next operation reads the connection of the storage again, which a user may have corrected.
            self._ledger = None
            raise


def _taken(ledger: Ledger, pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    # Hashing 20,000 names takes a tenth of a second, too long for an event loop.
    keys = {taken_key(id, state): (id, state) for id, state in pairs}
    return {keys[key] for key in ledger.known(keys)}


def _last_note(ledger: Ledger, name: str) -> tuple[int, dict[str, Any] | None]:
    # The notes have consecutive numbers and are never removed, so doubling and bisection find the last one: in about
    # twenty reads after a year.
    number, last, missing = 0, None, 1
    while (note := ledger.note(f"{name} {missing}")) is not None:
        number, last, missing = missing, note, 2 * missing
    while missing - number > 1:
        middle = (number + missing) // 2
        note = ledger.note(f"{name} {middle}")
        if note is None:
            missing = middle
        else:
            number, last = middle, note
    return number, last


def _announcement(name: str, asset: AssetSnapshot) -> str:
    return f"announced {asset.id} as {asset.state}, {name}"


def _announced(ledger: Ledger, name: str, assets: Sequence[AssetSnapshot]) -> dict[AssetSnapshot, datetime]:
    def announced_at(asset: AssetSnapshot) -> datetime | None:
        note = ledger.note(_announcement(name, asset))
        return None if note is None else decode.timestamp(note.get("at"))

    times = zip(assets, ledger.each(announced_at, assets), strict=True)
    return {asset: at for asset, at in times if at is not None}
