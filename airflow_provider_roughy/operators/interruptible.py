"""The base of operators whose requests and pauses end when their task is killed."""

from __future__ import annotations

from typing import Any

from airflow_provider_roughy.compat import BaseOperator
from airflow_provider_roughy.http.interrupt import Interrupt


class InterruptibleOperator(BaseOperator):
    """An operator whose requests and pauses end within a second when its task is killed.

    A subclass sends its requests within ``self._interrupt``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._interrupt = Interrupt()

    def stop_running(self) -> None:
        """Stop the work under way, before its requests are ended. Airflow calls this in a signal handler."""

    def on_kill(self) -> None:
        """Stop the task's work within a second, wherever it waits."""
        self.stop_running()
        self._interrupt.set()
