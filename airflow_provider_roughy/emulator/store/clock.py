"""Emulator time, in microseconds since the epoch, and the duration of Roughy's own work in it."""

from __future__ import annotations

import dataclasses
import time

from .database import Database

#: The end of emulator time: the year 9000, which every timestamp can represent. It starts in 1970.
_LATEST = 221_845_392_000 * 1_000_000

#: The largest number of seconds, or polls, for any duration: some 300 years.
MAX_AMOUNT = 10_000_000_000


@dataclasses.dataclass(frozen=True)
class Progression:
    """How long Roughy processes a resource: an asset stays in ``processing``, a cut or render is not finished.

    :param kind: ``immediate``, ``seconds``, ``polls`` or ``manual``.
    :param amount: Seconds, or the number of polls that still find it unfinished.
    """

    kind: str
    amount: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Progression:
        """Read ``immediate``, ``manual``, ``seconds=<number>`` or ``polls=<count>``."""
        kind, _, amount = text.partition("=") if isinstance(text, str) else ("", "", "")
        try:
            if kind in ("immediate", "manual") and not amount:
                return cls(kind)
            if kind == "seconds" and 0 <= float(amount) <= MAX_AMOUNT:
                return cls(kind, float(amount))
            if kind == "polls" and 0 <= int(amount) <= MAX_AMOUNT:
                return cls(kind, int(amount))
        except ValueError:
            pass
        shown = repr(text) if len(repr(text)) < 100 else f"{repr(text)[:100]}…"
        forms = "immediate, manual, seconds=<number> or polls=<count>"
        raise ValueError(f"progression must be {forms}, of {MAX_AMOUNT:g} at most, not {shown}")

    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads."""
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return self.kind if self.kind in ("immediate", "manual") else f"{self.kind}={amount}"

    def due(self, now: int, started: str) -> tuple[str, float]:
        """Return the SQL condition, with its one value, of rows whose work is finished by ``now``.

        It is SQL because every request needs it, and must stay fast with a thousand unfinished assets.

        :param started: The column with the time at which the work started.
        """
        if self.kind == "seconds":
            return f"(released = 1 OR {started} <= ?)", now - self._microseconds
        if self.kind == "polls":
            return "(released = 1 OR polls >= ?)", self.amount
        return "(released = 1 OR ?)", int(self.kind == "immediate")

    def started(self, now: int, queued: str, seconds: float) -> tuple[str, float]:
        """Return the SQL condition, with its one value, of rows whose work has started by ``now``.

        With ``polls``, the first poll finds it queued; with ``manual``, nothing starts by itself.

        :param queued: The column with the time since which it is queued.
        :param seconds: How long it stays queued, if time decides.
        """
        if self.kind == "seconds":
            return f"{queued} <= ?", now - round(seconds * 1_000_000)
        if self.kind == "polls":
            return "polls >= ?", 1
        return "?", int(self.kind == "immediate")

    def finished_at(self, started: int, now: int) -> int:
        """Return when work that is due was finished: in the past, if there was no sweep since.

        :param now: When it was released, or polled for the last time.
        """
        if self.kind == "immediate":
            return started
        return min(now, started + self._microseconds) if self.kind == "seconds" else now

    @property
    def _microseconds(self) -> int:
        return round(self.amount * 1_000_000)


class Clock:
    """Emulator time: real time plus an offset that can be changed.

    :param database: Stores the offset.
    :param progression: See :class:`Progression`.
    """

    def __init__(self, database: Database, progression: str) -> None:
        self._database = database
        self.progression = Progression.parse(progression)
        self.restart()

    def restart(self) -> None:
        """Load the offset that the database has stored, or none."""
        #: By how much emulator time is moved, in microseconds.
        self.offset = int(self._database.meta("clock_offset", "0"))

    def now(self) -> int:
        """Return emulator time."""
        return time.time_ns() // 1000 + self.offset

    def advance(self, seconds: float) -> None:
        """Move emulator time on.

        :param seconds: How far; a negative number moves it back.
        :raises ValueError: If the time would be before 1970 or after the year 9000.
        """
        with self._database.change():
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise ValueError(f"the clock is moved by a number of seconds, not {seconds!r}")
            if not -_LATEST < seconds < _LATEST or not 0 <= self.now() + seconds * 1_000_000 < _LATEST:
                raise ValueError("the clock must stay between the years 1970 and 9000")
            self.offset += round(seconds * 1_000_000)
            self._database.set_meta("clock_offset", str(self.offset))
