"""Queries of this package to Airflow's own database.

Only processes with access to the database use this module: the API server of Airflow 3, and on Airflow 2 the triggerer.
Triggers and tasks of Airflow 3 have no access.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import AIRFLOW_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta

    from airflow.models.asset import AssetModel
    from sqlalchemy.orm import Session


class Announced(StrEnum):
    """Result of :func:`announce`."""

    #: A new event was created, and every DAG that it concerns is queued.
    MADE = "made"
    #: Such an event existed already.
    KNOWN = "known"
    #: No DAG declares such an asset.
    NO_ASSET = "no_asset"


def announce(
    name: str,
    extra: dict[str, Any],
    *,
    words: Sequence[str] = (),
    is_same: Callable[[dict[str, Any]], bool] = lambda extra: False,
    within: timedelta,
) -> Announced:
    """Create an event of an Airflow asset, unless there is an equal one. Blocks; call it in a thread.

    The events of an asset are created one after another, whichever process creates them, so that each sees the others.

    :param name: Name of the asset, which a DAG has to declare.
    :param extra: Extra of the event, plain JSON.
    :param words: Texts; the extra of every equal event contains one of them.
    :param is_same: Returns whether an event with a given extra is equal.
    :param within: The maximum age of an equal event.
    """
    from airflow.assets.manager import asset_manager
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import String, cast, or_, select

    with create_session() as session:
        asset = _locked_asset(session, name)
        if asset is None:
            return Announced.NO_ASSET
        if words:
            text = cast(AssetEvent.extra, String)
            # These columns are indexed.
            alike = select(AssetEvent.extra).where(
                AssetEvent.asset_id == asset.id,
                AssetEvent.timestamp >= datetime.now(UTC) - within,
                or_(*(text.contains(f'"{word}"', autoescape=True) for word in words)),
            )
            if any(is_same(each) for each in session.scalars(alike) if isinstance(each, dict)):
                return Announced.KNOWN
        if asset_manager.register_asset_change(asset=asset, extra=extra, session=session) is None:
            return Announced.NO_ASSET
        session.flush()
        _queue_unconsumed(session, asset)
        return Announced.MADE


def queue_unconsumed(name: str) -> list[str]:
    """Queue the DAGs that have not consumed all events of an Airflow asset, and that nothing else would start.

    Until Airflow 3.3, the scheduler's queue has one row for an asset and a DAG, with the time of the first event. The
    run consumes the events until that time. Later ones wait for the next event, whenever that is. So the row of a DAG
    that is active and runs on this asset alone is created, or moved, for the newest event. Nothing is queued for a DAG
    that has consumed all events, so this may be called at any time. Since Airflow 3.4, the queue has a row for each
    event, and there is nothing to do.

    :param name: Name of the asset.
    :returns: The ids of the DAGs that were queued.
    """
    from airflow.utils.session import create_session

    if _has_row_for_each_event():
        return []
    with create_session() as session:
        asset = _locked_asset(session, name)
        return [] if asset is None else _queue_unconsumed(session, asset)


def _has_row_for_each_event() -> bool:
    from airflow.models.asset import AssetDagRunQueue

    return hasattr(AssetDagRunQueue, "asset_event_id")


def _locked_asset(session: Session, name: str) -> AssetModel | None:
    from airflow.models.asset import AssetModel
    from sqlalchemy import select, update

    declared = (AssetModel.name == name, AssetModel.active.has())
    # Changes nothing, but locks the row on every database: SQLite has no SELECT FOR UPDATE.
    lock = update(AssetModel).where(*declared).values(updated_at=AssetModel.updated_at)
    session.execute(lock.execution_options(synchronize_session=False))
    return session.scalar(select(AssetModel).where(*declared))


def _queue_unconsumed(session: Session, asset: AssetModel) -> list[str]:
    """Queue the DAGs of :func:`queue_unconsumed`, in a session."""
    from airflow.models.asset import AssetDagRunQueue, AssetEvent
    from airflow.utils.sqlalchemy import with_row_locks
    from sqlalchemy import func, select
    from sqlalchemy.exc import IntegrityError

    if _has_row_for_each_event():
        return []
    of_asset = [AssetEvent.asset_id == asset.id]
    if hasattr(AssetEvent, "partition_key"):
        # For events with a partition key, only DAGs that are scheduled by partitions are queued.
        of_asset.append(AssetEvent.partition_key.is_(None))
    newest = session.scalar(select(func.max(AssetEvent.timestamp)).where(*of_asset))
    if newest is None:
        return []
    rows = select(AssetDagRunQueue).where(AssetDagRunQueue.asset_id == asset.id)
    known = {row.target_dag_id for row in session.scalars(rows)}
    # A row that the scheduler has locked is being consumed: a later call handles the rest. Waiting for it could end in
    # a deadlock.
    locked = with_row_locks(rows, session=session, of=AssetDagRunQueue, skip_locked=True, key_share=False)
    free = {row.target_dag_id: row for row in session.scalars(locked)}
    queued = []
    for dag_id, consumed_until in _dags_started_by(session, asset):
        if newest <= consumed_until:
            continue
        if dag_id in free:
            if free[dag_id].created_at < newest:
                free[dag_id].created_at = newest
                queued.append(dag_id)
        elif dag_id not in known:
            try:
                with session.begin_nested():
                    session.add(AssetDagRunQueue(asset_id=asset.id, target_dag_id=dag_id, created_at=newest))
            except IntegrityError:  # Another event has queued it concurrently.
                continue
            queued.append(dag_id)
    return queued


def _dags_started_by(session: Session, asset: AssetModel) -> Iterator[tuple[str, datetime]]:
    """Yield the DAGs that run on an asset alone and are active, with the time until which they consumed its events."""
    from airflow.models.asset import DagScheduleAssetReference
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.utils.types import DagRunType
    from sqlalchemy import func, select

    scheduled = (
        select(DagModel, DagScheduleAssetReference.created_at)
        .join(DagScheduleAssetReference, DagScheduleAssetReference.dag_id == DagModel.dag_id)
        .where(
            DagScheduleAssetReference.asset_id == asset.id,
            DagModel.is_paused.is_(False),
            DagModel.is_stale.is_(False),
        )
    )
    for dag, since in session.execute(scheduled).all():
        if getattr(dag, "timetable_partitioned", False) or not _is_met(dag.asset_expression, asset):
            continue
        # The scheduler uses the same start for the events of a run.
        last_run = session.scalar(
            select(func.max(DagRun.run_after)).where(
                DagRun.dag_id == dag.dag_id, DagRun.run_type == DagRunType.ASSET_TRIGGERED
            )
        )
        yield dag.dag_id, since if last_run is None else max(since, last_run)


def _is_met(condition: Any, asset: AssetModel) -> bool:
    """Whether a condition on assets, as Airflow writes it into the DAG's row, is met by events of one asset alone."""
    match condition:
        case {"all": [_, *_] as parts}:
            return all(_is_met(part, asset) for part in parts)
        case {"any": [*parts]}:
            return any(_is_met(part, asset) for part in parts)
        case {"asset": {"name": name, "uri": uri}}:
            return bool(name == asset.name and uri == asset.uri)
    # An alias, or a reference to another asset.
    return False


