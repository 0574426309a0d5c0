"""Credits: what work is paid with."""

from __future__ import annotations

from airflow_provider_roughy.api.calls import Call, Request, read_json


def get_credit_balance() -> Call[int]:
    """Read the spendable credits: ``GET /v1/credits/balance``."""
    return Call(Request("GET", "/v1/credits/balance"), lambda reply: int(read_json(reply)["balance"]))
