"""The operator that renders an asset, whole or by a cut of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.exceptions import RoughyError
from airflow_provider_roughy.lifecycle import RENDER
from airflow_provider_roughy.operators.derived import DerivedResourceOperator
from airflow_provider_roughy.polling import others_wait_for
from airflow_provider_roughy.triggers import RoughyRenderTrigger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_roughy.api import RoughyRender
    from airflow_provider_roughy.polling import ResourcePoller
    from airflow_provider_roughy.triggers import RoughyTrigger


class RoughyRenderOperator(DerivedResourceOperator):
    """Renders an asset, whole or by a cut of it, and returns the render's id, which ``RoughyDownloadOperator`` takes.

    Renders cost nothing. For the same request, Roughy returns the same render, so a retry, a cleared task and a task
    whose worker was killed continue with it. A render that has failed fails the task with
    :class:`~airflow_provider_roughy.exceptions.RoughyRenderFailedError` and uses no retry, as a retry would find the
    same render.

    If the asset is not ready, the task waits for it first, at least as long as Roughy's ``Retry-After`` says.
    With ``deferrable=True`` the task waits in the triggerer, where all waiters of a connection share one poll.
    The task does not wait for a cut that is not completed; it fails with
    :class:`~airflow_provider_roughy.exceptions.RoughyCutNotReadyError`.

    The result is the render's id in every mode::

        output = {"format": "mp4", "resolution": "1080p"}
        render = RoughyRenderOperator(task_id="render", asset_id=upload.output, cut_id=cut.output, output=output)

    :param asset_id: The asset, e.g. the output of ``RoughyCreateUploadOperator``. (templated)
    :param output: What to make, in the API's own words: ``format`` (``mp4``, ``mov``, ``m4a``, ``mp3``) and, if wanted,
        ``resolution`` (``720p``, ``1080p``, ``4k``), ``video_bitrate`` (Mbps) and ``audio_bitrate`` (kbps). Roughy
        refuses values that it does not know. (templated)
    :param cut_id: A completed cut of this asset; by default the whole asset is rendered. (templated)
    :param wait_for_completion: Whether to wait until the render is completed; otherwise its id is returned at once, for
        :class:`~airflow_provider_roughy.sensors.RoughyRenderSensor`. The task always waits for an asset that is not
        ready.
    :param on_pending_payment: What to do about an asset that the credits do not cover: ``"fail"`` raises
        :class:`~airflow_provider_roughy.exceptions.RoughyPaymentRequiredError`; ``"skip"`` skips the task; ``"return"``
        succeeds and returns ``None``, as there is no render; ``"wait"`` continues to wait, as Roughy makes the asset
        ready automatically after a top-up.
    :param poll_interval: Seconds, or a ``timedelta``, between two polls.
    :param timeout: Seconds, or a ``timedelta``, to wait for the asset and the render together; by default Airflow's
        ``[sensors] default_timeout``. After that the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError` and uses no retry. Airflow's
        ``execution_timeout`` bounds the wait as well, in the triggerer too.
    :param cancel_on_kill: Whether to cancel the render when the task is killed on its worker, is marked as failed or as
        a success while it waits in the triggerer, or times out. Tasks with the same output of the same asset wait for
        the same render. The operator does not cancel a render that another task in the same process waits for (with
        ``deferrable=True``: in the same triggerer). It cannot know of tasks on other workers or in other triggerers,
        which would fail: leave it off if several tasks may create the same render. Roughy does not document whether a
        cancelled render can be created again: leave it off if tasks are retried.
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
        """Create the render."""
        return self.hook.create_render(self.asset_id, self.render_output, self.cut_id)

    def give_up(self, id: str | None) -> None:
        """Cancel the render if ``cancel_on_kill`` is set."""
        if not self.cancel_on_kill:
            return
        render_id, what = id, f"render {id}" if id else f"the render of asset {self.asset_id}"
        try:
            with self.hook:
                # If the id is lost, the same request finds the render.
                render_id = render_id or self.make().id
                if others_wait_for(RENDER, render_id, than=self._waiting_for):
                    self.log.info("Keeping render %s: another task of this process waits for it", render_id)
                    return
                cancelled = self.hook.cancel_render(render_id)
        except RoughyError as error:
            self.log.warning("Cancelling %s failed; Roughy continues with it: %s", what, error)
        else:
            self.log.info("Cancelled render %s" if cancelled else "Render %s had ended already", render_id)

    def _trigger_of(self, poller: ResourcePoller, **options: Any) -> RoughyTrigger:
        if poller.kind is RENDER:
            return RoughyRenderTrigger(render_id=poller.id, cancel_on_kill=self.cancel_on_kill, **options)
        return super()._trigger_of(poller, **options)
