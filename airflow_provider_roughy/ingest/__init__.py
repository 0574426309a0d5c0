"""A batch of recordings: discover, identify, decide, plan, upload, and report the result of each.

When is a file left out? A test compares this table with what a batch reports. The last column names modules of this
folder and a function or method in each:

================================================ ================ ============================= ========================
A file that …                                    is               A later run                   Decided in
================================================ ================ ============================= ========================
has a name that begins with a dot                not reported     leaves it out, too            discover._is_hidden
has a name that ``pattern`` does not match       not reported     leaves it out, too; the log   discover.discover
                                                                  counts such files
is in a subfolder, and ``recursive`` is off      not reported     leaves it out, too            discover._folder
was ingested by an earlier run                   already ingested counts it as already ingested decide.decide
was uploaded by ``RoughyCreateUploadOperator``   already ingested counts it, also if its asset   decide.decide
with the same ``ledger``                                          has failed
has the same bytes as another file, with         already ingested counts it as already ingested content.identify_all
``identity="content"``
was sent by a run that still waits for it        already ingested counts it, or reports it if   decide.decide,
                                                                  that run has ended            recorder.leave
is being uploaded by an active run               ``deferred``     resumes it if that run has    decide.decide,
                                                                  ended                         recorder.leave
was changed less than ``stable_for`` ago         ``deferred``     uploads it                    batch.why_not
costs more than ``max_credits`` or the balance   ``deferred``     uploads it if it fits then    plan.beyond_budget
leaves
was not started before the batch stopped, such   ``deferred``     uploads it                    transfers._on_error
as without credits
has less than 64 bytes, or more than 50 GiB      ``rejected``     counts it as already ingested batch.why_not
is neither audio nor video, as Roughy says       ``rejected``     counts it as already ingested transfers._on_error
is a link that leads nowhere, a pipe or a device ``rejected``     counts it, and names it in a  trees.child_file
                                                                  warning
is archived (Glacier and the like)               ``rejected``     counts it, and names it in a  trees._file_of
                                                                  warning; once restored, it is
                                                                  a new recording
is a subfolder that cannot be listed             ``rejected``     counts it, and names it in a  trees.unreadable_folder
                                                                  warning
cannot be opened, such as without permission     ``rejected``     tries it again                transfers._on_error
does not exist, and a list of sources names it   ``rejected``     looks for it again            discover.discover,
                                                                                                batch.take_stock
changed or vanished after it was listed          ``interrupted``  uploads it if it exists; a    transfers._on_error
                                                                  retry of the task does so
                                                                  first
is in a storage that does not answer             ``interrupted``  uploads it; a retry of the    trees.errors_of,
                                                                  task does so first            batch.take_stock
has an object in the ledger that cannot be read  ``interrupted``  leaves it out until you       compare.read_versions
                                                                  remove that object
================================================ ================ ============================= ========================

A retry, or a cleared task, reports what its run has reported before.
"""
