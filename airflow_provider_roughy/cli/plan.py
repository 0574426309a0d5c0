"""``plan``: what a batch would upload, and what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_roughy.api import language_code
from airflow_provider_roughy.cli.running import open_hook, open_ledger, print_rows, say
from airflow_provider_roughy.ingest.batch import Batch
from airflow_provider_roughy.ingest.discover import MEDIA, discover
from airflow_provider_roughy.ledger import ClaimOwner
from airflow_provider_roughy.logs import SILENT, counted
from airflow_provider_roughy.probe import check_installed

if TYPE_CHECKING:
    import argparse


def plan(args: argparse.Namespace) -> int:
    """Show what a batch would upload. It creates nothing, at Roughy or in the ledger."""
    check_installed()
    # With a ledger that does not exist, everything would be new: more probably, its name is wrong.
    ledger = open_ledger(args) if args.ledger is not None else None
    source: Any = args.source[0] if len(args.source) == 1 else args.source
    with open_hook(args) as hook:
        batch = Batch(
            hook,
            owner=ClaimOwner("plan", "plan", "plan"),
            project_id=hook.get_project_id(args.project_id),
            language=language_code(args.language) if args.language else None,
            ledger=ledger,
            log=SILENT,
        )
        found = discover(source, pattern=args.pattern or MEDIA, recursive=args.recursive, conn_id=args.source_conn_id)
        batch.take_stock(found, dry_run=True)
        batch.plan(max_credits=args.max_credits, credits_if_unknown=args.credits_if_unknown)
        balance = hook.get_credit_balance()
    uploads = [_row(item.name, "upload", item.size, item.credits) for item in batch.todo]
    others = [
        _row(result.source, result.status, result.size_bytes, result.credits, result.reason)
        for result in batch.results.results
    ]
    print_rows(args, [*uploads, *others])
    cost = sum(item.credits or 0 for item in batch.todo)
    known = batch.results.already_ingested
    states = ", ".join(f"{number:,} {state}" for state, number in known.most_common())
    say(
        args,
        f"A run would upload {counted(len(uploads), 'recording')} for {counted(cost, 'credit')}; the balance is "
        f"{balance:,}; {known.total():,} are already ingested" + (f" ({states})" if states else ""),
    )
    if found.left_out:
        say(args, f"{counted(found.left_out, 'file')} left out by --pattern: {found.listed_left_out}")
    if cost > balance:
        say(args, "The balance does not cover them: the rest is deferred, or unpaid until you top up")
    return 0


def _row(source: str, action: str, size: int, credits: int | None, reason: str | None = None) -> dict[str, Any]:
    return {"source": source, "action": action, "credits": credits, "size_bytes": size, "reason": reason}
