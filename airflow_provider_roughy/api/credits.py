"""Credits, and the ledger of their changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
