"""What Airflow's assets call the resources of Roughy, and what was read and written, for Airflow's lineage.

A resource is ``roughy://KIND/ID``, such as ``roughy://asset/0198c0de-7f3a-7cc2-b8a4-0123456789ab``: Roughy's word for
its kind, and its id as Roughy spells it. Airflow finds the functions of this grammar by the provider info.

Lineage is a courtesy: nothing here fails a task.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

from airflow_provider_roughy.compat import Asset, add_lineage
from airflow_provider_roughy.storage import asset_uri

if TYPE_CHECKING:
    from collections.abc import Iterable
    from urllib.parse import SplitResult

    from openlineage.client.event_v2 import Dataset

    from airflow_provider_roughy.compat import BaseHook

SCHEME = "roughy"
#: What has a URI.
_KINDS = ("asset", "cut", "render", "project")

_log = logging.getLogger(__name__)


def resource_uri(kind: str, id: str) -> str:
    """Return the URI of a resource.

    :param kind: What it is, by Roughy's name.
    :param id: Which.
    """
    return f"{SCHEME}://{kind}/{id.lower()}"


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Check a URI of a DAG file, and return it in the spelling that :func:`resource_uri` gives it.

    :param uri: As Airflow has split it, without a fragment and without slashes at its end.
    :raises ValueError: If it is none of ours. Airflow 3 calls the DAG file broken, Airflow 2 warns.
    """
    kind, id = uri.netloc.lower(), uri.path.removeprefix("/")
    try:
        canonical = str(UUID(id))
    except ValueError:
        canonical = ""
    if kind not in _KINDS or not canonical or uri.query:
        raise ValueError(
            f"{uri.geturl()!r} is no URI of Roughy: that is {SCHEME}://KIND/ID, with one of {_KINDS} and a UUID"
        )
    return uri._replace(netloc=kind, path=f"/{canonical}")


def create_asset(*, kind: str, id: str, extra: dict[str, Any] | None = None) -> Asset:
    """Return the Airflow asset of a resource.

    :param kind: What it is, by Roughy's name.
    :param id: Which.
    :param extra: What else there is to say.
    """
    return Asset(uri=resource_uri(kind, id), extra=extra)


def convert_asset_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:
    """Return what OpenLineage calls a resource: ``asset/ID`` and the like in the namespace ``roughy``.

    :param asset: The Airflow asset of it.
    :param lineage_context: Who reported it.
    """
    from openlineage.client.event_v2 import Dataset

    return Dataset(namespace=SCHEME, name=asset.uri.removeprefix(f"{SCHEME}://"))


def report_upload(hook: BaseHook, source: str, asset_id: str) -> None:
    """Report that a recording was read, and became an asset.

    :param hook: Who did that.
    :param source: Where the recording is.
    :param asset_id: The asset.
    """
    report(hook, read=[asset_uri(source)], written=[resource_uri("asset", asset_id)])


def report_making(hook: BaseHook, kind: str, id: str, *, asset_id: str, cut_id: str | None = None) -> None:
    """Report that something was made of an asset.

    :param hook: Who had that done.
    :param kind: What was made.
    :param id: Which.
    :param asset_id: The asset.
    :param cut_id: The cut that it follows, if it follows one.
    """
    read = [resource_uri("asset", asset_id), *([resource_uri("cut", cut_id)] if cut_id else [])]
    report(hook, read=read, written=[resource_uri(kind, id)])


def report(hook: BaseHook, *, read: Iterable[str] = (), written: Iterable[str] = ()) -> None:
    """Tell Airflow's lineage what was read and written. It costs next to nothing unless somebody listens.

    :param hook: Who did.
    :param read: URIs, as of :func:`resource_uri` and :func:`~airflow_provider_roughy.storage.asset_uri`.
    :param written: Likewise.
    """
    try:
        add_lineage(hook, read=read, written=written)
    except Exception as error:  # A reader is somebody else's plugin.
        _log.warning("Airflow's lineage does not take what was read and written: %s", error)
