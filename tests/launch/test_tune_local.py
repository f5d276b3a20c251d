"""`launch.py tune --local`: what is tried, what is kept when it ends early, and what goes on.

Most trials here are a quick stand-in for `container/train`, which prints and leaves what a job does; the last test
runs real ones, kills the search and starts it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.launch.conftest import REPOSITORY
from tests.launch.scripted import Scripted
from tests.launch.searched import TRAIN

from dogbreed.hyperparameters import SearchRange
from scripts.launcher.errors import OutcomeError, SettingError
from scripts.launcher.search import local, trials
from scripts.launcher.search.contents import contents
from scripts.launcher.search.process import Job, Processes
from scripts.launcher.search.space import Space

pytest.importorskip("optuna", reason="there is no optuna to search with")

LR = {"lr": SearchRange(low=0.001, high=1.0, scale="log")}
ACCURACY = trials.Objective("validation_accuracy", "maximise")


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter that runs stage.py, and the stand-in for everything else."""
    (tmp_path / "train.py").write_text(TRAIN)
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\ncase $1 in *stage.py) exec {sys.executable} "$@";; esac\n'
        f"exec {sys.executable} -S -E {tmp_path / 'train.py'}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


@pytest.fixture
def make(tmp_path: Path, python: str) -> Any:
    data = tmp_path / "data"
    (data / "Beagle").mkdir(parents=True)

    def make(count: int = 3, space: Space | None = None, **more: Any) -> local.Plan:
        given = {
            "name": "dogs",
            "folder": tmp_path / "dogs",
            "space": space or Space(LR, {}),
            "objective": ACCURACY,
            "strategy": "Bayesian",
            "prune": False,
            "trials": count,
            "parallel": 1,
            "seed": 0,
            "job": Job(data, None, tmp_path / "cache", python),
        }
        return local.Plan(**given | more)

    return make


def run(plan: local.Plan, sleep: Any = lambda seconds: time.sleep(0.01)) -> tuple[local.Search, list[str]]:
    said: list[str] = []
    search = local.Search(plan, Processes(), said.append)
    search.run(sleep)
    return search, said


def tried(search: local.Search) -> list[str]:
    return [json.dumps(one.hyperparameters, sort_keys=True) for one in search.trials()]


def test_the_defaults_are_tried_first_and_the_best_keeps_its_model(make: Any) -> None:
    search, said = run(make(4))
    found = search.trials()
    assert [one.status for one in found] == ["Completed"] * 4
    assert found[0].hyperparameters == {"lr": "0.001"}  # the declaration's default
    best = search.best()
    assert best is not None
    assert best.value == max(one.value for one in found if one.value is not None)
    assert [one.name for one in found if (search.plan.folder / one.name / "model").exists()] == [best.trial]
    assert search.model(best).name == "model"
    assert len(said) == 4
    assert said[0] == "trial-000 Completed validation_accuracy=0.971 (lr=0.001)"


@pytest.mark.parametrize(("images", "stays"), [(4, True), (40_000, False), (None, False)])
def test_a_trial_that_is_better_by_chance_alone_does_not_replace_the_defaults(
    make: Any, tmp_path: Path, images: int | None, stays: bool
) -> None:
    facts = {} if images is None else {"validation_images": images}
    (tmp_path / "train.py").write_text(TRAIN.replace('"metrics"', f'"facts": {facts}, "metrics"'))
    search, _ = run(make(4))
    found, best = search.trials(), search.best()
    assert best is not None
    top = max(found, key=lambda one: one.value or 0.0)
    assert top.name != "trial-000"
    assert best.trial == ("trial-000" if stays else top.name)
    assert best.hyperparameters["lr"] == ("0.001" if stays else top.hyperparameters["lr"])
    assert [one.name for one in found if (search.plan.folder / one.name / "model").exists()] == [best.trial]
    assert search.said_of_best().startswith(f"{top.name} reached" if stays else "")
    assert bool(search.said_of_best()) is stays


def test_what_is_fixed_goes_to_every_trial_and_to_the_best(make: Any) -> None:
    search, _ = run(make(2, Space(LR, {"epochs": "2", "preset": "resnet18"})))
    best = search.best()
    assert best is not None
    assert best.hyperparameters["epochs"] == "2"
    config = search.plan.folder / best.trial / "input" / "config" / "hyperparameters.json"
    assert json.loads(config.read_text()) == {"check-precision": "false", "insight": "false", **best.hyperparameters}