async def aget_task_state(task_instance: Any) -> str | None:
    """Return the current state of a task instance, such as ``"deferred"``, without blocking the event loop.

    :param task_instance: The task instance of a trigger.
    :returns: ``None`` if it has no state, such as after it was cleared.
    """
    from asgiref.sync import sync_to_async

    read = _query_task_state if AIRFLOW_VERSION.startswith("2.") else _read_task_state
    state = await sync_to_async(read)(task_instance)
    return str(getattr(state, "value", state)) if state else None


def _read_task_state(ti: Any) -> Any:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    found = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    # The key of a mapped one has its index.
    return next(iter(found.get(ti.run_id, {}).values()), None)


def _query_task_state(ti: Any) -> Any:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.get(
            TaskInstance,
            {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": ti.map_index},
        )
        return found.state if found else None


def newest_triggerer() -> tuple[bool, datetime | None] | None:
    """Return whether the newest triggerer is alive, and its last heartbeat; ``None`` if none was ever started."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        of_triggerers = select(Job).where(Job.job_type == "TriggererJob").order_by(Job.latest_heartbeat.desc())
        jobs = session.scalars(of_triggerers.limit(20)).all()
        alive = [job for job in jobs if job.is_alive()]
        newest = next(iter([*alive, *jobs]), None)
        return None if newest is None else (bool(alive), newest.latest_heartbeat)


def dags_started_by_asset(name: str) -> dict[str, bool] | None:
    """Return the DAGs that an Airflow asset's events may start, with whether each is paused. Airflow 3 only.

    :param name: Name of the asset.
    :returns: ``None`` if no active DAG declares such an asset.
    """
    from airflow.models.asset import AssetModel, DagScheduleAssetReference
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        asset = session.scalar(select(AssetModel).where(AssetModel.name == name, AssetModel.active.has()))
        if asset is None:
            return None
        scheduled = (
            select(DagModel.dag_id, DagModel.is_paused)
            .join(DagScheduleAssetReference, DagScheduleAssetReference.dag_id == DagModel.dag_id)
            .where(DagScheduleAssetReference.asset_id == asset.id)
        )
        return {dag_id: bool(is_paused) for dag_id, is_paused in session.execute(scheduled)}
