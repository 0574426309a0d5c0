"""The package in Airflow: the command line, and the connection form of the user interface."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

from airflow_provider_roughy import __version__
from harness.airflow import PATIENCE, LocalAirflow
from tests.live import LIVE

pytestmark = LIVE


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ("list", {"package_name": "airflow-provider-roughy", "version": __version__}),
        (
            "hooks",
            {
                "connection_type": "roughy",
                "class": "airflow_provider_roughy.hooks.RoughyHook",
                "conn_id_attribute_name": "roughy_conn_id",
                "package_name": "airflow-provider-roughy",
                "hook_name": "Roughy",
            },
        ),
        (
            "triggers",
            {
                "package_name": "airflow-provider-roughy",
                "class": "airflow_provider_roughy.triggers",
                "integration_name": "Roughy",
            },
        ),
    ],
)
def test_the_command_line_lists_the_package(
    local_airflow: LocalAirflow, listing: str, expected: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "airflow", "providers", listing, "--output", "json"]
    done = subprocess.run(command, env=local_airflow.env, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert [line for line in json.loads(done.stdout) if line.items() >= expected.items()], done.stdout


def test_the_connection_form_asks_for_what_is_needed(local_airflow: LocalAirflow) -> None:
    # What the form of the user interface is built from.
    url = f"{local_airflow.url}/ui/connections/hook_meta"
    forms: list[dict[str, Any]] = httpx.get(url, trust_env=False, timeout=PATIENCE).raise_for_status().json()
    [form] = [form for form in forms if form["connection_type"] == "roughy"]

    assert form["hook_name"] == "Roughy"
    shown = {name: field for name, field in form["standard_fields"].items() if field and not field["hidden"]}
    assert {name: field["title"] for name, field in shown.items()} == {"password": "API key", "host": "Base URL"}
    assert shown["host"]["placeholder"] == "https://api.roughy.ai"
    hidden = {name for name, field in form["standard_fields"].items() if field and field["hidden"]}
    assert hidden == {"login", "port", "url_schema"}
    assert {name: field["schema"]["title"] for name, field in form["extra_fields"].items()} == {
        "project_id": "Project id",
        "timeout": "Timeout (seconds)",
        "verify": "Verify TLS",
        "allow_http": "Allow plain http",
        "webhook_secret": "Webhook signing secret",
        "webhook_asset": "Webhook asset",
    }
