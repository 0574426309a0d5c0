"""Extra links from a task in Airflow's UI, at addresses that Airflow's configuration has templates of.

=================== ===================================================================================================
``[roughy]``        The link
=================== ===================================================================================================
``asset_link``      from a task to the page of its asset. Roughy documents no such page
``report_link``     from a batch to its report. A browser cannot open ``s3://…``, so the template says which web server
                    shows the bucket or the folder
=================== ===================================================================================================

Without a setting, tasks have no such link, and this module does nothing.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from airflow_provider_roughy.compat import BaseOperatorLink, conf
from airflow_provider_roughy.transfer.storage import as_text, canonical_uri, local_path

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import BaseOperator, Context

#: The XCom with the URL, which a task pushes before it waits.
_XCOM_KEY = "roughy_asset_link"
#: The XCom with the URL of a report, which a task pushes at its end.
_REPORT_XCOM_KEY = "roughy_report_link"


class _PushedLink(BaseOperatorLink):
    """A link to a URL that the task has pushed as an XCom."""

    _key: ClassVar[str]

    @property
    def xcom_key(self) -> str:
        """The XCom from which Airflow 3 reads the URL."""
        return self._key

    def get_link(self, operator: BaseOperator, *, ti_key: object) -> str:
        """Return the URL, or ``""`` if there is none.

        Airflow 2 calls this in the webserver, Airflow 3 on the worker each time that the task ends or defers.

        :param operator: The task.
        :param ti_key: Identifies the task instance.
        """
        from airflow_provider_roughy.compat import XCom

        return str(XCom.get_value(key=self._key, ti_key=ti_key) or "")


class RoughyAssetLink(_PushedLink):
    """The button "Roughy asset" of a task instance."""

    name = "Roughy asset"
    _key = _XCOM_KEY


class RoughyReportLink(_PushedLink):
    """The button "Roughy report" of a task instance."""

    name = "Roughy report"
    _key = _REPORT_XCOM_KEY


def asset_links() -> tuple[BaseOperatorLink, ...]:
    """Return the ``operator_extra_links`` of a class whose tasks concern an asset; empty without ``asset_link``."""
    return (RoughyAssetLink(),) if _template("asset_link", "asset_id") else ()


def report_links() -> tuple[BaseOperatorLink, ...]:
    """Return the ``operator_extra_links`` of a class whose tasks write a report; empty without ``report_link``."""
    return (RoughyReportLink(),) if _template("report_link", "path|key") else ()


def show_asset(context: Context, asset_id: str) -> None:
    """Push the URL of an asset's page as an XCom of the running task.

    The URL holds no secret: everybody who may see the task sees it.

    :param context: The context of the task.
    :param asset_id: The asset. A value that is not text is ignored, because the task itself reports it.
    """
    if isinstance(asset_id, str) and (template := _template("asset_link", "asset_id")):
        context["ti"].xcom_push(key=_XCOM_KEY, value=template.replace("{asset_id}", quote(asset_id, safe="")))


def report_url(page: str) -> str | None:
    """Return the address at which a browser opens the page of a report; ``None`` without ``report_link``.

    :param page: The path or the URI of the page.
    """
    template = _template("report_link", "path|key")
    if template is None:
        return None
    path = local_path(page)
    place = canonical_uri(page).partition("://")[2] if path is None else os.path.abspath(path).lstrip("/")
    bucket, _, key = place.partition("/")
    values = {"path": place, "bucket": bucket, "key": key}
    return re.sub(r"\{(path|bucket|key)\}", lambda found: quote(as_text(values[found[1]]), safe="/"), template)


def show_report(ti: Any, url: str) -> None:
    """Push the address of a report as an XCom of the running task.

    :param ti: The task instance.
    :param url: The address. It holds no secret: everybody who may see the task sees it.
    """
    ti.xcom_push(key=_REPORT_XCOM_KEY, value=url)


def _template(option: str, names: str) -> str | None:
    """Return an option that is the address of a page with one of some names in it; ``None`` if it is not.

    :param option: The option.
    :param names: The names, separated by ``|``.
    """
    template = conf.get("roughy", option, fallback="")
    # Only http and https, so that a `javascript:` URL is not possible.
    return template if re.fullmatch(rf"https?://[!-~]*\{{({names})\}}[!-~]*", template) else None
