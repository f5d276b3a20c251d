"""Which files are images, by their names."""

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
