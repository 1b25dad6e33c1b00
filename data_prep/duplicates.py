"""Near-duplicates among millions of pictures: pairs whose two dHashes differ in few bits.

The search is exact. By the pigeonhole principle two hashes that differ in at most k of 64 bits are equal in at
least one of k + 1 bands of bits, so each pair lies together in a bucket of some band of the first hash and some
band of the second. (k + 1)^2 sorts of the hashes bring each such bucket together; only within buckets are pairs
compared. The bands are spread over the hash, because neighbouring bits tend to agree in flat pictures, and two
bands make a key, so that pictures that are alike in one direction only do not fill a bucket.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from configs import ConfigError

MOST_PAIRS = 50_000_000
"""More pairs than that are refused: they would fill the memory, and say that the hashes tell nothing."""
LONG = 300_000
"""Rows from which on a progress bar is shown."""

Hashes = NDArray[np.uint64]
"""(N, 2): dHash across and down, as :func:`data_prep.images.difference_hashes` gives them."""


def near_pairs(hashes: Hashes, bits: int, side: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
    """All pairs of rows whose hashes differ in at most ``bits`` bits across and at most ``bits`` down.

    Args:
        hashes: (N, 2) uint64, no two rows equal; see :func:`distinct`.
        bits: 0..16. The work grows steeply with it.
        side: (N,) 1, 2 or 3: the row is in a first set, in a second, in both. Only pairs between the two are
            wanted. None: all pairs.

    Returns:
        (P, 2) row numbers, the smaller one first, ordered.

    Raises:
        ConfigError: more than ``MOST_PAIRS``.
    """
    if not 0 <= bits <= 16:
        raise ValueError(f"bits={bits}: from 0 to 16")
    sides = np.full(len(hashes), 3, np.uint8) if side is None else side
    spread = _spread(hashes)
    edges = np.linspace(0, 64, bits + 2).round().astype(np.uint64)
    masks = (np.uint64(1) << (edges[1:] - edges[:-1])) - np.uint64(1) if bits else np.array([~np.uint64(0)])

    def search(bands: tuple[int, int]) -> NDArray[np.uint64]:
        return _in_bucket(spread, sides, bits, bands, edges[:-1], masks)

    tables = list(product(range(bits + 1), repeat=2))
    found: list[NDArray[np.uint64]] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        bar = tqdm(total=len(tables), desc="near-duplicates", unit="pass", disable=len(hashes) < LONG)
        for pairs in pool.map(search, tables):
            found.append(pairs)
            bar.update()
            if sum(map(len, found)) > MOST_PAIRS:
                raise _too_many(bits)
        bar.close()
    pairs = np.concatenate(found)
    pairs.sort()
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def distinct(hashes: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that are the first with their hashes, in order, and (N,) the position among these of every row's."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: the first of equal rows comes first
    ordered = hashes[order]
    new = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)] if len(order) else np.zeros(0, bool)
    firsts = order[new]
    rank = np.empty(len(firsts), np.int64)
    rank[np.argsort(firsts)] = np.arange(len(firsts))
    position = np.empty(len(order), np.int64)
    position[order] = rank[np.cumsum(new) - 1]
    return np.sort(firsts), position


def groups(hashes: Hashes, bits: int) -> NDArray[np.int64]:
    """(N,) the first row of each row's group: all rows that a chain of near pairs joins, or its own number."""
    firsts, position = distinct(hashes)
    pairs = near_pairs(hashes[firsts], bits)
    graph = coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), shape=(len(firsts), len(firsts)))
    _, label = connected_components(graph, directed=False)
    first = np.full(len(firsts), len(hashes), np.int64)
    np.minimum.at(first, label, firsts)
    joined: NDArray[np.int64] = first[label][position]
    return joined


def repeats(hashes: Hashes, bits: int) -> NDArray[np.bool_]:
    """(N,) is there a row before it that stays and that it is near to, or equal? All others stay.

    Unlike the members of a chain of pairs, each row that goes is near one that stays.
    """
    firsts, position = distinct(hashes)
    gone = np.zeros(len(firsts), np.bool_)
    pairs = near_pairs(hashes[firsts], bits)
    _drop(pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))], gone)
    again: NDArray[np.bool_] = gone[position] | (firsts[position] != np.arange(len(hashes)))
    return again


