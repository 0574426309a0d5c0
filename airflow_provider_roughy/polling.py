"""Waiting: how one look after another becomes a verdict, and the poll that many waiters share.

A thousand deferred tasks must not ask a thousand questions a round. So waiters of one event loop and one connection
share a :class:`SharedPoll`. It knows who wants to look at what, and each round it takes the cheaper way: one ``GET`` a
resource, or one pass over the list of those still in work, 100 a page, and a ``GET`` only for what is not on it. The
list is a hint that somebody is still waiting; only the ``GET`` says that somebody is done.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyError,
    RoughyRateLimitError,
    RoughyUnreachableError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, Kind, OnPendingPayment, Outcome, Verdict

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call, Page
    from airflow_provider_roughy.client import AsyncClient

#: Seconds that a round waits for others who want to look as well: a triggerer starts its triggers in bursts.
_GATHER_SECONDS = 0.05
#: Seconds that the last look may take after the deadline.
_GRACE_SECONDS = 5.0
#: ``GET`` requests under way at once.
_AT_ONCE = 8
#: Waiters that are answered before the event loop may do something else.
_BATCH = 25


class Watch:
    """Judges one look at an asset after another, and logs each state once, with the time spent in the one before.

    :param asset_id: The asset.
    :param on_pending_payment: Whether an unpaid asset is waited for (``"wait"``).
    :param log: Where to say what was seen: a logger of the standard library or of structlog.
    """

    def __init__(self, asset_id: str, *, on_pending_payment: OnPendingPayment, log: Any) -> None:
        self.asset_id = asset_id
        self.on_pending_payment = on_pending_payment
        self.log = log
        self.state: str | None = None
        self.error: RoughyError | None = None
        self._since = time.monotonic()

    def saw(self, asset: api.RoughyAsset) -> Verdict:
        """Judge an asset that was just read."""
        verdict = Verdict.of(ASSET, asset)
        if verdict.state != self.state:
            self._log_state(verdict)
            self._since = time.monotonic()
        self.state, self.error = verdict.state, None
        return verdict

    def missed(self, error: RoughyError) -> None:
        """Take note of a look that failed and may succeed later."""
        if self.error is None or str(self.error) != str(error):
            self.log.warning(
                "Asset %s could not be looked at, and is waited for all the same: %s", self.asset_id, error
            )
        self.error = error

    def _log_state(self, verdict: Verdict) -> None:
        spent = f", after {time.monotonic() - self._since:.0f} s as {self.state}" if self.state else ""
        if not verdict.known:
            self.log.warning(
                "Asset %s is in state %r%s, which this version does not know: waiting on until the deadline. "
                "Is there a newer airflow-provider-roughy?",
                verdict.id,
                verdict.state,
                spent,
            )
        elif verdict.outcome is Outcome.PAYMENT_REQUIRED:
            self.log.warning(
                "Asset %s is %s%s: the credits did not cover it. Top up at Roughy within 30 days and it becomes ready "
                "by itself; on_pending_payment=%r decides what happens meanwhile (request %s)",
                verdict.id,
                verdict.state,
                spent,
                self.on_pending_payment,
                verdict.request_id,
            )
        else:
            self.log.info("Asset %s is %s%s (request %s)", verdict.id, verdict.state, spent, verdict.request_id)

    def look(self, hook: RoughyHook) -> Verdict | None:
        """Look once, and return the verdict if it is final.

        :param hook: Looks.
        :raises RoughyError: If Roughy refuses for good: wrong key, no such asset.
        """
        try:
            verdict = self.saw(hook.get_asset(self.asset_id))
        except RoughyError as error:
            if not error.transient:
                raise
            self.missed(error)
            return None
        return verdict if verdict.is_final(self.on_pending_payment) else None


async def wait_for_asset(hook: RoughyHook, watch: Watch, *, poll_interval: float, deadline: float) -> Verdict:
    """Look at an asset until there is a final verdict: the one polling loop of this package.

    A look that fails for a reason that may pass does not end the wait.

    :param hook: Names the connection.
    :param watch: Judges.
    :param poll_interval: Seconds between two looks, give or take a tenth, so that rounds of many connections spread.
    :param deadline: When to give up, in seconds since the epoch.
    """
    async with SharedPoll.joined(hook, ASSET) as poll:
        pause = 0.0
        while True:
            left = max(0.0, deadline - time.time())
            try:
                async with asyncio.timeout(left + _GRACE_SECONDS):
                    answer = await poll.look(watch.asset_id, state=watch.state, after=min(pause, left))
                verdict = watch.saw(answer)
            except TimeoutError:
                return Verdict.timed_out(ASSET, watch.asset_id, state=watch.state, error=watch.error)
            except RoughyError as error:
                if not error.transient:
                    return Verdict.refused(ASSET, watch.asset_id, error)
                watch.missed(error)
            else:
                if verdict.is_final(watch.on_pending_payment):
                    return verdict
            if deadline <= time.time():
                return Verdict.timed_out(ASSET, watch.asset_id, state=watch.state, error=watch.error)
            pause = poll_interval * random.uniform(0.9, 1.1)


@dataclass(frozen=True)
class _Reader:
    """How a kind of resource is read.

    :param get: Reads one, by id.
    :param list: Reads a page of those in one state, from an offset.
    """

    get: Callable[[str], Call[Any]]
    list: Callable[[str, int], Call[Page[Any]]]


_READERS = {
    ASSET.name: _Reader(get=api.get_asset, list=lambda state, offset: api.list_assets(state=state, offset=offset)),
}


@dataclass(eq=False)
class _Look:
    """One waiter's wish to look.

    :param id: At what.
    :param state: In which state it was seen last, ``None`` if it never was.
    :param due: When, on the clock of the event loop.
    :param ready: From when on it goes along if somebody else is due, so that many looks make one round.
    :param answer: What it gets: the resource, or an error.
    """

    id: str
    state: str | None
    due: float
    ready: float
    answer: asyncio.Future[Any]


class SharedPoll:
    """Looks for all waiters of one event loop, connection and kind of resource. Joined by :meth:`joined`.

    :param hook: Names the connection.
    :param kind: What is waited for.
    """

    #: Those under way. An event loop that is gone takes its own with it.
    _polls: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], SharedPoll]]] = (
        WeakKeyDictionary()
    )

    def __init__(self, hook: RoughyHook, kind: Kind) -> None:
        self._hook = hook
        self._kind = kind
        self._reader = _READERS[kind.name]
        self._waiters = 0
        self._looks: set[_Look] = set()
        self._wake = asyncio.Event()
        self._client: AsyncClient | None = None
        self._not_before = 0.0
        self._task: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def joined(cls, hook: RoughyHook, kind: Kind) -> AsyncIterator[SharedPoll]:
        """Join the poll of the running event loop; the last one out closes it.

        :param hook: Names the connection.
        :param kind: What is waited for.
        """
        polls = cls._polls.setdefault(asyncio.get_running_loop(), {})
        key = (hook.roughy_conn_id, kind.name)
        poll = polls.get(key)
        if poll is None:
            poll = polls[key] = cls(hook, kind)
        poll._waiters += 1
        try:
            yield poll
        finally:
            poll._waiters -= 1
            if not poll._waiters:
                del polls[key]
                await poll._close()

    async def look(self, id: str, *, state: str | None, after: float) -> Any:
        """Look at a resource in the next round that is due.

        :param id: The resource.
        :param state: In which state it was seen last.
        :param after: Seconds to wait; the look may come sooner, with somebody else's.
        :raises RoughyError: What was wrong with the look.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        look = _Look(id, state, now + after, now + 0.75 * after, loop.create_future())
        self._looks.add(look)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        self._wake.set()
        try:
            return await look.answer
        finally:
            self._looks.discard(look)

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            start = max(min((look.due for look in self._looks), default=float("inf")), self._not_before)
            if loop.time() < start:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), None if start == float("inf") else start - loop.time())
                continue
            await asyncio.sleep(_GATHER_SECONDS)
            try:
                await self._round()
            except RoughyError as error:
                if isinstance(error, RoughyApiError) and error.retry_after is not None:
                    # Everybody waits, once.
                    self._not_before = loop.time() + error.retry_after
                await self._answer(self._due(), error)
            except Exception as error:
                # Nobody must wait for a round that died.
                await self._answer(set(self._looks), error)

    def _due(self) -> set[_Look]:
        now = asyncio.get_running_loop().time()
        return {look for look in self._looks if look.ready <= now}

    async def _round(self) -> None:
        """Answer all looks that are due, and those that a list answers on the way."""
        due = self._due()
        by_state: dict[str, set[_Look]] = {}
        for look in self._looks:
            # A newcomer's is most likely in work.
            by_state.setdefault(look.state or self._kind.working, set()).add(look)
        for state, looks in by_state.items():
            if len(looks & due) > 1 and self._kind.outcomes.get(state) is not None:
                await self._pass_over(state, looks, worth=len(looks & due))
        rest = {look for look in due if not look.answer.done()}
        by_id: dict[str, list[_Look]] = {}
        for look in rest:
            by_id.setdefault(look.id, []).append(look)
        # In no fixed order: one that ends the round must not stand before the same others each time.
        turns = iter(random.sample(sorted(by_id), len(by_id)))

        async def get_in_turn() -> None:
            for id in turns:
                await self._get(id, by_id[id])

        await _all_or_nothing(get_in_turn() for _ in range(min(_AT_ONCE, len(by_id))))

    async def _pass_over(self, state: str, looks: set[_Look], *, worth: int) -> None:
        """Read the list of a state, as far as that is cheaper than asking one by one.

        :param state: Whose list.
        :param looks: Those that it may answer.
        :param worth: How many requests it may cost.
        """
        wanted: dict[str, list[_Look]] = {}
        for look in looks:
            wanted.setdefault(look.id, []).append(look)
        offset: int | None = 0
        cost = 0
        while offset is not None and wanted and cost < worth:
            page = await self._ask(self._reader.list(state, offset))
            cost += 1
            found = [(item, wanted.pop(item.id)) for item in page.items if item.id in wanted]
            for item, answered in found:
                await self._answer(answered, item)
            if (page.total - page.offset) / max(page.limit, 1) > max(len(wanted), 1) + cost:
                # So much of the list is somebody else's that asking one by one is cheaper.
                return
            offset = page.next_offset

    async def _get(self, id: str, looks: list[_Look]) -> None:
        try:
            answer = await self._ask(self._reader.get(id))
        except (RoughyUnreachableError, RoughyAuthenticationError, RoughyRateLimitError):
            # The same would happen to everybody.
            raise
        except RoughyError as error:
            answer = error
        await self._answer(looks, answer)

    async def _ask(self, call: Call[Any]) -> Any:
        """Send a call once: the next round is the retry."""
        from airflow_provider_roughy.client import Backoff

        if self._client is None:
            self._client = await self._hook.aopen()
        try:
            return await self._client.run(call, backoff=Backoff(tries=1))
        except RoughyAuthenticationError:
            # The key may have been changed while everybody waited.
            hook = RoughyHook(self._hook.roughy_conn_id)
            if await hook.aget_settings() == self._client.settings:
                raise
            await self._client.close()
            self._hook, self._client = hook, await hook.aopen()
            return await self._client.run(call, backoff=Backoff(tries=1))

    @staticmethod
    async def _answer(looks: Iterable[_Look], answer: Any) -> None:
        for number, look in enumerate(looks, start=1):
            if not look.answer.done():
                if isinstance(answer, Exception):
                    look.answer.set_exception(answer)
                else:
                    look.answer.set_result(answer)
            if number % _BATCH == 0:
                await asyncio.sleep(0)


async def _all_or_nothing(steps: Iterable[Any]) -> None:
    """Run them at once; if one fails, stop the others and raise its error."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
