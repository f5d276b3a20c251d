"""The pages of insight, evaluation and curation in headless Chromium.

No console errors, every picture there, nothing wider than the screen. Skipped, with the reason printed, where there is
no Chromium. Screenshots are left in build/screenshots for looking at.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from local_test import make_data
from tests.unit.evaluation.test_page import results
from tests.unit.insight.evidence_made import losses, system, times

from dogbreed.curation import page as curation_page
from dogbreed.curation.finds import Copies, Curation, LabelError, Photo, Unreadable
from dogbreed.curation.overlaps import Overlap
from dogbreed.evaluation import figures
from dogbreed.evaluation import page as evaluation_page
from dogbreed.insight import compare, profile, report
from dogbreed.insight.evidence import Evidence
from dogbreed.insight.photos import wrong_photo
from dogbreed.insight.report import EpochRecord, JobRecord
from dogbreed.insight.rules.registry import RULES, evaluate
from dogbreed.insight.timeline import Operator
from dogbreed.statistics import Interval

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
LABELS = ["Affenpinscher", "Afghan_hound", "Airedale_terrier", "Akita", "Alaskan_malamute", "American_eskimo_dog"]

# Runs in the page when it is loaded, and leaves what it finds in the title.
PROBE = """<script>addEventListener("load", () => { document.title = JSON.stringify({
  broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length, images: document.images.length,
  pictures: document.querySelectorAll("svg[role=img]").length, wide: document.documentElement.scrollWidth,
  screen: innerWidth, unlabelled: document.querySelectorAll("svg[role=img]:not([aria-label]), img:not([alt])").length,
  rows: Object.values([...document.querySelectorAll(".tiles")].flatMap(
    (list, number) => [...list.children].map(tile => number + "/" + tile.offsetTop)
  ).reduce((counts, row) => ({ ...counts, [row]: (counts[row] || 0) + 1 }), {})),
  outside: [...document.querySelectorAll("[src], [href]")].filter(e => /^https?:/.test(e.src || e.href)).length,
}); });</script>"""


def sample(folder: Path, *, name: str = "dog-breeds-2026-11-21", best: float = 0.86, lr: float = 0.003) -> JobRecord:
    """A job of twelve epochs with everything that a page can show."""
    rng = np.random.default_rng(0)
    shape = [best - 0.5 * 0.6**epoch for epoch in range(12)]
    known = times(
        steps={"train": np.abs(rng.normal(0.21, 0.02, 1400)), "validation": np.abs(rng.normal(0.08, 0.01, 300))},
        seconds={
            "data": 91.0,
            "copy": 3.0,
            "forward": 80.0,
            "backward": 118.0,
            "optimizer": 9.0,
            "evaluation": 26.0,
            "checkpoint": 4.0,
            "initialization": 12.0,
            "other": 6.0,
        },
        workers=2,
        base=system(
            cpu=np.clip(rng.normal(70, 12, 1200), 0, 100),
            gpu=(np.clip(rng.normal(60, 20, 1200), 0, 100),),
            memory=(55.0,),
        ),
    )
    evidence = Evidence(
        losses=losses([2.0 * 0.8**step for step in range(40)], [2.0, 1.5, 1.0, 0.9, 1.0, 1.2, 1.4], every=10),
        system=known.system,
        times=known.times,
        missing={"relu_output": "the part of the network that is trained has no ReLU module."},
    )
    photos = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, shape_name in enumerate(("circle", "square", "triangle", "star")):
        file = folder / f"{shape_name}.jpg"
        make_data.draw(shape_name, rng, 200).save(file)
        photos.append(
            wrong_photo(file, true=LABELS[number], predicted=LABELS[(number + 2) % 6], confidence=0.99 - number * 0.01)
        )
    started = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
    return JobRecord(
        job_name=name,
        backbone="resnet50",
        trainable="last_stage",
        started=started,
        ended=started + timedelta(seconds=350),
        epochs=tuple(
            EpochRecord(
                place + 1,
                {
                    "train_loss": 2.2 * (1 - accuracy),
                    "train_accuracy": accuracy + 0.02,
                    "validation_loss": 2.3 * (1 - accuracy) + 0.02 * place,
                    "validation_accuracy": accuracy,
                },
                lr * (1 - place / 12),
                29.0 + rng.random(),
            )
            for place, accuracy in enumerate(shape)
        ),
        best_epoch=12,
        metrics={"validation_accuracy": best, "validation_loss": 0.55, "test_accuracy": best - 0.02, "test_loss": 0.61},
        labels=LABELS,
        hyperparameters={"model": "resnet50", "trainable": "last_stage", "lr": lr, "epochs": 12, "batch-size": 64},
        facts={"train_images": 5000, "ended_by": "epochs"},
        versions={"torch": "2.11.0", "torchvision": "0.26.0"},
        confusion=(rng.integers(0, 4, (6, 6)) + np.diag([40, 38, 41, 36, 29, 44])).tolist(),
        confusion_channel="test",
        verdicts=evaluate([rule() for rule in RULES.values()], evidence),
        corrupt_images=("train/Akita/17.jpg: truncated",),
        profile=profile.of(evidence, [Operator("aten::conv2d", 159, 0.31, 0.0), Operator("aten::add_", 48, 0.02, 0.0)]),
        wrong=photos,
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> page: the report of a full job, that of an empty one, and a comparison of three."""
    folder = tmp_path_factory.mktemp("pages")
    full = report.write(sample(folder / "photos"), folder / "full")
    jobs = {
        f"job-{number}": sample(
            folder / "photos", name=f"dog-breeds-{number}", best=0.8 + 0.02 * number, lr=0.001 * number
        )
        for number in (1, 2, 3)
    }
    compared = folder / "compare.html"
    compared.write_text(compare.render(jobs), encoding="utf-8")
    return {
        "report": full,
        "comparison": compared,
        "evaluation": evaluated(folder),
        "curation": curation_page.write(curated(folder), folder / "curation"),
    }


