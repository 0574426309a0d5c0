"""A secrets backend that can be down: a folder with a file for each connection, removed while it is down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from airflow.secrets.base_secrets import BaseSecretsBackend


class FolderBackend(BaseSecretsBackend):
    """What Airflow asks for connections before anything else.

    :param folder: Where they are.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = Path(folder)

    def get_conn_value(self, conn_id: str, *_: object, **__: object) -> str | None:
        """Return a connection in Airflow's JSON form.

        :raises ConnectionError: While the backend is away.
        """
        if (self._folder / f"{conn_id}.away").exists():
            raise ConnectionError("the secrets backend is away")
        path = self._folder / f"{conn_id}.json"
        return path.read_text() if path.exists() else None


class Secret:
    """A connection that only the backend knows, as a test handles it.

    :param folder: That of the backend.
    :param conn_id: Its id.
    :param connection: The fields of Airflow's JSON form.
    """

    def __init__(self, folder: Path, conn_id: str, connection: Mapping[str, object]) -> None:
        self.conn_id = conn_id
        self._away = folder / f"{conn_id}.away"
        (folder / f"{conn_id}.json").write_text(json.dumps(connection))

    def lose(self) -> None:
        """Let the backend be away, for whoever asks for this connection."""
        self._away.touch()

    def find(self) -> None:
        """Let the backend be back."""
        self._away.unlink()
