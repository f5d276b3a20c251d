"""Labels changed and copies planted on purpose among drawn images: what a job and the command find of them."""

from __future__ import annotations

import colorsys
import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_test import make_data
from PIL import Image, ImageOps
from tests.conftest import OptMl

from dogbreed import artifacts, backbones
from dogbreed.artifacts import Bundle
from dogbreed.backbones import HeadSpec
from dogbreed.curation import __main__ as command
from dogbreed.labels import Labels
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import job

CLASSES = 4
JOB = {"model": "tiny", "pretrained": "false", "trainable": "head", "image-size": "64", "epochs": "2", "curate": "true"}


@dataclass(frozen=True)
class Planted:
    """A data set and what was done to it; paths are relative to it."""

    folder: Path
    labels: frozenset[str]
    copies: frozenset[frozenset[str]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """5% of the training labels are changed, and six photos have a copy: two in train, two in valid, two in test."""
    folder = tmp_path_factory.mktemp("planted") / "data"
    for place, (split, images) in enumerate((("train", 40), ("valid", 10), ("test", 10))):
        for label in range(CLASSES):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(images):
                rng = np.random.default_rng([label, number, place])
                tinted(rng, label).save(folder / split / f"class{label}" / f"{number}.jpg", quality=90)
    rng = np.random.default_rng(0)
    files = sorted((folder / "train").glob("*/*"))
    chosen = rng.permutation(len(files))
    wrong = set()
    for position in chosen[: round(0.05 * len(files))]:
        file = files[position]
        other = (int(file.parent.name[-1]) + 1 + int(rng.integers(CLASSES - 1))) % CLASSES
        moved = file.rename(folder / "train" / f"class{other}" / f"moved-{file.name}")
        wrong.add(moved.relative_to(folder).as_posix())
    copies = set()
    for number, position in enumerate(chosen[-6:]):
        file = files[position]
        # Brackets, as file managers write them: nothing may take them for those of an error's reason.
        copy = folder / ("train", "valid", "test")[number % 3] / file.parent.name / f"copy (1) of {file.name}"
        with Image.open(file) as image:
            changed(image, mirrored=number < 3).save(copy, "JPEG", quality=70)
        copies.add(frozenset(one.relative_to(folder).as_posix() for one in (file, copy)))
    (folder / "train" / "class0" / "broken (1) (2).jpg").write_bytes(b"no image")
    return Planted(folder, frozenset(wrong), frozenset(copies))


def tinted(rng: np.random.Generator, label: int) -> Image.Image:
    """A drawn image of any shape in the colour of its class, which also a network that has learned nothing sees."""
    image = make_data.draw(str(rng.choice(list(make_data.SHAPES))), rng, 96)
    red, green, blue = colorsys.hsv_to_rgb((label + rng.uniform(-0.15, 0.15)) / CLASSES, 0.9, 0.8)
    colour = Image.new("RGB", image.size, (round(red * 255), round(green * 255), round(blue * 255)))
    return Image.blend(image, colour, 0.6)


def changed(image: Image.Image, *, mirrored: bool) -> Image.Image:
    width, height = image.size
    if mirrored:
        return ImageOps.mirror(image)
    return image.crop((width // 16, height // 12, width - width // 20, height - height // 16))


def check(found: dict[str, Any], planted: Planted, *, share: float = 0.6, copies: int = 5) -> None:
    """At least that share of the changed labels is found, and so many copies."""
    suspects = {one["path"] for one in found["label_errors"]}
    assert len(suspects & planted.labels) >= share * len(planted.labels)
    assert len(suspects & planted.labels) >= 0.5 * len(suspects)
    first = [one["path"] for one in found["label_errors"]][:4]
    assert len(set(first) & planted.labels) >= 3, "the most suspicious come first"
    groups = {frozenset(photo["path"] for photo in one["photos"]) for one in found["copies"]}
    assert len(groups & planted.copies) >= copies
    assert len(groups - planted.copies) <= 1
    assert found["counts"]["copies_across_splits"] >= copies // 3


def save_bundle(folder: Path, *, trainable: str = "head") -> Path:
    torch.manual_seed(1)
    head = HeadSpec(classes=2)
    model = backbones.build(backbones.TINY, head, image_size_px=64)
    bundle = Bundle(
        backbone=backbones.TINY,
        head=head,
        labels=Labels.from_folders(("of", "other images")),
        preprocessing=PreprocessSpec.for_size(64),
        weights=artifacts.clone_weights(model),
        hyperparameters={"trainable": trainable},
        metrics={},
        data_fingerprint="none",
    )
    artifacts.save(bundle, folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOGBREED_CACHE_DIR", str(tmp_path / "features"))


def test_a_job_finds_what_was_planted(in_process: OptMl, planted: Planted, capfd: pytest.CaptureFixture[str]) -> None:
    in_process.hyperparameters(JOB)
    channels = {"train": "train", "validation": "valid", "test": "test"}
    in_process.channels(**{name: planted.folder / split for name, split in channels.items()})
    assert job.main() == 0
    insight = in_process.root / "output" / "data" / "insight"
    found = json.loads((insight / "curation.json").read_text())
    assert found["root"] == str(in_process.data)
    assert found["images"] == {"train": 162, "validation": 42, "test": 42}
    # Of channels the names count, where the folder has those of its splits.
    for name, split in channels.items():
        replace_folder(found, f"{name}/", f"{split}/")
    check(found, planted)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if " curation: " in line]
    assert line.endswith(str(insight / "curation.html"))
    record = json.loads((insight / "record.json").read_text())
    assert record["curation"] == found["counts"]
    assert '<a href="curation.html">' in (insight / "report.html").read_text()


def replace_folder(found: dict[str, Any], old: str, new: str) -> None:
    photos = [*found["label_errors"], *(photo for one in found["copies"] for photo in one["photos"])]
    for photo in photos:
        photo["path"] = re.sub(f"^{old}", new, photo["path"])


def test_fine_tuning_is_judged_by_features_of_before(
    in_process: OptMl, planted: Planted, capfd: pytest.CaptureFixture[str]
) -> None:
    in_process.hyperparameters({**JOB, "trainable": "all", "head-epochs": "1", "epochs": "1"})
    in_process.channels(train=planted.folder)
    assert job.main() == 0
    found = json.loads((in_process.root / "output" / "data" / "insight" / "curation.json").read_text())
    assert found["images"] == {"train": 162, "validation": 42}
    assert "The 42 test images are left out" in found["notes"][0]
    check(found, planted, share=0.5, copies=3)


def test_without_it_nothing_is_written(in_process: OptMl, planted: Planted) -> None:
    in_process.hyperparameters({**JOB, "curate": "false"})
    in_process.channels(train=planted.folder)
    assert job.main() == 0
    insight = in_process.root / "output" / "data" / "insight"
    assert (insight / "report.html").is_file()
    assert not list(insight.glob("curation*"))
    assert "curation.html" not in (insight / "report.html").read_text()


def test_the_command_finds_what_was_planted(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_bundle(tmp_path / "model")
    before = sorted(planted.folder.rglob("*"))
    asked = [str(planted.folder), "--model", str(model), "--output", str(tmp_path / "found")]
    assert command.main([*asked, "--cache", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(tmp_path / "found" / "curation.html")
    assert re.search(r"^\d+ labels are likely wrong; \d groups of copies, \d across splits; no pairs of ", said[-3])
    assert said[-2] == "1 of 247 images cannot be read and were not looked at; all are listed."
    found = json.loads((tmp_path / "found" / "curation.json").read_text())
    assert found["images"] == {"train": 162, "validation": 42, "test": 42}
    assert (found["notes"], found["root"]) == ([said[-2]], str(planted.folder))
    assert [one["path"] for one in found["unreadable"]] == ["train/class0/broken (1) (2).jpg"]
    check(found, planted)
    assert sorted(planted.folder.rglob("*")) == before
    with (tmp_path / "found" / "curation.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["kind"] == "label error"] == [o["path"] for o in found["label_errors"]]
    assert sum(row["kind"].startswith("copies") for row in rows) == sum(len(one["photos"]) for one in found["copies"])
    stores = sorted((tmp_path / "cache").iterdir())
    assert command.main([*asked, "--cache", str(tmp_path / "cache")]) == 0
    assert sorted((tmp_path / "cache").iterdir()) == stores
    assert "found stored outputs" in capsys.readouterr().out


def test_of_a_single_folder_every_image_is_looked_at(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_bundle(tmp_path / "model", trainable="all")
    asked = [str(planted.folder / "train"), "--model", str(model), "--output", str(tmp_path / "found")]
    assert command.main(asked) == 0
    found = json.loads((tmp_path / "found" / "curation.json").read_text())
    assert found["images"] == {"train": 162}
    assert "This bundle's backbone has learned too (trainable=all)" in capsys.readouterr().out
    assert len({f"train/{one['path']}" for one in found["label_errors"]} & planted.labels) >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--model", "MODEL"), "nowhere is not a folder; name one that holds train, valid and test"),
        (("DATA", "--model", "nowhere"), "nowhere"),
        (("DATA/train/class0", "--model", "MODEL"), "must hold one folder per class, at least two"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    arguments: Iterable[str], message: str, planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_bundle(tmp_path / "model")
    texts = [text.replace("DATA", str(planted.folder)).replace("MODEL", str(model)) for text in arguments]
    assert command.main([*texts, "--output", str(tmp_path / "found")]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "found").exists()


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(planted.folder), "--model", str(save_bundle(tmp_path / "model")), "--cache", str(tmp_path / "cache")]
    (tmp_path / "text.pth").write_text("-")
    assert command.main([*asked, "--output", str(tmp_path / "text.pth")]) == 1
    said = capsys.readouterr().err
    assert said == f"{tmp_path / 'text.pth'} cannot be written to: it is no folder; name another folder with --output\n"
    assert not (tmp_path / "cache").exists()
