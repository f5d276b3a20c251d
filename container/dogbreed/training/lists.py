"""Lists that name images and their classes: SageMaker's LST files, and its augmented manifests.

An LST file holds a number, a label and a path per line, with tabs between them. An augmented manifest is one JSON
object per line: `source-ref` is the image, one further attribute its label, a whole number or a name. Where there is a
number, the attribute's `-metadata` may give the `class-name`, as Ground Truth writes it:

    {"source-ref": "s3://bucket/dogs/1.jpg", "breed": 3, "breed-metadata": {"class-name": "Affenpinscher"}}

A path is relative to the folder of the images. An S3 URI stands for the file below that folder whose path ends as the
URI does, or which alone has its name.

Knows nothing of splits and pixels.

Sources: AWS docs, image-classification (LST, augmented manifest), augmented-manifest, sms-data-output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dogbreed.errors import DataError
from dogbreed.imagefiles import Walk

MANIFEST_SUFFIX = ".manifest"
"""Of the files that are taken for augmented manifests, in lower case."""

# Also what other tools write about images, with other keys; only the first line of such a file tells.
_LINES_SUFFIX = ".jsonl"
_FIRST_LINE_BYTES = 64 * 1024

_IMAGE = "source-ref"
_REFERENCE, _METADATA, _CLASS_NAME = "-ref", "-metadata", "class-name"
# 3, and 3.0 as some tools write it.
_WHOLE = re.compile(r"(\d{1,9})(\.0+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Label:
    """What a list says of an image's class.

    Attributes:
        number: that stands for the class; None where only a name does.
        name: of the class; None where nothing names it. For an LST file the folder of the image, which may be empty.
    """

    number: int | None
    name: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a list."""

    label: Label
    path: Path


def find_manifest(folder: Path) -> Path | None:
    """The augmented manifest in a folder; None when there is none.

    Raises:
        DataError: there are several.
    """
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_manifest(path))
    if len(found) > 1:
        raise DataError(
            f"{folder} holds {len(found)} manifests ({', '.join(path.name for path in found[:5])}); give each split a "
            f"channel of its own with one manifest"
        )
    return found[0] if found else None


