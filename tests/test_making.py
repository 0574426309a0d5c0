"""Cuts and renders: their operators, run as Airflow runs them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_roughy.compat import AIRFLOW_VERSION, AirflowSkipException, BaseOperator, TaskDeferred
from airflow_provider_roughy.emulator import Choices, Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetFailedError,
    RoughyConfigurationError,
    RoughyConflictError,
    RoughyCutFailedError,
    RoughyCutNotReadyError,
    RoughyNotFoundError,
    RoughyPaymentRequiredError,
    RoughyRenderFailedError,
    RoughyTimeoutError,
    RoughyUnreachableError,
    RoughyValidationError,
)
from airflow_provider_roughy.operators import RoughyCutOperator, RoughyRenderOperator
from airflow_provider_roughy.sensors import RoughyRenderSensor
from airflow_provider_roughy.triggers import RoughyAssetTrigger, RoughyRenderTrigger, RoughyTrigger
from tests.running import Ended, run_task, whenever

NOBODY = "019de7f7-3a52-74d1-9eeb-323e0bfb7bb9"
MP3 = {"format": "mp3"}
#: A render is made as a cut is: one minor version of Airflow is enough for it.
KINDS = ["cut", pytest.param("render", marks=pytest.mark.once)]
WAYS = {"sync": {"deferrable": False}, "deferrable": {"deferrable": True}}

pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    """A Roughy in which nothing happens by itself."""
    with Emulator(progression="manual", choices=Choices(processing_retry_after=1)) as emulator:
        yield emulator


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What is made."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Where is waited."""
    return request.param  # type: ignore[no-any-return]


def operator(kind: str, asset_id: str, **options: Any) -> RoughyCutOperator | RoughyRenderOperator:
    options = {"task_id": "make", "asset_id": asset_id, "poll_interval": 0.05, "timeout": 30, **options}
    return RoughyCutOperator(**options) if kind == "cut" else RoughyRenderOperator(**{"output": MP3, **options})


def made(roughy: Emulator, kind: str) -> list[dict[str, Any]]:
    return {"cut": roughy.cuts, "render": roughy.renders}[kind]


def asked(roughy: Emulator, method: str, path: str) -> list[Any]:
    return [request for request in roughy.requests if request.method == method and request.path.startswith(path)]


def is_idle(roughy: Emulator, path: str) -> bool:
    """Whether something was looked at a while ago: in a request, asyncio takes a kill for a broken connection."""
    return any(time.time() - look.started_at > 0.5 for look in asked(roughy, "GET", path))


def in_turn(*steps: Callable[[], None]) -> Callable[[], None]:
    """Do one thing at each call."""
    left = list(steps)
    return lambda: left.pop(0)()


@contextmanager
def once_looked(roughy: Emulator, path: str, act: Callable[[], None]) -> Iterator[None]:
    """Do something as soon as something is looked at."""
    with whenever(lambda: bool(asked(roughy, "GET", path)), act):
        yield


def run(roughy: Emulator, task: BaseOperator, path: str, *steps: Callable[[], None]) -> Ended:
    """Run a task that waits as often as there are steps, one of which ends each wait."""
    if getattr(task, "deferrable", False):
        return run_task(task, before_resuming=in_turn(*steps))
    if not steps:
        return run_task(task)
    (step,) = steps
    with once_looked(roughy, path, step):
        return run_task(task)


def settle(roughy: Emulator, kind: str, state: str = "completed", **fields: Any) -> Callable[[], None]:
    return lambda: roughy.set_state(made(roughy, kind)[0]["id"], state, **fields)


# ---- Made and waited for


def test_result_is_the_id_in_every_mode(roughy: Emulator, kind: str, way: str) -> None:
    asset_id = roughy.seed_asset()
    ended = run(roughy, operator(kind, asset_id, **WAYS[way]), f"/v1/{kind}s", settle(roughy, kind))
    assert ended.state == "success", ended.error
    assert (ended.waited == "triggerer") == (way == "deferrable")
    (found,) = made(roughy, kind)
    assert (ended.result, found["asset_id"]) == (found["id"], asset_id)


