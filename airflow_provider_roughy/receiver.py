"""The former place of :mod:`airflow_provider_roughy.webhooks.receiver`, whose names stay importable from here."""

from airflow_provider_roughy.webhooks.receiver import Receiver, build_app

__all__ = ["Receiver", "build_app"]
