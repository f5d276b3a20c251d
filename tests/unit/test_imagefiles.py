"""Which files are images, by their names."""

import os
from pathlib import Path

import pytest

from dogbreed import imagefiles


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", True),
        ("a.JPEG", True),
        ("a.webp", True),
        ("a.tar.png", True),
        (".hidden.jpg", False),
        ("._a.jpg", False),
        ("a.txt", False),
        ("jpg", False),
        ("a.jpg.part", False),
    ],
)
def test_image_files_are_known_by_their_names(tmp_path: Path, name: str, expected: bool) -> None:
    assert imagefiles.is_image_file(tmp_path / name) is expected


def test_what_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"four")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "dead.jpg").symlink_to("nowhere")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ("a", "link", "dead", "self", "folder", "pipe")
    assert [imagefiles.size_bytes(tmp_path / f"{name}.jpg") for name in names] == [4, 4, -1, -1, -1, -1]