def test_existing_resource_takes_one_request(roughy: Emulator, kind: str, way: str) -> None:
    asset_id = roughy.seed_asset()
    options = {"script": "short"} if kind == "cut" else {"output": {"format": "mov", "resolution": "720p"}}
    first = run(roughy, operator(kind, asset_id, **options, **WAYS[way]), f"/v1/{kind}s", settle(roughy, kind))
    roughy.clear_requests()
    again = run_task(operator(kind, asset_id, **options, **WAYS[way]))
    assert (again.result, again.waited) == (first.result, "")
    assert [(request.method, request.path) for request in roughy.requests] == [("POST", f"/v1/{kind}s")]


def test_without_wait_for_completion_the_id_is_returned_at_once(roughy: Emulator, kind: str, way: str) -> None:
    ended = run_task(operator(kind, roughy.seed_asset(), wait_for_completion=False, **WAYS[way]))
    assert (ended.state, ended.result, ended.waited) == ("success", made(roughy, kind)[0]["id"], "")


def test_failed_resource_is_named_and_uses_no_retry(roughy: Emulator, kind: str, way: str) -> None:
    fails = settle(roughy, kind, "failed", error_code="no_speech", error_message="nothing is said")
    ended = run(roughy, operator(kind, roughy.seed_asset(), **WAYS[way]), f"/v1/{kind}s", fails)
    error = {"cut": RoughyCutFailedError, "render": RoughyRenderFailedError}[kind]
    assert (ended.state, type(ended.error)) == ("failed", error)
    assert f"{kind.capitalize()} {made(roughy, kind)[0]['id']} failed: no_speech: nothing is said" in str(ended.error)


def test_timeout_of_the_wait_uses_no_retry(roughy: Emulator, kind: str, way: str) -> None:
    ended = run_task(operator(kind, roughy.seed_asset(), timeout=0.4, **WAYS[way]))
    assert (ended.state, type(ended.error)) == ("failed", RoughyTimeoutError)
    assert f"{kind.capitalize()} {made(roughy, kind)[0]['id']} was not done in time: it was still" in str(ended.error)


def test_execution_timeout_bounds_the_wait(roughy: Emulator, kind: str, way: str) -> None:
    limit = timedelta(seconds=0.8)
    ended = run_task(operator(kind, roughy.seed_asset(), timeout=600, execution_timeout=limit, **WAYS[way]))
    assert (ended.state, type(ended.error)) == ("failed", RoughyTimeoutError)


def test_lost_reply_creates_no_second_resource(roughy: Emulator, kind: str, way: str) -> None:
    roughy.inject(Fault(method="POST", path=f"/v1/{kind}s", lose_reply=True))
    ended = run(roughy, operator(kind, roughy.seed_asset(), **WAYS[way]), f"/v1/{kind}s", settle(roughy, kind))
    assert ended.result == made(roughy, kind)[0]["id"]
    assert len(made(roughy, kind)) == 1


def test_retry_finds_the_resource_of_the_first_try(
    roughy: Emulator, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    asset_id = roughy.seed_asset()
    roughy.inject(Fault(method="POST", path=f"/v1/{kind}s", lose_reply=True, times=5))
    ended = run_task(operator(kind, asset_id))
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyUnreachableError)
    ended = run_task(operator(kind, asset_id, wait_for_completion=False))
    assert ended.result == made(roughy, kind)[0]["id"]
    assert len(made(roughy, kind)) == 1


def test_wait_after_a_kill_is_for_the_same_resource(roughy: Emulator, kind: str, way: str) -> None:
    task = operator(kind, roughy.seed_asset(), poll_interval=20, **WAYS[way])
    ended = run_task(
        task,
        kill_once=lambda: is_idle(roughy, f"/v1/{kind}s"),
        before_resuming=lambda: settle(roughy, kind)(),
    )
    assert (ended.state, ended.result) == ("success", made(roughy, kind)[0]["id"])
    assert len(made(roughy, kind)) == 1


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 429}, {"drop": True}, {"garbage": True}], ids=str)
def test_transient_error_of_a_poll_does_not_end_the_wait(roughy: Emulator, way: str, fault: dict[str, Any]) -> None:
    roughy.inject(Fault(method="GET", path="/v1/cuts/*", **fault))
    ended = run(roughy, operator("cut", roughy.seed_asset(), **WAYS[way]), "/v1/cuts", settle(roughy, "cut"))
    assert ended.state == "success", ended.error


