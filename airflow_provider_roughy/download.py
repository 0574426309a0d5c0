"""The former place of :mod:`airflow_provider_roughy.transfer.download`, whose names stay importable from here."""

from airflow_provider_roughy.transfer.download import Downloader, Link, download

__all__ = ["Downloader", "Link", "download"]
