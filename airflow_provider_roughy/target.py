"""The former place of :mod:`airflow_provider_roughy.transfer.target`, whose names stay importable from here."""

from airflow_provider_roughy.transfer.target import (
    LocalTarget,
    Overwrite,
    Sink,
    StoredTarget,
    Target,
    check_overwrite,
    find_target,
)

__all__ = ["LocalTarget", "Overwrite", "Sink", "StoredTarget", "Target", "check_overwrite", "find_target"]
