"""The metrics of this package, and how its modules record them. Nothing here depends on Airflow.

A module records a value by a method of an instrument, such as ``FILES.add(3, status="ready")``. Until :func:`send_to`
names a receiver, that costs one comparison. ``observability/metrics.py`` sends the values to Airflow's Stats.

The tags of an instrument have few values: no file names, no ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

#: Seconds after which a :class:`Tally` records what it has added up.
_TALLY_SECONDS = 10.0

#: The kinds of resources that are waited for.
_KINDS = ("asset", "cut", "render")


@dataclass(frozen=True, eq=False)
class Instrument:
    """A metric.

    :param name: Its name.
    :param meaning: What it measures, for the documentation.
    :param tags: The names of its tags, each with all values that it can have.
    """

    name: str
    meaning: str
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    #: The type of the metric, as StatsD calls it.
    type: ClassVar[str]


class Counter(Instrument):
    """A sum that only grows."""

    type = "counter"

    def add(self, value: float = 1, **tags: str) -> None:
        """Add to the sum.

        :param value: How much.
        :param tags: The value of each tag.
        """
        if _send is not None and value:
            _send(self, value, tags)


class Gauge(Instrument):
    """A value that rises and falls."""

    type = "gauge"

    def set(self, value: float, **tags: str) -> None:
        """Set the value.

        :param value: The value.
        :param tags: The value of each tag.
        """
        if _send is not None:
            _send(self, value, tags)


class Timer(Instrument):
    """Durations."""

    type = "timer"

    def record(self, seconds: float, **tags: str) -> None:
        """Record a duration.

        :param seconds: The duration.
        :param tags: The value of each tag.
        """
        if _send is not None:
            _send(self, seconds, tags)


#: Receives an instrument, a value (the one of a timer in seconds) and the value of each tag. It raises no error.
Send = Callable[[Instrument, float, dict[str, str]], None]

_send: Send | None = None


def send_to(receiver: Send | None) -> None:
    """Send all values that are recorded from now on to a receiver.

    :param receiver: The receiver; ``None`` for none.
    """
    global _send
    _send = receiver


BYTES_UPLOADED = Counter(
    "roughy.bytes_uploaded", "Bytes of recordings that were sent to Roughy, those that were sent again included"
)
BYTES_DOWNLOADED = Counter(
    "roughy.bytes_downloaded",
    "Bytes of files that were received from Roughy's storage, those that were received again included",
)
UPLOAD_DURATION = Timer("roughy.upload_duration", "How long the transfer of a recording took in the try that ended it")
DOWNLOAD_DURATION = Timer("roughy.download_duration", "How long the transfer of a file took")
FILES = Counter(
    "roughy.files",
    "Recordings that a task has reported, by status. A retry does not count again what an earlier try of the run has "
    "reported as ready, failed or rejected. Unpaid recordings are counted in each run until they are paid for or "
    "gone. `uploaded`: by `RoughyCreateUploadOperator`, which does not wait by default",
    {
        "status": (
            "ready",
            "pending_payment",
            "failed",
            "rejected",
            "deferred",
            "interrupted",
            "already_ingested",
            "uploaded",
        )
    },
)
CREDITS = Counter(
    "roughy.credits",
    "What recordings cost. `ready`: Roughy has charged it. `pending_payment`: it is not paid for yet; counted in the "
    "first run that reports it",
    {"status": ("ready", "pending_payment")},
)
WAITS = Counter(
    "roughy.waits",
    "Resources whose wait has ended, by the outcome",
    {
        "kind": _KINDS,
        "outcome": ("succeeded", "failed", "payment_required", "timed_out", "unavailable"),
    },
)
WAIT_DURATION = Timer(
    "roughy.wait_duration",
    "How long a task or its trigger waited, for one resource or for a batch; without sensors in `reschedule` mode. A "
    "restart of the triggerer starts at 0",
    {"kind": _KINDS},
)
REQUESTS = Counter(
    "roughy.requests",
    "Requests to Roughy's API, by the status of the reply. `429`: rate limited. `none`: no reply, or not in time",
    {"status": ("2xx", "3xx", "4xx", "429", "5xx", "none")},
)
RETRIES = Counter(
    "roughy.retries",
    "Requests and polls that failed and are sent again, by the reason. `unexpected_reply`: a gateway's page, an "
    "incomplete or impossible reply",
    {"reason": ("rate_limited", "server_error", "unreachable", "unexpected_reply", "other")},
)
WAITERS = Gauge(
    "roughy.waiters",
    "Resources that the waits of one triggerer wait for, counted at each poll",
    {"kind": _KINDS},
)
POLL_LAG = Timer(
    "roughy.poll_lag",
    "How much later than planned a round of polls ended, in which each wait that was due got an answer or an error",
    {"kind": _KINDS},
)
FEED_LAG = Timer(
    "roughy.feed_lag",
    "Time since the start of the last round of lists of `RoughyAssetsReadyTrigger` that succeeded, when a round "
    "ends. Without errors, about one `poll_interval`",
)
WEBHOOKS = Counter(
    "roughy.webhooks",
    "Requests to the webhook route, by the status of the answer. `204`: accepted. `503`: Roughy delivers again",
    {"answer": ("204", "400", "401", "404", "405", "408", "413", "429", "503")},
)

#: All of them, in the order of the documentation.
INSTRUMENTS: tuple[Instrument, ...] = (
    BYTES_UPLOADED,
    BYTES_DOWNLOADED,
    UPLOAD_DURATION,
    DOWNLOAD_DURATION,
    FILES,
    CREDITS,
    WAITS,
    WAIT_DURATION,
    REQUESTS,
    RETRIES,
    WAITERS,
    POLL_LAG,
    FEED_LAG,
    WEBHOOKS,
)


class Tally:
    """Adds up small amounts for a counter, and records their sum every ten seconds and at the end.

    :param counter: The counter.
    """

    __slots__ = ("_counter", "_next", "_sum")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._sum = 0
        self._next = time.monotonic() + _TALLY_SECONDS

    def add(self, amount: int) -> None:
        """Add an amount.

        :param amount: The amount.
        """
        self._sum += amount
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TALLY_SECONDS
            self.end()

    def end(self) -> None:
        """Record what is left."""
        amount, self._sum = self._sum, 0
        self._counter.add(amount)
