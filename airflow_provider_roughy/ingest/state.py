"""The state that one try of a task leaves to the next without a ledger: Airflow's task state store, in parts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_roughy.transfer.resumable import StateStore


class ThreadSafeStore:
    """A store that several threads may use: Airflow's task state store has one pipe.

    :param store: The store.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """Return what is stored under a key, or ``None``."""
        with self._lock:
            return self._store.get(key)

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        with self._lock:
            self._store.set(key, value)


class NamespacedStore:
    """The part of a store that belongs to one upload.

    :param store: The store of all uploads.
    :param namespace: The name of the part.
    """

    def __init__(self, store: StateStore, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

    def get(self, key: str) -> Any:
        """Return what is stored under a key, or ``None``."""
        return self._store.get(f"{key}_{self._namespace}")

    def set(self, key: str, value: Any) -> None:
        """Store a value."""
        self._store.set(f"{key}_{self._namespace}", value)
