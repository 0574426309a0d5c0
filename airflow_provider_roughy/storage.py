"""The former place of :mod:`airflow_provider_roughy.transfer.storage`, whose names stay importable from here."""

from airflow_provider_roughy.transfer.storage import (
    as_text,
    asset_uri,
    check_no_password,
    local_path,
    may_pass,
    stored_path,
    without_secrets,
)

__all__ = ["as_text", "asset_uri", "check_no_password", "local_path", "may_pass", "stored_path", "without_secrets"]
