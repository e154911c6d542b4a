"""Near duplicates: images that show the same photograph, brightened, compressed again, or cropped by a pixel or two.

    hashes, thumbnails = dhash(images), thumbnail(images)       # block by block; 8 and 256 bytes an image
    near = group_near(hashes, thumbnails)
    near.group                                                  # the images that belong together share a number

Two images are near if their 64-bit difference hashes differ in at most HAMMING bits *and* their 16 x 16 thumbnails
correlate by at least CORRELATION. On FER2013 the hash alone would be wrong 19 times of 20 (faces are alike at 9 x 8
pixels); of pairs that the correlation admits, all but a few in a hundred are the same photograph to the eye. Of images
cropped by one pixel at two sides and scaled back the two find about nine in ten, of those compressed again all.

Not all pairs are compared: two hashes that differ in at most 7 bits have one of four 16-bit bands that differs in at
most one, so each image is compared with those in its own and the 16 neighbouring buckets of each band. Nothing within
HAMMING is missed, unless so many images are alike that COMPARISONS would be exceeded; `Near.complete` tells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

HAMMING = 7  # bits of 64; the bands find nothing beyond
CORRELATION = 0.95
COMPARISONS = 1 << 30  # of hashes, at most
THUMBNAIL = 16  # pixels

_BANDS, _BITS = 4, 16
_BLOCK = 1 << 20  # pairs of hashes compared at once
_VERIFIED = 1 << 14  # pairs of thumbnails compared at once


@dataclass(frozen=True)
class Near:
    """`group` int64 (n,): -1 for an image that is near no other; `complete`: no comparison was left out."""

    group: np.ndarray
    complete: bool


# --- hash and thumbnail ---------------------------------------------------------------------------------------------


def grey(images: np.ndarray) -> np.ndarray:
    """float32 (N, H, W) of uint8 (N, C, H, W): the mean of the channels."""
    total = images[:, 0].astype(np.uint16)
    for channel in range(1, images.shape[1]):
        total += images[:, channel]
    return total.astype(np.float32) / np.float32(images.shape[1])


def dhash(pictures: np.ndarray) -> np.ndarray:
    """64-bit difference hash of grey pictures (N, H, W), uint64 (N,): whether each of 9 x 8 cells is darker than the
    next one to the right, so that brightness and contrast do not matter."""
    _, height, width = pictures.shape
    cells = _average(height, 8) @ pictures @ _average(width, 9).T
    bits = np.packbits((cells[:, :, 1:] > cells[:, :, :-1]).reshape(-1, 64), axis=1)
    return bits.view(">u8").ravel().astype(np.uint64)


def thumbnail(pictures: np.ndarray) -> np.ndarray:
    """uint8 (N, 256): grey pictures averaged to 16 x 16 cells, each stretched to the full range of grey levels."""
    _, height, width = pictures.shape
    cells = (_average(height, THUMBNAIL) @ pictures @ _average(width, THUMBNAIL).T).reshape(-1, THUMBNAIL**2)
    low, high = cells.min(1, keepdims=True), cells.max(1, keepdims=True)
    return np.rint((cells - low) * (255 / np.maximum(high - low, 1e-3))).astype(np.uint8)


@lru_cache
def _average(side: int, cells: int) -> np.ndarray:
    """float32 (cells, side): each row averages its share of a line of `side` pixels."""
    edges = np.arange(cells + 1) * (side / cells)
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * (cells / side)).astype(np.float32)


# --- groups ---------------------------------------------------------------------------------------------------------


def group_near(hashes: np.ndarray, thumbnails: np.ndarray) -> Near:
    """Groups of images that are near, directly or by way of others; hashes (n,), thumbnails (n, 256)."""
    components = _Components(len(hashes))
    limit = _limit(hashes)
    for left, right in _close_pairs(hashes, limit):
        for start in range(0, len(left), _VERIFIED):
            i, j = left[start : start + _VERIFIED], right[start : start + _VERIFIED]
            apart = components.root(i) != components.root(j)  # what is together already need not be compared
            i, j = i[apart], j[apart]
            alike = _correlation(thumbnails[i], thumbnails[j]) >= CORRELATION
            components.join(i[alike], j[alike])
    return Near(components.groups(), limit >= len(hashes))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(1, keepdims=True, dtype=np.float32) for x in (a, b))
    scale = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    return np.einsum("ij,ij->i", a, b) / np.maximum(scale, 1e-6)


def _bands(hashes: np.ndarray) -> Iterator[np.ndarray]:
    for band in range(_BANDS):
        yield ((hashes >> np.uint64(_BITS * band)) & np.uint64((1 << _BITS) - 1)).astype(np.int64)


def _limit(hashes: np.ndarray) -> int:
    """How many images of a bucket one image may be compared with: all, or as many as COMPARISONS allows."""
    sizes = [np.bincount(key, minlength=1 << _BITS) for key in _bands(hashes)]
    limit = max(len(hashes), 1)
    while limit > 1 and sum(_comparisons(size, limit) for size in sizes) > COMPARISONS:
        limit //= 2
    return limit


def _comparisons(size: np.ndarray, limit: int) -> int:
    capped = np.minimum(size, limit)
    key = np.arange(len(size))
    neighbours = sum(int((size * capped[key ^ bit])[(key & bit) == 0].sum()) for bit in _single_bits())
    return int((size * capped).sum()) // 2 + neighbours


def _single_bits() -> list[int]:
    return [1 << bit for bit in range(_BITS)]


def _close_pairs(hashes: np.ndarray, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions whose hashes differ in at most HAMMING bits, in blocks; a pair may come up to four times."""
    for key in _bands(hashes):
        order = np.argsort(key, kind="stable")
        key, sorted_hashes = key[order], hashes[order]
        ends = np.searchsorted(key, np.arange((1 << _BITS) + 1))  # bucket k is ends[k] to ends[k + 1]
        place = np.arange(len(key))
        for first, last in [(place + 1, ends[key + 1]), *_neighbours(key, ends)]:
            counts = np.minimum(last - first, limit)
            for rows in _cut(counts):
                left = np.repeat(place[rows], counts[rows])
                starts = np.cumsum(counts[rows]) - counts[rows]
                right = np.arange(len(left)) + np.repeat(first[rows] - starts, counts[rows])
                close = np.bitwise_count(sorted_hashes[left] ^ sorted_hashes[right]) <= HAMMING
                yield order[left[close]], order[right[close]]


