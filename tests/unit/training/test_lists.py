from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

import pytest

from dogbreed.errors import DataError
from dogbreed.training.lists import Label, find_manifest, read_label, read_list, write_line


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a/1.jpg, b/1.jpg and b/c/2.jpg."""
    for path in ("a/1.jpg", "b/1.jpg", "b/c/2.jpg"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).touch()
    return tmp_path / "images"


def read(images: Path, *lines: object) -> list[tuple[str, Label]]:
    """The lines of a manifest, as relative paths with labels."""
    file = images / "x.manifest"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
    return [(str(one.path.relative_to(images)), one.label) for one in read_list(file, images)]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("b/1.jpg", "b/1.jpg"),
        ("s3://bucket/data/b/1.jpg", "b/1.jpg"),
        ("s3://bucket/b/a/1.jpg", "a/1.jpg"),
        ("s3://bucket/elsewhere/2.jpg", "b/c/2.jpg"),
        ("s3://bucket/c/2.jpg", "b/c/2.jpg"),
    ],
)
def test_an_image_is_a_path_or_an_uri_that_ends_like_one(images: Path, source: str, path: str) -> None:
    assert read(images, {"source-ref": source, "class": "0"}) == [(path, Label(0, None))]


def test_of_two_ends_the_longer_one_counts(images: Path) -> None:
    (images / "1.jpg").touch()
    assert read(images, {"source-ref": "s3://bucket/b/1.jpg", "class": 1})[0][0] == "b/1.jpg"
    assert read(images, {"source-ref": "s3://bucket/z/1.jpg", "class": 1})[0][0] == "1.jpg"


@pytest.mark.parametrize(
    ("attributes", "label"),
    [
        ({"class": 3}, Label(3, None)),
        ({"class": "3"}, Label(3, None)),
        ({"class": 3.0}, Label(3, None)),
        ({"class": "Beagle"}, Label(None, "Beagle")),
        ({"class": 3, "class-metadata": {"class-name": "Beagle", "type": "groundtruth"}}, Label(3, "Beagle")),
        ({"class": 3, "class-metadata": {"confidence": 0.5}}, Label(3, None)),
        ({"class": "Beagle", "class-metadata": {"class-name": "Beagle"}}, Label(None, "Beagle")),
        ({"class-metadata": {"class-name": "Beagle"}}, Label(None, "Beagle")),
        ({"mask-ref": "s3://x/y", "class": 3}, Label(3, None)),
        ({"author": "me", "class": 3, "class-metadata": {"class-name": "Beagle"}}, Label(3, "Beagle")),
    ],
)
def test_the_label_is_the_attribute_beside_the_image(images: Path, attributes: dict[str, object], label: Label) -> None:
    assert read(images, {"source-ref": "a/1.jpg", **attributes}) == [("a/1.jpg", label)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "it is not JSON: "),
        ('{"a": ' + "[" * 100_000, "it is not JSON: "),
        ("[1]", r"it holds '\[1\]' instead of a JSON object"),
        ({"class": 1}, "source-ref is None; give the path"),
        ({"source-ref": ["a/1.jpg"], "class": 1}, r"source-ref is \['a/1\.jpg'\]"),
        ({"source-ref": "a/1.jpg"}, "one attribute must be the label, beside source-ref; found: none"),
        ({"source-ref": "a/1.jpg", "x": 1, "y": 2}, "found: x, y"),
        ({"source-ref": "a/1.jpg", "other": 1}, "the label is 'other', but 'class' in the lines before"),
        ({"source-ref": "a/1.jpg", "class": True}, "the label True is neither a whole number from 0 on nor a name"),
        ({"source-ref": "a/1.jpg", "class": -1}, "the label -1 is neither"),
        ({"source-ref": "a/1.jpg", "class": 0.5}, r"the label 0\.5 is neither"),
        ({"source-ref": "a/1.jpg", "class": None}, "the label None is neither"),
        ({"source-ref": "a/1.jpg", "class": " "}, "the label ' ' is neither"),
        ({"source-ref": "a/1.jpg", "class": [0, 1]}, r"the label \[0, 1\] is neither"),
        ({"source-ref": "a/1.jpg", "class": {"boxes": []}}, "there are 0 labels; give each image one"),
        ({"source-ref": "a/1.jpg", "class": 1, "class-metadata": {"class-name": 7}}, "the class-name 7 is not a name"),
        ({"source-ref": "/etc/passwd", "class": 1}, "the path '/etc/passwd' leaves the channel"),
        ({"source-ref": "../x.jpg", "class": 1}, "leaves the channel"),
        ({"source-ref": "absent.jpg", "class": 1}, r"'absent\.jpg' is not in "),
        (
            {"source-ref": "s3://bucket/absent.jpg", "class": 1},
            r"no file in .* is called as in 's3://bucket/absent\.jpg'",
        ),
        ({"source-ref": "s3://", "class": 1}, "no file in "),
        ({"source-ref": "s3://bucket/z/1.jpg", "class": 1}, r"may be a/1\.jpg or b/1\.jpg in "),
    ],
)
def test_a_bad_line_of_a_manifest_is_named(images: Path, line: object, complaint: str) -> None:
    with pytest.raises(DataError, match=r"x\.manifest, line 2: .*" + complaint):
        read(images, {"source-ref": "a/1.jpg", "class": 1}, line)


def test_attributes_with_two_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 2 labels"):
        read_label([1, 2])
    with pytest.raises(ValueError, match="there are 0 labels"):
        read_label([])


@pytest.mark.parametrize("label", [Label(3, "Bulldog, French"), Label(3, None), Label(None, 'a "b"\nc')])
def test_what_is_written_is_read_again(images: Path, label: Label) -> None:
    (images / "x.manifest").write_text(write_line(PurePosixPath("b/c/2.jpg"), label))
    (found,) = read_list(images / "x.manifest", images)
    assert (found.path, found.label) == (images / "b" / "c" / "2.jpg", label)


def test_a_manifest_is_found_by_its_suffix_or_its_first_line(images: Path, tmp_path: Path) -> None:
    assert find_manifest(images) is None
    assert find_manifest(tmp_path / "absent") is None
    (images / ".hidden.manifest").touch()
    (images / "metadata.jsonl").write_text('{"file_name": "a/1.jpg"}\n{"source-ref": "a/1.jpg"}\n')
    assert find_manifest(images) is None, "what other tools write is left alone"
    (images / "Output.MANIFEST").touch()
    assert find_manifest(images) == images / "Output.MANIFEST"
    (images / "Output.MANIFEST").unlink()
    (images / "list.jsonl").write_text('{"source-ref": "a/1.jpg", "class": 0}\n')
    assert find_manifest(images) == images / "list.jsonl"


@pytest.mark.timeout(60)
def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.manifest")
    with pytest.raises(DataError, match=r"a\.manifest is a folder, a pipe or a device; give a file"):
        read_list(tmp_path / "a.manifest", tmp_path)
