"""The local stand-in for /opt/ml: what `make train` lays out, and what it refuses to delete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dogbreed.environment import read_training_environment

STAGE = Path(__file__).parents[2] / "local_test" / "stage.py"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    return tmp_path / "photos"


def stage(ml: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(STAGE), str(ml), *options], capture_output=True, text=True)


def test_the_job_reads_what_was_laid_out(tmp_path: Path, data: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    weights.touch()
    done = stage(tmp_path / "ml", f"--data={data}", f"--weights={weights}", "--hp", "model=resnet18 lr=0.01")
    assert done.returncode == 0, done.stderr
    environment = read_training_environment({}, root=tmp_path / "ml")
    assert environment.hyperparameters == {"model": "resnet18", "lr": "0.01"}
    assert set(environment.channels) == {"train", "pretrained"}
    assert (environment.channels["train"].path / "train").is_dir()
    assert (environment.channels["pretrained"].path / "resnet18.pth").is_file()
    assert environment.hosts.all == ("algo-1",)


def test_channels_are_left_to_dockers_mounts(tmp_path: Path, data: Path) -> None:
    """As containers of a search have them."""
    assert stage(tmp_path / "ml", f"--data={data}", "--mounted").returncode == 0
    assert list((tmp_path / "ml" / "input" / "data").iterdir()) == []
    assert "train" in json.loads((tmp_path / "ml" / "input" / "config" / "inputdataconfig.json").read_text())


def test_a_new_job_empties_the_old_one_and_leaves_the_data_alone(tmp_path: Path, data: Path) -> None:
    ml = tmp_path / "ml"
    assert stage(ml, f"--data={data}").returncode == 0
    (ml / "model" / "bundle.json").touch()
    (ml / "output" / "failure").touch()
    assert stage(ml, f"--data={data}").returncode == 0
    assert not (ml / "model" / "bundle.json").exists()
    assert not (ml / "output" / "failure").exists()
    assert (data / "train").is_dir()


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path: Path, data: Path) -> None:
    precious = tmp_path / "home" / "model" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.touch()
    done = stage(tmp_path / "home", f"--data={data}")
    assert done.returncode == 1
    assert "name another folder" in done.stderr
    assert precious.is_file()


def test_a_folder_that_cannot_be_made_is_one_sentence(data: Path) -> None:
    done = stage(Path("/dev/null/ml"), f"--data={data}")
    assert done.returncode == 1
    assert done.stderr.startswith("ML=/dev/null/ml cannot be made (")
    assert done.stderr.endswith("; name another folder\n")
    assert len(done.stderr.splitlines()) == 1


def test_data_inside_what_is_emptied_is_refused(tmp_path: Path, data: Path) -> None:
    ml = tmp_path / "ml"
    assert stage(ml, f"--data={data}").returncode == 0
    inside = ml / "output" / "data" / "augmented"
    (inside / "train").mkdir(parents=True)
    done = stage(ml, f"--data={inside}")
    assert done.returncode == 1
    assert "keep it elsewhere" in done.stderr
    assert (inside / "train").is_dir()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "DATA is not given"),
        (["--data=nowhere"], "DATA=nowhere is not a folder"),
        (["--data={data}", "--weights=nowhere.pth"], "WEIGHTS=nowhere.pth is not a file"),
        (["--data={data}", "--hp=lr"], "'lr' is not name=value"),
        (["--data={data}", "--hp=lr=1 lr=2"], "lr is given twice"),
        (["--data={data}", "--hp=name='open"], "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, data: Path, options: list[str], sentence: str) -> None:
    done = stage(tmp_path / "ml", *(option.format(data=data) for option in options))
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