def test_a_second_run_goes_on_where_the_first_ended(make: Any) -> None:
    first = tried(run(make(3))[0])
    assert len(first) == 3
    assert tried(run(make(3))[0]) == first
    more, _ = run(make(6))
    assert tried(more)[:3] == first
    assert len(set(tried(more))) == 6


def test_ctrl_c_keeps_what_is_done_and_the_rest_is_tried_again(make: Any) -> None:
    plan = make(4, Space(LR, {"gamma": "0.05", "epochs": "20"}))
    search = local.Search(plan, Processes(), lambda line: None)

    def interrupt(seconds: float) -> None:
        time.sleep(0.02)
        if len(search.trials()) == 1 and (plan.folder / "trial-001" / "log").exists():
            raise KeyboardInterrupt

    search.run(interrupt)
    assert search.interrupted
    (kept,) = tried(search)
    study = search._study.get_trials()
    assert [one.state.name for one in study] == ["COMPLETE", "RUNNING"]
    again, _ = run(plan)
    assert tried(again)[0] == kept
    assert json.loads(tried(again)[1]) == {"lr": f"{study[1].params['lr']:.10g}"}
    assert len(set(tried(again))) == 4


def test_a_trial_that_had_ended_when_the_search_was_killed_has_ended(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make(3, Space({"lr": SearchRange(choices=(0.001, 0.95, 0.1))}, {}), strategy="Random")
    search = local.Search(plan, Processes(), lambda line: None)
    for lr in ("0.95", "0.1"):  # after the default: of failures alone nothing would be kept
        search._study.enqueue_trial({"lr": lr})
    for _ in range(2):  # all of the trial is written down but that it has ended
        told = search._study.tell

        def tell(trial: Any, *values: Any, told: Any = told, **state: Any) -> Any:
            if "seconds" in trial.user_attrs:
                raise KeyboardInterrupt
            return told(trial, *values, **state)

        monkeypatch.setattr(search._study, "tell", tell)
        search.run(lambda seconds: time.sleep(0.01))
        assert search.interrupted
        search = local.Search(plan, Processes(), lambda line: None)
    found = search.trials()
    assert len(found) == 2
    search.run(lambda seconds: time.sleep(0.01))
    assert search.trials()[:2] == found
    assert {one.hyperparameters["lr"]: one.status for one in search.trials()} == {
        "0.001": "Completed",
        "0.95": "Failed",
        "0.1": "Completed",
    }
    best = search.best()
    assert best is not None
    assert [one.name for one in search.trials() if (plan.folder / one.name / "model").exists()] == [best.trial]


def test_a_trial_whose_objective_is_no_number_is_a_failed_row(make: Any, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN.replace('": best}', '": best if lr < 0.5 else float("nan")}'))
    search, said = run(make(2, Space({"lr": SearchRange(choices=(0.03, 0.8))}, {})))
    assert sorted(one.status for one in search.trials()) == ["Completed", "Failed"]
    assert any("failed: its validation_accuracy is no finite number (lr=0.8)" in line for line in said)


def test_a_space_of_choices_is_tried_once_and_not_again(make: Any) -> None:
    choices = {"lr": SearchRange(choices=(0.01, 0.03)), "batch-size": SearchRange(choices=(16, 32, 64))}
    search, _ = run(make(20, Space(choices, {})))
    assert len(tried(search)) == len(set(tried(search))) == 6


def test_grid_tries_every_combination(make: Any) -> None:
    choices = {"lr": SearchRange(choices=(0.01, 0.03)), "batch-size": SearchRange(choices=(16, 32))}
    search, _ = run(make(4, Space(choices, {}), strategy="Grid"))
    assert len(set(tried(search))) == 4


@pytest.mark.parametrize("strategy", ["Bayesian", "Hyperband"])
def test_a_trial_that_falls_behind_is_stopped_by_sigterm(make: Any, strategy: str) -> None:
    rates = (0.03, 0.031, 0.032, 0.033, 0.034, 0.89)
    space = Space({"lr": SearchRange(choices=rates)}, {"gamma": "0.1", "epochs": "8"})
    plan = make(6, space, strategy=strategy, prune=True)
    search = local.Search(plan, Processes(), lambda line: None)
    for lr in rates:
        search._study.enqueue_trial({"lr": f"{lr}"})
    search.run(lambda seconds: time.sleep(0.01))
    stopped = [one for one in search.trials() if one.status == "Stopped"]
    assert "0.89" in [one.hyperparameters["lr"] for one in stopped]
    log = (plan.folder / stopped[-1].name / "log").read_text()
    assert log.count("epoch=") < 8
    best = search.best()
    assert best is not None
    assert best.hyperparameters["lr"] != "0.89"


def test_a_trial_that_fails_is_a_row_and_all_failing_is_one_error(make: Any) -> None:
    mixed, said = run(make(2, Space({"lr": SearchRange(choices=(0.001, 0.95))}, {})))
    assert sorted(one.status for one in mixed.trials()) == ["Completed", "Failed"]
    assert any("failed: AlgorithmError: the loss is not finite (lr=0.95)" in line for line in said)
    space = Space({"lr": SearchRange(choices=(0.95, 0.99))}, {})
    hopeless, _ = run(make(2, space, name="bad", folder=make().folder / "bad"))
    assert hopeless.best() is None
    with pytest.raises(OutcomeError, match="all 2 trials of bad failed, 2 of them with: AlgorithmError: the loss is"):
        trials.raise_without_result("bad", hopeless.trials(), ACCURACY)


@pytest.mark.parametrize("root", ["{os.environ['SAGEMAKER_BASE_DIR']}", "/opt/ml"])
def test_one_reason_of_all_names_the_images_of_the_user_and_not_those_of_a_trial(
    make: Any, tmp_path: Path, root: str
) -> None:
    """Also where the trials were containers."""
    weights = tmp_path / "w.pth"
    weights.touch()
    job = Job(make().job.data, weights, tmp_path / "cache", make().job.python)
    said = f"DataError: {root}/input/data/train/Beagle and {root}/input/data/pretrained/w.pth are bad"
    program = TRAIN.replace('"AlgorithmError', f'f"{said}').replace("if lr > 0.9", "if True")
    (tmp_path / "train.py").write_text(program)
    search, lines = run(make(2, job=job))
    reason = f"DataError: {job.data}/Beagle and {weights} are bad: the loss is not finite"
    assert [one.reason for one in search.trials()] == [reason] * 2
    assert lines[0].startswith(f"trial-000 failed: {reason} (lr=")
    with pytest.raises(OutcomeError) as raised:
        trials.raise_without_result("dogs", search.trials(), ACCURACY)
    assert str(raised.value) == f"all 2 trials of dogs failed, 2 of them with: {reason}"


def test_a_reason_that_names_its_trial_is_one_with_those_of_the_others() -> None:
    names = ("dogs-000", "dogs-001", "dogs-002")
    failed = [trials.Trial(name, "Failed", None, {}, reason=f"exit code 1; see build/{name}/log") for name in names]
    failed[0] = trials.Trial(names[0], "Failed", None, {}, reason="other")
    with pytest.raises(OutcomeError, match="2 of them with: exit code 1; see build/dogs-001/log"):
        trials.raise_without_result("dogs", failed, ACCURACY)


def test_two_at_a_time_have_cores_of_their_own(make: Any) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    search = local.Search(make(4, Space(LR, {"gamma": "0.05"}), parallel=2), Processes(), lambda line: None)
    seen: list[list[set[int]]] = []

    def look(seconds: float) -> None:
        time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            seen.append([os.sched_getaffinity(one.process.running.process.pid) for one in search._running.values()])

    search.run(look)
    together = [pair for pair in seen if len(pair) == 2]
    assert together
    assert all(not pair[0] & pair[1] for pair in together)
    assert len(set(tried(search))) == 4


def test_the_test_images_are_no_part_of_the_search(make: Any, tmp_path: Path) -> None:
    for name in ("train", "valid", "Test"):
        (tmp_path / "split" / name / "Beagle").mkdir(parents=True)
    job = Job(tmp_path / "split", None, tmp_path / "cache", make().job.python)
    search, _ = run(make(1, job=job))
    seen = search.plan.folder / "trial-000" / "input" / "data" / "train"
    assert sorted(path.name for path in seen.iterdir()) == ["train", "valid"]
    assert (seen / "train" / "Beagle").is_dir()
    judged = make(1, job=job, objective=trials.Objective("test_accuracy", "maximise"), folder=tmp_path / "other")
    run(judged)
    seen = judged.folder / "trial-000" / "input" / "data" / "train"
    assert sorted(path.name for path in seen.iterdir()) == ["Test", "train", "valid"]


def test_classes_that_are_called_test_stay(tmp_path: Path) -> None:
    for name in ("test", "Beagle"):
        (tmp_path / "data" / name).mkdir(parents=True)
    assert local.without_test(tmp_path / "data", tmp_path / "links") == tmp_path / "data"


def test_another_search_of_the_same_name_is_refused(make: Any, tmp_path: Path) -> None:
    run(make(1))
    with pytest.raises(SettingError, match="holds a search of the same name with another space"):
        local.Search(make(1, Space(LR, {"epochs": "2"})), Processes(), print)
    (tmp_path / "other" / "Beagle").mkdir(parents=True)
    job = Job(tmp_path / "other", None, tmp_path / "cache", make().job.python)
    loss = trials.Objective("validation_loss", "minimise")
    with pytest.raises(SettingError) as refused:
        local.Search(make(1, job=job, objective=loss), Processes(), print)
    assert f"with another objective (validation_accuracy), other data ({tmp_path / 'data'}); give" in str(refused.value)


BAD_PHOTO = TRAIN.replace("if lr > 0.9", 'if (root / "input/data/train/Beagle/bad.jpg").exists()')


def test_where_all_have_failed_the_same_search_tries_them_again(make: Any, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BAD_PHOTO)
    bad = tmp_path / "data" / "Beagle" / "bad.jpg"
    bad.touch()
    plan = make(2)
    first, _ = run(plan)
    assert [(one.name, one.status) for one in first.trials()] == [("trial-000", "Failed"), ("trial-001", "Failed")]
    values = tried(first)
    second, said = run(plan)
    assert said[0] == "all 2 trials so far have failed; they are tried again"
    assert [(one.name, one.status) for one in second.trials()] == [("trial-002", "Failed"), ("trial-003", "Failed")]
    assert tried(second) == values
    bad.unlink()
    third, _ = run(plan)
    assert [one.status for one in third.trials()] == ["Completed"] * 2
    assert tried(third) == values
    again, said = run(plan)
    assert (again.trials(), said) == (third.trials(), [])


def test_trying_again_that_was_interrupted_goes_on(make: Any, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BAD_PHOTO)
    bad = tmp_path / "data" / "Beagle" / "bad.jpg"
    bad.touch()
    plan = make(3)
    values = tried(run(plan)[0])
    search = local.Search(plan, Processes(), lambda line: None)

    def interrupt(seconds: float) -> None:
        time.sleep(0.01)
        if len(search.trials()) == 1:
            raise KeyboardInterrupt

    search.run(interrupt)
    assert [one.status for one in search.trials()] == ["Failed"]
    bad.unlink()
    found = tried(run(plan)[0])
    assert sorted(found) == sorted(values)


def test_photos_that_have_changed_since_a_trial_has_a_value_are_refused(make: Any, tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / "split" / name / "Beagle").mkdir(parents=True)
    photo, weights = tmp_path / "split" / "train" / "Beagle" / "1.jpg", tmp_path / "w.pth"
    photo.write_text("photo")
    weights.write_text("weights")
    plan = make(1, job=Job(tmp_path / "split", weights, tmp_path / "cache", make().job.python))
    run(plan)
    (photo.parent / ".DS_Store").touch()
    (tmp_path / "split" / "test" / "Beagle" / "2.jpg").touch()  # which the search does not look at
    run(plan)
    new = photo.with_name("2.jpg")
    new.write_text("more")
    with pytest.raises(SettingError) as refused:
        local.Search(plan, Processes(), print)
    assert str(refused.value) == (
        f"{plan.folder} holds a search of the same name with images that have changed since (1 files of 5 bytes then, "
        f"2 of 9 now); give another --name, or remove that folder"
    )
    new.unlink()
    photo.rename(new)
    weights.write_text("truncated")
    with pytest.raises(
        SettingError, match=r"as many now, by other names or sizes\) and weights that have changed since"
    ):
        local.Search(plan, Processes(), print)
    new.rename(photo)
    weights.write_text("weights")
    assert len(run(plan)[0].trials()) == 1


def test_a_circle_of_links_is_looked_at_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "Beagle").mkdir(parents=True)
    (tmp_path / "data" / "Beagle" / "1.jpg").write_text("photo")
    (tmp_path / "data" / "Beagle" / "gone.jpg").symlink_to("nowhere")
    before = contents(tmp_path / "data", None)
    (tmp_path / "data" / "Beagle" / "all").symlink_to(tmp_path / "data")
    assert (before.files, before.size) == (2, 5)
    assert contents(tmp_path / "data", None) == before


