"""Renders: states, idempotency, lists, cancelling and refusals."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator
from airflow_provider_roughy.emulator.store.renders import read_output
from airflow_provider_roughy.emulator.wire import ApiError
from tests.emulator.api import Api, problem

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
FIELDS = {"id", "asset_id", "cut_id", "state", "output", "size_bytes", "error_code", "error_message"}
FIELDS |= {"created_at", "started_at", "completed_at"}


def render(api: Api, asset_id: str, format: str = "mp3", cut_id: str | None = None, **output: Any) -> httpx.Response:
    body = {"asset_id": asset_id, "output": {"format": format, **output}}
    return api.http.post("/v1/renders", json=body if cut_id is None else {**body, "cut_id": cut_id})


def get(api: Api, render_id: str) -> dict[str, Any]:
    reply = api.http.get(f"/v1/renders/{render_id}")
    assert reply.status_code == 200
    assert set(reply.json()) == FIELDS | {"download_url"}
    return dict(reply.json())


def test_a_render_is_made_once_for_a_request(api: Api, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(type="video")
    cut_id = roughy.seed_cut(asset_id=asset_id)
    first = render(api, asset_id, "mp4", resolution="720p")
    assert first.status_code == 201
    body = first.json()
    assert set(body) == FIELDS
    assert (body["state"], body["size_bytes"]) == ("pending", None)
    assert {name: value for name, value in body["output"].items() if value} == {"format": "mp4", "resolution": "720p"}
    assert first.headers["Location"] == f"{roughy.url}/v1/renders/{body['id']}"
    again = render(api, asset_id, "mp4", resolution="720p", video_bitrate=None)
    assert (again.status_code, again.json()["id"]) == (200, body["id"])
    others = [
        render(api, asset_id, "mp4", resolution="1080p"),
        render(api, asset_id, "mov", resolution="720p"),
        render(api, asset_id, "mp4", resolution="720p", cut_id=cut_id),
    ]
    assert [reply.status_code for reply in others] == [201] * 3
    assert len(roughy.renders) == 4


def test_the_states(api: Api, roughy: Emulator) -> None:
    roughy.progression = "polls=2"
    render_id = roughy.seed_render("pending", size_bytes=77)
    assert [get(api, render_id)["state"] for _ in range(3)] == ["pending", "processing", "completed"]
    facts = get(api, render_id)
    assert (facts["size_bytes"], facts["error_code"]) == (77, None)
    assert facts["created_at"] <= facts["started_at"] <= facts["completed_at"]
    roughy.set_state(render_id, "failed")
    facts = get(api, render_id)
    assert (facts["error_code"], facts["size_bytes"], facts["download_url"]) == ("render_failed", None, None)


def test_an_asset_without_bytes_cannot_be_rendered(api: Api, roughy: Emulator) -> None:
    roughy.progression = "immediate"
    render_id = render(api, roughy.seed_asset()).json()["id"]
    # Another thread is at it.
    while (facts := get(api, render_id))["state"] in ("pending", "processing"):
        time.sleep(0.01)
    assert (facts["state"], facts["error_code"]) == ("failed", "render_failed")
    assert "no bytes" in facts["error_message"]


def test_a_seeded_render_is_downloaded(api: Api, roughy: Emulator) -> None:
    render_id = roughy.seed_render(content=b"some bytes", output={"format": "m4a"})
    facts = get(api, render_id)
    assert facts["size_bytes"] == 10
    reply = httpx.get(facts["download_url"])
    assert (reply.content, reply.headers["Content-Type"]) == (b"some bytes", "audio/mp4")
    roughy.set_state(render_id, "processing")
    assert httpx.get(facts["download_url"]).status_code == 404


@pytest.mark.parametrize(
    ("asset_state", "format", "code"),
    [
        ("processing", "mp4", "asset_not_ready"),
        ("pending_payment", "mov", "asset_not_ready"),
        ("failed", "mp4", "asset_not_ready"),
        ("processing", "mp3", "asset_processing"),
        ("pending_payment", "m4a", "asset_payment_required"),
        ("failed", "mp3", "asset_failed"),
    ],
)
def test_assets_that_cannot_be_rendered(api: Api, roughy: Emulator, asset_state: str, format: str, code: str) -> None:
    reply = render(api, roughy.seed_asset(asset_state, type="video"), format)
    assert problem(reply) == (409, code)
    assert ("Retry-After" in reply.headers) == (code == "asset_processing")


def test_cuts_that_cannot_be_rendered(api: Api, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset()
    for state in ("pending", "processing", "failed"):
        reply = render(api, asset_id, cut_id=roughy.seed_cut(state, asset_id=asset_id))
        assert problem(reply) == (409, "modifier_not_ready")
    for cut_id in (NOBODY, roughy.seed_cut()):
        assert problem(render(api, asset_id, cut_id=cut_id)) == (404, "not_found")
    with Emulator(choices=Choices(foreign_cut_status=422)) as other, Api(other) as there:
        assert problem(render(there, other.seed_asset(), cut_id=NOBODY)) == (422, "validation_error")


def test_a_recording_without_a_picture_has_no_video(api: Api, roughy: Emulator) -> None:
    assert problem(render(api, roughy.seed_asset(type="audio"), "mp4")) == (409, "unsupported_format")


@pytest.mark.parametrize(
    "output",
    [
        None,
        "mp4",
        {},
        {"format": "avi"},
        {"format": "mp4", "resolution": "8k"},
        {"format": "mp4", "video_bitrate": 7},
        {"format": "mp4", "audio_bitrate": "128"},
        {"format": "mp3", "audio_bitrate": 100},
        {"format": "mp4", "frame_rate": 121},
        {"format": "mp4", "frame_rate": True},
        {"format": "mp3", "resolution": "720p"},
        {"format": "m4a", "video_bitrate": 5},
    ],
)
def test_wrong_outputs(api: Api, roughy: Emulator, output: Any) -> None:
    asset_id = roughy.seed_asset(type="video")
    reply = api.http.post("/v1/renders", json={"asset_id": asset_id, "output": output})
    assert problem(reply) == (422, "validation_error")
    assert reply.json()["error"]["fields"][0]["field"].startswith("body.output")


def test_the_closed_lists_of_an_output() -> None:
    tried: dict[str, list[Any]] = {
        "format": ["mp4", "mov", "m4a", "mp3", "webm", "mkv", "wav"],
        "resolution": ["480p", "720p", "1080p", "1440p", "2160p", "4k", "8k"],
        "video_bitrate": list(range(100)),
        "audio_bitrate": list(range(400)),
    }

    def is_taken(name: str, value: Any) -> bool:
        try:
            read_output({"format": "mp4", name: value}, Choices())
        except ApiError:
            return False
        return True

    assert {name: [value for value in values if is_taken(name, value)] for name, values in tried.items()} == {
        "format": ["mp4", "mov", "m4a", "mp3"],
        "resolution": ["720p", "1080p", "4k"],
        "video_bitrate": [5, 10, 20, 50],
        "audio_bitrate": [128, 192, 256, 320],
    }


def test_lists(api: Api, roughy: Emulator) -> None:
    first, second = roughy.seed_render(), roughy.seed_render("processing")
    body = api.http.get("/v1/renders", params={"state": "processing"}).json()
    assert [item["id"] for item in body["items"]] == [second]
    assert set(body["items"][0]) == FIELDS
    query = {"asset_id": roughy.render(first)["asset_id"]}
    assert [item["id"] for item in api.http.get("/v1/renders", params=query).json()["items"]] == [first]
    assert problem(api.http.get(f"/v1/renders/{NOBODY}")) == (404, "not_found")
    api.http.delete(f"/v1/assets/{query['asset_id']}")
    assert [each["id"] for each in roughy.renders] == [second]


def test_cancelling(api: Api, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset()
    render_id = render(api, asset_id).json()["id"]
    assert api.http.delete(f"/v1/renders/{render_id}").status_code == 204
    facts = get(api, render_id)
    assert (facts["state"], facts["error_code"]) == ("failed", "cancelled")
    assert problem(api.http.delete(f"/v1/renders/{render_id}")) == (409, "conflict")
    assert problem(api.http.delete(f"/v1/renders/{roughy.seed_render()}")) == (409, "conflict")
    assert problem(api.http.delete(f"/v1/renders/{NOBODY}")) == (404, "not_found")
    # The same request is not answered by what was cancelled.
    again = render(api, asset_id)
    assert (again.status_code, again.json()["id"] != render_id) == (201, True)


@pytest.mark.parametrize(("choice", "status"), [("cancelled", 200), ("removed", 404)])
def test_other_ways_to_cancel(choice: Any, status: int) -> None:
    choices = Choices(render_cancel="post", cancelled_render=choice)
    with Emulator(progression="manual", choices=choices) as roughy, Api(roughy) as api:
        render_id = roughy.seed_render("processing")
        assert api.http.delete(f"/v1/renders/{render_id}").status_code == 405
        assert api.http.post(f"/v1/renders/{render_id}/cancel").status_code == 204
        reply = api.http.get(f"/v1/renders/{render_id}")
        assert reply.status_code == status
        if status == 200:
            assert reply.json()["state"] == "cancelled"
