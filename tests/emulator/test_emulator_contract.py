"""The emulator's replies against the documented schema (tests/contract/openapi.json)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from airflow_provider_roughy.emulator import Emulator
from tests.emulator.api import Api
from tests.properties import examples

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "contract" / "openapi.json").read_text())
SCHEMAS: dict[str, Any] = CONTRACT["components"]["schemas"]
NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
formats = FormatChecker(["uuid"])


@formats.checks("date-time")
def is_date_time(value: object) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}\.\d{6}Z", value) is not None


@formats.checks("uri")
def is_uri(value: object) -> bool:
    return not isinstance(value, str) or urlsplit(value).scheme in ("http", "https")


def check(path: str, reply: httpx.Response) -> dict[str, Any]:
    """Hold a reply of GET against the contract, and return its body."""
    responses = CONTRACT["paths"][path]["get"]["responses"]
    assert str(reply.status_code) in responses, reply.text
    response = responses[str(reply.status_code)]
    if "$ref" in response:
        response = CONTRACT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    assert reply.headers["X-Request-Id"]
    assert reply.headers["Content-Type"] == "application/json"
    schema = {**response["content"]["application/json"]["schema"], "components": CONTRACT["components"]}
    body = reply.json()
    Draft202012Validator(schema, format_checker=formats).validate(body)
    if reply.status_code >= 400:
        assert body["error"]["code"] == response["x-code"]
        assert ("fields" in body["error"]) == (reply.status_code == 422)
    return dict(body)


def check_state(asset: dict[str, Any], *, detail: bool) -> None:
    """Hold an asset against what the descriptions say about its states."""
    state = asset["state"]
    assert set(asset) == set(SCHEMAS["AssetDetail" if detail else "AssetSummary"]["properties"])
    assert (asset["upload_url"] is not None) == (state == "pending_upload")
    assert (asset["size_bytes"] is None) == (state == "pending_upload")
    assert (asset["duration_seconds"] is not None) == (state in ("ready", "pending_payment"))
    assert (asset["error_code"] is not None) == (asset["error_message"] is not None) == (state == "failed")
    if detail:
        assert asset["cuttable"] == (asset["download_url"] is not None) == (state == "ready")


def test_the_contract_is_a_valid_schema() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_assets_in_every_state(api: Api, roughy: Emulator, speech: bytes) -> None:
    uploaded = api.upload(speech)
    broken = api.upload(speech[:64] + bytes(5000))
    begun = api.create(5000)
    api.patch(begun["upload_url"], 0, speech[:100])
    roughy.settle()
    seeded = [roughy.seed_asset(state) for state in SCHEMAS["AssetState"]["enum"]]
    roughy.set_state(uploaded, "pending_payment")
    states = set()
    for asset_id in [uploaded, broken, begun["id"], *seeded]:
        detail = check("/v1/assets/{asset_id}", api.http.get(f"/v1/assets/{asset_id}"))
        check_state(detail, detail=True)
        states.add(detail["state"])
    assert states == set(SCHEMAS["AssetState"]["enum"])
    page = check("/v1/assets", api.http.get("/v1/assets"))
    assert page["total"] == len(page["items"]) == 8
    for item in page["items"]:
        check_state(item, detail=False)


def test_refusals(api: Api, roughy: Emulator) -> None:
    replies = [
        api.http.get(f"/v1/assets/{NOBODY}"),
        api.http.get("/v1/assets/x"),
        httpx.get(f"{roughy.url}/v1/assets/x"),
    ]
    assert [r.status_code for r in replies] == [404, 422, 401]
    for reply in replies:
        check("/v1/assets/{asset_id}", reply)
    replies = [
        api.http.get("/v1/assets", params={"project_id": NOBODY}),
        api.http.get("/v1/assets?limit=0"),
        httpx.get(f"{roughy.url}/v1/assets"),
    ]
    assert [r.status_code for r in replies] == [404, 422, 401]
    for reply in replies:
        check("/v1/assets", reply)


def test_everything_else_in_every_state(api: Api, roughy: Emulator) -> None:
    hook = {"url": "http://127.0.0.1:9/", "event_types": ["asset.ready"]}
    api.http.post("/v1/webhook-endpoints", json=hook)
    archived = api.http.post("/v1/projects", json={"name": "Episode 42"}).json()["id"]
    api.http.patch(f"/v1/projects/{archived}", json={"state": "archived"})
    for state in SCHEMAS["JobState"]["enum"]:
        roughy.seed_cut(state, script="short" if state == "failed" else None)
        roughy.seed_render(state, output={"format": "mp4", "resolution": "4k", "frame_rate": 25}, content=b"media")
    roughy.top_up(1)
    roughy.balance = 0
    roughy.set_state(roughy.seed_asset("processing"), "ready")
    for path in ("/v1/credits/balance", "/v1/users/me"):
        check(path, api.http.get(path))
    total = {"projects": 1, "cuts": 4, "renders": 4, "credits/history": 3, "webhook-endpoints": 1}
    for name, count in total.items():
        page = check(f"/v1/{name}", api.http.get(f"/v1/{name}"))
        assert len(page["items"]) == page["total"] == count
        assert "fields" in check(f"/v1/{name}", api.http.get(f"/v1/{name}?offset=-1"))["error"]
    for project_id in (archived, roughy.project_id):
        project = check("/v1/projects/{project_id}", api.http.get(f"/v1/projects/{project_id}"))
        assert (project["archived_at"] is not None) == (project["state"] == "archived") == (project_id == archived)
    for kind, jobs in (("cut", roughy.cuts), ("render", roughy.renders)):
        for job in jobs:
            found = check(f"/v1/{kind}s/{{{kind}_id}}", api.http.get(f"/v1/{kind}s/{job['id']}"))
            assert (
                (found["error_code"] is not None) == (found["error_message"] is not None) == (job["state"] == "failed")
            )
            assert (found["started_at"] is not None) == (job["state"] != "pending")
            assert (found["completed_at"] is not None) == (job["state"] in ("completed", "failed"))
            if kind == "render":
                assert (found["size_bytes"] is None) == (found["download_url"] is None) == (job["state"] != "completed")
    for path in CONTRACT["paths"]:
        refused = httpx.get(f"{roughy.url}{path.partition('{')[0]}{NOBODY if '{' in path else ''}")
        check(path, refused)
        assert refused.status_code == 401
        if "{" in path:
            assert check(path, api.http.get(path.partition("{")[0] + NOBODY))["error"]["code"] == "not_found"


@pytest.fixture(scope="module")
def stocked() -> Any:
    """Twelve assets in all states."""
    with Emulator(progression="manual") as roughy, Api(roughy) as api:
        for number in range(12):
            roughy.seed_asset(SCHEMAS["AssetState"]["enum"][number % 5])
        yield api


numbers = st.one_of(st.integers(-3, 110).map(str), st.integers().map(str), st.text(max_size=4))
queries = st.fixed_dictionaries(
    {},
    optional={
        "limit": numbers,
        "offset": numbers,
        "state": st.one_of(st.sampled_from(SCHEMAS["AssetState"]["enum"]), st.text(max_size=8)),
        "project_id": st.one_of(
            st.just("01900000-0000-7000-8000-000000000001"), st.uuids().map(str), st.text(max_size=8)
        ),
        "unknown": st.text(max_size=5),
    },
)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries)
def test_any_query_gets_a_documented_reply(stocked: Api, query: dict[str, str]) -> None:
    reply = stocked.http.get("/v1/assets", params=query)
    body = check("/v1/assets", reply)
    if reply.status_code == 200:
        assert body["limit"] == int(query.get("limit", 20))
        assert body["offset"] == int(query.get("offset", 0))
        assert len(body["items"]) == max(0, min(body["limit"], body["total"] - body["offset"]))
        assert {item["state"] for item in body["items"]} <= {
            query.get("state", item["state"]) for item in body["items"]
        }
        for item in body["items"]:
            check_state(item, detail=False)


@settings(max_examples=examples(30), deadline=None)
@given(
    asset_id=st.one_of(st.uuids().map(str), st.text(st.characters(exclude_characters="/.", codec="utf-8"), min_size=1))
)
def test_any_id_gets_a_documented_reply(stocked: Api, asset_id: str) -> None:
    check("/v1/assets/{asset_id}", stocked.http.get(f"/v1/assets/{quote(asset_id)}"))


def test_an_offset_beyond_all_numbers_of_the_database_is_an_empty_page(stocked: Api) -> None:
    """Found by schemathesis: the contract gives ``offset`` no maximum."""
    offset = 10**30
    page = check("/v1/assets", stocked.http.get("/v1/assets", params={"offset": str(offset)}))
    assert (page["items"], page["offset"], page["total"]) == ([], offset, 12)
