"""The example DAGs in a real DAG processor; ``test_demo.py`` runs them."""

from __future__ import annotations

from demo.airflow import LocalAirflow
from tests.live import LIVE
from tests.live.conftest import EXAMPLE_DAGS
from tests.live.running import wait_until

pytestmark = LIVE


def test_all_example_dags_are_imported_without_errors(local_airflow: LocalAirflow) -> None:
    expected = {path.stem for path in EXAMPLE_DAGS.glob("*.py")}
    assert len(expected) >= 3
    wait_until(lambda: expected <= listed(local_airflow))
    assert local_airflow.request("GET", "/importErrors").json()["import_errors"] == []


def listed(airflow: LocalAirflow) -> set[str]:
    dags = airflow.request("GET", "/dags").json()["dags"]
    return {dag["dag_id"] for dag in dags if not dag["has_import_errors"]}
