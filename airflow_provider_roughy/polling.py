"""Waiting: how one look after another becomes a verdict, and the poll that many waiters share.

A thousand deferred tasks must not ask a thousand questions a round. So waiters of one event loop and one connection
share a :class:`SharedPoll`. It knows who wants to look at what, and each round it takes the cheaper way: one ``GET`` a
resource, or one pass over the list of those in the same state, 100 a page, and a ``GET`` only for what is not on it.
The list is a hint that nothing has changed; what became of a resource, only its ``GET`` says, and before a waiter is
told that its time is up, it gets one more ``GET``. The exception is a batch: where hundreds end at once, the lists of
those that have ended are read before any is asked for by itself, because a list may lag, but no list makes up an end.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context, copy_context
from copy import copy
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_roughy.api import resource_id
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyError,
    RoughyMissingConnectionError,
    RoughyProtocolError,
    RoughyUnreachableError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.lifecycle import Kind, OnPendingPayment, Outcome, Verdict, counted
from airflow_provider_roughy.retry import Backoff, Tries

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call
    from airflow_provider_roughy.client import AsyncClient
    from airflow_provider_roughy.settings import Settings

T = TypeVar("T")

#: What a look gets: the resource, or what was wrong with the look.
_Answer = Any | RoughyError

#: Seconds that one look may take in all.
_LOOK_SECONDS = 30.0
#: Seconds that the last look may take after the deadline.
_GRACE_SECONDS = 20.0
#: Seconds that a round waits for others who want to look as well: a triggerer starts its triggers in bursts.
_GATHER_SECONDS = 0.05
#: Seconds of ``Retry-After`` that a poll obeys; a longer one is taken for a mistake.
_MOST_RETRY_AFTER = 300.0
#: ``GET`` requests under way at once.
_AT_ONCE = 8
#: Requests in a row that may fail before the rest of a round is put off.
_FAILURES = 3
#: A resource that a list called unchanged so often in a row is asked for by itself.
_BELIEVED = 20
#: One in so many waiters may be asked for that reason in one round.
_DOUBTED = 1000
#: Waiters that are answered before the event loop may do something else.
_BATCH = 25
#: Seconds after which a task that was cancelled is cancelled again.
_CANCEL_SECONDS = 1.0
#: How often a call that is no look is sent in all.
_READ_TRIES = 3
#: Pages in a row of a list of ends that may tell nothing of those that are waited for.
_EMPTY_PAGES = 2

#: Seconds between two lines about a batch.
_TELL_SECONDS = 10.0

_log = logging.getLogger(__name__)
#: For what is told of a batch as a whole.
_SILENT = logging.Logger("silent", level=logging.CRITICAL + 1)


class Watch:
    """Judges one look at a resource after another, and logs each state once, with the time spent in the one before.

    :param kind: What is waited for.
    :param id: Which; in any spelling of a UUID.
    :param log: Where to say what was seen: a logger of the standard library or of structlog.
    :param on_pending_payment: Whether an unpaid one is waited for (``"wait"``), if the kind is one that is paid for.
    :param one_of_many: Whether a list may tell its end, for it is one of a batch.
    """

    def __init__(
        self,
        kind: Kind,
        id: str,
        *,
        log: Any,
        on_pending_payment: OnPendingPayment = "fail",
        one_of_many: bool = False,
    ) -> None:
        self.kind = kind
        self.id = _canonical(id)
        self.on_pending_payment = on_pending_payment
        self.one_of_many = one_of_many
        self.log = log
        self.state: str | None = None
        self.error: RoughyError | None = None
        #: When to look again at the earliest, in seconds since the epoch, as Roughy asked for at the last look.
        self.not_before = 0.0
        #: How often in a row a list, and nothing else, said that nothing has changed.
        self.unchanged = 0
        self._since = time.monotonic()
        self._missed = 0
        self._title = kind.name.capitalize()

    def look(self, hook: RoughyHook, *, within: float = _LOOK_SECONDS) -> Verdict | None:
        """Look once, and return the verdict if it is final.

        :param hook: Looks.
        :param within: Seconds that it may take.
        :raises RoughyMissingConnectionError: If there is nothing to look with.
        """
        try:
            resource = hook.client.once(self.kind.read(self.id), within=min(within, _LOOK_SECONDS))
        except RoughyMissingConnectionError:
            raise
        except RoughyError as error:
            return self.missed(error)
        return self.saw(resource)

    def take(self, answer: _Answer) -> Verdict | None:
        """Judge what a look got, and return the verdict if it is final."""
        return self.missed(answer) if isinstance(answer, RoughyError) else self.saw(answer)

    def saw(self, resource: Any) -> Verdict | None:
        """Judge a resource that was just read, and return the verdict if it is final."""
        verdict = Verdict.of(self.kind, resource)
        if self.one_of_many:
            verdict = verdict.brief()
        if self._missed:
            failed = counted(self._missed, "failed look")
            self.log.info("%s %s can be looked at again, after %s", self._title, self.id, failed)
        if verdict.state != self.state:
            self._log_state(verdict)
            self._since = time.monotonic()
        self.state, self.error, self.not_before, self._missed = verdict.state, None, 0.0, 0
        return verdict if verdict.is_final(self.on_pending_payment) else None

    def missed(self, error: RoughyError) -> Verdict | None:
        """Take note of a look that failed, and return the verdict if no other look could succeed."""
        if not error.transient:
            return Verdict.refused(self.kind, self.id, error)
        if type(error) is not type(self.error):
            self.log.warning(
                "%s %s could not be looked at, and is waited for all the same: %s", self._title, self.id, error
            )
        self.error = error
        self.not_before = time.time() + (_retry_after(error) or 0.0)
        self._missed += 1
        return None

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


def wait_here(
    hook: RoughyHook, watch: Watch, *, poll_interval: float, deadline: float, not_before: float = 0.0
) -> Verdict:
    """Block until there is a final verdict, whether or not an event loop runs in this thread (as in a notebook).

    The parameters are those of :func:`wait_until_final`.
    """
    return run_here(
        lambda: wait_until_final(hook, watch, poll_interval=poll_interval, deadline=deadline, not_before=not_before)
    )


def run_here(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, in an event loop and a thread of its own.

    So it does not matter whether an event loop runs in this thread (as in a notebook), and an error that a signal's
    handler raises, when a task is killed or takes too long, reaches the caller and not whichever part of the loop was
    running.

    :param make: Makes the coroutine.
    """
    loop: asyncio.AbstractEventLoop | None = None
    running: asyncio.Task[T] | None = None
    given_up = False

    async def run() -> T:
        nonlocal loop, running
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        if given_up:
            raise asyncio.CancelledError
        return await make()

    with ThreadPoolExecutor(1, thread_name_prefix="roughy-wait") as thread:
        future = thread.submit(copy_context().run, asyncio.run, run())
        try:
            return future.result()
        except BaseException:
            # The caller must not wait for the end of the wait, which may be yet to begin.
            given_up = True
            if loop is not None and running is not None and not future.done():
                loop.call_soon_threadsafe(running.cancel)
            raise


