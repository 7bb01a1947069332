"""Random orders that stay within a few shards at a time, for shards that are fetched one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avssl.data.manifest import Manifest

WINDOW_SHARDS = 8


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """Draws permutations of rows: shards in random order, shuffled together a window at a time.

    A permutation depends on the generator alone, so an epoch can be entered anywhere and split over any
    number of ranks and workers, as with an unrestricted one.

    Parameters
    ----------
    shards : ndarray, int64 (rows,)
        Number of the shard of each row, from 0 without gaps.
    window : int >= 1
        Shards that are mixed; so many need to be in the cache at once, and twice as many at the seams.
    """

    shards: np.ndarray
    window: int = WINDOW_SHARDS

    @classmethod
    def of(cls, manifest: Manifest) -> ShardOrder | None:
        """Order for a manifest whose files are at URLs; None if they are here, where any order will do."""
        if not manifest.is_remote:
            return None
        encoded = manifest.table["path"].combine_chunks().dictionary_encode()
        return cls(encoded.indices.to_numpy().astype(np.int64))

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """One permutation, int64 (rows,)."""
        place = rng.permutation(int(self.shards.max()) + 1)
        groups = place[self.shards] // self.window
        return np.lexsort((rng.random(len(groups)), groups))
