"""``/v1/credits``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airflow_provider_roughy.emulator.store import LedgerEntry, Store
from airflow_provider_roughy.emulator.wire import timestamp

from .endpoint import Endpoint, page, page_fields, refresh


class Credits:
    """``/v1/credits``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def endpoints(self) -> list[Endpoint]:
        """Return the paths and their handlers."""
        return [
            Endpoint("/v1/credits/balance", {"GET": self.balance}),
            Endpoint("/v1/credits/history", {"GET": self.history}),
        ]

    async def balance(self, request: Request, account: int) -> Response:
        """Read the spendable credits."""
        await refresh(self._store)
        return JSONResponse({"balance": self._store.credits.balance(account)})

    async def history(self, request: Request, account: int) -> Response:
        """List the ledger, newest first."""
        fields, limit, offset = page_fields(request)
        fields.check()
        await refresh(self._store)
        items, total = self._store.credits.page(account, limit, offset)
        return page([self._entry(entry) for entry in items], total, limit, offset)

    @staticmethod
    def _entry(entry: LedgerEntry) -> dict[str, Any]:
        return {
            "id": entry.id,
            "type": entry.type,
            "delta": entry.delta,
            "asset_id": entry.asset_id,
            "grant_id": entry.grant_id,
            "stripe_invoice_id": entry.stripe_invoice_id,
            "created_at": timestamp(entry.created_at),
        }
