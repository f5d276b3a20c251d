"""Folders for results are tried before the work, and nothing is left of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from dogbreed import outputs
from dogbreed.errors import OutputError


@pytest.mark.parametrize("name", ["there", "new", "new/deep/deeper", "there/new"])
def test_a_folder_that_can_be_written_stays_as_it_was(name: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "results").write_text("of before")
    before = sorted(tmp_path.rglob("*"))
    outputs.prove(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [("file", "it is no folder"), ("file/below", "Not a directory"), ("/proc/foo", "No such file or directory")],
)
def test_one_that_cannot_is_one_sentence(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("-")
    folder = tmp_path / name
    with pytest.raises(OutputError) as raised:
        outputs.prove(folder)
    assert str(raised.value) == f"{folder} cannot be written to: {why}; name another folder with --output"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file"]
