"""The former place of :mod:`airflow_provider_roughy.http.retry`, whose names stay importable from here."""

from airflow_provider_roughy.http.retry import Backoff, TransferTries, Tries, was_not_processed

__all__ = ["Backoff", "TransferTries", "Tries", "was_not_processed"]
