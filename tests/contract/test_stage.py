"""The local stand-in for /opt/ml: what `make train` lays out, what it keeps, and what it refuses to delete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dogbreed.environment import read_training_environment

REPOSITORY = Path(__file__).parents[2]
STAGE = REPOSITORY / "local_test" / "stage.py"
# Stands for container/train: tells what it was given, and ends by the signal that a job ends by.
JOB = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("job", os.getpid(), os.environ["SAGEMAKER_BASE_DIR"], flush=True)
time.sleep(60)
"""


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


def test_a_job_takes_the_place_of_the_one_who_lays_out_and_holds_the_folder(tmp_path: Path, data: Path) -> None:
    ml, program = tmp_path / "ml", tmp_path / "job.py"
    program.write_text(JOB)
    command = [sys.executable, str(STAGE), str(ml), f"--data={data}"]
    with subprocess.Popen([*command, f"--then={program}"], stdout=subprocess.PIPE, text=True) as job:
        try:
            assert job.stdout is not None
            said = [job.stdout.readline().rstrip() for _ in range(2)]
            assert said == [f"laid out {ml}; the model will be in {ml / 'model'}", f"job {job.pid} {ml}"]
            leave(ml, "half done")
            second = stage(ml, f"--data={data}")
            assert second.returncode == 1
            assert second.stderr == f"a job is running on ML={ml}; wait for it or name another folder\n"
            assert kept(ml) == {"model/bundle.json": "half done", "output/data/report": "half done"}
            assert stage(tmp_path / "other", f"--data={data}").returncode == 0
        finally:
            job.send_signal(signal.SIGTERM)
        assert job.wait() == 7
    assert stage(ml, f"--data={data}").returncode == 0


@pytest.mark.skipif(not (REPOSITORY / ".venv").exists(), reason="`make train` needs .venv")
def test_a_second_training_is_refused_and_a_signal_to_the_script_is_one_to_the_job(tmp_path: Path) -> None:
    data = tmp_path / "drawn"
    draw = [sys.executable, str(REPOSITORY / "local_test" / "make_data.py"), str(data), "--classes", "2"]
    subprocess.run([*draw, "--train", "6", "--valid", "2", "--test", "2"], check=True, capture_output=True)
    slow = "model=tiny pretrained=false trainable=all image-size=32 epochs=1000 patience=0 insight=false cache=false"
    environ = {**os.environ, "DATA": str(data), "WEIGHTS": "", "HP": slow, "ML": str(tmp_path / "ml")}
    command = [str(REPOSITORY / "local_test" / "train_local.sh")]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        try:
            assert job.stdout is not None
            assert any("epoch=1;" in line for line in job.stdout)
            second = subprocess.run(command, env=environ, capture_output=True, text=True)
            assert second.returncode == 1
            assert second.stderr.startswith("a job is running on ML=")
        finally:
            job.send_signal(signal.SIGTERM)
        assert "SIGTERM: stopping" in job.stdout.read()
        assert job.wait() == 0
    assert (tmp_path / "ml" / "model" / "bundle.json").is_file()


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
    assert not (tmp_path / "ml").exists()
