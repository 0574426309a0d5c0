"""The Airflow plugin, which the entry point ``airflow.plugins`` names; see :mod:`airflow_provider_roughy.webhooks`."""

from airflow_provider_roughy.webhooks.plugin import LazyReceiver, RoughyPlugin

__all__ = ["LazyReceiver", "RoughyPlugin"]
