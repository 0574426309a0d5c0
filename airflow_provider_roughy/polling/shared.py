"""The poll that all waiters of one event loop, connection and kind of resource share.

A thousand deferred tasks must not send a thousand requests per round. The poll knows every waiter, and each round it
takes the cheaper way: one ``GET`` a resource, or one pass over the list of resources in the same state, 100 a page, and
a ``GET`` only for a resource that is not on it. A list can only say that nothing has changed: the end of a resource is
read by its ``GET``, and so is every resource once more before its waiter times out. The exception is a batch: where
hundreds of resources end at once, the lists of ended resources are read first, because a list may lag but never invents
an end.

A waiter registers its resources once, for the whole wait. The poll evaluates each reply itself, in the waiter's context
(so that log lines reach the right task's log), and wakes the waiter only when nothing is left to wait for: to wake
10,000 coroutines per round takes longer than all requests of the round, and what each of them allocates makes Python
collect garbage, which holds the event loop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from copy import copy
from dataclasses import dataclass
from functools import cache
from heapq import nlargest
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

from airflow_provider_roughy.api import Listing
from airflow_provider_roughy.event_loop import end, finish
from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyError,
    RoughyProtocolError,
    RoughyUnreachableError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.http.retry import Backoff, Tries, reason_of
from airflow_provider_roughy.instruments import POLL_LAG, RETRIES, WAITERS
from airflow_provider_roughy.lifecycle import Kind
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.polling.poller import (
    MAX_RETRY_AFTER,
    POLL_SECONDS,
    Answer,
    ResourcePoller,
    obeyed_retry_after,
)

if TYPE_CHECKING:
    from airflow_provider_roughy.api import Call
    from airflow_provider_roughy.http.client import AsyncClient
    from airflow_provider_roughy.settings import Settings

T = TypeVar("T")

#: A process that runs triggers has imported it.
_TRIGGERER = "airflow.jobs.triggerer_job_runner"

#: Evaluates a reply; returns whether the wait for that resource has ended.
Take = Callable[[ResourcePoller, Answer], bool]

#: Seconds that a round waits for more waiters: a triggerer starts its triggers in bursts.
_GATHER_SECONDS = 0.05
#: ``GET`` requests under way at once.
_MAX_CONCURRENCY = 8
#: Requests in a row that may fail before the rest of a round is postponed.
_MAX_FAILURES = 3
#: Rounds in a row in which only a list reported a resource, before the resource is read individually.
_MAX_UNVERIFIED_ROUNDS = 20
#: One in so many pollers may be read for that reason in one round.
_POLLERS_A_VERIFICATION = 1000
#: Pollers that are answered before the event loop may do something else.
_MAX_ANSWERS_A_TURN = 25
#: How often a call other than a poll is sent in all.
_READ_TRIES = 3
#: Pages in a row of a list of ended resources that may hold nothing that is waited for.
_MAX_EMPTY_PAGES = 2

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Wait:
    """One waiter: a task that waits for one resource, or for a batch.

    :param pollers: Of its resources.
    :param take: Evaluates the replies.
    :param interval: Seconds between two polls.
    :param deadline: When it gives up, in seconds since the epoch.
    :param on_round: Called each time that all resources have been polled and some are left.
    :param ended: Has a result when no resource is left, or when the deadline has passed.
    :param context: The context variables of the waiter.
    :param left: How many resources are left to wait for.
    :param unanswered: How many of them have not been answered since it was due.
    :param due: When its resources are polled next, on the clock of the event loop.
    :param ready: From when on they are polled with others that are due, so that many polls make one round.
    :param timer: Ends it at the deadline.
    """

    pollers: Sequence[ResourcePoller]
    take: Take
    interval: float
    deadline: float
    on_round: Callable[[], None] | None
    ended: asyncio.Future[None]
    context: Context
    left: int
    unanswered: int
    due: float
    ready: float
    timer: asyncio.TimerHandle | None = None

    def begin_pause(self, now: float, pause: float) -> None:
        """Have its resources polled again.

        :param now: The time on the clock of the event loop.
        :param pause: In how many seconds.
        """
        self.due, self.ready = now + pause, now + 0.75 * pause
        self.unanswered = self.left
        for poller in self.pollers:
            poller.answered = False

    def end_at_deadline(self) -> None:
        """Wake the waiter when the deadline has passed by the clock of the machine, which may be set meanwhile."""
        left = self.deadline - time.time()
        if left <= 0:
            self.end()
        elif left < float("inf"):
            self.timer = asyncio.get_running_loop().call_later(left, self.end_at_deadline, context=self.context)

    def end(self, error: BaseException | None = None) -> None:
        """Wake the waiter.

        :param error: What it raises.
        """
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


#: The lookups of connections that are under way, by event loop and connection, with the number of waiters.
_look_ups: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, list[asyncio.Future[RoughyHook]]]] = (
    WeakKeyDictionary()
)


async def _with_settings(conn_id: str) -> RoughyHook:
    """Return a hook that has read its connection. Concurrent callers share one lookup.

    They continue some at a time: a triggerer that starts has thousands.

    :param conn_id: The connection.
    :raises RoughyError: If it cannot be read, or is unusable.
    """
    loop = asyncio.get_running_loop()
    pending = _look_ups.setdefault(loop, {})
    future: asyncio.Future[RoughyHook] = loop.create_future()

    async def look_up() -> None:
        hook, error = RoughyHook(conn_id), None
        try:
            await hook.aget_settings()
        except BaseException as err:  # Airflow has errors that are no Exception.
            error = err
        for number, each in enumerate(pending.pop(conn_id), start=1):
            if not each.done():
                # A copy, since raising an error writes into it.
                each.set_result(hook) if error is None else each.set_exception(copy(error))
            if number % _MAX_ANSWERS_A_TURN == 0:
                await asyncio.sleep(0)

    if conn_id in pending:
        pending[conn_id].append(future)
    else:
        pending[conn_id] = [future]
        task = loop.create_task(look_up())
        # An event loop refers to its tasks weakly.
        future.add_done_callback(lambda _: task)
    return await future


@cache
def _exempt_imports_from_collections() -> None:
    """Exempt from garbage collection what a triggerer has imported; once, when it starts to wait.

    A full collection visits all objects of the process and holds the event loop meanwhile. Those that Airflow has
    imported take 70 to 100 ms, and live as long as the process.
    """
    if _TRIGGERER in sys.modules:
        gc.freeze()


class SharedPoll:
    """Poll for all waiters of one event loop, connection and kind of resource.

    :param hook: Has read the connection.
    :param kind: The kind of the resources.
    """

    #: The polls that run. An event loop that is gone takes its own with it. The key has the connection's id, from which
    #: a new key is read, and its settings: a connection that was edited gets a new poll, and those who wait on the old
    #: one stay there.
    _polls: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, Settings, str], SharedPoll]]] = (
        WeakKeyDictionary()
    )

    def __init__(self, hook: RoughyHook, kind: Kind) -> None:
        _exempt_imports_from_collections()
        self._hook = hook
        self._kind = kind
        self._key = (hook.roughy_conn_id, hook.settings, kind.name)
        self._users = 0
        #: All pollers that are waited on, by the id of their resource.
        self._pollers: dict[str, list[ResourcePoller]] = {}
        #: Those that the current round still has to answer.
        self._due: set[ResourcePoller] = set()
        #: The factor of all intervals that start in the current round, so that rounds of many processes spread.
        self._spread = 1.0
        self._wake = asyncio.Event()
        self._client: AsyncClient | None = None
        self._outdated: list[AsyncClient] = []
        self._opening = asyncio.Lock()
        self._last_reads = asyncio.Semaphore(_MAX_CONCURRENCY)
        self._task: asyncio.Task[None] | None = None
        #: The next round starts no sooner.
        self._not_before = 0.0
        self._backoff: Backoff | None = None
        #: ``GET`` requests in a row that failed for a reason that may pass.
        self._failures = 0
        #: Whether Roughy seems to be down, so that one request has to succeed before others are sent.
        self._down = False
        #: No list is read sooner.
        self._no_list_before = 0.0
        self._list_backoff: Backoff | None = None

    @classmethod
    async def join(cls, hook: RoughyHook, kind: Kind) -> SharedPoll:
        """Return the poll of the running event loop, for a user that calls :meth:`leave` at the end.

        :param hook: Names the connection.
        :param kind: The kind of the resources.
        :raises RoughyError: If the connection cannot be read, or is unusable.
        """
        if not hook.has_settings:
            hook = await _with_settings(hook.roughy_conn_id)
        key = (hook.roughy_conn_id, hook.settings, kind.name)
        polls = cls._polls.setdefault(asyncio.get_running_loop(), {})
        poll = polls.get(key)
        if poll is None:
            poll = polls[key] = cls(hook, kind)
        poll._users += 1
        return poll

    async def leave(self) -> None:
        """End a use of the poll; the last user closes it."""
        self._users -= 1
        if not self._users:
            del self._polls[asyncio.get_running_loop()][self._key]
            await finish(self._close())

    @classmethod
    @asynccontextmanager
    async def joined(cls, hook: RoughyHook, kind: Kind) -> AsyncIterator[SharedPoll]:
        """:meth:`join` the poll, and :meth:`leave` it after the body."""
        poll = await cls.join(hook, kind)
        try:
            yield poll
        finally:
            await poll.leave()

    async def wait(
        self,
        pollers: Sequence[ResourcePoller],
        take: Take,
        *,
        interval: float,
        deadline: float = float("inf"),
        on_round: Callable[[], None] | None = None,
    ) -> None:
        """Poll resources, at first in the next round, until each has been taken or the deadline has passed.

        :param pollers: Each of a resource of its own, and in no other wait.
        :param take: Evaluates each reply, in the context of the caller.
        :param interval: Seconds between two polls of a resource, give or take a tenth. A poll may come sooner, with
            that of another waiter.
        :param deadline: When to give up, in seconds since the epoch.
        :param on_round: Called each time that all have been polled and some are left.
        """
        if not pollers:
            return
        loop = asyncio.get_running_loop()
        now, count, ended = loop.time(), len(pollers), loop.create_future()
        wait = Wait(
            pollers, take, interval, deadline, on_round, ended, copy_context(), count, count, due=now, ready=now
        )
        for poller in pollers:
            poller.wait, poller.answered = wait, False
            self._pollers.setdefault(poller.id, []).append(poller)
        if self._task is None or self._task.done():
            self._start()
        self._wake.set()
        wait.end_at_deadline()
        try:
            await wait.ended
        finally:
            if wait.timer is not None:
                wait.timer.cancel()
            for poller in pollers:
                self._remove(poller)

    async def poll_once(self, pollers: Sequence[ResourcePoller], *, interval: float) -> list[Answer]:
        """Poll resources once, and return the answers in their order.

        :param pollers: Each of a resource of its own.
        :param interval: Seconds between two calls of this caller.
        """
        answers: dict[ResourcePoller, Answer] = {}

        def take(poller: ResourcePoller, answer: Answer) -> bool:
            # A copy, since raising an error writes into it.
            answers[poller] = copy(answer) if isinstance(answer, RoughyError) else answer
            return True

        await self.wait(pollers, take, interval=interval)
        return [answers[poller] for poller in pollers]

    async def read_now(self, id: str) -> Any:
        """Read a resource individually, whatever rounds and pauses are due: the last poll of a waiter.

        :param id: The resource.
        :raises RoughyError: What was wrong.
        """
        async with self._last_reads:
            return await self._ask(self._kind.read(id))

    @property
    def base_url(self) -> str:
        """Where the connection leads, as it was last read."""
        return self._hook.settings.base_url

    async def read(self, call: Call[T]) -> T:
        """Send a call other than a poll, such as a page of a list, after a pause that all of this connection keep.

        :param call: The call.
        :raises RoughyError: What was wrong, after some tries if it may pass.
        """
        loop, tries = asyncio.get_running_loop(), Tries(call, Backoff(tries=_READ_TRIES, patience=MAX_RETRY_AFTER))
        while True:
            await asyncio.sleep(max(0.0, self._not_before - loop.time()))
            try:
                found: T = await self._ask(call)
                return found
            except RoughyError as error:
                if (asked := obeyed_retry_after(error)) is not None:
                    self._not_before = max(self._not_before, loop.time() + asked)
                pause = tries.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    def _remove(self, poller: ResourcePoller) -> None:
        """Poll a resource no longer; nothing happens if that is so already."""
        if poller.wait is None:
            return
        poller.wait = None
        self._due.discard(poller)
        of_resource = self._pollers[poller.id]
        of_resource.remove(poller)
        if not of_resource:
            del self._pollers[poller.id]

    def _waits(self) -> Iterable[Wait]:
        """Return the waits of all pollers, a batch as often as it has pollers."""
        return (poller.wait for of_resource in self._pollers.values() for poller in of_resource if poller.wait)

    def _shortest_interval(self) -> float:
        return min((wait.interval for wait in self._waits()), default=MAX_RETRY_AFTER)

    def _start(self) -> None:
        # With no context variables: Airflow would file what is logged for all into the log of the first waiter.
        self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        self._task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """Start the task again, after an interval, if it has ended while there are waiters."""
        if task is not self._task or not self._pollers:
            return
        error = None if task.cancelled() else task.exception()
        pause = self._shortest_interval()
        _log.error("Polling %s ended unexpectedly; starting it again in %.1f s", self._subject(), pause, exc_info=error)
        self._not_before = max(self._not_before, asyncio.get_running_loop().time() + pause)
        self._start()

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await end(task)
        self._record_waiters()
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
            start = max(min((wait.due for wait in self._waits()), default=float("inf")), self._not_before)
            if loop.time() < start:
                # Not by asyncio.wait_for(), of which that of Python 3.11 may swallow a cancellation.
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(None if start == float("inf") else start):
                        await self._wake.wait()
                continue
            await asyncio.sleep(_GATHER_SECONDS)
            self._record_waiters()
            self._spread = random.uniform(0.9, 1.1)
            self._due = self._find_due()
            planned = min((poller.wait.due for poller in self._due if poller.wait), default=loop.time())
            try:
                await self._round()
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # Airflow has errors that are no Exception.
                await self._postpone(error)
            finally:
                # Also of the last round, which is cancelled once the last waiter has left.
                POLL_LAG.record(max(0.0, loop.time() - planned), kind=self._kind.name)

    def _record_waiters(self) -> None:
        """Record how many resources of this kind the triggerer waits for; on workers, each task has its own wait."""
        if _TRIGGERER in sys.modules:
            polls = self._polls[asyncio.get_running_loop()].values()
            count = sum(len(poll._pollers) for poll in polls if poll._kind is self._kind)
            WAITERS.set(count, kind=self._kind.name)

    def _find_due(self) -> set[ResourcePoller]:
        now = asyncio.get_running_loop().time()
        return {
            poller
            for of_resource in self._pollers.values()
            for poller in of_resource
            if not poller.answered and poller.wait and poller.wait.ready <= now
        }

    async def _round(self) -> None:
        """Answer all pollers that are due, and those that a list answers on the way.

        :raises RoughyError: If it would end all other polls, too.
        """
        await self._get_until_up()
        await self._read_lists()
        await self._get_until_up()
        turns = self._due_ids()

        async def get_in_turn() -> None:
            while turns:
                try:
                    await self._get(turns.pop())
                except BaseException:
                    # The others finish their current request, and start no other.
                    turns.clear()
                    raise

        ends = await asyncio.gather(*(get_in_turn() for _ in range(_MAX_CONCURRENCY)), return_exceptions=True)
        await self._close_outdated()
        for error in ends:
            if isinstance(error, BaseException):
                raise error
        self._backoff = None

    def _due_ids(self) -> list[str]:
        """Return the resources that are due, in random order, so that a bad one does not delay the same others."""
        ids = [id for id, of_resource in self._pollers.items() if not self._due.isdisjoint(of_resource)]
        return random.sample(ids, len(ids))

    async def _get_until_up(self) -> None:
        """While Roughy seems to be down, read one resource after another until one is read.

        :raises RoughyError: If it would end all other polls, too.
        """
        turns = self._due_ids() if self._down else []
        while self._down and turns:
            await self._get(turns.pop())

    async def _get(self, id: str) -> None:
        """Read one resource, and answer its pollers.

        :param id: The resource.
        :raises RoughyError: If it would end all other polls, too.
        """
        answer: Answer
        try:
            answer = await self._ask(self._kind.read(id))
        except RoughyError as error:
            if error.transient:
                RETRIES.add(reason=reason_of(error))
            self._failures = self._failures + 1 if error.transient else 0
            if self.concerns_all(error):
                raise
            answer = error
        else:
            self._failures, self._down = 0, False
        await self._answer((poller, answer) for poller in tuple(self._pollers.get(id, ())))

    def concerns_all(self, error: RoughyError) -> bool:
        """Whether an error of one resource affects all others."""
        if isinstance(error, RoughyAuthenticationError):
            return error.status != 403
        if not error.transient:
            return False
        if obeyed_retry_after(error) is not None or (isinstance(error, RoughyApiError) and error.status == 429):
            return True
        never_reached = isinstance(error, RoughyUnreachableError) and not error.sent
        return never_reached or self._failures >= _MAX_FAILURES

    async def _read_lists(self) -> None:
        """Read the lists of the states in which resources were seen, where that is the cheaper way.

        :raises RoughyError: If it would end all other polls, too.
        """
        if self._kind.list is None or asyncio.get_running_loop().time() < self._no_list_before:
            return
        count = max(1, len(self._due) // _POLLERS_A_VERIFICATION)
        oldest = nlargest(count, self._due, key=lambda poller: poller.unverified_rounds)
        unverified = {poller.id for poller in oldest if poller.unverified_rounds >= _MAX_UNVERIFIED_ROUNDS}
        try:
            for state in self._kind.outcomes:
                # Each pass over thousands of pollers takes some milliseconds.
                await asyncio.sleep(0)
                await self._read_list(self._kind.list, state, self._may_be_in(state, besides=unverified))
            for state in self._kind.ends:
                await asyncio.sleep(0)
                of_batches = {poller for poller in self._due if poller.one_of_many}
                await self._read_list(self._kind.list, state, of_batches, max_empty_pages=_MAX_EMPTY_PAGES)
        except RoughyAuthenticationError as error:
            if error.status != 403:
                raise
            self._avoid_lists(error)
        except RoughyError as error:
            self._avoid_lists(error)
        else:
            self._list_backoff = None

    def _may_be_in(self, state: str, *, besides: set[str]) -> set[ResourcePoller]:
        """Return the pollers whose resources may be in a state, by what is known of them.

        :param state: The state.
        :param besides: Resources that are left out.
        """
        may_be: dict[str | None, bool] = {}
        found = set()
        for id in self._pollers.keys() - besides:
            for poller in self._pollers[id]:
                seen = poller.state
                if seen not in may_be:
                    may_be[seen] = self._kind.may_be_in(state, seen=seen)
                if may_be[seen]:
                    found.add(poller)
        return found

    async def _read_list(
        self, read: Any, state: str, pollers: set[ResourcePoller], *, max_empty_pages: int | None = None
    ) -> None:
        """Read the list of a state, as long as a page of it costs less than the requests that it saves.

        :param read: Reads a page of it.
        :param state: Whose list.
        :param pollers: Those that it may answer.
        :param max_empty_pages: Pages in a row that may answer none of them. The list of resources in work is short, and
            is read to its end if it is read at all; the list of ended resources is long, the newest first.
        """
        left = {poller.id for poller in pollers & self._due}
        if len(left) < 2:
            return
        await asyncio.sleep(0)
        # An entry that is missed because the list changes meanwhile is read individually.
        listing: Listing[Any] = Listing(lambda offset: read(state=state, offset=offset), overlap=0)
        pages, empty = 1, 0
        while pages < len(left) and (call := listing.next_call()) is not None:
            page = await self._ask(call)
            # A server that does not know the filter must not decide.
            seen = [item for item in listing.take(page) if item.state == state]
            answers = [
                (poller, item) for item in seen for poller in self._pollers.get(item.id, ()) if poller in pollers
            ]
            await self._answer(answers, listed=True)
            left.difference_update(poller.id for poller, _ in answers)
            if max_empty_pages is None:
                pages = -(-listing.entries_left // max(1, len(page.ids)))
            else:
                empty = 0 if answers else empty + 1
                if empty >= max_empty_pages:
                    return

    def _avoid_lists(self, error: RoughyError) -> None:
        """Do without lists for a while: a ``GET`` decides anyway."""
        if self._list_backoff is None:
            self._list_backoff = Backoff(tries=sys.maxsize, first=5.0, longest=MAX_RETRY_AFTER, patience=float("inf"))
        pause = min(self._list_backoff.pause_after(error) or MAX_RETRY_AFTER, MAX_RETRY_AFTER)
        self._no_list_before = asyncio.get_running_loop().time() + pause
        # What made the list fail may make every GET fail as well: one of them has to succeed first.
        self._down = self._down or error.transient
        _log.warning(
            "Listing %ss of connection %r failed; polling them one by one for %.0f s: %s",
            self._kind.name,
            self._hook.roughy_conn_id,
            pause,
            error,
        )

    def _subject(self) -> str:
        """Name what is polled, for messages: ``3 assets of connection 'roughy_default'``."""
        return f"{counted(len(self._pollers), self._kind.name)} of connection {self._hook.roughy_conn_id!r}"

    async def _postpone(self, error: BaseException) -> None:
        """End a round by an error that would end all other polls, too: all that are due get it, and wait once.

        :param error: The error.
        """
        if not isinstance(error, RoughyError):
            _log.error("Unexpected error while polling %s", self._subject(), exc_info=error)
            error = RoughyProtocolError(f"unexpected {type(error).__name__}: {error} (the log has its traceback)")
        if error.transient:
            if self._backoff is None:
                self._backoff = Backoff(tries=sys.maxsize, patience=float("inf"))
            pause = self._backoff.pause_after(error) or 0.0
            if obeyed_retry_after(error) is not None:
                pause = min(pause, MAX_RETRY_AFTER)
            else:
                # During an outage, one request goes out about as often as a healthy Roughy would be polled.
                pause = min(pause, self._shortest_interval())
            self._failures, self._down = 0, True
            self._not_before = asyncio.get_running_loop().time() + pause
            _log.warning(
                "Polling %s failed; next attempt in %.1f s: %s",
                self._subject(),
                pause,
                error,
            )
        # Those as well that came during the round.
        self._due = self._find_due()
        await self._answer([(poller, error) for poller in self._due])

    # ---- Answers

    async def _answer(self, answers: Iterable[tuple[ResourcePoller, Answer]], *, listed: bool = False) -> None:
        """Have replies evaluated, some at a time.

        :param answers: Pollers with their answers.
        :param listed: Whether a list gave the answers.
        """
        for number, (poller, answer) in enumerate(answers, start=1):
            # Its waiter may have left meanwhile.
            if poller.wait is not None:
                self._judge(poller, poller.wait, answer, listed=listed)
            if number % _MAX_ANSWERS_A_TURN == 0:
                await asyncio.sleep(0)

    def _judge(self, poller: ResourcePoller, wait: Wait, answer: Answer, *, listed: bool) -> None:
        """Have the waiter evaluate a reply, and wake it if it has nothing left to wait for."""
        if not isinstance(answer, RoughyError):
            poller.unverified_rounds = poller.unverified_rounds + 1 if listed else 0
        self._due.discard(poller)
        if not poller.answered:
            poller.answered = True
            wait.unanswered -= 1
        if self._call(wait, wait.take, poller, answer):
            self._remove(poller)
            wait.left -= 1
        # By the clock of the machine, which may have been set since the timer was started.
        if not wait.left or time.time() >= wait.deadline:
            wait.end()
        elif not wait.unanswered:
            wait.begin_pause(asyncio.get_running_loop().time(), wait.interval * self._spread)
            if wait.on_round is not None:
                self._call(wait, wait.on_round)

    def _call(self, wait: Wait, function: Callable[..., T], *args: Any) -> T | None:
        """Call a function of a waiter in its context; an error in it is the waiter's own."""
        try:
            return wait.context.run(function, *args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Airflow has errors that are no Exception.
            wait.end(error)
            return None

    # ---- Requests

    async def _ask(self, call: Call[Any]) -> Any:
        """Send a call once, as the next poll is the retry; again with a new key if the old one was replaced meanwhile.

        :raises RoughyError: What was wrong.
        """
        try:
            client = await self._opened()
            try:
                return await client.once(call, within=POLL_SECONDS)
            except RoughyAuthenticationError as error:
                if error.status == 403 or not await self._renewed(client):
                    raise
            return await (await self._opened()).once(call, within=POLL_SECONDS)
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
