"""The training side of the contract: strings and folders in; a bundle, metrics, an exit code and a reason out."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.conftest import OptMl

from dogbreed import artifacts, logs
from dogbreed.training import job

TRAIN = Path(__file__).resolve().parents[2] / "container" / "train"

QUICK = {
    "model": "tiny",
    "pretrained": "false",
    "trainable": "all",
    "image-size": "32",
    "batch-size": "8",
    "epochs": "2",
    "lr": "0.01",
    "num-workers": "0",
}


def start(opt_ml: OptMl) -> subprocess.Popen[str]:
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml.root), "TRAINING_JOB_NAME": "contract-1"}
    return subprocess.Popen(
        [sys.executable, str(TRAIN)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_job_leaves_a_bundle_metrics_a_report_and_no_failure_file(opt_ml: OptMl, drawn_data: Path) -> None:
    opt_ml.hyperparameters({**QUICK, "model": '"tiny"', "_tuning_objective_metric": "validation_accuracy"})
    opt_ml.channels(train=drawn_data / "train", validation=drawn_data / "valid", test=drawn_data / "test")
    process = start(opt_ml)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert not opt_ml.failure.exists()
    assert not re.search(r"WARNING|ERROR|Traceback", output)

    assert sorted(entry.name for entry in opt_ml.model.iterdir()) == [
        "MODEL_CARD.md",
        "bundle.json",
        "model.safetensors",
    ]
    bundle = json.loads((opt_ml.model / "bundle.json").read_text())
    assert {"train_loss", "validation_accuracy", "test_accuracy"} <= set(bundle["metrics"])
    assert [label["index"] for label in bundle["labels"]] == [0, 1, 2]
    assert bundle["hyperparameters"]["image-size"] == 32
    assert bundle["agreements"]["torch-bf16"] == "the job had 9 validation images, 200 are needed"

    epochs = [line for line in output.splitlines() if "epoch=" in line]
    assert len(epochs) == 2, "one metric line per epoch"
    assert set(logs.read_metrics(epochs[-1])) == {
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
    }
    (tested,) = [line for line in output.splitlines() if "test_accuracy=" in line]
    assert logs.read_metrics(tested)["test_accuracy"] == pytest.approx(bundle["metrics"]["test_accuracy"], rel=1e-4)
    assert (opt_ml.root / "output" / "data" / "insight" / "report.html").stat().st_size > 1000
    assert list((opt_ml.root / "output" / "tensors").rglob("*.tfevents")), "the losses are saved for smdebug's readers"


def test_a_job_never_loads_the_compiler(opt_ml: OptMl, drawn_data: Path) -> None:
    """It is half of the CPU time of a start; see `dogbreed.deferred`. With the hook, the operators and the report."""
    opt_ml.hyperparameters({**QUICK, "epochs": "3", "batch-size": "2"})
    opt_ml.channels(train=drawn_data)
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml.root), "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([sys.executable, str(TRAIN)], env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"torchvision", "smdebug.pytorch", "torch.optim"} <= imported
    assert (opt_ml.root / "output" / "data" / "insight" / "operators.json").exists(), "the profiler ran"
    assert not {"sympy", "torch._dynamo", "torch._inductor"} & imported


def test_sigterm_keeps_the_best_epoch_so_far_and_exits_0(opt_ml: OptMl, drawn_data: Path) -> None:
    opt_ml.hyperparameters({**QUICK, "epochs": "1000", "patience": "0"})
    opt_ml.channels(train=drawn_data)
    process = start(opt_ml)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "epoch=3;" in line:
            process.send_signal(signal.SIGTERM)
            break
    stopped = time.monotonic()
    output = seen + process.communicate(timeout=100)[0]
    assert process.returncode == 0, output
    assert time.monotonic() - stopped < 60
    assert "SIGTERM: stopping after this step" in output
    bundle = artifacts.load(opt_ml.model)
    assert bundle.facts["ended_by"] == "stop signal"
    assert 3 <= int(str(bundle.facts["epochs_run"])) < 1000
    assert bundle.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert not opt_ml.failure.exists()


def test_a_job_that_is_stopped_and_then_lost_ends_with_the_weights_of_an_undisturbed_one(
    in_process: OptMl, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last job, which nothing ends, need no process of their own."""
    opt_ml = in_process
    settings = {**QUICK, "epochs": "40", "patience": "0", "dropout": "0.5", "checkpoint-seconds": "0"}
    opt_ml.hyperparameters(settings)
    opt_ml.channels(train=drawn_data)
    monkeypatch.setenv("TRAINING_JOB_NAME", "contract-1")
    opt_ml.write("checkpointconfig.json", {"LocalPath": str(tmp_path / "undisturbed")})
    assert job.main() == 0, opt_ml.failure.read_text()
    expected = artifacts.load(opt_ml.model)
    opt_ml.write("checkpointconfig.json", {"LocalPath": str(tmp_path / "disturbed")})

    def run(*, until: str = "", end: signal.Signals | None = None) -> tuple[int, str]:
        process = start(opt_ml)
        assert process.stdout is not None
        seen = ""
        if end is not None:
            for line in process.stdout:
                seen += line
                if until in line:
                    process.send_signal(end)
                    break
        seen += process.communicate(timeout=200)[0]
        return process.returncode, seen

    code, log = run(until="epoch=5;", end=signal.SIGTERM)
    assert code == 0, log
    assert artifacts.load(opt_ml.model).facts["ended_by"] == "stop signal"
    code, log = run(until="epoch=12;", end=signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "going on from" in log
    assert "epoch=3;" not in log
    newest = max((tmp_path / "disturbed").glob("*.checkpoint.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])  # a file that the sync had copied in part
    code, log = run()
    assert code == 0, log
    assert "is not a whole checkpoint and is passed over" in log
    found = artifacts.load(opt_ml.model)
    assert found.facts["epochs_run"] == 40
    assert found.metrics == expected.metrics
    assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)

    reports = [json.loads((opt_ml.root / "output/data/insight/record.json").read_text())]
    assert job.main() == 0, "a job that is over may be started again"
    reports.append(json.loads((opt_ml.root / "output/data/insight/record.json").read_text()))
    for record in reports:
        assert [one["epoch"] for one in record["epochs"]] == list(range(1, 41))
        assert (record["best_epoch"], record["facts"]["epochs_run"]) == (found.facts["best_epoch"], 40)
        assert [one["metrics"] for one in record["epochs"]] == [one["metrics"] for one in reports[0]["epochs"]]

    opt_ml.hyperparameters({**settings, "lr": "0.5"})
    assert job.main() == 1
    assert "is of another job (lr was 0.01, is 0.5)" in opt_ml.failure.read_text()


def test_a_wrong_hyperparameter_ends_the_process_with_1_and_one_sentence(opt_ml: OptMl, drawn_data: Path) -> None:
    opt_ml.hyperparameters({**QUICK, "lr": "fast"})
    opt_ml.channels(train=drawn_data)
    process = start(opt_ml)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert opt_ml.failure.read_text() == "hyperparameters: lr='fast' is not allowed; give a number from 1e-07 to 10"


@pytest.mark.parametrize(
    ("hyperparameters", "reason"),
    [
        ({"learning-rate": "0.1"}, "'learning-rate' is unknown"),
        ({"epochs": "0"}, "epochs='0' is not allowed; give a whole number from 1 to 1000"),
        ({"batch-size": "2.5"}, "batch-size='2.5' is not allowed"),
        ({"model": "resnet19"}, "model='resnet19' is unknown; did you mean resnet18"),
        ({"model": "resnet19", "pretrained": "true"}, "model='resnet19' is unknown; did you mean resnet18"),
        ({"pretrained": "true"}, "no pretrained weights exist for model=tiny; set pretrained=false"),
        ({"precision": "fp16"}, "precision=fp16 needs a GPU"),
        ({"model": "vit_b_16", "image-size": "33"}, "model=vit_b_16 cannot be built for image-size=33"),
    ],
)
def test_bad_hyperparameters(in_process: OptMl, drawn_data: Path, hyperparameters: dict[str, str], reason: str) -> None:
    in_process.hyperparameters({**QUICK, **hyperparameters})
    in_process.channels(train=drawn_data)
    fails(in_process, reason)


def test_no_channel(in_process: OptMl) -> None:
    in_process.hyperparameters(QUICK)
    fails(in_process, "no `train` channel; found channels: none")


def test_an_empty_folder(in_process: OptMl, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    in_process.hyperparameters(QUICK)
    in_process.channels(train=tmp_path / "empty")
    fails(in_process, "must hold one folder per class, at least two, but holds 0 (found: nothing)")


def test_a_class_that_only_validation_has(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn_data, tmp_path / "data"))
    (data / "valid" / "900.Griffin").mkdir()
    in_process.hyperparameters(QUICK)
    in_process.channels(train=data)
    fails(in_process, "900.Griffin; a validation label must be among the 3 train labels")


def pretrained(opt_ml: OptMl, drawn_data: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / name).write_bytes(content)
    opt_ml.hyperparameters({**QUICK, "pretrained": "true", "model": "resnet18"})
    opt_ml.channels(train=drawn_data, pretrained=folder)


def test_unreadable_weights(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    pretrained(in_process, drawn_data, tmp_path, "resnet18.pth", b"not weights")
    fails(in_process, "resnet18.pth cannot be read as weights")


def test_weights_of_another_architecture(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(2)}, other)
    pretrained(in_process, drawn_data, tmp_path, "other.pth", other.read_bytes())
    fails(in_process, "the weights are not those of model=resnet18: ")


def test_too_many_corrupt_images(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn_data, tmp_path / "data"))
    for file in sorted((data / "train").rglob("*.jpg"))[:4]:
        file.write_bytes(file.read_bytes()[:50])
    in_process.hyperparameters({**QUICK, "max-corrupt-fraction": "0.1"})
    in_process.channels(train=data)
    fails(in_process, "4 of 36 images cannot be decoded, more than max-corrupt-fraction=0.1; the first is ")


def test_a_few_corrupt_images_are_skipped_counted_and_listed(
    in_process: OptMl, drawn_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(drawn_data, tmp_path / "data"))
    victim = next((data / "valid").rglob("*.jpg"))
    victim.write_bytes(b"")
    in_process.hyperparameters(QUICK)
    in_process.channels(train=data)
    assert job.main() == 0
    assert artifacts.load(in_process.model).facts["corrupt_images"] == 1
    record = (in_process.root / "output" / "data" / "insight" / "record.json").read_text()
    assert victim.name in record


@pytest.mark.timeout(120)
def test_what_is_left_out_is_said_once_and_costs_nothing_else(
    in_process: OptMl, drawn_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(drawn_data / "train", tmp_path / "data"))
    one, two, three = sorted(path for path in data.iterdir() if path.is_dir())
    for file in sorted(two.iterdir())[1:]:
        file.unlink()
    shutil.copytree(three, data / ".Poodle")
    (one / "again").symlink_to(data)
    (one / "dead.jpg").symlink_to("nowhere")
    os.mkfifo(three / "pipe.jpg")
    in_process.hyperparameters({**QUICK, "max-corrupt-fraction": "0.3"})
    in_process.channels(train=data)
    assert job.main() == 0
    log = capfd.readouterr()
    lines = [line for line in (log.out + log.err).splitlines() if " WARNING " in line]
    told = [line.partition(" WARNING ")[2] for line in lines]
    for sentence in (
        r"shares: .*/again among the train images: passed over",
        r"shares: \.Poodle in .*: left out, because a name with a leading dot",
        r"shares: no validation image of .* \(1 of 3 classes\): .* none is held out of a single image",
    ):
        assert len([line for line in told if re.search(sentence, line)]) == 1, sentence
    left_out = " ".join(line for line in told if "left out, cannot be decoded: " in line)
    assert left_out.count("dead.jpg (") == left_out.count("pipe.jpg (") == 1
    record = json.loads((in_process.root / "output" / "data" / "insight" / "record.json").read_text())
    assert len(record["corrupt_images"]) == record["facts"]["corrupt_images"] == 2


def test_a_malformed_file_of_the_platform(in_process: OptMl, drawn_data: Path) -> None:
    in_process.channels(train=drawn_data)
    in_process.write("hyperparameters.json", "{")
    fails(in_process, "hyperparameters.json is not JSON")


def test_a_fault_of_ours_names_its_cause_first_and_ends_with_where_it_was(
    in_process: OptMl, drawn_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("the frobnicator is gone")

    monkeypatch.setattr(job.shares, "find_shares", explode)
    in_process.hyperparameters(QUICK)
    in_process.channels(train=drawn_data)
    assert job.main() == 1
    reason = in_process.failure.read_text()
    assert reason.startswith("RuntimeError: the frobnicator is gone\n")
    assert "explode" in reason
    assert len(reason) <= 1024


def fails(opt_ml: OptMl, reason: str) -> None:
    """The job exits with 1, and the failure file holds one sentence with ``reason`` in it."""
    assert job.main() == 1
    written = opt_ml.failure.read_text()
    assert reason in written
    assert "\n" not in written
    assert len(written) <= 1024
    assert not list(opt_ml.model.iterdir())


def test_a_cache_folder_that_cannot_be_written(
    in_process: OptMl, drawn_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_process.root / "a file").touch()
    monkeypatch.setenv("DOGBREED_CACHE_DIR", str(in_process.root / "a file"))
    in_process.hyperparameters({**QUICK, "trainable": "head"})
    in_process.channels(train=drawn_data)
    fails(in_process, "the outputs of the frozen part cannot be stored in")


def full_from(save: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full for the bundle that is saved then, and from then on."""
    saved = 0
    replace = artifacts._replace

    def fill(file: Path, data: bytes) -> None:
        nonlocal saved
        saved += file.name == artifacts.WEIGHTS_FILE
        if saved >= save:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(file, data)

    monkeypatch.setattr(artifacts, "_replace", fill)


def test_a_full_disk_at_the_end_is_one_sentence_and_the_checkpoint_survives(
    in_process: OptMl,
    drawn_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    in_process.hyperparameters({**QUICK, "checkpoint-seconds": "0"})
    in_process.channels(train=drawn_data)
    in_process.write("checkpointconfig.json", {"LocalPath": str(tmp_path / "checkpoints")})
    with monkeypatch.context() as patched:
        full_from(1, patched)
        fails(in_process, f"the disk of {in_process.model} is full: the model needs ")
    assert "make room and start the job again: it goes on from its last checkpoint" in in_process.failure.read_text()
    assert "Traceback" not in "".join(capfd.readouterr())
    in_process.failure.unlink()
    assert job.main() == 0
    assert "going on from" in "".join(capfd.readouterr())
    assert artifacts.load(in_process.model).metrics["test_accuracy"] >= 0


def test_a_disk_that_is_full_after_the_test_costs_its_score_and_not_the_job(
    in_process: OptMl, drawn_data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    in_process.hyperparameters(QUICK)
    in_process.channels(train=drawn_data)
    full_from(2, monkeypatch)
    assert job.main() == 0
    assert "the bundle stays without what was learnt after training: the disk of" in "".join(capfd.readouterr())
    assert "test_accuracy" not in artifacts.load(in_process.model).metrics


def test_a_rule_that_stop_on_names_ends_the_job_with_its_bundle(in_process: OptMl, drawn_data: Path) -> None:
    rules = {"rules": "LossNotDecreasing:num_steps=2;diff_percent=5,StalledTraining", "stop-on": "LossNotDecreasing"}
    in_process.hyperparameters({**QUICK, **rules, "epochs": "1000", "patience": "0", "lr": "1e-7"})
    in_process.channels(train=drawn_data)
    assert job.main() == 0
    assert artifacts.load(in_process.model).facts["ended_by"] == "rule LossNotDecreasing"
    record = json.loads((in_process.root / "output" / "data" / "insight" / "record.json").read_text())
    assert {verdict["rule"] for verdict in record["verdicts"]} == {"LossNotDecreasing", "StalledTraining"}


def test_the_report_of_a_failed_job_says_why(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "damaged"
    shutil.copytree(drawn_data, data)
    for file in (data / "valid").rglob("*.jpg"):
        file.write_bytes(b"no image")
    in_process.hyperparameters({**QUICK, "max-corrupt-fraction": "0.1"})
    in_process.channels(train=data)
    assert job.main() == 1
    page = (in_process.root / "output" / "data" / "insight" / "report.html").read_text()
    assert "cannot be decoded, more than" in page


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("rules", "Overfitting", "rule 'Overfitting' is unknown; did you mean Overfit?"),
        ("stop-on", "Confusion", "stop-on names Confusion, which is not among the rules of this job"),
    ],
)
def test_rules_that_do_not_exist(in_process: OptMl, drawn_data: Path, name: str, value: str, reason: str) -> None:
    in_process.channels(train=drawn_data)
    in_process.hyperparameters({**QUICK, name: value})
    fails(in_process, reason)


def test_the_report_shows_where_the_time_went_and_the_photos_that_were_wrong(
    in_process: OptMl, drawn_data: Path
) -> None:
    in_process.hyperparameters({**QUICK, "epochs": "10", "lr": "0.0001", "num-workers": "2"})
    in_process.channels(train=drawn_data)
    assert job.main() == 0
    insight = in_process.root / "output" / "data" / "insight"
    record = json.loads((insight / "record.json").read_text())
    losses = [verdict for verdict in record["verdicts"] if verdict["rule"] == "LossNotDecreasing"]
    assert losses[0]["status"] != "NotEnoughData", "the losses are saved, and found"
    gradients = [verdict for verdict in record["verdicts"] if verdict["rule"] == "VanishingGradient"]
    assert gradients[0]["status"] in ("NoIssuesFound", "IssuesFound"), gradients
    assert {"data", "forward", "backward", "optimizer"} <= set(record["profile"]["seconds"])
    assert record["profile"]["workers"] == 2
    assert record["profile"]["worker_seconds"] > 0
    wrong = record["wrong"]
    accuracy = record["metrics"]["test_accuracy"]
    assert len(wrong) == min(12, round(9 * (1 - accuracy)))
    assert (insight / "trace.json").stat().st_size > 100
