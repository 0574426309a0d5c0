"""What a task that succeeds says in the events of its outlets.

======================== ==============================================================================================
The outlet is            Its events
======================== ==============================================================================================
an ``AssetAlias``        one for each product: a resource that is ready, as ``roughy://asset/ID``, ``roughy://cut/ID``
                         or ``roughy://render/ID``, or a file that was written, by its URI. None for what is unpaid,
                         failed, refused, postponed, or only uploaded; at most 100, and ``omitted`` in the extra of each
                         says how many more there were
an ``Asset``             the one that Airflow makes at each success of the task; its extra says what came of it
======================== ==============================================================================================

An event is a courtesy to other DAGs: nothing here fails a task.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import Asset, AssetAlias, BaseAsset, conf
from airflow_provider_roughy.lifecycle import Outcome
from airflow_provider_roughy.lineage import resource_uri
from airflow_provider_roughy.storage import asset_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from airflow_provider_roughy.compat import BaseOperator, Context
    from airflow_provider_roughy.lifecycle import Verdict

#: Events of one alias that Airflow 3 takes for each second of its ``[workers] execution_api_timeout`` (5 s), in which a
#: task has to tell its success: writing one takes 15 to 40 ms. A task that takes longer is failed, its events are not.
EVENTS_PER_SECOND = 20
#: Ids of one outcome that the extra of a plain asset names, which are some 40 KB.
MOST_IDS = 1000
#: What a resource's fields tell of it, in the words of Roughy's API.
_FACTS = ("asset_id", "cut_id", "project_id", "duration_seconds")


@dataclass(frozen=True)
class Product:
    """What others may go on with.

    :param uri: As Airflow's assets call it.
    :param extra: What is known of it, without secrets: text and numbers, as Airflow 2 takes nothing nested.
    """

    uri: str
    extra: Mapping[str, Any]


def announce(task: BaseOperator, context: Context, products: Iterable[Product], summary: Mapping[str, Any]) -> None:
    """Fill the events of a task's outlets. To be called at its end, when nothing can go wrong any more.

    :param task: The task.
    :param context: Airflow's.
    :param products: What each alias announces.
    :param summary: What each plain asset says, as plain JSON without secrets.
    """
    events: Any = context.get("outlet_events")
    if events is None or not task.outlets:
        return
    most = int(EVENTS_PER_SECOND * conf.getfloat("workers", "execution_api_timeout", fallback=5.0))
    products = list(products)
    omitted = len(products) - most
    more = {"omitted": omitted} if omitted > 0 else {}
    for outlet in task.outlets:
        if isinstance(outlet, AssetAlias):
            for product in products[:most]:
                with _forgiving(task):
                    events[outlet].add(Asset(uri=product.uri), extra={**product.extra, **more})
            if more:
                task.log.warning(
                    "AssetAlias %r announces %s of %s: Airflow takes no more at once. The XComs have all, and a "
                    "plain Asset makes one event of a batch",
                    outlet.name,
                    f"{most:,}",
                    f"{len(products):,}",
                )
        elif isinstance(outlet, BaseAsset):
            with _forgiving(task):
                events[outlet].extra.update(summary)


def announce_verdict(task: BaseOperator, context: Context, verdict: Verdict, **more: Any) -> None:
    """Fill the events of a task's outlets by what came of one resource.

    :param task: The task.
    :param context: Airflow's.
    :param verdict: On the resource.
    :param more: What else is known of it; ``None`` says nothing.
    """
    facts = {name: verdict.resource.get(name) for name in _FACTS} | {f"{verdict.kind}_id": verdict.id} | more
    extra = {name: value for name, value in facts.items() if value is not None}
    ready = verdict.outcome is Outcome.SUCCEEDED
    products = [Product(resource_uri(verdict.kind, verdict.id), extra)] if ready else []
    announce(task, context, products, {"state": verdict.state, **extra})


def announce_file(task: BaseOperator, context: Context, uri: str, **more: Any) -> None:
    """Fill the events of a task's outlets by a file that was written.

    :param task: The task.
    :param context: Airflow's.
    :param uri: Where it is, without credentials.
    :param more: What it was made of; ``None`` says nothing.
    """
    extra = {"target": uri, **{name: value for name, value in more.items() if value is not None}}
    announce(task, context, [Product(asset_uri(uri), extra)], {"state": "written", **extra})


def ids_by_outcome(outcomes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the ids of a batch for the extra of a plain asset, at most :data:`MOST_IDS` of each outcome.

    :param outcomes: All ids.
    :returns: The ids, and in ``omitted`` how many more there are of which outcome.
    """
    more = {name: len(ids) - MOST_IDS for name, ids in outcomes.items() if len(ids) > MOST_IDS}
    return {**{name: list(ids[:MOST_IDS]) for name, ids in outcomes.items()}, **({"omitted": more} if more else {})}


@contextmanager
def _forgiving(task: BaseOperator) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Such as a URI that is longer than Airflow's database takes.
        task.log.warning("An outlet's events are not complete: %s", error)
