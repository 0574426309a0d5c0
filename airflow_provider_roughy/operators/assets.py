"""The operator that deletes an asset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import BaseOperator
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.observability.outlets import announce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_roughy.compat import Context


class RoughyDeleteAssetOperator(BaseOperator):
    """Deletes an asset and everything derived from it (cuts, subtitles, renders), at once and permanently.

    Running it twice is harmless, so it can be a teardown::

        RoughyDeleteAssetOperator(task_id="delete", asset_id=upload.output).as_teardown(setups=upload)

    The result is ``{"asset_id": ..., "deleted": bool}``; ``deleted`` is false if there was nothing left to delete.

    :param asset_id: The asset. (templated)
    :param missing_ok: Whether to succeed if there is no such asset; otherwise the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyNotFoundError`.
    :param roughy_conn_id: The Airflow connection. (templated)
    """

    template_fields: Sequence[str] = ("asset_id", "roughy_conn_id")
    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        asset_id: str,
        missing_ok: bool = True,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.asset_id = asset_id
        self.missing_ok = missing_ok
        self.roughy_conn_id = roughy_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Delete the asset."""
        with RoughyHook(self.roughy_conn_id) as hook:
            deleted = hook.delete_asset(self.asset_id, missing_ok=self.missing_ok)
        self.log.info("Deleted asset %s" if deleted else "Asset %s was deleted already", self.asset_id)
        announce(self, context, [], {"state": "deleted" if deleted else "gone", "asset_id": self.asset_id})
        return {"asset_id": self.asset_id, "deleted": deleted}
