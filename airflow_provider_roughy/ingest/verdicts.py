"""What Roughy's verdict on an asset means for its recording."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from airflow_provider_roughy.exceptions import RoughyFailedError, RoughyNotFoundError
from airflow_provider_roughy.ingest.result import RecordingResult, Status
from airflow_provider_roughy.ledger.entries import Progress, utc_now
from airflow_provider_roughy.lifecycle import Outcome
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.probe import credits_for

if TYPE_CHECKING:
    from airflow_provider_roughy.ingest.upload import UploadItem
    from airflow_provider_roughy.lifecycle import Verdict

#: How long Roughy keeps an unpaid recording (API page "List assets").
_KEPT_UNPAID = timedelta(days=30)


def result_of_verdict(item: UploadItem, verdict: Verdict) -> RecordingResult:
    """Turn a final verdict on an asset into the result of its recording.

    :param item: The recording.
    :param verdict: The verdict.
    """
    seconds = duration_of(verdict)
    base = RecordingResult(
        item.name,
        Status.READY,
        asset_id=verdict.id,
        size_bytes=item.size,
        seconds=seconds,
        credits=item.credits if seconds is None else credits_for(seconds),
        request_id=verdict.request_id,
    )
    if verdict.outcome is Outcome.SUCCEEDED:
        return base
    if verdict.outcome is Outcome.PAYMENT_REQUIRED:
        since = (item.version.since if item.version is not None else None) or utc_now()
        until = kept_until(since)
        cost = f"it costs {counted(base.credits, 'credit')}; " if base.credits else ""
        reason = f"{cost}top up at Roughy by {until}, then it becomes ready automatically"
        return replace(base, status=Status.PENDING_PAYMENT, reason=reason, since=since, until=until)
    try:
        verdict.raise_for_failure()
    except RoughyNotFoundError as error:
        was_unpaid = item.version is not None and item.version.state == Progress.PENDING_PAYMENT
        why = "it was not paid for within 30 days, or it was deleted" if was_unpaid else "it was deleted"
        return replace(base, status=Status.FAILED, reason=f"Roughy no longer has the asset: {why}: {error}")
    except RoughyFailedError as error:
        # The batch says what to do, once for all of its recordings.
        return replace(base, status=Status.FAILED, reason=error.summary)
    except Exception as error:
        return replace(base, status=Status.INTERRUPTED, reason=str(error))
    raise AssertionError(f"not a final outcome: {verdict.outcome}")


def kept_until(since: str) -> str:
    """Return the date until which Roughy keeps an unpaid recording, in UTC.

    :param since: Since when it is unpaid, in UTC (ISO 8601).
    """
    return (datetime.fromisoformat(since) + _KEPT_UNPAID).date().isoformat()


def is_unsent(item: UploadItem, verdict: Verdict | None) -> bool:
    """Return whether an asset waits for bytes, or is gone before it had them all.

    :param item: The recording.
    :param verdict: The verdict; ``None`` if the check failed.
    """
    if verdict is None:
        return False
    is_sent = item.version is not None and item.version.state in (Progress.SENT, Progress.PENDING_PAYMENT)
    if verdict.state == "pending_upload":
        return item.file is not None or not is_sent
    return is_gone(verdict) and not is_sent


def is_gone(verdict: Verdict) -> bool:
    """Return whether there is no such asset, by Roughy's reply.

    :param verdict: The verdict.
    """
    if verdict.outcome is not Outcome.UNAVAILABLE:
        return False
    try:
        verdict.raise_for_failure()
    except RoughyNotFoundError:
        return True
    except Exception:
        return False
    return False


def duration_of(verdict: Verdict) -> float | None:
    """Return how long a recording is, in seconds, as Roughy has measured it; ``None`` if it has not.

    :param verdict: The verdict on its asset.
    """
    return seconds_of(verdict.resource.get("duration_seconds"))


def seconds_of(value: object) -> float | None:
    """Return how long a recording is, as Roughy writes it: decimal text, in seconds."""
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
