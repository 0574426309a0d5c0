"""A real Airflow 3 on this machine, each component in its own process that can be killed and restarted."""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import httpx
import psutil
import sqlalchemy

Component = Literal[
    "api-server", "scheduler", "dag-processor", "triggerer", "triggerer-2", "worker", "worker-2", "worker-3"
]
WORKERS: tuple[Component, ...] = ("worker", "worker-2", "worker-3")

# Log servers are disabled: the API server reads every log from the local disk.
COMMANDS: dict[Component, list[str]] = {
    "api-server": ["api-server", "--workers", "1"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
    "triggerer-2": ["triggerer", "--skip-serve-logs"],
    **{name: ["celery", "worker", "--skip-serve-logs", "--celery-hostname", f"{name}@%h"] for name in WORKERS},
}

# The components that :meth:`LocalAirflow.start` does not start.
ON_DEMAND: frozenset[Component] = frozenset({"triggerer-2", *WORKERS})

# The component's job type in Airflow's list of jobs, where it appears once it runs. Celery's workers do not appear
# there: each logs that it is ready.
JOBS: dict[Component, str] = {
    "scheduler": "SchedulerJob",
    "dag-processor": "DagProcessorJob",
    "triggerer": "TriggererJob",
    "triggerer-2": "TriggererJob",
}

SETTINGS = {
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__EXECUTOR": "LocalExecutor",
    # Airflow fails a task that is deferred for about the executor's event lag; more workers increase the lag.
    "CORE__PARALLELISM": "4",
    # The end of a task's process may be noticed only with the next heartbeat, which adds to that lag.
    "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    # Nothing in the database is encrypted, so that everything_visible() can search it.
    "CORE__FERNET_KEY": "",
    "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "0",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
    # New and edited DAG files are noticed within seconds.
    "DAG_PROCESSOR__REFRESH_INTERVAL": "1",
    "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "DAG_PROCESSOR__PARSING_PROCESSES": "1",
    # Others are not parsed again, which would take a quarter of a core all the time.
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "86400",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    # A dead component is noticed within seconds, and its replacement adopts its work.
    "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
    # Not so the scheduler and tasks: a busy machine may stall either for half a minute, and one that counts as dead
    # takes a try of each task.
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "90",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}

FINISHED = frozenset({"success", "failed"})

#: The maximum number of seconds for any step of Airflow: long enough for a busy machine, short enough to detect a hang.
PATIENCE = 240


#: Settings for a test that kills the scheduler: after so many seconds another one takes over its tasks.
FAST_SCHEDULER_TAKEOVER = {
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
}


class LocalAirflow:
    """Run Airflow in a temporary home; a context manager.

    ::

        with LocalAirflow(dags_folders=["example_dags"], connections={"roughy_default": {...}}) as airflow:
            run_id = airflow.trigger_dag("nightly", conf={"day": "2026-01-31"})
            assert airflow.wait_for_run("nightly", run_id) == "success"

    There is no login: everyone who can connect to the port, on loopback, is an administrator. A second triggerer,
    ``triggerer-2``, and Celery's workers, :data:`WORKERS`, run only after a :meth:`restart`, and need another database
    than SQLite.

    :param dags_folders: The folders of DAG files; each becomes a bundle.
    :param connections: Connections by id: a URI, or the fields of Airflow's JSON form.
    :param home: Airflow's home, which is kept. By default, a temporary one, which :meth:`stop` removes.
    :param sql_alchemy_conn: The URL of an empty database. By default, SQLite in the home.
    :param settings: More of Airflow's settings, as ``{"CORE__PARALLELISM": "1"}``.
    :param environment: More variables for every component.
    """

    def __init__(
        self,
        dags_folders: Sequence[str | Path],
        *,
        connections: Mapping[str, str | Mapping[str, object]] | None = None,
        home: str | Path | None = None,
        sql_alchemy_conn: str | None = None,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._home_is_ours = home is None
        self.home = Path(home or tempfile.mkdtemp(prefix="airflow-")).resolve()
        self._uses_sqlite = sql_alchemy_conn is None
        # On a busy machine, SQLite's writers may wait for each other for longer than the default of five seconds.
        self.sql_alchemy_conn = sql_alchemy_conn or f"sqlite:///{self.home / 'airflow.db'}?timeout=30"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._processes: dict[Component, subprocess.Popen[bytes]] = {}
        # The process sessions of every component, until no process is left in them.
        self._sessions: dict[Component, set[int]] = {name: set() for name in COMMANDS}
        #: Where the output of a component's latest start begins.
        self._begins: dict[Component, int] = {}
        self._api = httpx.Client(base_url=f"{self.url}/api/v2", timeout=PATIENCE, trust_env=False)

        bundles = [
            {
                "name": f"dags-{number}",
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(Path(folder).resolve())},
            }
            for number, folder in enumerate(dags_folders)
        ]
        options = SETTINGS | {
            "API__PORT": str(self.port),
            "API__HOST": "127.0.0.1",
            "API__BASE_URL": self.url,
            "API__SECRET_KEY": secrets.token_hex(32),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.home / "passwords.json"),
            "DATABASE__SQL_ALCHEMY_CONN": self.sql_alchemy_conn,
            "DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            **(settings or {}),
        }
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        self._env |= {"AIRFLOW_HOME": str(self.home), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        self._env |= {f"AIRFLOW__{name}": value for name, value in options.items()}
        for conn_id, connection in (connections or {}).items():
            value = connection if isinstance(connection, str) else json.dumps(connection)
            self._env[f"AIRFLOW_CONN_{conn_id.upper()}"] = value
        self._env |= environment or {}

    @property
    def env(self) -> dict[str, str]:
        """The environment of every component: enough to run an ``airflow`` command against this Airflow."""
        return dict(self._env)

    # Processes

    def __enter__(self) -> LocalAirflow:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def start(self, timeout: float = PATIENCE) -> None:
        """Create the database, start the components, one of each, and wait until they work.

        :param timeout: Seconds to wait for the components.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._make_database()
            self._launch([name for name in COMMANDS if name not in ON_DEMAND], timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, by SIGTERM and then SIGKILL, and wait until none is left."""
        self._api.close()
        self._end(COMMANDS)
        if self._home_is_ours:
            shutil.rmtree(self.home, ignore_errors=True)

    def kill(self, component: Component) -> None:
        """Send SIGKILL to a component and all its children: for the scheduler, they include tasks.

        :param component: The component.
        """
        self._end([component], grace=0)

    def restart(
        self, component: Component, timeout: float = PATIENCE, *, settings: Mapping[str, str] | None = None
    ) -> None:
        """Start a component; end it first if it still runs.

        :param component: The component.
        :param timeout: Seconds to wait until it works.
        :param settings: Changes of Airflow's settings, for all components that are started from now on.
        """
        self._end([component])
        self._env |= {f"AIRFLOW__{name}": value for name, value in (settings or {}).items()}
        self._launch([component], timeout)

    def ended(self) -> list[Component]:
        """Return the components that have ended by themselves."""
        return [name for name, process in list(self._processes.items()) if process.poll() is not None]

    def pids(self, *components: Component) -> set[int]:
        """Return the running processes of components, with their children and orphans.

        :param components: The components; by default all.
        """
        sessions = set().union(*(self._sessions[name] for name in components or COMMANDS))
        marks = {self._mark(name) for name in components or COMMANDS}
        found = set()
        for process in psutil.process_iter(["status"]):
            # A child that has rewritten its title has no readable environment, but is in its parent's session.
            # A command that a task started in another session has the environment that it was given.
            try:
                ours = os.getsid(process.pid) in sessions or process.environ().get("LOCAL_AIRFLOW") in marks
            except (psutil.Error, OSError):
                continue
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        return found

    def output(self, component: Component) -> Path:
        """Return the path of a component's own output.

        :param component: The component.
        """
        return self.home / "logs" / f"{component}.log"

    def disk(self, worker: Component) -> Path:
        """Return the folder of a Celery worker: its home and its temporary files.

        :param worker: The worker.
        """
        return self.home / worker

    def _disk(self, component: Component) -> dict[str, str]:
        if component not in WORKERS:
            return {}
        self.disk(component).mkdir(exist_ok=True)
        return dict.fromkeys(("HOME", "TMPDIR"), str(self.disk(component)))

    def _mark(self, component: Component) -> str:
        return f"{self.home}:{component}"

    def _make_database(self) -> None:
        if self._uses_sqlite:
            path = self.home / "airflow.db"
            if not path.exists():
                path.write_bytes(_empty_database())
                # With the write-ahead log, readers and the writer do not block each other.
                with sqlite3.connect(path) as database:
                    database.execute("PRAGMA journal_mode=WAL")
                database.close()
        else:
            _migrate(self._env)

    def _launch(self, components: Collection[Component], timeout: float) -> None:
        since = datetime.now(UTC)
        for name in components:
            self.output(name).parent.mkdir(parents=True, exist_ok=True)
            with self.output(name).open("ab") as output:
                self._begins[name] = output.tell()
                process = subprocess.Popen(
                    [sys.executable, "-m", "airflow", *COMMANDS[name]],
                    env=self._env | self._disk(name) | {"LOCAL_AIRFLOW": self._mark(name)},
                    cwd=self.home,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._processes[name] = process
            self._sessions[name].add(process.pid)
        deadline = time.monotonic() + timeout
        while waiting := self._not_ready(components, since):
            for name in components:
                if (code := self._processes[name].poll()) is not None:
                    raise RuntimeError(f"Airflow's {name} ended with {code}:\n{self._tail(name)}")
            if time.monotonic() > deadline:
                tails = "\n".join(self._tail(name) for name in waiting)
                raise TimeoutError(f"Airflow's {', '.join(waiting)} not ready in {timeout} s:\n{tails}")
            time.sleep(0.2)

    def _not_ready(self, components: Collection[Component], since: datetime) -> list[Component]:
        try:
            # The execution API is built at its first request, which takes seconds; do not let the first task wait.
            self._api.get(f"{self.url}/execution/health").raise_for_status()
            if "Authorization" not in self._api.headers:
                # Airflow 3.0 requires a token even if everyone is an administrator.
                token = self._api.get(f"{self.url}/auth/token").raise_for_status().json()["access_token"]
                self._api.headers["Authorization"] = f"Bearer {token}"
            reply = self._api.get("/jobs", params={"start_date_gte": since.isoformat()}).raise_for_status()
        except httpx.HTTPError:
            return list(components)
        begun = {job["job_type"] for job in reply.json()["jobs"]}
        return [
            name
            for name in components
            if (name in JOBS and JOBS[name] not in begun) or (name in WORKERS and not self._is_ready(name))
        ]

    def _is_ready(self, worker: Component) -> bool:
        output = self.output(worker).read_bytes()[self._begins[worker] :]
        return re.search(rb"%s@\S+ ready\." % worker.encode(), output) is not None

    def _end(self, components: Collection[Component], grace: float = 3) -> None:
        # Three seconds suffice for everything important; the rest of a normal exit is the interpreter's cleanup.
        processes = [self._processes.pop(name) for name in components if name in self._processes]
        if grace:
            for process in processes:
                process.terminate()
            self._wait_until_gone(components, grace)
        deadline = time.monotonic() + 60
        while left := self.pids(*components):
            if time.monotonic() > deadline:
                raise RuntimeError(f"These processes of Airflow outlived SIGKILL: {sorted(left)}")
            # All are stopped first, as when a machine dies: a task that outlives its supervisor would tidy up.
            for sent in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, sent)
            self._wait_until_gone(components, 0.5)
        for process in processes:
            process.wait()
        for name in components:
            self._sessions[name].clear()

    def _wait_until_gone(self, components: Collection[Component], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.pids(*components):
            time.sleep(0.1)

    def _tail(self, component: Component) -> str:
        return "\n".join(self.output(component).read_text(errors="replace").splitlines()[-40:])

    # The public API

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Call the public API, with retries, since requests may fail on a busy machine.

        SQLite has one writer at a time, so that Airflow may reply 500 to a valid request. A request that creates
        something names it, so that its repetition is answered with 409, which is no error then.

        :param method: The HTTP method.
        :param path: The path below ``/api/v2``.
        :param options: Those of :meth:`httpx.Client.request`.
        :return: The response; with 409 if an earlier attempt had succeeded in spite of its error.
        """
        deadline = time.monotonic() + PATIENCE
        repeated = False
        while True:
            try:
                response = self._api.request(method, path, **options)
                again = response.is_server_error
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                again = True
            if not again or time.monotonic() > deadline:
                break
            repeated = True
            time.sleep(0.5)
        if response.is_error and not (repeated and response.status_code == httpx.codes.CONFLICT):
            raise httpx.HTTPStatusError(
                f"{method} {path}: {response.status_code} {response.text}",
                request=response.request,
                response=response,
            )
        return response

    def trigger_dag(self, dag_id: str, conf: Mapping[str, object] | None = None, *, timeout: float = PATIENCE) -> str:
        """Start a run.

        :param dag_id: The DAG.
        :param conf: The run's configuration.
        :param timeout: Seconds to wait for the DAG to be parsed.
        :return: The run's id.
        """
        deadline = time.monotonic() + timeout
        run_id = f"manual__{uuid.uuid4()}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf or {}}
        while True:
            try:
                self.request("POST", f"/dags/{_part(dag_id)}/dagRuns", json=body)
                return run_id
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 404:
                    raise
                broken = self.request("GET", "/importErrors").json()["import_errors"]
                if broken or time.monotonic() > deadline:
                    traces = "\n".join(entry["stack_trace"] for entry in broken)
                    raise RuntimeError(f"Airflow has no DAG {dag_id}.\n{traces}") from error
            time.sleep(0.3)

    def pause(self, dag_id: str, *, paused: bool = True) -> None:
        """Pause or unpause a DAG, which must be parsed already.

        :param dag_id: The DAG.
        :param paused: Whether to pause it.
        """
        self.request("PATCH", f"/dags/{_part(dag_id)}", json={"is_paused": paused})

    def wait_for_a_run(self, dag_id: str, timeout: float = PATIENCE) -> str:
        """Wait for the first run of a DAG, whatever starts it.

        :param dag_id: The DAG.
        :param timeout: Seconds.
        :return: The run's id.
        """
        deadline = time.monotonic() + timeout
        while not (runs := self.request("GET", f"/dags/{_part(dag_id)}/dagRuns").json()["dag_runs"]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{dag_id} has no run after {timeout} s")
            time.sleep(0.2)
        return str(runs[0]["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return a run's state.

        :param dag_id: The DAG.
        :param run_id: The run.
        """
        return str(self.request("GET", _run(dag_id, run_id)).json()["state"])

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = PATIENCE) -> str:
        """Wait for the end of a run.

        :param dag_id: The DAG.
        :param run_id: The run.
        :param timeout: Seconds.
        :return: ``success`` or ``failed``.
        """
        deadline = time.monotonic() + timeout
        while (state := self.run_state(dag_id, run_id)) not in FINISHED:
            if time.monotonic() > deadline:
                tasks = {
                    (task["task_id"], task["map_index"]): task["state"] for task in self.task_instances(dag_id, run_id)
                }
                raise TimeoutError(f"{dag_id} {run_id} is {state} after {timeout} s: {tasks}")
            time.sleep(0.3)
        return state

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """List the task instances of a run.

        :param dag_id: The DAG.
        :param run_id: The run.
        :return: The API's own objects: ``task_id``, ``map_index``, ``state``, ``try_number``, ``start_date``,
            ``end_date``, ``pid``, ``trigger``, ``triggerer_job`` and more.
        """
        tasks: list[dict[str, Any]] = []
        while True:
            page = {"limit": 100, "offset": len(tasks)}
            reply = self.request("GET", f"{_run(dag_id, run_id)}/taskInstances", params=page).json()
            tasks += reply["task_instances"]
            if not reply["task_instances"] or len(tasks) >= reply["total_entries"]:
                return tasks

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Find one task instance of a run.

        :param dag_id: The DAG.
        :param run_id: The run.
        :param task_id: The task.
        :param map_index: Which of a mapped task.
        """
        for task in self.task_instances(dag_id, run_id):
            if (task["task_id"], task["map_index"]) == (task_id, map_index):
                return task
        raise LookupError(f"{dag_id} {run_id} has no task instance {task_id} {map_index}")

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        state: str,
        *,
        map_index: int = -1,
        timeout: float = PATIENCE,
    ) -> dict[str, Any]:
        """Wait until a task instance is in a state.

        :param dag_id: The DAG.
        :param run_id: The run.
        :param task_id: The task.
        :param state: ``running``, ``deferred``, ...
        :param map_index: Which of a mapped task.
        :param timeout: Seconds.
        :return: The task instance.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                task = self.task_instance(dag_id, run_id, task_id, map_index)
            except LookupError:
                # A mapped task has no instances before the task that it is mapped over has ended.
                task = {"state": None}
            if task["state"] == state:
                return task
            if time.monotonic() > deadline:
                raise TimeoutError(f"{task_id} is {task['state']}, not {state}, after {timeout} s")
            time.sleep(0.2)

    def worker_pids(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> list[int]:
        """Find the processes that run a task instance now: the task's own, then its children.

        :param dag_id: The DAG.
        :param run_id: The run.
        :param task_id: The task.
        :param map_index: The index of a mapped task.
        :return: The process ids; empty if the task does not run.
        """
        task = self.task_instance(dag_id, run_id, task_id, map_index)
        # The pid of the previous try is returned until the next try has one.
        if task["state"] != "running" or task["pid"] not in self.pids("scheduler", *WORKERS):
            return []
        children = psutil.Process(task["pid"]).children(recursive=True)
        return [task["pid"], *(child.pid for child in children)]

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
        """Read an XCom.

        :param dag_id: The DAG.
        :param run_id: The run.
        :param task_id: The task that pushed it.
        :param map_index: Which of a mapped task.
        :param key: Its key.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{_part(task_id)}/xcomEntries/{_part(key)}"
        return self.request("GET", path, params={"map_index": map_index}).json()["value"]

    def task_log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Read the log of a try, with the parts of worker and triggerer.

        :param dag_id: The DAG.
        :param run_id: The run.
        :param task_id: The task.
        :param try_number: The number of the try, from 1.
        :param map_index: The index of a mapped task.
        :return: One JSON object per line.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{_part(task_id)}/logs/{try_number}"
        return self.request(
            "GET",
            path,
            params={"map_index": map_index, "full_content": True},
            headers={"Accept": "application/x-ndjson"},
        ).text

    def clear(
        self,
        dag_id: str,
        run_id: str,
        task_ids: Sequence[str | tuple[str, int]] | None = None,
        *,
        downstream: bool = True,
    ) -> None:
        """Clear task instances, so that they run again.

        :param dag_id: The DAG.
        :param run_id: The run.
        :param task_ids: Tasks, or pairs of task and map index; by default all.
        :param downstream: Whether to clear downstream tasks as well.
        """
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "only_failed": False,
            "include_downstream": downstream,
        }
        if task_ids is not None:
            body["task_ids"] = list(task_ids)
        self.request("POST", f"/dags/{_part(dag_id)}/clearTaskInstances", json=body)

    # Everything that others can read

    def everything_visible(self) -> Iterator[tuple[str, str]]:
        """Yield all that this Airflow has written: every log file, and every row of every table.

        :return: Pairs of location and text.
        """
        for path in sorted((self.home / "logs").rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self.home)), path.read_text(errors="replace")
        engine = sqlalchemy.create_engine(self.sql_alchemy_conn)
        try:
            with engine.connect() as connection:
                for table in sqlalchemy.inspect(engine).get_table_names():
                    quoted = engine.dialect.identifier_preparer.quote(table)
                    for row in connection.execute(sqlalchemy.text(f"SELECT * FROM {quoted}")).mappings():
                        for column, value in row.items():
                            if value is not None:
                                yield f"{table}.{column}", _text(value)
        finally:
            engine.dispose()


def _part(name: str) -> str:
    return quote(name, safe="")


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{_part(dag_id)}/dagRuns/{_part(run_id)}"


def _text(value: object) -> str:
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode(errors="replace")
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _migrate(env: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"airflow db migrate failed:\n{done.stdout}\n{done.stderr}")


@functools.cache
def _empty_database() -> bytes:
    """Create the tables once in this process, which takes about as long as the start of all components."""
    with tempfile.TemporaryDirectory(prefix="airflow-") as home:
        env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        _migrate(env | {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"})
        return (Path(home) / "airflow.db").read_bytes()