def nearest(hashes: Hashes, others: Hashes, bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the row of ``others`` that differs least from it.

    Returns:
        (N,) the row of ``others``, the first of several; -1 if none is near. (N,) how many bits differ, in both
        hashes together; -1 likewise.
    """
    both = np.concatenate([hashes, others])
    firsts, position = distinct(both)
    mine, theirs = position[: len(hashes)], position[len(hashes) :]
    side = np.zeros(len(firsts), np.uint8)
    side[mine] |= 1
    side[theirs] |= 2
    row = np.full(len(firsts), len(others), np.int64)
    np.minimum.at(row, theirs, np.arange(len(others)))
    pairs = near_pairs(both[firsts], bits, side)
    equal = np.flatnonzero(side == 3)
    pairs = np.concatenate([pairs, pairs[:, ::-1], np.stack([equal, equal], 1)])
    pairs = pairs[(side[pairs[:, 0]] & 1 > 0) & (side[pairs[:, 1]] & 2 > 0)]
    apart = differing(both[firsts][pairs[:, 0]], both[firsts][pairs[:, 1]]).sum(axis=1)
    pairs, apart = (values[np.lexsort((row[pairs[:, 1]], apart, pairs[:, 0]))] for values in (pairs, apart))
    best, first = np.unique(pairs[:, 0], return_index=True)
    match, distance = np.full((2, len(firsts)), -1, np.int64)
    match[best], distance[best] = row[pairs[first, 1]], apart[first]
    return match[mine], distance[mine]


def differing(a: Hashes, b: Hashes) -> NDArray[np.int64]:
    """(..., 2) hashes -> (..., 2) how many bits differ, across and down."""
    count: NDArray[np.int64] = np.bitwise_count(a ^ b).astype(np.int64)
    return count


def copies(sha256: NDArray[np.int64], picture: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) is a row's picture a copy, byte for byte, of another one that comes before it?

    Both are (N,) numbers: rows with one ``sha256`` have pictures of the same bytes, rows with one ``picture``
    are faces of one picture.
    """
    _, first, inverse = np.unique(sha256, return_index=True, return_inverse=True)
    again: NDArray[np.bool_] = picture != picture[first[inverse]]
    return again


# --- the search ----------------------------------------------------------------------------------------------


def _too_many(bits: int) -> ConfigError:
    return ConfigError(
        f"more than {MOST_PAIRS:,} pairs of different hashes are within {bits} bits: that tells nothing; "
        f"take fewer bits (exclude.near_bits, --bits)"
    )


def _spread(hashes: Hashes) -> Hashes:
    """The same hashes with their bits in another order, fixed and without a pattern."""
    spread = np.zeros_like(hashes)
    for to, bit in enumerate(np.random.default_rng(0).permutation(64).tolist()):
        spread |= (hashes >> np.uint64(bit) & np.uint64(1)) << np.uint64(to)
    return spread


def _in_bucket(
    hashes: Hashes,
    side: NDArray[np.uint8],
    bits: int,
    bands: tuple[int, int],
    shifts: NDArray[np.uint64],
    masks: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """(P,) near pairs that have these bands in common, and none before: smaller row << 32 | larger row."""
    across, down = (hashes[:, i] >> shifts[band] & masks[band] for i, band in enumerate(bands))
    # Not a key of both for no bits at all: then the bands are the hashes, and 128 bits do not fit; rows differ.
    key = across << np.uint64(32) | down if bits else across
    order = np.argsort(key)
    key, ordered, side = key[order], hashes[order], side[order]  # one after the other in memory
    room = 1 << 16
    while True:
        pairs = np.empty(room, np.uint64)
        count = _scan(key, order, ordered, side, bits, bands, shifts, masks, pairs)
        if count <= room:
            return pairs[:count]
        if count > MOST_PAIRS:
            raise _too_many(bits)
        room = count


def _kernel(function):  # type: ignore[no-untyped-def]
    return numba.njit(cache=True, nogil=True)(function)


@_kernel
def _count(bits):  # type: ignore[no-untyped-def]
    """How many of 64 bits are set; compiled to one instruction."""
    bits -= (bits >> np.uint64(1)) & np.uint64(0x5555555555555555)
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


@_kernel
def _first_zero_band(difference, shifts, masks):  # type: ignore[no-untyped-def]
    for band in range(len(shifts)):
        if (difference >> shifts[band]) & masks[band] == 0:
            return band
    return -1


@_kernel
def _scan(key, order, hashes, side, bits, bands, shifts, masks, pairs):  # type: ignore[no-untyped-def]
    """Fill ``pairs`` with what the buckets of equal ``key`` hold; returns how many there are, even if too many."""
    found, start = 0, 0
    while start < len(key):
        end = start + 1
        while end < len(key) and key[end] == key[start]:
            end += 1
        for i in range(start, end):
            for j in range(i + 1, end):
                across = hashes[i, 0] ^ hashes[j, 0]
                if _count(across) > bits or side[i] | side[j] != 3:
                    continue
                down = hashes[i, 1] ^ hashes[j, 1]
                if (
                    _count(down) <= bits
                    and _first_zero_band(across, shifts, masks) == bands[0]
                    and _first_zero_band(down, shifts, masks) == bands[1]
                ):
                    if found < len(pairs):
                        first, second = min(order[i], order[j]), max(order[i], order[j])
                        pairs[found] = np.uint64(first) << np.uint64(32) | np.uint64(second)
                    found += 1
        start = end
    return found


@_kernel
def _drop(pairs, gone):  # type: ignore[no-untyped-def]
    """``pairs`` ordered by their second, later member: it goes if its first member has stayed."""
    for pair in range(len(pairs)):
        if not gone[pairs[pair, 0]]:
            gone[pairs[pair, 1]] = True
