"""Airflow's scheduler and its database, in this process."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import airflow

from airflow_provider_roughy.compat import AIRFLOW_VERSION

#: Whether the scheduler's queue has a row for each event, so that none is left behind.
QUEUES_EACH_EVENT = tuple(map(int, AIRFLOW_VERSION.split(".")[:2])) >= (3, 4)


class Scheduler:
    """Starts runs of a DAG for the events of its assets. Airflow 3.

    :param path: The DAG's file.
    """

    def __init__(self, path: Path) -> None:
        from airflow.models.trigger import Trigger
        from airflow.utils.session import create_session

        self._session = create_session
        self._dag_id = path.stem
        self._parse(path)
        self.pause(is_paused=False)
        # A DAG that is paused has no triggers.
        self._parse(path)
        with self._session() as session:
            # Those that no DAG has any more are removed later.
            self._trigger_ids = [trigger.id for trigger in session.query(Trigger) if trigger.assets]
        self._seen = 0
        # What was left lying before is of this run.
        self.store({})
        self.look()

    def _parse(self, path: Path) -> None:
        from airflow.dag_processing.bundles.manager import DagBundlesManager

        DagBundlesManager().sync_bundles_to_db()
        is_old = airflow.__version__.startswith(("3.0.", "3.1."))
        module: Any = import_module("airflow.models.dagbag" if is_old else "airflow.dag_processing.dagbag")
        sync = getattr(module, "sync_bag_to_db", None) or module.DagBag.sync_to_db
        sync(module.DagBag(str(path)), "dags-folder", None)

    def pause(self, *, is_paused: bool = True) -> None:
        """Pause the DAG, or let it go on."""
        from airflow.models.dag import DagModel

        with self._session() as session:
            session.query(DagModel).filter_by(dag_id=self._dag_id).update({"is_paused": is_paused})

    def store(self, payload: dict[str, Any]) -> None:
        """Store an event of each trigger."""
        from airflow.models.trigger import Trigger
        from airflow.triggers.base import TriggerEvent

        with self._session() as session:
            for trigger_id in self._trigger_ids:
                Trigger.submit_event(trigger_id, TriggerEvent(payload), session=session)

    def look(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Look for runs that are due, and return the new ones, each with its id and the extras of its events."""
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.utils.sqlalchemy import prohibit_commit

        with self._session() as session, prohibit_commit(session) as guard:
            SchedulerJobRunner(job=Job())._create_dagruns_for_dags(guard, session)
        new = self._runs()[self._seen :]
        self._seen += len(new)
        return new

    def _runs(self) -> list[tuple[str, list[dict[str, Any]]]]:
        from airflow.models.dagrun import DagRun

        with self._session() as session:
            runs = session.query(DagRun).filter_by(dag_id=self._dag_id).order_by(DagRun.id)
            return [(run.run_id, [event.extra for event in run.consumed_asset_events]) for run in runs]
