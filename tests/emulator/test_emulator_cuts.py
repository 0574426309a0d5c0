"""Cuts: states, idempotency, lists and refusals."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator
from tests.emulator.api import Api, problem

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
FIELDS = set(
    ["id", "asset_id", "state", "script", "error_code", "error_message", "created_at", "started_at", "completed_at"]
)


def cut(api: Api, asset_id: str, **fields: Any) -> httpx.Response:
    return api.http.post("/v1/cuts", json={"asset_id": asset_id, **fields})


def state(api: Api, cut_id: str) -> str:
    reply = api.http.get(f"/v1/cuts/{cut_id}")
    assert reply.status_code == 200
    return str(reply.json()["state"])


def test_a_cut_is_made_once_for_an_asset_and_a_script(api: Api, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset()
    first = cut(api, asset_id)
    assert first.status_code == 201
    body = first.json()
    assert set(body) == FIELDS
    assert (body["state"], body["script"], body["started_at"]) == ("pending", None, None)
    assert first.headers["Location"] == f"{roughy.url}/v1/cuts/{body['id']}"
    again = cut(api, asset_id, script=None)
    assert (again.status_code, again.json()["id"]) == (200, body["id"])
    other = cut(api, asset_id, script="Shorter.")
    assert (other.status_code, other.json()["script"]) == (201, "Shorter.")
    assert cut(api, asset_id, script="Shorter.").json()["id"] == other.json()["id"]
    assert cut(api, roughy.seed_asset(), script="Shorter.").status_code == 201
    assert len(roughy.cuts) == 3
    assert roughy.balance == 1000


def test_the_states_by_polls(api: Api, roughy: Emulator) -> None:
    roughy.progression = "polls=3"
    cut_id = cut(api, roughy.seed_asset()).json()["id"]
    seen = [state(api, cut_id), api.http.get("/v1/cuts").json()["items"][0]["state"]]
    assert [*seen, state(api, cut_id), state(api, cut_id)] == ["pending", "processing", "processing", "completed"]
    facts = api.http.get(f"/v1/cuts/{cut_id}").json()
    assert facts["created_at"] <= facts["started_at"] <= facts["completed_at"]


def test_the_states_by_time(roughy: Emulator, api: Api) -> None:
    with Emulator(progression="seconds=600", choices=Choices(queued_seconds=60)) as timed, Api(timed) as there:
        cut_id = cut(there, timed.seed_asset()).json()["id"]
        assert state(there, cut_id) == "pending"
        timed.advance(60)
        begun = there.http.get(f"/v1/cuts/{cut_id}").json()
        assert (begun["state"], begun["started_at"] is not None, begun["completed_at"]) == ("processing", True, None)
        timed.advance(540)
        assert state(there, cut_id) == "completed"
        assert [name for name, _ in timed.cut(cut_id)["states"]] == ["pending", "processing", "completed"]


def test_the_states_at_once_and_by_hand(api: Api, roughy: Emulator) -> None:
    one, two = (cut(api, roughy.seed_asset()).json()["id"] for _ in range(2))
    roughy.advance(1e6)
    assert [state(api, each) for each in (one, two)] == ["pending", "pending"]
    roughy.set_state(two, "processing")
    assert state(api, two) == "processing"
    assert roughy.settle(one) == [one]
    assert [state(api, each) for each in (one, two)] == ["completed", "processing"]
    roughy.progression = "immediate"
    assert state(api, two) == "completed"
    roughy.set_state(two, "failed", error_code="odd", error_message="Odd.")
    facts = api.http.get(f"/v1/cuts/{two}").json()
    assert (facts["state"], facts["error_code"], facts["error_message"]) == ("failed", "odd", "Odd.")
    assert cut(api, facts["asset_id"]).json()["id"] == two


def test_a_failed_cut_can_be_made_anew_by_choice() -> None:
    with Emulator(progression="manual", choices=Choices(repeat_after_failure="new")) as roughy, Api(roughy) as api:
        cut_id = cut(api, roughy.seed_asset()).json()["id"]
        roughy.set_state(cut_id, "failed")
        again = cut(api, roughy.cut(cut_id)["asset_id"])
        assert (again.status_code, again.json()["id"] != cut_id) == (201, True)


@pytest.mark.parametrize(
    ("asset_state", "code", "retry_after"),
    [
        ("pending_upload", "asset_processing", "1"),
        ("processing", "asset_processing", "1"),
        ("pending_payment", "asset_payment_required", None),
        ("failed", "asset_failed", None),
    ],
)
def test_assets_that_cannot_be_cut(
    api: Api, roughy: Emulator, asset_state: str, code: str, retry_after: str | None
) -> None:
    reply = cut(api, roughy.seed_asset(asset_state))
    assert problem(reply) == (409, code)
    assert reply.headers.get("Retry-After") == retry_after
    assert roughy.cuts == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"asset_id": "x"}, 422),
        ({"asset_id": NOBODY}, 404),
        ({"asset_id": NOBODY, "script": 5}, 422),
        ({"asset_id": NOBODY, "script": "x" * 100_001}, 422),
        ({"asset_id": NOBODY, "script": "\ud800"}, 422),
    ],
)
def test_wrong_requests(api: Api, body: dict[str, Any], status: int) -> None:
    # Escaped: a client that encodes could not send the last one.
    reply = api.http.post("/v1/cuts", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert reply.status_code == status


def test_lists(api: Api, roughy: Emulator) -> None:
    mine = [roughy.seed_cut(word) for word in ("completed", "pending", "processing", "failed", "transcribing")]
    project = api.http.post("/v1/projects", json={"name": "Other"}).json()["id"]
    other = roughy.seed_cut(asset_id=roughy.seed_asset(project_id=project), script="a")

    def ids(**query: Any) -> list[str]:
        reply = api.http.get("/v1/cuts", params=query)
        assert reply.status_code == 200, reply.text
        body = reply.json()
        assert all(set(item) == FIELDS for item in body["items"])
        return [item["id"] for item in body["items"]]

    assert ids() == [other, *reversed(mine)]
    assert ids(state="completed") == [other, mine[0]]
    assert ids(project_id=project) == ids(asset_id=roughy.cut(other)["asset_id"]) == [other]
    assert ids(limit=2, offset=1) == [mine[4], mine[3]]
    assert problem(api.http.get("/v1/cuts", params={"state": "ready"})) == (422, "validation_error")
    assert problem(api.http.get("/v1/cuts", params={"asset_id": NOBODY})) == (404, "not_found")
    assert problem(api.http.get("/v1/cuts", params={"project_id": NOBODY})) == (404, "not_found")
    assert problem(api.http.get(f"/v1/cuts/{NOBODY}")) == (404, "not_found")
    assert problem(api.http.get("/v1/cuts/x")) == (422, "validation_error")
    assert api.http.delete("/v1/cuts").status_code == 405


def test_cuts_of_another_account_do_not_exist() -> None:
    with Emulator(api_key=["sk_a", "sk_b"]) as roughy, Api(roughy) as mine, Api(roughy, "sk_b") as theirs:
        cut_id = roughy.seed_cut()
        assert mine.http.get(f"/v1/cuts/{cut_id}").status_code == 200
        assert theirs.http.get(f"/v1/cuts/{cut_id}").status_code == 404
        assert theirs.http.get("/v1/cuts").json()["total"] == 0
        assert cut(theirs, roughy.cut(cut_id)["asset_id"]).status_code == 404


def test_they_go_with_their_asset(api: Api, roughy: Emulator) -> None:
    cut_id = roughy.seed_cut()
    api.http.delete(f"/v1/assets/{roughy.cut(cut_id)['asset_id']}")
    assert problem(api.http.get(f"/v1/cuts/{cut_id}")) == (404, "not_found")
    roughy.seed_cut()
    api.http.delete(f"/v1/projects/{roughy.project_id}")
    assert roughy.cuts == []


def test_a_thousand_are_seeded_and_listed_at_little_cost(api: Api, roughy: Emulator) -> None:
    started = time.process_time()
    asset_id = roughy.seed_asset()
    seeded = {roughy.seed_cut("processing", asset_id=asset_id, script=str(number)) for number in range(1000)}
    found = set()
    for offset in range(0, 1000, 100):
        query = {"state": "processing", "limit": "100", "offset": str(offset)}
        found |= {item["id"] for item in api.http.get("/v1/cuts", params=query).json()["items"]}
    assert found == seeded
    # CPU of the whole process; a few times what it takes.
    assert time.process_time() - started < 10


def test_unfinished_cuts_are_resumed_after_a_restart(tmp_path: Path) -> None:
    with Emulator(data_dir=tmp_path, progression="manual") as roughy, Api(roughy) as api:
        cut_id = cut(api, roughy.seed_asset()).json()["id"]
    with Emulator(data_dir=tmp_path, progression="manual") as roughy, Api(roughy) as api:
        assert state(api, cut_id) == "pending"
        roughy.settle()
        assert state(api, cut_id) == "completed"
        roughy.reset()
        assert roughy.cuts == []
