"""Projects, assets, keys, pages and errors."""

from __future__ import annotations

import re
import uuid

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator
from tests.emulator.api import Api, problem

SUMMARY = {
    "id",
    "project_id",
    "type",
    "state",
    "extension",
    "size_bytes",
    "content_type",
    "duration_seconds",
    "language",
    "error_code",
    "error_message",
    "created_at",
    "upload_url",
}


def test_an_asset_from_creation_to_download(api: Api, roughy: Emulator, speech: bytes) -> None:
    reply = api.http.post(
        "/v1/assets", json={"project_id": roughy.project_id, "size_bytes": len(speech), "language": "DE"}
    )
    created = reply.json()
    assert reply.status_code == 201
    assert set(created) == SUMMARY
    assert reply.headers["Location"] == created["upload_url"]
    assert created["upload_url"].startswith(f"{roughy.url}/v1/uploads/")
    assert created["id"] not in created["upload_url"]
    assert created["state"] == "pending_upload"
    assert created["language"] == "de"
    assert [created[n] for n in ("type", "extension", "content_type", "size_bytes", "duration_seconds")] == [None] * 5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", created["created_at"])
    assert uuid.UUID(created["id"]).version == 7

    assert api.patch(created["upload_url"], 0, speech[:1000]).status_code == 204
    begun = api.get(created["id"])
    assert (begun["type"], begun["extension"], begun["content_type"]) == ("audio", "mp3", "audio/mpeg")
    assert (begun["state"], begun["size_bytes"]) == ("pending_upload", None)
    assert begun["upload_url"] == created["upload_url"]

    assert api.patch(created["upload_url"], 1000, speech[1000:]).status_code == 204
    processing = api.get(created["id"])
    assert (processing["state"], processing["size_bytes"]) == ("processing", len(speech))
    assert (processing["duration_seconds"], processing["upload_url"], processing["cuttable"]) == (None, None, False)

    assert roughy.settle() == [created["id"]]
    ready = api.get(created["id"])
    assert set(ready) == SUMMARY | {"download_url", "cuttable"}
    assert (ready["state"], ready["cuttable"]) == ("ready", True)
    assert float(ready["duration_seconds"]) == pytest.approx(3, abs=0.05)
    assert httpx.get(ready["download_url"]).content == speech
    assert set(api.list()["items"][0]) == SUMMARY
    assert [state for state, _ in roughy.asset(created["id"])["states"]] == ["pending_upload", "processing", "ready"]


def test_the_key_is_asked_for_first(roughy: Emulator) -> None:
    for headers in ({}, {"Authorization": "Bearer sk_wrong"}, {"Authorization": f"Basic {roughy.api_key}"}):
        for method, path in (
            ("GET", "/v1/assets"),
            ("POST", "/v1/assets"),
            ("DELETE", f"/v1/assets/{uuid.uuid4()}"),
            ("GET", "/v1/projects"),
            ("PATCH", f"/v1/uploads/{uuid.uuid4()}"),
            ("OPTIONS", "/v1/uploads"),
            ("GET", "/v1/credits/balance"),
            ("GET", "/v1/users/me"),
        ):
            reply = httpx.request(method, roughy.url + path, headers=headers)
            assert problem(reply) == (401, "unauthenticated"), (method, path)


def test_every_reply_has_a_request_id_and_the_log_knows_it(api: Api, roughy: Emulator) -> None:
    replies = [
        api.http.get("/v1/assets"),
        api.http.get("/v1/nothing"),
        api.http.delete("/v1/assets"),
        api.http.get(f"/v1/assets/{uuid.uuid4()}"),
        api.http.head("/v1/uploads/x"),
        httpx.get(roughy.storage_url + "/storage/assets/a/b"),
        httpx.get(roughy.url + "/v1/assets"),
    ]
    assert [r.headers["X-Request-Id"] for r in replies] == [r.request_id for r in roughy.requests]
    assert len({r.headers["X-Request-Id"] for r in replies}) == len(replies)
    assert [r.status for r in roughy.requests] == [200, 404, 405, 404, 412, 403, 401]


def test_two_keys_are_two_accounts(speech: bytes) -> None:
    emulator = Emulator(api_key=["sk_one", "sk_two"], balance=5, progression="immediate")
    with emulator as roughy, Api(roughy) as mine, Api(roughy, "sk_two") as theirs:
        asset = mine.create(len(speech))
        assert problem(theirs.http.get(f"/v1/assets/{asset['id']}")) == (404, "not_found")
        assert problem(theirs.http.delete(f"/v1/assets/{asset['id']}")) == (404, "not_found")
        assert problem(theirs.patch(asset["upload_url"], 0, speech)) == (404, "not_found")
        assert theirs.head(asset["upload_url"]).status_code == 404
        assert problem(theirs.http.get("/v1/assets", params={"project_id": roughy.project_id}))[0] == 404
        body = {"project_id": roughy.project_id, "size_bytes": 100}
        assert problem(theirs.http.post("/v1/assets", json=body)) == (404, "not_found")
        assert theirs.list()["total"] == 0
        assert theirs.http.get("/v1/projects").json()["total"] == 1
        mine.upload(speech)
        assert (mine.balance(), theirs.balance()) == (4, 5)
        users = {client.http.get("/v1/users/me").json()["id"] for client in (mine, theirs)}
        assert len(users) == 2


