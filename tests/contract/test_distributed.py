"""Several processes and hosts as one job: the same model, one bundle, and a reason when one of them is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file
from tests.conftest import OptMl
from tests.streams import feed, record

from dogbreed.training.features import read_store
from dogbreed.training.job import main

TRAIN = Path(__file__).resolve().parents[2] / "container" / "train"

# Nothing random after the loader and no statistics of a batch: what one, two and four processes learn must agree.
EXACT = {
    "model": "tiny",
    "pretrained": "false",
    "trainable": "head",
    "cache": "false",
    "dropout": "0",
    "image-size": "32",
    "batch-size": "9",
    "epochs": "3",
    "lr": "0.01",
    "num-workers": "0",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """One job on hosts that are processes of this machine; 127.0.0.1 leads, localhost follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.running: list[subprocess.Popen[str]] = []

    def host(self, name: str, data: Path | None, hyperparameters: dict[str, str], *hosts: str) -> OptMl:
        built = OptMl(self.folder / name)
        for folder in (built.config, built.data, built.model, built.failure.parent):
            folder.mkdir(parents=True)
        built.hyperparameters(hyperparameters)
        if data is not None:
            built.channels(train=data)
        if hosts:
            built.hosts(*hosts, current=name)
        return built

    def start(self, opt_ml: OptMl, **environ: str) -> subprocess.Popen[str]:
        variables = {
            **os.environ,
            "SAGEMAKER_BASE_DIR": str(opt_ml.root),
            "DOGBREED_CACHE_DIR": str(opt_ml.root / "cache"),
            "MASTER_PORT": str(self.port),
            **environ,
        }
        process = subprocess.Popen(
            [sys.executable, str(TRAIN)], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.running.append(process)
        return process

    def run(self, data: Path, processes: int, **hyperparameters: str) -> tuple[OptMl, str]:
        """A job on one host that must succeed; returns its folder and its log."""
        opt_ml = self.host(f"host-{processes}", data, {**EXACT, **hyperparameters})
        process = self.start(opt_ml, DOGBREED_PROCESSES=str(processes))
        log, _ = process.communicate(timeout=250)
        assert process.returncode == 0, log
        assert not opt_ml.failure.exists()
        return opt_ml, log

    def two_hosts(
        self, data: Path, other_data: Path | None = None, *, sharded: bool = False, **hyperparameters: str
    ) -> tuple[list[OptMl], list[subprocess.Popen[str]]]:
        hosts = ("127.0.0.1", "localhost")
        values = {**EXACT, **hyperparameters}
        folders = [self.host(hosts[0], data, values, *hosts), self.host(hosts[1], other_data or data, values, *hosts)]
        if sharded:
            for folder in folders:
                folder.write("inputdataconfig.json", {"train": {"S3DistributionType": "ShardedByS3Key"}})
        return folders, [self.start(folder) for folder in folders]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    for process in made.running:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


@pytest.fixture
def alone(
    in_process: OptMl, drawn_data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[OptMl, str]]:
    """What `Job.run` does, for a job of one process; it needs none of its own."""

    def run(**hyperparameters: str) -> tuple[OptMl, str]:
        in_process.hyperparameters({**EXACT, **hyperparameters})
        in_process.channels(train=drawn_data)
        monkeypatch.setenv("DOGBREED_CACHE_DIR", str(in_process.root / "cache"))
        capfd.readouterr()
        assert main() == 0, in_process.failure.read_text()
        assert not in_process.failure.exists()
        return in_process, capfd.readouterr().out

    return run


def largest_difference(one: Path, other: Path) -> float:
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    return max(float((weights[name].float() - others[name].float()).abs().max()) for name in weights)


def history(log: str) -> list[str]:
    return [line.split("lr=")[0].split("console: ")[1] for line in log.splitlines() if "epoch=" in line]


def wait_for(process: subprocess.Popen[str], sign: Callable[[str], bool]) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if sign(line):
            return seen
    raise AssertionError(f"the process ended first: {seen}")


@pytest.mark.timeout(600)
def test_one_two_and_four_processes_learn_the_same(
    job: Job, alone: Callable[..., tuple[OptMl, str]], drawn_data: Path
) -> None:
    one, log_of_one = alone()
    for processes in (2, 4):
        many, log = job.run(drawn_data, processes)
        assert largest_difference(one.model, many.model) < 1e-4
        assert len(history(log)) == 3, "the leader alone prints metrics"
        for line, other in zip(history(log_of_one), history(log), strict=True):
            numbers = [float(part.split("=")[1]) for part in line.split("; ") if "=" in part]
            others = [float(part.split("=")[1]) for part in other.split("; ") if "=" in part]
            assert numbers == pytest.approx(others, abs=1e-3)


@pytest.mark.timeout(600)
def test_a_batch_of_fewer_samples_than_processes_teaches_them_all_the_same(
    job: Job, alone: Callable[..., tuple[OptMl, str]], drawn_data: Path
) -> None:
    """18 images in batches of 8: the last one has two, so that two or three of four processes have nothing."""
    one, _ = alone(**{"batch-size": "8"})
    four, _ = job.run(drawn_data, 4, **{"batch-size": "8"})
    assert largest_difference(one.model, four.model) < 1e-4


@pytest.mark.timeout(600)
@pytest.mark.parametrize("statistics", ["keep", "learn"])
def test_a_host_with_a_few_images_of_its_own_holds_up_no_step(
    job: Job, drawn_data: Path, tmp_path: Path, statistics: str
) -> None:
    """The second host has images for one step of each epoch: the rate falls to its end all the same."""
    hosts = ("127.0.0.1", "localhost")
    options = {"trainable": "all", "batch-size": "4", "epochs": "2", "patience": "0", "batch-statistics": statistics}
    folders = []
    for number, name in enumerate(hosts):
        own = tmp_path / f"images {number}"
        shutil.copytree(drawn_data / "train", own)
        for folder in own.iterdir():
            first, *others = sorted(folder.iterdir())
            for image in others if number else [first]:
                image.unlink()
        folders.append(job.host(name, None, {**EXACT, **options}, *hosts))
        folders[-1].channels(train=own, validation=drawn_data / "valid")
        folders[-1].write("inputdataconfig.json", {"train": {"S3DistributionType": "ShardedByS3Key"}, "validation": {}})
    processes = [job.start(folder) for folder in folders]
    logs = [process.communicate(timeout=250)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    rates = [float(line.split("lr=")[1].split(";")[0]) for line in logs[0].splitlines() if "epoch=" in line]
    assert rates[-1] < 0.05 * float(EXACT["lr"]), "of the last of all steps"
    assert "stood alone" not in logs[0]
    found = json.loads((folders[0].model / "bundle.json").read_text())
    assert found["facts"]["train_images"] == len(list((drawn_data / "train").rglob("*.jpg")))


@pytest.mark.timeout(600)
def test_stored_outputs_are_computed_in_shares_and_put_together(
    job: Job, alone: Callable[..., tuple[OptMl, str]], drawn_data: Path
) -> None:
    options = {"cache": "true", "trainable": "last_stage", "augment": "crop", "cached-views": "2"}
    one, _ = alone(**options)
    two, log = job.run(drawn_data, 2, **options)
    stores = [sorted((opt_ml.root / "cache").glob("*.f16")) for opt_ml in (one, two)]
    assert [file.name for file in stores[0]] == [file.name for file in stores[1]], "and no share is left"
    assert len(stores[0]) == 2
    for file, other in zip(*stores, strict=True):
        found, expected = read_store(other), read_store(file)
        np.testing.assert_allclose(found.outputs, expected.outputs, rtol=2e-2, atol=2e-2)
        assert found.indices.tolist() == expected.indices.tolist()
    assert len(history(log)) == 3
    assert not list((two.root / "cache").glob(".*")), "nor half a file"


@pytest.mark.timeout(600)
def test_two_hosts_leave_one_bundle_and_stop_together(job: Job, drawn_data: Path) -> None:
    folders, (leader, follower) = job.two_hosts(drawn_data, epochs="1000", patience="0")
    seen = wait_for(leader, lambda line: "epoch=2;" in line)
    follower.send_signal(signal.SIGTERM)
    rest, _ = leader.communicate(timeout=120)
    log, _ = follower.communicate(timeout=120)
    assert (leader.returncode, follower.returncode) == (0, 0), seen + rest + log
    assert "ended by stop signal" in rest
    assert sorted(file.name for file in folders[0].model.iterdir()) == [
        "MODEL_CARD.md",
        "bundle.json",
        "model.safetensors",
    ]
    assert not list(folders[1].model.iterdir()), "the folders of all hosts become one archive"
    assert not (folders[1].root / "output" / "data").exists()
    assert "epoch=" not in log


@pytest.mark.timeout(600)
def test_a_process_that_is_killed_ends_the_job_with_a_reason_on_every_host(job: Job, drawn_data: Path) -> None:
    folders, (leader, follower) = job.two_hosts(drawn_data, epochs="1000", patience="0")
    wait_for(leader, lambda line: "epoch=1;" in line)
    (child,) = psutil.Process(follower.pid).children()
    child.kill()
    for process in (leader, follower):
        process.communicate(timeout=120)
    assert (leader.returncode, follower.returncode) == (1, 1)
    assert "another process of this job is gone without a word" in folders[0].failure.read_text()
    assert folders[1].failure.read_text() == (
        "process 1 on localhost was killed by SIGKILL; when memory ran out, lower batch-size or num-workers"
    )


@pytest.mark.timeout(600)
def test_a_class_that_only_one_host_has(job: Job, drawn_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(drawn_data, other)
    new = next((other / "train").iterdir()).with_name("004.Zebra")
    shutil.copytree(next((other / "train").iterdir()), new)
    folders, processes = job.two_hosts(drawn_data, other)
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 1
    for folder in folders:
        assert "the class folder 004.Zebra is on host localhost only" in folder.failure.read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("trainable", ["head", "all"])
def test_a_job_of_two_processes_goes_on_from_its_checkpoint(job: Job, drawn_data: Path, trainable: str) -> None:
    """With norm layers that learn, each process has statistics of its own until the epoch ends."""
    options = {"epochs": "12", "patience": "0", "dropout": "0.5", "checkpoint-seconds": "0"}
    options |= {"trainable": trainable, "batch-size": "4"}
    whole, _ = job.run(drawn_data, 2, **options)
    interrupted = job.host("interrupted", drawn_data, {**EXACT, **options})
    interrupted.write("checkpointconfig.json", {"LocalPath": str(job.folder / "checkpoints")})
    process = job.start(interrupted, DOGBREED_PROCESSES="2")
    wait_for(process, lambda line: "epoch=3;" in line)
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.communicate(timeout=120)
    assert process.returncode == 1
    shutil.rmtree(interrupted.failure.parent)
    again = job.start(interrupted, DOGBREED_PROCESSES="2")
    log, _ = again.communicate(timeout=250)
    assert again.returncode == 0, log
    assert "going on from" in log
    assert largest_difference(whole.model, interrupted.model) == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("trainable", "cache"), [("all", "false"), ("head", "true")])
def test_hosts_with_different_images_train_one_model(
    job: Job, drawn_data: Path, tmp_path: Path, trainable: str, cache: str
) -> None:
    """ShardedByS3Key: the first host has no image of the last class, and the second none of the first."""
    classes = sorted(folder.name for folder in (drawn_data / "train").iterdir())
    halves = [tmp_path / "first", tmp_path / "second"]
    for half, missing in zip(halves, (classes[-1], classes[0]), strict=True):
        shutil.copytree(drawn_data / "train", half, ignore=shutil.ignore_patterns(missing))
    folders, processes = job.two_hosts(*halves, sharded=True, trainable=trainable, cache=cache, epochs="2")
    logs = [process.communicate(timeout=250)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    bundle = json.loads((folders[0].model / "bundle.json").read_text())
    assert len(bundle["labels"]) == 3
    assert bundle["facts"]["train_images"] + bundle["facts"]["validation_images"] == 24
    assert len(history(logs[0])) == 2


@pytest.mark.timeout(600)
def test_hosts_read_pipes_of_their_own_for_all_their_processes(job: Job, drawn_data: Path) -> None:
    """ShardedByS3Key: the first host has no image of the last class, and the second none of the first."""
    hosts = ("127.0.0.1", "localhost")
    folders = [job.host(name, None, {**EXACT, "epochs": "2"}, *hosts) for name in hosts]
    files = sorted((drawn_data / "train").rglob("*.jpg"))
    for number, folder in enumerate(folders):
        described = {"TrainingInputMode": "Pipe", "RecordWrapperType": "RecordIO"}
        folder.write("inputdataconfig.json", {"train": {**described, "S3DistributionType": "ShardedByS3Key"}})
        own = files[6:] if number else files[:12]
        feed(folder.data / "train_0", [record(part) for file in own for part in (file.read_bytes(), name_of(file))])
    processes = [job.start(folder, DOGBREED_PROCESSES="2") for folder in folders]
    logs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    bundle = json.loads((folders[0].model / "bundle.json").read_text())
    assert len(bundle["labels"]) == 3
    assert bundle["facts"]["train_images"] + bundle["facts"]["validation_images"] == 24
    assert [log.count("read from its pipe") for log in logs] == [1, 0], "what followers say, they say as warnings alone"
    assert not [left for folder in folders for left in (folder.root / "cache" / "piped").iterdir()]


def name_of(file: Path) -> bytes:
    return file.parent.name.encode()


@pytest.mark.timeout(600)
def test_a_preset_from_lists_on_two_hosts(job: Job, drawn_data: Path, tmp_path: Path) -> None:
    """The recipe of ResNet-50 by SGD with step decay and early stopping, from LST files."""
    for split, folder in (("train", "train"), ("validation", "valid")):
        listing = tmp_path / f"{split}_lst"
        listing.mkdir()
        images = sorted((drawn_data / folder).rglob("*.jpg"))
        classes = sorted({image.parent.name for image in images})
        (listing / f"{split}.lst").write_text(
            "".join(
                f"{number}\t{classes.index(image.parent.name)}\t{image.relative_to(drawn_data / folder)}\n"
                for number, image in enumerate(images)
            )
        )
    channels = {
        "train": drawn_data / "train",
        "validation": drawn_data / "valid",
        "train_lst": tmp_path / "train_lst",
        "validation_lst": tmp_path / "validation_lst",
    }
    settings = {"preset": "resnet50-sgd", "pretrained": "false", "image-size": "32", "epochs": "2", "num-workers": "0"}
    hosts = ("127.0.0.1", "localhost")
    folders = [job.host(name, None, settings, *hosts) for name in hosts]
    for folder in folders:
        folder.channels(**channels)
    processes = [job.start(folder) for folder in folders]
    logs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    bundle = json.loads((folders[0].model / "bundle.json").read_text())
    assert (bundle["backbone"], len(bundle["labels"])) == ("resnet50", 3)
    assert bundle["hyperparameters"]["optimizer"] == "sgd"
    assert len(history(logs[0])) == 2


def test_the_hosts_wait_for_each_others_names() -> None:
    from dogbreed.errors import ConfigurationError
    from dogbreed.training import processes

    now, attempts = 0.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def resolve(host: str, port: None) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            raise OSError("Name or service not known")

    processes.wait_for_name("algo-1", resolve=resolve, sleep=sleep, clock=lambda: now)
    assert attempts == 4
    attempts = -1000
    with pytest.raises(ConfigurationError, match=r"the name of host algo-1 .* after 60 s .*Name or service not known"):
        processes.wait_for_name("algo-1", timeout_s=60, resolve=resolve, sleep=sleep, clock=lambda: now)
