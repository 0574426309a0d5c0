"""Waiting: how one look after another becomes a verdict, and the poll that many waiters share.

A thousand deferred tasks must not ask a thousand questions a round. So waiters of one event loop and one connection
share a :class:`SharedPoll`. It knows who wants to look at what, and each round it takes the cheaper way: one ``GET`` a
resource, or one pass over the list of those in the same state, 100 a page, and a ``GET`` only for what is not on it.
The list is a hint that nothing has changed; what became of a resource, only its ``GET`` says.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from airflow_provider_roughy import api
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyUnreachableError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import ASSET, Kind, OnPendingPayment, Outcome, Verdict

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call, Page
    from airflow_provider_roughy.client import AsyncClient, Backoff

#: Seconds that a round waits for others who want to look as well: a triggerer starts its triggers in bursts.
_GATHER_SECONDS = 0.05
#: Seconds that the last look may take after the deadline.
_GRACE_SECONDS = 5.0
#: ``GET`` requests under way at once.
_AT_ONCE = 8
#: Requests in a row that may fail before the rest of a round is put off.
_FAILURES = 3
#: Waiters that are answered before the event loop may do something else.
_BATCH = 25

_log = logging.getLogger(__name__)


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


class Watch:
    """Judges one look at a resource after another, and logs each state once, with the time spent in the one before.

    :param id: The resource.
    :param kind: What it is.
    :param on_pending_payment: Whether an unpaid one is waited for (``"wait"``).
    :param log: Where to say what was seen: a logger of the standard library or of structlog.
    """

    def __init__(self, id: str, *, on_pending_payment: OnPendingPayment, log: Any, kind: Kind = ASSET) -> None:
        self.id = id
        self.kind = kind
        self.on_pending_payment = on_pending_payment
        self.log = log
        self.state: str | None = None
        self.error: RoughyError | None = None
        self._since = time.monotonic()
        self._missed = 0
        self._title = kind.name.capitalize()

    def saw(self, resource: Any) -> Verdict:
        """Judge a resource that was just read."""
        verdict = Verdict.of(self.kind, resource)
        if self._missed:
            self.log.info("%s %s can be looked at again, after %d failed looks", self._title, self.id, self._missed)
        if verdict.state != self.state:
            self._log_state(verdict)
            self._since = time.monotonic()
        self.state, self.error, self._missed = verdict.state, None, 0
        return verdict

    def missed(self, error: RoughyError) -> None:
        """Take note of a look that failed and may succeed later."""
        if type(error) is not type(self.error):
            self.log.warning(
                "%s %s could not be looked at, and is waited for all the same: %s", self._title, self.id, error
            )
        self.error = error
        self._missed += 1

    def timed_out(self) -> Verdict:
        """Judge that the deadline passed first."""
        return Verdict.timed_out(self.kind, self.id, state=self.state, error=self.error)

    def _log_state(self, verdict: Verdict) -> None:
        spent = f", after {time.monotonic() - self._since:.0f} s as {self.state}" if self.state else ""
        if not verdict.known:
            self.log.warning(
                "%s %s is in state %r%s, which this version does not know: waiting on until the deadline. "
                "Is there a newer airflow-provider-roughy?",
                self._title,
                verdict.id,
                verdict.state,
                spent,
            )
        elif verdict.outcome is Outcome.PAYMENT_REQUIRED:
            self.log.warning(
                "%s %s is %s%s: the credits did not cover it. Top up at Roughy within 30 days and it becomes ready "
                "by itself; on_pending_payment=%r decides what happens meanwhile (request %s)",
                self._title,
                verdict.id,
                verdict.state,
                spent,
                self.on_pending_payment,
                verdict.request_id,
            )
        else:
            self.log.info(
                "%s %s is %s%s (request %s)", self._title, verdict.id, verdict.state, spent, verdict.request_id
            )

    def look(self, hook: RoughyHook) -> Verdict | None:
        """Look once, and return the verdict if it is final.

        :param hook: Looks.
        :raises RoughyError: If Roughy refuses for good: wrong key, no such resource.
        """
        try:
            verdict = self.saw(hook.client.run(_READERS[self.kind.name].get(self.id)))
        except RoughyError as error:
            if not error.transient:
                raise
            self.missed(error)
            return None
        return verdict if verdict.is_final(self.on_pending_payment) else None


async def wait_until_final(hook: RoughyHook, watch: Watch, *, poll_interval: float, deadline: float) -> Verdict:
    """Look at a resource until there is a final verdict: the one polling loop of this package.

    A look that fails for a reason that may pass does not end the wait.

    :param hook: Names the connection.
    :param watch: Judges.
    :param poll_interval: Seconds between two looks, give or take a tenth, so that rounds of many connections spread.
    :param deadline: When to give up, in seconds since the epoch.
    """
    async with SharedPoll.joined(hook, watch.kind) as poll:
        pause = 0.0
        while True:
            left = max(0.0, deadline - time.time())
            try:
                async with asyncio.timeout(left + _GRACE_SECONDS):
                    resource = await poll.look(watch.id, state=watch.state, after=min(pause, left))
                verdict = watch.saw(resource)
            except TimeoutError:
                return watch.timed_out()
            except RoughyError as error:
                if not error.transient:
                    return Verdict.refused(watch.kind, watch.id, error)
                watch.missed(error)
            else:
                if verdict.is_final(watch.on_pending_payment):
                    return verdict
            if deadline <= time.time():
                return watch.timed_out()
            pause = poll_interval * random.uniform(0.9, 1.1)


@dataclass(eq=False)
class _Look:
    """One waiter's wish to look.

    :param id: At what.
    :param state: In which state it was seen last, ``None`` if it never was.
    :param due: When, on the clock of the event loop.
    :param ready: From when on it goes along if somebody else is due, so that many looks make one round.
    :param answer: What it gets: the resource, or the error that stands for it.
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
        self._backoff: Backoff | None = None
        self._not_before = 0.0
        self._failures = 0
        self._warned = False
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
        if self._task is None:
            # In no waiter's context: what is logged for all must not land in the log of the one who came first.
            self._task = loop.create_task(self._run(), context=Context())
        self._wake.set()
        try:
            answer = await look.answer
        finally:
            self._looks.discard(look)
        if isinstance(answer, RoughyError):
            # A copy, since raising an error writes into it.
            raise copy(answer)
        if isinstance(answer, Exception):
            raise RuntimeError(f"The shared poll failed: {answer!r}") from answer
        return answer

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    # ---- Rounds

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
                await self._put_off(error)
            except Exception as error:
                # Nobody must wait for a round that died.
                await _answer([(look, error) for look in self._looks])

    def _due(self) -> set[_Look]:
        now = asyncio.get_running_loop().time()
        return {look for look in self._looks if look.ready <= now}

    async def _round(self) -> None:
        """Answer all looks that are due, and those that a list answers on the way.

        :raises RoughyError: If the next request would meet the same.
        """
        if self._client is None:
            self._client = await self._hook.aopen()
        client, due = self._client, self._due()
        by_state: dict[str, set[_Look]] = {}
        for look in self._looks:
            # A newcomer's is most likely in work.
            by_state.setdefault(look.state or self._kind.working, set()).add(look)
        for state, looks in by_state.items():
            if state in self._kind.outcomes:
                await self._pass_over(client, state, looks, due)
        by_id = _by_id(look for look in due if not look.answer.done())
        # In no fixed order: those that fail must not stand before the same others each time.
        turns = random.sample(sorted(by_id), len(by_id))

        async def get_in_turn() -> None:
            while turns:
                id = turns.pop()
                try:
                    answer = await self._ask(client, self._reader.get(id))
                except BaseException:
                    # The others end what they have begun, and begin nothing more.
                    turns.clear()
                    raise
                await _answer((look, answer) for look in by_id[id])

        ends = await asyncio.gather(*(get_in_turn() for _ in range(_AT_ONCE)), return_exceptions=True)
        for error in ends:
            if isinstance(error, BaseException):
                raise error
        if self._backoff is not None:
            self._backoff.refill()

    async def _pass_over(self, client: AsyncClient, state: str, looks: set[_Look], due: set[_Look]) -> None:
        """Read the list of a state, as long as a page of it costs less than the questions that it saves.

        :param client: Reads.
        :param state: Whose list.
        :param looks: Those that it may answer.
        :param due: Those that must be answered in this round.
        """
        wanted = _by_id(looks)
        left = {look.id for look in looks & due}
        pages, offset = 1, 0
        while pages < len(left):
            page = await self._ask(client, self._reader.list(state, offset))
            if isinstance(page, RoughyError):
                if not self._warned:
                    self._warned = True
                    _log.warning(
                        "A list cannot be read, so that each %s is asked for by itself: %s", self._kind.name, page
                    )
                return
            # A server that does not know the filter must not decide.
            seen = [item for item in page.items if item.state == state and item.id in wanted]
            await _answer((look, item) for item in seen for look in wanted.pop(item.id, ()))
            left.difference_update(item.id for item in seen)
            if page.next_offset is None:
                return
            offset = page.next_offset
            pages = -(-(page.total - offset) // len(page.items))

    async def _ask(self, client: AsyncClient, call: Call[Any]) -> Any:
        """Send a call once, the next round being the retry, and return the reply or what is wrong with just this one.

        :raises RoughyError: If the next call would meet the same.
        """
        from airflow_provider_roughy.client import Backoff

        try:
            value = await client.run(call, backoff=Backoff(tries=1))
        except RoughyError as error:
            self._failures = self._failures + 1 if error.transient else 0
            if self._concerns_all(error):
                raise
            return error
        self._failures = 0
        return value

    def _concerns_all(self, error: RoughyError) -> bool:
        if isinstance(error, RoughyAuthenticationError):
            return error.status != 403
        if isinstance(error, RoughyApiError) and (error.status == 429 or error.retry_after is not None):
            return True
        return isinstance(error, RoughyUnreachableError) or self._failures >= _FAILURES

    async def _put_off(self, error: RoughyError) -> None:
        """End a round that met what all others would meet: everybody hears of it and waits, once.

        :param error: What it met.
        """
        from airflow_provider_roughy.client import Backoff

        self._failures = 0
        if isinstance(error, RoughyAuthenticationError):
            try:
                if await self._reconnect():
                    # The looks are still due.
                    return
            except RoughyConfigurationError as unusable:
                error = unusable
        if self._backoff is None:
            self._backoff = Backoff(tries=sys.maxsize, patience=float("inf"))
        self._not_before = asyncio.get_running_loop().time() + (self._backoff.pause_after(error) or 0.0)
        await _answer((look, error) for look in self._due())

    async def _reconnect(self) -> bool:
        """Read the connection again, and return whether it was changed while everybody waited."""
        hook = RoughyHook(self._hook.roughy_conn_id)
        if self._client is None or await hook.aget_settings() == self._client.settings:
            return False
        client, self._client, self._hook = self._client, None, hook
        await client.close()
        return True


def _by_id(looks: Iterable[_Look]) -> dict[str, list[_Look]]:
    found: dict[str, list[_Look]] = {}
    for look in looks:
        found.setdefault(look.id, []).append(look)
    return found


async def _answer(answers: Iterable[tuple[_Look, Any]]) -> None:
    for number, (look, answer) in enumerate(answers, start=1):
        if not look.answer.done():
            look.answer.set_result(answer)
        if number % _BATCH == 0:
            await asyncio.sleep(0)