def _neighbours(key: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each bit the range of the bucket that differs in it, seen from the side where the bit is not set."""
    for bit in _single_bits():
        other, asks = key ^ bit, (key & bit) == 0
        yield ends[other], np.where(asks, ends[other + 1], ends[other])


def _cut(counts: np.ndarray) -> Iterator[slice]:
    """Consecutive rows whose counts add up to about _BLOCK."""
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, done + _BLOCK, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


class _Components:
    """Sets of numbers 0..n-1 that are joined pair by pair."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def root(self, x: np.ndarray) -> np.ndarray:
        """The number that stands for the set of each x."""
        while True:
            above = self._parent[x]
            if np.array_equal(above, x):
                return x
            self._parent[x] = self._parent[above]
            x = above

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        parent = self._parent
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            while parent[i] != i:
                i = parent[i]
            while parent[j] != j:
                j = parent[j]
            parent[max(i, j)] = min(i, j)

    def groups(self) -> np.ndarray:
        """A number for each set of two or more, in the order of their first members; -1 for the others."""
        root = self.root(np.arange(len(self._parent)))
        several = np.bincount(root, minlength=len(root))[root] > 1
        group = np.full(len(root), -1, np.int64)
        group[several] = np.unique(root[several], return_inverse=True)[1]
        return group