async def look_at_batch(hook: RoughyHook, kind: Kind, ids: Sequence[str]) -> dict[str, Verdict]:
    """Look once at a batch of resources.

    :param hook: Names the connection.
    :param kind: What they are.
    :param ids: Which.
    :returns: What is known of each, final or not. Those that could not be looked at are left out.
    :raises RoughyError: If the connection cannot be read, or is unusable.
    """
    watches = [Watch(kind, id, log=_SILENT, one_of_many=True) for id in ids]
    async with SharedPoll.joined(hook, kind) as poll:
        answers = await poll.look(watches, after=0.0, interval=_LOOK_SECONDS)
    found = {}
    for id, watch, answer in zip(ids, watches, answers, strict=True):
        verdict = watch.take(answer) or (None if isinstance(answer, RoughyError) else Verdict.of(kind, answer).brief())
        if verdict is not None:
            found[id] = verdict
    return found


async def wait_for_batch(
    hook: RoughyHook,
    kind: Kind,
    ids: Sequence[str],
    *,
    poll_interval: float,
    deadline: float,
    on_pending_payment: OnPendingPayment = "fail",
    log: Any = _log,
) -> list[Verdict]:
    """Look at a batch of resources until there is a final verdict on each; tell how far it is, but not of each.

    :param hook: Names the connection.
    :param kind: What they are.
    :param ids: Which.
    :param poll_interval: As of :func:`wait_until_all_final`.
    :param deadline: Likewise.
    :param on_pending_payment: As of :class:`Watch`.
    :param log: Where to tell how far it is, each time that states have changed, but at most every ten seconds.
    :returns: Their verdicts, in the order of ``ids``.
    """
    watches = [Watch(kind, id, on_pending_payment=on_pending_payment, log=_SILENT, one_of_many=True) for id in ids]
    told, told_at = "", float("-inf")

    def tell(left: Sequence[Watch]) -> None:
        nonlocal told, told_at
        states = Counter(watch.state or "not seen yet" for watch in watches)
        now = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
        if now != told and (time.monotonic() - told_at >= _TELL_SECONDS or not left):
            log.info("Waiting for %s of %s: %s", f"{len(left):,}", counted(len(watches), kind.name), now)
            told, told_at = now, time.monotonic()

    return await wait_until_all_final(hook, watches, poll_interval=poll_interval, deadline=deadline, on_round=tell)


