"""The former place of :mod:`airflow_provider_roughy.transfer.tus`, whose names stay importable from here."""

from airflow_provider_roughy.transfer.tus import RoughyUploader

__all__ = ["RoughyUploader"]
