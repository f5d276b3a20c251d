"""`launch.py evaluate`: against the project's own server on a tiny bundle, and against a fake of the runtime."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.launch.conftest import Launch
from tests.launch.scripted import Scripted, problems

from dogbreed import artifacts, backbones, imagefiles, preprocessing
from dogbreed.artifacts import Bundle
from dogbreed.backbones import HeadSpec
from dogbreed.labels import Labels
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.serving import payload
from scripts.launcher.commands import predict
from scripts.launcher.errors import SettingError
from scripts.launcher.evaluation import labelled, models
from scripts.launcher.local import engine
from scripts.launcher.plan import Call

FOLDERS = ("001.Akita", "002.Beagle", "003.Pug")


def save_bundle(folder: Path, seed: int, folders: tuple[str, ...] = FOLDERS) -> Path:
    torch.manual_seed(seed)
    head = HeadSpec(classes=len(folders))
    model = backbones.build(backbones.TINY, head, image_size_px=64)
    bundle = Bundle(
        backbone=backbones.TINY,
        head=head,
        labels=Labels.from_folders(folders),
        preprocessing=PreprocessSpec.for_size(64),
        weights=artifacts.clone_weights(model),
        hyperparameters={},
        metrics={},
        data_fingerprint="none",
    )
    artifacts.save(bundle, folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to build/evaluation of the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four photos of each class, one broken, one class that no model knows, and what is no image."""
    folder = tmp_path / "photos"
    for place, name in enumerate((*FOLDERS[:2], "Zebra")):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            save_photo(folder / name / f"{index}.jpg", 10 * place + index)
    (folder / FOLDERS[0] / "broken.jpg").write_bytes(b"no image")
    (folder / FOLDERS[0] / "notes.txt").write_text("-")
    return folder


def save_photo(file: Path, seed: int) -> None:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((96, 80), Image.Resampling.BICUBIC).save(file)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_two_bundles_are_asked_and_compared(launch: Launch, here: Path, data: Path) -> None:
    """The one from a folder laid out like /opt/ml, the other from a model.tar.gz, by the real server."""
    folder = save_bundle(here / "ml" / "model", 1)
    other = save_bundle(here / "other", 2)
    archive = here / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in other.iterdir():
            tar.add(file, file.name)
    launch.environ.clear()  # no account is needed
    ended = launch("evaluate", str(data), "--model", str(here / "ml"), "--against", str(archive))
    assert ended.code == 0, ended.err
    own, others = (here / "build" / "evaluation" / models.find(one).name for one in (folder, archive))

    rows = rows_of(own)
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert len(rows) == 13
    (broken,) = [row for row in rows if row["error"]]
    assert broken["path"] == "001.Akita/broken.jpg"
    assert broken["error"].startswith("unreadable_image: ")
    assert (broken["label"], broken["prediction"]) == ("Akita", "")
    bundle = artifacts.load(folder)
    image = data / "002.Beagle" / "1.jpg"
    expected = probabilities(bundle, image)
    (row,) = [row for row in rows if row["path"] == "002.Beagle/1.jpg"]
    assert row["label"] == "Beagle"
    assert row["prediction"] == bundle.labels.names[int(expected.argmax())]
    assert float(row["probability"]) == pytest.approx(float(expected.max()), abs=1e-3)
    assert float(row["log_loss"]) == pytest.approx(-math.log(expected[1]), abs=1e-3)
    assert float(row["brier"]) == pytest.approx(float(((expected - torch.tensor([0, 1, 0])) ** 2).sum()), abs=1e-3)
    assert [label for label, _ in json.loads(row["top5"])] == [
        bundle.labels.names[i] for i in expected.argsort().flip(0)
    ]

    document = json.loads((own / "evaluation.json").read_text())
    assert (document["images"], document["failed"], document["left_out"], document["top1"]["count"]) == (13, 1, 4, 8)
    assert document["comparison"]["images"] == 8
    assert document["run"]["unknown"] == ["Zebra"]
    assert "The model does not know the class Zebra of the folder: the 4 images" in ended.out
    assert "The folder has no image of the class Pug that the model knows" in ended.out
    compared = document["comparison"]
    assert (compared["first"], compared["second"]) == (others.name, own.name)
    assert compared["sentence"] in ended.out.splitlines()
    assert ended.out.splitlines()[-1] == str(Path("build", "evaluation", own.name, "evaluation.html"))
    assert (own / "evaluation.html").read_text().count("<h2") == 7
    assert len(rows_of(others)) == 13


