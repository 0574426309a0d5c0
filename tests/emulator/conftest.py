"""A new emulator for each test, and a plain HTTP client."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_roughy.emulator import Emulator
from harness import media
from tests.emulator.api import Api


@pytest.fixture
def roughy() -> Iterator[Emulator]:
    with Emulator(progression="manual") as emulator:
        yield emulator


@pytest.fixture
def api(roughy: Emulator) -> Iterator[Api]:
    with Api(roughy) as client:
        yield client


@pytest.fixture
def unused_ports() -> tuple[int, int]:
    """Two ports that were free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three seconds of MP3, about 24 kB."""
    return media.make_audio(tmp_path_factory.mktemp("speech") / "speech.mp3").read_bytes()


@pytest.fixture
def talk(tmp_path: Path) -> bytes:
    """A minute and a half of WAV, 720 kB: two credits."""
    return media.make_long_audio(tmp_path / "talk.wav", 90).read_bytes()
