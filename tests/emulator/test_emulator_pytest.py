"""The pytest fixture of the package, in a separate pytest as users have it. The tests here use it, too."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from airflow_provider_roughy.emulator import pytest as plugin

TESTS = """
import json
import os
from urllib.request import Request, urlopen

import pytest

urls = set()


@pytest.mark.parametrize("number", [1, 2])
def test_airflow_finds_it(roughy, number):
    connection = json.loads(os.environ["AIRFLOW_CONN_ROUGHY_DEFAULT"])
    key = {"Authorization": "Bearer " + connection["password"]}
    with urlopen(Request(connection["host"] + "/v1/assets", headers=key)) as reply:
        assert json.load(reply)["items"] == []
    assert len(roughy.requests) == 1
    assert roughy.progression == "immediate"
    roughy.seed_asset()
    urls.add(roughy.url)


def test_each_test_has_one_of_its_own():
    assert len(urls) == 2
    assert "AIRFLOW_CONN_ROUGHY_DEFAULT" not in os.environ


@pytest.mark.roughy(progression="polls=1", balance=5)
class TestMarks:
    @pytest.mark.roughy(balance=0)
    def test_what_it_is_made_with(self, roughy):
        assert (roughy.balance, roughy.progression) == (0, "polls=1")

    @pytest.mark.xfail(raises=TypeError, strict=True)
    @pytest.mark.roughy(0)
    def test_what_is_not_named_would_count_for_nothing(self, roughy): ...
"""


def test_a_stranger_tests_with_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["airflow_provider_roughy.emulator.pytest"]\n')
    (tmp_path / "test_mine.py").write_text(TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:anyio", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "4 passed, 1 xfailed" in run.stdout, run.stdout + run.stderr


def test_fixture_needs_the_plugin_to_be_named() -> None:
    assert [entry for entry in entry_points(group="pytest11") if entry.value.startswith(plugin.__package__)] == []
