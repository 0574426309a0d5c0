"""Tests on a real Airflow: scheduler, triggerer, DAG processor and API server, each a process of its own."""

from __future__ import annotations

import airflow
import pytest

#: For each module: ``pytestmark = LIVE``.
LIVE = [
    pytest.mark.live,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not airflow.__version__.startswith("3.3."), reason="the harness drives Airflow 3.3"),
]
