"""The operator that renders an asset, whole or by a cut of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.lifecycle import RENDER
from airflow_provider_roughy.operators.making import MakingOperator
from airflow_provider_roughy.triggers import RoughyRenderTrigger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_roughy.api import RoughyRender
    from airflow_provider_roughy.polling import Watch
    from airflow_provider_roughy.triggers import RoughyTrigger


class RoughyRenderOperator(MakingOperator):
    """Renders an asset, whole or by a cut of it, and returns the render's id, which ``RoughyDownloadOperator`` takes.

    Renders cost nothing, and the same request finds the same render: a retry, a cleared task and one whose worker was
    killed all go on with the render that there is. So does a render that has failed, which a retry would not mend: it
    fails with :class:`~airflow_provider_roughy.exceptions.RoughyRenderFailedError` and burns no retries.

    While the asset is not ready, the task waits for that first, and asks no sooner than Roughy's ``Retry-After`` says.
    With ``deferrable=True`` it does all its waiting in the triggerer, on the one poll that all share who wait on one
    connection.
    A cut that is not completed is not waited for:
    :class:`~airflow_provider_roughy.exceptions.RoughyCutNotReadyError`.

    The result is the render's id in every mode::

        output = {"format": "mp4", "resolution": "1080p"}
        render = RoughyRenderOperator(task_id="render", asset_id=upload.output, cut_id=cut.output, output=output)

    :param asset_id: The asset, e.g. the output of ``RoughyCreateUploadOperator``. (templated)
    :param output: What to make, in the API's own words: ``format`` (``mp4``, ``mov``, ``m4a``, ``mp3``) and, if wanted,
        ``resolution`` (``720p``, ``1080p``, ``4k``), ``video_bitrate`` (Mbps) and ``audio_bitrate`` (kbps). What Roughy
        does not know, it refuses. (templated)
    :param cut_id: A completed cut of this asset; by default the whole of it is rendered. (templated)
    :param wait_for_completion: Whether to wait until the render is completed; otherwise its id is returned at once, for
        :class:`~airflow_provider_roughy.sensors.RoughyRenderSensor`. An asset that is not ready is waited for anyway.
    :param on_pending_payment: What to do about an asset that the credits did not cover: ``"fail"`` raises
        :class:`~airflow_provider_roughy.exceptions.RoughyPaymentRequiredError`; ``"skip"`` skips the task; ``"return"``
        succeeds and returns ``None``, as there is no render; ``"wait"`` waits on, because Roughy makes the asset ready
        by itself after a top-up.
    :param poll_interval: Seconds, or a ``timedelta``, between two looks.
    :param timeout: Seconds, or a ``timedelta``, to wait in all, for the asset and for the render; by default Airflow's
        ``[sensors] default_timeout``. Then the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError` and burns no retries. Airflow's
        ``execution_timeout`` bounds it as well, in the triggerer too.
    :param cancel_on_kill: Whether to cancel the render when nobody waits for it any longer: the task is killed on its
        worker, marked as failed or as a success while it waits in the triggerer, or times out. Roughy does not say
        whether a later start can have a cancelled render made again, so leave it off where tasks are retried.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot.
    """

    kind = RENDER
    template_fields: Sequence[str] = ("asset_id", "render_output", "cut_id", "roughy_conn_id")
    template_fields_renderers = {"render_output": "json"}  # noqa: RUF012 - as Airflow declares it

    def __init__(
        self,
        *,
        asset_id: str,
        output: dict[str, Any],
        cut_id: str | None = None,
        cancel_on_kill: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.asset_id = asset_id
        # Every operator's own ``output`` is its XCom.
        self.render_output = output
        self.cut_id = cut_id
        self.cancel_on_kill = cancel_on_kill

    def make(self) -> RoughyRender:
        """Ask for the render."""
        return self.hook.create_render(self.asset_id, self.render_output, self.cut_id)

    def give_up(self, id: str | None) -> None:
        """Cancel the render, if that is wanted."""
        if not self.cancel_on_kill:
            return
        try:
            with self.hook:
                # The same request finds the one that Airflow has forgotten.
                render_id = id or self.make().id
                cancelled = self.hook.cancel_render(render_id)
        except RoughyError as error:
            self.log.warning("The render could not be cancelled: %s", error)
        else:
            self.log.info("Render %s %s", render_id, "is cancelled" if cancelled else "had ended already")

    def _trigger_of(self, watch: Watch, **options: Any) -> RoughyTrigger:
        if watch.kind is RENDER:
            return RoughyRenderTrigger(render_id=watch.id, cancel_on_kill=self.cancel_on_kill, **options)
        return super()._trigger_of(watch, **options)
