"""The order of examples: Grain's shuffle, vectorised over positions.

Grain permutes the numbers below n by cycle walking (Black & Rogaway 2002): for one position at a time, it enciphers a
number of 16 bits or more until the result is below n. With n = 10 a position takes 6,500 rounds on average, and a batch
of 512 examples a second. This module permutes a whole epoch of up to 2^16 examples in some 200 array operations. In a
larger set, where walks are short, it computes only the requested positions. The order is exactly Grain's, so that older
runs resume.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

SMALL = 2**16  # the smallest domain of the cipher
ROUNDS = 4
SHRINK = 8  # factor by which the domain shrinks at a time; 4 to 16 take about equally long


def shuffled(size: int, seed: int, start: int, stop: int) -> np.ndarray:
    """Returns the examples at positions ``start`` to ``stop`` of an endless stream that reshuffles each epoch.

    Args:
      size: number of examples in an epoch.
      seed: seed of the first epoch, below 2^32; epoch e uses seed + e.
      start: first position.
      stop: end of the range, exclusive; greater than ``start``.

    Returns:
      Indices below ``size``, int ``(stop - start,)``.
    """
    parts = []
    for epoch in range(start // size, -(-stop // size)):
        within = np.clip([start - epoch * size, stop - epoch * size], 0, size)
        parts.append(_part_of_epoch(size, (seed + epoch) % 2**32, *within.tolist()))
    return np.concatenate(parts).astype(np.int64)


def _part_of_epoch(size: int, seed: int, start: int, stop: int) -> np.ndarray:
    if size <= SMALL:
        return _epoch(size, seed)[start:stop]
    half = -(-(size - 1).bit_length() // 2)  # Grain itself uses one bit too few for size 4^k + 1, repeating an example
    return _cycle_walk(partial(_encipher, _round_keys(seed), half), np.arange(start, stop), size)


@lru_cache(maxsize=64)
def _epoch(size: int, seed: int) -> np.ndarray:
    """Returns the permutation of a small set, uint16 ``(size,)``.

    A walk that ends below ``size`` is also a chain of walks that end below a larger ``count``. So this shrinks the
    domain in several stages with short walks.
    """
    order, count = _encipher(_round_keys(seed), 8, np.arange(SMALL, dtype=np.uint16)), SMALL
    while count > size:
        count = max(count // SHRINK, size)
        order = _cycle_walk(order.take, np.arange(count), count)
    return order


def _cycle_walk(permute: Callable[[np.ndarray], np.ndarray], x: np.ndarray, size: int) -> np.ndarray:
    """Applies the permutation to each number of ``x`` until the result is below ``size``, at least once."""
    x = permute(x)
    away = np.flatnonzero(x >= size)
    while away.size:
        moved = permute(x[away])
        x[away] = moved
        away = away[moved >= size]
    return x


def _encipher(keys: list[int], half: int, x: np.ndarray) -> np.ndarray:
    """Enciphers with Simon (Beaulieu et al. 2013, §3.1), a block cipher of two words of ``half`` bits; few rounds."""
    mask = 2**half - 1

    def rotate_left(word: np.ndarray, by: int) -> np.ndarray:
        return word << by | word >> (half - by)

    def round_function(word: np.ndarray, key: int) -> np.ndarray:
        return (rotate_left(word, 1) & rotate_left(word, 8) ^ rotate_left(word, 2) ^ key & mask) & mask

    left, right = x >> half, x & mask
    for i in range(0, ROUNDS, 2):
        left = left ^ round_function(right, keys[i])
        right = right ^ round_function(left, keys[i + 1])
    return left << half | right


def _round_keys(seed: int) -> list[int]:
    """Returns the ``ROUNDS`` 32-bit words that C++'s ``std::seed_seq{seed}`` generates (C++17, [rand.util.seedseq])."""
    n, mask = ROUNDS, 2**32 - 1
    words = [0x8B8B8B8B] * n
    for k in range(2 * n):
        here, near, far, last = k % n, (k + 1) % n, (k + 2) % n, (k - 1) % n
        if k < n:
            word = words[here] ^ words[near] ^ words[last]
            first = 1664525 * (word ^ word >> 27) & mask
            second = first + (1, 1 + seed, 2, 3)[k] & mask
            words[near], words[far] = words[near] + first & mask, words[far] + second & mask
        else:
            word = words[here] + words[near] + words[last] & mask
            first = 1566083941 * (word ^ word >> 27) & mask
            second = first - here & mask
            words[near], words[far] = words[near] ^ first, words[far] ^ second
        words[here] = second
    return words
