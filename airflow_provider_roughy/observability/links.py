"""An extra link from a task in Airflow's UI to the page of its asset, at the URL in ``[roughy] asset_link``.

Roughy documents no such page. Without the setting, tasks have no link, and this module does nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow_provider_roughy.compat import BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import BaseOperator, Context

#: The XCom with the URL, which a task pushes before it waits.
_XCOM_KEY = "roughy_asset_link"


class RoughyAssetLink(BaseOperatorLink):
    """The button "Roughy asset" of a task instance."""

    name = "Roughy asset"

    @property
    def xcom_key(self) -> str:
        """The XCom from which Airflow 3 reads the URL."""
        return _XCOM_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: object) -> str:
        """Return the URL, or ``""`` if there is none.

        Airflow 2 calls this in the webserver, Airflow 3 on the worker each time that the task ends or defers.

        :param operator: The task.
        :param ti_key: Identifies the task instance.
        """
        from airflow_provider_roughy.compat import XCom

        return str(XCom.get_value(key=_XCOM_KEY, ti_key=ti_key) or "")


def asset_links() -> tuple[BaseOperatorLink, ...]:
    """Return the ``operator_extra_links`` of a class whose tasks concern an asset; empty without ``asset_link``."""
    return (RoughyAssetLink(),) if _template() else ()


def show_asset(context: Context, asset_id: str) -> None:
    """Push the URL of an asset's page as an XCom of the running task.

    The URL holds no secret: everybody who may see the task sees it.

    :param context: The context of the task.
    :param asset_id: The asset. A value that is not text is ignored, because the task itself reports it.
    """
    if isinstance(asset_id, str) and (template := _template()):
        context["ti"].xcom_push(key=_XCOM_KEY, value=template.replace("{asset_id}", quote(asset_id, safe="")))


def _template() -> str | None:
    template = conf.get("roughy", "asset_link", fallback="")
    # Only http and https, so that a `javascript:` URL is not possible.
    return template if re.fullmatch(r"https?://[!-~]*\{asset_id\}[!-~]*", template) else None
