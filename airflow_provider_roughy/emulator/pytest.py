"""A pytest fixture to test your own DAGs without an account.

In ``conftest.py``::

    pytest_plugins = ["airflow_provider_roughy.emulator.pytest"]

Then a test of a DAG is three lines::

    def test_my_dag(roughy):
        assert my_dag.test(run_conf={"source": "tests/data/interview.mp3"}).state == "success"
        assert [request.method for request in roughy.requests].count("PATCH") == 1  # one upload

A mark passes arguments to :class:`~airflow_provider_roughy.emulator.Emulator`::

    @pytest.mark.roughy(balance=0, progression="polls=3")

There is no entry point: without the line in ``conftest.py``, there is neither the fixture nor the mark.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_roughy.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["roughy"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line("markers", "roughy(**options): what the Emulator of the fixture `roughy` is made with.")


@pytest.fixture
def roughy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Give a test its own emulator, as the Airflow connection ``roughy_default``; processing takes no time."""
    options: dict[str, Any] = {"progression": "immediate"}
    # The closest mark comes first, and takes precedence.
    for mark in reversed(list(request.node.iter_markers("roughy"))):
        if mark.args:
            raise TypeError(f"the mark `roughy` takes names, such as balance=0, not {mark.args[0]!r}")
        options |= mark.kwargs
    with Emulator(**options) as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_ROUGHY_DEFAULT", json.dumps(emulator.airflow_connection))
        yield emulator
