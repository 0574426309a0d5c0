"""The former place of :mod:`airflow_provider_roughy.transfer.progress`, whose names stay importable from here."""

from airflow_provider_roughy.transfer.progress import Newest, Progress, bytes_in_words

__all__ = ["Newest", "Progress", "bytes_in_words"]
