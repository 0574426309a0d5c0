"""The former place of :mod:`airflow_provider_roughy.transfer.source`, whose names stay importable from here."""

from airflow_provider_roughy.transfer.source import (
    BLOCK_BYTES,
    READ_AHEAD_BYTES,
    LocalSource,
    Reader,
    Source,
    StoredSource,
    find_source,
    local_fingerprint,
    stored_fingerprint,
)

__all__ = [
    "BLOCK_BYTES",
    "READ_AHEAD_BYTES",
    "LocalSource",
    "Reader",
    "Source",
    "StoredSource",
    "find_source",
    "local_fingerprint",
    "stored_fingerprint",
]
