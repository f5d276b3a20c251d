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


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_links_are_followed_and_each_real_folder_is_taken_once(tmp_path: Path) -> None:
    tree(tmp_path, "in/b/1.jpg", "in/b/sub/2.jpg", "out/deep/3.jpg", "out/4.jpg")
    (tmp_path / "in" / "b" / "a link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "b" / "again").symlink_to(tmp_path / "out" / "deep")
    (tmp_path / "in" / "b" / "sub" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b" / "its own").symlink_to("sub")
    (tmp_path / "in" / "b" / "self").symlink_to("self")
    walk = imagefiles.Walk([tmp_path / "in"])
    found = [str(path.relative_to(tmp_path / "in")) for path in walk.images(tmp_path / "in")]
    assert found == ["b/1.jpg", "b/a link/4.jpg", "b/a link/deep/3.jpg", "b/sub/2.jpg"]
    assert sorted(path.name for path in walk.passed_over) == ["again", "its own", "up"]


def test_no_link_leads_into_another_folder_that_is_listed_or_must_not_be(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/sub/2.jpg", "other/c/3.jpg")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b" / "sub")
    (tmp_path / "a" / "c").symlink_to(tmp_path / "other" / "c")
    walk = imagefiles.Walk([tmp_path / "a", tmp_path / "b"], [tmp_path / "other"])
    assert [path.name for one in ("a", "b") for path in walk.images(tmp_path / one)] == ["1.jpg", "2.jpg"]
    assert walk.passed_over == [tmp_path / "a" / "b", tmp_path / "a" / "c"]


def test_a_folder_that_is_a_link_itself_is_listed(tmp_path: Path) -> None:
    tree(tmp_path, "real/1.jpg", "real/sub/2.jpg")
    (tmp_path / "link").symlink_to("real")
    assert imagefiles.images_below(tmp_path / "link") == [tmp_path / "link/1.jpg", tmp_path / "link/sub/2.jpg"]


def test_a_name_that_is_not_utf_8_is_told_by_its_bytes_with_what_to_do() -> None:
    assert imagefiles.objection_to_names([Path("a/🐶 été/1.jpg"), "naïve"]) is None
    objection = imagefiles.objection_to_names([Path("a"), Path(os.fsdecode(b"photos/dog\xe9/1.jpg"))])
    assert objection is not None
    assert objection.startswith(r"the name 'photos/dog\udce9/1.jpg' is not UTF-8")
    assert "rename it" in objection
    objection.encode()
