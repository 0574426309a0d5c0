"""The extra link under the path of 0.2, which serialized DAGs in Airflow's database hold."""

from airflow_provider_roughy.observability.links import RoughyAssetLink, asset_links, show_asset

__all__ = ["RoughyAssetLink", "asset_links", "show_asset"]