async def wait_until_final(
    hook: RoughyHook, watch: Watch, *, poll_interval: float, deadline: float, not_before: float = 0.0
) -> Verdict:
    """Look at a resource until there is a final verdict.

    The parameters are those of :func:`wait_until_all_final`.
    """
    (verdict,) = await wait_until_all_final(
        hook, [watch], poll_interval=poll_interval, deadline=deadline, not_before=not_before
    )
    return verdict


async def wait_until_all_final(
    hook: RoughyHook,
    watches: Sequence[Watch],
    *,
    poll_interval: float,
    deadline: float,
    not_before: float = 0.0,
    on_round: Callable[[Sequence[Watch]], None] = lambda left: None,
) -> list[Verdict]:
    """Look at resources of one kind until there is a final verdict on each: the one polling loop of this package.

    A look that fails for a reason that may pass does not end the wait, nor does a connection that cannot be read.

    :param hook: Names the connection.
    :param watches: Judge, each of a resource of its own.
    :param poll_interval: Seconds between two looks, give or take a tenth, so that rounds of many connections spread.
    :param deadline: When to give up, in seconds since the epoch. One last look is taken then.
    :param not_before: When to look first, in seconds since the epoch: what a ``Retry-After`` asks for.
    :param on_round: Called after each round with those that are still waited for.
    :returns: Their verdicts, in the order of ``watches``.
    """
    verdicts: dict[Watch, Verdict] = {}
    left, pause = list(watches), max(0.0, not_before - time.time())

    def take(watch: Watch, answer: _Answer) -> None:
        verdict = watch.take(answer)
        if verdict is not None:
            verdicts[watch] = verdict

    async with AsyncExitStack() as seat:
        poll: SharedPoll | None = None
        while left:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.time())):
                    if poll is None:
                        await asyncio.sleep(pause)
                        poll, pause = await seat.enter_async_context(SharedPoll.joined(hook, left[0].kind)), 0.0
                    answers = await poll.look(left, after=pause, interval=poll_interval)
            except TimeoutError:
                break
            except RoughyError as error:
                answers = [error] * len(left)
            for watch, answer in zip(left, answers, strict=True):
                take(watch, answer)
            left = [watch for watch in left if watch not in verdicts]
            on_round(left)
            pause = poll_interval * random.uniform(0.9, 1.1)

        async def look_last(watch: Watch) -> None:
            nonlocal poll
            try:
                if poll is None:
                    poll = await seat.enter_async_context(SharedPoll.joined(hook, watch.kind))
                take(watch, await poll.look_now(watch.id))
            except RoughyError as error:
                take(watch, error)

        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                # The first one finds the seat for all.
                for watch in left[:1]:
                    await look_last(watch)
                await asyncio.gather(*map(look_last, left[1:]))
        return [verdicts.get(watch) or watch.timed_out() for watch in watches]


