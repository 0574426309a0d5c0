"""The ledger: a folder, in any storage that Airflow knows, that records across runs what has been ingested.

========================== ============================================================================================
Object                     Content
========================== ============================================================================================
``<key>.json``             The result of a recording that is done: created once, never changed. ``key`` is a hash of
                           its identity.
``open/<key>.<n>.json``    Version ``n`` of a recording that is not done, or whose result was not reported to Airflow
                           yet: each created only if absent, never changed. The highest counts.
``problems/<key>.<state>`` Empty: the state of a result other than ready, so that lists of names suffice to count.
``outputs/<key>.json``     An output of ``RoughyProduceOperator`` that was written. ``key`` is a hash of its location.
``problems/<key>.again-…`` Empty: the key of a later result of a recording that a run has ingested again.
``contents/<key>.<hash>``  Empty: the SHA-256 of a file, by the key of its location (``identity="content"``).
``by-content``             All tasks identify the recordings of this ledger by their content.
``runs/<run>.json``        The lease of a run: until when it counts as active.
``runs/<run>.<n>.json``    The results that a try has reported, for the later tries of its run; ``n`` = 1, 2, … Of a
                           shard of a manifest, completely.
``runs/<run>.again-<key>`` Whether the run ingests a recording again that was done, for all of its tries.
``runs/<run>.waiting-…``   What a shard of a manifest waits for in the triggerer; removed when that wait has ended.
``note-<name>.json``       A note of a watcher, such as when it started.
``<32 digits>.json``       An announced asset that a run has taken; or an entry of 0.2, which is read and left as it is.
``<32 times f>.json``      Stops 0.2, which must not use this ledger any more; with a ``.open`` beside it.
``index-0.2.json``         A copy of the entries of 0.2, so that each is read once. You may remove it.
``created``                When the ledger was first used.
========================== ============================================================================================

The protocol, and why it is safe, is in :mod:`~airflow_provider_roughy.ledger.claims`; how objects are stored in
``ledger/folder.py``.
"""

from airflow_provider_roughy.ledger.entries import ENDED, ClaimOwner, Entry, Progress, Result, Version, entry_key
from airflow_provider_roughy.ledger.lease import LEASE_SECONDS, RENEW_SECONDS, Lease
from airflow_provider_roughy.ledger.ledger import Ledger, Snapshot, renewing
from airflow_provider_roughy.ledger.legacy import LegacyEntry, LegacyIndex
from airflow_provider_roughy.ledger.outputs import OutputRecord

__all__ = [
    "ENDED",
    "LEASE_SECONDS",
    "RENEW_SECONDS",
    "ClaimOwner",
    "Entry",
    "Lease",
    "Ledger",
    "LegacyEntry",
    "LegacyIndex",
    "OutputRecord",
    "Progress",
    "Result",
    "Snapshot",
    "Version",
    "entry_key",
    "renewing",
]
