"""What an error means for the outputs of a recording, and for those of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import (
    RoughyApiError,
    RoughyAuthenticationError,
    RoughyFailedError,
    RoughyLedgerError,
    RoughyNotFoundError,
    RoughyTargetExistsError,
    RoughyTimeoutError,
    RoughyUntrustedUrlError,
    RoughyUnusableTargetError,
)
from airflow_provider_roughy.ingest.result import Status
from airflow_provider_roughy.produce.recording import Problem

if TYPE_CHECKING:
    from airflow_provider_roughy.exceptions import RoughyError

#: What to do about unpaid recordings, once for each.
UNPAID = "the credits do not cover it; top up at Roughy within 30 days, then it becomes ready automatically"


def stops_batch(error: RoughyError) -> bool:
    """Return whether every other recording would fail with the same error.

    :param error: The error of one output.
    """
    if isinstance(error, RoughyAuthenticationError):
        # A 403 concerns one resource.
        return error.status != 403
    return isinstance(error, RoughyLedgerError)


def may_concern_all(error: RoughyError) -> bool:
    """Return whether other recordings may fail with the same error: if several in a row do, the batch stops.

    :param error: The error of one output.
    """
    if isinstance(error, RoughyUnusableTargetError):
        # All else is about one name.
        return error.is_forbidden
    return isinstance(error, RoughyUntrustedUrlError) or problem_of(error).retryable


def may_pass(error: RoughyError) -> bool:
    """Return whether a retry of the task may help.

    :param error: The error of one output.
    """
    return not (error.final or isinstance(error, RoughyTimeoutError))


def problem_of(error: RoughyError) -> Problem:
    """Return what an error means for the output it concerns.

    :param error: The error.
    """
    request_id = error.request_id if isinstance(error, (RoughyApiError, RoughyFailedError)) else None
    if isinstance(error, RoughyFailedError):
        # The report says what to do, once for all recordings of a status.
        return Problem(Status.FAILED, error.summary, request_id=request_id)
    if isinstance(error, (RoughyTargetExistsError, RoughyUnusableTargetError)):
        return Problem(Status.REJECTED, str(error))
    if isinstance(error, RoughyNotFoundError):
        return Problem(Status.FAILED, f"Roughy no longer has it: {error}", request_id=request_id)
    if stops_batch(error) or not error.final:
        return Problem(Status.INTERRUPTED, str(error), retryable=may_pass(error), request_id=request_id)
    return Problem(Status.FAILED, str(error), request_id=request_id)