def _is_manifest(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix != _LINES_SUFFIX or not path.is_file():
        return suffix == MANIFEST_SUFFIX
    with path.open("rb") as stream:
        return f'"{_IMAGE}"'.encode() in stream.readline(_FIRST_LINE_BYTES)


def read_list(file: Path, images: Path) -> tuple[Listed, ...]:
    """The lines of an LST file or an augmented manifest, which its first character tells.

    Args:
        file: the list.
        images: folder of the images.

    Raises:
        DataError: it is neither, or names what is not there; with the line.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise DataError(f"the list {file} is a folder, a pipe or a device; give a file")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {file} cannot be read: {error}") from error
    filled = [(number, text) for number, text in enumerate(lines, start=1) if text.strip()]
    if not filled:
        raise DataError(
            f"the list {file} is empty; give one image per line: number, label and path with tabs between, or a JSON "
            f"object with {_IMAGE} and a label"
        )
    manifest = filled[0][1].lstrip().startswith("{")
    read: Callable[[str], Listed] = _Manifest(images).read if manifest else _Lines(images).read
    listed = []
    for number, text in filled:
        try:
            listed.append(read(text))
        except ValueError as error:
            raise DataError(f"{file}, line {number}: {error}") from None
    return tuple(listed)


def read_label(values: Sequence[object]) -> Label:
    """The class that the attributes of an image tell: a number or a name, and objects that may hold a `class-name`.

    Args:
        values: of the attributes but the image's, as JSON.

    Raises:
        ValueError: they tell no class, or more than one.
    """
    plain = [value for value in values if not isinstance(value, dict)]
    names = [value[_CLASS_NAME] for value in values if isinstance(value, dict) and _CLASS_NAME in value]
    if len(plain) > 1 or len(names) > 1 or not (plain or names):
        raise ValueError(
            f"there are {max(len(plain), len(names))} labels; give each image one, a whole number or a name"
        )
    name = names[0] if names else None
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ValueError(f"the {_CLASS_NAME} {name!r} is not a name")
    if not plain:
        return Label(None, name)
    number = _read_number(plain[0])
    if number is not None:
        return Label(number, name)
    if not isinstance(plain[0], str) or not plain[0].strip():
        raise ValueError(f"the label {plain[0]!r} is neither a whole number from 0 on nor a name")
    return Label(None, name or plain[0])


def write_line(path: PurePosixPath, label: Label) -> str:
    """A line of an augmented manifest, which `read_list` reads."""
    written: dict[str, object] = {_IMAGE: str(path), "class": label.name if label.number is None else label.number}
    if label.number is not None and label.name is not None:
        written[f"class{_METADATA}"] = {_CLASS_NAME: label.name}
    return json.dumps(written) + "\n"


def _read_number(value: object) -> int | None:
    """The whole number that a label is, as a number or as text; None when it is none."""
    if isinstance(value, bool):
        return None
    whole = _WHOLE.fullmatch(str(value).strip())
    return int(whole.group(1)) if whole else None


class _Lines:
    """Reads the lines of an LST file."""

    def __init__(self, images: Path) -> None:
        self._images = images

    def read(self, text: str) -> Listed:
        """Raises ValueError with what is wrong."""
        fields = text.rstrip("\r").split("\t")
        if len(fields) != 3:
            raise ValueError(
                f"{text!r} has {len(fields)} fields; give three, separated by tabs: a number, one label and a path"
            )
        number = _read_number(fields[1])  # im2rec writes 3.000000
        if number is None:
            raise ValueError(f"the label {fields[1]!r} is not a whole number from 0 on")
        path = _inside(self._images, fields[2])
        return Listed(Label(number, path.relative_to(self._images).parent.name), path)


class _Manifest:
    """Reads the lines of an augmented manifest."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._attribute: str | None = None
        self._by_name: dict[str, list[PurePosixPath]] | None = None

    def read(self, text: str) -> Listed:
        """Raises ValueError with what is wrong."""
        try:
            line = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"it is not JSON: {error}") from None
        if not isinstance(line, dict):
            raise ValueError(f"it holds {text.strip()[:80]!r} instead of a JSON object")
        source = line.get(_IMAGE)
        if not isinstance(source, str):
            raise ValueError(f"{_IMAGE} is {source!r}; give the path or S3 URI of the image")
        attribute = _label_attribute(line)
        if self._attribute is None:
            self._attribute = attribute
        if attribute != self._attribute:
            raise ValueError(f"the label is {attribute!r}, but {self._attribute!r} in the lines before; name it alike")
        values = [line[name] for name in (attribute, attribute + _METADATA) if name in line]
        return Listed(read_label(values), self._find(source))

    def _find(self, source: str) -> Path:
        if not source.startswith("s3://"):
            return _inside(self._images, source)
        parts = PurePosixPath(source.removeprefix("s3://")).parts
        if self._by_name is None:
            self._by_name = _index(self._images)
        called = self._by_name.get(parts[-1], []) if parts else []
        # The more of a path is the end of the URI, the better; a path all of which is not is as good as its name.
        ending = [path for path in called if path.parts == parts[-len(path.parts) :]]
        if ending:
            return self._images / max(ending, key=lambda path: len(path.parts))
        if len(called) == 1:
            return self._images / called[0]
        if called:
            raise ValueError(
                f"{source!r} may be {called[0]} or {called[1]} in {self._images}; give paths relative to that folder"
            )
        raise ValueError(f"no file in {self._images} is called as in {source!r}")


def _label_attribute(line: Mapping[str, object]) -> str:
    """The attribute of a manifest's line that is the label.

    Raises:
        ValueError: there is none, or one cannot tell which.
    """
    found = [name for name in line if not name.endswith((_REFERENCE, _METADATA))]
    if not found:  # only what is known about it was kept
        found = [
            name.removesuffix(_METADATA)
            for name, value in line.items()
            if name.endswith(_METADATA) and isinstance(value, dict) and _CLASS_NAME in value
        ]
    if len(found) > 1:
        labelled = [name for name in found if name + _METADATA in line]
        found = labelled if len(labelled) == 1 else found
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise ValueError(f"one attribute must be the label, beside {_IMAGE}; found: {names}")
    return found[0]


def _inside(images: Path, text: str) -> Path:
    """The file at a relative path. Raises ValueError."""
    relative = Path(text.strip())
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"the path {text!r} leaves the channel; give one that is relative to its folder")
    path = images / relative
    if not path.is_file():
        raise ValueError(f"{text!r} is not in {images}; paths are relative to the channel's folder")
    return path


def _index(folder: Path) -> dict[str, list[PurePosixPath]]:
    """File name -> relative paths of the files below a folder, from one walk (FastFile lists slowly)."""
    found: dict[str, list[PurePosixPath]] = {}
    for path in sorted(Walk([folder]).files(folder)):
        found.setdefault(path.name, []).append(PurePosixPath(path.relative_to(folder).as_posix()))
    return found