def evaluated(folder: Path) -> Path:
    """The page of an evaluation: nine photos were answered wrong, one image not at all."""
    data = folder / "evaluated"
    run, rows = results("mobilenet-v2-1a2b3c4d", data)
    for number, row in enumerate(row for row in rows if not row.right and not row.error):
        (data / row.path).parent.mkdir(parents=True, exist_ok=True)
        make_data.draw("circle", np.random.default_rng(number), 200).save(data / row.path)
    file = folder / "evaluation.html"
    file.write_text(evaluation_page.render(run, rows, figures.evaluate(run, rows)), encoding="utf-8")
    return file


def curated(folder: Path) -> Curation:
    """What is found in photos with the names that real ones have: eight labels, two groups of copies, two pairs."""
    photos = []
    for number in range(8):
        file = folder / "train" / f"{number:03d}.{LABELS[number % 6]}" / f"{LABELS[number % 6]}_{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        make_data.draw("star", np.random.default_rng(number), 200).save(file)
        photos.append(Photo(file, "validation" if number % 3 else "train", number % 6))
    interval = Interval(0.3, 0.62)
    return Curation(
        labels=tuple(LABELS),
        images={"train": 750, "validation": 240, "test": 240},
        accuracy=0.896,
        not_judged=3,
        label_errors=tuple(LabelError(photo, (photo.index + 1) % 6, 0.01, 0.93) for photo in photos),
        copies=(Copies(tuple(photos[:2]), 0.97), Copies(tuple(photos), 0.93)),
        merges=(
            Overlap(0, 5, (40, 40), (18, 20), 0.475, interval, True, 0.896, 0.92),
            Overlap(1, 4, (40, 40), (9, 11), 0.25, Interval(0.17, 0.36), False, 0.896, 0.9),
        ),
        root=folder,
        unreadable=(Unreadable(photos[0], "not an image in one of the formats BMP, GIF, JPEG, PNG, TIFF, WEBP"),),
        notes=("The 240 test images are left out.",),
    )


def look(page: Path, width: int, scheme: str) -> Iterator[str]:
    """What Chromium says of a page at a width, then its probe's findings; leaves a screenshot.

    The page lies in a frame: a window of Chromium cannot be as narrow as a phone.
    """
    probed = page.with_name(f"{page.stem}-{width}-{scheme}.html")
    text = page.read_text(encoding="utf-8")
    assert "</body>" in text
    probed.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    framed = page.with_name(f"{page.stem}-{width}-{scheme}-frame.html")
    framed.write_text(
        '<!doctype html><meta name="color-scheme" content="light dark">'
        "<style>body{margin:0}iframe{border:0;display:block}</style>"
        f'<iframe id="f" src="{probed.name}" width="{width}" height="9000"></iframe>'
        "<script>f.onload = () => setTimeout(() => { const d = f.contentDocument;"
        " f.height = d.documentElement.scrollHeight; document.title = d.title; }, 50);</script>",
        encoding="utf-8",
    )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    common = [
        CHROMIUM or "",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        f"--user-data-dir={page.parent / 'chromium'}",
        "--virtual-time-budget=3000",
        f"--window-size={max(width, 500)},{6000 if width > 500 else 9500}",
    ]
    shot = SCREENSHOTS / f"{page.stem}-{width}-{scheme}.png"
    done = subprocess.run([*common, f"--screenshot={shot}", str(framed)], capture_output=True, text=True, timeout=200)
    yield done.stderr
    done = subprocess.run([*common, "--dump-dom", str(framed)], capture_output=True, text=True, timeout=200)
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    yield found.group(1) if found else ""


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["comparison", "curation", "evaluation", "report"])
def test_a_page_is_whole_in_a_browser(pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    said, title = look(pages[name], width, scheme)
    assert "CONSOLE" not in said
    found = json.loads(title)
    assert found["broken"] == 0
    assert found["outside"] == 0, "nothing is fetched from a network"
    assert found["unlabelled"] == 0
    assert found["wide"] <= found["screen"] == width, "nothing but tables scrolls sideways"
    assert found["pictures"] >= {"comparison": 4, "curation": 0, "evaluation": 3, "report": 10}[name]
    assert found["images"] == {"comparison": 0, "curation": 16, "evaluation": 9, "report": 4}[name]
    if width > 640:
        assert min(found["rows"], default=2) > 1, "no tile stands alone in its row"
    assert pages[name].stat().st_size < 3_000_000
