"""The payload of an asset event, and the tasks that take the assets in it.

The payload is ``{"ready": [ids], "failed": [ids]}``: asset ids by state, the oldest first, in ``extra["payload"]`` of
Airflow's asset event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import resource_id
from airflow_provider_roughy.compat import check_airflow
from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.ledger import ClaimOwner, Entry, Ledger, entry_key
from airflow_provider_roughy.lifecycle import ASSET
from airflow_provider_roughy.observability.lineage import resource_uri

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from airflow_provider_roughy.compat import Context, ObjectStoragePath

#: Most ids of one state in one event: about 40 KB of JSON, which Airflow stores in its database and writes to its log.
MAX_IDS_PER_STATE = 1000


def check_states(states: Iterable[str]) -> tuple[str, ...]:
    """Return the states to announce or take, in a fixed order.

    :param states: Any of ``"ready"``, ``"failed"`` and ``"pending_payment"``.
    :raises ValueError: At DAG parse, if there is no state, or another one.
    """
    names = {states} if isinstance(states, str) else set(states)
    if not names or not names <= set(ASSET.ends):
        raise ValueError(f"states must be some of {ASSET.ends}, not {states!r}")
    return tuple(state for state in ASSET.ends if state in names)


def taken_key(asset_id: str, state: str) -> str:
    """Return the key of the ledger's entry that records that an asset was taken in a state.

    :param asset_id: The asset.
    :param state: The state in which it was announced.
    """
    return entry_key(_identity(asset_id, state))


def announced(context: Context, states: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the id and state of each asset for which a run was started, once, in the order of the events.

    :param context: The context of a task.
    :param states: The states to yield.
    """
    events: Mapping[Any, Sequence[Any]] = context.get("triggering_asset_events") or {}
    seen = set()
    # Other programs may make events of the same Airflow asset with any extra.
    payloads = [
        payload
        for of_one in events.values()
        for event in of_one
        if isinstance(event.extra, dict) and isinstance(payload := event.extra.get("payload"), dict)
    ]
    for state in states:
        for payload in payloads:
            ids = payload.get(state)
            for id in ids if isinstance(ids, list) else ():
                try:
                    pair = resource_id("id", id), state
                except RoughyConfigurationError:
                    continue
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def take_assets(
    context: Context,
    *,
    ledger: str | os.PathLike[str] | ObjectStoragePath,
    ledger_conn_id: str | None = None,
    states: Iterable[str] = ("ready",),
) -> list[str]:
    """Take the assets for which a run was started, except those that another run has taken. Call it in a task.

    One task of one run takes an asset. A retry of that task gets the same assets again, and so does the task if you
    clear it: if a run failed after this call, clear the task. Two DAGs that should both get every asset need a ledger
    each.

    :param context: The context of the task.
    :param ledger: The folder that records what was taken, the same as the watcher's: a local path, or a URI that
        Airflow's object storage knows.
    :param ledger_conn_id: The Airflow connection of that storage.
    :param states: The states to take: any of ``"ready"``, ``"failed"`` and ``"pending_payment"``.
    :returns: The ids of the assets; none if no event started the run, such as a run that was started by hand.
    :raises ValueError: If there is no such state.
    :raises RoughyLedgerError: If the ledger cannot be used. Assets that were taken before the error stay taken by this
        task.
    """
    check_airflow("take_assets()", needs=(3, 0))
    # An alias brings the same event twice.
    pairs = list(announced(context, check_states(states)))
    owner = ClaimOwner.of(context["ti"])
    entries = [
        Entry(
            taken_key(id, state),
            source=resource_uri("asset", id),
            identity=_identity(id, state),
            owner=str(owner),
            task_key=owner.task_key,
            state="taken",
            asset_id=id,
        )
        for id, state in pairs
    ]
    taken = Ledger(ledger, conn_id=ledger_conn_id).take(entries)
    return list(dict.fromkeys(entry.asset_id for entry in taken if entry.owner == str(owner) and entry.asset_id))


def _identity(asset_id: str, state: str) -> dict[str, Any]:
    # Without the connection, because ids are unique in all of Roughy.
    return {"uri": resource_uri("asset", asset_id), "state": state}
