from __future__ import annotations

import tarfile
from pathlib import Path

from local_test.simulator.archives import pack


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_hosts_are_merged_and_clashes_told(tmp_path):
    first = written(tmp_path / "one", weights="w", card="of one")
    second = written(tmp_path / "two", card="of two", extra="e")
    folders = {"algo-1": first, "algo-2": second, "algo-3": tmp_path / "missing"}
    (clash,) = pack(folders, tmp_path / "out" / "model.tar.gz")
    assert clash.startswith("model.tar.gz: card was written by algo-1 and algo-2; that of algo-1 is taken here")
    with tarfile.open(tmp_path / "out" / "model.tar.gz") as packed:
        found = {member.name: packed.extractfile(member).read().decode() for member in packed.getmembers()}
    assert found == {"weights": "w", "card": "of one", "extra": "e"}


def test_nothing_is_an_archive_too(tmp_path):
    assert pack({"algo-1": tmp_path / "missing"}, tmp_path / "model.tar.gz") == []
    with tarfile.open(tmp_path / "model.tar.gz") as packed:
        assert packed.getnames() == []
