"""The watch for assets that somebody else uploads: one poll of the account's lists, for all watchers of a connection.

A sensor knows what it waits for; a watcher does not. So a :class:`Lookout` reads the lists of the account, and each
:class:`Watcher` picks from them what it is due: what has come to a state that it wants, since it first began, and was
not taken yet. Watchers of one event loop and connection share a lookout, whichever projects they are for. (Airflow 3.3
has shared streams for this; they are not used, as Airflow 3.0 to 3.2 have none, and as a stream may drop events.)

A round of a lookout, some four requests if all is quiet:

1. It reads the lists of those that may become ready: in work, or not paid for.
2. It reads the lists of those that have ended, newest first, until a page has nothing new.
3. What was on a list of the first step the last time, and is on none now, it asks for by itself: lists are ordered by
   creation, and an asset may become ready weeks later, deep in the list.

Once an hour it reads the lists of the second step to their end: a list may lag, and an asset that was uploaded,
measured and listed as ready between two rounds, but late, would be on a page that is not looked at any more.

Where a watcher began, its *baseline*, is noted once in the folder of its ledger; there, consumers also write what they
have taken. Nothing else is kept. So there is no cursor that could run ahead of an event that was lost: what is due is
worked out from Roughy's lists and the ledger, and announced again, with growing pauses, until it is taken.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_roughy.api import PAGE_SIZE
from airflow_provider_roughy.events import MOST_IDS, taken_key
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyError,
    RoughyLedgerError,
    RoughyProtocolError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.ledger import Ledger
from airflow_provider_roughy.lifecycle import ASSET, Outcome, counted
from airflow_provider_roughy.polling import SharedPoll, Watch, end, finish
from airflow_provider_roughy.retry import Backoff

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Page, RoughyAsset

T = TypeVar("T")

#: The states from which an asset may still become ready, in the order in which they follow each other.
_OPEN = tuple(
    state for state, outcome in ASSET.outcomes.items() if outcome in (Outcome.WAITING, Outcome.PAYMENT_REQUIRED)
)
#: Seconds after which the lists are read to their end again, and the connection with them.
_FULL_SECONDS = 3600.0
#: Seconds that a pause between two announcements of the same grows to, and that the pause after an error does.
_LONGEST_REPEAT, _LONGEST_REST = 3600.0, 300.0
#: Seconds that a new watcher waits for others to come: a triggerer starts its triggers in bursts.
_GATHER_SECONDS = 1.0
#: Seconds that a storage may take for one question.
_STORAGE_SECONDS = 120.0

_log = logging.getLogger(__name__)
#: What is told of all together is not told of each.
_SILENT = logging.Logger("silent", level=logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Sighting:
    """An asset as it was seen.

    :param id: Which.
    :param state: Its state.
    :param project_id: Its project.
    :param created_at: When it was created, by Roughy's clock.
    """

    id: str
    state: str
    project_id: str
    created_at: datetime

    @classmethod
    def of(cls, asset: RoughyAsset) -> Sighting:
        """Keep the little of an asset that matters here.

        :raises RoughyProtocolError: If nobody could tell when it was created.
        """
        # None is without it: the page "List assets" requires it, as a date-time.
        try:
            created_at = datetime.fromisoformat(asset.created_at)
        except (TypeError, ValueError) as error:
            raise RoughyProtocolError(f"Asset {asset.id} was created at no time: {asset.created_at!r}") from error
        if created_at.tzinfo is None:
            created_at = created_at.replace(tzinfo=UTC)
        return cls(asset.id.lower(), asset.state, asset.project_id.lower(), created_at)


@dataclass(frozen=True)
class Baseline:
    """Where a watcher began: what had ended before is old.

    :param newest: When the newest asset of the account was created; ``None`` if there was none, so that all are new.
    :param newest_ids: The assets that were created then: another one of the same moment is new.
    :param waiting: The assets that had not ended, with their states.
    """

    newest: datetime | None = None
    newest_ids: frozenset[str] = frozenset()
    waiting: Mapping[str, str] = field(default_factory=dict)

    def admits(self, seen: Sighting) -> bool:
        """Whether an asset came to its state after this."""
        if seen.id in self.waiting:
            return self.waiting[seen.id] != seen.state
        if self.newest is None or seen.created_at > self.newest:
            return True
        return seen.created_at == self.newest and seen.id not in self.newest_ids

    def of_project(self, project_id: str | None, waiting: Iterable[Sighting]) -> dict[str, Any]:
        """Return it as plain JSON.

        :param project_id: Whose assets are watched; ``None`` for all.
        :param waiting: What has not ended.
        """
        return {
            "newest": self.newest.isoformat() if self.newest else None,
            "newest_ids": sorted(self.newest_ids),
            "waiting": {seen.id: seen.state for seen in waiting if project_id in (None, seen.project_id)},
        }

    @classmethod
    def from_json(cls, noted: Mapping[str, Any]) -> Baseline:
        """Read it back.

        :raises RoughyLedgerError: If it is none.
        """
        try:
            newest = noted["newest"]
            return cls(
                newest=None if newest is None else datetime.fromisoformat(newest),
                newest_ids=frozenset(noted["newest_ids"]),
                waiting={str(id): str(state) for id, state in noted["waiting"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RoughyLedgerError(f"Where this watcher began cannot be read from its ledger: {error!r}") from None


class _Trouble:
    """Tells each kind of trouble once, until it is over, and how long to rest after it.

    :param what: What cannot be done, for the log.
    :param log: Where to say so.
    :param interval: Seconds between two tries if all is well.
    """

    def __init__(self, what: str, log: Any, interval: float) -> None:
        self._what = what
        self._log = log
        self._backoff = Backoff(
            tries=sys.maxsize, first=min(1.0, interval), longest=_LONGEST_REST, patience=float("inf")
        )
        self._told: set[str] = set()

    def rest_after(self, error: BaseException, interval: float) -> float:
        """Say what is wrong, if that is new, and return the seconds until the next try.

        :param error: What went wrong.
        :param interval: Seconds between two tries if all is well: an outage is looked through about as often.
        """
        kind = type(error).__name__
        known = error if isinstance(error, RoughyError) else RoughyProtocolError(kind)
        if kind not in self._told:
            self._told.add(kind)
            trace = None if known is error else error
            self._log.warning("%s; tried again until it works: %s", self._what, error or kind, exc_info=trace)
        # What no short pause mends is tried again all the same, more and more seldom.
        pause = self._backoff.pause_after(known if known.transient else RoughyProtocolError(kind)) or _LONGEST_REST
        is_asked = isinstance(known, RoughyApiError) and known.retry_after is not None
        return min(pause, interval if known.transient and not is_asked else _LONGEST_REST)

    def is_over(self) -> None:
        """Say that it works again, if it did not."""
        self._backoff.refill()
        if self._told:
            self._told.clear()
            self._log.info("%s: that is over", self._what)


class _MovedError(Exception):
    """The connection leads to another Roughy now."""


class Lookout:
    """Reads the lists of an account for all watchers of one event loop and connection. Joined by :meth:`joined`.

    :param roughy_conn_id: The Airflow connection.
    """

    #: Those under way. An event loop that is gone takes its own with it.
    _lookouts: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Lookout]]] = WeakKeyDictionary()

    def __init__(self, roughy_conn_id: str) -> None:
        self._conn_id = roughy_conn_id
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        #: Where the connection leads; ``None`` until it was read.
        self.base_url: str | None = None
        #: Set once it was, or the task that reads it has ended.
        self.located = asyncio.Event()
        self._shelves: dict[tuple[str, str | None], _Shelf] = {}
        #: Those that had not ended when they were last seen, and those to be looked at again; with their states.
        self._waiting: dict[str, str] = {}
        #: Those that have ended, as far as they are on the lists that are read.
        self._known: dict[str, set[str]] = {}
        #: What waits for the end of a round that begins after it asked, and whether it is to tell a baseline.
        self._asked: dict[asyncio.Future[_Opened | None], bool] = {}
        self._full = True

    @classmethod
    @asynccontextmanager
    async def joined(cls, watcher: Watcher) -> AsyncIterator[Lookout]:
        """Join the lookout of the running event loop; the last one out closes it.

        :param watcher: Who joins.
        """
        lookouts = cls._lookouts.setdefault(asyncio.get_running_loop(), {})
        lookout = lookouts.get(watcher.roughy_conn_id)
        if lookout is None:
            lookout = lookouts[watcher.roughy_conn_id] = cls(watcher.roughy_conn_id)
        lookout._watchers.add(watcher)
        try:
            yield lookout
        finally:
            lookout._watchers.discard(watcher)
            for key in lookout._shelves.keys() - {each.shelf_key for each in lookout._watchers}:
                lookout._shelves.pop(key).close()
            if not lookout._watchers:
                del lookouts[watcher.roughy_conn_id]
                await finish(lookout._close())

    def start(self) -> None:
        """Take rounds from now on, if it does not."""
        if self._task is None or self._task.done():
            # With no context variables: Airflow would file what is logged for all into the log of whoever came first.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
            self._task.add_done_callback(self._died)
            if self.base_url is None:
                self.located.clear()

    def _died(self, task: asyncio.Task[None]) -> None:
        """Wake those who will start it again."""
        if task is self._task:
            error = None if task.cancelled() else task.exception()
            _log.error("The watch for assets has ended, and is started again", exc_info=error)
            self.located.set()
            for watcher in self._watchers:
                watcher.wake()
            for future in self._asked:
                if not future.done():
                    future.set_exception(RoughyProtocolError("The watch for assets has ended"))

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await end(task)

    def shelf(self, key: tuple[str, str | None]) -> _Shelf:
        """Return what all watchers of a ledger share.

        :param key: Where the ledger is, and the Airflow connection of that storage.
        """
        if key not in self._shelves:
            self._shelves[key] = _Shelf(*key)
        return self._shelves[key]

    def begin(self, waiting: Mapping[str, str]) -> None:
        """Let a watcher, which now has its baseline, see all that there is.

        :param waiting: What is to be asked for by itself if it is on no list of those that have not ended.
        """
        self._waiting = {**waiting, **self._waiting}
        self._full = True
        self._wake.set()

    async def baseline(self) -> _Opened:
        """Return where a watcher begins that has never begun before.

        Those who ask at the same time share a round.
        """
        self._wake.set()
        opened = await self._end_of_round(baseline=True)
        if opened is None:
            raise RoughyProtocolError("A round has told no baseline")
        return opened

    async def look_again(self, seen: Iterable[Sighting]) -> None:
        """Ask for assets by themselves in the next round, since they may have gone, and wait for its end."""
        self._waiting |= {each.id: each.state for each in seen}
        await self._end_of_round(baseline=False)

    async def _end_of_round(self, *, baseline: bool) -> _Opened | None:
        future: asyncio.Future[_Opened | None] = asyncio.get_running_loop().create_future()
        self._asked[future] = baseline
        try:
            return await future
        finally:
            self._asked.pop(future, None)

    # ---- Rounds

    @property
    def _interval(self) -> float:
        return min((watcher.poll_interval for watcher in self._watchers), default=_LONGEST_REST)

    async def _run(self) -> None:
        trouble = _Trouble(f"Connection {self._conn_id}: assets cannot be watched", _log, self._interval)
        while True:
            try:
                # Anew from time to time, as the connection may lead elsewhere now.
                async with SharedPoll.joined(RoughyHook(self._conn_id), ASSET) as poll:
                    await self._rounds(poll, trouble)
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except _MovedError:
                pass
            except BaseException as error:  # Airflow has errors that are no Exception.
                await asyncio.sleep(trouble.rest_after(error, self._interval))

    async def _rounds(self, poll: SharedPoll, trouble: _Trouble) -> None:
        loop = asyncio.get_running_loop()
        if poll.base_url != self.base_url:
            self._move(poll.base_url)
        until, self._full = loop.time() + _FULL_SECONDS, True
        await self._gather()
        while loop.time() < until:
            self._wake.clear()
            if self._asked or any(watcher.baseline for watcher in self._watchers):
                try:
                    await self._round(poll)
                except RoughyError as error:
                    # A new look at the connection may mend what is not transient.
                    if not error.transient:
                        raise
                    await asyncio.sleep(trouble.rest_after(error, self._interval))
                    continue
                trouble.is_over()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval * random.uniform(0.9, 1.1)):
                    await self._wake.wait()
                await self._gather()

    async def _gather(self) -> None:
        """Wait for others who come at the same time, so that all are of one round."""
        await asyncio.sleep(min(_GATHER_SECONDS, self._interval / 4))

    def _move(self, base_url: str) -> None:
        """Forget all, which was of another Roughy."""
        self.base_url, self._full = base_url, True
        self._waiting, self._known = {}, {}
        for watcher in self._watchers:
            watcher.start_anew()
        self.located.set()

    async def _round(self, poll: SharedPoll) -> None:
        """Take one round.

        :raises RoughyError: If it could not be taken to its end.
        """
        asked, full, self._full = dict(self._asked), self._full, False
        failed: list[RoughyError] = []
        try:
            opened = await self._read_open(poll, failed, baseline=any(asked.values()))
            ended = await self._read_ended(poll, failed, full=full)
            await self._look_at_those_that_left(poll, opened, ended)
            for future, baseline in asked.items():
                # Who only asked to look again has been served, whichever lists failed.
                if not future.done() and not (baseline and failed):
                    future.set_result(opened)
            if failed:
                raise failed[0]
        except BaseException:
            self._full = self._full or full
            raise
        finally:
            # Not before, so that the oldest come first.
            for watcher in self._watchers:
                watcher.wake()

    async def _read_open(self, poll: SharedPoll, failed: list[RoughyError], *, baseline: bool) -> _Opened:
        """Read the lists of those that may become ready. One that was on a list that fails is asked for by itself."""
        opened = _Opened(poll.base_url)
        if baseline:
            # Before the others: what is created from now on is newer.
            page = [Sighting.of(asset) for asset in (await self._read(poll, offset=0)).items]
            newest = max((seen.created_at for seen in page), default=None)
            ids = frozenset(seen.id for seen in page if seen.created_at == newest)
            opened.baseline = Baseline(newest, ids)
        for state in _OPEN:
            async for seen in self._pages(poll, state, failed):
                opened.waiting |= {each.id: each for each in seen}
                self._tell(seen)
        return opened

    async def _read_ended(self, poll: SharedPoll, failed: list[RoughyError], *, full: bool) -> set[str]:
        """Read the lists of those that have ended, as far as somebody watches for them.

        :returns: Those that were on them.
        """
        begun = [watcher for watcher in self._watchers if watcher.baseline is not None]
        found: set[str] = set()
        for state in ASSET.ends:
            if state in _OPEN or not any(state in watcher.states for watcher in begun):
                continue
            starts = [watcher.baseline.newest for watcher in begun if watcher.baseline]
            oldest = None if None in starts else min(start for start in starts if start)
            known, listed = self._known.setdefault(state, set()), set[str]()
            failures = len(failed)
            async with aclosing(self._pages(poll, state, failed)) as pages:
                async for seen in pages:
                    new = [each for each in seen if each.id not in known]
                    listed.update(each.id for each in seen)
                    self._tell(seen if full else new)
                    known.update(each.id for each in new)
                    if not (full or new) or (oldest and min(each.created_at for each in seen) < oldest):
                        break
            if full and len(failed) == failures:
                # What is no longer listed was removed, most likely; to who would be told of it, that matters.
                gone = known - listed
                known &= listed
                self._waiting |= {id: state for id in gone if any(id in watcher.due for watcher in begun)}
            found |= listed
        return found

    async def _look_at_those_that_left(self, poll: SharedPoll, opened: _Opened, ended: set[str]) -> None:
        """Ask for those by themselves that are on no list on which they were, or for which somebody asked.

        :raises RoughyError: If the key was refused.
        """
        # Others may add some while this goes on.
        before, self._waiting = self._waiting, {}
        after = {id: seen.state for id, seen in opened.waiting.items()}
        try:
            after |= await self._look_at(poll, {id: before[id] for id in before.keys() - after.keys() - ended})
        except BaseException:
            after = before | after
            raise
        finally:
            self._waiting = after | self._waiting

    async def _look_at(self, poll: SharedPoll, ids: Mapping[str, str]) -> dict[str, str]:
        """Look at assets, each by itself or on a list, whichever costs less.

        :param ids: Which, with the states in which they were.
        :returns: Those that have to be looked at again.
        :raises RoughyError: If the key was refused.
        """
        watches = []
        for id, state in ids.items():
            watch = Watch(ASSET, id, log=_SILENT, one_of_many=True)
            watch.state = None if state in _OPEN else state
            watches.append(watch)
        answers = await poll.look(watches, after=0.0, interval=self._interval) if watches else []
        if poll.base_url != self.base_url:
            raise _MovedError
        left: dict[str, str] = {}
        for (id, state), answer in zip(ids.items(), answers, strict=True):
            if not isinstance(answer, RoughyError):
                seen = Sighting.of(answer)
                self._tell([seen])
                if seen.state in self._known:
                    self._known[seen.state].add(id)
                elif seen.state in _OPEN or seen.state not in ASSET.outcomes:
                    left[id] = seen.state
            elif answer.transient:
                left[id] = state
            elif poll.concerns_all(answer):
                raise answer
            else:
                for watcher in self._watchers:
                    watcher.lost(id)
        return left

    def _tell(self, seen: Sequence[Sighting]) -> None:
        for watcher in self._watchers:
            watcher.saw(seen)

    async def _pages(
        self, poll: SharedPoll, state: str, failed: list[RoughyError]
    ) -> AsyncGenerator[list[Sighting], None]:
        """Yield the list of a state page by page, newest first, and skip nobody though the list moves meanwhile.

        An asset that leaves the list lets those after it move up. So a page begins with the last one of the page
        before; if it does not, some have moved up, and the list is read again from further up.

        :param failed: Takes what ended the list too early, if it does not concern all of Roughy.
        :raises RoughyError: If it does.
        """
        offset, listed = 0, set[str]()
        before: Page[RoughyAsset] | None = None
        try:
            while True:
                page = await self._read(poll, offset=offset, state=state)
                if offset and (not page.items or page.items[0].id not in listed):
                    offset = max(0, min(offset, page.total) - PAGE_SIZE // 2)
                    continue
                if before is not None and page.items == before.items:
                    raise RoughyProtocolError(f"The list of {state} assets does not go on after {page.offset}")
                before = page
                listed.update(asset.id for asset in page.items)
                # A server that does not know the filter must not decide.
                if seen := [Sighting.of(asset) for asset in page.items if asset.state == state]:
                    yield seen
                offset += len(page.items)
                if len(page.items) < 2 or offset >= page.total:
                    return
                offset -= 1
        except RoughyError as error:
            if poll.concerns_all(error):
                raise
            failed.append(error)

    async def _read(self, poll: SharedPoll, **what: Any) -> Page[RoughyAsset]:
        assert ASSET.list is not None
        page: Page[RoughyAsset] = await poll.read(ASSET.list(**what))
        if poll.base_url != self.base_url:
            raise _MovedError
        return page


@dataclass
class _Opened:
    """What had not ended when it was read.

    :param base_url: At which Roughy.
    :param waiting: What was on the lists.
    :param baseline: Where who begins now begins, if that was asked for; without those that wait.
    """

    base_url: str
    waiting: dict[str, Sighting] = field(default_factory=dict)
    baseline: Baseline | None = None


class _Shelf:
    """A ledger, for all watchers of one lookout: asked in a thread, so that a storage that hangs holds nobody up.

    :param location: Where it is.
    :param conn_id: The Airflow connection of that storage.
    """

    def __init__(self, location: str, conn_id: str | None) -> None:
        self._location = location
        self._conn_id = conn_id
        self._ledger: Ledger | None = None
        # One, so that a storage that hangs does not collect threads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="roughy-watch")
        #: What is known to be taken, for good.
        self._taken: set[tuple[str, str]] = set()

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def is_taken(self, seen: Sighting) -> bool:
        """Whether an asset is known to be taken in its state."""
        return (seen.id, seen.state) in self._taken

    async def look_at(self, due: Iterable[Sighting]) -> None:
        """Read which assets were taken.

        :raises RoughyLedgerError: If the ledger cannot be read.
        """
        asked = [(seen.id, seen.state) for seen in due if not self.is_taken(seen)]
        if asked:
            self._taken |= await self._ask(lambda ledger: _taken_of(ledger, asked))

    async def note(self, name: str) -> dict[str, Any] | None:
        """Return what was noted under a name.

        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        return await self._ask(lambda ledger: ledger.note(name))

    async def note_once(self, name: str, what: Mapping[str, Any]) -> dict[str, Any]:
        """Note something under a name, unless something was, and return what is noted there.

        :raises RoughyLedgerError: If the ledger cannot be used.
        """
        return await self._ask(lambda ledger: ledger.note_once(name, what))

    async def _ask(self, ask: Callable[[Ledger], T]) -> T:
        # In a thread of asgiref: only from such a one does Airflow find its way back to the loop, which it looks up the
        # storage's connection by.
        from asgiref.sync import sync_to_async

        def asked() -> T:
            ledger = self._ledger or Ledger(self._location, conn_id=self._conn_id)
            if self._ledger is None:
                ledger.check()
            self._ledger = ledger
            return ask(ledger)

        try:
            async with asyncio.timeout(_STORAGE_SECONDS):
                return await sync_to_async(asked, thread_sensitive=False, executor=self._thread)()
        except TimeoutError:
            raise RoughyLedgerError(f"The ledger did not answer within {_STORAGE_SECONDS:.0f} s") from None
        except RoughyError:
            # With another look at the connection of its storage, which may have been mended.
            self._ledger = None
            raise


