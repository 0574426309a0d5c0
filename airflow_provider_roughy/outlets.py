"""Events of outlets under the path of 0.2; the code is in :mod:`airflow_provider_roughy.observability.outlets`."""

from airflow_provider_roughy.observability.outlets import (
    EVENTS_PER_SECOND,
    Product,
    announce,
    announce_file,
    announce_verdict,
    ids_by_outcome,
)
from airflow_provider_roughy.observability.outlets import MAX_IDS as MOST_IDS

__all__ = [
    "EVENTS_PER_SECOND",
    "MOST_IDS",
    "Product",
    "announce",
    "announce_file",
    "announce_verdict",
    "ids_by_outcome",
]
