"""Samples of a process, their medians and spread, and tables of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True)
class Sample:
    """The cost of one upload for its client.

    :param wall: Elapsed seconds.
    :param cpu: Seconds of processor time, user and system.
    :param peak: The peak of resident memory, in bytes.
    """

    wall: float
    cpu: float
    peak: int


def measured(work: Callable[[], object]) -> Sample:
    """Do some work in this process and return its cost."""
    started, cpu = time.perf_counter(), _cpu()
    work()
    return Sample(time.perf_counter() - started, _cpu() - cpu, memory("VmHWM"))


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory(name: str) -> int:
    """Return a figure of the kernel about this process' memory, in bytes.

    :param name: ``VmRSS`` for the resident memory now, ``VmHWM`` for its peak.
    """
    # Not ru_maxrss, which a process inherits from its parent.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def forget_peak() -> None:
    """Reset ``VmHWM`` to the resident memory now."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True)
class Spread:
    """Some values of one kind."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """Return ``median (minimum-maximum)``."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}-{self.most:.{digits}f})"


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the value that a percentage of at least two values does not exceed.

    :param percent: 1 to 99.
    """
    return quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Target:
    """A target and its measured value.

    :param promise: The target in words, with the unit.
    :param limit: The maximum value that meets it.
    :param value: The measured value.
    """

    promise: str
    limit: float
    value: float

    @property
    def row(self) -> list[str]:
        """Return it as a row of a table."""
        return [
            self.promise,
            f"{self.limit:g}",
            f"{self.value:.4g}",
            "met" if self.value <= self.limit else "missed",
        ]


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, aligned for a terminal.

    :param title: The line above it.
    :param header: The names of the columns; the first is flush left, the others flush right.
    :param rows: The cells.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, rule)
    body = "\n".join(
        "| " + " | ".join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in cells) + " |"
        for cells in (list(enumerate(zip(line, widths, strict=True))) for line in lines)
    )
    return f"{title}\n\n{body}\n"
