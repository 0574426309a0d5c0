"""``make demo``, the main job from end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import LIVE

pytestmark = [*LIVE, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent


def test_the_demo_sees_all_it_expects() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout
    assert "All as expected" in done.stdout
    assert "FAILED" not in done.stdout
