"""The former place of :mod:`airflow_provider_roughy.transfer.resumable`, whose names stay importable from here."""

from airflow_provider_roughy.transfer.resumable import DurableUpload, open_uploader
from airflow_provider_roughy.transfer.resumable import StateStore as Memory

__all__ = ["DurableUpload", "Memory", "open_uploader"]
