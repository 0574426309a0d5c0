"""Properties of the whole package: its layers, its names, its imports."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import distribution, entry_points
from pathlib import Path

import airflow
import jsonschema
import pytest
import yaml

import airflow_provider_roughy
from airflow_provider_roughy import compat, operators, sensors
from airflow_provider_roughy.exceptions import RoughyTimeoutError
from airflow_provider_roughy.get_provider_info import CONN_FIELDS, get_provider_info
from airflow_provider_roughy.hooks import RoughyHook
from airflow_provider_roughy.triggers import check_event_came

ROOT = Path(airflow_provider_roughy.__file__).parent

#: The modules and folders of the package, from the lowest layer to the highest, and what each imports. This is the only
#: place where the order is stated; a row imports only rows above it. A module of a folder may be a layer of its own.
LAYERS: dict[str, set[str]] = {
    "__init__": set(),
    "get_provider_info": {"__init__"},
    "compat": {"__init__"},
    "arguments": set(),
    "instruments": set(),
    "logs": set(),
    "airflow_db": {"compat"},
    "exceptions": {"compat"},
    "settings": {"exceptions"},
    "api": {"exceptions", "settings"},
    "lifecycle": {"api", "arguments", "compat", "exceptions", "logs"},
    "http": {"__init__", "api", "compat", "exceptions", "instruments", "logs", "settings"},
    "event_loop": {"http"},
    "retry_policy": {"compat", "exceptions"},
    "transfer": {"api", "compat", "exceptions", "http", "instruments", "lifecycle", "logs"},
    "ingest/result": {"api", "instruments", "logs", "transfer"},
    "observability": {"api", "compat", "exceptions", "ingest/result", "instruments", "lifecycle", "logs", "transfer"},
    "probe": {"exceptions", "transfer"},
    "ledger": {"api", "compat", "exceptions", "logs", "transfer"},
    "hooks": {
        "api",
        "compat",
        "exceptions",
        "get_provider_info",
        "http",
        "ledger",
        "lifecycle",
        "logs",
        "observability",
        "settings",
        "transfer",
    },
    "polling": {"api", "event_loop", "exceptions", "hooks", "http", "instruments", "lifecycle", "logs", "settings"},
    "ingest": {
        "api",
        "compat",
        "event_loop",
        "exceptions",
        "hooks",
        "http",
        "ingest/result",
        "ledger",
        "lifecycle",
        "logs",
        "polling",
        "probe",
        "transfer",
    },
    "produce": {
        "api",
        "event_loop",
        "exceptions",
        "hooks",
        "http",
        "ingest",
        "ingest/result",
        "ledger",
        "lifecycle",
        "logs",
        "polling",
        "probe",
        "transfer",
    },
    "asset_events": {
        "api",
        "compat",
        "event_loop",
        "exceptions",
        "hooks",
        "http",
        "instruments",
        "ledger",
        "lifecycle",
        "logs",
        "observability",
        "polling",
    },
    "webhooks": {
        "airflow_db",
        "api",
        "compat",
        "exceptions",
        "hooks",
        "instruments",
        "lifecycle",
        "observability",
        "settings",
    },
    "triggers": {
        "airflow_db",
        "api",
        "arguments",
        "asset_events",
        "compat",
        "event_loop",
        "hooks",
        "ledger",
        "lifecycle",
        "logs",
        "polling",
        "transfer",
    },
    "sensors": {"arguments", "compat", "hooks", "instruments", "lifecycle", "observability", "polling", "triggers"},
    "operators": {
        "api",
        "arguments",
        "compat",
        "event_loop",
        "exceptions",
        "hooks",
        "http",
        "ingest",
        "ingest/result",
        "instruments",
        "ledger",
        "lifecycle",
        "logs",
        "observability",
        "polling",
        "probe",
        "produce",
        "transfer",
        "triggers",
    },
    "cli": {
        "__init__",
        "airflow_db",
        "api",
        "compat",
        "event_loop",
        "exceptions",
        "hooks",
        "ingest",
        "ledger",
        "lifecycle",
        "logs",
        "polling",
        "probe",
        "settings",
        "transfer",
        "webhooks",
    },
    "__main__": {"cli"},
    "conformance": {"__init__", "api", "emulator", "exceptions", "hooks", "http", "settings"},
}

#: Within a folder, which of its files imports which others.
WITHIN: dict[str, dict[str, set[str]]] = {
    "http": {
        "interrupt": set(),
        "retry": set(),
        "proxies": set(),
        "reply": {"interrupt"},
        "transport": {"interrupt"},
        "client": {"interrupt", "proxies", "reply", "retry", "transport"},
    },
    "transfer": {
        "storage": set(),
        "progress": set(),
        "pool": set(),
        "filesystem": {"storage"},
        "source": {"filesystem", "storage"},
        "throttle": {"pool", "source"},
        "target_base": {"storage"},
        "target_local": {"storage", "target_base"},
        "target_stored": {"filesystem", "storage", "target_base"},
        "target": {"storage", "target_base", "target_local", "target_stored"},
        "tus": {"source"},
        "resumable": {"progress", "source", "storage", "tus"},
        "download": {"target"},
    },
}

#: Modules that only re-export names, under the paths of earlier releases, and the folder with the code.
RE_EXPORTS = {
    "client": "http",
    "retry": "http",
    "storage": "transfer",
    "source": "transfer",
    "target": "transfer",
    "tus": "transfer",
    "durable": "transfer",
    "download": "transfer",
    "progress": "transfer",
    "events": "asset_events",
    "lineage": "observability",
    "links": "observability",
    "outlets": "observability",
    "plugin": "webhooks",
    "receiver": "webhooks",
}

#: What could be imported from 0.1, by module.
PUBLIC_IN_0_1: dict[str, str] = {
    "": "__version__",
    "api": """
        MIN_UPLOAD_BYTES MAX_UPLOAD_BYTES PAGE_SIZE Request Reply Call decipher retry_after RoughyAsset
        get_asset list_assets create_asset delete_asset TUS_HEADERS read_offset send_bytes cancel_upload
        RoughyProject create_project get_project list_projects get_credit_balance Page language_code
    """,
    "client": "DEFAULT_BASE_URL Settings Backoff Client AsyncClient",
    "emulator": "Choices Emulator Fault Request",
    "exceptions": """
        RoughyError RoughyConfigurationError RoughyApiError RoughyAuthenticationError
        RoughyInsufficientCreditsError RoughyNotFoundError RoughyConflictError RoughyUnsupportedMediaError
        RoughyValidationError RoughyRateLimitError RoughyServerError ERRORS_BY_CODE api_error
        RoughyUnreachableError RoughyProtocolError RoughyUntrustedUrlError RoughySourceError
        RoughyUnusableSourceError RoughyUploadError RoughyAssetFailedError RoughyPaymentRequiredError
        RoughyTimeoutError
    """,
    "get_provider_info": "CONN_FIELDS UI_FIELD_BEHAVIOUR get_provider_info",
    "hooks": "RoughyHook",
    "lifecycle": "OnPendingPayment Outcome Kind ASSET KINDS check_on_pending_payment Verdict",
    "operators": "RoughyCreateUploadOperator RoughyDeleteAssetOperator",
    "polling": "Watch wait_until_final SharedPoll",
    "sensors": "RoughyAssetSensor",
    "source": "BLOCK_BYTES READ_AHEAD_BYTES find_source Source Reader LocalSource StoredSource",
    "triggers": "check_event_came RoughyAssetTrigger",
    "tus": "RoughyUploader",
}


#: What could be imported from 0.2, by module that has moved since.
PUBLIC_IN_0_2: dict[str, str] = {
    "operators.making": "MakingOperator",
    "compat": "Announced add_lineage aget_task_state announce",
    "receiver": "Receiver build_app",
    "client": "DEFAULT_BASE_URL AsyncClient Backoff Client Download Settings",
    "retry": "Backoff Tries TransferTries was_not_processed",
    "storage": "local_path may_pass as_text without_secrets asset_uri check_no_password stored_path",
    "source": """
        BLOCK_BYTES READ_AHEAD_BYTES find_source Source Reader LocalSource StoredSource local_fingerprint
        stored_fingerprint
    """,
    "target": "Overwrite check_overwrite find_target Target Sink LocalTarget StoredTarget",
    "tus": "RoughyUploader",
    "durable": "Memory open_uploader DurableUpload",
    "download": "download Link Downloader",
    "progress": "Progress Newest bytes_in_words",
}


def imported_modules(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module.rstrip('.')}.{alias.name}" for alias in node.names} | {module}
    return names


def files(layer: str) -> list[Path]:
    """Return the files of a layer: a module, or a folder with all that is below it and in no layer of its own."""
    found = [*ROOT.glob(f"{layer}.py"), *(ROOT / layer).rglob("*.py")]
    return [path for path in found if layer_of(path.relative_to(ROOT).with_suffix("").as_posix()) in (layer, None)]


def layer_of(name: str) -> str | None:
    """Return the layer of a module or of a name in it, by its path in the package: the longest that it is in."""
    ways = ("/".join(name.split("/")[:length]) for length in range(name.count("/") + 1, 0, -1))
    return next((way for way in ways if way in {*LAYERS, *RE_EXPORTS, "emulator"}), None)


def imported_parts(layer: str) -> set[str]:
    """Return the modules and folders of the package that a layer imports, without itself."""
    parts = {
        layer_of(name.removeprefix("airflow_provider_roughy").lstrip(".").replace(".", "/")) or "__init__"
        for path in files(layer)
        for name in imported_modules(path)
        if name.split(".")[0] == "airflow_provider_roughy"
    } - {layer}
    # `from airflow_provider_roughy import __version__` names no module; importing a submodule names the package, too.
    return parts - ({"__init__"} - LAYERS.get(layer, set()))


def test_every_module_has_its_place() -> None:
    places = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert places == {name for name in (*LAYERS, *RE_EXPORTS, "emulator") if "/" not in name}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer: str) -> None:
    assert imported_parts(layer) == LAYERS[layer]
    below = list(LAYERS)[: list(LAYERS).index(layer)]
    # The emulator imports no layer.
    assert LAYERS[layer] <= {*below, "emulator"}, "a layer imports only layers below it"


@pytest.mark.parametrize("folder", WITHIN)
def test_imports_within_a_folder_run_one_way(folder: str) -> None:
    prefix = f"airflow_provider_roughy.{folder}."
    siblings = {
        path.stem: {
            name.removeprefix(prefix).split(".")[0] for name in imported_modules(path) if name.startswith(prefix)
        }
        for path in (ROOT / folder).glob("*.py")
    }
    assert siblings.pop("__init__") == set()
    assert siblings == WITHIN[folder]
    order = list(WITHIN[folder])
    assert all(imports <= set(order[: order.index(name)]) for name, imports in WITHIN[folder].items())


@pytest.mark.parametrize("module", RE_EXPORTS)
def test_old_paths_only_re_export(module: str) -> None:
    """The package itself imports from the folder with the code: ``test_imports_run_one_way`` allows nothing else."""
    assert imported_parts(module) == {RE_EXPORTS[module]}
    (path,) = files(module)
    kinds = {type(node) for node in ast.parse(path.read_text()).body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}


def test_the_architecture_page_shows_the_layers() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)` \| .* \| (.*?) ?\|$", page, re.MULTILINE)
    assert [(layer, set(re.findall(r"`([\w/]+)`", imports))) for layer, imports in rows] == list(LAYERS.items())
    assert dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", page, re.MULTILINE)) == RE_EXPORTS


def test_the_architecture_page_asks_a_question_of_every_file_in_the_larger_folders() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    named: dict[str, set[str]] = {}
    for folder, rest in re.findall(r"^\| `(\w+)/(\w+\.py`(?:, `\w+\.py`)*) \|", page, re.MULTILINE):
        named.setdefault(folder, set()).update(re.findall(r"(\w+)\.py", rest))
    assert len(named) > 7
    for folder, names in named.items():
        told = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
        assert names == told - ({"making"} if folder == "operators" else set()), folder


@pytest.mark.once
def test_only_http_imports_httpx_and_only_the_uploader_tuspy() -> None:
    users = {
        library: {
            str(path.relative_to(ROOT))
            for layer in LAYERS
            for path in files(layer)
            if library in {name.split(".")[0] for name in imported_modules(path)}
        }
        for library in ("httpx", "httpcore", "tusclient", "requests", "aiohttp")
    }
    assert users == {
        "httpx": {"http/client.py", "http/proxies.py", "http/reply.py", "http/transport.py"},
        "httpcore": {"http/transport.py"},
        "tusclient": {"transfer/tus.py"},
        "requests": set(),
        "aiohttp": set(),
    }


def test_only_compat_knows_where_airflow_keeps_a_name() -> None:
    users = {
        layer
        for layer in LAYERS
        if any("airflow" in {n.split(".")[0] for n in imported_modules(path)} for path in files(layer))
    }
    assert users == {"airflow_db", "compat"}


@pytest.mark.parametrize("name", compat.__all__)
def test_compat_finds_every_name(name: str) -> None:
    if (needs := min(compat._HOMES.get(name, {(2, 11): ""}))) > compat._LINE:
        with pytest.raises(RuntimeError, match=rf"{name} needs Apache Airflow {needs[0]}\.{needs[1]}\.0\+; this is "):
            getattr(compat, name)
        return
    assert getattr(compat, name) is not None


def test_compat_names_are_declared_for_type_checkers() -> None:
    (told,) = (
        node
        for node in ast.parse(Path(compat.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    names = {alias.name for node in told.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    made_here = {"AIRFLOW_VERSION", "aget_connection", "check_airflow", "get_stats"}
    made_here |= {"is_lineage_read", "lineage_limit", "operator_lineage"}
    assert names == set(compat._HOMES) == set(compat.__all__) - made_here


@pytest.mark.parametrize("module", ["hooks", "operators", "sensors", "triggers", "exceptions"])
def test_import_on_an_older_airflow_names_the_required_version(tmp_path: Path, module: str) -> None:
    (tmp_path / "airflow").mkdir()
    (tmp_path / "airflow" / "__init__.py").write_text('__version__ = "2.10.5"')
    run = subprocess.run(
        [sys.executable, "-c", f"import airflow_provider_roughy.{module}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT.parent)])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    version = airflow_provider_roughy.__version__
    assert run.stderr.splitlines()[-1] == (
        f"RuntimeError: airflow-provider-roughy {version} needs Apache Airflow 2.11.0+; this is 2.10.5"
    )


def test_the_pure_modules_use_neither_network_nor_clock() -> None:
    for pure in ("exceptions", "lifecycle", "api", "webhooks/messages", "asset_events/baseline"):
        names = {name for path in files(pure) for name in imported_modules(path)}
        # Durations and dates that are parsed need no clock.
        assert not any(re.search(r"\b(utc)?now\(|\btoday\(", path.read_text()) for path in files(pure))
        names -= {"datetime", "datetime.timedelta", "datetime.datetime", "datetime.date", "datetime.UTC"}
        used = {name.split(".")[0] for name in names}
        assert not used & {"httpx", "socket", "time", "datetime", "asyncio", "random", "threading", "os"}
        compat = "airflow_provider_roughy.compat"
        assert {name for name in names if name.startswith(f"{compat}.")} <= {
            f"{compat}.AirflowFailException",
            f"{compat}.AirflowSensorTimeout",
            f"{compat}.AirflowSkipException",
        }


def test_only_lifecycle_decides_what_an_unpaid_asset_does_to_a_task() -> None:
    compares = re.compile(r"on_pending_payment\)? *(==|!=|not in|in) ")
    users = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if compares.search(path.read_text())}
    assert users == {"lifecycle.py"}


def test_the_emulator_shares_nothing_with_the_client() -> None:
    for path in (ROOT / "emulator").rglob("*.py"):
        for name in imported_modules(path):
            assert not name.startswith(".."), f"{path.name} imports from outside the emulator: {name}"
            if name.startswith("airflow_provider_roughy"):
                assert name.startswith("airflow_provider_roughy.emulator"), f"{path.name}: {name}"
            assert name.split(".")[0] not in ("airflow", "httpx", "tusclient"), f"{path.name}: {name}"


def test_a_dag_file_loads_no_http_library() -> None:
    """The DAG processor imports operators at every parse. What Airflow itself loads does not count."""
    program = """