def probabilities(bundle: Bundle, image: Path) -> torch.Tensor:
    view = bundle.preprocessing.centre_view(preprocessing.decode(image))
    with torch.inference_mode():
        return bundle.build()(bundle.preprocessing.normalise(view[None])).softmax(1)[0]


def test_a_bundle_that_cannot_be_served_is_one_sentence(launch: Launch, here: Path, data: Path) -> None:
    folder = save_bundle(here / "model", 1)
    (folder / "model.safetensors").write_bytes(b"short")
    ended = launch("evaluate", str(data), "--model", str(folder))
    assert (ended.code, ended.out) == (1, "")
    assert f"{folder} cannot be served: model.safetensors is not the file" in ended.err


def answer(labels: tuple[str, ...], shares: list[float]) -> bytes:
    """As the container answers with all classes."""
    ranked = sorted(range(len(labels)), key=lambda index: -shares[index])
    top = [{"label": labels[index], "index": index, "probability": shares[index]} for index in ranked]
    return json.dumps(
        {"predictions": [{**top[0], "top_k": top, "log_probabilities": [*map(math.log, shares)]}]}
    ).encode()


LABELS = ("Akita", "Beagle", "Pug")


def endpoint(sureness: Callable[[bytes], list[float]]) -> Scripted:
    def invoked(**asked: Any) -> dict[str, Any]:
        return {"Body": io.BytesIO(answer(LABELS, sureness(asked["Body"])))}

    return Scripted(InvokeEndpoint=invoked)


def test_an_endpoint_is_asked_by_its_name_and_two_results_are_compared(launch: Launch, here: Path, data: Path) -> None:
    akitas = {(data / "001.Akita" / f"{index}.jpg").read_bytes() for index in range(4)}
    launch.aws = endpoint(lambda image: [0.8, 0.1, 0.1] if image in akitas else [0.2, 0.7, 0.1])
    ended = launch("evaluate", str(data), "--endpoint", "dogs")
    assert ended.code == 0, ended.err
    assert len(launch.aws.asked("InvokeEndpoint")) == 13
    assert {one["EndpointName"] for one in launch.aws.asked("InvokeEndpoint")} == {"dogs"}
    document = json.loads(Path("build/evaluation/dogs/evaluation.json").read_text())
    # The broken one is taken for a Beagle by this endpoint.
    assert document["confusion"] == {"Akita": {"Akita": 4, "Beagle": 1}, "Beagle": {"Beagle": 4}}
    assert document["log_loss"] == pytest.approx(-(4 * math.log(0.8) + math.log(0.2) + 4 * math.log(0.7)) / 9)

    launch.aws = endpoint(lambda _: [0.1, 0.1, 0.8])
    assert launch("evaluate", str(data), "--endpoint", "dogs", "--name", "pugs", "--against", "dogs").code == 0
    assert (
        json.loads(Path("build/evaluation/pugs/evaluation.json").read_text())["comparison"]["test"]["only_first"] == 8
    )

    launch.aws = Scripted()
    ended = launch("evaluate", "--results", "build/evaluation/dogs", "--against", "build/evaluation/pugs")
    assert ended.code == 0, ended.err
    assert "dogs is significantly better than pugs: 88.9% against 0.0% on the same 9 images" in ended.out


