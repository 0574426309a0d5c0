"""The sensors, which wait until a resource of Roughy is in a final state.

Each adds ids and details to the events of its ``outlets`` when it succeeds, for the DAGs that these events start.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow_provider_roughy.arguments import as_seconds
from airflow_provider_roughy.compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.instruments import WAIT_DURATION, WAITS
from airflow_provider_roughy.lifecycle import (
    ASSET,
    CUT,
    RENDER,
    Kind,
    OnPendingPayment,
    Verdict,
    check_on_pending_payment,
)
from airflow_provider_roughy.observability import lineage
from airflow_provider_roughy.observability.links import asset_links, show_asset
from airflow_provider_roughy.observability.outlets import announce_verdict
from airflow_provider_roughy.polling import ResourcePoller, waiting
from airflow_provider_roughy.triggers import RoughyAssetTrigger, RoughyTrigger, deferral_timeout_verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow_provider_roughy.compat import Context


class _RoughySensor(BaseSensorOperator):
    """The base of the sensors of all kinds. The attribute ``{kind}_id`` holds the resource's id."""

    kind: ClassVar[Kind]
    ui_color = "#e4f0ef"

    #: Only assets can be unpaid; their sensor sets it.
    on_pending_payment: OnPendingPayment = "fail"

    def __init__(
        self,
        *,
        roughy_conn_id: str = RoughyHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        as_seconds("poke_interval", self.poke_interval)
        self.roughy_conn_id = roughy_conn_id
        self.deferrable = deferrable

    @cached_property
    def hook(self) -> RoughyHook:
        """The hook of this task."""
        return RoughyHook(self.roughy_conn_id)

    @cached_property
    def _poller(self) -> ResourcePoller:
        id = getattr(self, f"{self.kind.name}_id")
        return ResourcePoller(self.kind, id, on_pending_payment=self.on_pending_payment, log=self.log)

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once."""
        with self._skipping():
            verdict = self._poller.poll(self.hook, within=max(self.timeout, 1.0))
        return PokeReturnValue(is_done=False) if verdict is None else PokeReturnValue(True, self._end(context, verdict))

    def execute(self, context: Context) -> dict[str, Any]:
        """Wait, here or in the triggerer.

        :returns: The resource's fields, without its signed URLs.
        """
        with self.hook:
            if not self.deferrable:
                return self._wait_here(context)
            deadline = time.time() + self.timeout
            polled = self.poke(context)
            if polled.is_done:
                return cast("dict[str, Any]", polled.xcom_value)
        self._make_trigger(
            roughy_conn_id=self.roughy_conn_id,
            poll_interval=self.poke_interval,
            deadline=deadline,
            not_before=self._poller.not_before,
        ).defer(self)

    def _wait_here(self, context: Context) -> dict[str, Any]:
        began = time.monotonic()
        try:
            with waiting([self._poller]):
                result: dict[str, Any] = super().execute(context)
            return result
        except AirflowSensorTimeout:
            # Airflow's own error names neither the resource nor the last poll, and ignores never_fail.
            verdict = self._poller.timed_out()
            WAITS.add(kind=verdict.kind, outcome=verdict.outcome.name.lower())
        finally:
            # In reschedule mode this is one poke.
            if not self.reschedule:
                WAIT_DURATION.record(time.monotonic() - began, kind=self.kind.name)
        return self._end(context, verdict)

    def _get_next_poke_interval(self, started_at: Any, run_duration: Callable[[], float], *args: Any) -> float:
        """Return the seconds until the next poll: at least Roughy's ``Retry-After``, within ``timeout``."""
        interval: float = super()._get_next_poke_interval(started_at, run_duration, *args)
        return max(interval, min(self._poller.not_before - time.time(), self.timeout - run_duration()))

    def _make_trigger(self, **options: Any) -> RoughyTrigger:
        return RoughyTrigger(kind=self.kind.name, id=self._poller.id, **options)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the wait in the triggerer; fail if Airflow ended the wait without a verdict."""
        verdict = deferral_timeout_verdict(self.kind, next_method, next_kwargs, id=self._poller.id)
        if verdict is not None:
            return self._end(context, verdict)
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSkipException as skipped:
            # The message of newer versions of Airflow is only that soft_fail is set; the cause has the error.
            reason = skipped.__cause__ or skipped
        raise AirflowSkipException(str(reason))

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Continue after the wait in the triggerer, with its verdict.

        :returns: The resource's fields, without its signed URLs.
        """
        verdict = Verdict.from_event(event)
        result = self._end(context, verdict)
        self.log.info("%s %s is %s", self.kind.name.capitalize(), verdict.id, verdict.state)
        return result

    def _end(self, context: Context, verdict: Verdict) -> dict[str, Any]:
        """Return the resource's fields, or raise the error of the verdict."""
        with self._skipping():
            verdict.raise_for_failure(self.on_pending_payment)
        lineage.report(self.hook, read=[lineage.resource_uri(verdict.kind, verdict.id)])
        announce_verdict(self, context, verdict)
        return verdict.resource

    @contextmanager
    def _skipping(self) -> Iterator[None]:
        """Skip on errors if ``soft_fail`` or ``never_fail`` is set; Airflow itself treats them differently by mode."""
        try:
            yield
        except AirflowSkipException:
            raise
        except Exception as error:
            if self.never_fail or (self.soft_fail and isinstance(error, (AirflowFailException, AirflowSensorTimeout))):
                raise AirflowSkipException(str(error)) from error
            raise


class RoughyAssetSensor(_RoughySensor):
    """Waits until an asset is ready, failed or unpaid.

    ==================== =====================================================================================
    The asset is         The task
    ==================== =====================================================================================
    ``ready``            succeeds
    ``failed``           fails with :class:`~airflow_provider_roughy.exceptions.RoughyAssetFailedError`, which
                         carries Roughy's ``error_code`` and ``error_message`` and uses no retry
    ``pending_payment``  does what ``on_pending_payment`` says
    anything else        waits until ``timeout``
    ==================== =====================================================================================

    A poll that fails with a network fault, a 5xx or a 429 does not end the wait; a wrong key or a missing asset does.
    The result is the same in poke, reschedule and deferrable mode: the asset's fields as a dict, without its signed
    URLs. With ``deferrable=True`` the sensor polls once on the worker. If the state is not final, it waits in the
    triggerer, where it takes no worker slot and all waiters of a connection share one poll.

    :param asset_id: The asset, e.g. the output of ``RoughyCreateUploadOperator``. (templated)
    :param on_pending_payment: What to do about an asset that is uploaded and measured, but that the credits do not
        cover: ``"fail"`` raises :class:`~airflow_provider_roughy.exceptions.RoughyPaymentRequiredError`; ``"skip"``
        skips the task; ``"return"`` succeeds, with ``state`` ``"pending_payment"`` in the result, for a branch to
        read; ``"wait"`` continues to wait, as Roughy makes the asset ready automatically after a top-up.
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which ignores ``mode``.
    :param poke_interval: Seconds between two polls, in every mode.
    :param timeout: Seconds, from the start of this try, after which the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError`, an ``AirflowSensorTimeout``. In deferrable
        mode a restart of the triggerer does not extend it; if no triggerer runs, Airflow ends the wait two
        ``poke_interval`` and a minute later. Airflow's ``execution_timeout`` bounds only the time on a worker, which
        includes the wait in poke mode (and on Airflow 2 the wait in the triggerer).
    :param soft_fail: Whether to skip the task where it would fail without a retry: asset failed or unpaid, wrong key,
        no such asset, timeout.
    :param never_fail: Whether to skip the task on every error, also on those that a retry may fix, such as a missing
        connection.
    """

    kind = ASSET
    template_fields: Sequence[str] = ("asset_id", "roughy_conn_id")
    operator_extra_links = asset_links()

    def __init__(self, *, asset_id: str, on_pending_payment: OnPendingPayment = "fail", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_on_pending_payment(on_pending_payment)
        self.asset_id = asset_id
        self.on_pending_payment = on_pending_payment

    def execute(self, context: Context) -> dict[str, Any]:
        """Wait, here or in the triggerer.

        :returns: The asset's fields, without its signed URLs.
        """
        show_asset(context, self.asset_id)
        return super().execute(context)

    def _make_trigger(self, **options: Any) -> RoughyTrigger:
        return RoughyAssetTrigger(asset_id=self._poller.id, on_pending_payment=self.on_pending_payment, **options)


class RoughyCutSensor(_RoughySensor):
    """Waits until a cut is completed.

    ==================== =====================================================================================
    The cut is           The task
    ==================== =====================================================================================
    ``completed``        succeeds
    ``failed``           fails with :class:`~airflow_provider_roughy.exceptions.RoughyCutFailedError`, which
                         carries Roughy's ``error_code`` and ``error_message`` and uses no retry
    anything else        waits until ``timeout``
    ==================== =====================================================================================

    It waits as :class:`RoughyAssetSensor` does, and the result is likewise the same in poke, reschedule and deferrable
    mode: the cut's fields as a dict.

    :param cut_id: The cut, e.g. the output of ``RoughyCutOperator``. (templated)
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which ignores ``mode``.
    :param poke_interval: Seconds between two polls, in every mode.
    :param timeout: Seconds, from the start of this try, after which the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError`, as in :class:`RoughyAssetSensor`.
    :param soft_fail: Whether to skip the task where it would fail without a retry: cut failed, wrong key, no such
        cut, timeout.
    :param never_fail: Whether to skip the task on every error, also on those that a retry may fix, such as a missing
        connection.
    """

    kind = CUT
    template_fields: Sequence[str] = ("cut_id", "roughy_conn_id")

    def __init__(self, *, cut_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cut_id = cut_id


class RoughyRenderSensor(_RoughySensor):
    """Waits until a render is completed.

    ==================== =====================================================================================
    The render is        The task
    ==================== =====================================================================================
    ``completed``        succeeds
    ``failed``           fails with :class:`~airflow_provider_roughy.exceptions.RoughyRenderFailedError`, which
                         carries Roughy's ``error_code`` and ``error_message`` and uses no retry
    anything else        waits until ``timeout``
    ==================== =====================================================================================

    It waits as :class:`RoughyAssetSensor` does, and the result is likewise the same in poke, reschedule and deferrable
    mode: the render's fields as a dict, without its signed URL.

    :param render_id: The render, e.g. the output of ``RoughyRenderOperator``. (templated)
    :param roughy_conn_id: The Airflow connection. (templated)
    :param deferrable: Whether to wait in the triggerer, which ignores ``mode``.
    :param poke_interval: Seconds between two polls, in every mode.
    :param timeout: Seconds, from the start of this try, after which the task fails with
        :class:`~airflow_provider_roughy.exceptions.RoughyTimeoutError`, as in :class:`RoughyAssetSensor`.
    :param soft_fail: Whether to skip the task where it would fail without a retry: render failed, wrong key, no such
        render, timeout.
    :param never_fail: Whether to skip the task on every error, also on those that a retry may fix, such as a missing
        connection.
    """

    kind = RENDER
    template_fields: Sequence[str] = ("render_id", "roughy_conn_id")

    def __init__(self, *, render_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.render_id = render_id
