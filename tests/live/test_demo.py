"""``make demo`` from start to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.live import live

pytestmark = live("3.3", timeout=1200)

ROOT = Path(__file__).parent.parent.parent


def test_all_checks_of_the_demo_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1180,
    )
    assert done.returncode == 0, done.stdout
    assert "All checks hold" in done.stdout
    assert "FAILED" not in done.stdout
