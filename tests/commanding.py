"""Runs a command of the package's command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_provider_roughy.cli.parser import main


@dataclass
class Ran:
    """What a command has done.

    :param status: Its exit status.
    :param out: What it has printed.
    :param err: What it has printed to standard error.
    """

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What it has printed as JSON."""
        return json.loads(self.out)  # type: ignore[no-any-return]


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, as ``python -m airflow_provider_roughy`` does."""

    def command(*argv: object) -> Ran:
        capsys.readouterr()
        status = 0
        try:
            main([str(each) for each in argv])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return command
