"""Roughy's webhooks: verify and read them, and receive them in the API server of Airflow 3.

========== ===================================================================================
Module     Content
========== ===================================================================================
`messages` Verifies that Roughy signed a request, and reads it; knows no Airflow and no network
`receiver` The route ``POST /roughy/webhooks``: makes an event of an Airflow asset of a webhook
`accounts` The connections whose webhooks the receiver accepts
`checks`   Checks after an event that Airflow starts every DAG that waits for it
`throttle` Limits for anonymous requests and for repeated log lines
`plugin`   The Airflow plugin, which mounts the receiver
========== ===================================================================================

Roughy delivers by Svix, which signs as Standard Webhooks do (API page "Webhooks"; standardwebhooks.com). In a receiver
of your own::

    headers = request.headers.items()
    account = verify(headers, body, {"production": "whsec_…"})
    event = parse(body, id=message_id(headers))

An event only shows that a resource has changed. Read the state of the resource from Roughy's API.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_roughy.webhooks.messages import (
        RoughyWebhook,
        event_type,
        message_id,
        parse,
        signing_secrets,
        verify,
    )

__all__ = ["RoughyWebhook", "event_type", "message_id", "parse", "signing_secrets", "verify"]


def __getattr__(name: str) -> Any:
    # At the first use only: every process of Airflow loads the plugin below this package, and few need a webhook.
    if name in __all__:
        return getattr(import_module(f"{__name__}.messages"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
