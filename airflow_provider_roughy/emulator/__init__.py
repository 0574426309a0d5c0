"""A local emulator of Roughy: the API's paths, states, errors and upload rules over a real socket, with faults.

Start it with ``python -m airflow_provider_roughy.emulator``, or in a test::

    with Emulator() as roughy:
        ...  # roughy.url, roughy.api_key, roughy.inject(Fault(...)), roughy.assets

It imports nothing from the rest of the package, so that a wrong constant of the client fails against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .choices import Choices
from .faults import Fault

if TYPE_CHECKING:
    from .gate import Request
    from .server import Emulator

__all__ = ["Choices", "Emulator", "Fault", "Request"]

#: The packages of the extra ``emulator``.
_EXTRA = ("starlette", "uvicorn", "h11", "av")


def __getattr__(name: str) -> Any:
    """Import the server on first use, since only it needs the packages of the extra."""
    if name not in ("Emulator", "Request"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import gate, server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _EXTRA:
            message = f"The emulator needs {error.name}: pip install 'airflow-provider-roughy[emulator]'"
            raise ModuleNotFoundError(message, name=error.name) from error
        raise
    return server.Emulator if name == "Emulator" else gate.Request
