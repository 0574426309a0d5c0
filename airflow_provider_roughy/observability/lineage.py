"""URIs of Roughy's resources as Airflow assets, and reports of what was read and written to Airflow's lineage.

The URI of a resource is ``roughy://KIND/ID``, such as ``roughy://asset/0198c0de-7f3a-7cc2-b8a4-0123456789ab``: the kind
as Roughy's API names it, and the id in lower case. The provider info names the functions that Airflow calls for them.

No error in this module fails a task.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow_provider_roughy import compat
from airflow_provider_roughy.compat import Asset
from airflow_provider_roughy.transfer.storage import asset_uri

if TYPE_CHECKING:
    from collections.abc import Iterable
    from urllib.parse import SplitResult

    from openlineage.client.event_v2 import Dataset

    from airflow_provider_roughy.compat import BaseHook

SCHEME = "roughy"
#: The kinds of resources that have a URI.
_KINDS = ("asset", "cut", "render", "project")

_log = logging.getLogger(__name__)


def resource_uri(kind: str, id: str) -> str:
    """Return the URI of a resource.

    :param kind: The kind as Roughy's API names it, such as ``"asset"``.
    :param id: The id of the resource.
    """
    return f"{SCHEME}://{kind}/{id.lower()}"


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check a URI from a DAG file, and return it in the form of :func:`resource_uri`.

    :param uri: The URI as Airflow splits it: without a fragment and without trailing slashes.
    :raises ValueError: If it is not the URI of a resource of Roughy. Airflow 3 reports an import error of the DAG file,
        Airflow 2 a warning.
    """
    kind, id = uri.netloc.lower(), uri.path.removeprefix("/")
    try:
        canonical = str(UUID(id))
    except ValueError:
        canonical = ""
    if kind not in _KINDS or not canonical or uri.query:
        raise ValueError(
            f"{uri.geturl()!r} is not a URI of Roughy: expected {SCHEME}://KIND/ID, where KIND is one of {_KINDS} and "
            "ID is a UUID"
        )
    return uri._replace(netloc=kind, path=f"/{canonical}")


def create_asset(*, kind: str, id: str, extra: dict[str, Any] | None = None) -> Asset:
    """Return the Airflow asset of a resource.

    :param kind: The kind as Roughy's API names it, such as ``"asset"``.
    :param id: The id of the resource.
    :param extra: The extra of the Airflow asset.
    """
    return Asset(uri=resource_uri(kind, id), extra=extra)


def convert_asset_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:
    """Return the OpenLineage dataset of a resource: the name ``KIND/ID`` in the namespace ``roughy``.

    :param asset: The Airflow asset of the resource.
    :param lineage_context: The hook or operator that reported it.
    """
    from openlineage.client.event_v2 import Dataset

    return Dataset(namespace=SCHEME, name=asset.uri.removeprefix(f"{SCHEME}://"))


def report_upload(hook: BaseHook, source: str, asset_id: str) -> None:
    """Report that a recording was uploaded.

    :param hook: The hook that uploaded it.
    :param source: The path or URI of the recording.
    :param asset_id: The asset that was created from it.
    """
    report(hook, read=[asset_uri(source)], written=[resource_uri("asset", asset_id)])


def report_making(hook: BaseHook, kind: str, id: str, *, asset_id: str, cut_id: str | None = None) -> None:
    """Report that a cut or a render was created from an asset.

    :param hook: The hook that created it.
    :param kind: ``"cut"`` or ``"render"``.
    :param id: The id of the cut or render.
    :param asset_id: The asset.
    :param cut_id: The cut that a render applies, if any.
    """
    read = [resource_uri("asset", asset_id), *([resource_uri("cut", cut_id)] if cut_id else [])]
    report(hook, read=read, written=[resource_uri(kind, id)])


def report(hook: BaseHook, *, read: Iterable[str] = (), written: Iterable[str] = ()) -> None:
    """Report to Airflow's lineage which URIs were read and written. An error is logged as a warning.

    :param hook: The hook that read and wrote.
    :param read: URIs, such as from :func:`resource_uri` and ``storage.asset_uri``.
    :param written: URIs in the same form.
    """
    try:
        add_lineage(hook, read=read, written=written)
    except Exception as error:  # Lineage readers are plugins of other authors.
        _log.warning("Reporting to Airflow's lineage failed; the task is not affected: %s", error)


def add_lineage(hook: BaseHook, *, read: Iterable[str], written: Iterable[str]) -> None:
    """Add to Airflow's lineage collector what was read and written, if a plugin reads it.

    :param hook: The hook that read and wrote.
    :param read: URIs of Airflow assets.
    :param written: URIs in the same form.
    """
    # Airflow also has a collector that nobody reads, but creating one imports a part of every provider: 1.1 s on 3.0.
    if not compat.is_lineage_read():
        return
    collector = compat.get_hook_lineage_collector()
    for direction, uris in (("input", read), ("output", written)):
        # Airflow 2 calls them datasets.
        add = getattr(collector, f"add_{direction}_asset", None) or getattr(collector, f"add_{direction}_dataset")
        for uri in uris:
            add(context=hook, uri=uri)
