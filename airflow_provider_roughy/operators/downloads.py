"""The operator that downloads an asset's original or a finished render."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.compat import BaseOperator
from airflow_provider_roughy.exceptions import RoughyDownloadError
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.outlets import announce_file
from airflow_provider_roughy.progress import Progress
from airflow_provider_roughy.target import check_overwrite

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from airflow_provider_roughy.compat import Context, ObjectStoragePath
    from airflow_provider_roughy.target import Overwrite


class RoughyDownloadOperator(BaseOperator):
    """Downloads an asset's original or a finished render, and returns the target's URI.

    The file appears whole or not at all, and as long as Roughy says that it is; what was there before stays until then.
    It is streamed in constant memory, and goes on where it stopped after a broken connection, a timeout, a 5xx or a
    429; a link that has expired on the way is replaced by a fresh one. A later try of the task starts anew. The API key
    never goes to the storage that the bytes come from.

    What is not ready yet fails with :class:`~airflow_provider_roughy.exceptions.RoughyNotReadyError`, and may be
    retried: put :class:`~airflow_provider_roughy.sensors.RoughyAssetSensor` before it, or take the id from an operator
    that waits. What failed, or is not paid for, fails and burns no retries, and so does a target that cannot be
    written; a disk that is full, or a storage that is away, may be retried.

    Many are one line; in a folder each file is named by its id::

        RoughyDownloadOperator.partial(task_id="download", target="s3://bucket/cut/").expand(render_id=render.output)

    A worker that is killed outright (SIGKILL) leaves nothing under the target's name. On a local disk its hidden
    unfinished file is taken over by the next try; an unfinished multipart upload stays at S3 until a lifecycle rule of
    the bucket removes it.

    :param target: Where the file goes: a local path, whose folders are made, a URI such as ``s3://bucket/key`` that
        Airflow's object storage knows, or an ``ObjectStoragePath``. One that ends with a slash is a folder, as is one
        that is there already. (templated)
    :param asset_id: The asset whose original is wanted; or (templated)
    :param render_id: the render. (templated)
    :param target_conn_id: The Airflow connection of the target's storage. (templated)
    :param overwrite: What to do about a file that is there: ``"replace"`` it always; ``"skip"`` the download if it has
        the size that Roughy says, and replace any other; or ``"fail"`` if it has another size, which burns no retries.
        One of the same size counts as written by an earlier try of the task, so that retries succeed in every case.
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
        if (asset_id is None) == (render_id is None):
            raise ValueError("RoughyDownloadOperator needs either asset_id or render_id")
        self.target = target
        self.asset_id = asset_id
        self.render_id = render_id
        self.target_conn_id = target_conn_id
        self.overwrite = overwrite
        self.roughy_conn_id = roughy_conn_id
        self._killed = False

    def execute(self, context: Context) -> str:
        """Download the file.

        :returns: The target's URI.
        """
        progress = Progress(self.log, f"Asset {self.asset_id}" if self.asset_id else f"Render {self.render_id}")

        def on_progress(done: int, total: int) -> None:
            if self._killed:
                raise RoughyDownloadError(f"The task was killed at {done} of {total} bytes", offset=done)
            progress(done, total)

        with RoughyHook(self.roughy_conn_id) as hook:
            uri = hook.download(
                self.target,
                asset_id=self.asset_id,
                render_id=self.render_id,
                target_conn_id=self.target_conn_id,
                overwrite=self.overwrite,
                on_progress=on_progress,
            )
        announce_file(self, context, uri, asset_id=self.asset_id, render_id=self.render_id)
        return uri

    def on_kill(self) -> None:
        """End the download with the next bytes that come, so that nothing of it stays."""
        self._killed = True
