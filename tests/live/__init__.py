"""Tests on a real Airflow: scheduler, triggerer, DAG processor and API server, each in its own process."""

from __future__ import annotations

import airflow
import pytest

#: Seconds for a test: more than for any of its waits (``harness.airflow.PATIENCE``), so that a red one says for what.
TIMEOUT = 900


def live(line: str, timeout: float = TIMEOUT) -> list[pytest.MarkDecorator]:
    """Mark the tests of a module as live, on one minor version of Airflow.

    :param line: Such as ``3.3``.
    :param timeout: Seconds for each.
    """
    return [
        pytest.mark.live,
        pytest.mark.timeout(timeout),
        pytest.mark.skipif(not airflow.__version__.startswith(f"{line}."), reason=f"runs on Airflow {line} only"),
    ]


#: For a module: ``pytestmark = LIVE``.
LIVE = live("3.3")
