"""The retry policy: what Airflow does about a task whose request Roughy refused for now."""

from __future__ import annotations

import importlib
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest

from airflow_provider_roughy import compat
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import (
    RoughyAssetProcessingError,
    RoughyAuthenticationError,
    RoughyConflictError,
    RoughyError,
    RoughyGatewayError,
    RoughyNotFoundError,
    RoughyRateLimitError,
    RoughyServerError,
    RoughyUploadClosedError,
    RoughyUploadError,
)
from tests.conftest import DAGS_FOLDER
from tests.test_example_dags import load

new_enough = pytest.mark.skipif(
    compat._LINE < (3, 3), reason="Airflow has retry policies from 3.3 on; what it says before is tested below"
)


RETRIED = """
from datetime import datetime, timedelta

from airflow.sdk import DAG, task
from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.retry_policy import RoughyRetryPolicy

with DAG("retried", start_date=datetime(2026, 1, 1), schedule=None) as dag:

    @task(
        retries=5,
        retry_delay=timedelta(days=1),
        retry_policy=RoughyRetryPolicy(shortest=timedelta(0), longest=timedelta(seconds=2)),
    )
    def ask():
        try:
            with RoughyHook() as hook:
                return hook.get_credit_balance()
        except RoughyError as error:
            raise ValueError("no balance") from error

    ask()
"""


def room() -> ModuleType:
    return importlib.import_module("airflow_provider_roughy.retry_policy")


def later(seconds: float | None) -> RoughyServerError:
    return RoughyServerError("GET /v1/assets", status=503, retry_after=seconds)


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


#: What Airflow does when Roughy asks for time, and what it does when Roughy does not say how much.
LATER, SOME_TIME = ("reschedule", "reschedule") if compat._LINE >= (3, 4) else ("retry", "default")
FORBIDDEN = RoughyAuthenticationError("GET /v1/assets", status=401)
GONE = RoughyNotFoundError("HEAD /v1/uploads/a", status=404)


@new_enough
@pytest.mark.parametrize(
    ("error", "action", "seconds"),
    [
        (later(120), LATER, 120),
        (RoughyRateLimitError("GET /v1/assets", status=429, retry_after=40.5), LATER, 40.5),
        (RoughyAssetProcessingError("POST /v1/cuts", status=409, retry_after=90), LATER, 90),
        (later(0), LATER, 10),
        (later(86400), LATER, 3600),
        (later(None), SOME_TIME, None),
        (RoughyRateLimitError("GET /v1/assets", status=429), SOME_TIME, None),
        (RoughyAssetProcessingError("POST /v1/cuts", status=409), SOME_TIME, None),
        (RoughyGatewayError("GET /v1/assets", status=503), SOME_TIME, None),
        (caused_by(ValueError("no cut today"), RoughyAssetProcessingError("a", status=409)), SOME_TIME, None),
        (RoughyServerError("GET /v1/assets", status=500), "default", None),
        (RoughyConflictError("POST /v1/cuts", status=409), "default", None),
        (ValueError("of the user's own"), "default", None),
        (caused_by(RoughyUploadError("gave up", offset=5), later(77)), LATER, 77),
        (caused_by(ValueError("no recording today"), later(77)), LATER, 77),
        (FORBIDDEN, "fail", None),
        (caused_by(ValueError("no recording today"), FORBIDDEN), "fail", None),
        (caused_by(RoughyUploadClosedError("gone", offset=5), GONE), "default", None),
    ],
)
def test_what_follows_from_an_error(error: Exception, action: str, seconds: float | None) -> None:
    decision = room().RoughyRetryPolicy().evaluate(error, 1, 3)
    assert decision.action.value == action
    assert decision.retry_delay == (None if seconds is None else timedelta(seconds=seconds))


@new_enough
def test_an_error_that_is_its_own_cause_ends() -> None:
    error = ValueError("odd")
    assert room().RoughyRetryPolicy().evaluate(caused_by(error, caused_by(RoughyError(), error)), 1, 3).reason is None


@new_enough
@pytest.mark.parametrize(("shortest", "longest"), [(-1, 5), (6, 5)])
def test_pauses_that_cannot_be(shortest: int, longest: int) -> None:
    with pytest.raises(ValueError, match="shortest"):
        room().RoughyRetryPolicy(shortest=timedelta(seconds=shortest), longest=timedelta(seconds=longest))


@new_enough
def test_a_patience_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="patience"):
        room().RoughyRetryPolicy(patience=timedelta(0))


@pytest.mark.skipif(compat._LINE < (3, 4), reason="This Airflow cannot reschedule a task that failed")
def test_a_reschedule_has_an_end_and_a_reason() -> None:
    decision = room().RoughyRetryPolicy(patience=timedelta(hours=2)).evaluate(later(120), 1, 3)
    assert decision.reschedule_timeout == timedelta(hours=2)
    assert decision.reason.startswith("Roughy asked to wait 120 s: ")


@pytest.mark.skipif(compat._LINE < (3, 4), reason="This Airflow has no chain of policies")
def test_in_a_chain_it_leaves_other_errors_to_other_policies() -> None:
    sdk: Any = importlib.import_module("airflow.sdk")
    fail = sdk.RetryRule(exception=PermissionError, action=sdk.RetryAction.FAIL)
    others = sdk.ExceptionRetryPolicy(rules=[fail])
    chain = sdk.ChainRetryPolicy([room().RoughyRetryPolicy(), others])
    assert chain.evaluate(later(120), 1, 3).action is sdk.RetryAction.RESCHEDULE
    assert chain.evaluate(FORBIDDEN, 1, 3).action is sdk.RetryAction.FAIL
    assert chain.evaluate(PermissionError("mine"), 1, 3).action is sdk.RetryAction.FAIL
    assert chain.evaluate(ValueError("mine"), 1, 3).action is sdk.RetryAction.DEFAULT


@new_enough
def test_its_settings_can_be_stored() -> None:
    policy = room().RoughyRetryPolicy(longest=timedelta(minutes=5), patience=timedelta(hours=2))
    assert vars(type(policy).deserialize(policy.serialize())) == vars(policy)


@new_enough
@pytest.mark.usefixtures("airflow_db", "patient")
def test_airflow_tries_again_when_roughy_asked_for_it(roughy: Emulator) -> None:
    # More than the hook itself is ready to wait.
    roughy.inject(Fault(path="/v1/credits/*", status=503, headers={"Retry-After": "900"}))
    roughy.inject(Fault(path="/v1/credits/*", nth=2, status=401))
    # Airflow takes a DAG from a file only.
    file = DAGS_FOLDER / "retried.py"
    file.write_text(RETRIED)
    try:
        run: Any = load(file).dag.test()
    finally:
        file.unlink()
    (instance,) = run.get_task_instances()
    # Airflow 3.4 uses no retry for it.
    tries = 1 if compat._LINE >= (3, 4) else 2
    assert (run.state.value, instance.try_number) == ("failed", tries), "the second error is final"
    first, second = roughy.requests
    assert 2 <= second.started_at - first.started_at < 60


@pytest.mark.skipif(compat._LINE >= (3, 3), reason="This Airflow has retry policies")
def test_older_airflow_error_names_the_required_version() -> None:
    with pytest.raises(RuntimeError, match=r"RetryDecision needs Apache Airflow 3\.3\.0\+; this is "):
        room()