def test_what_is_left_without_the_test_is_that_of_today(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / "data" / name).mkdir(parents=True)
    links = tmp_path / "links"
    local.without_test(tmp_path / "data", links)
    (tmp_path / "data" / "val").rename(tmp_path / "data" / "valid")
    local.without_test(tmp_path / "data", links)
    assert {link.name: link.is_dir() for link in links.iterdir()} == {"train": True, "valid": True}


def test_a_search_that_is_running_is_refused(make: Any) -> None:
    plan = make(2)
    search = local.Search(plan, Processes(), print)
    with pytest.raises(SettingError, match="the search dogs is running already; wait for it, or give another --name"):
        local.Search(plan, Processes(), print)
    other = make(1, name="cats", folder=plan.folder.with_name("cats"))
    assert len(run(other)[0].trials()) == 1
    search.run(lambda seconds: time.sleep(0.01))
    assert [one.status for one in search.trials()] == ["Completed"] * 2
    with pytest.raises(SettingError, match="there are"):
        run(make(2, parallel=4096))
    assert len(run(plan)[0].trials()) == 2  # neither an end nor a mistake keeps it


def test_more_at_a_time_than_cores_is_refused(make: Any) -> None:
    with pytest.raises(SettingError, match="--parallel 4096: there are"):
        local.Search(make(1, parallel=4096), Processes(), print)