def _taken_of(ledger: Ledger, asked: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    # The names alone of 20,000 take a tenth of a second, which no event loop waits for.
    keys = {taken_key(id, state): (id, state) for id, state in asked}
    return {keys[key] for key in ledger.known(keys)}


class Watcher:
    """Picks what one trigger has to announce. No trouble ends it: what it takes is tried until it works.

    :param roughy_conn_id: The Airflow connection.
    :param ledger: Where is kept what was taken, and where this began.
    :param ledger_conn_id: The Airflow connection of that storage.
    :param project_id: Whose assets are watched; ``None`` for all of the account.
    :param states: In which states they are announced.
    :param poll_interval: Seconds between two looks.
    :param catchup: Whether what had ended before the first start is announced as well.
    :param log: Where to tell what is announced, and what is wrong.
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
        log: Any,
    ) -> None:
        self.roughy_conn_id = roughy_conn_id
        self.states = states
        self.poll_interval = poll_interval
        #: ``None`` until it has begun.
        self.baseline: Baseline | None = None
        #: What is to be announced, as far as it is not known to be taken.
        self.due: dict[str, Sighting] = {}
        #: Where the ledger is, and the Airflow connection of that storage.
        self.shelf_key = (ledger, ledger_conn_id)
        self._project_id = project_id
        self._catchup = catchup
        self._log = log
        self._wake = asyncio.Event()
        self._announced: set[Sighting] = set()
        self._pause = poll_interval
        self._repeat_at = 0.0
        self._shelf: _Shelf | None = None

    async def payloads(self) -> AsyncGenerator[dict[str, list[str]], None]:
        """Yield what is due, again and again until it is taken; without end."""
        trouble = _Trouble(f"Ledger {self.shelf_key[0]}: what was taken is not known", self._log, self.poll_interval)
        async with Lookout.joined(self) as lookout:
            self._shelf = lookout.shelf(self.shelf_key)
            while True:
                payload = None
                lookout.start()
                try:
                    if self.baseline is None:
                        await self._begin(lookout)
                    self._wake.clear()
                    payload = await self._next(lookout)
                    trouble.is_over()
                except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                    raise
                except _MovedError:
                    continue
                except BaseException as error:  # Airflow has errors that are no Exception.
                    await asyncio.sleep(trouble.rest_after(error, self.poll_interval))
                    continue
                if payload is not None:
                    yield payload
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._repeat_at if self.due else None):
                        await self._wake.wait()

    # ---- What the lookout tells

    def wake(self) -> None:
        """Look whether there is something to do."""
        self._wake.set()

    def start_anew(self) -> None:
        """Forget all, which was of another Roughy."""
        self.baseline, self.due = None, {}
        self._announced = set()
        self._wake.set()

    def saw(self, seen: Iterable[Sighting]) -> None:
        """Take note of assets as they were just seen."""
        if self.baseline is None or self._shelf is None:
            return
        for each in seen:
            mine = each.state in self.states and self._project_id in (None, each.project_id)
            if mine and self.baseline.admits(each) and not self._shelf.is_taken(each):
                self.due[each.id] = each
            elif self.due:
                self.lost(each.id)

    def lost(self, id: str) -> None:
        """Take note that an asset is no longer what was to be announced."""
        self.due.pop(id, None)

    # ---- Beginning

    async def _begin(self, lookout: Lookout) -> None:
        """Find out where this began, or begin now.

        :raises RoughyError: If that cannot be found out.
        """
        if self._catchup:
            self.baseline = Baseline()
            lookout.begin({})
            return
        await lookout.located.wait()
        base_url = lookout.base_url
        if base_url is None:
            raise RoughyProtocolError("The watch for assets has ended")
        name = f"watching {self._project_id or 'all'} of {self.roughy_conn_id} at {base_url}"
        assert self._shelf is not None
        noted = await self._shelf.note(name)
        if noted is None:
            opened = await lookout.baseline()
            if opened.baseline is None or opened.base_url != base_url:
                raise _MovedError
            now = opened.baseline.of_project(self._project_id, opened.waiting.values())
            noted = await self._shelf.note_once(name, {"of": name, **now})
        baseline = Baseline.from_json(noted)
        if lookout.base_url != base_url:
            raise _MovedError
        self.baseline = baseline
        lookout.begin(baseline.waiting)

    # ---- Announcing

    async def _next(self, lookout: Lookout) -> dict[str, list[str]] | None:
        """Return what has to be announced now.

        :raises RoughyLedgerError: If it cannot be found out what was taken.
        """
        is_new = not self._announced.issuperset(self._first())
        loop = asyncio.get_running_loop()
        if not self.due or not (is_new or loop.time() >= self._repeat_at):
            return None
        await self._drop_taken()
        if not is_new and self.due:
            # Somebody may have deleted them since. Only what an event holds: as much as is due, nobody may ever take.
            await lookout.look_again(self._first())
        first = self._first()
        if not first:
            return None
        self._pause = (
            self.poll_interval
            if not self._announced.issuperset(first)
            else min(2 * self._pause, max(_LONGEST_REPEAT, self.poll_interval))
        )
        self._repeat_at = loop.time() + self._pause * random.uniform(0.9, 1.1)
        new, self._announced = len(set(first) - self._announced), set(first)
        self._log.info("%s to be taken, %s of them new", counted(len(first), "asset"), f"{new:,}")
        payload: dict[str, list[str]] = {}
        for seen in first:
            payload.setdefault(seen.state, []).append(seen.id)
        return payload

    async def _drop_taken(self) -> None:
        assert self._shelf is not None
        await self._shelf.look_at(self.due.values())
        self.due = {id: seen for id, seen in self.due.items() if not self._shelf.is_taken(seen)}

    def _first(self) -> list[Sighting]:
        """Return what fits an event, the oldest of each state."""
        oldest_first = sorted(self.due.values(), key=lambda seen: (seen.created_at, seen.id))
        return [
            seen for state in self.states for seen in [each for each in oldest_first if each.state == state][:MOST_IDS]
        ]
