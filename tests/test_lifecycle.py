"""The state table and the verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_roughy.api import RoughyAsset, RoughyCut, RoughyRender
from airflow_provider_roughy.compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyCutFailedError,
    RoughyPaymentRequiredError,
    RoughyProtocolError,
    RoughyRenderFailedError,
    RoughyServerError,
    RoughyTimeoutError,
)
from airflow_provider_roughy.lifecycle import (
    ASSET,
    CUT,
    KINDS,
    RENDER,
    Kind,
    Outcome,
    Verdict,
    batch_from_event,
    batch_to_event,
    check_on_pending_payment,
)

ID = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"


def asset(state: str, **fields: Any) -> RoughyAsset:
    empty = dict.fromkeys(("type", "extension", "size_bytes", "content_type", "duration_seconds", "language"))
    known = {"id": ID, "project_id": ID, "state": state, "created_at": "2026-05-02T08:54:52.423000Z"}
    return RoughyAsset.from_json({**empty, **known, **fields}, request_id="req-7")


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("pending_upload", Outcome.WAITING),
        ("processing", Outcome.WAITING),
        ("ready", Outcome.SUCCEEDED),
        ("failed", Outcome.FAILED),
        ("pending_payment", Outcome.PAYMENT_REQUIRED),
    ],
)
def test_every_documented_state_has_an_outcome(state: str, outcome: Outcome) -> None:
    verdict = Verdict.of(ASSET, asset(state))
    assert (verdict.outcome, verdict.known) == (outcome, True)


def made(kind: Kind, state: str, **fields: Any) -> RoughyCut | RoughyRender:
    known = {"id": ID, "asset_id": ID, "state": state, "created_at": "2026-05-02T08:54:52.423000Z", "output": {}}
    classes: dict[str, type[RoughyCut] | type[RoughyRender]] = {"cut": RoughyCut, "render": RoughyRender}
    return classes[kind.name].from_json({**known, **fields}, request_id="req-7")


@pytest.mark.parametrize("kind", [CUT, RENDER], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("pending", Outcome.WAITING),
        ("processing", Outcome.WAITING),
        ("completed", Outcome.SUCCEEDED),
        ("failed", Outcome.FAILED),
    ],
)
def test_every_documented_state_of_what_is_made_has_an_outcome(kind: Kind, state: str, outcome: Outcome) -> None:
    verdict = Verdict.of(kind, made(kind, state))
    assert (verdict.outcome, verdict.known) == (outcome, True)
    assert KINDS[kind.name] is kind


@pytest.mark.parametrize(("kind", "error"), [(CUT, RoughyCutFailedError), (RENDER, RoughyRenderFailedError)])
def test_what_failed_is_named(kind: Kind, error: type[Exception]) -> None:
    failed = Verdict.of(kind, made(kind, "failed", error_code="no_speech", error_message="nothing is said"))
    with pytest.raises(error) as raised:
        failed.raise_for_failure()
    said = f"{kind.name.capitalize()} {ID} failed: no_speech: nothing is said (request req-7)"
    assert str(raised.value).startswith(f"{said}. ")
    assert "the same request fails again" in str(raised.value).lower()
    assert getattr(raised.value, f"{kind.name}_id") == ID
    assert isinstance(raised.value, AirflowFailException)


def test_a_cancelled_render_is_nothing_to_wait_for() -> None:
    with pytest.raises(RoughyRenderFailedError, match=f"Render {ID} failed: cancelled"):
        Verdict.of(RENDER, made(RENDER, "cancelled")).raise_for_failure()


def test_an_unknown_state_is_waited_through() -> None:
    verdict = Verdict.of(ASSET, asset("transmogrifying"))
    assert verdict.outcome is Outcome.WAITING
    assert not verdict.known
    assert not verdict.is_final("fail")


@pytest.mark.parametrize(("policy", "final"), [("fail", True), ("skip", True), ("return", True), ("wait", False)])
def test_an_unpaid_asset_is_final_unless_it_is_waited_for(policy: Any, final: bool) -> None:
    assert Verdict.of(ASSET, asset("pending_payment")).is_final(policy) is final


def test_each_policy_has_its_own_end_for_an_unpaid_asset() -> None:
    verdict = Verdict.of(ASSET, asset("pending_payment"))
    with pytest.raises(RoughyPaymentRequiredError, match="Top up") as failed:
        verdict.raise_for_failure("fail")
    assert isinstance(failed.value, AirflowFailException)
    with pytest.raises(AirflowSkipException, match=ID):
        verdict.raise_for_failure("skip")
    verdict.raise_for_failure("return")


def test_error_of_a_failed_asset_has_id_reason_and_request_id() -> None:
    verdict = Verdict.of(ASSET, asset("failed", error_code="probe_failed", error_message="the media cannot be read"))
    with pytest.raises(RoughyAssetFailedError) as failed:
        verdict.raise_for_failure("fail")
    said = f"Asset {ID} failed: probe_failed: the media cannot be read (request req-7)"
    assert failed.value.summary == said
    assert str(failed.value).startswith(f"{said}. It is not charged. ")
    assert (failed.value.error_code, failed.value.error_message) == ("probe_failed", "the media cannot be read")


def verdicts() -> list[Verdict]:
    locked = RoughyAuthenticationError("GET /v1/assets/x", status=423, code="account_locked", request_id="r")
    down = RoughyServerError("GET /v1/assets/x", status=503, retry_after=7.0)
    return [
        Verdict.of(ASSET, asset("ready", upload_url="https://secret", download_url="https://secret")),
        Verdict.of(ASSET, asset("failed", error_code="e", error_message="m")),
        Verdict.of(ASSET, asset("pending_payment")),
        Verdict.unavailable(ASSET, ID, locked),
        Verdict.unavailable(ASSET, ID, RoughyConfigurationError("no key")),
        Verdict.timed_out(ASSET, ID, state="processing", error=None),
        Verdict.timed_out(ASSET, ID, state=None, error=down),
    ]


@pytest.mark.parametrize("verdict", verdicts(), ids=lambda verdict: f"{verdict.outcome.value}-{verdict.state}")
def test_a_verdict_survives_the_way_through_an_event(verdict: Verdict) -> None:
    text = json.dumps(verdict.to_event())
    assert "secret" not in text
    back = Verdict.from_event(json.loads(text))
    assert back == verdict

    def end(of: Verdict) -> tuple[type[BaseException], str] | None:
        try:
            of.raise_for_failure("fail")
        except Exception as error:
            return type(error), str(error)
        return None

    assert end(back) == end(verdict)


def test_a_refusal_keeps_its_type_and_its_facts() -> None:
    error = RoughyAuthenticationError(
        "GET /v1/assets/x", status=423, code="account_locked", message="Locked.", request_id="r-1"
    )
    with pytest.raises(RoughyAuthenticationError) as raised:
        Verdict.from_event(Verdict.unavailable(ASSET, ID, error).to_event()).raise_for_failure("fail")
    assert raised.value.to_dict() == error.to_dict()


def test_timeout_is_an_airflow_sensor_timeout_with_the_last_state() -> None:
    with pytest.raises(AirflowSensorTimeout, match="still processing") as raised:
        Verdict.timed_out(ASSET, ID, state="processing", error=None).raise_for_failure("fail")
    assert isinstance(raised.value, RoughyTimeoutError)


@pytest.mark.parametrize("event", [None, {}, {"status": "success"}, {"status": "ready", "id": ID}, "ready"])
def test_foreign_event_is_no_success(event: Any) -> None:
    with pytest.raises(RoughyProtocolError):
        Verdict.from_event(event)


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="on_pending_payment"):
        check_on_pending_payment("ignore")


def test_the_event_of_a_batch_is_little_more_than_its_ids() -> None:
    ids = [f"019de7f7-3a52-74d1-9eeb-{number:012x}" for number in range(1000)]
    verdicts = [Verdict.of(ASSET, asset("ready", id=id)) for id in ids]
    verdicts[3] = Verdict.of(ASSET, asset("failed", id=ids[3], error_code="probe_failed", error_message="x" * 9000))
    verdicts[4] = Verdict.of(ASSET, asset("pending_payment", id=ids[4]))
    verdicts[5] = Verdict.timed_out(ASSET, ids[5], state="processing", error=None)
    text = json.dumps(batch_to_event(verdicts))
    assert len(text) < 42_000

    back = {verdict.id: verdict for verdict in batch_from_event(json.loads(text))}
    assert sorted(back) == ids
    assert [back[id].state for id in ids[2:6]] == ["ready", "failed", "pending_payment", "processing"]
    with pytest.raises(RoughyAssetFailedError, match=r"probe_failed: xxx.*request req-7"):
        back[ids[3]].raise_for_failure()
    with pytest.raises(RoughyTimeoutError):
        back[ids[5]].raise_for_failure()


@pytest.mark.parametrize("event", [None, {}, {"batch": 3}, {"batch": [{"ids": [ID]}]}, "ready"])
def test_foreign_event_is_no_batch(event: Any) -> None:
    with pytest.raises(RoughyProtocolError, match="The trigger's event cannot be read"):
        batch_from_event(event)
