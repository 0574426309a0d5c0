"""Credits: an append-only ledger, whose sum is the balance (credit ledger page)."""

from __future__ import annotations

import dataclasses
import secrets

from airflow_provider_roughy.emulator.wire import uuid7

from .clock import Clock
from .database import Database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
    id TEXT PRIMARY KEY, account INTEGER NOT NULL, type TEXT NOT NULL, delta INTEGER NOT NULL,
    asset_id TEXT, grant_id TEXT, stripe_invoice_id TEXT, created_at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS ledger_by_account ON ledger (account, created_at);
CREATE INDEX IF NOT EXISTS ledger_by_asset ON ledger (asset_id);
-- The sums of the entries, as each create and each charge asks for one.
CREATE TABLE IF NOT EXISTS balances (account INTEGER PRIMARY KEY, credits INTEGER NOT NULL);
INSERT OR IGNORE INTO balances SELECT account, SUM(delta) FROM ledger GROUP BY account;
CREATE TRIGGER IF NOT EXISTS add_to_balance AFTER INSERT ON ledger BEGIN
    INSERT INTO balances VALUES (NEW.account, NEW.delta)
    ON CONFLICT (account) DO UPDATE SET credits = credits + NEW.delta;
END;
"""


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """One change of a balance; positive credits are an addition."""

    id: str
    account: int
    type: str
    delta: int
    asset_id: str | None
    grant_id: str | None
    stripe_invoice_id: str | None
    created_at: int


class Credits:
    """The ledger of all accounts."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        database.create(_SCHEMA)

    def balance(self, account: int) -> int:
        """Return the spendable credits: the sum of all entries."""
        found = self._database.execute("SELECT credits FROM balances WHERE account = ?", account).fetchone()
        return int(found[0]) if found is not None else 0

    def page(self, account: int, limit: int, offset: int) -> tuple[list[LedgerEntry], int]:
        """Return one page of entries, newest first, and the number of all."""
        return self._database.page(LedgerEntry, "ledger", {"account": account}, limit, offset)

    def grant(self, account: int, credits: int) -> None:
        """Book the first credits, or debts, of a new account."""
        self._book(account, "topup" if credits > 0 else "adjustment", credits)

    def top_up(self, account: int, credits: int) -> None:
        """Book credits that were paid for."""
        self._book(account, "topup", credits, invoice=f"in_{secrets.token_hex(8)}")

    def adjust(self, account: int, balance: int) -> None:
        """Set the balance by an ``adjustment`` entry."""
        with self._database.change():
            if delta := balance - self.balance(account):
                self._book(account, "adjustment", delta)

    def consume(self, account: int, credits: int, asset_id: str, at: int) -> None:
        """Debit the price of an asset.

        :param at: The time of the entry, in microseconds.
        """
        self._book(account, "consume_asset", -credits, asset_id=asset_id, at=at)

    def refund(self, account: int, asset_id: str) -> None:
        """Refund the price of an asset, if it was charged."""
        query = "SELECT * FROM ledger WHERE asset_id = ? AND type = 'consume_asset'"
        for entry in self._database.rows(LedgerEntry, query, asset_id):
            self._book(account, "refund", -entry.delta, asset_id=asset_id)

    def _book(
        self,
        account: int,
        kind: str,
        delta: int,
        *,
        asset_id: str | None = None,
        invoice: str | None = None,
        at: int | None = None,
    ) -> None:
        at = self._clock.now() if at is None else at
        grant = None if kind in ("consume_asset", "refund") else uuid7(at)
        self._database.insert("ledger", LedgerEntry(uuid7(at), account, kind, delta, asset_id, grant, invoice, at))
