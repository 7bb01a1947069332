"""Prepared data: small copies of videos and images in tar shards, made once and read many times faster."""

from avssl.shards.job import Account, ShardJob, SkipLimit, make_shards
from avssl.shards.settings import ShardSettings
from avssl.shards.store import Store, order_of, remove_shards
from avssl.shards.verify import verify

__all__ = [
    "Account",
    "ShardJob",
    "ShardSettings",
    "SkipLimit",
    "Store",
    "make_shards",
    "order_of",
    "remove_shards",
    "verify",
]