# ---- An asset that is not ready


def make_ready(roughy: Emulator, asset_id: str, kind: str) -> Callable[[], None]:
    """Let an asset become ready, and all that is then made of it be completed."""

    def act() -> None:
        roughy.set_state(asset_id, "ready")
        roughy.progression = "polls=1"

    return act


def test_processing_asset_is_polled_after_its_retry_after(roughy: Emulator, way: str) -> None:
    asset_id = roughy.seed_asset("processing")

    def ready() -> None:
        roughy.set_state(asset_id, "ready")

    task = operator("cut", asset_id, wait_for_completion=False, **WAYS[way])
    if way == "deferrable":
        ended = run_task(task, before_resuming=ready)
    else:
        with whenever(lambda: bool(asked(roughy, "POST", "/v1/cuts")), ready):
            ended = run_task(task)
    assert ended.state == "success", ended.error
    assert ended.result == roughy.cuts[0]["id"]
    refused, look, accepted = roughy.requests
    assert (refused.status, look.method, accepted.status) == (409, "GET", 201)
    assert look.started_at - refused.started_at >= 1.0


def test_processing_asset_is_waited_for_in_the_triggerer(roughy: Emulator) -> None:
    roughy.inject(Fault(method="POST", path="/v1/cuts", reply_headers={"Retry-After": "120"}))
    asset_id = roughy.seed_asset("processing")
    began = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        operator("cut", asset_id, deferrable=True, timeout=600, on_pending_payment="wait").execute({})
    assert isinstance(deferred.value.trigger, RoughyAssetTrigger)
    _, kwargs = deferred.value.trigger.serialize()
    assert 120 <= kwargs.pop("not_before") - began < 130
    assert 600 <= kwargs.pop("deadline") - began < 610
    assert kwargs == {
        "asset_id": asset_id,
        "roughy_conn_id": "roughy_default",
        "poll_interval": 0.05,
        "on_pending_payment": "wait",
    }


def test_waits_for_asset_and_resource_share_one_deadline(roughy: Emulator, kind: str) -> None:
    asset_id = roughy.seed_asset("processing")
    deadlines: list[float] = []

    class Task(type(operator(kind, asset_id))):  # type: ignore[misc]
        def defer(self, *, trigger: Any, **options: Any) -> None:
            deadlines.append(trigger.deadline)
            super().defer(trigger=trigger, **options)

    options = {"output": MP3} if kind == "render" else {}
    task = Task(task_id="make", asset_id=asset_id, poll_interval=0.05, timeout=30, deferrable=True, **options)
    steps = in_turn(lambda: roughy.set_state(asset_id, "ready"), settle_later(roughy, kind))
    assert run_task(task, before_resuming=steps).state == "success"
    assert len(deadlines) == 2
    assert deadlines[0] == deadlines[1]


def settle_later(roughy: Emulator, kind: str) -> Callable[[], None]:
    return lambda: settle(roughy, kind)()


@pytest.mark.parametrize("output", [{"format": "mp4"}, MP3], ids=["video", "audio"])
def test_render_waits_for_its_asset(roughy: Emulator, output: dict[str, Any]) -> None:
    """Of a video Roughy says ``asset_not_ready``, and not whether it ever will be: the asset itself tells."""
    asset_id = roughy.seed_asset("processing", type="video")
    task = operator("render", asset_id, output=output, deferrable=True)
    steps = in_turn(lambda: roughy.set_state(asset_id, "ready"), settle_later(roughy, "render"))
    ended = run_task(task, before_resuming=steps)
    assert (ended.state, ended.result) == ("success", roughy.renders[0]["id"]), ended.error


