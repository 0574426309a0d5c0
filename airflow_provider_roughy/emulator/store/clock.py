"""Emulator time, in microseconds since the epoch, and how long Roughy's own work takes by it."""

from __future__ import annotations

import dataclasses
import time

from .database import Database

#: Where emulator time must stay: from 1970 to the year 9000, which every timestamp can tell.
_LATEST = 221_845_392_000 * 1_000_000

#: Most seconds, or looks, that anything takes or lasts: some 300 years.
MOST = 10_000_000_000


@dataclasses.dataclass(frozen=True)
class Progression:
    """How long Roughy works on something: an asset stays in ``processing``, a cut or render is not finished.

    :param kind: ``immediate``, ``seconds``, ``polls`` or ``manual``.
    :param amount: seconds, or number of looks that still find it unfinished.
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
            if kind == "seconds" and 0 <= float(amount) <= MOST:
                return cls(kind, float(amount))
            if kind == "polls" and 0 <= int(amount) <= MOST:
                return cls(kind, int(amount))
        except ValueError:
            pass
        shown = repr(text) if len(repr(text)) < 100 else f"{repr(text)[:100]}…"
        forms = "immediate, manual, seconds=<number> or polls=<count>"
        raise ValueError(f"progression must be {forms}, of {MOST:g} at most, not {shown}")

    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads."""
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return self.kind if self.kind in ("immediate", "manual") else f"{self.kind}={amount}"

    def due(self, now: int, started: str) -> tuple[str, float]:
        """Return the SQL condition, with its one value, of rows whose work is over by ``now``.

        SQL, since every request asks: a thousand assets that wait must not cost it anything.

        :param started: column with the time at which the work began.
        """
        if self.kind == "seconds":
            return f"(released = 1 OR {started} <= ?)", now - self._microseconds
        if self.kind == "polls":
            return "(released = 1 OR polls >= ?)", self.amount
        return "(released = 1 OR ?)", int(self.kind == "immediate")

    def begun(self, now: int, queued: str, seconds: float) -> tuple[str, float]:
        """Return the SQL condition, with its one value, of rows whose work has begun by ``now``.

        With ``polls`` the first look finds it waiting, with ``manual`` nothing begins by itself.

        :param queued: column with the time since which it waits.
        :param seconds: how long it waits, where time decides.
        """
        if self.kind == "seconds":
            return f"{queued} <= ?", now - round(seconds * 1_000_000)
        if self.kind == "polls":
            return "polls >= ?", 1
        return "?", int(self.kind == "immediate")

    def over_at(self, started: int, now: int) -> int:
        """Return when work that is due was over: in the past, if nobody has looked since.

        :param now: when it was told to settle, or seen for the last time.
        """
        if self.kind == "immediate":
            return started
        return min(now, started + self._microseconds) if self.kind == "seconds" else now

    @property
    def _microseconds(self) -> int:
        return round(self.amount * 1_000_000)


class Clock:
    """Emulator time: the real one and an offset that can be changed.

    :param database: which remembers the offset.
    :param progression: see :class:`Progression`.
    """

    def __init__(self, database: Database, progression: str) -> None:
        self._database = database
        self.progression = Progression.parse(progression)
        self.restart()

    def restart(self) -> None:
        """Take up the offset that the database remembers, or none."""
        #: By how much it was moved, in microseconds.
        self.offset = int(self._database.meta("clock_offset", "0"))

    def now(self) -> int:
        """Return emulator time."""
        return time.time_ns() // 1000 + self.offset

    def advance(self, seconds: float) -> None:
        """Move emulator time on.

        :param seconds: how far; negative moves it back.
        :raises ValueError: when it would leave the years 1970 to 9000.
        """
        with self._database.change():
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise ValueError(f"the clock is moved by a number of seconds, not {seconds!r}")
            if not -_LATEST < seconds < _LATEST or not 0 <= self.now() + seconds * 1_000_000 < _LATEST:
                raise ValueError("the clock must stay between the years 1970 and 9000")
            self.offset += round(seconds * 1_000_000)
            self._database.set_meta("clock_offset", str(self.offset))