@dataclass(eq=False)
class _Look:
    """One waiter's wish to look.

    :param watch: Judges what is seen.
    :param due: When, on the clock of the event loop.
    :param ready: From when on it goes along if somebody else is due, so that many looks make one round.
    :param interval: Seconds between two looks of this waiter.
    :param answer: What it gets: the resource and whether it is a list's, or the error that stands for it.
    """

    watch: Watch
    due: float
    ready: float
    interval: float
    answer: asyncio.Future[tuple[Any, bool] | RoughyError]

    @property
    def id(self) -> str:
        """The resource."""
        return self.watch.id


class SharedPoll:
    """Looks for all waiters of one event loop, connection and kind of resource. Joined by :meth:`joined`.

    :param hook: Has read the connection.
    :param kind: What is waited for.
    """

    #: Those under way. An event loop that is gone takes its own with it. By the id of a connection, which is what a new
    #: key is read from, and by what it says: one that was changed meanwhile is another one, and those who came before
    #: it wait where they began.
    _polls: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, Settings, str], SharedPoll]]] = (
        WeakKeyDictionary()
    )

    def __init__(self, hook: RoughyHook, kind: Kind) -> None:
        self._hook = hook
        self._kind = kind
        self._waiters = 0
        self._looks: set[_Look] = set()
        self._wake = asyncio.Event()
        self._client: AsyncClient | None = None
        self._outdated: list[AsyncClient] = []
        self._opening = asyncio.Lock()
        self._last_looks = asyncio.Semaphore(_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        #: The next round starts no sooner.
        self._not_before = 0.0
        self._backoff: Backoff | None = None
        #: ``GET`` requests in a row that failed for a reason that may pass.
        self._failures = 0
        #: Whether Roughy is taken to be away, so that one request has to succeed before others are sent.
        self._away = False
        #: No list is read sooner.
        self._no_list_before = 0.0
        self._list_backoff: Backoff | None = None

    @classmethod
    @asynccontextmanager
    async def joined(cls, hook: RoughyHook, kind: Kind) -> AsyncIterator[SharedPoll]:
        """Join the poll of the running event loop; the last one out closes it.

        :param hook: Names the connection.
        :param kind: What is waited for.
        :raises RoughyError: If the connection cannot be read, or is unusable.
        """
        key = (hook.roughy_conn_id, await hook.aget_settings(), kind.name)
        polls = cls._polls.setdefault(asyncio.get_running_loop(), {})
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
                await finish(poll._close())

    async def look(self, watches: Sequence[Watch], *, after: float, interval: float) -> list[_Answer]:
        """Look at resources in the next round that is due.

        :param watches: Judge, each of a resource of its own.
        :param after: Seconds to wait; the looks may come sooner, with somebody else's.
        :param interval: Seconds between two looks of this waiter.
        :returns: What each gets, in their order: the resource, or what was wrong with the look.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        looks = [_Look(watch, now + after, now + 0.75 * after, interval, loop.create_future()) for watch in watches]
        self._looks.update(looks)
        if self._task is None or self._task.done():
            # With no context variables: Airflow would file what is logged for all into the log of whoever came first.
            self._task = loop.create_task(self._run(), context=Context())
            self._task.add_done_callback(self._died)
        self._wake.set()
        try:
            answers = await asyncio.gather(*(look.answer for look in looks))
        finally:
            self._looks.difference_update(looks)
        found: list[_Answer] = []
        for watch, answer in zip(watches, answers, strict=True):
            if isinstance(answer, RoughyError):
                # A copy, since raising an error writes into it.
                found.append(copy(answer))
                continue
            resource, listed = answer
            watch.unchanged = watch.unchanged + 1 if listed else 0
            found.append(resource)
        return found

    async def look_now(self, id: str) -> Any:
        """Look at a resource by itself, whatever rounds and pauses are due: the last look of a waiter.

        :param id: The resource.
        :raises RoughyError: What was wrong with the look.
        """
        async with self._last_looks:
            return await self._ask(self._kind.read(id))

    @property
    def base_url(self) -> str:
        """Where the connection leads, as it was last read."""
        return self._hook.settings.base_url

    async def read(self, call: Call[T]) -> T:
        """Send a call that is no look, such as a page of a list, after whatever pause all of this connection keep.

        :param call: What to ask.
        :raises RoughyError: What was wrong, after some tries if it may pass.
        """
        loop, tries = asyncio.get_running_loop(), Tries(call, Backoff(tries=_READ_TRIES, patience=_MOST_RETRY_AFTER))
        while True:
            await asyncio.sleep(max(0.0, self._not_before - loop.time()))
            try:
                found: T = await self._ask(call)
                return found
            except RoughyError as error:
                if (asked := _retry_after(error)) is not None:
                    self._not_before = max(self._not_before, loop.time() + asked)
                pause = tries.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await end(task)
        if self._client is not None:
            self._outdated.append(self._client)
            self._client = None
        await self._close_outdated()

    async def _close_outdated(self) -> None:
        while self._outdated:
            await self._outdated.pop().close()

    # ---- Rounds

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            start = max(min((look.due for look in self._looks), default=float("inf")), self._not_before)
            if loop.time() < start:
                # Not by asyncio.wait_for(), of which that of Python 3.11 may swallow a cancellation.
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(None if start == float("inf") else start):
                        await self._wake.wait()
                continue
            await asyncio.sleep(_GATHER_SECONDS)
            try:
                await self._round()
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # Airflow has errors that are no Exception.
                await self._put_off(error)

    def _died(self, task: asyncio.Task[None]) -> None:
        """Tell those who still wait that the task has ended; their next look starts it again."""
        left = [look for look in self._looks if not look.answer.done()]
        if task is not self._task or not left:
            return
        error = None if task.cancelled() else task.exception()
        _log.error("The poll of %ss has ended too early, and is started again", self._kind.name, exc_info=error)
        for look in left:
            look.answer.set_result(RoughyProtocolError("The poll has ended too early"))

    def _due(self) -> set[_Look]:
        now = asyncio.get_running_loop().time()
        return {look for look in self._looks if look.ready <= now and not look.answer.done()}

    async def _round(self) -> None:
        """Answer all looks that are due, and those that a list answers on the way.

        :raises RoughyError: If all other looks would meet the same.
        """
        due = self._due()
        await self._get_until_back(due)
        await self._read_lists(due)
        await self._get_until_back(due)
        turns = _shuffled(due)

        async def get_in_turn() -> None:
            while turns:
                try:
                    await self._get(*turns.pop())
                except BaseException:
                    # The others end what they have begun, and begin nothing more.
                    turns.clear()
                    raise

        ends = await asyncio.gather(*(get_in_turn() for _ in range(_AT_ONCE)), return_exceptions=True)
        await self._close_outdated()
        for error in ends:
            if isinstance(error, BaseException):
                raise error
        self._backoff = None

    async def _get_until_back(self, due: set[_Look]) -> None:
        """While Roughy is taken to be away, ask for one resource after another until one is told.

        :param due: Who is due.
        :raises RoughyError: If all other looks would meet the same.
        """
        turns = _shuffled(due) if self._away else []
        while self._away and turns:
            await self._get(*turns.pop())

    async def _get(self, id: str, looks: Iterable[_Look]) -> None:
        """Ask for one resource, and answer those who look at it.

        :param id: The resource.
        :param looks: Their looks.
        :raises RoughyError: If all other looks would meet the same.
        """
        answer: tuple[Any, bool] | RoughyError
        try:
            answer = await self._ask(self._kind.read(id)), False
        except RoughyError as error:
            self._failures = self._failures + 1 if error.transient else 0
            if self.concerns_all(error):
                raise
            answer = error
        else:
            self._failures, self._away = 0, False
        await _answer((look, answer) for look in looks)

    def concerns_all(self, error: RoughyError) -> bool:
        """Whether an error of one resource says something of all others."""
        if isinstance(error, RoughyAuthenticationError):
            return error.status != 403
        if not error.transient:
            return False
        if _retry_after(error) is not None or (isinstance(error, RoughyApiError) and error.status == 429):
            return True
        never_reached = isinstance(error, RoughyUnreachableError) and not error.sent
        return never_reached or self._failures >= _FAILURES

    async def _read_lists(self, due: set[_Look]) -> None:
        """Read the lists of the states in which resources were seen, where that is the cheaper way.

        :param due: Who must be answered in this round.
        :raises RoughyError: If all other looks would meet the same.
        """
        if self._kind.list is None or asyncio.get_running_loop().time() < self._no_list_before:
            return
        doubted = nlargest(max(1, len(due) // _DOUBTED), due, key=lambda look: look.watch.unchanged)
        doubtful = {look.id for look in doubted if look.watch.unchanged >= _BELIEVED}
        try:
            for state in self._kind.outcomes:
                looks = {
                    look
                    for look in self._looks
                    if not look.answer.done()
                    and look.id not in doubtful
                    and self._kind.may_be_in(state, seen=look.watch.state)
                }
                await self._read_list(self._kind.list, state, looks, due)
            for state in self._kind.ends:
                ended = {look for look in due if look.watch.one_of_many and not look.answer.done()}
                await self._read_list(self._kind.list, state, ended, due, empty_pages=_EMPTY_PAGES)
        except RoughyAuthenticationError as error:
            if error.status != 403:
                raise
            self._rest_lists(error)
        except RoughyError as error:
            self._rest_lists(error)
        else:
            self._list_backoff = None

    async def _read_list(
        self, read: Any, state: str, looks: set[_Look], due: set[_Look], *, empty_pages: int | None = None
    ) -> None:
        """Read the list of a state, as long as a page of it costs less than the questions that it saves.

        :param read: Reads a page of it.
        :param state: Whose list.
        :param looks: Those that it may answer.
        :param due: Those that must be answered in this round.
        :param empty_pages: Pages in a row that may answer nobody. Those in work make a short list, which is read to its
            end if it is read at all; those that have ended make a long one, and the newest come first.
        """
        wanted = _by_id(looks)
        left = {look.id for look in looks & due}
        pages, offset, empty = 1, 0, 0
        while pages < len(left):
            page = await self._ask(read(state=state, offset=offset))
            # A server that does not know the filter must not decide.
            seen = [item for item in page.items if item.state == state and item.id in wanted]
            await _answer((look, (item, True)) for item in seen for look in wanted.pop(item.id, ()))
            left.difference_update(item.id for item in seen)
            offset += len(page.items)
            if not page.items or offset >= page.total:
                return
            if empty_pages is None:
                pages = -(-(page.total - offset) // len(page.items))
            else:
                empty = 0 if seen else empty + 1
                if empty >= empty_pages:
                    return

    def _rest_lists(self, error: RoughyError) -> None:
        """Do without lists for a while: a ``GET`` decides anyway."""
        if self._list_backoff is None:
            self._list_backoff = Backoff(tries=sys.maxsize, first=5.0, longest=_MOST_RETRY_AFTER, patience=float("inf"))
        pause = min(self._list_backoff.pause_after(error) or _MOST_RETRY_AFTER, _MOST_RETRY_AFTER)
        self._no_list_before = asyncio.get_running_loop().time() + pause
        # What made the list fail may make every GET fail as well: one of them has to succeed first.
        self._away = self._away or error.transient
        _log.warning(
            "A list of %ss cannot be read; for %.0f s each one that is waited for is asked for by itself: %s",
            self._kind.name,
            pause,
            error,
        )

    async def _put_off(self, error: BaseException) -> None:
        """End a round that met what all others would meet: everybody hears of it and waits, once.

        :param error: What it met.
        """
        if not isinstance(error, RoughyError):
            _log.error("The poll of %ss met an error that it does not know", self._kind.name, exc_info=error)
            error = RoughyProtocolError(f"The poll met {type(error).__name__}: {error}")
        due = self._due()
        if error.transient:
            if self._backoff is None:
                self._backoff = Backoff(tries=sys.maxsize, patience=float("inf"))
            pause = self._backoff.pause_after(error) or 0.0
            if _retry_after(error) is not None:
                pause = min(pause, _MOST_RETRY_AFTER)
            else:
                # An outage is looked through about as often as a healthy Roughy would be.
                pause = min([pause, *(look.interval for look in self._looks)])
            self._failures, self._away = 0, True
            self._not_before = asyncio.get_running_loop().time() + pause
            _log.warning(
                "Waiting for %s; the next look is in %.1f s: %s",
                counted(len({look.id for look in self._looks}), self._kind.name),
                pause,
                error,
            )
        await _answer((look, error) for look in due)

    # ---- Requests

    async def _ask(self, call: Call[Any]) -> Any:
        """Send a call once, the next look being the retry; with a new key, if the old one was replaced meanwhile.

        :raises RoughyError: What was wrong.
        """
        try:
            client = await self._opened()
            try:
                return await client.once(call, within=_LOOK_SECONDS)
            except RoughyAuthenticationError as error:
                if error.status == 403 or not await self._renewed(client):
                    raise
            return await (await self._opened()).once(call, within=_LOOK_SECONDS)
        except RoughyError:
            raise
        except Exception as error:
            # Something in one reply that no parser was ready for.
            raise RoughyProtocolError(f"{call.request}: {type(error).__name__}: {error}") from error

    async def _opened(self) -> AsyncClient:
        async with self._opening:
            if self._client is None:
                self._client = await self._hook.aopen()
            return self._client

    async def _renewed(self, refused: AsyncClient) -> bool:
        """Read the connection again, and return whether it was changed since.

        :param refused: The client whose key was refused.
        :raises RoughyMissingConnectionError: If it cannot be read now.
        """
        async with self._opening:
            if self._client is refused:
                hook = RoughyHook(self._hook.roughy_conn_id)
                if await hook.aget_settings() == refused.settings:
                    return False
                self._outdated.append(refused)
                self._client, self._hook = None, hook
            return True


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Clear up to the end, however often whoever waits for it is cancelled: Airflow cancels a trigger each second.

    :param work: What is to be done.
    :raises asyncio.CancelledError: After it is done, if it was.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    await task


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: in the moment in which it is cancelled, a library may take that for its own.

    :param task: The task.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_SECONDS)


def _canonical(id: str) -> str:
    """Spell an id as Roughy does; what is none is left for the request to refuse."""
    try:
        return resource_id("id", id)
    except RoughyConfigurationError:
        return id


def _retry_after(error: RoughyError) -> float | None:
    """Return the seconds of an error's ``Retry-After``, as far as they are obeyed; ``None`` if it has none."""
    asked = error.retry_after if isinstance(error, RoughyApiError) else None
    return None if asked is None else min(asked, _MOST_RETRY_AFTER)


def _by_id(looks: Iterable[_Look]) -> dict[str, list[_Look]]:
    found: dict[str, list[_Look]] = {}
    for look in looks:
        found.setdefault(look.id, []).append(look)
    return found


def _shuffled(looks: Iterable[_Look]) -> list[tuple[str, list[_Look]]]:
    """Return what is left to look at, in no fixed order: what fails must not stand before the same others each time."""
    left = sorted(_by_id(look for look in looks if not look.answer.done()).items())
    return random.sample(left, len(left))


async def _answer(answers: Iterable[tuple[_Look, tuple[Any, bool] | RoughyError]]) -> None:
    for number, (look, answer) in enumerate(answers, start=1):
        if not look.answer.done():
            look.answer.set_result(answer)
        if number % _BATCH == 0:
            await asyncio.sleep(0)
