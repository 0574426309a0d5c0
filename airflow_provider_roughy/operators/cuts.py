"""The operators that cut an asset, and export the cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.lifecycle import CUT
from airflow_provider_roughy.operators.making import MakingOperator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_roughy.api import RoughyCut


class RoughyCutOperator(MakingOperator):
    """Cuts an asset and returns the cut's id, which the export operators and ``RoughyRenderOperator`` take.

    Cuts cost nothing, and the same asset with the same script finds the same cut: a retry, a cleared task and one whose
    worker was killed all go on with the cut that there is. So does a cut that has failed, which a retry would not mend:
    it fails with :class:`~airflow_provider_roughy.exceptions.RoughyCutFailedError` and burns no retries.

    While the asset is not ready, the task waits for that first, and asks no sooner than Roughy's ``Retry-After`` says.
    With ``deferrable=True`` it does all its waiting in the triggerer, on the one poll that all share who wait on one
    connection.

    The result is the cut's id in every mode, so that many are one line::

        cut = RoughyCutOperator.partial(task_id="cut", deferrable=True).expand(asset_id=upload.output)

    :param asset_id: The asset, e.g. the output of ``RoughyCreateUploadOperator``. (templated)
    :param script: What to cut by, up to 100,000 characters; by default Roughy finds that itself. (templated)
    :param wait_for_completion: Whether to wait until the cut is completed; otherwise its id is returned at once, for
        :class:`~airflow_provider_roughy.sensors.RoughyCutSensor`. An asset that is not ready is waited for anyway.
    :param on_pending_payment: What to do about an asset that the credits did not cover: ``"fail"`` raises
        :class:`~airflow_provider_roughy.exceptions.RoughyPaymentRequiredError`; ``"skip"`` skips the task; ``"return"``
        succeeds and returns ``None``, as there is no cut; ``"wait"`` waits on, because Roughy makes the asset ready
        by itself after a top-up.
    :param poll_interval: Seconds, or a ``timedelta``, between two looks.
    :param timeout: Seconds, or a ``timedelta``, to wait in all, for the asset and for the cut; by default Airflow's
        ``[sensors] default_timeout``. Then the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError` and burns no retries. Airflow's
        ``execution_timeout`` bounds it as well, in the triggerer too.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which takes no worker slot.
    """

    kind = CUT
    template_fields: Sequence[str] = ("asset_id", "script", "roughy_conn_id")

    def __init__(self, *, asset_id: str, script: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.asset_id = asset_id
        self.script = script

    def make(self) -> RoughyCut:
        """Ask for the cut."""
        return self.hook.create_cut(self.asset_id, self.script)
