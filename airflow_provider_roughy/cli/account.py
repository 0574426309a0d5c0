"""``balance``, ``credits``, ``assets …`` and ``projects …``: what Roughy has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.cli.running import confirm, fields_of, open_hook, print_rows, say
from airflow_provider_roughy.logs import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from airflow_provider_roughy.api import RoughyCreditEntry
    from airflow_provider_roughy.hooks import RoughyHook

#: What a table shows of an asset.
_ASSET_COLUMNS = ("id", "state", "type", "duration_seconds", "size_bytes", "created_at", "error_message")


def balance(args: argparse.Namespace) -> int:
    """Show the credits that are left."""
    with open_hook(args) as hook:
        print_rows(args, [{"balance": hook.get_credit_balance()}])
    return 0


def credits(args: argparse.Namespace) -> int:
    """Show the credits that were spent and added."""
    with open_hook(args) as hook:
        if args.by == "day":
            rows = [fields_of(day) for day in hook.get_credit_report(days=args.days)]
        else:
            since = datetime.now(UTC).date() - timedelta(days=max(args.days, 1) - 1)
            entries = list(hook.list_credit_entries(since=since))
            names = _projects_of(hook, entries) if args.by == "project" else {}
            rows = _sums(args.by, entries, lambda entry: names.get(entry.id, entry.type))
    print_rows(args, rows)
    return 0


def _sums(
    name: str, entries: Iterable[RoughyCreditEntry], key: Callable[[RoughyCreditEntry], str]
) -> list[dict[str, Any]]:
    sums: dict[str, dict[str, Any]] = {}
    for entry in entries:
        row = sums.setdefault(key(entry), {name: key(entry), "spent": 0, "added": 0, "assets": 0})
        row["added" if entry.delta > 0 else "spent"] += abs(entry.delta)
        row["assets"] += entry.type == "consume_asset"
    return sorted(sums.values(), key=lambda row: -row["spent"])


def _projects_of(hook: RoughyHook, entries: list[RoughyCreditEntry]) -> dict[str, str]:
    """Return the project of each entry, by its id."""
    wanted = {entry.asset_id for entry in entries if entry.asset_id}
    projects: dict[str, str] = {}
    for asset in hook.list_assets() if wanted else ():
        if asset.id in wanted:
            projects[asset.id] = asset.project_id
            if len(projects) == len(wanted):
                break
    names = {project.id: project.name for state in ("active", "archived") for project in hook.list_projects(state)}
    found = {}
    for entry in entries:
        project = projects.get(entry.asset_id or "")
        if not entry.asset_id:
            found[entry.id] = "(of no asset)"
        elif project is None:
            found[entry.id] = "(assets that were deleted)"
        else:
            found[entry.id] = f"{project} {names.get(project, '')}".rstrip()
    return found


def list_assets(args: argparse.Namespace) -> int:
    """List assets."""
    with open_hook(args) as hook:
        assets = hook.list_assets(project_id=args.project_id, state=args.state)
        rows = [fields_of(asset) for asset in (islice(assets, args.limit + 1) if args.limit else assets)]
    shown = rows[: args.limit] if args.limit else rows
    print_rows(args, shown, columns=_ASSET_COLUMNS)
    if len(shown) < len(rows):
        say(args, "More are not shown: give --limit 0")
    return 0


def show_assets(args: argparse.Namespace) -> int:
    """Show assets."""
    with open_hook(args) as hook:
        rows = [fields_of(hook.get_asset(asset_id)) for asset_id in args.asset_id]
    if args.output == "table":
        rows = [{"field": name, "value": value} for row in rows for name, value in row.items()]
    print_rows(args, rows)
    return 0


def delete_assets(args: argparse.Namespace) -> int:
    """Delete assets."""
    with open_hook(args) as hook:
        # An id that is not there is an error before anything is deleted.
        assets = [hook.get_asset(asset_id) for asset_id in dict.fromkeys(args.asset_id)]
        listed = ", ".join(f"{asset.id} ({asset.state})" for asset in assets[:5]) + (", …" if len(assets) > 5 else "")
        confirm(args, f"Delete {counted(len(assets), 'asset')} with all cuts and renders, permanently: {listed}?")
        for asset in assets:
            hook.delete_asset(asset.id)
            say(args, f"Deleted asset {asset.id}")
    say(args, "Ledgers still have their recordings: `ledger recheck --all --forget-gone` has them ingested again")
    return 0


def list_projects(args: argparse.Namespace) -> int:
    """List projects."""
    with open_hook(args) as hook:
        rows = [fields_of(project) for project in hook.list_projects(state=args.state)]
    print_rows(args, rows, columns=("id", "name", "state", "created_at"))
    return 0
