"""The names of Airflow that this package uses, from whichever module the running Airflow has them in.

All other modules import them from here, so that only this module knows what moved between Airflow 2.11 and 3.4, and
which version each feature needs. A name is imported at its first use, so that a DAG file loads no more than it uses.
A DAG file that runs on both Airflow 2 and 3 may import ``DAG``, ``Param``, ``task``, ``task_group`` and
``AirflowSkipException`` from here too, and ``Asset`` and ``AssetAlias``, which Airflow 2 calls ``Dataset`` and
``DatasetAlias``.

:raises RuntimeError: On import, if Airflow is older than 2.11.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow import __version__ as AIRFLOW_VERSION

from airflow_provider_roughy import __version__

if TYPE_CHECKING:
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand
    from airflow.cli.simple_table import AirflowConsole
    from airflow.plugins_manager import AirflowPlugin
    from airflow.sdk import (
        DAG,
        Asset,
        AssetAlias,
        BaseHook,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Connection,
        Context,
        ObjectStoragePath,
        Param,
        PokeReturnValue,
        RetryDecision,
        RetryPolicy,
        XComArg,
        conf,
        task,
        task_group,
    )
    from airflow.sdk.definitions.asset import BaseAsset
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowRescheduleException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
        TaskDeferred,
    )
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.sdk.io import attach
    from airflow.sdk.lineage import get_hook_lineage_collector
    from airflow.sdk.observability.stats import Stats
    from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent
    from airflow.utils.cli import suppress_logs_and_warning

__all__ = [
    "AIRFLOW_VERSION",
    "DAG",
    "ActionCommand",
    "AirflowConsole",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowPlugin",
    "AirflowRescheduleException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "AirflowTaskTimeout",
    "Arg",
    "Asset",
    "AssetAlias",
    "BaseAsset",
    "BaseEventTrigger",
    "BaseHook",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseSensorOperator",
    "BaseTrigger",
    "Connection",
    "Context",
    "GroupCommand",
    "ObjectStoragePath",
    "Param",
    "PokeReturnValue",
    "RetryDecision",
    "RetryPolicy",
    "Stats",
    "TaskDeferred",
    "TriggerEvent",
    "XCom",
    "XComArg",
    "aget_connection",
    "attach",
    "check_airflow",
    "conf",
    "get_hook_lineage_collector",
    "get_stats",
    "is_lineage_read",
    "lineage_limit",
    "operator_lineage",
    "suppress_logs_and_warning",
    "task",
    "task_group",
]

#: The running version of Airflow, major and minor.
_LINE = tuple(map(int, re.findall(r"\d+", AIRFLOW_VERSION)[:2]))

#: Whether the scheduler's queue has a row for each asset event (Airflow 3.4). Before, one row represents several
#: events, and an event may stay in the queue until the next one.
QUEUES_EACH_EVENT = _LINE >= (3, 4)

if _LINE < (2, 11):
    raise RuntimeError(f"airflow-provider-roughy {__version__} needs Apache Airflow 2.11.0+; this is {AIRFLOW_VERSION}")

_EXCEPTIONS = {(2, 11): "airflow.exceptions", (3, 2): "airflow.sdk.exceptions"}

#: The module of each name, by the version of Airflow since which it is there; ``module:name`` if it has another name
#: there.
_HOMES: dict[str, dict[tuple[int, int], str]] = {
    "ActionCommand": {(2, 11): "airflow.cli.cli_config"},
    "AirflowConsole": {(2, 11): "airflow.cli.simple_table"},
    "AirflowException": _EXCEPTIONS,
    "AirflowFailException": _EXCEPTIONS,
    "AirflowNotFoundException": _EXCEPTIONS,
    "AirflowPlugin": {(2, 11): "airflow.plugins_manager"},
    "AirflowRescheduleException": _EXCEPTIONS,
    "AirflowSensorTimeout": _EXCEPTIONS,
    "AirflowSkipException": _EXCEPTIONS,
    "AirflowTaskTimeout": _EXCEPTIONS,
    "Arg": {(2, 11): "airflow.cli.cli_config"},
    "Asset": {(2, 11): "airflow.datasets:Dataset", (3, 0): "airflow.sdk"},
    "AssetAlias": {(2, 11): "airflow.datasets:DatasetAlias", (3, 0): "airflow.sdk"},
    "BaseAsset": {(2, 11): "airflow.datasets:BaseDataset", (3, 0): "airflow.sdk.definitions.asset"},
    # Airflow 2 has no such class; check_airflow() raises an error for it.
    "BaseEventTrigger": {(2, 11): "airflow.triggers.base:BaseTrigger", (3, 0): "airflow.triggers.base"},
    "BaseHook": {(2, 11): "airflow.hooks.base", (3, 1): "airflow.sdk"},
    "BaseOperator": {(2, 11): "airflow.models.baseoperator", (3, 0): "airflow.sdk"},
    "BaseOperatorLink": {(2, 11): "airflow.models.baseoperatorlink", (3, 0): "airflow.sdk"},
    "BaseSensorOperator": {(2, 11): "airflow.sensors.base", (3, 0): "airflow.sdk"},
    "BaseTrigger": {(2, 11): "airflow.triggers.base"},
    "Connection": {(2, 11): "airflow.models.connection", (3, 0): "airflow.sdk"},
    "Context": {(2, 11): "airflow.utils.context", (3, 0): "airflow.sdk"},
    "DAG": {(2, 11): "airflow.models.dag", (3, 0): "airflow.sdk"},
    "GroupCommand": {(2, 11): "airflow.cli.cli_config"},
    "ObjectStoragePath": {(2, 11): "airflow.io.path", (3, 0): "airflow.sdk"},
    "Param": {(2, 11): "airflow.models.param", (3, 0): "airflow.sdk"},
    "PokeReturnValue": {(2, 11): "airflow.sensors.base", (3, 0): "airflow.sdk"},
    "RetryDecision": {(3, 3): "airflow.sdk"},
    "RetryPolicy": {(3, 3): "airflow.sdk"},
    "Stats": {(2, 11): "airflow.stats", (3, 2): "airflow.sdk.observability.stats"},
    "TaskDeferred": _EXCEPTIONS,
    "TriggerEvent": {(2, 11): "airflow.triggers.base"},
    "XCom": {(2, 11): "airflow.models.xcom", (3, 0): "airflow.sdk.execution_time.xcom"},
    "XComArg": {(2, 11): "airflow.models.xcom_arg", (3, 0): "airflow.sdk"},
    "attach": {(2, 11): "airflow.io.store", (3, 0): "airflow.sdk.io"},
    "conf": {(2, 11): "airflow.configuration", (3, 2): "airflow.sdk"},
    "get_hook_lineage_collector": {(2, 11): "airflow.lineage.hook", (3, 2): "airflow.sdk.lineage"},
    "suppress_logs_and_warning": {(2, 11): "airflow.utils.cli"},
    "task": {(2, 11): "airflow.decorators", (3, 0): "airflow.sdk"},
    "task_group": {(2, 11): "airflow.decorators", (3, 0): "airflow.sdk"},
}

#: Names of this module in earlier releases, and the modules that they are in now.
_MOVED = {
    "Announced": "airflow_db",
    "add_lineage": "observability.lineage",
    "aget_task_state": "airflow_db",
    "announce": "airflow_db",
}


if not TYPE_CHECKING:  # For mypy, a module with __getattr__ has every name.

    def __getattr__(name: str) -> Any:
        if name in _MOVED:
            return getattr(import_module(f"airflow_provider_roughy.{_MOVED[name]}"), name)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        homes = _HOMES[name]
        check_airflow(name, needs=min(homes))
        home, _, called = homes[max(line for line in homes if line <= _LINE)].partition(":")
        globals()[name] = value = getattr(import_module(home), called or name)
        return value


def get_stats() -> Any:
    """Return Airflow's Stats, to which metrics are sent, as Airflow's configuration says. Imports may block."""
    from airflow_provider_roughy.compat import Stats

    if _LINE >= (3, 2):
        # Configures the Stats of Airflow's task SDK when it is imported. A task has imported it. The API server and
        # the process that runs triggers may have configured only the Stats of Airflow's core.
        import_module("airflow.sdk.serde")
    return Stats


def is_lineage_read() -> bool:
    """Tell whether a plugin reads what tasks report to Airflow's lineage."""
    if _LINE >= (3, 2):
        return bool(import_module("airflow.sdk.plugins_manager").get_hook_lineage_readers_plugins())
    plugins: Any = import_module("airflow.plugins_manager")
    plugins.initialize_hook_lineage_readers_plugins()
    return bool(plugins.hook_lineage_reader_classes)


