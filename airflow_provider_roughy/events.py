"""What an event about assets says, and how a task takes them, each once.

An event's payload is ``{"ready": [ids], "failed": [ids]}``: asset ids by state, the oldest first. It is in
``extra["payload"]`` of Airflow's asset event, whoever made that: a watcher, or somebody who was told by a webhook.
Events are repeated until what they tell of is taken, so a DAG may hear of an asset several times.
:func:`take_assets` makes that once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import resource_id
from airflow_provider_roughy.compat import check_airflow
from airflow_provider_roughy.exceptions import RoughyConfigurationError
from airflow_provider_roughy.ledger import Entry, Ledger, entry_key
from airflow_provider_roughy.lifecycle import ASSET
from airflow_provider_roughy.lineage import resource_uri
from airflow_provider_roughy.memory import Owner

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from airflow_provider_roughy.compat import Context, ObjectStoragePath

#: Ids of one state in one event: some 40 KB of JSON, which goes through Airflow's database and its log.
MOST_IDS = 1000


def check_states(states: Iterable[str]) -> tuple[str, ...]:
    """Return the states that events are wanted for, in the one order that there is.

    :param states: Any of ``"ready"``, ``"failed"`` and ``"pending_payment"``.
    :raises ValueError: At DAG parse, if one is none of them, or if there is none.
    """
    wanted = {states} if isinstance(states, str) else set(states)
    if not wanted or not wanted <= set(ASSET.ends):
        raise ValueError(f"states must be some of {ASSET.ends}, not {states!r}")
    return tuple(state for state in ASSET.ends if state in wanted)


def taken_key(asset_id: str, state: str) -> str:
    """Return the name of a ledger's entry that says that an asset was taken in a state.

    :param asset_id: The asset.
    :param state: The state that was announced.
    """
    return entry_key(_wanted(asset_id, state))


def announced(context: Context, states: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the assets that a run was started for, as pairs of id and state; each once, in the order of the events.

    :param context: The context of a task.
    :param states: Which states are of interest.
    """
    events: Mapping[Any, Sequence[Any]] = context.get("triggering_asset_events") or {}
    seen = set()
    # Others may make events of the same Airflow asset, about whatever they like.
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
    """Take the assets that a run was started for, save those that another run has taken: call it in a task.

    Each is taken by one task of one run. A retry of that task gets the same ones again, and so it does when it is
    cleared: if a run failed after this, clear it. Two DAGs that shall both get all assets need a ledger each.

    :param context: The context of the task.
    :param ledger: Where is kept what was taken, as of the watcher: a local path or a URI that Airflow's object storage
        knows.
    :param ledger_conn_id: The Airflow connection of that storage.
    :param states: The states that are taken: any of ``"ready"``, ``"failed"`` and ``"pending_payment"``.
    :returns: Their ids; none if no event started the run, as when somebody did by hand.
    :raises ValueError: If there is no such state.
    :raises RoughyLedgerError: If the ledger cannot be used; what was taken by then is so for this task.
    """
    check_airflow("take_assets()", needs=(3, 0))
    # An alias brings the same event twice.
    pairs = list(announced(context, check_states(states)))
    owner = Owner.of(context["ti"])
    entries = [
        Entry(
            taken_key(id, state),
            source=resource_uri("asset", id),
            wanted=_wanted(id, state),
            owner=str(owner),
            series=owner.series,
            state="taken",
            asset_id=id,
        )
        for id, state in pairs
    ]
    there = Ledger(ledger, conn_id=ledger_conn_id).take(entries)
    return list(dict.fromkeys(entry.asset_id for entry in there if entry.owner == str(owner) and entry.asset_id))


def _wanted(asset_id: str, state: str) -> dict[str, Any]:
    # Ids are the same nowhere else, so that it does not matter which connection an event came by.
    return {"uri": resource_uri("asset", asset_id), "state": state}