@pytest.mark.parametrize("becomes", ["failed", "pending_payment"])
def test_outcome_of_the_asset_during_the_wait_is_reported(roughy: Emulator, kind: str, way: str, becomes: str) -> None:
    asset_id = roughy.seed_asset("processing")
    ended = run(
        roughy,
        operator(kind, asset_id, **WAYS[way]),
        "/v1/assets",
        lambda: roughy.set_state(asset_id, becomes),
    )
    error = {"failed": RoughyAssetFailedError, "pending_payment": RoughyPaymentRequiredError}[becomes]
    assert (ended.state, type(ended.error)) == ("failed", error)
    assert asset_id in str(ended.error)
    assert made(roughy, kind) == []


def test_failed_asset_uses_no_retry(roughy: Emulator, kind: str, way: str) -> None:
    ended = run_task(operator(kind, roughy.seed_asset("failed"), **WAYS[way]))
    assert (ended.state, type(ended.error)) == ("failed", RoughyAssetFailedError)


@pytest.mark.parametrize(
    ("policy", "state", "error"),
    [
        ("fail", "failed", RoughyPaymentRequiredError),
        ("skip", "skipped", AirflowSkipException),
        ("return", "success", type(None)),
        ("wait", "failed", RoughyTimeoutError),
    ],
)
@pytest.mark.parametrize("moment", ["at first", "meanwhile"])
def test_unpaid_asset_ends_as_on_pending_payment_says(
    roughy: Emulator, way: str, moment: str, policy: Any, state: str, error: Any
) -> None:
    asset_id = roughy.seed_asset("pending_payment" if moment == "at first" else "processing")
    limit = 1.5 if policy == "wait" else 30
    task = operator("cut", asset_id, on_pending_payment=policy, timeout=limit, **WAYS[way])
    if moment == "at first":
        ended = run_task(task)
    else:
        ended = run(roughy, task, "/v1/assets", lambda: roughy.set_state(asset_id, "pending_payment"))
    assert (ended.state, type(ended.error)) == (state, error), ended.error
    assert ended.result is None
    assert roughy.cuts == []


def test_wait_continues_after_the_asset_is_paid_for(roughy: Emulator, kind: str, way: str) -> None:
    asset_id = roughy.seed_asset("pending_payment", duration_seconds="61")

    def pay() -> None:
        roughy.progression = "immediate"
        roughy.set_state(asset_id, "ready")

    task = operator(kind, asset_id, on_pending_payment="wait", wait_for_completion=False, **WAYS[way])
    ended = run(roughy, task, "/v1/assets", pay)
    assert (ended.state, ended.result) == ("success", made(roughy, kind)[0]["id"]), ended.error


def test_contradicting_replies_end_at_the_deadline(roughy: Emulator, way: str) -> None:
    """The asset is ready, and Roughy says that it is not: asked again as ``Retry-After`` says, until the time is up."""
    envelope = {"error": {"code": "asset_processing", "message": "Still processing."}}
    roughy.inject(
        Fault(method="POST", path="/v1/cuts", status=409, body=envelope, headers={"Retry-After": "1"}, times=None)
    )
    ended = run_task(operator("cut", roughy.seed_asset(), timeout=2.5, **WAYS[way]))
    assert (ended.state, type(ended.error)) == ("failed", RoughyTimeoutError)
    assert "asset_processing" in str(ended.error)
    assert 2 <= len(asked(roughy, "POST", "/v1/cuts")) <= 4


# ---- What cannot be


@pytest.mark.parametrize("asset_id", ["None", "", "not an id"])
def test_malformed_id_fails_at_once(roughy: Emulator, kind: str, asset_id: str) -> None:
    ended = run_task(operator(kind, asset_id))
    assert (ended.state, type(ended.error)) == ("failed", RoughyConfigurationError)
    assert "asset_id must be a UUID" in str(ended.error)
    assert roughy.requests == []


def test_missing_asset_fails_at_once(roughy: Emulator, kind: str) -> None:
    ended = run_task(operator(kind, NOBODY))
    assert (ended.state, type(ended.error)) == ("failed", RoughyNotFoundError)


@pytest.mark.parametrize("output", [{"format": "avi"}, {"format": "mp3", "resolution": "720p"}], ids=str)
def test_unknown_output_is_refused_by_roughy(roughy: Emulator, output: dict[str, Any]) -> None:
    ended = run_task(operator("render", roughy.seed_asset(type="video"), output=output))
    assert (ended.state, type(ended.error)) == ("failed", RoughyValidationError)


