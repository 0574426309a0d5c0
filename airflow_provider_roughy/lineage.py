"""URIs and lineage under the path of 0.2; the code is in :mod:`airflow_provider_roughy.observability.lineage`."""

from airflow_provider_roughy.observability.lineage import (
    SCHEME,
    convert_asset_to_openlineage,
    create_asset,
    report,
    report_making,
    report_upload,
    resource_uri,
    sanitize_uri,
)

__all__ = [
    "SCHEME",
    "convert_asset_to_openlineage",
    "create_asset",
    "report",
    "report_making",
    "report_upload",
    "resource_uri",
    "sanitize_uri",
]
