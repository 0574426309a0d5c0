"""The npm packages of tests and benchmarks, installed once into the project's cache."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_PACKAGES = _ROOT / "tests" / "node" / "package.json"
_CACHE = _ROOT / ".cache" / "node"


def has_node() -> bool:
    """Return whether Node programs can be run."""
    return shutil.which("node") is not None and shutil.which("npm") is not None


def installed_packages() -> Path:
    """Return the folder with ``node_modules``, in which the packages are installed."""
    with _locked():
        return _CACHE


def beside_packages(programs: Path, folder: str) -> Path:
    """Copy programs next to the packages that they import.

    :param programs: The folder of the programs.
    :param folder: The name of the target folder beside the packages.
    :returns: The target folder.
    """
    with _locked():
        target = _CACHE / folder
        target.mkdir(exist_ok=True)
        for program in programs.glob("*.mjs"):
            shutil.copy(program, target)
    return target


@contextmanager
def _locked() -> Iterator[None]:
    """Install the packages unless that was done before, and keep other test processes waiting meanwhile."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted, done = _PACKAGES.read_bytes(), _CACHE / "installed.json"
        if not done.exists() or done.read_bytes() != wanted:
            shutil.copy(_PACKAGES, _CACHE)
            command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(command, cwd=_CACHE, check=True, stdout=subprocess.DEVNULL, timeout=300)
            done.write_bytes(wanted)
        yield