def lineage_limit() -> int | None:
    """Return how many assets Airflow's lineage keeps of those that a task reads, and likewise of those that it writes.

    :returns: ``None`` if there is no limit, as in Airflow 2.
    """
    module = import_module("airflow.sdk.lineage" if _LINE >= (3, 2) else "airflow.lineage.hook")
    return getattr(module, "MAX_COLLECTED_ASSETS", None)


def operator_lineage(**fields: Any) -> Any:
    """Return an ``OperatorLineage`` of Airflow's OpenLineage provider.

    :param fields: Its fields.
    :raises ImportError: If that provider is not installed.
    """
    return import_module("airflow.providers.openlineage.extractors").OperatorLineage(**fields)


def check_airflow(what: str, *, needs: tuple[int, int]) -> None:
    """Raise an error if the running Airflow is too old for a feature.

    :param what: The name of the feature, for the user.
    :param needs: The first version of Airflow that supports it.
    :raises RuntimeError: If this Airflow is older.
    """
    if needs > _LINE:
        raise RuntimeError(f"{what} needs Apache Airflow {needs[0]}.{needs[1]}.0+; this is {AIRFLOW_VERSION}")


async def aget_connection(conn_id: str) -> tuple[Connection, dict[str, Any]]:
    """Return a connection and its extra without blocking the event loop.

    Both are read, and their secrets masked, by requests to the process that started this one. Airflow does that
    asynchronously since 3.3.2. Before, even ``BaseHook.aget_connection`` masks synchronously, which on an event loop
    can end in ``DeadlockImminentError`` (a ``BaseException``). So it is done in a thread there, and in one of asgiref,
    because only from such a thread can Airflow use the event loop.

    :param conn_id: The Airflow connection.
    :raises AirflowNotFoundException: If Airflow finds no such connection.
    """
    # Imported as other modules do, because a module's __getattr__ does not apply within the module.
    from airflow_provider_roughy.compat import BaseHook, Connection

    # It was added together with the asynchronous masking.
    if hasattr(Connection, "aextra_dejson"):
        connection = await BaseHook.aget_connection(conn_id)
        return connection, await connection.aextra_dejson()

    from asgiref.sync import sync_to_async

    def read() -> tuple[Connection, dict[str, Any]]:
        connection = BaseHook.get_connection(conn_id)
        return connection, connection.extra_dejson

    return await sync_to_async(read)()