def test_without_optuna_it_is_one_sentence(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingError, match="a local search needs Optuna"):
        local.Search(make(1), Processes(), print)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--spot"], "--spot is for the account and means nothing with --local"),
        (["--stop-after", "1h"], "--stop-after is for the account"),
        (["--warm-start", "a"], "--warm-start is for the account"),
        (["--data", "gone"], "--data gone: there is no such file or folder"),
        (["--weights", "gone.pth"], "--weights gone.pth: there is no such file or folder"),
        (["--objective", "speed"], "no line of a job prints it"),
        (["--strategy", "Grid"], "Grid tries choices"),
        (["--output", "/dev/null/best.json"], "/dev/null cannot be written to"),
        (["--output", "/tmp"], "--output /tmp is a folder; name a file in it"),
    ],
)
def test_a_mistake_starts_nothing(launch: Any, tmp_path: Path, monkeypatch: Any, argv: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    launch.aws = Scripted()
    ended = launch("tune", "--local", "--data", str(tmp_path), "--search", "lr", *argv)
    assert ended.code == 2
    assert says in ended.err
    assert not (tmp_path / "build").exists()


def test_the_dry_run_shows_the_search_and_starts_nothing(launch: Any, tmp_path: Path) -> None:
    ended = launch("tune", "--local", "--data", str(tmp_path), "--space", "resnet18", "--trials", "20", "--dry-run")
    (call,) = json.loads(ended.out)
    assert (call["service"], call["parameters"]["Trials"]) == ("local", 6)
    assert call["parameters"]["Searched"] == {"model": "resnet18, resnet34", "batch-size": "128, 256, 512"}


@pytest.mark.timeout(300)
def test_a_search_that_is_killed_goes_on_and_loses_and_repeats_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    draw = [sys.executable, str(REPOSITORY / "local_test" / "make_data.py"), str(data), "--classes", "2"]
    subprocess.run([*draw, "--train", "6", "--valid", "2", "--test", "2"], check=True, capture_output=True)
    tiny = ("model=tiny", "pretrained=false", "image-size=32", "epochs=2", "batch-size=4")
    command = [sys.executable, str(REPOSITORY / "scripts" / "launch.py"), "tune", "--local", "--data", str(data)]
    command += ["--hp", *tiny, "--range", "lr=0.001:0.1:log", "--trials", "3", "--name", "dogs"]
    second = tmp_path / "build" / "tuning" / "dogs" / "trial-001" / "log"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as search:
        children: list[str] = []
        # The log is there a moment before the process that writes it.
        while not (second.exists() and children) and search.poll() is None:
            time.sleep(0.02)
            children = Path(f"/proc/{search.pid}/task/{search.pid}/children").read_text().split()
        search.send_signal(signal.SIGKILL)
    assert children
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a trial outlives its search"
        time.sleep(0.05)
    first = json.loads((second.parents[1] / "trial-000" / "input" / "config" / "hyperparameters.json").read_text())
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines()[1:-1]]
    assert [row[1] for row in rows] == ["Completed"] * 3
    assert len({row[3] for row in rows}) == 3
    assert "trial-000" in {row[0] for row in rows}
    assert first["lr"] == "0.001"
    best = json.loads((tmp_path / "build" / "tuning" / "dogs.json").read_text())
    assert best["trial"] in (tmp_path / "build" / "tuning" / "dogs.html").read_text()
    assert best["hyperparameters"]["model"] == "tiny"
    assert (tmp_path / "build" / "tuning" / "dogs" / best["trial"] / "model" / "model.safetensors").is_file()
