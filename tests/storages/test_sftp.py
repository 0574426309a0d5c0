"""What only SFTP has: servers without links, unfinished files that stay, and connections that are lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_roughy.exceptions import RoughyClaimedError
from airflow_provider_roughy.transfer.target import find_target
from harness.storages.kinds import KINDS
from tests.storages.conftest import Place
from tests.storages.processes import Processes
from tests.storages.proxy import Breaking
from tests.storages.test_contract import KEY, ME, VERSION

#: The fixture `place` is one of SFTP.
pytestmark = pytest.mark.parametrize(
    "place", [kind for kind in KINDS if kind.name == "sftp"], indirect=True, ids=["sftp"]
)


@pytest.fixture
def folder(place: Place) -> Path:
    """The folder as the server has it."""
    assert place.server is not None
    return Path(place.server.folder) / place.folder


def test_one_of_four_claimers_wins_on_a_server_without_links(
    place: Place, folder: Path, processes: Processes, tmp_path: Path
) -> None:
    (folder / "no-links").mkdir()
    ledger = place.ledger("no-links/ledger")
    ledger.check()
    keys = [f"{number:040x}" for number in range(4)]
    go = tmp_path / "go"
    options = {"ledger": f"{place.uri}/no-links/ledger", "conn_id": place.conn_id, "keys": keys, "go": str(go)}
    children = [processes.start("claim", owner=str(number), **options) for number in range(4)]
    for child in children:
        child.wait_for("ready")
    go.touch()
    for answers in zip(*[child.result() for child in children], strict=True):
        assert sorted(answers, key=str) == [False] * 3 + [True]
    # A worker that dies between the open and the write leaves an empty object, which nobody takes for its own.
    (folder / "no-links/ledger/open" / f"{KEY}.1.json").touch()
    assert not ledger.create_version(VERSION)
    with pytest.raises(RoughyClaimedError, match="is empty"):
        ledger.read_version(KEY, 1)


def test_unfinished_files_of_dead_workers_are_removed_after_a_day(place: Place, folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    old, young, other = out / f".roughy-{'a' * 32}.part", out / f".roughy-{'b' * 32}.part", out / ".other.part"
    for file in (old, young, other):
        file.write_bytes(b"x")
    for file in (old, other):
        os.utime(file, (time.time() - 2 * 86_400,) * 2)
    find_target(f"{place.uri}/out/new.mp4", name="x", conn_id=place.conn_id).save(b"new")
    assert sorted(path.name for path in out.iterdir()) == sorted(["new.mp4", young.name, other.name])


def test_large_blocks_are_written_in_pieces_that_servers_take(place: Place) -> None:
    content = os.urandom(3_000_000)
    target = find_target(f"{place.uri}/new/talk.mp4", name="x", conn_id=place.conn_id)
    with target.open(len(content)) as sink:
        sink.write(content)
    assert place.get("new/talk.mp4") == content


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ledger_outlives_its_connection(place: Place, connect: Callable[..., str]) -> None:
    """As in a triggerer, which keeps the file system for weeks."""
    assert place.server is not None
    with Breaking(place.server.port) as link:
        ledger = place.ledger(conn_id=connect(place.server.connection_to(link.port)))
        ledger.check()
        for n in range(1, 3):
            assert ledger.create_version(replace(VERSION, n=n, owner=ME))
            link.lose(1)
            assert ledger.snapshot().open == {KEY: n}
            assert not link.is_armed