def test_a_dry_run_shows_a_request_per_image_and_model(launch: Launch, here: Path, data: Path) -> None:
    one, other = save_bundle(here / "one", 1), save_bundle(here / "other", 2)
    ended = launch("evaluate", str(data), "--endpoint", "dogs", "--against", str(other), "--dry-run")
    calls = [Call(**call) for call in json.loads(ended.out)]
    assert [problem for call in calls[:13] for problem in problems(call)] == []
    assert [call.parameters["Url"] for call in calls[13:]] == ["${other-server}/invocations"] * 13
    ended = launch("evaluate", str(data), "--model", str(one), "--dry-run")
    assert {call["parameters"]["Url"] for call in json.loads(ended.out)} == {"${server}/invocations"}
    assert not (here / "build").exists()


def test_answers_of_nothing_are_an_error(launch: Launch, here: Path, data: Path) -> None:
    launch.aws = Scripted(InvokeEndpoint=lambda **_: {"Body": io.BytesIO(b'{"predictions": [{"top_k": []}]}')})
    ended = launch("evaluate", str(data), "--endpoint", "dogs")
    assert (ended.code, ended.out) == (1, "")
    assert "none of 13 images was answered; the first: 001.Akita/0.jpg: the answer holds no log prob" in ended.err
    for place, folder in enumerate(sorted(data.iterdir())):
        folder.rename(data / f"Horse {place}")
    launch.aws = endpoint(lambda _: [0.1, 0.1, 0.8])
    ended = launch("evaluate", str(data), "--endpoint", "dogs")
    assert (ended.code, ended.out) == (1, "")
    assert "(Horse 0, Horse 1, Horse 2, ...) is a class that the model knows (Akita, Beagle, Pug, ...)" in ended.err


def test_a_folder_that_cannot_be_written_is_noticed_before_anybody_is_asked(
    launch: Launch, here: Path, data: Path
) -> None:
    launch.aws = endpoint(lambda _: [0.8, 0.1, 0.1])
    (here / "text.pth").write_text("-")
    ended = launch("evaluate", str(data), "--endpoint", "dogs", "--output", "text.pth")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "launch.py evaluate: text.pth cannot be written to: it is no folder; name another folder with --output\n"
    )
    assert launch.aws.calls == []
    # Of the second model as well, whose folder stands beside that of the first.
    model = save_bundle(here / "model", 1)
    (here / f"found-against-{models.find(model).name}").write_text("-")
    ended = launch("evaluate", str(data), "--endpoint", "dogs", "--output", "found", "--against", str(model))
    assert (ended.code, ended.out) == (2, "")
    assert "cannot be written to: it is no folder" in ended.err
    assert launch.aws.calls == []


