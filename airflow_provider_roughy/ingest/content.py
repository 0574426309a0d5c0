"""Identify recordings by their bytes (``identity="content"``): a file that was moved or renamed is the same recording.

The ledger keeps the SHA-256 of each file under the key that the file has by its location, size and version, so that a
file is read once. This is a fact about that file, and no claim: it may be stored at any time, stored twice, or get
lost. Entries that the ledger already has for a file by its location stay as they are.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from airflow_provider_roughy.ingest.identity import Identity
from airflow_provider_roughy.transfer.progress import bytes_in_words

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from airflow_provider_roughy.ingest.transfers import Transfers
    from airflow_provider_roughy.ingest.upload import UploadItem
    from airflow_provider_roughy.ledger import Ledger
    from airflow_provider_roughy.transfer.pool import OnProgress


def use_content(item: UploadItem, digest: str) -> None:
    """Identify a recording by its content.

    :param item: The recording.
    :param digest: The SHA-256 of its bytes.
    """
    identity = Identity(f"sha256:{digest}", item.size, "", item.identity["project_id"], item.identity["language"])
    item.key, item.identity = identity.key, identity.to_dict()


def read_content(ledger: Ledger, item: UploadItem, on_progress: OnProgress = lambda done, total: None) -> None:
    """Read a file to identify it by its content, and store its SHA-256 in the ledger.

    :param ledger: The ledger.
    :param item: The recording, which was found.
    :param on_progress: Called with the bytes read so far and the bytes in all.
    :raises RoughySourceError: If it cannot be read, or was changed since it was found.
    :raises RoughyLedgerError: If the ledger cannot be written.
    """
    digest, done = hashlib.sha256(), 0
    source = item.open()
    with source.open() as reader:
        for block in reader.blocks(0, source.size):
            digest.update(block)
            done += len(block)
            on_progress(done, source.size)
    # Without a version, a change of the file cannot be noticed.
    if item.identity["version"]:
        ledger.note_content(item.key, digest.hexdigest())
    use_content(item, digest.hexdigest())


def identify_all(
    ledger: Ledger,
    items: dict[str, UploadItem],
    by_place: Collection[str],
    contents: Mapping[str, str],
    may_read: Callable[[UploadItem], bool],
    transfers: Transfers,
) -> list[str]:
    """Identify the recordings of a batch by their content, and read the files whose content the ledger does not have.

    :param ledger: The ledger.
    :param items: The recordings that were found, by key. Those that cannot be read, and copies, are removed.
    :param by_place: The keys that the ledger has: a recording that it has by its location stays as it is.
    :param contents: The SHA-256 of files, by the key of their location.
    :param may_read: Returns whether a file is to be uploaded if it is new.
    :param transfers: Read the files, and report those that cannot be read.
    :returns: The copies, each with the file that it equals.
    """
    unread = []
    for item in items.values():
        if item.key in by_place:
            continue
        if (digest := contents.get(item.key)) is not None:
            use_content(item, digest)
        elif may_read(item):
            unread.append(item)
    identified = set(items.values()).difference(unread)

    def read(item: UploadItem, on_progress: OnProgress) -> None:
        read_content(ledger, item, on_progress)
        identified.add(item)

    transfers.run(unread, read, "Read the content of")
    unique: dict[str, UploadItem] = {}
    copies = [item for item in items.values() if item in identified and unique.setdefault(item.key, item) is not item]
    items.clear()
    items.update(unique)
    return [f"{copy.name} (as {unique[copy.key].name})" for copy in copies]


def identify_one(ledger: Ledger, item: UploadItem) -> None:
    """Identify one recording by its content, unless the ledger has it by its location.

    :param ledger: The ledger.
    :param item: The recording, which was found.
    :raises RoughySourceError: If it cannot be read, or was changed since it was found.
    :raises RoughyLedgerError: If the ledger cannot be used.
    """
    if ledger.find_result(item.key) is not None or ledger.find_latest(item.key) is not None:
        return
    digest = ledger.contents().get(item.key)
    if digest is not None:
        use_content(item, digest)
        return
    item.log.info(
        "Reading %s (%s), as this ledger identifies recordings by content", item.name, bytes_in_words(item.size)
    )
    read_content(ledger, item)
