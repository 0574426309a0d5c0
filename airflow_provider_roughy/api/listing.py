"""Read a list to its end while it changes. All pagination of this package is here.

Roughy's lists have pages by offset, newest first (API page "List assets"). An entry that vanishes moves all entries
after it up by one, so that plain offsets miss an entry; a new entry moves them down, so that an entry is read twice. An
old asset may also enter the list of a state in the middle.

So each page starts with the last entry of the page before. As long as a page has any known entry, no entry between the
two pages was missed. Otherwise the list has moved, by at least the change of its ``total``, and is read again from
there, then from further up, twice as far each time, back to its start if need be. Known entries are skipped.

If nothing changes, this costs one request in 99 more than plain offsets, and none up to 100 entries::

    entries           100   250   1,000   10,000
    requests            1     3      11      101
    by offsets alone    1     3      10      100
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from airflow_provider_roughy.exceptions import RoughyProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_roughy.api.calls import Call, Page, Resource

R = TypeVar("R", bound="Resource")

#: The maximum number of pages without a known entry; one more for each so many entries.
_MAX_MISSES, _ENTRIES_PER_MISS = 25, 20


class Listing(Generic[R]):
    """Reads a list page by page, in sync and async code alike.

    ::

        listing = Listing(lambda offset: api.list_assets(state="failed", offset=offset))
        while (call := listing.next_call()) is not None:
            for asset in listing.take(client.run(call)):
                ...

    An entry that is in the list from the first page to the last is returned exactly once, any other one at most once.

    :param read: Returns the call that reads the page at an offset.
    :param overlap: How many entries of a page the next one repeats. With 0, an entry may be missed: for callers that
        read missing entries one by one.
    """

    def __init__(self, read: Callable[[int], Call[Page[R]]], *, overlap: int = 1) -> None:
        self._read = read
        self._overlap = overlap
        #: The request that reads it, for messages.
        self._name = "A list"
        #: The offset of the next page; ``None`` at the end.
        self._offset: int | None = 0
        self._seen: set[str] = set()
        #: The start, the end and the entries of the last page.
        self._start, self._end, self._ids = 0, 0, tuple[str, ...]()
        self._total = 0
        #: Whether the next page holds a known entry unless the list has moved.
        self._overlaps = False
        #: The number of pages without a known entry, since the last page with a new entry and in all.
        self._misses = self._all_misses = 0

    def next_call(self) -> Call[Page[R]] | None:
        """Return the call that reads the next page, or ``None`` at the end of the list."""
        if self._offset is None:
            return None
        call = self._read(self._offset)
        state = call.request.params.get("state")
        self._name = f"{call.request}{f' (state {state})' if state else ''}"
        return call

    @property
    def entries_left(self) -> int:
        """The number of entries after the last page, by the total of that page."""
        return 0 if self._offset is None else max(0, self._total - self._end)

    def take(self, page: Page[R]) -> list[R]:
        """Return the new entries of a page.

        :param page: The value of :meth:`next_call`.
        :raises RoughyProtocolError: If the server returns the same page for another offset.
        """
        assert self._offset is not None
        offset, grown = self._offset, page.total - self._total
        self._total = page.total
        if self._overlaps and offset and self._seen.isdisjoint(page.ids):
            self._find_last_known(offset, grown)
            return []
        if page.ids and page.ids == self._ids and offset > self._start and grown <= 0:
            # Had the list moved down by a page, it would have grown: the server ignores offsets.
            raise RoughyProtocolError(
                f"{self._name}: the list cannot be read to its end, as the page at offset {offset} repeats the one "
                "before. Does a proxy drop or cache the query?"
            )
        new = [item for item in {item.id: item for item in page.items}.values() if item.id not in self._seen]
        if not self._seen.issuperset(page.ids):
            self._misses = 0
        self._seen.update(page.ids)
        self._start, self._end, self._ids = offset, offset + len(page.ids), page.ids
        is_last = not page.ids or self._end >= page.total
        self._offset = None if is_last else max(offset + 1, self._end - self._overlap)
        self._overlaps = self._offset is not None and self._offset < self._end
        return new

    def _find_last_known(self, offset: int, grown: int) -> None:
        """Set the offset to search further up for the last known entry.

        :param offset: Where it should have been.
        :param grown: By how much the list has grown since the page before.
        """
        self._misses, self._all_misses = self._misses + 1, self._all_misses + 1
        if self._all_misses > _MAX_MISSES + len(self._seen) // _ENTRIES_PER_MISS:
            raise RoughyProtocolError(
                f"{self._name}: the list changes faster than it can be read. Try again when fewer entries are created "
                "or deleted"
            )
        step = max(-grown, 1 << (self._misses - 1))
        self._offset = offset + grown if self._misses == 1 and grown > 0 else max(0, offset - step)
        # The list will probably change again.
        self._overlap = max(self._overlap, min(step, 50))