def test_answers_that_cannot_be_written_are_one_sentence(launch: Launch, here: Path, data: Path) -> None:
    launch.aws = endpoint(lambda _: [0.8, 0.1, 0.1])
    (here / "found" / "answers.csv").mkdir(parents=True)
    ended = launch("evaluate", str(data), "--endpoint", "dogs", "--output", "found")
    assert (ended.code, ended.out) == (1, "")
    assert "the answers to 13 images cannot be written into found: Is a directory; make room there" in ended.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("photos",), "one of the arguments --model --endpoint --url --api --results is required"),
        (("photos", "--model", "nowhere"), "nowhere is no model: there is nothing of that name"),
        (("photos", "--model", "photos"), "photos is no model: it holds 001.Akita, 002.Beagle, Zebra; give a folder"),
        (
            ("photos", "--model", "photos/001.Akita/0.jpg"),
            "0.jpg cannot be read as model.tar.gz: it is no tar archive, or",
        ),
        (("photos", "--model", "cut.tar.gz"), "cut.tar.gz cannot be read as model.tar.gz: it is no tar archive, or"),
        (("photos", "--model", "bad.tar.gz"), "bad.tar.gz cannot be read as model.tar.gz: it is no tar archive, or"),
        (("--endpoint", "dogs"), "DATA is not given"),
        (("nowhere", "--endpoint", "dogs"), "DATA=nowhere is not a folder"),
        (("photos/Zebra", "--endpoint", "dogs"), "its images lie outside of class folders"),
        (("photos", "--results", "build"), "--results takes answers that are there"),
        (("--results", "build"), "build holds no run.json"),
        (("photos", "--endpoint", "dogs", "--against", "pugs"), "pugs is no model"),
        (("photos", "--url", "http://127.0.0.1:9", "--local"), "--url and --local exclude each other"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    launch: Launch, here: Path, data: Path, argv: tuple[str, ...], message: str
) -> None:
    with tarfile.open(here / "whole.tar.gz", "w:gz") as tar:
        tar.add(data / "Zebra", "Zebra")
    whole = (here / "whole.tar.gz").read_bytes()
    (here / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    (here / "bad.tar.gz").write_bytes(whole[:20] + bytes(200) + whole[220:])
    ended = launch("evaluate", *argv)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    # Beside a line of usage, where the command line itself is wrong.
    assert len(ended.err.splitlines()) == 1 + ended.err.startswith("usage: ")


def test_a_class_folder_that_is_not_named_in_utf_8_is_refused_before_anything_is_asked(
    launch: Launch, here: Path, data: Path
) -> None:
    (data / "Zebra").rename(data / os.fsdecode(b"z\xe8bre"))
    for command in (
        ("evaluate", str(data), "--endpoint", "dogs"),
        ("predict", "dogs", str(data)),
        ("upload", str(data)),
    ):
        ended = launch(*command, "--dry-run")
        assert (ended.code, ended.out) == (2, "")
        assert r"z\udce8bre/0.jpg' is not UTF-8, which models, reports and S3 need; rename it" in ended.err


def test_of_splits_the_test_is_taken(tmp_path: Path) -> None:
    for split in ("train", "valid", "Test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        save_photo(tmp_path / split / "cat" / f"{split}.jpg", 0)
    found, images = labelled.find(tmp_path)
    assert (found, [image.file.name for image in images]) == (tmp_path / "Test", ["Test.jpg"])
    shutil.rmtree(tmp_path / "Test")
    with pytest.raises(SettingError, match=r"the model has learned from train; name the folder of a split"):
        labelled.find(tmp_path)


def test_images_of_all_formats_that_training_takes_are_found(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    names = [f"{place}{suffix}" for place, suffix in enumerate(imagefiles.SUFFIXES)] + ["UPPER.TIF"]
    for name in (*names, "notes.txt", "._1.gif"):
        save_photo(tmp_path / "cat" / "photo.png", 0)
        (tmp_path / "cat" / "photo.png").rename(tmp_path / "cat" / name)
    _, images = labelled.find(tmp_path)
    assert [image.file.name for image in images] == names


def test_the_container_takes_each_images_type() -> None:
    sent = {suffix: predict.request(Path(f"a{suffix}"), attributes="").parameters for suffix in imagefiles.SUFFIXES}
    types = {suffix: str(parameters["ContentType"]) for suffix, parameters in sent.items()}
    assert set(types.values()) <= set(payload.IMAGE_TYPES)
    assert {types[suffix] for suffix in (".gif", ".tif", ".tiff")} == {"application/x-image"}


@pytest.mark.parametrize(
    ("folder", "labels", "name"),
    [
        ("003.Beagle", ("Beagle", "Pug"), "Beagle"),
        ("n02085620-Pug", ("Beagle", "Pug"), "Pug"),
        ("1.cat", ("1.cat", "2.cat"), "1.cat"),
        ("beagle", ("Beagle",), None),
    ],
)
def test_a_folder_is_the_class_that_the_model_made_of_it(
    folder: str, labels: tuple[str, ...], name: str | None
) -> None:
    assert labelled.known_as(folder, labels) == name


def test_a_server_is_gone_when_its_answers_are_there(here: Path) -> None:
    model = models.find(save_bundle(here / "model", 1))
    with models.served(model, time.sleep) as url:
        port = int(url.rpartition(":")[2])
        assert not engine.is_free(port)
    assert engine.is_free(port)
