"""The local stand-in for /opt/ml: what `make train` lays out, what it keeps, and what it refuses to delete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dogbreed.environment import read_training_environment

REPOSITORY = Path(__file__).parents[2]
STAGE = REPOSITORY / "local_test" / "stage.py"


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


def leave(ml: Path, model: str) -> None:
    """What a finished job leaves; all of it says whose it is."""
    (ml / "model" / "bundle.json").write_text(model)
    (ml / "output" / "data" / "report").write_text(model)


def kept(ml: Path) -> dict[str, str]:
    files = [file for file in sorted(ml.rglob("*")) if file.name in ("bundle.json", "report")]
    return {str(file.relative_to(ml)): file.read_text() for file in files}


def test_a_new_job_moves_a_finished_one_aside_and_leaves_the_data_alone(tmp_path: Path, data: Path) -> None:
    ml = tmp_path / "ml"
    for model in ("first", "second"):
        assert stage(ml, f"--data={data}").returncode == 0
        leave(ml, model)
    done = stage(ml, f"--data={data}")
    assert done.stdout.splitlines()[0] == f"the model that was there before is now in {ml / 'model.previous'}"
    assert kept(ml) == {"model.previous/bundle.json": "second", "output.previous/data/report": "second"}
    assert (data / "train").is_dir()


def test_a_job_that_left_no_model_takes_none_away(tmp_path: Path, data: Path) -> None:
    ml = tmp_path / "ml"
    assert stage(ml, f"--data={data}").returncode == 0
    leave(ml, "good")
    for _ in range(3):
        done = stage(ml, f"--data={data}")
        assert done.returncode == 0
        (ml / "model" / "model.safetensors").touch()  # a bundle's document is written last
        (ml / "output" / "failure").touch()
    assert "before" not in done.stdout
    assert kept(ml) == {"model.previous/bundle.json": "good", "output.previous/data/report": "good"}
    assert stage(ml, f"--data={data}").returncode == 0
    assert not list((ml / "model").iterdir())
    assert not (ml / "output" / "failure").exists()


def test_moving_aside_that_was_ended_in_the_middle_loses_nothing(tmp_path: Path, data: Path) -> None:
    ml = tmp_path / "ml"
    assert stage(ml, f"--data={data}").returncode == 0
    leave(ml, "good")
    (ml / "output").rename(ml / "output.previous")
    assert stage(ml, f"--data={data}").returncode == 0
    assert kept(ml) == {"model.previous/bundle.json": "good", "output.previous/data/report": "good"}


def test_a_link_is_moved_or_deleted_and_never_what_it_points_to(tmp_path: Path, data: Path) -> None:
    ml, elsewhere = tmp_path / "ml", tmp_path / "elsewhere"
    assert stage(ml, f"--data={data}").returncode == 0
    (ml / "model").rename(elsewhere)
    (elsewhere / "bundle.json").touch()
    (ml / "model").symlink_to(elsewhere)
    assert stage(ml, f"--data={data}").returncode == 0
    assert (ml / "model.previous").readlink() == elsewhere
    (ml / "model" / "bundle.json").touch()
    assert stage(ml, f"--data={data}").returncode == 0
    assert not (ml / "model.previous").is_symlink()
    assert (elsewhere / "bundle.json").is_file()


def test_hyperparameters_that_no_job_takes_touch_nothing(tmp_path: Path, data: Path) -> None:
    ml = tmp_path / "ml"
    assert stage(ml, f"--data={data}").returncode == 0
    leave(ml, "good")
    before = kept(ml)
    done = stage(ml, f"--data={data}", "--hp=lrr=0.1")
    assert done.returncode == 1
    assert done.stderr == "hyperparameters: 'lrr' is unknown; did you mean lr?\n"
    assert kept(ml) == before
    # A search leaves it to the trial, which then is a failed one.
    assert stage(ml, f"--data={data}", "--hp=warmup-epochs=5 epochs=2", "--unchecked").returncode == 0


def test_a_folder_that_cannot_be_made_is_one_sentence(data: Path) -> None:
    done = stage(Path("/dev/null/ml"), f"--data={data}")
    assert done.returncode == 1
    assert done.stderr.startswith("ML=/dev/null/ml cannot be made (")
    assert done.stderr.endswith("; name another folder\n")
    assert len(done.stderr.splitlines()) == 1


def test_serving_says_how_to_get_a_model_or_the_previous_one_back(tmp_path: Path) -> None:
    ml = tmp_path / "my ml"
    (ml / "model").mkdir(parents=True)

    def serve() -> str:
        environ = {**os.environ, "ML": str(ml)}
        script = REPOSITORY / "local_test" / "serve_local.sh"
        done = subprocess.run([str(script)], env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    assert serve() == f"{ml}/model holds no bundle.json; train first: make train DATA=path/to/images\n"
    (ml / "model.previous").mkdir()
    (ml / "model.previous" / "bundle.json").touch()
    said = serve()
    assert f"the model before it is in {ml}/model.previous" in said
    subprocess.run(["bash", "-ec", said.partition("to take it back: ")[2]], check=True)
    assert (ml / "model" / "bundle.json").is_file()
    assert not (ml / "model.previous").exists()


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path: Path, data: Path) -> None:
    precious = tmp_path / "home" / "model" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.touch()
    done = stage(tmp_path / "home", f"--data={data}")
    assert done.returncode == 1
    assert "name another folder" in done.stderr
    assert precious.is_file()


def test_data_inside_what_is_emptied_is_refused(tmp_path: Path, data: Path) -> None:
    ml = tmp_path / "ml"
    assert stage(ml, f"--data={data}").returncode == 0
    inside = ml / "output" / "data" / "augmented"
    (inside / "train").mkdir(parents=True)
    done = stage(ml, f"--data={inside}")
    assert done.returncode == 1
    assert "keep it elsewhere" in done.stderr
    assert (inside / "train").is_dir()
    leave(ml, "good")
    (ml / "output").rename(ml / "output.previous")
    done = stage(ml, f"--data={ml / 'output.previous' / 'data' / 'augmented'}")
    assert "keep it elsewhere" in done.stderr
    assert kept(ml) == {"model/bundle.json": "good", "output.previous/data/report": "good"}


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
