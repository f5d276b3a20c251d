"""The finds as a page that needs nothing but a browser, and as files for programs.

    curation.html   self-contained: style and thumbnails inside, no script, no network
    curation.json   the same for programs, with every find
    curation.csv    one row per photo of a find, to be worked off

Opens the photos of the finds for their thumbnails, and nothing else. The style is that of the reports of jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from dogbreed.curation import finds
from dogbreed.curation.finds import Curation, Photo
from dogbreed.insight.formats import FILTERS, percent
from dogbreed.insight.photos import thumbnail

PAGE_FILE = "curation.html"
JSON_FILE = "curation.json"
CSV_FILE = "curation.csv"

# A page of more is too heavy to open, and too long to work off; the table has all.
_MOST_ERRORS = 60
_MOST_GROUPS = 40
_MOST_OF_A_GROUP = 6
_MOST_PAIRS = 30
_MOST_UNREADABLE = 100


@dataclass(frozen=True, slots=True)
class _Shown:
    """A photo on the page; `thumbnail` is a JPEG in base64, or empty."""

    photo: Photo
    name: str
    label: str
    thumbnail: str


def write(found: Curation, folder: Path, *, threads: int = 1) -> Path:
    """Writes the page and the files beside it into a folder, which is made; returns the page.

    Args:
        found: what to tell.
        folder: for the files.
        threads: that make thumbnails.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_text(finds.as_json(found), encoding="utf-8")
    (folder / CSV_FILE).write_text(finds.as_csv(found), encoding="utf-8")
    page = folder / PAGE_FILE
    page.write_text(render(found, threads=threads), encoding="utf-8")
    return page


def render(found: Curation, *, threads: int = 1) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("dogbreed.curation"), PackageLoader("dogbreed.insight")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    errors, groups = found.label_errors[:_MOST_ERRORS], found.copies[:_MOST_GROUPS]
    wanted = [one.photo for one in errors] + [photo for one in groups for photo in one.photos[:_MOST_OF_A_GROUP]]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        pictures = dict(zip(wanted, pool.map(lambda photo: thumbnail(photo.path), wanted), strict=True))

    def shown(photo: Photo) -> _Shown:
        return _Shown(photo, _name(photo), found.labels[photo.index], pictures[photo])

    return environment.get_template("curation.html.j2").render(
        found=found,
        headline=_headline(found),
        looked_at=_looked_at(found),
        tiles=_tiles(found),
        errors=[(shown(one.photo), found.labels[one.likely], one) for one in errors],
        groups=[
            (one, [shown(photo) for photo in one.photos[:_MOST_OF_A_GROUP]], len(one.photos) - _MOST_OF_A_GROUP)
            for one in groups
        ],
        pairs=[(one, finds.merge_advice(one, found.labels)) for one in found.merges[:_MOST_PAIRS]],
        more_pairs=max(0, len(found.merges) - _MOST_PAIRS),
        accuracy=percent(found.accuracy),
        unreadable=[(_name(one.photo), one) for one in found.unreadable[:_MOST_UNREADABLE]],
    )


def _name(photo: Photo) -> str:
    return f"{photo.path.parent.name}/{photo.path.name}"


def _headline(found: Curation) -> str:
    photos = {one.photo.path for one in found.label_errors} | {one.photo.path for one in found.unreadable}
    photos |= {photo.path for one in found.copies for photo in one.photos}
    if not photos and not found.counts["classes_to_merge"]:
        return "Nothing stands out in these images"
    return "1 image to look at" if len(photos) == 1 else f"{len(photos)} images to look at"


def _looked_at(found: Curation) -> str:
    parts = [f"{count} of {split}" for split, count in found.images.items()]
    return _listed(parts)


def _tiles(found: Curation) -> list[tuple[str, str]]:
    count = found.counts
    tiles = [
        ("labels likely wrong", str(count["label_errors"])),
        ("groups of copies", str(count["copies"])),
        ("of them across splits", str(count["copies_across_splits"])),
        ("pairs of classes to merge", str(count["classes_to_merge"])),
    ]
    if math.isfinite(found.accuracy):
        tiles.append(("right, of images not learned from", percent(found.accuracy)))
    return tiles


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
