"""The events that a successful task adds to its outlets.

======================== ==============================================================================================
Outlet                   Events
======================== ==============================================================================================
an ``AssetAlias``        One for each product: a resource that is ready, as ``roughy://asset/ID``, ``roughy://cut/ID``
                         or ``roughy://render/ID``, or a file that was written, by its URI. None for a resource that is
                         unpaid, failed, rejected, deferred or only uploaded, nor for a file that existed before the
                         first try of the task. At most 100; ``omitted`` in the extra of each event counts the rest
an ``Asset``             The one that Airflow creates whenever the task succeeds; its extra holds the result
======================== ==============================================================================================

Other DAGs may start on these events. No error in this module fails a task.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import Asset, AssetAlias, BaseAsset, conf
from airflow_provider_roughy.lifecycle import Outcome
from airflow_provider_roughy.observability.lineage import resource_uri
from airflow_provider_roughy.transfer.storage import asset_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from airflow_provider_roughy.compat import BaseOperator, Context
    from airflow_provider_roughy.lifecycle import Verdict

#: Events of one alias for each second of Airflow 3's ``[workers] execution_api_timeout`` (5 s), within which the API
#: server has to record the success of a task. It writes an event in 15 to 40 ms. A task that takes longer fails,
#: although its events are stored.
EVENTS_PER_SECOND = 20
#: Ids of one outcome in the extra of a plain asset: about 40 KB of JSON.
MAX_IDS = 1000
#: The fields of a resource that go into the extra, by their names in Roughy's API.
_EXTRA_FIELDS = ("asset_id", "cut_id", "project_id", "duration_seconds")


@dataclass(frozen=True)
class Product:
    """A result of a task that other DAGs can use.

    :param uri: The URI of its Airflow asset.
    :param extra: The extra of its event, without secrets: text and numbers only, because Airflow 2 accepts nothing
        nested.
    """

    uri: str
    extra: Mapping[str, Any]


def announce(task: BaseOperator, context: Context, products: Iterable[Product], summary: Mapping[str, Any]) -> None:
    """Add events to the outlets of a task. Call this last, because Airflow stores them only if the task succeeds.

    :param task: The task.
    :param context: Its context.
    :param products: The products, for each ``AssetAlias``.
    :param summary: The extra for each plain ``Asset``: JSON without secrets.
    """
    events: Any = context.get("outlet_events")
    if events is None or not task.outlets:
        return
    limit = int(EVENTS_PER_SECOND * conf.getfloat("workers", "execution_api_timeout", fallback=5.0))
    products = list(products)
    omitted = len(products) - limit
    more = {"omitted": omitted} if omitted > 0 else {}
    for outlet in task.outlets:
        if isinstance(outlet, AssetAlias):
            for product in products[:limit]:
                with _errors_logged(task):
                    events[outlet].add(Asset(uri=product.uri), extra={**product.extra, **more})
            if more:
                task.log.warning(
                    "AssetAlias %r gets events for %s of %s products, because Airflow stores no more before its "
                    "timeout. The XComs name all of them; a plain Asset as outlet gets one event for the whole batch",
                    outlet.name,
                    f"{limit:,}",
                    f"{len(products):,}",
                )
        elif isinstance(outlet, BaseAsset):
            with _errors_logged(task):
                events[outlet].extra.update(summary)


def announce_verdict(task: BaseOperator, context: Context, verdict: Verdict, **more: Any) -> None:
    """Add the events for the verdict on one resource to the outlets of a task.

    :param task: The task.
    :param context: Its context.
    :param verdict: The verdict on the resource.
    :param more: Further fields of the extra; ``None`` leaves a field out.
    """
    fields = {name: verdict.resource.get(name) for name in _EXTRA_FIELDS} | {f"{verdict.kind}_id": verdict.id} | more
    extra = {name: value for name, value in fields.items() if value is not None}
    ready = verdict.outcome is Outcome.SUCCEEDED
    products = [Product(resource_uri(verdict.kind, verdict.id), extra)] if ready else []
    announce(task, context, products, {"state": verdict.state, **extra})


def announce_file(task: BaseOperator, context: Context, uri: str, *, written: bool, **more: Any) -> None:
    """Add the events for a downloaded file to the outlets of a task.

    An ``AssetAlias`` gets no event for a file that existed before, unless this is a retry: an earlier try may have
    written the file, and ended before it added the event.

    :param task: The task.
    :param context: Its context.
    :param uri: The URI of the file, without credentials.
    :param written: Whether this try wrote the file.
    :param more: Further fields of the extra, such as ``asset_id``; ``None`` leaves a field out.
    """
    extra = {"target": uri, **{name: value for name, value in more.items() if value is not None}}
    try_number = getattr(context.get("ti"), "try_number", 1)
    is_new = written or (isinstance(try_number, int) and try_number > 1)
    products = [Product(asset_uri(uri), extra)] if is_new else []
    announce(task, context, products, {"state": "written" if written else "unchanged", **extra})


def ids_by_outcome(outcomes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the ids of a batch for the extra of a plain asset, at most :data:`MAX_IDS` of each outcome.

    :param outcomes: All ids by outcome.
    :returns: The ids by outcome, and under ``omitted`` how many ids of each outcome are left out, if any.
    """
    more = {name: len(ids) - MAX_IDS for name, ids in outcomes.items() if len(ids) > MAX_IDS}
    return {**{name: list(ids[:MAX_IDS]) for name, ids in outcomes.items()}, **({"omitted": more} if more else {})}


@contextmanager
def _errors_logged(task: BaseOperator) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Such as a URI that is too long for Airflow's database.
        task.log.warning("Adding an event to an outlet failed; the task is not affected: %s", error)
