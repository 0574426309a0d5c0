"""A link from a task in Airflow's UI to its asset, wherever people look at that: ``[roughy] asset_link``.

Roughy documents no address of such a page, so that without this setting there is no link, and nothing is done for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow_provider_roughy.compat import BaseOperatorLink, conf

if TYPE_CHECKING:
    from airflow_provider_roughy.compat import BaseOperator, Context

#: Where the link of a task is kept, from before it waits.
_XCOM_KEY = "roughy_asset_link"


class RoughyAssetLink(BaseOperatorLink):
    """The button."""

    name = "Roughy asset"

    @property
    def xcom_key(self) -> str:
        """Where Airflow 3 looks for the link."""
        return _XCOM_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: object) -> str:
        """Return the link: Airflow 2 asks in its webserver, Airflow 3 on the worker, after each part of a task."""
        from airflow_provider_roughy.compat import XCom

        return str(XCom.get_value(key=_XCOM_KEY, ti_key=ti_key) or "")


def asset_links() -> tuple[BaseOperatorLink, ...]:
    """Return the links that a task about an asset has, as Airflow asks of a class: none, unless they are wanted."""
    return (RoughyAssetLink(),) if _template() else ()


def show_asset(context: Context, asset_id: str) -> None:
    """Let a task link to its asset from now on. It holds no secret: anybody who sees the task sees it.

    :param context: Airflow's.
    :param asset_id: The asset.
    """
    # What another task has returned may be no id, which this one says by itself.
    if isinstance(asset_id, str) and (template := _template()):
        context["ti"].xcom_push(key=_XCOM_KEY, value=template.replace("{asset_id}", quote(asset_id, safe="")))


def _template() -> str | None:
    template = conf.get("roughy", "asset_link", fallback="")
    # No javascript: or the like.
    return template if re.fullmatch(r"https?://[!-~]*\{asset_id\}[!-~]*", template) else None
