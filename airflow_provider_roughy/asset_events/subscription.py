"""What one trigger announces, and when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_roughy.asset_events.baseline import Baseline
from airflow_provider_roughy.asset_events.feed import AssetFeed, MovedError
from airflow_provider_roughy.asset_events.outage import OutageLog
from airflow_provider_roughy.asset_events.payload import MAX_IDS_PER_STATE
from airflow_provider_roughy.compat import QUEUES_EACH_EVENT
from airflow_provider_roughy.exceptions import RoughyProtocolError
from airflow_provider_roughy.ledger.announced import note_name
from airflow_provider_roughy.ledger.objects import uri_without_secrets
from airflow_provider_roughy.logs import Log, counted

if TYPE_CHECKING:
    from airflow_provider_roughy.asset_events.baseline import AssetSnapshot
    from airflow_provider_roughy.asset_events.ledger_reader import LedgerReader

#: The pause before the first repeat: this many poll intervals, and at most this many seconds.
_FIRST_REPEAT_INTERVALS, _FIRST_REPEAT_SECONDS = 10, 60.0
#: The longest pause between two repeats, and the time after which there are no more, in seconds.
_MAX_REPEAT_SECONDS, _REPEAT_FOR_SECONDS = 3600.0, 86400.0
#: If Airflow starts a run for each event: seconds until an asset that was announced and not taken is noted in the
#: ledger, and seconds until it is announced once more.
_NOTE_AFTER_SECONDS, _ANNOUNCE_AGAIN_SECONDS = 15.0, 86400.0
#: A baseline advances if that settles this many assets, or if it is this old.
_SETTLED_COUNT, _SETTLED_PERIOD = 500, timedelta(days=1)


class Subscription:
    """Decides what one trigger announces. No error ends it: it retries until it works.

    :param roughy_conn_id: The Airflow connection.
    :param ledger: The folder that records what was taken, and the baseline.
    :param ledger_conn_id: The Airflow connection of that storage.
    :param project_id: The project whose assets are announced; ``None`` for all of the account.
    :param states: The states in which assets are announced.
    :param poll_interval: Seconds between two rounds.
    :param catchup: Whether to announce assets that had ended before the first start, too.
    :param log: The logger.
    """

    def __init__(
        self,
        *,
        roughy_conn_id: str,
        ledger: str,
        ledger_conn_id: str | None,
        project_id: str | None,
        states: Sequence[str],
        poll_interval: float,
        catchup: bool,
        log: Log,
    ) -> None:
        self.roughy_conn_id = roughy_conn_id
        self.states = states
        self.poll_interval = poll_interval
        #: ``None`` until the subscription has started.
        self.baseline: Baseline | None = None
        #: The assets to announce that are not known to be taken.
        self.due: dict[str, AssetSnapshot] = {}
        #: The folder of the ledger, and the Airflow connection of its storage.
        self.reader_key = (ledger, ledger_conn_id)
        self._project_id = project_id
        self._catchup = catchup
        self._log = log
        self._wake = asyncio.Event()
        self._reader: LedgerReader | None = None
        #: The name of the baseline's notes, and the number of the last one.
        self._name, self._number = "", 0
        #: A newer baseline, and how many assets had ended when the feed offered it.
        self._candidate: tuple[Baseline, int] | None = None
        #: When each asset was announced, by the clock of the event loop.
        self._announced: dict[AssetSnapshot, float] = {}
        #: Seconds until the next repeat.
        self._pause = 0.0
        self._repeat_at, self._no_repeat_after = float("inf"), float("inf")
        #: When to note each announced asset in the ledger, unless it is taken by then.
        self._note_at: dict[AssetSnapshot, float] = {}

    async def payloads(self) -> AsyncGenerator[dict[str, list[str]], None]:
        """Yield the payload of each event, without end."""
        outage = OutageLog(f"Reading ledger {uri_without_secrets(self.reader_key[0])}", self._log, self.poll_interval)
        async with AssetFeed.joined(self) as feed:
            self._reader = feed.reader(self.reader_key)
            while True:
                payload = None
                feed.start()
                try:
                    if self.baseline is None:
                        await self._begin(feed)
                    self._wake.clear()
                    await self._advance()
                    payload = await self._next(feed)
                    outage.end()
                except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                    raise
                except MovedError:
                    continue
                except BaseException as error:  # Airflow has errors that are not an Exception.
                    await asyncio.sleep(outage.pause_after(error, self.poll_interval))
                    continue
                if payload is not None:
                    yield payload
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._next_deadline()):
                        await self._wake.wait()

    # ---- Called by the feed

    def wake(self) -> None:
        """Check whether there is something to announce."""
        self._wake.set()

    def reset(self) -> None:
        """Forget all assets, because the connection leads to another base URL."""
        self.baseline, self.due, self._candidate = None, {}, None
        self._announced, self._note_at = {}, {}
        self._wake.set()

    def covers(self, asset: AssetSnapshot) -> bool:
        """Return whether an asset is in the project of this subscription.

        :param asset: The asset.
        """
        return self._project_id in (None, asset.project_id)

    def offer_baseline(self, candidate: Baseline, count: int) -> None:
        """Store a newer baseline, to which this subscription may advance later.

        :param candidate: The baseline, without the assets that are due.
        :param count: How many assets the feed knows that have ended in a state of this subscription.
        """
        if self.baseline is not None:
            self._candidate = candidate, count

    def on_assets(self, assets: Iterable[AssetSnapshot]) -> None:
        """Update what is due, after the feed has read assets.

        :param assets: The assets.
        """
        if self.baseline is None or self._reader is None:
            return
        for asset in assets:
            if (
                asset.state in self.states
                and self.covers(asset)
                and self.baseline.admits(asset)
                and not self._reader.is_taken(asset)
            ):
                self.due[asset.id] = asset
            elif self.due:
                self.on_gone(asset.id)

    def on_gone(self, id: str) -> None:
        """Announce an asset no more, because it was deleted or has another state.

        :param id: The asset.
        """
        self.due.pop(id, None)

    # ---- The baseline

    async def _begin(self, feed: AssetFeed) -> None:
        """Read the baseline from the ledger; at the first start, create it.

        :raises RoughyError: If the ledger or the lists cannot be read.
        """
        await feed.located.wait()
        base_url = feed.base_url
        if base_url is None:
            raise RoughyProtocolError(f"Watching assets of connection {self.roughy_conn_id!r} ended unexpectedly")
        assert self._reader is not None
        # Earlier releases have stored notes by these names; 0.2 only by the first one, whatever the states.
        first = f"watching {self._project_id or 'all'} of {self.roughy_conn_id} at {base_url}"
        self._name = f"{first} for {', '.join(self.states)}{' from the first asset on' if self._catchup else ''}"
        self._number, note = await self._reader.last_note(self._name)
        if note is None and not self._catchup:
            note = await self._reader.note(first)
            if note is None:
                opened = await feed.baseline()
                if opened.baseline is None or opened.base_url != base_url:
                    raise MovedError
                waiting = {id: asset.state for id, asset in opened.listed.items() if self.covers(asset)}
                now = replace(opened.baseline, waiting=waiting)
                note = await self._reader.note_once(first, {"of": first, **now.to_json()})
        # The first note has no number.
        named = f"{self._name} {self._number}" if self._number else first
        stored = f"{note_name(named)} of ledger {uri_without_secrets(self.reader_key[0])}"
        baseline = Baseline() if note is None else Baseline.from_json(note, stored)
        if feed.base_url != base_url:
            raise MovedError
        self.baseline = baseline
        feed.begin({**baseline.waiting, **baseline.due})

    async def _advance(self) -> None:
        """Advance to the offered baseline, if it settles enough assets.

        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        if self._candidate is None or self.baseline is None or self._reader is None:
            return
        (candidate, count), before = self._candidate, self.baseline
        self._candidate = None
        await self._drop_taken()
        assert candidate.newest is not None
        settled = count - len(self.due)
        if before.newest is not None and candidate.newest <= before.newest:
            return
        is_old = before.newest is None or candidate.newest - before.newest >= _SETTLED_PERIOD
        if settled < (1 if is_old else _SETTLED_COUNT):
            return
        due = {id: asset.state for id, asset in self.due.items()}
        name = f"{self._name} {self._number + 1}"
        note = await self._reader.note_once(name, {"of": name, **replace(candidate, due=due).to_json()})
        # If another triggerer has created this note first, its baseline serves as well.
        self.baseline, self._number = Baseline.from_json(note), self._number + 1

    # ---- Announcing

    def _next_deadline(self) -> float | None:
        """Return when there is something to do even if nothing wakes this subscription; ``None`` for never."""
        times = [*self._note_at.values(), *([self._repeat_at] if self.due else [])]
        earliest = min(times, default=float("inf"))
        return None if earliest == float("inf") else earliest

    async def _next(self, feed: AssetFeed) -> dict[str, list[str]] | None:
        """Return the payload to announce now, if any.

        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        loop = asyncio.get_running_loop()
        for asset in self._announced.keys() - set(self.due.values()):
            del self._announced[asset]
        if any(at <= loop.time() for at in self._note_at.values()):
            await self._note_announced()
        new: list[AssetSnapshot] = []
        if not self._announced.keys() >= set(self.due.values()):
            # Assets beyond the limit of an event wait until runs have taken some of those before them.
            await self._drop_taken()
            if QUEUES_EACH_EVENT:
                await self._recall(self._new())
            new = self._new()
        if not new:
            return await self._repeat(feed) if self.due and loop.time() >= self._repeat_at else None
        self._no_repeat_after = loop.time() + _REPEAT_FOR_SECONDS
        self._pause = max(self.poll_interval, min(_FIRST_REPEAT_INTERVALS * self.poll_interval, _FIRST_REPEAT_SECONDS))
        self._log.info("Announcing %s", counted(len(new), "asset"))
        return self._announce(new)

    def _new(self) -> list[AssetSnapshot]:
        return [asset for asset in self._first(self.due.values()) if asset not in self._announced]

    async def _repeat(self, feed: AssetFeed) -> dict[str, list[str]] | None:
        """Return the payload to announce again, if any."""
        loop = asyncio.get_running_loop()
        await self._drop_taken()
        if loop.time() > self._no_repeat_after and not QUEUES_EACH_EVENT:
            self._repeat_at = float("inf")
            if self.due:
                self._log.warning(
                    "No run has taken %s within a day; announcing no more until there is a new asset. Check that an "
                    "active DAG calls take_assets() with ledger %s",
                    counted(len(self.due), "asset"),
                    uri_without_secrets(self.reader_key[0]),
                )
            return None
        again = self._first(self._overdue())
        if again:
            # Assets may have been deleted since. Poll only what an event holds, because much more may be due.
            await feed.poll(again)
            again = self._first(self._overdue())
        if not again:
            self._repeat_at = self._next_repeat()
            return None
        self._pause = min(2 * self._pause, max(_MAX_REPEAT_SECONDS, self.poll_interval))
        self._log.info("Announcing %s again: not taken by any run yet", counted(len(again), "asset"))
        return self._announce(again, is_repeat=True)

    def _overdue(self) -> list[AssetSnapshot]:
        """Return the assets to announce again."""
        if not QUEUES_EACH_EVENT:
            return list(self.due.values())
        until = asyncio.get_running_loop().time() - _ANNOUNCE_AGAIN_SECONDS
        return [asset for asset in self.due.values() if self._announced.get(asset, float("inf")) <= until]

    def _announce(self, assets: Sequence[AssetSnapshot], *, is_repeat: bool = False) -> dict[str, list[str]]:
        now = asyncio.get_running_loop().time()
        # If Airflow starts a run for each event, there is one repeat only.
        self._announced |= dict.fromkeys(assets, float("inf") if is_repeat and QUEUES_EACH_EVENT else now)
        if QUEUES_EACH_EVENT and not is_repeat:
            self._note_at |= dict.fromkeys(assets, now + _NOTE_AFTER_SECONDS)
        self._repeat_at = self._next_repeat()
        payload: dict[str, list[str]] = {}
        for asset in assets:
            payload.setdefault(asset.state, []).append(asset.id)
        return payload

    def _next_repeat(self) -> float:
        if QUEUES_EACH_EVENT:
            times = (self._announced[asset] for asset in self.due.values() if asset in self._announced)
            return min(times, default=float("inf")) + _ANNOUNCE_AGAIN_SECONDS
        return asyncio.get_running_loop().time() + self._pause * random.uniform(0.9, 1.1)

    async def _note_announced(self) -> None:
        """Note in the ledger which assets were announced and not taken, so that a restarted triggerer knows it."""
        assert self._reader is not None
        await self._drop_taken()
        now = asyncio.get_running_loop().time()
        ripe = [asset for asset, at in self._note_at.items() if at <= now]
        await self._reader.note_announced(self._name, [asset for asset in ripe if self.due.get(asset.id) == asset])
        for asset in ripe:
            del self._note_at[asset]

    async def _recall(self, new: Sequence[AssetSnapshot]) -> None:
        """Read from the ledger which assets were announced before a restart."""
        assert self._reader is not None
        now, loop_now = datetime.now(UTC), asyncio.get_running_loop().time()
        for asset, at in (await self._reader.announced(self._name, new)).items():
            self._announced[asset] = loop_now - (now - at).total_seconds()
        self._repeat_at = self._next_repeat()

    async def _drop_taken(self) -> None:
        assert self._reader is not None
        await self._reader.refresh(self.due.values())
        self.due = {id: asset for id, asset in self.due.items() if not self._reader.is_taken(asset)}

    def _first(self, assets: Iterable[AssetSnapshot]) -> list[AssetSnapshot]:
        """Return the assets that fit an event: the oldest of each state."""
        oldest_first = sorted(assets, key=lambda asset: (asset.created_at, asset.id))
        return [
            asset
            for state in self.states
            for asset in [each for each in oldest_first if each.state == state][:MAX_IDS_PER_STATE]
        ]