def test_cut_that_is_not_completed_is_named(roughy: Emulator) -> None:
    asset_id = roughy.seed_asset()
    cut_id = roughy.seed_cut("processing", asset_id=asset_id)
    ended = run_task(operator("render", asset_id, cut_id=cut_id))
    assert (ended.state, type(ended.error)) == ("up_for_retry", RoughyCutNotReadyError)
    assert "RoughyCutSensor" in str(ended.error)
    assert isinstance(ended.error, RoughyConflictError)


def test_render_names_its_cut(roughy: Emulator) -> None:
    asset_id = roughy.seed_asset()
    cut_id = roughy.seed_cut(asset_id=asset_id)
    run_task(operator("render", asset_id, cut_id=cut_id, wait_for_completion=False))
    assert [(render["cut_id"], render["output"]["format"]) for render in roughy.renders] == [(cut_id, "mp3")]


@pytest.mark.parametrize("words", ["Trigger timeout", "Trigger/execution timeout"], ids=["Airflow 3", "Airflow 2"])
def test_wait_without_a_triggerer_uses_no_retry(roughy: Emulator, kind: str, words: str) -> None:
    with pytest.raises(RoughyTimeoutError, match="is a triggerer running"):
        operator(kind, NOBODY).resume_execution("__fail__", {"error": words}, {})
    assert roughy.requests == []


def test_event_of_an_older_version_without_deadline_is_accepted(roughy: Emulator, kind: str) -> None:
    event: dict[str, Any] = {"status": "succeeded", "kind": kind, "id": NOBODY, "state": "completed"}
    event |= {"resource": {}, "request_id": None, "error": None}
    assert operator(kind, NOBODY).execute_complete({}, event) == NOBODY


def test_unknown_policy_is_refused_when_the_dag_is_parsed(kind: str) -> None:
    with pytest.raises(ValueError, match="on_pending_payment"):
        operator(kind, NOBODY, on_pending_payment="ignore")