def test_pages(api: Api) -> None:
    ids = [api.create(100 + number)["id"] for number in range(7)]
    assert [item["id"] for item in api.list()["items"]] == ids[::-1]
    page = api.list(limit=3, offset=2)
    assert [item["id"] for item in page["items"]] == ids[::-1][2:5]
    assert (page["total"], page["limit"], page["offset"]) == (7, 3, 2)
    assert api.list()["limit"] == 20
    assert api.list(offset=7)["items"] == []
    assert api.list(state="ready")["total"] == 0
    assert api.list(state="pending_upload")["total"] == 7


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", ["query.limit"]),
        ("limit=101", ["query.limit"]),
        ("limit=ten", ["query.limit"]),
        ("limit=1.5", ["query.limit"]),
        ("offset=-1", ["query.offset"]),
        ("state=deleted", ["query.state"]),
        ("project_id=7", ["query.project_id"]),
        ("limit=0&offset=-1&state=x&project_id=y", ["query.limit", "query.offset", "query.project_id", "query.state"]),
    ],
)
def test_bad_query_values(api: Api, query: str, fields: list[str]) -> None:
    reply = api.http.get(f"/v1/assets?{query}")
    assert problem(reply) == (422, "validation_error")
    assert [detail["field"] for detail in reply.json()["error"]["fields"]] == fields


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["body.project_id", "body.size_bytes"]),
        ({"size_bytes": 63}, ["body.size_bytes"]),
        ({"size_bytes": "100"}, []),
        ({"size_bytes": 100.5}, ["body.size_bytes"]),
        ({"size_bytes": True}, ["body.size_bytes"]),
        ({"size_bytes": None}, ["body.size_bytes"]),
        ({"size_bytes": 100, "language": "deu"}, ["body.language"]),
        ({"size_bytes": 100, "language": 7}, ["body.language"]),
        ({"size_bytes": 100, "project_id": "x"}, ["body.project_id"]),
    ],
)
def test_bad_bodies(api: Api, roughy: Emulator, body: dict[str, object], fields: list[str]) -> None:
    full = {"project_id": roughy.project_id, **body} if body else {}
    reply = api.http.post("/v1/assets", json=full)
    if not fields:
        # A string of digits is taken for a number, as the stack's validation does.
        assert reply.status_code == 201
        return
    assert problem(reply) == (422, "validation_error")
    assert [detail["field"] for detail in reply.json()["error"]["fields"]] == fields
    assert roughy.assets == []


def test_bodies_that_are_no_json_object(api: Api) -> None:
    headers = {"Content-Type": "application/json"}
    assert problem(api.http.post("/v1/assets", content=b"{", headers=headers)) == (400, "bad_request")
    assert problem(api.http.post("/v1/assets", content=b"[1]", headers=headers)) == (422, "validation_error")
    text = {"Content-Type": "text/plain"}
    assert problem(api.http.post("/v1/assets", content=b"{}", headers=text)) == (415, "unsupported_media_type")


def test_limits_of_an_upload(api: Api, roughy: Emulator) -> None:
    most = 50 * 1024**3
    assert api.create(most)["state"] == "pending_upload"
    body = {"project_id": roughy.project_id, "size_bytes": most + 1}
    assert problem(api.http.post("/v1/assets", json=body)) == (413, "payload_too_large")
    assert api.create(64)["state"] == "pending_upload"


def test_ids_that_are_no_uuid_and_unknown_ones(api: Api) -> None:
    reply = api.http.get("/v1/assets/7")
    assert problem(reply) == (422, "validation_error")
    assert reply.json()["error"]["fields"][0]["field"] == "path.asset_id"
    assert problem(api.http.get(f"/v1/assets/{uuid.uuid4()}")) == (404, "not_found")
    assert problem(api.http.get("/v1/projects/7")) == (422, "validation_error")
    reply = api.http.get("/v1/assets", params={"project_id": str(uuid.uuid4())})
    assert problem(reply) == (404, "not_found")
    assert reply.json()["error"]["message"] == "Project not found."
    assert "fields" not in reply.json()["error"]


