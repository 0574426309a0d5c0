"""The hook and its connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest

from airflow_provider_roughy.api import RoughyAsset
from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyAssetProcessingError,
    RoughyConfigurationError,
    RoughyError,
    RoughyInsufficientCreditsError,
    RoughyNotFoundError,
    RoughyPaymentRequiredError,
    RoughyProtocolError,
    RoughyServerError,
    RoughyUnreachableError,
    RoughyUnsupportedMediaError,
    RoughyValidationError,
)
from airflow_provider_roughy.hooks import RoughyHook

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"


def test_a_connection_may_be_json(hook: RoughyHook, roughy: Emulator) -> None:
    assert hook.settings.base_url == roughy.url
    assert hook.settings.project_id == roughy.project_id
    assert hook.get_credit_balance() == roughy.balance


@pytest.mark.parametrize("form", ["roughy://:{key}@{host}?{query}", "roughy://:{key}@127.0.0.1:{port}/http?{query}"])
def test_a_connection_may_be_a_uri(roughy: Emulator, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    uri = form.format(
        key=quote(roughy.api_key, safe=""),
        host=quote(roughy.url, safe=""),
        port=roughy.url.rpartition(":")[2],
        query=f"project_id={roughy.project_id}&timeout=2",
    )
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", uri)
    with RoughyHook() as hook:
        assert hook.get_credit_balance() == roughy.balance
        assert hook.settings.project_id == roughy.project_id
        assert hook.settings.timeout == 2.0


def test_test_connection_returns_the_balance_and_the_project(hook: RoughyHook, roughy: Emulator) -> None:
    project = f"project {roughy.project_id} (Emulator)"
    assert hook.test_connection() == (True, f"Roughy answers at {roughy.url}; 1000 credits left; {project}")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"password": "sk_wrong"}, "Check the API key"),
        ({"password": ""}, "no API key"),
        ({"host": "http://127.0.0.1:9"}, "no answer from 127.0.0.1"),
        ({"host": "http://roughy.internal"}, "plain http"),
    ],
    ids=["wrong key", "no key", "nobody listens", "plain http"],
)
def test_test_connection_reports_the_problem_and_never_the_key(
    connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps({**connection, **fields}))
    works, message = RoughyHook().test_connection()
    assert not works
    assert words in message
    assert "sk_wrong" not in message
    assert str(connection["password"]) not in message


def test_a_missing_connection_is_named(airflow_db: None) -> None:
    works, message = RoughyHook("nowhere").test_connection()
    assert not works
    assert message.startswith("Airflow has no connection 'nowhere'")


def test_assets_are_listed_over_all_pages(hook: RoughyHook, roughy: Emulator) -> None:
    ids = [roughy.seed_asset(state="ready") for _ in range(205)]
    roughy.seed_asset(state="failed")
    roughy.clear_requests()
    assert [asset.id for asset in hook.list_assets(state="ready")] == ids[::-1]
    asked = [parse_qs(request.query) for request in roughy.requests]
    # Each page begins with the last entry of the page before.
    assert [query["offset"] for query in asked] == [["0"], ["99"], ["198"]]
    assert all(query["limit"] == ["100"] for query in asked)


def test_assets_are_listed_in_an_event_loop(hook: RoughyHook, roughy: Emulator) -> None:
    ids = [roughy.seed_asset(state="ready") for _ in range(101)]

    async def listed() -> list[str]:
        return [asset.id async for asset in hook.alist_assets(project_id=roughy.project_id)]

    assert asyncio.run(listed()) == ids[::-1]


def test_an_asset_is_read_in_an_event_loop(hook: RoughyHook, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    first = hook.get_asset(asset_id)
    while hook.get_asset(asset_id).download_url == first.download_url:
        time.sleep(0.1)  # Each second has a signed link of its own.
    assert asyncio.run(hook.aget_asset(asset_id)) == first


def test_a_project_that_does_not_exist_is_named(hook: RoughyHook) -> None:
    with pytest.raises(RoughyNotFoundError):
        list(hook.list_assets(project_id=NOBODY))


def test_projects(hook: RoughyHook, roughy: Emulator) -> None:
    made = hook.create_project("Episode 42")
    assert made.name == "Episode 42"
    assert hook.get_project(made.id) == made
    assert [project.id for project in hook.list_projects()] == [made.id, roughy.project_id]


def test_a_project_can_be_changed_and_removed(hook: RoughyHook, roughy: Emulator) -> None:
    made = hook.create_project("Episode 42")
    assert hook.update_project(made.id, name="Episode 43").name == "Episode 43"
    archived = hook.update_project(made.id, state="archived")
    assert (archived.name, archived.state) == ("Episode 43", "archived")
    assert [project.id for project in hook.list_projects("archived")] == [made.id]
    with pytest.raises(RoughyConfigurationError, match="Nothing to change"):
        hook.update_project(made.id)
    asset_id = roughy.seed_asset(project_id=made.id)
    assert hook.delete_project(made.id) is True
    assert asset_id not in {asset["id"] for asset in roughy.assets}
    assert hook.delete_project(made.id) is False
    with pytest.raises(RoughyNotFoundError):
        hook.delete_project(made.id, missing_ok=False)


def test_credit_ledger_explains_the_balance(hook: RoughyHook, roughy: Emulator, recordings: dict[str, Path]) -> None:
    asset = hook.create_asset(None, recordings["audio"].stat().st_size)
    hook.upload(asset, recordings["audio"])
    roughy.top_up(7)
    entries = list(hook.list_credit_entries())
    assert [(entry.type, entry.delta) for entry in entries[:2]] == [("topup", 7), ("consume_asset", -1)]
    assert entries[1].asset_id == asset.id
    assert sum(entry.delta for entry in entries) == hook.get_credit_balance()


@pytest.mark.parametrize("shape", ["page", "array"])
def test_webhook_endpoints(connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, shape: Any) -> None:
    choices = Choices(webhook_list=shape, delete_status=200)
    with Emulator(choices=choices) as roughy:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
        with RoughyHook() as hook:
            made = hook.create_webhook_endpoint("https://hooks.example.com/", ["asset.ready"], "Airflow")
            other = hook.create_webhook_endpoint("http://127.0.0.1:8080/roughy/", ("cut.failed", "asset.failed"))
            assert list(hook.list_webhook_endpoints()) == [other, made]
            assert (made.description, other.event_types) == ("Airflow", ["cut.failed", "asset.failed"])
            assert hook.delete_webhook_endpoint(made.id) is True
            assert hook.delete_webhook_endpoint(made.id) is False
            assert list(hook.list_webhook_endpoints()) == [other]
            with pytest.raises(RoughyNotFoundError):
                hook.delete_webhook_endpoint("no/such?endpoint", missing_ok=False)
            with pytest.raises(RoughyValidationError, match="event_types"):
                hook.create_webhook_endpoint("https://hooks.example.com/", ["asset.mood"])


def test_webhook_endpoints_are_listed_over_all_pages(hook: RoughyHook) -> None:
    ids = [hook.create_webhook_endpoint("https://hooks.example.com/", ["asset.ready"]).id for _ in range(101)]
    assert [endpoint.id for endpoint in hook.list_webhook_endpoints()] == ids[::-1]


@pytest.mark.parametrize(
    ("fault", "error", "requests"),
    [
        ({"lose_reply": True}, RoughyUnreachableError, 1),
        ({"status": 500}, RoughyServerError, 1),
        ({"status": 429, "headers": {"Retry-After": "0"}}, None, 2),
    ],
    ids=["reply lost", "server error", "turned away"],
)
def test_a_webhook_endpoint_is_made_again_only_if_it_certainly_was_not(
    hook: RoughyHook, roughy: Emulator, fault: dict[str, Any], error: type[RoughyError] | None, requests: int
) -> None:
    """Nothing says that the same URL is the same endpoint, and two would be told everything twice."""
    roughy.inject(Fault(method="POST", path="/v1/webhook-endpoints", **fault))
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        hook.create_webhook_endpoint("https://hooks.example.com/", ["asset.ready"])
    assert len(roughy.requests) == requests


def test_removing_a_webhook_endpoint_outlives_a_lost_reply(hook: RoughyHook, roughy: Emulator) -> None:
    made = hook.create_webhook_endpoint("https://hooks.example.com/", ["asset.ready"])
    roughy.inject(Fault(method="DELETE", path="/v1/webhook-endpoints/*", lose_reply=True))
    assert hook.delete_webhook_endpoint(made.id) is True
    roughy.inject(Fault(method="DELETE", path="/v1/webhook-endpoints/*", status=410))
    assert hook.delete_webhook_endpoint(made.id) is False


def test_a_secret_that_comes_with_a_webhook_endpoint_is_in_no_log(
    hook: RoughyHook, roughy: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"id": "ep_1", "url": "https://a.example/", "event_types": ["asset.ready"], "secret": "whsec_hidden"}
    headers = {"Content-Type": "application/json"}
    roughy.inject(Fault(method="POST", path="/v1/webhook-endpoints", status=201, body=body, headers=headers))
    caplog.set_level("DEBUG")
    made = hook.create_webhook_endpoint("https://a.example/", ["asset.ready"])
    assert made.signing_secret == "whsec_hidden"
    assert "whsec_hidden" not in caplog.text + repr(made) + json.dumps(made.to_dict())


def test_the_owner_of_the_key_is_known(hook: RoughyHook) -> None:
    profile = hook.get_profile()
    assert "@" in profile.email
    assert profile.to_dict()["id"] == profile.id


def test_cuts_and_renders_are_listed_over_all_pages(hook: RoughyHook, roughy: Emulator) -> None:
    roughy.progression = "manual"
    one, other = roughy.seed_asset(), roughy.seed_asset()
    cuts = [roughy.seed_cut(asset_id=one, script=str(number)) for number in range(101)]
    pending = roughy.seed_cut("processing", asset_id=other)
    renders = [roughy.seed_render(asset_id=one), roughy.seed_render("failed", asset_id=other)]
    assert [cut.id for cut in hook.list_cuts(asset_id=one)] == cuts[::-1]
    assert [cut.id for cut in hook.list_cuts(project_id=roughy.project_id)] == [pending, *cuts[::-1]]
    assert [cut.id for cut in hook.list_cuts(state="processing")] == [pending]
    assert [render.id for render in hook.list_renders()] == renders[::-1]
    assert [render.id for render in hook.list_renders(asset_id=one, state="completed")] == renders[:1]


def test_a_list_of_renders_holds_what_was_asked_for_whether_roughy_filters_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Emulator(choices=Choices(render_filters="ignored")) as roughy, RoughyHook() as hook:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
        one, other = roughy.seed_asset(), roughy.seed_asset()
        of_one, failed = roughy.seed_render(asset_id=one), roughy.seed_render("failed", asset_id=other)
        assert [render.id for render in hook.list_renders(asset_id=one.upper())] == [of_one]
        assert [render.id for render in hook.list_renders(state="failed")] == [failed]


def test_the_same_request_finds_the_same_cut_and_the_same_render(hook: RoughyHook, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset()
    assert hook.create_cut(asset_id).id == hook.create_cut(asset_id).id != hook.create_cut(asset_id, "short").id
    output = {"format": "mp3"}
    assert hook.create_render(asset_id, output).id == hook.create_render(asset_id, output).id
    assert hook.create_render(asset_id, {"format": "m4a"}).output["format"] == "m4a"
    assert (len(roughy.cuts), len(roughy.renders)) == (2, 2)


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ("pending_upload", RoughyAssetProcessingError, "Wait until the asset is ready"),
        ("processing", RoughyAssetProcessingError, "Wait until the asset is ready"),
        ("pending_payment", RoughyPaymentRequiredError, "Top up the credits"),
        ("failed", RoughyAssetFailedError, "asset_failed"),
    ],
)
def test_an_asset_that_is_no_good_yet_is_named(
    hook: RoughyHook, roughy: Emulator, state: str, error: type[RoughyError], words: str
) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state)
    for make in (lambda: hook.create_cut(asset_id), lambda: hook.create_render(asset_id, {"format": "mp3"})):
        with pytest.raises(error, match=words) as raised:
            make()
        assert type(raised.value) is error
        assert getattr(raised.value, "retry_after", 1) == 1
        assert getattr(raised.value, "asset_id", asset_id) == asset_id


@pytest.mark.parametrize("known", ["delete", "post"])
@pytest.mark.parametrize("becomes", ["failed", "cancelled", "removed"])
def test_a_render_is_cancelled_in_whichever_way_roughy_knows(
    connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, known: Any, becomes: Any
) -> None:
    with Emulator(progression="manual", choices=Choices(render_cancel=known, cancelled_render=becomes)) as roughy:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(roughy.airflow_connection))
        with RoughyHook() as hook:
            render_id = roughy.seed_render("processing")
            assert hook.cancel_render(render_id) is True
            assert [render["state"] for render in roughy.renders] == [] if becomes == "removed" else [becomes]
            assert hook.cancel_render(render_id) is False


def test_a_render_that_is_made_is_not_cancelled(hook: RoughyHook, roughy: Emulator) -> None:
    render_id = roughy.seed_render()
    assert hook.cancel_render(render_id) is False
    assert hook.get_render(render_id).state == "completed"
    assert hook.cancel_render(NOBODY) is False
    assert [request.method for request in roughy.requests] == ["GET", "GET", "GET"]


def test_an_asset_needs_a_project(connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps({**connection, "extra": {}}))
    with RoughyHook() as hook, pytest.raises(RoughyConfigurationError, match="roughy_default"):
        hook.create_asset(None, 64)


def test_no_asset_without_credits(hook: RoughyHook, roughy: Emulator) -> None:
    roughy.balance = 0
    with pytest.raises(RoughyInsufficientCreditsError, match="Top up"):
        hook.create_asset(None, 64)
    assert roughy.assets == []


def test_deleting_twice_is_harmless(hook: RoughyHook, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    assert hook.delete_asset(asset_id) is True
    assert hook.delete_asset(asset_id) is False
    with pytest.raises(RoughyNotFoundError):
        hook.delete_asset(asset_id, missing_ok=False)


def test_a_delete_whose_reply_was_lost_is_no_failure(hook: RoughyHook, roughy: Emulator) -> None:
    asset_id = roughy.seed_asset(state="ready")
    roughy.inject(Fault(method="DELETE", path="/v1/assets/*", lose_reply=True))
    hook.delete_asset(asset_id)
    assert roughy.assets == []


def test_cancelling_an_upload_removes_the_asset(hook: RoughyHook, roughy: Emulator) -> None:
    asset = hook.create_asset(None, 64)
    assert hook.cancel_upload(asset) is True
    assert roughy.assets == []
    assert hook.cancel_upload(asset) is False


def test_an_asset_without_an_open_upload_takes_no_bytes(hook: RoughyHook, roughy: Emulator) -> None:
    asset = hook.get_asset(roughy.seed_asset(state="ready"))
    with pytest.raises(RoughyConfigurationError, match="is ready: all its bytes have arrived"):
        hook.upload(asset, __file__)
    assert hook.cancel_upload(asset) is False


def test_the_download_url_is_kept_from_sight(hook: RoughyHook, roughy: Emulator) -> None:
    asset = hook.get_asset(roughy.seed_asset(state="ready"))
    assert asset.download_url is not None
    assert asset.download_url not in repr(asset)
    assert asset.download_url not in json.dumps(asset.to_dict())


def test_a_closed_hook_opens_again(hook: RoughyHook, roughy: Emulator) -> None:
    before = hook.get_credit_balance()
    hook.close()
    assert hook.get_credit_balance() == before
    assert len({request.connection for request in roughy.requests}) == 2


def test_calls_share_one_network_connection(hook: RoughyHook, roughy: Emulator) -> None:
    for _ in range(5):
        hook.get_credit_balance()
    assert len({request.connection for request in roughy.requests}) == 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_list_that_repeats_its_pages_ends_with_an_error(hook: RoughyHook, roughy: Emulator, asynchronous: bool) -> None:
    """A server that does not know ``offset`` returns the first page for ever."""
    asset = roughy.seed_asset(state="ready")
    item = hook.get_asset(asset).to_dict()
    body = json.dumps({"items": [item], "total": 10**9, "limit": 100, "offset": 0})
    headers = {"Content-Type": "application/json"}
    roughy.inject(Fault(method="GET", path="/v1/assets", status=200, body=body, headers=headers, times=None))

    async def read() -> list[RoughyAsset]:
        return [asset async for asset in hook.alist_assets()]

    with pytest.raises(RoughyProtocolError, match="GET /v1/assets: the list cannot be read to its end"):
        asyncio.run(read()) if asynchronous else list(hook.list_assets())
    assert sum(request.path == "/v1/assets" for request in roughy.requests) == 2


def test_a_file_is_uploaded_in_one_call(hook: RoughyHook, roughy: Emulator, recordings: dict[str, Path]) -> None:
    asset = hook.upload_file(recordings["audio"], language="de")
    assert (asset.state, asset.language, asset.project_id) == ("ready", "de", roughy.project_id)
    other = hook.create_project("Other").id
    assert hook.upload_file(str(recordings["video"]), other).project_id == other
    with pytest.raises(RoughyNotFoundError):
        hook.upload_file(recordings["audio"], NOBODY)
    with pytest.raises(RoughyUnsupportedMediaError):
        hook.upload_file(__file__)
    # What failed leaves nothing.
    assert len(roughy.assets) == 2


def test_credits_are_reported_by_day(hook: RoughyHook, roughy: Emulator, recordings: dict[str, Path]) -> None:
    roughy.balance = 10
    hook.upload_file(recordings["audio"])
    roughy.top_up(5)
    today, *before = hook.get_credit_report(days=3)
    assert (today.assets, today.balance) == (1, 14)
    assert (today.added - today.spent, [day.balance for day in before]) == (14, [0, 0])
    since = datetime.now(UTC).date()
    assert len(list(hook.list_credit_entries(since=since))) == len(list(hook.list_credit_entries()))
    assert list(hook.list_credit_entries(since=since + timedelta(days=1))) == []
