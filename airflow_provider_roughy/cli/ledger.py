"""``ledger …``: what has been ingested, and how to change that."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TextIO

from airflow_provider_roughy.cli.running import CommandError, confirm, open_hook, open_ledger, print_rows, say
from airflow_provider_roughy.event_loop import run_here
from airflow_provider_roughy.ingest.verdicts import is_gone, kept_until
from airflow_provider_roughy.ledger import ENDED, Entry, Progress
from airflow_provider_roughy.ledger.entries import WENT_WELL
from airflow_provider_roughy.lifecycle import ASSET
from airflow_provider_roughy.logs import counted
from airflow_provider_roughy.polling import poll_batch
from airflow_provider_roughy.transfer.storage import canonical_location

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from airflow_provider_roughy.exceptions import RoughyError, RoughyLedgerError
    from airflow_provider_roughy.ledger import Ledger

#: All states of entries.
_STATES = (*Progress, *sorted(ENDED - {"refused"}), "taken")
#: What a table shows of an entry.
_COLUMNS = ("key", "state", "source", "asset_id", "credits", "kept_until", "at")
#: Digits of a key that a table shows; the first six are enough for a command.
_KEY_DIGITS = 12
#: Digits and names of a key's beginning.
_BEGINNING = re.compile(r"[0-9a-f]{6,40}")


def list_entries(args: argparse.Namespace) -> int:
    """List entries of the ledger."""
    states = _states(args.state)
    ledger, damaged = open_ledger(args), _Damaged()
    now = time.time()
    found = []
    for entry in ledger.entries(states=states, on_error=damaged.add):
        age = now - _moment(entry.at)
        if args.older_than is not None and age < args.older_than:
            continue
        if args.newer_than is not None and age > args.newer_than:
            continue
        if args.source is None or _matches(entry, args.source):
            found.append(entry)
    found.sort(key=lambda entry: (entry.at, entry.key), reverse=True)
    shown = found[: args.limit] if args.limit else found
    print_rows(args, [_row(entry, args) for entry in shown], columns=_COLUMNS)
    if len(shown) < len(found):
        say(args, f"{len(found) - len(shown):,} more are not shown: give --limit 0")
    return damaged.report()


def show(args: argparse.Namespace) -> int:
    """Show entries with all their fields."""
    ledger = open_ledger(args)
    entries = find(ledger, args.recording)
    rows = [
        {**_row(entry, args), "run": entry.owner, "identity": entry.identity, "next": _what_next(ledger, entry)}
        for entry in entries
    ]
    if args.output == "table":
        rows = [{"field": name, "value": value} for row in rows for name, value in row.items()]
    print_rows(args, rows)
    return 0


def retry(args: argparse.Namespace) -> int:
    """Forget recordings that are done, so that the next run ingests them again."""
    ledger = open_ledger(args)
    entries = find(ledger, args.recording)
    unfinished = [entry for entry in entries if not entry.is_done]
    for entry in unfinished:
        say(args, f"Left as it is: {entry.source}: {_what_next(ledger, entry)}")
    done = [entry for entry in entries if entry.is_done]
    # A file that was replaced has an entry for each of its versions.
    ended_badly = {entry.source for entry in done if entry.state not in WENT_WELL}
    for entry in [entry for entry in done if entry.state in WENT_WELL and entry.source in ended_badly]:
        if entry.key not in args.recording:
            done.remove(entry)
            say(args, f"Left as it is: {entry.source} ({entry.state}, key {entry.key}) is another version of that file")
    if done:
        listed = ", ".join(f"{entry.source} ({entry.state})" for entry in done[:5]) + (", …" if len(done) > 5 else "")
        confirm(args, f"Have the next run ingest {listed} again? {_what_it_costs(done)}.")
        for entry in done:
            ledger.forget(entry.key)
            say(args, f"The next run that finds {entry.source} ingests it again; its state was {entry.state}")
    return 1 if unfinished else 0


def forget(args: argparse.Namespace) -> int:
    """Forget recordings, also claims on those that are not done."""
    ledger = open_ledger(args)
    entries = find(ledger, args.recording)
    held = [entry for entry in entries if not entry.is_done and ledger.is_alive(entry.owner)]
    if held and not args.force:
        raise CommandError(
            f"{held[0].source} is {held[0].state}: {ledger.describe_claim(held[0].owner)}. If it is forgotten now, it "
            "may be uploaded and charged twice: wait for the end of that run, or give --force. Nothing was changed"
        )
    listed = ", ".join(f"{entry.source} ({entry.state})" for entry in entries[:5])
    listed += ", …" if len(entries) > 5 else ""
    confirm(args, f"Forget {listed}? {_what_it_costs(entries)}.")
    for entry in entries:
        ledger.forget(entry.key)
        say(args, f"Forgot {entry.source}, which was {entry.state}; a run that finds it ingests it again")
    return 0


def recheck(args: argparse.Namespace) -> int:
    """Compare entries with the state of their assets at Roughy."""
    ledger, damaged = open_ledger(args), _Damaged()
    states = None if args.all else frozenset(_STATES) - WENT_WELL - {"taken", "rejected"} | {"uploaded"}
    entries = [
        entry
        for entry in ledger.entries(states=states, on_error=damaged.add)
        if entry.asset_id is not None and entry.state != "taken"
    ]
    failed: dict[str, RoughyError] = {}
    with open_hook(args) as hook:
        ids = list(dict.fromkeys(entry.asset_id for entry in entries if entry.asset_id is not None))
        # Raises for a connection that cannot be used, which would otherwise fail each asset.
        _ = hook.settings
        verdicts = run_here(lambda: poll_batch(hook, ASSET, ids, failed=failed)) if ids else {}
    rows, gone = [], []
    for entry in entries:
        assert entry.asset_id is not None
        verdict = verdicts.get(entry.asset_id)
        if verdict is None:
            at_roughy, then = "unknown", str(failed.get(entry.asset_id, "Roughy did not answer"))
        elif is_gone(verdict):
            at_roughy, then = "gone", _what_of_gone(entry)
            if entry.is_done:
                gone.append(entry)
        elif verdict.state is None:
            at_roughy, then = "unknown", "Roughy refuses to show it"
        else:
            at_roughy, then = verdict.state, _what_of_state(entry, verdict.state)
        rows.append({**_row(entry, args), "at_roughy": at_roughy, "next": then})
    print_rows(args, rows, columns=("key", "state", "at_roughy", "source", "asset_id", "kept_until", "next"))
    if gone and args.forget_gone:
        confirm(args, f"Forget {counted(len(gone), 'recording')} whose asset is gone? {_what_it_costs(gone)}.")
        for entry in gone:
            ledger.forget(entry.key)
        say(args, f"Forgot {counted(len(gone), 'recording')}; the next run that finds them ingests them again")
    return damaged.report() or int(len(verdicts) < len(ids))


def export(args: argparse.Namespace) -> int:
    """Write all entries as JSON, one a line."""
    ledger, damaged = open_ledger(args), _Damaged()
    rows = (
        _row(entry, None) | {"run": entry.owner, "identity": entry.identity}
        for entry in ledger.entries(on_error=damaged.add)
    )
    if args.file is None:
        _write(rows, sys.stdout)
        return damaged.report()
    try:
        # Not over a file that exists.
        with open(args.file, "x", encoding="utf-8") as file:
            number = _write(rows, file)
    except OSError as error:
        raise CommandError(f"--file cannot be written: {error}") from None
    say(args, f"Wrote {counted(number, 'line')} to {args.file}")
    return damaged.report()


def _write(rows: Iterable[dict[str, Any]], file: TextIO) -> int:
    number = 0
    for row in rows:
        print(json.dumps(row), file=file)
        number += 1
    return number


# ---- Which entries


def find(ledger: Ledger, names: list[str]) -> list[Entry]:
    """Return the entries that keys, beginnings of keys, file names, paths or URIs name.

    :param ledger: The ledger.
    :param names: The names.
    :raises CommandError: If a name matches no entry, or is the beginning of several keys.
    """
    everything: list[Entry] | None = None
    found: dict[str, Entry] = {}
    for name in names:
        entries = []
        if len(name) == 40 and _BEGINNING.fullmatch(name):
            about = ledger.find_result(name)
            version = None if about is not None else ledger.find_latest(name)
            if about is not None:
                entries = [Entry.of_result(about)]
            elif version is not None:
                entries = [Entry.of_version(version)]
        if not entries:
            if everything is None:
                everything = list(ledger.entries(on_error=lambda error: None))
            entries = [entry for entry in everything if entry.key == name] or _named(everything, name)
        if not entries:
            raise CommandError(f"Ledger {ledger.uri} has no recording {name}: `ledger list` shows those that it has")
        if _BEGINNING.fullmatch(name) and len({entry.key for entry in entries}) > 1:
            keys = ", ".join(sorted(entry.key for entry in entries))
            raise CommandError(f"{name} is the beginning of several keys: {keys}")
        found |= {entry.key: entry for entry in entries}
    return list(found.values())


def _named(entries: list[Entry], name: str) -> list[Entry]:
    places = {name, canonical_location(name)}
    matches = [entry for entry in entries if entry.source in places or entry.identity.get("uri") in places]
    if not matches and "/" not in name:
        matches = [entry for entry in entries if _base_name(entry) == name]
    if not matches and _BEGINNING.fullmatch(name):
        matches = [entry for entry in entries if entry.key.startswith(name)]
    return matches


def _matches(entry: Entry, glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in (entry.source, _base_name(entry)))


def _base_name(entry: Entry) -> str:
    return entry.source.rstrip("/").rpartition("/")[2]


def _states(named: list[str] | None) -> frozenset[str] | None:
    if not named:
        return None
    states = {state.strip() for each in named for state in each.split(",")}
    if unknown := states - set(_STATES):
        raise CommandError(f"--state {sorted(unknown)[0]} is not a state: give one of {', '.join(_STATES)}")
    # 0.2 wrote `refused`.
    return frozenset(states | ({"refused"} if "rejected" in states else set()))


# ---- What is shown of them


def _row(entry: Entry, args: argparse.Namespace | None) -> dict[str, Any]:
    is_table = args is not None and args.output == "table" and args.func.__name__ != "show"
    unpaid = entry.state == Progress.PENDING_PAYMENT and entry.since
    return {
        "key": entry.key[:_KEY_DIGITS] if is_table else entry.key,
        "state": {"refused": "rejected"}.get(entry.state, str(entry.state)),
        "source": entry.source,
        "asset_id": entry.asset_id,
        "reason": entry.reason,
        "size_bytes": entry.size_bytes if entry.size_bytes else entry.identity.get("size"),
        "credits": entry.credits,
        "since": entry.since,
        "kept_until": kept_until(entry.since) if unpaid and entry.since else None,
        "at": entry.at[:16].replace("T", " ") if is_table else entry.at,
    }


def _what_next(ledger: Ledger, entry: Entry) -> str:
    """Say what the next run does about an entry."""
    if entry.state == "taken":
        return "a run has taken this announced asset; nothing is ingested"
    if entry.is_done:
        again = "" if entry.state in WENT_WELL else "; `ledger retry` has the next run ingest it again"
        return f"the next run leaves it out, as it is {entry.state}{again}"
    if entry.state == Progress.PENDING_PAYMENT:
        until = f" by {kept_until(entry.since)}" if entry.since else ""
        return f"top up at Roughy{until}; it then becomes ready automatically, and the next run reports it"
    if ledger.is_alive(entry.owner):
        return ledger.describe_claim(entry.owner)
    return f"the run that held it ({entry.owner}) has ended; the next run that finds the file resumes it"


def _what_of_state(entry: Entry, state: str) -> str:
    if entry.is_done:
        return "nothing has changed" if state == entry.state else "the ledger keeps its result"
    if state in ("ready", "failed"):
        return "the next run reports it"
    if state == "pending_payment":
        return "top up at Roughy; it then becomes ready automatically"
    if state == "pending_upload":
        return "the next run that finds the file resumes the upload"
    return "Roughy is preparing it"


def _what_of_gone(entry: Entry) -> str:
    if entry.is_done:
        return "--forget-gone has the next run ingest it again"
    return "the next run reports it as failed, or uploads it if it was not sent"


def _what_it_costs(entries: list[Entry]) -> str:
    """Say that Roughy charges recordings that are ingested again, and how much if the ledger has it."""
    known = [entry.credits for entry in entries if entry.credits is not None]
    unknown = len(entries) - len(known)
    cost = counted(sum(known), "credit") if known else "an unknown number of credits"
    more = f", and {counted(unknown, 'recording')} of unknown length" if known and unknown else ""
    return f"Roughy charges {counted(len(entries), 'recording')} when ingested again: {cost}{more}"


def _moment(at: str) -> float:
    try:
        return datetime.fromisoformat(at).timestamp()
    except (ValueError, OverflowError):
        return 0.0


class _Damaged:
    """Entries that cannot be read, which are reported at the end."""

    def __init__(self) -> None:
        self._errors: Counter[str] = Counter()

    def add(self, error: RoughyLedgerError) -> None:
        """Remember an entry that was left out."""
        self._errors[str(error)] += 1

    def report(self) -> int:
        """Print them to standard error, and return the status of the command."""
        for text in list(self._errors)[:5]:
            print(f"Error: {text}", file=sys.stderr)
        if len(self._errors) > 5:
            print(f"Error: {len(self._errors) - 5:,} more entries cannot be read", file=sys.stderr)
        return int(bool(self._errors))
