"""Near-duplicates: the same picture, stored again, resized, cropped, mirrored, brighter or without its colours.

Two steps. Features of a network that was trained on photos say which images may be copies: of each image its nearest
few. What tells copies from two photos of much the same thing are the pixels of these: the whole of one against every
part of the other, on small grey pictures. docs/curation.md has what was measured against perceptual hashes.

Knows features, positions and thumbnails; neither files nor splits.

Legend: N images, F features, P parts of a picture, T side of a template in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 100
"""Of the grey thumbnails that are compared, whatever the shape of the image."""

ALIKE = 0.9
"""Correlation from which two pictures are copies: of 1,230 photos of 30 breeds no two that are not reach it."""

_NEAREST = 5
_LEAST_COSINE = 0.6
"""Of features that are no product of chance: copies without colours, or half as large, still have 0.7."""

# A rough look takes a twentieth of the time of a fine one, and leaves one pair of twenty.
_ROUGH_PX, _FINE_PX = 10, 24
_ROUGHLY_ALIKE = 0.75

_LARGEST = 1.6
"""Side of the largest picture that a template is laid on, in sides of the template: a crop of 63%."""

_FLAT = 2.0
"""Grey levels; parts that vary less, such as a patch of sky, are like any other such part."""

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are copies of each other, directly or through others of the group.

    Attributes:
        members: positions, in order; two or more.
        similarity: the least of the correlations that hold it together, in [ALIKE, 1].
    """

    members: tuple[int, ...]
    similarity: float


def candidates(features_NF: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Pairs of positions, the first smaller, that may be copies: each image with those whose features are nearest.

    Takes 2 N N F floating-point operations, and memory for the features in float32.

    Args:
        features_NF: of any length and scale; rows of zeros are near to nothing.
    """
    features = np.array(features_NF, dtype=np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    features /= np.where(lengths > 0, lengths, 1)
    nearest = min(_NEAREST, len(features) - 1)
    found: set[tuple[int, int]] = set()
    for start in range(0, len(features), _BLOCK):
        cosines = features[start : start + _BLOCK] @ features.T
        rows = np.arange(len(cosines))
        cosines[rows, rows + start] = -1.0
        for _ in range(nearest):
            best = cosines.argmax(axis=1)
            near = cosines[rows, best] >= _LEAST_COSINE
            found.update(
                (min(one, other), max(one, other))
                for one, other in zip((rows[near] + start).tolist(), best[near].tolist(), strict=True)
            )
            cosines[rows, best] = -1.0
    return sorted(found)


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """What is compared of an image: uint8 [100, 100], grey, its shape given up.

    Raises:
        OSError, ValueError: it cannot be decoded.
    """
    # A JPEG is decoded at a fraction of its size where that suffices; two times the side keeps what the box averages.
    image.draft("L", (2 * SIDE_PX, 2 * SIDE_PX))
    return np.asarray(image.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))


def compare(
    pairs: Iterable[tuple[int, int]], thumbnails: Mapping[int, NDArray[np.uint8]]
) -> list[tuple[int, int, float]]:
    """The pairs that are copies, each with its correlation in [ALIKE, 1].

    Args:
        pairs: of positions.
        thumbnails: by position; pairs with an image that has none are left out.
    """
    rough = _correlate(pairs, thumbnails, _ROUGH_PX)
    likely = [pair for pair, value in rough.items() if value >= _ROUGHLY_ALIKE]
    fine = _correlate(likely, thumbnails, _FINE_PX)
    return [(*pair, value) for pair, value in sorted(fine.items()) if value >= ALIKE]


def group(copies: Sequence[tuple[int, int, float]]) -> list[Group]:
    """Pairs that share an image become one group; the most alike first.

    Args:
        copies: pairs of positions with their correlation.
    """
    parents: dict[int, int] = {}
    least: dict[int, float] = {}
    for one, other, value in sorted(copies, key=lambda copy: (-copy[2], copy[:2])):
        first, second = sorted((_root(parents, one), _root(parents, other)))
        if first != second:
            parents[second] = first
            least[first] = min(value, least.pop(second, 1.0), least.get(first, 1.0))
    members: dict[int, list[int]] = {}
    for position in sorted(parents):
        members.setdefault(_root(parents, position), []).append(position)
    groups = [Group(tuple(found), least[root]) for root, found in members.items()]
    return sorted(groups, key=lambda found: (-found.similarity, found.members))


def _correlate(
    pairs: Iterable[tuple[int, int]], thumbnails: Mapping[int, NDArray[np.uint8]], template_px: int
) -> dict[tuple[int, int], float]:
    """Of each pair the best correlation of the whole of one, or its mirror image, with a part of the other."""
    neighbours: dict[int, list[int]] = {}
    for one, other in pairs:
        if one in thumbnails and other in thumbnails:
            neighbours.setdefault(one, []).append(other)
            neighbours.setdefault(other, []).append(one)
    templates = {position: _templates(thumbnails[position], template_px) for position in neighbours}
    best: dict[tuple[int, int], float] = {}
    for position, others in neighbours.items():
        parts = _parts(thumbnails[position], template_px)
        # Each image's parts once, against the whole of all its neighbours; theirs against it come in their turn.
        found = (parts @ np.concatenate([templates[other] for other in others]).T).max(axis=0)
        for other, value in zip(others, found.reshape(-1, 2).max(axis=1).tolist(), strict=True):
            pair = (min(position, other), max(position, other))
            best[pair] = max(best.get(pair, -1.0), min(value, 1.0))
    return best


def _templates(picture: NDArray[np.uint8], template_px: int) -> NDArray[np.float32]:
    """The whole picture and its mirror image, float32 [2, T * T] of length 1."""
    small = _resized(picture, template_px)
    return _normalised(np.stack([small.ravel(), small[:, ::-1].ravel()]))


def _parts(picture: NDArray[np.uint8], template_px: int) -> NDArray[np.float32]:
    """All parts of the picture that a template is laid on, float32 [P, T * T] of length 1."""
    shape = (template_px, template_px)
    sides = range(template_px, round(_LARGEST * template_px) + 1)
    return _normalised(
        np.concatenate(
            [sliding_window_view(_resized(picture, side), shape).reshape(-1, template_px**2) for side in sides]
        )
    )


def _resized(picture: NDArray[np.uint8], side_px: int) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(picture).resize((side_px, side_px), Image.Resampling.BOX), dtype=np.float32)


def _normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without their means, of length 1, so that products are correlations; flat ones are zero."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = lengths < _FLAT * rows.shape[1] ** 0.5
    found: NDArray[np.float32] = np.where(flat, 0, rows / np.where(flat, 1, lengths))
    return found


def _root(parents: dict[int, int], position: int) -> int:
    parents.setdefault(position, position)
    while parents[position] != position:
        parents[position] = parents[parents[position]]
        position = parents[position]
    return position