import sys
from airflow_provider_roughy.compat import BaseHook, BaseOperator, BaseSensorOperator, BaseTrigger, conf, TaskDeferred
before = set(sys.modules)
import airflow_provider_roughy.operators, airflow_provider_roughy.sensors
heavy = {"httpx", "tusclient", "requests", "aiohttp", "starlette", "uvicorn", "av", "tinydb"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert run.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", PUBLIC_IN_0_1)
def test_what_could_be_imported_from_0_1_still_can(module: str) -> None:
    found = import_module(f"airflow_provider_roughy.{module}".rstrip("."))
    assert [name for name in PUBLIC_IN_0_1[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize("module", PUBLIC_IN_0_2)
def test_modules_of_0_2_that_moved_stay_importable(module: str) -> None:
    found = import_module(f"airflow_provider_roughy.{module}")
    assert [name for name in PUBLIC_IN_0_2[module].split() if not hasattr(found, name)] == []


def test_message_of_0_1_about_a_wait_ended_by_airflow_stays() -> None:
    check_event_came("execute_complete", {"event": {}}, asset_id="a")
    with pytest.raises(RoughyTimeoutError) as raised:
        check_event_came("__fail__", {"error": "Trigger timeout"}, asset_id="a")
    assert raised.value.asset_id == "a"


@pytest.mark.once
def test_deprecated_method_of_0_1_warns(connection: dict[str, object]) -> None:
    with RoughyHook() as hook, pytest.warns(DeprecationWarning, match=r"use RoughyHook\(hook\.roughy_conn_id\)"):
        assert hook.twin().settings == hook.settings


def test_airflow_finds_the_provider() -> None:
    (found,) = entry_points(group="apache_airflow_provider", name="provider_info").select(
        value="airflow_provider_roughy.get_provider_info:get_provider_info"
    )
    assert found.load()() == get_provider_info()


def test_the_provider_info_is_what_airflow_expects() -> None:
    folder = Path(airflow.__file__).parent
    info = get_provider_info()
    jsonschema.validate(info, json.loads((folder / "provider_info.schema.json").read_text()))
    # Stricter, and of all fields, some of which only Airflow's own providers have.
    rules = json.loads((folder / "provider.yaml.schema.json").read_text())
    # Airflow 2 calls assets datasets; Airflow before 3.2 reads no commands.
    assert set(info) - set(rules["properties"]) <= {"asset-uris", "cli"}
    jsonschema.validate(info, {**rules, "required": [], "additionalProperties": True})


def test_connection_form_is_equal_before_and_after_airflow_3_2() -> None:
    (connection,) = get_provider_info()["connection-types"]
    declared = connection["ui-field-behaviour"]
    assert RoughyHook.get_ui_field_behaviour() == {
        "hidden_fields": declared["hidden-fields"],
        "relabeling": declared["relabeling"],
        "placeholders": declared["placeholders"],
    }
    assert connection["hook-class-name"] == f"{RoughyHook.__module__}.{RoughyHook.__qualname__}"
    assert connection["connection-type"] == RoughyHook.conn_type


def test_the_form_links_to_pages_that_explain_a_field() -> None:
    """Airflow 3.2 and later render Markdown, but only in place of a plain description."""
    (connection,) = get_provider_info()["connection-types"]
    linked = {name: field for name, field in connection["conn-fields"].items() if "description" not in field}
    assert set(linked) == {"project_id", "webhook_secret"}
    for name, field in linked.items():
        text = field["schema"]["description_md"]
        assert text.startswith(CONN_FIELDS[name]["description"])
        assert re.search(r"\]\(https://docs\.roughy\.ai/concepts/\w+\)$", text)


def test_the_form_widgets_of_older_airflow() -> None:
    pytest.importorskip("wtforms", reason="Airflow before 3.1 draws the form with it; later ones do not have it")
    pytest.importorskip("flask_appbuilder", reason="Airflow before 3.1 draws the form with it")
    (connection,) = get_provider_info()["connection-types"]
    assert set(RoughyHook.get_connection_form_widgets()) == set(connection["conn-fields"])


def test_versions_agree() -> None:
    version = airflow_provider_roughy.__version__
    changelog = (ROOT.parent / "CHANGELOG.md").read_text()
    (newest, *_) = re.findall(r"^## \[?(\d[^\] ]*)", changelog, re.MULTILINE)
    assert newest == version == distribution("airflow-provider-roughy").version


def test_the_readme_names_every_public_name() -> None:
    readme = (ROOT.parent / "README.md").read_text()
    for name in (
        "RoughyHook",
        "RoughyCreateUploadOperator",
        "RoughyDeleteAssetOperator",
        "RoughyAssetSensor",
        "RoughyCutOperator",
        "RoughyCutSensor",
        "RoughyExportCutOperator",
        "RoughyExportSubtitlesOperator",
        "RoughyRenderOperator",
        "RoughyRenderSensor",
        "on_pending_payment",
        "roughy_default",
        "airflow_provider_roughy.emulator",
    ):
        assert name in readme, name


@pytest.mark.once
def test_registry_metadata_matches_the_provider_info() -> None:
    told = yaml.safe_load((ROOT.parent / ".airflow-registry.yaml").read_text())
    info = get_provider_info()
    assert [told[key] for key in ("package-name", "display-name", "description")] == [
        info[key] for key in ("package-name", "name", "description")
    ]
    classes = [each["module"].rpartition(".") for part in ("operators", "other") for each in told[part]]
    assert [f"{module}.{name}" for module, _, name in classes if not hasattr(import_module(module), name)] == []
    tasks = {name for name in (*operators.__all__, *vars(sensors)) if re.fullmatch(r"Roughy\w+(Operator|Sensor)", name)}
    assert tasks <= {name for *_, name in classes}


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").exists()
