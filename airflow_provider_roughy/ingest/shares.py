"""How the shards of a manifest share its recordings. Pure functions."""

from __future__ import annotations


def shard_of(key: str, shards: int) -> int:
    """Return the shard that a recording belongs to.

    :param key: The recording's key in the ledger: 40 hexadecimal digits.
    :param shards: How many shards there are.
    """
    # The digits are those of a SHA-256, so that all shards get about the same number.
    return int(key[:16], 16) % shards


def portion_of(key: str, shards: int) -> int:
    """Return the portion of a recording: the number of the shard that helps with it first.

    So two helpers rarely upload the same recordings. A portion does not depend on :func:`shard_of`: each part has one
    for every shard.

    :param key: The recording's key in the ledger.
    :param shards: How many shards there are.
    """
    return int(key[16:32], 16) % shards


def portions(shard: int, shards: int) -> list[int]:
    """Return the portions of a part in the order in which a shard helps with them: its own first.

    :param shard: The shard that helps.
    :param shards: How many shards there are.
    """
    return [(shard + step) % shards for step in range(shards)]


def help_order(shard: int, shards: int) -> list[int]:
    """Return the shards that a shard helps once its own part is done, in this order.

    Each shard starts at the one after itself, so that helpers spread.

    :param shard: The shard.
    :param shards: How many shards there are.
    """
    return [(shard + step) % shards for step in range(1, shards)]
