"""The lists of an account, read once for all subscriptions of an event loop and connection."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from airflow_provider_roughy.api import Listing, decode, list_assets
from airflow_provider_roughy.asset_events.baseline import AssetSnapshot, Baseline
from airflow_provider_roughy.asset_events.ledger_reader import LedgerReader
from airflow_provider_roughy.asset_events.outage import MAX_PAUSE_SECONDS, OutageLog
from airflow_provider_roughy.event_loop import end, finish
from airflow_provider_roughy.exceptions import RoughyError, RoughyProtocolError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.instruments import FEED_LAG
from airflow_provider_roughy.lifecycle import ASSET, Outcome
from airflow_provider_roughy.logs import SILENT
from airflow_provider_roughy.polling import ResourcePoller, SharedPoll

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call, Page, Reply, RoughyAsset
    from airflow_provider_roughy.asset_events.subscription import Subscription

#: The open states, from which an asset may still become ready, in the order in which they follow each other.
_OPEN = tuple(
    state for state, outcome in ASSET.outcomes.items() if outcome in (Outcome.WAITING, Outcome.PAYMENT_REQUIRED)
)
#: Seconds between two full rounds, and between two reads of the connection.
_FULL_ROUND_SECONDS = 3600.0
#: A baseline advances to this long before the newest full round, because lists may lag.
_SETTLED_AFTER = timedelta(hours=1)
#: How far the ``Date`` of a reply, in whole seconds, may be behind the creation of an asset.
_DATE_PRECISION = timedelta(seconds=1)
#: Seconds that a round waits for further subscriptions: a triggerer starts its triggers in bursts.
_GATHER_SECONDS = 1.0
_FEED_ENDED = "Watching assets of connection {!r} ended unexpectedly"

_log = logging.getLogger(__name__)


class MovedError(Exception):
    """The connection now leads to another base URL."""


@dataclass
class OpenAssets:
    """The open assets that one round found.

    :param base_url: The base URL of the API.
    :param listed: The assets on the lists, by id.
    :param unchanged: Assets that must still be on their list, by its length, with their states.
    :param date: When a full round read them, by Roughy's clock.
    :param total: How many assets there were in all, in a full round.
    :param baseline: The baseline of a subscription that starts now, without its open assets, if one requested it.
    """

    base_url: str
    listed: dict[str, AssetSnapshot] = field(default_factory=dict)
    unchanged: dict[str, str] = field(default_factory=dict)
    date: datetime = field(default_factory=lambda: datetime.now(UTC))
    total: int = 0
    baseline: Baseline | None = None


class AssetFeed:
    """Reads the lists of an account for all subscriptions of one event loop and connection. Join it by :meth:`joined`.

    :param roughy_conn_id: The Airflow connection.
    """

    #: The feeds in use. Those of an event loop go with it.
    _feeds: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AssetFeed]]] = WeakKeyDictionary()

    def __init__(self, roughy_conn_id: str) -> None:
        self._conn_id = roughy_conn_id
        self._subscriptions: set[Subscription] = set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        #: The base URL to which the connection leads; ``None`` until it is read.
        self.base_url: str | None = None
        #: Set once the base URL is known, or the task that reads it has ended.
        self.located = asyncio.Event()
        self._readers: dict[tuple[str, str | None], LedgerReader] = {}
        #: Assets that were open when they were last seen, and assets to read again, with their states.
        self._tracked: dict[str, str] = {}
        #: Assets that have ended, by state, as far back as the lists are read.
        self._ended: dict[str, set[str]] = {}
        #: Futures that wait for the end of a round that starts after them, and whether they need a baseline.
        self._waiters: dict[asyncio.Future[OpenAssets | None], bool] = {}
        #: Whether the next round is a full one.
        self._full = True
        #: When the last round that succeeded has started, by the clock of the event loop.
        self._current_at = asyncio.get_running_loop().time()

    @classmethod
    @asynccontextmanager
    async def joined(cls, subscription: Subscription) -> AsyncIterator[AssetFeed]:
        """Join the feed of the running event loop, which the last subscription to leave closes.

        :param subscription: The subscription that joins.
        """
        feeds = cls._feeds.setdefault(asyncio.get_running_loop(), {})
        feed = feeds.get(subscription.roughy_conn_id)
        if feed is None:
            feed = feeds[subscription.roughy_conn_id] = cls(subscription.roughy_conn_id)
        feed._subscriptions.add(subscription)
        try:
            yield feed
        finally:
            feed._subscriptions.discard(subscription)
            for key in feed._readers.keys() - {each.reader_key for each in feed._subscriptions}:
                feed._readers.pop(key).close()
            if not feed._subscriptions:
                del feeds[subscription.roughy_conn_id]
                await finish(feed._close())

    def start(self) -> None:
        """Start the task that takes the rounds, unless it runs."""
        if self._task is None or self._task.done():
            # Without context variables: Airflow would write log lines for all into the log of one trigger.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
            self._task.add_done_callback(self._on_task_end)
            if self.base_url is None:
                self.located.clear()

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """Wake the subscriptions, which start the task again."""
        if task is self._task:
            error = None if task.cancelled() else task.exception()
            _log.error("%s; restarting it", self._end_message, exc_info=error)
            self.located.set()
            for subscription in self._subscriptions:
                subscription.wake()
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(RoughyProtocolError(self._end_message))

    @property
    def _end_message(self) -> str:
        return _FEED_ENDED.format(self._conn_id)

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await end(task)

    def reader(self, key: tuple[str, str | None]) -> LedgerReader:
        """Return the reader of a ledger, which all its subscriptions share.

        :param key: The folder of the ledger, and the Airflow connection of its storage.
        """
        if key not in self._readers:
            self._readers[key] = LedgerReader(*key)
        return self._readers[key]

    def begin(self, unsettled: Mapping[str, str]) -> None:
        """Take a full round for a subscription that has its baseline now.

        :param unsettled: The assets that its baseline names, with their states; the round reads each that is not on a
            list of open assets.
        """
        self._tracked = {**unsettled, **self._tracked}
        self._full = True
        self._wake.set()

    async def baseline(self) -> OpenAssets:
        """Return the baseline of a subscription that starts now. Concurrent subscriptions share a round.

        :raises RoughyProtocolError: If the task of the feed ended.
        """
        self._wake.set()
        opened = await self._end_of_round(baseline=True)
        if opened is None:
            raise RoughyProtocolError(
                f"The assets that connection {self._conn_id!r} has now could not be listed, so that none can be "
                "told from later ones"
            )
        return opened

    async def poll(self, assets: Iterable[AssetSnapshot]) -> None:
        """Read the state of assets, which may have been deleted, in the next round, and wait for its end.

        :param assets: The assets.
        """
        self._tracked |= {asset.id: asset.state for asset in assets}
        await self._end_of_round(baseline=False)

    async def _end_of_round(self, *, baseline: bool) -> OpenAssets | None:
        waiter: asyncio.Future[OpenAssets | None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = baseline
        try:
            return await waiter
        finally:
            self._waiters.pop(waiter, None)

    # ---- Rounds

    @property
    def _interval(self) -> float:
        return min((subscription.poll_interval for subscription in self._subscriptions), default=MAX_PAUSE_SECONDS)

    async def _run(self) -> None:
        outage = OutageLog(f"Watching assets of connection {self._conn_id}", _log, self._interval)
        while True:
            try:
                # Read the connection again from time to time, because a user may change it.
                async with SharedPoll.joined(RoughyHook(self._conn_id), ASSET) as poll:
                    await self._rounds(poll, outage)
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except MovedError:
                pass
            except BaseException as error:  # Airflow has errors that are not an Exception.
                self._record_lag()
                await asyncio.sleep(outage.pause_after(error, self._interval))

    def _record_lag(self) -> None:
        FEED_LAG.record(asyncio.get_running_loop().time() - self._current_at)

    async def _rounds(self, poll: SharedPoll, outage: OutageLog) -> None:
        loop = asyncio.get_running_loop()
        if poll.base_url != self.base_url:
            self._move(poll.base_url)
        until, self._full = loop.time() + _FULL_ROUND_SECONDS, True
        await self._gather()
        while loop.time() < until:
            self._wake.clear()
            if self._waiters or any(subscription.baseline for subscription in self._subscriptions):
                started = loop.time()
                try:
                    await self._round(poll)
                except RoughyError as error:
                    # Reading the connection again may fix an error that is not transient.
                    if not error.transient:
                        raise
                    self._record_lag()
                    await asyncio.sleep(outage.pause_after(error, self._interval))
                    continue
                self._record_lag()
                self._current_at = started
                outage.end()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval * random.uniform(0.9, 1.1)):
                    await self._wake.wait()
                await self._gather()

    async def _gather(self) -> None:
        """Wait for further subscriptions, so that one round serves all of them."""
        await asyncio.sleep(min(_GATHER_SECONDS, self._interval / 4))

    def _move(self, base_url: str) -> None:
        """Forget all assets, which are from another base URL."""
        self.base_url, self._full = base_url, True
        self._tracked, self._ended = {}, {}
        for subscription in self._subscriptions:
            subscription.reset()
        self.located.set()

    async def _round(self, poll: SharedPoll) -> None:
        """Take one round.

        :raises RoughyError: If a request failed. Assets on the lists that were read are reported nevertheless.
        """
        waiters, full, self._full = dict(self._waiters), self._full, False
        failed: list[RoughyError] = []
        try:
            opened = await self._read_open(poll, failed, baseline=any(waiters.values()), full=full)
            ended = await self._read_ended(poll, failed, full=full)
            await self._poll_unlisted(poll, opened, ended)
            for waiter, baseline in waiters.items():
                # Only a baseline needs all lists.
                if not waiter.done() and not (baseline and failed):
                    waiter.set_result(opened)
            if failed:
                raise failed[0]
            if full:
                self._settle(opened)
        except BaseException:
            self._full = self._full or full
            raise
        finally:
            # At the end of the round, so that the oldest assets come first.
            for subscription in self._subscriptions:
                subscription.wake()

    def _settle(self, opened: OpenAssets) -> None:
        """Offer each subscription a newer baseline after a full round, and forget what is settled."""
        known = {id for ids in self._ended.values() for id in ids}
        for subscription in self._subscriptions:
            waiting = {
                id: state
                for id, state in self._tracked.items()
                if id not in opened.listed or subscription.covers(opened.listed[id])
            }
            count = sum(len(self._ended.get(state, ())) for state in subscription.states)
            subscription.offer_baseline(Baseline(opened.date - _SETTLED_AFTER, waiting=waiting), count)
        for reader in self._readers.values():
            reader.forget_all_but(known | self._tracked.keys())

    async def _read_open(
        self, poll: SharedPoll, failed: list[RoughyError], *, baseline: bool, full: bool
    ) -> OpenAssets:
        """Read the lists of open assets. If a list fails, its known assets are read one by one later."""
        opened, totals = OpenAssets(poll.base_url), 0
        if baseline:
            # First, so that every asset that is created from now on is newer.
            opened.baseline = await self._read_baseline(poll, opened)
        elif full:
            opened.total = (await self._read_dated(poll, opened, list_assets())).total
        for state in _OPEN:
            known = set() if baseline or full else {id for id, each in self._tracked.items() if each == state}
            found, total = set[str](), None
            async with aclosing(self._pages(poll, state, failed)) as pages:
                async for assets, length in pages:
                    totals += length if total is None else 0
                    total = length
                    new = [asset for asset in assets if asset.id not in known | found]
                    found.update(asset.id for asset in assets)
                    opened.listed |= {asset.id: asset for asset in assets}
                    self._report(assets)
                    if known and not new and len(known | found) == length:
                        # No asset has left the list.
                        opened.unchanged |= dict.fromkeys(known, state)
                        break
        if (baseline or full) and not failed:
            for state in ASSET.outcomes.keys() - set(_OPEN):
                totals += (await self._read(poll, list_assets(state=state, limit=1))).total
            if opened.total != totals:
                await self._read_unknown(poll, opened, failed, everything=baseline)
        return opened

    async def _read_baseline(self, poll: SharedPoll, opened: OpenAssets) -> Baseline:
        """Return the baseline of a subscription that starts now, without the open assets."""
        assets: list[AssetSnapshot] = []
        past: list[datetime] = []
        listing: Listing[RoughyAsset] = Listing(lambda offset: list_assets(offset=offset))
        while not past and (call := listing.next_call()) is not None:
            page = await self._read_dated(poll, opened, call)
            opened.total = page.total
            assets += [AssetSnapshot.of(each) for each in listing.take(page)]
            latest = opened.date + _DATE_PRECISION
            # Skip dates in the future: a baseline at such a date would settle assets that are created until then.
            past = [asset.created_at for asset in assets if asset.created_at <= latest]
        # If all dates are in the future, all assets are settled by their ids.
        newest = max(past, default=None)
        ids = frozenset(asset.id for asset in assets if newest is None or asset.created_at >= newest)
        return Baseline(newest, ids)

    async def _read_unknown(
        self, poll: SharedPoll, opened: OpenAssets, failed: list[RoughyError], *, everything: bool
    ) -> None:
        """Find assets in states that this version does not know, which no list by state contains: they are open."""
        oldest = None if everything else self._oldest()
        async with aclosing(self._pages(poll, None, failed)) as pages:
            async for assets, _ in pages:
                opened.listed |= {asset.id: asset for asset in assets if asset.state not in ASSET.outcomes}
                if oldest and _reaches_before(oldest, assets):
                    break

    def _oldest(self) -> datetime | None:
        """Return the time before which assets are settled for all subscriptions that have started."""
        starts = [each.baseline.newest for each in self._subscriptions if each.baseline is not None]
        return None if None in starts or not starts else min(start for start in starts if start)

    async def _read_ended(self, poll: SharedPoll, failed: list[RoughyError], *, full: bool) -> set[str]:
        """Read the lists of assets that have ended, in the states that a subscription announces.

        :returns: The ids of the assets on the pages that were read.
        """
        started = [each for each in self._subscriptions if each.baseline is not None]
        found: set[str] = set()
        oldest = self._oldest()
        for state in ASSET.ends:
            if state in _OPEN or not any(state in subscription.states for subscription in started):
                continue
            known, listed = self._ended.setdefault(state, set()), set[str]()
            failures = len(failed)
            async with aclosing(self._pages(poll, state, failed)) as pages:
                async for assets, _ in pages:
                    new = [asset for asset in assets if asset.id not in known]
                    recent = [asset.id for asset in assets if not oldest or asset.created_at >= oldest]
                    listed.update(recent)
                    self._report(assets if full else new)
                    known.update(recent)
                    found.update(asset.id for asset in assets)
                    if not (full or new) or (oldest and _reaches_before(oldest, assets)):
                        break
            if full and len(failed) == failures:
                # Most likely, an asset that is no longer listed was deleted, or it is older. Read it if it is due.
                gone = known - listed
                known &= listed
                unlisted = gone | {id for each in started for id, asset in each.due.items() if asset.state == state}
                self._tracked |= {
                    id: state for id in unlisted - found if any(id in subscription.due for subscription in started)
                }
        return found

    async def _poll_unlisted(self, poll: SharedPoll, opened: OpenAssets, ended: set[str]) -> None:
        """Read the tracked assets that are on no list any more, or that :meth:`poll` added.

        :raises RoughyError: If an error concerns all of Roughy, such as a rejected key.
        """
        # Others may add assets meanwhile.
        before, self._tracked = self._tracked, {}
        after = opened.unchanged | {id: asset.state for id, asset in opened.listed.items()}
        try:
            # Assets in a state that this version does not know are on no list by state.
            unlisted = {id for id, state in after.items() if state not in ASSET.outcomes} | before.keys() - after.keys()
            after |= await self._poll(poll, {id: before.get(id) or after[id] for id in unlisted - ended})
        except BaseException:
            after = before | after
            raise
        finally:
            self._tracked = after | self._tracked

    async def _poll(self, poll: SharedPoll, states: Mapping[str, str]) -> dict[str, str]:
        """Read assets one by one or from a list, whichever takes fewer requests.

        :param states: The assets, with the states in which they were last.
        :returns: The assets to read again in the next round, with their states.
        :raises RoughyError: If an error concerns all of Roughy, such as a rejected key.
        """
        pollers = []
        for id, state in states.items():
            poller = ResourcePoller(ASSET, id, log=SILENT, one_of_many=True)
            poller.state = None if state in _OPEN else state
            pollers.append(poller)
        answers = await poll.poll_once(pollers, interval=self._interval)
        if poll.base_url != self.base_url:
            raise MovedError
        remaining: dict[str, str] = {}
        for (id, state), answer in zip(states.items(), answers, strict=True):
            if not isinstance(answer, RoughyError):
                asset = AssetSnapshot.of(answer)
                self._report([asset])
                if asset.state in self._ended:
                    self._ended[asset.state].add(id)
                elif asset.state in _OPEN or asset.state not in ASSET.outcomes:
                    remaining[id] = asset.state
            elif answer.transient:
                remaining[id] = state
            elif poll.concerns_all(answer):
                raise answer
            else:
                for subscription in self._subscriptions:
                    subscription.on_gone(id)
        return remaining

    def _report(self, assets: Sequence[AssetSnapshot]) -> None:
        for subscription in self._subscriptions:
            subscription.on_assets(assets)

    # ---- Requests

    async def _pages(
        self, poll: SharedPoll, state: str | None, failed: list[RoughyError]
    ) -> AsyncGenerator[tuple[list[AssetSnapshot], int], None]:
        """Yield the new assets of each page of a list, newest first, and the length of the list, skipping no asset.

        :param state: The state of the list; ``None`` for the list of all assets.
        :param failed: An error that ends the list early is added here, unless it concerns all of Roughy.
        :raises RoughyError: If an error concerns all of Roughy.
        """
        listing: Listing[RoughyAsset] = Listing(lambda offset: list_assets(offset=offset, state=state))
        try:
            while (call := listing.next_call()) is not None:
                page = await self._read(poll, call)
                # Filter here, too, in case that a server ignores the filter.
                if assets := [AssetSnapshot.of(each) for each in listing.take(page) if state in (None, each.state)]:
                    yield assets, page.total
        except RoughyError as error:
            if poll.concerns_all(error):
                raise
            failed.append(error)

    async def _read_dated(
        self, poll: SharedPoll, opened: OpenAssets, call: Call[Page[RoughyAsset]]
    ) -> Page[RoughyAsset]:
        """Read a page, and set ``opened.date`` to the time of the reply, by Roughy's clock."""

        def parse(reply: Reply) -> Page[RoughyAsset]:
            opened.date = _date_of(reply)
            return call.parse(reply)

        return await self._read(poll, replace(call, parse=parse))

    async def _read(self, poll: SharedPoll, call: Call[Page[RoughyAsset]]) -> Page[RoughyAsset]:
        page: Page[RoughyAsset] = await poll.read(call)
        if poll.base_url != self.base_url:
            raise MovedError
        return page


def _reaches_before(moment: datetime, assets: Sequence[AssetSnapshot]) -> bool:
    """Return whether most assets of a page were created before a moment; a few wrong dates do not matter."""
    return 2 * sum(asset.created_at < moment for asset in assets) > len(assets)


def _date_of(reply: Reply) -> datetime:
    """Return when a reply was sent: by its ``Date`` or by the clock of this machine, whichever is earlier.

    To settle an asset too late costs a few requests; an asset that is settled too early is never announced.
    """
    now = datetime.now(UTC)
    date = decode.http_date(reply.headers.get("date"))
    # A date years ago is wrong, and a baseline goes back an hour from it, which must stay a valid date.
    return now if date is None or date.year < 2000 else min(date, now)