@pytest.mark.parametrize("state", ["pending_upload", "processing", "pending_payment", "ready", "failed"])
def test_delete_in_any_state(api: Api, roughy: Emulator, speech: bytes, state: str) -> None:
    asset = api.create(len(speech))
    api.patch(asset["upload_url"], 0, speech[:500])
    roughy.set_state(asset["id"], state)
    reply = api.http.delete(f"/v1/assets/{asset['id']}")
    assert (reply.status_code, reply.content) == (204, b"")
    assert problem(api.http.get(f"/v1/assets/{asset['id']}")) == (404, "not_found")
    assert problem(api.http.delete(f"/v1/assets/{asset['id']}")) == (404, "not_found")
    assert api.head(asset["upload_url"]).status_code in (404, 410)
    assert api.list()["total"] == 0


def test_the_status_of_a_deletion_is_a_choice(speech: bytes) -> None:
    with Emulator(choices=Choices(delete_status=200)) as roughy, Api(roughy) as api:
        assert api.http.delete(f"/v1/assets/{api.create(100)['id']}").status_code == 200


def test_projects(api: Api, roughy: Emulator) -> None:
    reply = api.http.post("/v1/projects", json={"name": "Episode 42"})
    project = reply.json()
    assert reply.status_code == 201
    assert set(project) == {"id", "name", "state", "archived_at", "created_at", "updated_at"}
    assert (project["name"], project["state"], project["archived_at"]) == ("Episode 42", "active", None)
    path = f"/v1/projects/{project['id']}"
    assert api.http.get(path).json() == project
    listed = api.http.get("/v1/projects").json()
    assert [item["id"] for item in listed["items"]] == [project["id"], roughy.project_id]
    assert set(listed["items"][0]) == {"id", "name", "state", "created_at", "updated_at"}

    changed = api.http.patch(path, json={"name": "Episode 43", "state": "archived"}).json()
    assert (changed["name"], changed["state"]) == ("Episode 43", "archived")
    assert changed["archived_at"] == changed["updated_at"] > project["updated_at"]
    assert api.http.get("/v1/projects").json()["total"] == 1
    assert api.http.get("/v1/projects", params={"state": "archived"}).json()["total"] == 1
    assert api.http.patch(path, json={"state": "active"}).json()["archived_at"] is None

    for body in ({}, {"name": ""}, {"name": "x" * 257}, {"name": 3}):
        assert problem(api.http.post("/v1/projects", json=body)) == (422, "validation_error")
    for body in ({"state": "gone"}, {"name": ""}, {"name": "x" * 257}):
        assert problem(api.http.patch(path, json=body)) == (422, "validation_error")

    asset = api.create(100, project_id=project["id"])
    assert api.list(project_id=project["id"])["total"] == 1
    assert api.http.delete(path).status_code == 204
    assert problem(api.http.get(path)) == (404, "not_found")
    assert problem(api.http.get(f"/v1/assets/{asset['id']}")) == (404, "not_found")


def test_unknown_paths_are_404_and_methods_405(api: Api) -> None:
    assert problem(api.http.get("/v1/nothing")) == (404, "not_found")
    assert problem(api.http.get("/v1/assets/")) == (404, "not_found")
    reply = api.http.post("/v1/uploads", content=b"")
    assert problem(reply) == (405, "bad_request")
    assert api.http.put("/v1/assets").headers["Allow"] == "GET, POST"


def test_profile(api: Api) -> None:
    me = api.http.get("/v1/users/me").json()
    assert set(me) == {"id", "email", "name", "email_verified_at", "deleted_at", "created_at"}
    assert me["deleted_at"] is None


def test_downloads(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset_id = api.upload(speech)
    roughy.settle()
    url = httpx.URL(api.get(asset_id)["download_url"])
    assert url.path.startswith("/storage/")
    assert url.params["X-Amz-Expires"] == "900"
    reply = httpx.get(url)
    assert (reply.content, reply.headers["Content-Type"]) == (speech, "audio/mpeg")
    part = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, speech[10:20])
    assert api.http.get(url).status_code == 400
    for changed in ({"X-Amz-Signature": "0" * 64}, {"X-Amz-Expires": "90000"}, {"X-Amz-Date": "20300101T000000Z"}):
        assert httpx.get(url.copy_merge_params(changed)).status_code == 403
    assert httpx.get(url.copy_with(query=None)).status_code == 403
    roughy.advance(850)
    assert httpx.get(url).status_code == 200
    roughy.advance(60)
    assert httpx.get(url).status_code == 403
    assert httpx.get(api.get(asset_id)["download_url"]).content == speech
    fresh = api.get(asset_id)["download_url"]
    api.http.delete(f"/v1/assets/{asset_id}")
    assert httpx.get(fresh).status_code == 404


def test_urls_keep_the_origin_that_the_client_used(roughy: Emulator, api: Api) -> None:
    port = httpx.URL(roughy.url).port
    created = api.http.post(
        f"http://localhost:{port}/v1/assets", json={"project_id": roughy.project_id, "size_bytes": 100}
    )
    assert created.json()["upload_url"].startswith(f"http://localhost:{port}/v1/uploads/")
