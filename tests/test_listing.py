"""Lists are read to their end while they change: no lasting entry is missed, and none is returned twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from airflow_provider_roughy import api
from airflow_provider_roughy.api import Listing, Page
from airflow_provider_roughy.emulator import Emulator, Fault
from airflow_provider_roughy.exceptions import RoughyProtocolError
from airflow_provider_roughy.hooks import RoughyHook
from tests.properties import examples

pytestmark = pytest.mark.usefixtures("connection")


@dataclass(frozen=True)
class Item:
    id: str


@dataclass
class Server:
    """A list with pages by offset.

    :param entries: What is on it, newest first.
    :param limit: The longest page.
    :param is_odd: Tells entries that cannot be decoded.
    """

    entries: list[str]
    limit: int = 5
    is_odd: Callable[[str], bool] = lambda id: False
    asked: list[int] = field(default_factory=list)

    def page(self, offset: int) -> Any:
        self.asked.append(offset)
        ids = tuple(self.entries[offset : offset + self.limit])
        items = [Item(id) for id in ids if not self.is_odd(id)]
        return Page(items, len(self.entries), self.limit, offset, ids)


def read(server: Server, change: Callable[[list[str]], None] = lambda new: None) -> list[str]:
    """Read a list to its end.

    :param change: Called with what each page told, before the next one is read.
    """
    listing: Listing[Any] = Listing(lambda offset: api.list_assets(offset=offset))
    found: list[str] = []
    while (call := listing.next_call()) is not None:
        new = [item.id for item in listing.take(server.page(int(call.request.params["offset"])))]
        found += new
        change(new)
    return found


@given(st.data())
@settings(max_examples=examples(100), deadline=None)
def test_what_stays_on_a_list_comes_exactly_once_whatever_else_comes_and_goes(data: st.DataObject) -> None:
    length = data.draw(st.integers(0, 40))
    odd = data.draw(st.sets(st.integers(0, 40), max_size=5))
    server = Server([str(n) for n in range(length)], is_odd=lambda id: id.isdigit() and int(id) in odd)
    stayed = set(server.entries)
    changes = data.draw(st.integers(0, 12))

    def change(new: list[str]) -> None:
        nonlocal changes
        if not changes:
            return
        changes -= 1
        what = data.draw(st.sampled_from(["delete new", "delete", "add above", "add anywhere", "both", "nothing"]))
        if what in ("delete new", "both"):
            gone = new[: data.draw(st.integers(0, 5))]
            server.entries = [id for id in server.entries if id not in gone]
        if what == "delete" and server.entries:
            at = data.draw(st.integers(0, len(server.entries)))
            del server.entries[at : at + data.draw(st.integers(1, 12))]
        if what == "add above":
            server.entries[:0] = [f"new {changes} {n}" for n in range(data.draw(st.sampled_from([1, 4, 5, 6, 10])))]
        if what in ("add anywhere", "both"):
            for n in range(data.draw(st.integers(1, 9))):
                server.entries.insert(data.draw(st.integers(0, len(server.entries))), f"old {changes} {n}")
        stayed.intersection_update(server.entries)

    try:
        found = read(server, change)
    except RoughyProtocolError:
        # As many came as went, and just a page of them: a server that ignores offsets looks the same.
        reject()
    assert len(found) == len(set(found))
    assert {id for id in stayed if not server.is_odd(id)} <= set(found)


def test_a_list_that_stays_as_it_is_costs_one_request_in_99_more() -> None:
    for length, requests in ((0, 1), (100, 1), (101, 2), (250, 3), (1000, 11), (10_000, 101)):
        server = Server([str(n) for n in range(length)], limit=100)
        assert len(read(server)) == length
        assert len(server.asked) == requests


def test_a_list_that_never_stops_changing_is_an_error() -> None:
    class Restless(Server):
        def page(self, offset: int) -> Any:
            if offset:
                self.entries = [*self.entries[:5], *(f"{len(self.asked)} {n}" for n in range(95))]
            return super().page(offset)

    server = Restless([str(n) for n in range(100)])
    with pytest.raises(RoughyProtocolError, match="GET /v1/assets: the list changes faster than it can be read"):
        read(server)
    assert len(server.asked) < 100


# ---- Over real sockets


def test_deleting_while_listing_sees_all(roughy: Emulator, hook: RoughyHook) -> None:
    for _ in range(250):
        roughy.seed_asset("failed")
    roughy.clear_requests()
    seen = [hook.delete_asset(asset.id) for asset in hook.list_assets(state="failed")]
    assert (len(seen), roughy.assets) == (250, [])
    assert sum(request.method == "GET" for request in roughy.requests) <= 6


@pytest.mark.parametrize("uploads", [30, 99, 100, 250])
def test_uploads_while_listing_hide_and_double_nothing(roughy: Emulator, hook: RoughyHook, uploads: int) -> None:
    ids = [roughy.seed_asset("ready") for _ in range(150)]
    found: list[str] = []
    for asset in hook.list_assets():
        if len(found) == 50:
            for _ in range(uploads):
                roughy.seed_asset("ready")
        found.append(asset.id)
    assert [id for id in found if id in ids] == ids[::-1]
    assert len(found) <= len(ids) + 1
    assert sum(request.method == "GET" for request in roughy.requests) <= 4


def test_one_that_leaves_as_another_comes_hides_none(roughy: Emulator, hook: RoughyHook) -> None:
    """The list of a state is as long as before, and has moved up all the same."""
    late = roughy.seed_asset("pending_payment")
    ids = [roughy.seed_asset("ready") for _ in range(150)]
    found: list[str] = []
    for asset in hook.list_assets(state="ready"):
        if len(found) == 50:
            hook.delete_asset(ids[-1])
            roughy.set_state(late, "ready")
        found.append(asset.id)
    assert found == [*ids[::-1], late]


def test_an_entry_that_cannot_be_decoded_stops_no_list(roughy: Emulator, hook: RoughyHook) -> None:
    good = hook.get_asset(roughy.seed_asset("ready")).to_dict()
    bad: list[dict[str, Any]] = [
        {"project_id": None},
        {"created_at": None},
        {"created_at": []},
        {"id": "x"},
        {"state": None},
    ]
    items: list[Any] = [5, None, *({**good, **odd} for odd in bad), good]
    roughy.inject(Fault(method="GET", path="/v1/assets", status=200, body={"items": items, "total": len(items)}))
    assert [asset.id for asset in hook.list_assets()] == [good["id"]]


def test_each_list_of_the_hook_is_read_so(roughy: Emulator, hook: RoughyHook) -> None:
    """Each of them, by the requests that it sends for two pages."""
    lists: list[Callable[[], Any]] = [
        hook.list_assets,
        hook.list_cuts,
        hook.list_renders,
        hook.list_projects,
        hook.list_credit_entries,
        hook.list_webhook_endpoints,
    ]
    names = [{"id": f"odd {n}"} for n in range(120)]
    for list_all in lists:
        roughy.clear_requests()
        for nth, items in ((1, names[:100]), (2, names[99:])):
            roughy.inject(Fault(method="GET", nth=nth, status=200, body={"items": items, "total": 120}))
        assert list(list_all()) == []
        assert [request.query.split("offset=")[1] for request in roughy.requests] == ["0", "99"], list_all
