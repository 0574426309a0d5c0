"""The operator that downloads an asset's original or a finished render."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.observability.outlets import announce_file
from airflow_provider_roughy.operators.interruptible import InterruptibleOperator
from airflow_provider_roughy.transfer.progress import Progress
from airflow_provider_roughy.transfer.target import check_overwrite

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from airflow_provider_roughy.compat import Context, ObjectStoragePath
    from airflow_provider_roughy.transfer.target import Overwrite


class RoughyDownloadOperator(InterruptibleOperator):
    """Downloads an asset's original or a finished render, and returns the target's URI.

    The file is written completely, with the length that Roughy names, or not at all; a file that existed before stays
    until then. The operator streams in constant memory and resumes after a broken connection, a timeout, a 5xx or a
    429; it requests a fresh link if one expires. A later try of the task starts from the beginning. The API key never
    goes to the storage that the bytes come from.

    An asset or a render that is not ready fails with
    :class:`~airflow_provider_roughy.exceptions.RoughyNotReadyError`, which a retry may fix: put
    :class:`~airflow_provider_roughy.sensors.RoughyAssetSensor` before it, or take the id from an operator that waits.
    One that failed or is not paid for fails without a retry, and so does a target that cannot be written. A full disk
    and a storage that is down are retried.

    To download many, each file named by its id::

        RoughyDownloadOperator.partial(task_id="download", target="s3://bucket/cut/").expand(render_id=render.output)

    A worker that is killed outright (SIGKILL) leaves nothing under the target's name. On a local disk its hidden
    unfinished file (``.roughy-*.part``) is removed by the next download into the folder; on SFTP it stays. An
    unfinished multipart upload stays at S3 until a lifecycle rule of the bucket removes it.

    Outlets announce the file if it was written. If it was there already, an ``AssetAlias`` has no event, and the extra
    of an ``Asset`` says ``"state": "unchanged"``.

    :param target: Where the file goes: a local path, a URI such as ``s3://bucket/key`` that Airflow's object storage
        knows, or an ``ObjectStoragePath``. Its folders are created. A target that ends with a slash, or that exists as
        a folder, is a folder. A file in the root folder and a part that is ``None`` are refused, as a template has
        rendered to nothing then. (templated)
    :param asset_id: The asset whose original is downloaded. Give this or ``render_id``. (templated)
    :param render_id: The render. (templated)
    :param target_conn_id: The Airflow connection of the target's storage. (templated)
    :param overwrite: What to do about a file that exists: ``"replace"`` it; ``"skip"`` the download if it has the size
        that Roughy names, and replace it otherwise; or ``"fail"`` if it has another size, which uses no retry.
        A file of the same size counts as written by an earlier try of the task, so that retries succeed in every case.
        With ``"fail"``, a file that appears during the download is not replaced either, if its content differs.
    :param roughy_conn_id: The Airflow connection. (templated)
    """

    template_fields: Sequence[str] = ("target", "asset_id", "render_id", "target_conn_id", "roughy_conn_id")
    ui_color = "#e4f0ef"

    def __init__(
        self,
        *,
        target: str | os.PathLike[str] | ObjectStoragePath,
        asset_id: str | None = None,
        render_id: str | None = None,
        target_conn_id: str | None = None,
        overwrite: Overwrite = "replace",
        roughy_conn_id: str = RoughyHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_overwrite(overwrite)
        if asset_id is None and render_id is None:
            raise ValueError("RoughyDownloadOperator needs `asset_id` or `render_id`, and neither is given")
        if asset_id is not None and render_id is not None:
            raise ValueError("RoughyDownloadOperator takes `asset_id` or `render_id`, not both")
        self.target = target
        self.asset_id = asset_id
        self.render_id = render_id
        self.target_conn_id = target_conn_id
        self.overwrite = overwrite
        self.roughy_conn_id = roughy_conn_id

    def execute(self, context: Context) -> str:
        """Download the file.

        :returns: The target's URI.
        """
        progress = Progress(self.log, f"Asset {self.asset_id}" if self.asset_id else f"Render {self.render_id}")
        with self._interrupt, RoughyHook(self.roughy_conn_id) as hook:
            downloaded = hook.fetch(
                self.target,
                asset_id=self.asset_id,
                render_id=self.render_id,
                target_conn_id=self.target_conn_id,
                overwrite=self.overwrite,
                on_progress=progress,
            )
        announce_file(
            self,
            context,
            downloaded.uri,
            written=downloaded.written,
            asset_id=self.asset_id,
            render_id=self.render_id,
        )
        return downloaded.uri
