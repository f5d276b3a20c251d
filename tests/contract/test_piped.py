"""Pipe mode: a whole job whose channels are named pipes learns what the same job learns from folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.conftest import OptMl
from tests.contract.test_train import QUICK, fails
from tests.streams import feed, im2rec, record

from dogbreed import artifacts
from dogbreed.training import job

TRAIN = Path(__file__).resolve().parents[2] / "container" / "train"
SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def describe(opt_ml: OptMl, *channels: str, wrapper: str = "RecordIO") -> None:
    """Says what the platform says of channels in Pipe mode."""
    described = {
        "ContentType": "application/x-recordio",
        "TrainingInputMode": "Pipe",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": wrapper,
    }
    opt_ml.write("inputdataconfig.json", dict.fromkeys(channels, described))


def manifest(folder: Path) -> Iterator[bytes]:
    """The stream of an augmented manifest of all images below class folders, with AttributeNames source-ref, class."""
    for file in sorted(folder.rglob("*.jpg")):
        yield record(file.read_bytes())
        yield record(file.parent.name.encode())


def train(opt_ml: OptMl, folder: Path, **hyperparameters: str) -> artifacts.Bundle:
    opt_ml.hyperparameters({**QUICK, "augment": "crop", "dropout": "0.5", **hyperparameters})
    opt_ml.write("checkpointconfig.json", {"LocalPath": str(folder)})
    assert job.main() == 0, opt_ml.failure.read_text()
    return artifacts.load(opt_ml.model)


def agree(one: artifacts.Bundle, other: artifacts.Bundle) -> bool:
    return one.metrics == other.metrics and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_pipes_teach_the_same_model_as_folders(
    in_process: OptMl, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainable: str
) -> None:
    monkeypatch.setenv("DOGBREED_CACHE_DIR", str(tmp_path / "cache"))
    in_process.channels(**{channel: drawn_data / folder for channel, folder in SPLITS.items()})
    from_folders = train(in_process, tmp_path / "folders", trainable=trainable)
    for channel in SPLITS:
        (in_process.data / channel).unlink()
    describe(in_process, *SPLITS)
    for channel, folder in SPLITS.items():
        feed(in_process.data / f"{channel}_0", manifest(drawn_data / folder))
    from_pipes = train(in_process, tmp_path / "pipes", trainable=trainable)
    assert from_pipes.labels == from_folders.labels
    assert {"train_loss", "validation_accuracy", "test_accuracy"} <= from_pipes.metrics.keys()
    assert agree(from_pipes, from_folders)
    assert not list((tmp_path / "cache" / "piped").iterdir()), "the copy goes with the job"


def test_a_job_that_goes_on_reads_its_pipe_again(
    in_process: OptMl, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOGBREED_CACHE_DIR", str(tmp_path / "cache"))
    describe(in_process, "train")
    listen = job._stop_on_signals

    def stream() -> None:
        (in_process.data / "train_0").unlink(missing_ok=True)
        feed(in_process.data / "train_0", manifest(drawn_data / "train"))

    stream()
    undisturbed = train(in_process, tmp_path / "undisturbed", epochs="3")
    asked = 0

    def stop_in_the_middle() -> object:
        requested = listen()

        def ask() -> bool:
            nonlocal asked
            # Only of a fit: the pipe is asked for by every read.
            if sys._getframe(1).f_code.co_filename.endswith("job.py"):
                asked += 1
            if asked == 4:
                signal.raise_signal(signal.SIGTERM)
            return requested()

        return ask

    stream()
    with monkeypatch.context() as patched:
        patched.setattr(job, "_stop_on_signals", stop_in_the_middle)
        assert train(in_process, tmp_path / "disturbed", epochs="3").facts["ended_by"] == "stop signal"
    stream()
    assert agree(train(in_process, tmp_path / "disturbed", epochs="3"), undisturbed)


def test_records_of_im2rec_with_a_broken_photo_among_them(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    files = sorted((drawn_data / "train").rglob("*.jpg"))
    classes = sorted({file.parent.name for file in files})
    stream = [im2rec(file.read_bytes(), float(classes.index(file.parent.name))) for file in files]
    stream[4] = im2rec(b"no photo", 0.0)
    describe(in_process, "train", wrapper="None")
    feed(in_process.data / "train_0", stream)
    bundle = train(in_process, tmp_path / "checkpoints", **{"max-corrupt-fraction": "0.2"})
    assert bundle.labels.names == ("0", "1", "2")
    assert bundle.facts["corrupt_images"] == 1
    record_json = (in_process.root / "output" / "data" / "insight" / "record.json").read_text()
    assert "00000/0000004-" in record_json, "it is called by its place in the stream"


def test_a_manifest_in_a_folder_teaches_the_same_model(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = []
    for number, file in enumerate(sorted((drawn_data / "train").rglob("*.jpg"))):
        (photos / f"{number:03d}.jpg").symlink_to(file)
        lines.append(json.dumps({"source-ref": f"s3://bucket/x/{number:03d}.jpg", "breed": file.parent.name}))
    (photos / "output.manifest").write_text("\n".join(lines))
    in_process.channels(photos=photos)
    from_manifest = train(in_process, tmp_path / "manifest")
    (in_process.data / "photos").unlink()
    in_process.channels(train=drawn_data / "train")
    assert agree(from_manifest, train(in_process, tmp_path / "folders"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_while_no_writer_has_come_ends_the_job_well(opt_ml: OptMl, tmp_path: Path, processes: int) -> None:
    opt_ml.hyperparameters(QUICK)
    describe(opt_ml, "train")
    os.mkfifo(opt_ml.data / "train_0")
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml.root), "DOGBREED_CACHE_DIR": str(tmp_path / "cache")}
    environ["DOGBREED_PROCESSES"] = str(processes)
    process = subprocess.Popen(
        [sys.executable, str(TRAIN)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "reading " in line:
            process.send_signal(signal.SIGTERM)
            break
    output = seen + process.communicate(timeout=100)[0]
    assert process.returncode == 0, output
    assert "the job was stopped before its data had come; there is no model" in output
    assert "Traceback" not in output
    assert not opt_ml.failure.exists()
    assert not list((tmp_path / "cache" / "piped").iterdir())


def test_images_without_labels_end_the_job_with_what_to_do(in_process: OptMl, drawn_data: Path) -> None:
    in_process.hyperparameters(QUICK)
    describe(in_process, "train")
    feed(in_process.data / "train_0", [record(file.read_bytes()) for file in sorted(drawn_data.rglob("*.jpg"))[:2]])
    fails(
        in_process, "it comes without a label, because in Pipe mode files have no names or folders; give an augmented"
    )
