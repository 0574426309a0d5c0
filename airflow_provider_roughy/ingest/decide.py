"""Decide what a run does about a recording, by what the ledger has about it.

===================================  ===================  =====================================================
The ledger has                       Its owner            This run
===================================  ===================  =====================================================
nothing                                                   uploads it, if it was found
a result that was reported           this run             reports it again: this is a retry
a result that was reported           another run          leaves it out, if it was found
a result, not reported yet           this run             reports it
a result, not reported yet           another run, active  leaves it out, if it was found
a result, not reported yet           another run, ended   reports it, if it was found or is of the same task
a version (claimed, uploading, …)    this run             resumes it
a version                            another run, active  leaves it out, if it was found
a version                            another run, ended   resumes it, if it was found or is of the same task
===================================  ===================  =====================================================

What resuming and leaving out mean depends on how far the upload is:

- ``Batch._resume_all``: Of a recording that was not found, only an upload of which Roughy has all bytes is resumed. An
  incomplete one is cancelled if it is of this run, and otherwise left as it is.
- ``Recorder.leave``: A recording that another run is uploading is deferred. One that Roughy has, or that is done, is
  counted as already ingested.

A result that this run has reported and that ``Ledger.forget`` has removed since counts as nothing: this run uploads
the recording, if it was found.

A run is active while its lease has not expired; it renews the lease in the triggerer as well. A run has ended when it
has released its lease, as it does at the end of each try, or when the lease has expired, such as after a crash. The
lease only decides whether another run may resume a recording. The proof that no recording is paid for twice does not
need it (``ledger/claims.py``).
"""

from __future__ import annotations

from enum import StrEnum


class Action(StrEnum):
    """What a run does about a recording."""

    #: Claim it and upload it.
    UPLOAD = "upload"
    #: Resume an upload or a wait of an earlier try of this run, or of a run that has ended.
    RESUME = "resume"
    #: Report its result as this run's.
    REPORT = "report"
    #: Count it as already ingested, or report it as deferred while another run uploads it.
    LEAVE_OUT = "leave out"
    #: Do nothing: it is not in the source.
    IGNORE = "ignore"


def decide(
    *, done: bool, open: bool, reported: bool, mine: bool, same_task: bool, owner_alive: bool, found: bool
) -> Action:
    """Return what a run does about a recording.

    :param done: Whether the ledger has its result.
    :param open: Whether the ledger has a version of it: it is not done, or its result is not reported.
    :param reported: Whether an earlier try of this run has reported it.
    :param mine: Whether a try of this run has created the version.
    :param same_task: Whether another run of the same task has created it.
    :param owner_alive: Whether the run that has created it is active.
    :param found: Whether the recording is in this run's source.
    """
    if open:
        if mine or (not owner_alive and (found or same_task)):
            return Action.REPORT if done else Action.RESUME
        return Action.LEAVE_OUT if found else Action.IGNORE
    if reported:
        return Action.REPORT
    if done:
        return Action.LEAVE_OUT if found else Action.IGNORE
    return Action.UPLOAD if found else Action.IGNORE
