"""DAGs of :mod:`tests.test_outlets`: one announces a recording, which starts the other."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow_provider_roughy.compat import DAG, Asset, AssetAlias, Param, task
from airflow_provider_roughy.operators import RoughyCreateUploadOperator

with DAG("announcing", schedule=None, params={"source": Param("", type="string")}) as dag:
    RoughyCreateUploadOperator(
        task_id="upload",
        source="{{ params.source }}",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=0.1,
        outlets=[AssetAlias("roughy_ready"), Asset("roughy_uploads")],
    )

with DAG(
    "announced",
    schedule=[AssetAlias("roughy_ready")],
    # Airflow 2 wants one.
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    is_paused_upon_creation=False,
) as announced:

    @task
    def go_on() -> None:
        """Nothing."""

    go_on()
