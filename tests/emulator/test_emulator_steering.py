"""Control of the emulator: clock, progression, seeding, the request log; from Python and over HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_roughy.emulator import Choices, Emulator, Fault, Request
from airflow_provider_roughy.emulator.media import measure
from airflow_provider_roughy.emulator.store import Store, assets
from tests.emulator.api import Api


def state(api: Api, asset_id: str) -> str:
    return str(api.get(asset_id)["state"])


def test_immediate(api: Api, roughy: Emulator, speech: bytes) -> None:
    roughy.progression = "immediate"
    assert state(api, api.upload(speech)) == "ready"


def test_media_whose_measurement_ends_during_a_refresh_settles(
    api: Api, roughy: Emulator, speech: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, note = Store.sweep, assets.Assets._note_measured
    swept, measured = threading.Event(), threading.Event()

    def measure_later(*args: Any, **kwargs: Any) -> Any:
        assert swept.wait(20)
        return measure(*args, **kwargs)

    def note_measured(*args: Any) -> None:
        note(*args)
        measured.set()

    def sweep_before(store: Store) -> None:
        sweep(store)
        swept.set()
        assert measured.wait(20)

    monkeypatch.setattr(assets, "measure", measure_later)
    monkeypatch.setattr(assets.Assets, "_note_measured", note_measured)
    asset_id = api.upload(speech)
    monkeypatch.setattr(Store, "sweep", sweep_before)
    roughy.settle()
    monkeypatch.undo()
    # Read without a further look, which would settle it.
    asset = roughy._store.assets.find(asset_id)
    assert asset is not None
    assert asset.state == "ready"


def test_seconds_by_the_clock_of_the_emulator(api: Api, roughy: Emulator, speech: bytes) -> None:
    roughy.progression = "seconds=600"
    asset_id = api.upload(speech)
    roughy.advance(300)
    assert state(api, asset_id) == "processing"
    roughy.advance(300)
    assert state(api, asset_id) == "ready"
    entered = {state: datetime.fromisoformat(at[:-1]) for state, at in roughy.asset(asset_id)["states"]}
    assert (entered["ready"] - entered["processing"]).total_seconds() == 600


def test_seconds_in_real_time(speech: bytes) -> None:
    with Emulator(progression="seconds=0.5") as roughy, Api(roughy) as api:
        started = time.monotonic()
        asset_id = api.upload(speech)
        seen = state(api, asset_id)
        # On a busy machine, the first look may come late.
        assert seen == "processing" or time.monotonic() - started >= 0.5
        while state(api, asset_id) == "processing":
            time.sleep(0.05)
        assert time.monotonic() - started >= 0.5
        assert state(api, asset_id) == "ready"


def test_polls(api: Api, roughy: Emulator, speech: bytes) -> None:
    roughy.progression = "polls=3"
    asset_id = api.upload(speech)
    # Looking from Python does not count; a filtered list that does not show the asset does not either.
    assert roughy.asset(asset_id)["state"] == "processing"
    assert api.list(state="ready")["total"] == 0
    seen = [state(api, asset_id), api.list()["items"][0]["state"], state(api, asset_id), state(api, asset_id)]
    assert seen == ["processing", "processing", "processing", "ready"]


def test_manual(api: Api, roughy: Emulator, speech: bytes) -> None:
    one, two = api.upload(speech), api.upload(speech)
    roughy.advance(1e6)
    assert [state(api, each) for each in (one, two)] == ["processing", "processing"]
    assert roughy.settle(one) == [one]
    assert [state(api, each) for each in (one, two)] == ["ready", "processing"]
    assert roughy.settle(one) == []
    assert roughy.settle() == [two]
    with pytest.raises(KeyError):
        roughy.settle("nonsense")


def test_change_of_progression_applies_to_unfinished_work(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset_id = api.upload(speech)
    assert state(api, asset_id) == "processing"
    roughy.progression = "immediate"
    assert state(api, asset_id) == "ready"


@pytest.mark.parametrize(
    "text", ["", "soon", "seconds", "seconds=-1", "seconds=inf", "seconds=x", "polls=-1", "manual=1"]
)
def test_progressions_that_are_none(roughy: Emulator, text: str) -> None:
    with pytest.raises(ValueError, match="progression"):
        roughy.progression = text
    with pytest.raises(ValueError, match="progression"), Emulator(progression=text):
        pass
    assert roughy.progression == "manual"


def test_seeding_and_setting_states(api: Api, roughy: Emulator) -> None:
    ready = roughy.seed_asset()
    assert api.get(ready)["duration_seconds"] == "60.000"
    failed = roughy.seed_asset("failed", error_code="too_long", error_message="Longer than a day.")
    assert api.get(failed)["error_code"] == "too_long"
    unknown = roughy.seed_asset("transcoding", language="de", type="video", size_bytes=5)
    shown = api.get(unknown)
    assert (shown["state"], shown["language"], shown["type"], shown["size_bytes"]) == ("transcoding", "de", "video", 5)
    pending = roughy.seed_asset("pending_upload", size_bytes=100)
    assert api.offset(api.get(pending)["upload_url"]) == 0
    processing = roughy.seed_asset("processing", duration_seconds="90")
    assert roughy.balance == 1000
    roughy.settle(processing)
    assert (api.get(processing)["state"], roughy.balance) == ("ready", 998)
    unpaid = roughy.seed_asset("pending_payment", duration_seconds="90.5")
    roughy.top_up(1)
    assert (api.get(unpaid)["state"], roughy.balance) == ("ready", 997)
    roughy.set_state(unpaid, "failed")
    assert (api.get(unpaid)["state"], api.get(unpaid)["error_code"]) == ("failed", "probe_failed")
    roughy.set_state(unpaid, "ready")
    assert (api.get(unpaid)["error_code"], api.get(unpaid)["duration_seconds"]) == (None, "90.5")
    content = roughy.seed_asset("ready", content=b"some bytes", content_type="audio/mpeg")
    assert httpx.get(api.get(content)["download_url"]).content == b"some bytes"
    assert httpx.get(api.get(ready)["download_url"]).status_code == 404
    with pytest.raises(KeyError):
        roughy.set_state("nonsense", "ready")
    with pytest.raises(ValueError, match="unknown field"):
        roughy.seed_asset("ready", colour="red")
    assert len(roughy.assets) == 7


def test_the_request_log(api: Api, roughy: Emulator) -> None:
    api.http.get("/v1/assets?limit=3", headers={"X-Mine": "Yes"})
    api.create(100)
    first, second = roughy.requests
    assert isinstance(first, Request)
    assert (first.method, first.path, first.query, first.status) == ("GET", "/v1/assets", "limit=3", 200)
    assert first.headers["x-mine"] == "Yes"
    assert first.headers["authorization"] == f"Bearer {roughy.api_key}"
    assert second.body_bytes > 50
    assert first.connection == second.connection > 0
    assert abs(first.started_at - time.time()) < 60
    assert first.seconds > 0
    roughy.clear_requests()
    assert roughy.requests == []


def test_the_log_over_http_has_no_secrets(api: Api, roughy: Emulator, speech: bytes) -> None:
    asset_id = api.upload(speech)
    roughy.settle()
    httpx.get(api.get(asset_id)["download_url"])
    for path in ("requests", "state", ""):
        text = httpx.get(f"{roughy.url}/_emulator/{path}").text
        assert roughy.api_key not in text
        assert "X-Amz-Signature" not in text


def test_steering_over_http(api: Api, roughy: Emulator, talk: bytes) -> None:
    control = httpx.Client(base_url=f"{roughy.url}/_emulator", trust_env=False)

    def call(method: str, where: str, **body: Any) -> Any:
        reply = control.request(method, where, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    index = call("GET", "/")
    assert {route["path"] for route in index["routes"]} >= {"/_emulator/faults", "/_emulator/reset"}
    asset_id = api.upload(talk)
    assert [a["id"] for a in call("GET", "/assets")] == [asset_id]
    call("PUT", "/credits/balance", balance=1)
    assert call("POST", "/settle") == {"settled": [asset_id]}
    assert call("GET", f"/assets/{asset_id}") == json.loads(json.dumps(roughy.asset(asset_id)))
    assert state(api, asset_id) == "pending_payment"
    call("POST", "/credits/top-up", credits=10)
    assert state(api, asset_id) == "ready"
    call("POST", f"/assets/{asset_id}/state", state="failed", error_code="odd", error_message="Odd.")
    assert api.get(asset_id)["error_code"] == "odd"
    seeded = call("POST", "/assets", state="pending_payment")
    assert seeded["state"] == "pending_payment"
    call("POST", "/clock", advance=31 * 86400)
    assert api.http.get(f"/v1/assets/{seeded['id']}").status_code == 404
    made = {"cuts": call("POST", "/cuts", state="processing"), "renders": call("POST", "/renders", state="processing")}
    for path, facts in made.items():
        assert [each["id"] for each in call("GET", f"/{path}")] == [facts["id"]]
        failed = call("POST", f"/{path}/{facts['id']}/state", state="failed", error_code="odd")
        assert (failed["state"], failed["error_code"]) == ("failed", "odd")
        assert call("GET", f"/{path}/{facts['id']}")["states"] == failed["states"]
        call("POST", f"/{path}/{facts['id']}/state", state="processing")
    assert set(call("POST", "/settle")["settled"]) == {facts["id"] for facts in made.values()}
    call("PUT", "/progression", progression="polls=2")
    assert (roughy.progression, call("GET", "/state")["progression"]) == ("polls=2", "polls=2")
    call("POST", "/faults", path="/v1/users/*", status=418, times=None)
    assert api.http.get("/v1/users/me").status_code == 418
    assert [fault["matched"] for fault in call("GET", "/faults")] == [1]
    call("DELETE", "/faults")
    assert api.http.get("/v1/users/me").status_code == 200
    assert len(call("GET", "/requests")) == len(roughy.requests) > 0
    call("DELETE", "/requests")
    assert roughy.requests == []
    call("POST", "/reset")
    assert (roughy.assets, roughy.balance, roughy.progression) == ([], 1000, "manual")
    control.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "assets/nonsense", None, 404),
        ("POST", "assets/nonsense/state", {"state": "ready"}, 404),
        ("POST", "settle", {"id": "nonsense"}, 404),
        ("POST", "settle", {"asset_id": "nonsense"}, 404),
        ("POST", "settle", {"id": 5}, 422),
        ("POST", "clock", {}, 422),
        ("POST", "clock", {"advance": "x"}, 422),
        ("POST", "clock", {"advance": [60]}, 422),
        ("POST", "clock", {"advance": 1e300}, 422),
        ("POST", "clock", {"advance": -1e12}, 422),
        ("POST", "assets", {"state": 5}, 422),
        ("POST", "assets", {"self": "ready"}, 422),
        ("POST", "assets", {"account": "first"}, 422),
        ("POST", "assets", {"account": 99}, 404),
        ("POST", "assets", {"content": "bytes"}, 422),
        ("POST", "assets", {"project_id": "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"}, 404),
        ("POST", "assets", {"size_bytes": 10**30}, 422),
        ("POST", "assets", {"language": {"code": "de"}}, 422),
        ("POST", "assets", {"duration_seconds": "long"}, 422),
        ("POST", "assets/nonsense/state", {}, 404),
        ("POST", "cuts", {"asset_id": "nonsense"}, 404),
        ("POST", "cuts", {"script": 5}, 422),
        ("POST", "cuts", {"colour": "red"}, 422),
        ("POST", "renders", {"cut_id": "nonsense"}, 404),
        ("POST", "renders", {"output": "mp4"}, 422),
        ("POST", "renders", {"output": {}}, 422),
        ("GET", "renders/nonsense", None, 404),
        ("PUT", "credits/balance", {"balance": 10**30}, 422),
        ("PUT", "progression", {"progression": 3}, 422),
        ("POST", "faults", {"nth": "1"}, 422),
        ("POST", "faults", {"status": 500.5}, 422),
        ("POST", "faults", {"delay": "long"}, 422),
        ("POST", "faults", {"statsu": 500}, 422),
        ("POST", "faults", [1], 422),
        ("POST", "credits/top-up", {"credits": -1}, 422),
        ("POST", "credits/top-up", {"credits": "5"}, 422),
        ("PUT", "progression", {"progression": "soon"}, 422),
        ("PUT", "faults", {}, 405),
    ],
)
def test_steering_wrongly(roughy: Emulator, method: str, path: str, body: Any, status: int) -> None:
    reply = httpx.request(method, f"{roughy.url}/_emulator/{path}", json=body)
    assert reply.status_code == status
    assert reply.json()["problem"]


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data"}])
def test_no_web_page_steers(roughy: Emulator, headers: dict[str, str]) -> None:
    # What a browser sends to another origin without asking it first.
    roughy.seed_asset()
    for content in (b"", b"{}"):
        reply = httpx.post(f"{roughy.url}/_emulator/reset", content=content, headers=headers)
        assert reply.status_code == 415
        assert reply.json()["problem"]
    preflight = httpx.options(f"{roughy.url}/_emulator/reset", headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in preflight.headers
    assert len(roughy.assets) == 1


def test_steering_is_neither_struck_nor_logged(roughy: Emulator) -> None:
    roughy.inject(Fault(status=500, times=None))
    assert httpx.get(f"{roughy.url}/_emulator/state").status_code == 200
    assert roughy.requests == []


def test_reset(speech: bytes) -> None:
    faults = [Fault(path="/v1/users/me", status=500)]
    with Emulator(faults=faults, balance=9, progression="polls=1") as roughy, Api(roughy) as api:
        assert [api.http.get("/v1/users/me").status_code for _ in range(2)] == [500, 200]
        url = api.create(len(speech))["upload_url"]
        api.http.post("/v1/projects", json={"name": "Other"})
        roughy.progression, roughy.balance = "manual", 3
        roughy.advance(9000)
        roughy.reset()
        assert (roughy.assets, roughy.balance, roughy.progression, roughy.requests) == ([], 9, "polls=1", [])
        assert [api.http.get("/v1/users/me").status_code for _ in range(2)] == [500, 200]
        assert api.head(url).status_code == 404
        assert [p["id"] for p in api.http.get("/v1/projects").json()["items"]] == [roughy.project_id]
        now = datetime.fromisoformat(api.create(100)["created_at"][:-1] + "+00:00")
        assert abs((now - datetime.now(UTC)).total_seconds()) < 60


def test_facts_for_users(roughy: Emulator) -> None:
    assert roughy.project_id == "01900000-0000-7000-8000-000000000001"
    assert roughy.airflow_connection == {
        "conn_type": "roughy",
        "host": roughy.url,
        "password": "sk_emulator",
        "extra": {"project_id": roughy.project_id},
    }
    json.dumps(roughy.airflow_connection)


def test_closing_and_starting_again_keeps_the_address(tmp_path: Path, speech: bytes) -> None:
    roughy = Emulator(data_dir=tmp_path, progression="manual")
    roughy.start()
    url = roughy.url
    with Api(roughy) as api:
        asset_id = api.upload(speech)
        roughy.close()
        with pytest.raises(httpx.TransportError):
            api.get(asset_id)
        with pytest.raises(RuntimeError):
            _ = roughy.assets
        roughy.close()
        roughy.start()
        assert roughy.url == url
        with pytest.raises(RuntimeError):
            roughy.start()
        assert state(api, asset_id) == "processing"
    roughy.close()


def test_without_a_data_dir_nothing_stays() -> None:
    with Emulator() as roughy:
        folder = Path(roughy._temporary.name)  # type: ignore[union-attr]
        assert folder.exists()
    assert not folder.exists()


def test_a_port_in_use(roughy: Emulator) -> None:
    for name, url in (("port", roughy.url), ("storage_port", roughy.storage_url)):
        options: dict[str, Any] = {name: httpx.URL(url).port}
        with pytest.raises(OSError, match=rf"use.*127\.0\.0\.1 port {options[name]}"), Emulator(**options):
            pass


def test_it_has_no_address_before_it_was_started() -> None:
    roughy = Emulator()
    for name in ("url", "storage_url", "airflow_connection"):
        with pytest.raises(RuntimeError, match="not running"):
            getattr(roughy, name)


@pytest.mark.parametrize("wrong", [{"status": 503}, 503, Fault])
def test_what_is_no_fault_is_refused(roughy: Emulator, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"Fault\(status=503\)"):
        roughy.inject(wrong)
    with pytest.raises(TypeError, match="Fault"):
        Emulator(faults=[wrong])


def test_keys_look_like_keys() -> None:
    with pytest.raises(ValueError, match="sk_"):
        Emulator(api_key="secret")


def test_choices_are_checked() -> None:
    with pytest.raises(ValueError, match="finished_upload"):
        Choices(finished_upload="maybe")  # type: ignore[arg-type]
    choices = Choices.from_text(
        ["delete_status=200", "keep_partial=false", "finished_upload=offset", "upload_ttl_seconds=5"]
    )
    assert choices == Choices(delete_status=200, keep_partial=False, finished_upload="offset", upload_ttl_seconds=5)
    for wrong in ("delete_status", "delete_status=x", "nonsense=1", "keep_partial=maybe", "finished_upload=maybe"):
        with pytest.raises(ValueError, match=wrong.partition("=")[0]):
            Choices.from_text([wrong])


def test_everything_at_once_from_many_threads(roughy: Emulator, speech: bytes) -> None:
    roughy.progression = "polls=1"
    problems: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            for _ in range(5):
                work()
        except BaseException as error:
            problems.append(error)

    def use() -> None:
        with Api(roughy) as api:
            asset_id = api.upload(speech)
            while state(api, asset_id) != "ready":
                pass
            api.http.delete(f"/v1/assets/{asset_id}")

    def steer() -> None:
        _ = roughy.assets, roughy.balance, roughy.requests, roughy.state
        roughy.set_state(roughy.seed_asset(), "failed")
        roughy.top_up(1)
        roughy.advance(1)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (use, steer, use, steer)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert problems == []
    assert roughy.balance == 1000 + 10 - 10
