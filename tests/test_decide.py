"""The decision about a recording: every combination of arguments, against the table in ``ingest/decide.py``."""

from __future__ import annotations

from itertools import product

import pytest

from airflow_provider_roughy.ingest.decide import Action, decide

NAMES = ("done", "open", "reported", "mine", "same_task", "owner_alive", "found")
CASES = [dict(zip(NAMES, values, strict=True)) for values in product((False, True), repeat=len(NAMES))]


def expected(case: dict[str, bool]) -> Action:
    """Read the table line by line, as a person would."""
    done, is_open, reported, mine, same_task, alive, found = (case[name] for name in NAMES)
    if not is_open:
        if reported:
            return Action.REPORT
        if not found:
            return Action.IGNORE
        return Action.LEAVE_OUT if done else Action.UPLOAD
    owner_is_dead = not alive and (found or same_task)
    if mine or owner_is_dead:
        return Action.REPORT if done else Action.RESUME
    return Action.LEAVE_OUT if found else Action.IGNORE


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(name for name, is_so in case.items() if is_so))
def test_decision_follows_the_table(case: dict[str, bool]) -> None:
    assert decide(**case) is expected(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(name for name, is_so in case.items() if is_so))
def test_nothing_is_uploaded_that_is_done_or_held_by_a_live_run(case: dict[str, bool]) -> None:
    action = decide(**case)
    if case["done"] or not case["found"]:
        assert action is not Action.UPLOAD
    if case["open"] and case["owner_alive"] and not case["mine"]:
        assert action in (Action.LEAVE_OUT, Action.IGNORE)
    if case["found"]:
        assert action is not Action.IGNORE, "a recording that was found is never left out without being counted"
