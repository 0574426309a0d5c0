"""Credits, and the ledger of their changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_roughy.api import decode
from airflow_provider_roughy.api.calls import (
    PAGE_SIZE,
    Call,
    Page,
    Request,
    Resource,
    page_params,
    parse_page_of,
    read_json,
)

if TYPE_CHECKING:
    from airflow_provider_roughy.api.calls import Reply


@dataclass(frozen=True)
class RoughyCreditEntry(Resource):
    """An entry of the credit ledger, which is append-only (page "Credit ledger").

    :param type: ``consume_asset``, ``topup``, ``refund``, ``adjustment`` or ``expiry``.
    :param delta: Credits; negative if they were spent.
    :param asset_id: The asset that they were spent on.
    :param grant_id: The grant that they belong to.
    :param stripe_invoice_id: The invoice that paid for them.
    """

    type: str
    delta: int
    created_at: str
    asset_id: str | None = None
    grant_id: str | None = None
    stripe_invoice_id: str | None = None

    _decoders: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"id": decode.text}


@dataclass(frozen=True)
class RoughyCreditDay:
    """What became of the credits on one day, in UTC.

    :param day: The date.
    :param spent: Credits that were spent, expired or were taken.
    :param added: Credits that were added: top-ups, refunds, adjustments.
    :param assets: How many assets were paid for.
    :param balance: The balance at the end of the day, or now.
    """

    day: str
    spent: int
    added: int
    assets: int
    balance: int


def credits_by_day(
    entries: Iterable[RoughyCreditEntry], *, balance: int, today: date, days: int
) -> list[RoughyCreditDay]:
    """Sum up entries of the credit ledger by day, in UTC. Return the last days, the newest first.

    :param entries: The entries of these days, in any order. An entry whose time cannot be read is left out.
    :param balance: The balance now.
    :param today: Today, in UTC.
    :param days: How many days, at least 1.
    """
    sums: dict[date, list[int]] = {}
    for entry in entries:
        moment = decode.timestamp(entry.created_at)
        if moment is None:
            continue
        # The clocks may differ.
        of_day = sums.setdefault(min(moment.astimezone(UTC).date(), today), [0, 0, 0])
        of_day[entry.delta > 0] += abs(entry.delta)
        of_day[2] += entry.type == "consume_asset"
    report = []
    for number in range(max(days, 1)):
        day = today - timedelta(days=number)
        spent, added, assets = sums.get(day, (0, 0, 0))
        report.append(RoughyCreditDay(day.isoformat(), spent, added, assets, balance))
        balance += spent - added
    return report


def get_credit_balance() -> Call[int]:
    """Read the spendable credits: ``GET /v1/credits/balance``."""

    def parse(reply: Reply) -> int:
        balance = decode.integer(read_json(reply)["balance"])
        if balance is None:
            raise ValueError("no balance")
        return balance

    return Call(Request("GET", "/v1/credits/balance"), parse)


def list_credit_entries(*, limit: int = PAGE_SIZE, offset: int = 0) -> Call[Page[RoughyCreditEntry]]:
    """Read one page of the credit ledger, newest first: ``GET /v1/credits/history``.

    :param limit: At most this many, 1 to 100.
    :param offset: After this many.
    """
    return Call(
        Request("GET", "/v1/credits/history", params=page_params(limit, offset)),
        parse_page_of(RoughyCreditEntry, limit=limit, offset=offset),
    )
