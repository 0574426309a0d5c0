"""Credits: price, charge, the unpaid state, top-up, and the ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_roughy.emulator import Choices, Emulator
from harness import media
from tests.emulator.api import Api, problem


def history(api: Api) -> list[tuple[str, int]]:
    items = api.http.get("/v1/credits/history").json()["items"]
    return [(item["type"], item["delta"]) for item in items]


@pytest.mark.parametrize(("seconds", "price"), [(1, 1), (60, 1), (60.5, 2), (90, 2), (250, 5), (600, 10)])
def test_a_credit_for_each_started_minute(
    api: Api, roughy: Emulator, tmp_path: Path, seconds: float, price: int
) -> None:
    asset_id = api.upload(media.make_long_audio(tmp_path / "a.wav", seconds).read_bytes())
    assert api.balance() == 1000
    roughy.settle()
    assert api.get(asset_id)["state"] == "ready"
    assert float(api.get(asset_id)["duration_seconds"]) == seconds
    assert api.balance() == 1000 - price
    assert history(api)[0] == ("consume_asset", -price)


def test_the_shortest_recording_has_started_its_first_minute(api: Api, roughy: Emulator) -> None:
    # As it is told of less than half a millisecond.
    roughy.seed_asset("processing", duration_seconds="0.000")
    roughy.settle()
    assert history(api)[0] == ("consume_asset", -1)


def test_the_ledger(api: Api, roughy: Emulator, talk: bytes) -> None:
    asset_id = api.upload(talk)
    roughy.settle()
    roughy.top_up(50)
    roughy.balance = 7
    page = api.http.get("/v1/credits/history").json()
    assert [(e["type"], e["delta"]) for e in page["items"]] == [
        ("adjustment", -1041),
        ("topup", 50),
        ("consume_asset", -2),
        ("topup", 1000),
    ]
    assert set(page) == {"items", "total", "limit", "offset"}
    for entry in page["items"]:
        assert set(entry) == {"id", "type", "delta", "asset_id", "grant_id", "stripe_invoice_id", "created_at"}
    assert [e["asset_id"] for e in page["items"]] == [None, None, asset_id, None]
    assert [e["stripe_invoice_id"] is not None for e in page["items"]] == [False, True, False, False]
    assert [e["grant_id"] is not None for e in page["items"]] == [True, True, False, True]
    assert sum(e["delta"] for e in page["items"]) == api.balance() == roughy.balance == 7
    short = api.http.get("/v1/credits/history", params={"limit": 1, "offset": 2}).json()
    assert ([e["type"] for e in short["items"]], short["total"]) == (["consume_asset"], 4)
    assert problem(api.http.get("/v1/credits/history?limit=0")) == (422, "validation_error")
    api.http.delete(f"/v1/assets/{asset_id}")
    assert roughy.balance == 7


@pytest.mark.parametrize("balance", [0, -5])
def test_nothing_starts_without_credits(balance: int) -> None:
    with Emulator(balance=balance) as roughy, Api(roughy) as api:
        body = {"project_id": roughy.project_id, "size_bytes": 100}
        assert problem(api.http.post("/v1/assets", json=body)) == (402, "insufficient_credits")
        assert roughy.assets == []
        # Validation and ownership come first.
        assert api.http.post("/v1/assets", json={**body, "size_bytes": 1}).status_code == 422
        roughy.top_up(10)
        assert api.http.post("/v1/assets", json=body).status_code == 201


def test_unpaid_until_the_next_top_up_oldest_first(talk: bytes, speech: bytes) -> None:
    with Emulator(balance=1, progression="immediate") as roughy, Api(roughy) as api:
        first, second, third = api.upload(talk), api.upload(talk), api.upload(speech)
        # The third costs one credit, which there was: no partial debit, and none jumps a queue at processing.
        states = {asset: api.get(asset) for asset in (first, second, third)}
        assert [states[a]["state"] for a in (first, second, third)] == ["pending_payment", "pending_payment", "ready"]
        assert states[first]["duration_seconds"] == "90.000"
        assert (states[first]["download_url"], states[first]["cuttable"]) == (None, False)
        assert roughy.balance == 0
        roughy.top_up(1)
        assert [api.get(a)["state"] for a in (first, second)] == ["pending_payment"] * 2
        roughy.top_up(2)
        assert [api.get(a)["state"] for a in (first, second)] == ["ready", "pending_payment"]
        assert roughy.balance == 1
        roughy.balance = 100
        assert api.get(second)["state"] == "pending_payment"
        roughy.top_up(1)
        assert api.get(second)["state"] == "ready"
        assert [s for s, _ in roughy.asset(second)["states"]][-2:] == ["pending_payment", "ready"]


def test_a_small_asset_waits_behind_a_large_one_unless_chosen_otherwise(talk: bytes, speech: bytes) -> None:
    for skips, state in ((False, "pending_payment"), (True, "ready")):
        choices = Choices(activation_skips_unaffordable=skips)
        with Emulator(balance=1, progression="manual", choices=choices) as roughy, Api(roughy) as api:
            large, small = api.upload(talk), api.upload(speech)
            roughy.balance = 0
            roughy.settle()
            roughy.top_up(1)
            assert api.get(large)["state"] == "pending_payment"
            assert api.get(small)["state"] == state


def test_unpaid_assets_are_purged_after_30_days(api: Api, roughy: Emulator, talk: bytes) -> None:
    asset_id = api.upload(talk)
    roughy.balance = 1
    roughy.settle()
    roughy.advance(30 * 86400 - 60)
    assert api.get(asset_id)["state"] == "pending_payment"
    roughy.advance(120)
    assert problem(api.http.get(f"/v1/assets/{asset_id}")) == (404, "not_found")
    with pytest.raises(KeyError):
        roughy.asset(asset_id)


def test_failed_media_costs_nothing(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset_id = api.upload(speech[: len(speech) // 2])
    roughy.settle()
    failed = api.get(asset_id)
    assert (failed["state"], failed["error_code"]) == ("failed", "probe_failed")
    assert failed["error_message"]
    assert failed["duration_seconds"] is None
    assert roughy.balance == 1000


def test_choices_about_money(talk: bytes) -> None:
    choices = Choices(partial_debit=True, refund_on_delete=True, failed_error_code="unreadable")
    with Emulator(balance=1, progression="immediate", choices=choices) as roughy, Api(roughy) as api:
        asset_id = api.upload(talk)
        assert api.get(asset_id)["state"] == "ready"
        assert roughy.balance == -1
        api.http.delete(f"/v1/assets/{asset_id}")
        assert history(api)[0] == ("refund", 2)
