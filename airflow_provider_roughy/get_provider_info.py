"""The provider's metadata, which Airflow reads from the entry point ``apache_airflow_provider`` at every start.

The connection form is declared only here: Airflow 3.2 and later read it from here, earlier versions from the methods of
the hook, which return the same.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_roughy import __version__

#: The extra fields of the connection form, in JSON schema.
CONN_FIELDS: dict[str, dict[str, Any]] = {
    "project_id": {
        "label": "Project id",
        "description": "The project that new assets belong to, unless the task names one.",
        "schema": {"type": ["string", "null"]},
    },
    "timeout": {
        "label": "Timeout (seconds)",
        "description": "How long a request may take, or an upload may stall. Leave empty for the usual values.",
        "schema": {"type": ["number", "null"], "minimum": 0},
    },
    "verify": {
        "label": "Verify TLS",
        "description": "Path of a CA bundle. Leave empty for the usual CAs; false checks no certificate (tests only).",
        "schema": {"type": ["string", "null"]},
    },
    "allow_http": {
        "label": "Allow plain http",
        "description": "Send the API key over plain http to a host other than this machine.",
        "schema": {"type": ["boolean", "null"], "default": False},
    },
    "webhook_secret": {
        "label": "Webhook signing secret",
        "description": "whsec_…; Airflow 3 then takes webhooks at /roughy/webhooks. Separate several by spaces.",
        "schema": {"type": ["string", "null"], "format": "password"},
    },
    "webhook_asset": {
        "label": "Webhook asset",
        "description": "The Airflow asset that gets an event for each webhook. Leave empty for roughy_media.",
        "schema": {"type": ["string", "null"]},
    },
}

#: Pages that explain a field. The form of Airflow 3.2 and later links to them.
_PAGES = {
    "project_id": "https://docs.roughy.ai/concepts/project",
    "webhook_secret": "https://docs.roughy.ai/concepts/webhooks",
}

#: Airflow's section ``[roughy]``.
CONFIG: dict[str, Any] = {
    "roughy": {
        "description": "Settings of airflow-provider-roughy.",
        "options": {
            "webhook_conn_ids": {
                "description": "The connections, separated by commas, whose webhooks the API server takes at "
                "``/roughy/webhooks``, if they have a ``webhook_secret`` (Airflow 3).",
                "version_added": "0.2.0",
                "type": "string",
                "example": "roughy_default,roughy_studio",
                "default": "roughy_default",
            },
            "asset_link": {
                "description": "The address of a page that shows an asset, with ``{asset_id}`` in it: tasks have a "
                "link to it. Airflow reads this when it starts.",
                "version_added": "0.2.0",
                "type": "string",
                "example": "https://media.example.org/assets/{asset_id}",
                "default": "",
            },
            "report_link": {
                "description": "The address at which a browser opens a report, with ``{path}``, the bucket and the "
                "path in it, or ``{bucket}`` and ``{key}``: batches with ``report`` have a link to it. Airflow reads "
                "this when it starts.",
                "version_added": "0.3.0",
                "type": "string",
                "example": "https://storage.cloud.google.com/{path}",
                "default": "",
            },
        },
    },
}

#: The labels of the form's standard fields.
UI_FIELD_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["login", "port", "schema"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {"password": "sk_…", "host": "https://api.roughy.ai"},
}


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata (Airflow: "Custom providers", ``provider_info.schema.json``)."""
    name = "Roughy"
    uris = [
        {
            "schemes": ["roughy"],
            "handler": "airflow_provider_roughy.observability.lineage.sanitize_uri",
            "factory": "airflow_provider_roughy.observability.lineage.create_asset",
            "to_openlineage_converter": "airflow_provider_roughy.observability.lineage.convert_asset_to_openlineage",
        }
    ]
    return {
        "package-name": "airflow-provider-roughy",
        "name": name,
        "description": "Upload, cut and render audio and video with Roughy, and wait for it at almost no cost.",
        "versions": [__version__],
        "integrations": [{"integration-name": name, "external-doc-url": "https://docs.roughy.ai", "tags": ["service"]}],
        "operators": [{"integration-name": name, "python-modules": ["airflow_provider_roughy.operators"]}],
        "sensors": [{"integration-name": name, "python-modules": ["airflow_provider_roughy.sensors"]}],
        "hooks": [{"integration-name": name, "python-modules": ["airflow_provider_roughy.hooks"]}],
        "triggers": [{"integration-name": name, "python-modules": ["airflow_provider_roughy.triggers"]}],
        "connection-types": [
            {
                "connection-type": "roughy",
                "hook-class-name": "airflow_provider_roughy.hooks.RoughyHook",
                "hook-name": name,
                "conn-fields": {name: _with_link(name, field) for name, field in CONN_FIELDS.items()},
                "ui-field-behaviour": UI_FIELD_BEHAVIOUR,
            }
        ],
        "extra-links": [
            "airflow_provider_roughy.observability.links.RoughyAssetLink",
            "airflow_provider_roughy.observability.links.RoughyReportLink",
            # For DAGs that 0.2 serialized. Airflow 2 restores only links that are listed here.
            "airflow_provider_roughy.links.RoughyAssetLink",
        ],
        "asset-uris": uris,
        # The key for Airflow 2.
        "dataset-uris": uris,
        "config": CONFIG,
        # Airflow 3.2 and later; on all others, `python -m airflow_provider_roughy` has the same commands.
        "cli": ["airflow_provider_roughy.cli.definition.get_commands"],
    }


def _with_link(name: str, field: dict[str, Any]) -> dict[str, Any]:
    """Return a field whose description links to a page: Airflow renders Markdown where there is no plain text."""
    if name not in _PAGES:
        return field
    text = f"{field['description']} [Roughy's documentation]({_PAGES[name]})"
    return {"label": field["label"], "schema": {**field["schema"], "description_md": text}}
