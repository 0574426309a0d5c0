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
from airflow_provider_roughy.logs import counted
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


def report(
    hook: BaseHook, *, read: Iterable[str] = (), written: Iterable[str] = (), project_id: str | None = None
) -> None:
    """Report to Airflow's lineage which URIs were read and written. An error is logged as a warning.

    Airflow keeps a limited number of URIs (``[lineage] max_assets_per_collector``). If there are more, files are
    reported as the folders that they are in, and resources as their project.

    :param hook: The hook that read and wrote.
    :param read: URIs, such as from :func:`resource_uri` and ``storage.asset_uri``.
    :param written: URIs in the same form.
    :param project_id: The project of the resources; ``None`` if it is not known or they are few.
    """
    try:
        add_lineage(hook, read=read, written=written, project_id=project_id)
    except Exception as error:  # Lineage readers are plugins of other authors.
        _log.warning("Reporting to Airflow's lineage failed; the task is not affected: %s", error)


def add_lineage(hook: BaseHook, *, read: Iterable[str], written: Iterable[str], project_id: str | None = None) -> None:
    """Add to Airflow's lineage collector what was read and written, if a plugin reads it.

    The parameters are those of :func:`report`.
    """
    # Airflow also has a collector that nobody reads, but creating one imports a part of every provider: 1.1 s on 3.0.
    if not compat.is_lineage_read():
        return
    collector = compat.get_hook_lineage_collector()
    limit = compat.lineage_limit()
    for direction, uris in (("input", read), ("output", written)):
        # Airflow 2 calls them datasets.
        add = getattr(collector, f"add_{direction}_asset", None) or getattr(collector, f"add_{direction}_dataset")
        distinct = list(dict.fromkeys(uris))
        if limit is not None:
            room = limit - len(getattr(collector.collected_assets, f"{direction}s"))
            distinct = _reduced(hook, direction, distinct, room=room, project_id=project_id)
        for uri in distinct:
            add(context=hook, uri=uri)


def _reduced(hook: BaseHook, direction: str, uris: list[str], *, room: int, project_id: str | None) -> list[str]:
    """Return folders and projects instead of files and resources if those are too many, and log that.

    :param hook: The hook that read and wrote.
    :param direction: ``"input"`` or ``"output"``.
    :param uris: The URIs, each once.
    :param room: How many more Airflow keeps.
    :param project_id: See :func:`report`.
    """
    if len(uris) <= room:
        return uris
    reduced = uris
    while len(reduced) > room:
        above = list(dict.fromkeys(_above(uri, project_id) for uri in reduced))
        if above == reduced:
            break
        reduced = above
    kept = max(0, min(len(reduced), room))
    hook.log.info(
        "Reporting %s to Airflow's lineage as %s, because Airflow keeps at most %s more for this task; raise [lineage] "
        "max_assets_per_collector to have each%s",
        counted(len(uris), direction),
        "1 folder or project" if kept == 1 else f"{kept:,} folders or projects",
        f"{max(0, room):,}",
        "" if kept == len(reduced) else f". {len(reduced) - kept:,} more are left out",
    )
    return reduced[:kept]


def _above(uri: str, project_id: str | None) -> str:
    """Return the folder of a file, the project of a resource, or the URI itself if nothing is above it."""
    scheme, _, rest = uri.partition("://")
    if scheme == SCHEME:
        return uri if project_id is None else resource_uri("project", project_id)
    authority, slash, path = rest.partition("/")
    folder, slash, _ = path.rstrip("/").rpartition("/")
    if slash:
        return f"{scheme}://{authority}/{folder}"
    # A bucket, or the root folder.
    return f"{scheme}://{authority}" if authority else f"{scheme}:///"