@pytest.mark.parametrize("name", ["timeout", "poll_interval"])
def test_invalid_time_is_refused_when_the_dag_is_parsed(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number of seconds above 0"):
        operator(kind, NOBODY, **{name: 0})


# ---- Cancelling


def render_state(roughy: Emulator) -> str:
    (render,) = roughy.renders
    return f"{render['state']} {render['error_code'] or ''}".strip()


@pytest.mark.parametrize(
    ("cancel", "limit"),
    [
        (True, {"timeout": 0.4}),
        (False, {"timeout": 0.4}),
        pytest.param(True, {"timeout": 600, "execution_timeout": timedelta(seconds=0.4)}, marks=pytest.mark.once),
    ],
)
def test_timeout_cancels_the_render_with_cancel_on_kill(
    roughy: Emulator, way: str, cancel: bool, limit: dict[str, Any]
) -> None:
    ended = run_task(operator("render", roughy.seed_asset(), cancel_on_kill=cancel, **limit, **WAYS[way]))
    assert type(ended.error) is RoughyTimeoutError
    assert (render_state(roughy) == "pending") != cancel


@pytest.mark.parametrize("cancel", [True, False])
def test_kill_cancels_the_render_with_cancel_on_kill(roughy: Emulator, cancel: bool) -> None:
    task = operator("render", roughy.seed_asset(), cancel_on_kill=cancel, poll_interval=20)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        # As Airflow's handler does.
        task.on_kill()
        raise Killed

    before = signal.signal(signal.SIGUSR1, die)
    try:
        kill = whenever(lambda: is_idle(roughy, "/v1/renders"), lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with kill, pytest.raises(Killed):
            task.execute({})
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (render_state(roughy) == "pending") != cancel


#: Tests of tasks that run side by side.
runs_in_threads = pytest.mark.skipif(AIRFLOW_VERSION.startswith("2."), reason="Airflow 2 runs a task in no thread")


@contextmanager
def waiting_too(roughy: Emulator, asset_id: str, way: str) -> Iterator[list[Any]]:
    """Another task that waits for the same render, whose id or error is there in the end."""
    ended: list[Any] = []

    def wait() -> None:
        task: BaseOperator
        if way == "sensor":
            task = RoughyRenderSensor(task_id="another", render_id=roughy.renders[0]["id"], poke_interval=0.05)
        else:
            task = operator("render", asset_id, task_id="another", **WAYS[way])
        found = run_task(task)
        ended.append(found.error or found.result)

    looks = len(asked(roughy, "GET", "/v1/renders/"))
    thread = threading.Thread(target=wait)
    thread.start()
    try:
        while len(asked(roughy, "GET", "/v1/renders/")) < looks + 3:
            time.sleep(0.02)
        yield ended
    finally:
        settle(roughy, "render")()
        thread.join()


@runs_in_threads
@pytest.mark.parametrize("another", ["sync", "deferrable", "sensor"])
def test_render_that_another_task_waits_for_is_not_cancelled_by_a_kill(roughy: Emulator, another: str) -> None:
    asset_id = roughy.seed_asset()
    task = operator("render", asset_id, cancel_on_kill=True)
    thread = threading.Thread(target=lambda: task.execute({}))
    thread.start()
    while not asked(roughy, "GET", "/v1/renders/"):
        time.sleep(0.02)
    with waiting_too(roughy, asset_id, another) as ended:
        task.on_kill()
        assert render_state(roughy) == "pending"
    thread.join()
    (result,) = ended
    assert not isinstance(result, Exception)


@runs_in_threads
def test_render_that_another_task_waits_for_is_not_cancelled_by_a_timeout(roughy: Emulator, way: str) -> None:
    asset_id = roughy.seed_asset()
    render_id = roughy.seed_render("pending", asset_id=asset_id, output=MP3)
    with waiting_too(roughy, asset_id, "deferrable") as ended:
        found = run_task(operator("render", asset_id, cancel_on_kill=True, timeout=0.4, **WAYS[way]))
        assert type(found.error) is RoughyTimeoutError
        assert render_state(roughy) == "pending"
    assert ended == [render_id]


@pytest.mark.parametrize("alone", [False, True])
def test_task_in_another_process_knows_of_waiters_in_the_triggerer(roughy: Emulator, alone: bool) -> None:
    asset_id = roughy.seed_asset()
    render_id = roughy.seed_render("processing", asset_id=asset_id, output=MP3)

    async def time_out() -> dict[str, Any]:
        async def wait(seconds: float) -> Any:
            trigger = RoughyRenderTrigger(render_id=render_id, deadline=time.time() + seconds, poll_interval=0.05)
            return (await trigger.run().__anext__()).payload

        others = [] if alone else [asyncio.ensure_future(wait(60))]
        await asyncio.sleep(0)
        event: dict[str, Any] = await wait(0.4)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        stored: dict[str, Any] = json.loads(json.dumps(event))
        return stored

    event = asyncio.run(time_out())
    with pytest.raises(RoughyTimeoutError):
        operator("render", asset_id, cancel_on_kill=True).execute_complete({}, event)
    assert (render_state(roughy) == "processing") != alone


def test_render_that_two_tasks_of_a_triggerer_wait_for_is_cancelled_with_the_last(
    roughy: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_runner = pytest.importorskip("airflow.sdk.execution_time.task_runner", reason="Airflow 2 asks its database")
    answer = {"run": {"render": "failed"}}
    monkeypatch.setattr(task_runner.RuntimeTaskInstance, "get_task_states", staticmethod(lambda **_: answer))
    render_id = roughy.seed_render("processing")

    async def kill_both() -> list[str]:
        states = []
        triggers = [
            RoughyRenderTrigger(render_id=render_id, deadline=time.time() + 60, poll_interval=0.05, cancel_on_kill=True)
            for _ in range(2)
        ]
        waits = [asyncio.ensure_future(trigger.run().__anext__()) for trigger in triggers]
        while not asked(roughy, "GET", f"/v1/renders/{render_id}"):  # noqa: ASYNC110 - the emulator's loop is another
            await asyncio.sleep(0.01)
        for trigger, wait in zip(triggers, waits, strict=True):
            trigger.task_instance = StoppedTask()  # type: ignore[assignment]
            wait.cancel()
            await asyncio.wait([wait])
            if hasattr(RoughyTrigger, "on_kill"):
                await trigger.on_kill()
            states.append(roughy.render(render_id)["state"])
        return states

    assert asyncio.run(kill_both()) == ["processing", "failed"]


def test_kill_before_the_render_exists_cancels_nothing(roughy: Emulator) -> None:
    operator("render", roughy.seed_asset(), cancel_on_kill=True).on_kill()
    assert roughy.requests == []


def test_wait_without_a_triggerer_cancels_its_render(roughy: Emulator) -> None:
    task = operator("render", roughy.seed_asset(), cancel_on_kill=True, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute({})
    assert isinstance(deferred.value.trigger, RoughyRenderTrigger)
    with pytest.raises(RoughyTimeoutError):
        task.resume_execution("__fail__", {"error": "Trigger timeout"}, {})
    assert render_state(roughy) != "pending"
    assert len(roughy.renders) == 1


def test_failed_cancellation_keeps_the_error_of_the_task(roughy: Emulator) -> None:
    roughy.inject(Fault(method="DELETE", status=403, times=None))
    ended = run_task(operator("render", roughy.seed_asset(), timeout=0.4, cancel_on_kill=True))
    assert type(ended.error) is RoughyTimeoutError


@pytest.mark.parametrize("trigger", [RoughyTrigger(kind="cut", id=NOBODY, deadline=1.0), None], ids=["cut", "render"])
def test_stored_trigger_is_plain_json(trigger: RoughyTrigger | None) -> None:
    alike = {"roughy_conn_id": "roughy_default", "poll_interval": 30.0, "deadline": 1.0, "on_pending_payment": "fail"}
    if trigger is not None:
        expected = "airflow_provider_roughy.triggers.RoughyTrigger", {"kind": "cut", "id": NOBODY, **alike}
        assert trigger.serialize() == expected
    render = RoughyRenderTrigger(render_id=NOBODY, deadline=1.0, cancel_on_kill=True)
    assert render.serialize() == (
        "airflow_provider_roughy.triggers.RoughyRenderTrigger",
        {"render_id": NOBODY, "cancel_on_kill": True, **alike},
    )


class StoppedTask:
    """The little of a task instance that a trigger knows."""

    dag_id, task_id, run_id, map_index = "dag", "render", "run", -1


@pytest.mark.parametrize(
    ("state", "cancelled"),
    [("failed", True), ("success", True), ("skipped", True), ("deferred", False), ("scheduled", False), (None, False)],
)
@pytest.mark.parametrize("wanted", [True, False])
def test_triggerer_cancels_the_render_only_if_its_task_has_ended(
    roughy: Emulator, monkeypatch: pytest.MonkeyPatch, state: str | None, cancelled: bool, wanted: bool
) -> None:
    """A trigger is stopped as well when it moves to another triggerer, and when its task is cleared."""
    task_runner = pytest.importorskip("airflow.sdk.execution_time.task_runner", reason="Airflow 2 asks its database")
    answer = {"run": {"render": state}}
    monkeypatch.setattr(task_runner.RuntimeTaskInstance, "get_task_states", staticmethod(lambda **_: answer))
    render_id = roughy.seed_render("processing")

    async def stop() -> None:
        trigger = RoughyRenderTrigger(
            render_id=render_id, deadline=time.time() + 60, poll_interval=0.05, cancel_on_kill=wanted
        )
        trigger.task_instance = StoppedTask()  # type: ignore[assignment]
        waiting = asyncio.ensure_future(trigger.run().__anext__())
        while not asked(roughy, "GET", f"/v1/renders/{render_id}"):  # noqa: ASYNC110 - the emulator's loop is another
            await asyncio.sleep(0.01)
        stopping: asyncio.Future[Any] = waiting
        stopping.cancel()
        if hasattr(RoughyTrigger, "on_kill"):
            # Airflow 3.3 calls it then.
            await asyncio.wait([waiting])
            stopping = asyncio.ensure_future(trigger.on_kill())
        # Airflow cancels again and again.
        while not (await asyncio.wait([stopping], timeout=0.02))[0]:
            stopping.cancel()

    asyncio.run(stop())
    assert (roughy.render(render_id)["state"] != "processing") == (cancelled and wanted)
