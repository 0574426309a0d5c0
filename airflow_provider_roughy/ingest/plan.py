"""What a batch costs, and which recordings fit ``max_credits``."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from airflow_provider_roughy import probe
from airflow_provider_roughy.logs import Log, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow_provider_roughy.ingest.upload import UploadItem

#: Seconds without any length read, after which the remaining recordings count as of unknown length.
PROBE_SECONDS = 60.0


def price(items: Sequence[UploadItem], *, credits_if_unknown: int | None, parallel: int) -> int:
    """Set the length of each recording by its headers, and its costs by that.

    A file that cannot be read, or not in time, has an unknown length, and does not stop the others.

    :param items: The recordings; those that were not found count as unknown.
    :param credits_if_unknown: The credits to count for a recording of unknown length; by default the most that its size
        can hold.
    :param parallel: How many files are read at once.
    :returns: How many are of unknown length.
    """
    lengths = _read_all(items, _seconds_of, parallel)
    for item, seconds in zip(items, lengths, strict=True):
        item.seconds = seconds
        item.credits = cost_if_unknown(item, credits_if_unknown) if seconds is None else probe.credits_for(seconds)
    return lengths.count(None)


def cost_if_unknown(item: UploadItem, credits_if_unknown: int | None) -> int:
    """Return the credits to count for a recording of unknown length."""
    return probe.max_credits_for(item.size) if credits_if_unknown is None else credits_if_unknown


def beyond_budget(
    items: Sequence[UploadItem], max_credits: int | None, *, spent: int, balance: int
) -> dict[UploadItem, str]:
    """Return the recordings that do not fit, and why. Uploads that this run has started come first, in their order.

    :param items: Priced recordings.
    :param max_credits: Credits that the run may cost in all; ``None`` for no limit, not even the balance.
    :param spent: Credits that the run has spent already.
    :param balance: Credits that the account has.
    """
    if max_credits is None:
        return {}
    left = min(max_credits - spent, balance)
    limit = "the balance" if left == balance else "`max_credits`"
    deferred = {}
    # Roughy may have all bytes of uploads that were started.
    for item in sorted(items, key=lambda item: not (item.mine and item.asset_id)):
        cost = item.credits or 0
        if cost > left:
            deferred[item] = f"it costs {counted(cost, 'credit')}, and {limit} leaves {max(left, 0):,}"
        else:
            left -= cost
    return deferred


def log_plan(
    items: Sequence[UploadItem], unknown: int, credits_if_unknown: int | None, *, spent: int, balance: int, log: Log
) -> None:
    """Log what the uploads cost.

    :param items: Priced recordings.
    :param unknown: How many of them are of unknown length.
    :param credits_if_unknown: What each of those counts for; ``None`` for the most that its size can hold.
    :param spent: Credits that the run has spent already.
    :param balance: Credits that the account has.
    :param log: Where to log it.
    """
    log.info(
        "Planned %s for %s; the balance is %s%s",
        counted(len(items), "upload"),
        counted(sum(item.credits or 0 for item in items), "credit"),
        f"{balance:,}",
        f", earlier tries of this run have spent {spent:,}" if spent else "",
    )
    if unknown:
        most = "the most that its size can hold"
        if credits_if_unknown is not None:
            most = counted(credits_if_unknown, "credit")
        log.warning(
            "%s of unknown length: each counts for %s; set `credits_if_unknown` to change that",
            counted(unknown, "recording"),
            most,
        )


def _seconds_of(item: UploadItem) -> float | None:
    return None if item.file is None else probe.seconds_of(item.open())


def _read_all(
    items: Sequence[UploadItem], read: Callable[[UploadItem], float | None], parallel: int
) -> list[float | None]:
    """Read the length of each item in daemon threads: one that hangs must not delay the rest, or a killed task."""
    lengths: list[float | None] = [None] * len(items)
    left = deque(enumerate(items))
    last_read = time.monotonic()

    def work() -> None:
        nonlocal last_read
        while True:
            try:
                number, item = left.popleft()
            except IndexError:
                return
            try:
                lengths[number] = read(item)
            except Exception as err:  # Whatever a storage or a demuxer raises: the upload will say more.
                item.log.warning("Reading the length of %s failed; it counts as unknown: %s", item.name, err)
            last_read = time.monotonic()

    threads = [
        threading.Thread(target=work, name="roughy-probe", daemon=True) for _ in range(min(parallel, len(items)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and time.monotonic() - last_read < PROBE_SECONDS:
            thread.join(0.5)
    left.clear()
    return list(lengths)
