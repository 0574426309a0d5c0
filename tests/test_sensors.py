"""Sensors: the same result in every mode."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import airflow
import httpx
import pytest

from airflow_provider_roughy.compat import (
    AirflowException,
    AirflowSkipException,
    BaseOperator,
    TaskDeferred,
)
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyAuthenticationError,
    RoughyConfigurationError,
    RoughyCutFailedError,
    RoughyNotFoundError,
    RoughyPaymentRequiredError,
    RoughyRenderFailedError,
    RoughyTimeoutError,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.sensors import RoughyAssetSensor, RoughyCutSensor, RoughyRenderSensor
from airflow_provider_roughy.triggers import RoughyAssetTrigger
from tests.live.link import HoldingLink, Stop
from tests.running import Ended, run_task, whenever

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
MODES: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke", "deferrable": False},
    "reschedule": {"mode": "reschedule", "deferrable": False},
    "deferrable": {"deferrable": True},
}

# Airflow 2 asks its database when a sensor was first rescheduled.
pytestmark = pytest.mark.usefixtures("patient", "airflow_db")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


def sensor(mode: str, asset_id: str, **options: Any) -> RoughyAssetSensor:
    return RoughyAssetSensor(
        task_id="wait", asset_id=asset_id, **{"poke_interval": 0.05, "timeout": 20, **MODES[mode], **options}
    )


@dataclass(frozen=True)
class Row:
    """One row of the table: what the asset becomes, what is asked for, how the task ends.

    :param soft: How it ends with ``soft_fail``.
    :param alike: The policies that make no difference to it.
    """

    becomes: str
    policy: str
    state: str
    error: type[BaseException] | None = None
    soft: str = "skipped"
    alike: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.becomes}-{self.policy}"


POLICIES = ("fail", "skip", "return", "wait")
TABLE = [
    *(Row("ready", policy, "success", soft="success", alike=POLICIES[1:]) for policy in POLICIES),
    *(Row("failed", policy, "failed", RoughyAssetFailedError, alike=POLICIES[1:]) for policy in POLICIES),
    Row("pending_payment", "fail", "failed", RoughyPaymentRequiredError),
    Row("pending_payment", "skip", "skipped", AirflowSkipException),
    Row("pending_payment", "return", "success", soft="success"),
    Row("pending_payment", "wait", "failed", RoughyTimeoutError),
    Row("pending_payment, then paid for", "wait", "success", soft="success"),
    Row("processing", "fail", "failed", RoughyTimeoutError),
    Row("gone", "fail", "failed", RoughyNotFoundError),
    Row("locked", "fail", "failed", RoughyAuthenticationError),
]
MOMENTS = ("at first look", "later", "after a restart")


def newest(enough: bool) -> tuple[pytest.MarkDecorator, ...]:
    """What one minor version of Airflow is enough for, as others show the same to all of them."""
    return (pytest.mark.once,) if enough else ()


def becoming(roughy: Emulator, asset_id: str, becomes: str) -> None:
    if becomes in ("gone", "locked"):
        status = {"gone": 404, "locked": 423}[becomes]
        roughy.inject(Fault(method="GET", path=f"/v1/assets/{asset_id}", status=status, times=None))
    elif becomes == "failed":
        roughy.set_state(asset_id, "failed", error_code="probe_failed", error_message="cannot be read")
    elif becomes == "pending_payment, then paid for":
        roughy.set_state(asset_id, "pending_payment")
        seen = len(roughy.requests)

        def pay() -> None:
            deadline = time.monotonic() + 30
            while len(roughy.requests) <= seen + 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            roughy.top_up(5)

        threading.Thread(target=pay).start()
    else:
        roughy.set_state(asset_id, becomes)


@pytest.mark.parametrize("soft_fail", [False, True], ids=["hard", "soft_fail"])
@pytest.mark.parametrize("moment", [pytest.param(moment, marks=newest(moment == "later")) for moment in MOMENTS])
@pytest.mark.parametrize("row", [pytest.param(row, marks=newest(row.policy in row.alike)) for row in TABLE], ids=str)
def test_outcome_is_the_same_in_every_mode(roughy: Emulator, mode: str, row: Row, moment: str, soft_fail: bool) -> None:
    times_out = row.error is RoughyTimeoutError
    if times_out and mode == "reschedule" and airflow.__version__.startswith("2."):
        pytest.skip("Airflow 2 counts the time since the first reschedule in its database, which has no task here")
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    task = sensor(mode, asset_id, on_pending_payment=row.policy, soft_fail=soft_fail, timeout=0.5 if times_out else 30)
    if moment == "at first look":
        becoming(roughy, asset_id, row.becomes)
        ended = run_task(task)
    elif moment == "later":
        ended = run_later(roughy, task, mode, lambda: becoming(roughy, asset_id, row.becomes))
    else:
        ended = run_task(
            task,
            kill_once=lambda: len(roughy.requests) >= 2,
            before_resuming=once(lambda: becoming(roughy, asset_id, row.becomes)),
        )

    assert ended.state == (row.soft if soft_fail else row.state), ended.error
    if ended.state == "success":
        with RoughyHook() as hook:
            assert ended.result == hook.get_asset(asset_id).to_dict()
        assert ended.result["state"] == ("ready" if "paid" in row.becomes else row.becomes)
    elif not soft_fail:
        assert row.error is not None
        assert isinstance(ended.error, row.error)
        assert asset_id in str(ended.error)
    waits = moment != "at first look" or times_out or "paid" in row.becomes
    assert (ended.waited == "triggerer") == (mode == "deferrable" and waits)


def run_later(roughy: Emulator, task: BaseOperator, mode: str, change: Callable[[], None]) -> Ended:
    """Run a task whose asset changes only after its first look."""
    if mode != "poke":
        return run_task(task, before_resuming=once(change))
    with whenever(lambda: any(request.seconds for request in roughy.requests), change):
        return run_task(task)


def once(change: Callable[[], None]) -> Callable[[], None]:
    done: list[bool] = []

    def run() -> None:
        if not done:
            done.append(True)
            change()

    return run


def test_unknown_state_keeps_the_sensor_waiting(
    roughy: Emulator, mode: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    roughy.set_state(asset_id, "marinating")
    ended = run_later(roughy, sensor(mode, asset_id), mode, lambda: roughy.set_state(asset_id, "ready"))
    assert ended.state == "success"
    # Airflow's task log goes to the standard output, or to the root logger, by its version.
    output = capsys.readouterr()
    said = output.out + output.err + caplog.text
    assert "is in state 'marinating'" in said
    assert "Is there a newer airflow-provider-roughy?" in said


FAULTS = [{"status": 500}, {"status": 502, "body": "<html>"}, {"status": 429}, {"drop": True}, {"garbage": True}]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("nth", [1, 2], ids=["at first look", "later"])
def test_transient_error_of_a_poll_does_not_end_the_wait(
    roughy: Emulator, mode: str, fault: dict[str, Any], nth: int
) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    roughy.inject(Fault(method="GET", path="/v1/assets/*", nth=nth, times=1, **fault))
    ended = run_later(roughy, sensor(mode, asset_id), mode, lambda: roughy.set_state(asset_id, "ready"))
    assert ended.state == "success"


@pytest.mark.parametrize("trouble", ["failed", "no connection"])
def test_never_fail_skips_on_any_error(
    roughy: Emulator, mode: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset_id = roughy.seed_asset(state="failed")
    if trouble == "no connection":
        monkeypatch.delenv("AIRFLOW_CONN_ROUGHY_DEFAULT")
    ended = run_task(sensor(mode, asset_id, never_fail=True))
    assert ended.state == "skipped", ended.error
    assert trouble in str(ended.error)


@pytest.mark.once
def test_never_fail_skips_in_every_mode(roughy: Emulator, mode: str) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    ended = run_task(sensor(mode, asset_id, timeout=0.2, never_fail=True))
    assert ended.state == "skipped", ended.error
    assert f"{asset_id} was not done in time" in str(ended.error)


def test_skipped_task_logs_the_reason(roughy: Emulator, mode: str) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    fail = once(lambda: roughy.set_state(asset_id, "failed", error_message="cannot be read"))
    ended = run_later(roughy, sensor(mode, asset_id, soft_fail=True), mode, fail)
    assert ended.state == "skipped"
    assert f"Asset {asset_id} failed" in str(ended.error)
    assert "cannot be read" in str(ended.error)


def test_api_that_stays_down_ends_in_the_timeout(roughy: Emulator) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    down = Fault(method="GET", path="/v1/assets/*", status=503, times=None)
    ended = run_task(sensor("deferrable", asset_id, timeout=0.5), before_resuming=once(lambda: roughy.inject(down)))
    assert isinstance(ended.error, RoughyTimeoutError)
    assert "503" in str(ended.error)


def test_retry_after_of_a_poll_is_obeyed(roughy: Emulator) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    limited = Fault(method="GET", path="/v1/assets/*", status=429, headers={"Retry-After": "1"})

    def change() -> None:
        roughy.clear_requests()
        roughy.inject(limited)
        roughy.set_state(asset_id, "ready")

    assert run_task(sensor("deferrable", asset_id), before_resuming=once(change)).state == "success"
    first, second = roughy.requests
    assert second.started_at - first.started_at >= 1.0


@pytest.mark.parametrize("timeout", [20, 0.6], ids=["in time", "beyond the timeout"])
def test_retry_after_of_the_first_poll_is_obeyed(roughy: Emulator, mode: str, timeout: float) -> None:
    asset_id = roughy.seed_asset(state="ready")
    roughy.inject(Fault(method="GET", path="/v1/assets/*", status=429, headers={"Retry-After": "1"}))
    ended = run_task(sensor(mode, asset_id, timeout=timeout))
    # At the end of its time it is looked at once more.
    assert ended.state == "success", ended.error
    first, second = [request.started_at for request in roughy.requests]
    if mode == "reschedule":
        second = ended.rescheduled_to or 0.0
    assert min(1.0, timeout) <= second - first + 0.1 < 15


@pytest.mark.parametrize("words", ["Trigger timeout", "Trigger/execution timeout"], ids=["Airflow 3", "Airflow 2"])
@pytest.mark.parametrize(("soft_fail", "error"), [(False, RoughyTimeoutError), (True, AirflowSkipException)])
def test_wait_without_a_triggerer_ends_as_a_timeout(words: str, soft_fail: bool, error: Any) -> None:
    task = sensor("deferrable", NOBODY, soft_fail=soft_fail)
    with pytest.raises(error, match=f"Asset {NOBODY} was not done in time.*is a triggerer running"):
        task.resume_execution("__fail__", {"error": words}, {})


def test_crashed_trigger_may_be_retried() -> None:
    task = sensor("deferrable", NOBODY)
    with pytest.raises(AirflowException, match="Trigger failure"):
        task.resume_execution("__fail__", {"error": "Trigger failure"}, {})


@pytest.mark.parametrize("value", ["None", "", "not an id"])
def test_malformed_asset_id_fails_at_once(roughy: Emulator, mode: str, value: str) -> None:
    ended = run_task(sensor(mode, value))
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert "asset_id must be a UUID" in str(ended.error)
    assert roughy.requests == []


def test_unknown_policy_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="on_pending_payment"):
        sensor("poke", NOBODY, on_pending_payment="ignore")


# ---- Cuts and renders


@dataclass(frozen=True)
class Work:
    """A kind of what is made of an asset.

    :param seed: Puts one into a state, and returns its id.
    :param read: Reads its fields.
    """

    sensor: type[RoughyCutSensor | RoughyRenderSensor]
    failed: type[BaseException]
    seed: Callable[[Emulator, str], str]
    read: Callable[[RoughyHook, str], dict[str, Any]]


WORK = {
    "cut": Work(
        RoughyCutSensor,
        RoughyCutFailedError,
        lambda roughy, state: roughy.seed_cut(state, script="short"),
        lambda hook, id: hook.get_cut(id).to_dict(),
    ),
    "render": Work(
        RoughyRenderSensor,
        RoughyRenderFailedError,
        lambda roughy, state: roughy.seed_render(state, content=b"media"),
        lambda hook, id: hook.get_render(id).to_dict(),
    ),
}


def work_sensor(mode: str, kind: str, id: str, **options: Any) -> BaseOperator:
    known = {"task_id": "wait", "poke_interval": 0.05, "timeout": 20, **MODES[mode], f"{kind}_id": id}
    return WORK[kind].sensor(**{**known, **options})


@pytest.mark.parametrize("moment", ["at first look", "later"])
@pytest.mark.parametrize(
    ("kind", "becomes"),
    [*((kind, end) for kind in WORK for end in ("completed", "failed", "gone")), ("render", "cancelled")],
)
def test_outcome_of_cuts_and_renders_is_the_same_in_every_mode(
    roughy: Emulator, mode: str, kind: str, becomes: str, moment: str
) -> None:
    roughy.progression = "manual"
    work = WORK[kind]
    id = work.seed(roughy, "processing")

    def become() -> None:
        if becomes == "gone":
            roughy.inject(Fault(method="GET", path=f"/v1/{kind}s/{id}", status=404, times=None))
        else:
            roughy.set_state(id, becomes)

    task = work_sensor(mode, kind, id)
    if moment == "at first look":
        become()
        ended = run_task(task)
    else:
        ended = run_later(roughy, task, mode, become)

    assert ended.state == ("success" if becomes == "completed" else "failed"), ended.error
    assert (ended.waited == "triggerer") == (mode == "deferrable" and moment == "later")
    if becomes == "completed":
        with RoughyHook() as hook:
            assert ended.result == work.read(hook, id)
        assert ended.result["state"] == "completed"
        assert "download_url" not in ended.result
    else:
        assert type(ended.error) is (RoughyNotFoundError if becomes == "gone" else work.failed)
        assert id in str(ended.error)
        assert run_task(work_sensor(mode, kind, id, soft_fail=True)).state == "skipped"


@pytest.mark.parametrize("kind", WORK)
def test_timeout_of_cuts_and_renders_uses_no_retry(roughy: Emulator, kind: str) -> None:
    roughy.progression = "manual"
    id = WORK[kind].seed(roughy, "processing")
    ended = run_task(work_sensor("deferrable", kind, id, timeout=0.4))
    assert (ended.state, type(ended.error)) == ("failed", RoughyTimeoutError)
    assert f"{kind.capitalize()} {id} was not done in time: it was still processing" in str(ended.error)


@pytest.mark.parametrize("kind", WORK)
def test_malformed_cut_or_render_id_fails_at_once(roughy: Emulator, mode: str, kind: str) -> None:
    ended = run_task(work_sensor(mode, kind, "None"))
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert f"{kind}_id must be a UUID" in str(ended.error)
    assert roughy.requests == []


# ---- The trigger


def test_stored_trigger_is_plain_json_without_secrets(roughy: Emulator) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    with pytest.raises(TaskDeferred) as deferred:
        sensor("deferrable", asset_id, timeout=600).execute({})
    classpath, kwargs = deferred.value.trigger.serialize()
    assert classpath == f"{RoughyAssetTrigger.__module__}.{RoughyAssetTrigger.__qualname__}"
    deadline = kwargs.pop("deadline")
    assert 595 < deadline - time.time() <= 600
    assert kwargs == {
        "asset_id": asset_id,
        "roughy_conn_id": "roughy_default",
        "poll_interval": 0.05,
        "on_pending_payment": "fail",
    }
    assert json.loads(json.dumps(kwargs)) == kwargs
    assert deferred.value.timeout.total_seconds() > 600


def test_restarted_trigger_keeps_its_deadline(roughy: Emulator) -> None:
    roughy.progression = "manual"
    asset_id = roughy.seed_asset(state="processing")
    deadline = time.time() + 2.0
    kwargs: dict[str, Any] = {"asset_id": asset_id, "poll_interval": 0.05, "deadline": deadline}

    async def killed_and_started_again() -> float:
        stopped = asyncio.ensure_future(RoughyAssetTrigger(**kwargs).run().__anext__())
        await asyncio.sleep(1.5)
        stopped.cancel()
        event = await RoughyAssetTrigger(**kwargs).run().__anext__()
        assert event.payload["status"] == "timed_out"
        return time.time() - deadline

    # One that started again from zero would end 1.5 s late.
    assert asyncio.run(killed_and_started_again()) < 1.2


def test_missing_connection_is_named_when_the_wait_ends(airflow_db: None) -> None:
    trigger = RoughyAssetTrigger(asset_id=NOBODY, roughy_conn_id="nowhere", deadline=time.time() + 1)

    async def event() -> Any:
        return (await trigger.run().__anext__()).payload

    ended = asyncio.run(event())
    assert ended["status"] == "timed_out", "the secrets backend may have been away"
    assert ended["error"]["message"].startswith("Airflow has no connection 'nowhere'")


def test_waiting_does_not_block_the_event_loop(
    roughy: Emulator, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = RoughyAssetTrigger(asset_id=roughy.seed_asset(state="ready"), deadline=time.time() + 60)

    async def event(link: HoldingLink) -> Any:
        waiting = asyncio.ensure_future(trigger.run().__anext__())
        while not link.has_stopped():  # noqa: ASYNC110 - it is held by a thread
            await asyncio.sleep(0.005)
        # A call that blocked this loop would wait for the reply that only this loop lets go.
        link.go_on()
        return (await waiting).payload

    with HoldingLink(httpx.URL(roughy.url).port or 0) as link:
        extra = {**connection["extra"], "timeout": 20}
        fields = {**connection, "host": f"http://127.0.0.1:{link.port}", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(fields))
        link.stop_at(Stop("GET", "/v1/assets/*", "reply"))
        assert asyncio.run(event(link))["state"] == "ready"
        assert len(link.passed) == 1


@pytest.mark.parametrize("words", [None, "Trigger timeout"], ids=["looked", "no triggerer"])
def test_raised_error_is_not_its_own_cause(roughy: Emulator, words: str | None) -> None:
    """The structlog of Airflow 3.0 follows causes without end."""
    asset_id = roughy.seed_asset(state="failed")
    task = sensor("deferrable", asset_id)
    with pytest.raises((RoughyAssetFailedError, RoughyTimeoutError)) as raised:
        task.resume_execution("__fail__", {"error": words}, {}) if words else task.execute({})
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"status": 429, "headers": {"Retry-After": "60"}}])
def test_poll_sends_one_request_without_retries(roughy: Emulator, mode: str, fault: dict[str, Any]) -> None:
    asset_id = roughy.seed_asset(state="processing")
    roughy.inject(Fault(method="GET", path="/v1/assets/*", times=None, **fault))
    task = sensor(mode, asset_id)
    with task.hook:
        assert not task.poke({}).is_done
    assert len(roughy.requests) == 1


def test_poll_ends_with_the_timeout_of_the_wait(
    roughy: Emulator, mode: str, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    patient = {**connection, "extra": {**connection["extra"], "timeout": 60}}
    monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(patient))
    asset_id = roughy.seed_asset(state="processing")
    roughy.inject(Fault(method="GET", path="/v1/assets/*", times=None, hang=True))
    task = sensor(mode, asset_id, timeout=1)
    with task.hook:
        assert not task.poke({}).is_done
    assert "no complete reply within 1 s" in "".join(capsys.readouterr())


@pytest.mark.parametrize("value", [0, -1, float("nan"), "30", None])
def test_invalid_interval_is_refused_when_the_dag_is_parsed(mode: str, value: Any) -> None:
    # Airflow itself refuses some of these, in words and classes of its own.
    with pytest.raises((ValueError, AirflowException), match="poke_interval"):
        sensor(mode, NOBODY, poke_interval=value)


@pytest.mark.parametrize("value", [timedelta(milliseconds=50), 0.05], ids=["timedelta", "seconds"])
def test_times_may_be_seconds_or_a_timedelta(roughy: Emulator, mode: str, value: Any) -> None:
    roughy.progression = "polls=2"
    asset_id = roughy.seed_asset(state="processing")
    ended = run_task(sensor(mode, asset_id, poke_interval=value, timeout=timedelta(seconds=20)))
    assert ended.state == "success"
