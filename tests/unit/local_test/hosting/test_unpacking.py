from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from local_test.simulator.hosting.unpacking import ArchiveError, put_model


def archive(folder: Path, *members: tarfile.TarInfo) -> Path:
    file = folder / "model.tar.gz"
    with tarfile.open(file, "w:gz") as opened:
        for member in members:
            opened.addfile(member, io.BytesIO(b"weights") if member.isreg() else None)
    return file


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 7 if kind == tarfile.REGTYPE else 0
    return info


def test_an_archive_and_a_folder_give_the_same_model(tmp_path: Path) -> None:
    put_model(archive(tmp_path, member("bundle.json"), member("code/serve.py")), tmp_path / "model")
    put_model(tmp_path / "model", tmp_path / "copy")
    for folder in ("model", "copy"):
        assert (tmp_path / folder / "code" / "serve.py").read_bytes() == b"weights"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_an_archive_is_refused(tmp_path: Path, kind: bytes) -> None:
    file = archive(tmp_path, member("bundle.json"), member("best.pt", kind, "bundle.json"))
    with pytest.raises(ArchiveError, match=r"holds a link, best\.pt, which SageMaker refuses"):
        put_model(file, tmp_path / "model")


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "best.pt").symlink_to("/etc/passwd")
    with pytest.raises(ArchiveError, match=r"holds a link, best\.pt"):
        put_model(tmp_path / "given", tmp_path / "model")


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"outside the destination|leads out of the folder"):
        put_model(archive(tmp_path, member("../outside")), tmp_path / "model")
    assert not (tmp_path / "outside").exists()


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(b"PK")
    with pytest.raises(ArchiveError, match=r"model\.tar\.gz is no model\.tar\.gz that can be unpacked"):
        put_model(tmp_path / "model.tar.gz", tmp_path / "model")
    with pytest.raises(ArchiveError, match="there is no model at"):
        put_model(tmp_path / "absent", tmp_path / "other")
