"""The former place of :mod:`airflow_provider_roughy.http.client`, whose names stay importable from here."""

from airflow_provider_roughy.http.client import DEFAULT_BASE_URL, AsyncClient, Backoff, Client, Download, Settings

__all__ = ["DEFAULT_BASE_URL", "AsyncClient", "Backoff", "Client", "Download", "Settings"]
