"""A batch of recordings: discover, identify, decide, plan, upload, and report the result of each.

When is a file left out? A test compares this table with what a batch reports:

=================================================== ==================== ============================================
A file that …                                       is                   A later run
=================================================== ==================== ============================================
has a name that begins with a dot                   not reported         leaves it out, too
has a name that ``pattern`` does not match          not reported         leaves it out, too; the log counts such files
is in a subfolder, and ``recursive`` is off         not reported         leaves it out, too
was ingested by an earlier run                      already ingested     counts it as already ingested
has the same bytes as another file, with            already ingested     counts it as already ingested
``identity="content"``
was sent by a run that still waits for it           already ingested     counts it, or reports it if that run has died
is being uploaded by a run that is alive            ``deferred``         continues it if that run has died
was changed less than ``stable_for`` ago            ``deferred``         uploads it
costs more than ``max_credits`` or the balance      ``deferred``         uploads it if it fits then
leaves
was not started before the batch stopped, such as   ``deferred``         uploads it
without credits
has less than 64 bytes, or more than 50 GiB         ``rejected``         counts it as already ingested
is neither audio nor video                          ``rejected``         counts it as already ingested
is a link that leads nowhere, a pipe or a device    ``rejected``         counts it, and names it in a warning
is archived (Glacier and the like)                  ``rejected``         counts it, and names it in a warning; once
                                                                         restored, it is a new recording
is a subfolder that cannot be listed                ``rejected``         counts it, and names it in a warning
cannot be opened, such as without permission        ``rejected``         tries it again
does not exist, and a list of sources names it      ``rejected``         looks for it again
changed or vanished after it was listed             ``interrupted``      uploads it; a retry of the task does so first
is in a storage that does not answer                ``interrupted``      uploads it; a retry of the task does so first
has an object in the ledger that cannot be read     ``interrupted``      leaves it out until you remove that object
=================================================== ==================== ============================================

A retry, or a cleared task, reports what its run has reported before.
"""
