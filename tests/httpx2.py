"""Runs tests with httpx2 instead of httpx: ``pytest -p tests.httpx2``. Airflow itself keeps its own."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module

#: What sends requests, what tests put in place of the network, and those tests that take it from httpx.
_SWAPPED = (
    "airflow_provider_roughy.http.client",
    "tests.virtual",
    "tests.test_client",
    "tests.test_polling_in_time",
)


def pytest_sessionstart() -> None:
    """Import them while both names stand for httpx2 and its httpcore2."""
    with suppress(ImportError):
        import_module("airflow.sdk.api.client")
    names = {"httpx": "httpx2", "httpcore": "httpcore2"}
    own = {name: sys.modules.pop(name, None) for name in names}
    sys.modules |= {name: import_module(other) for name, other in names.items()}
    for name in _SWAPPED:
        import_module(name)
    for name, module in own.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module
    client = import_module("airflow_provider_roughy.http.client")
    assert client.httpx.__name__ == "httpx2"
