"""The page for trying a photo, on the real server, in headless Chromium: given in every way, answered right.

Skipped where there is no Chromium. Screenshots are left in build/screenshots for looking at.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.browser import chromium
from tests.browser.chromium import Tab
from tests.server_process import is_ready, start, stop_hard
from tests.unit.serving import test_heatmap as drawing
from torch import Tensor

from dogbreed import artifacts, backbones, calibration
from dogbreed.artifacts import Bundle
from dogbreed.backbones import HeadSpec
from dogbreed.calibration import Familiarity
from dogbreed.labels import Labels
from dogbreed.serving import heatmap

pytestmark = pytest.mark.skipif(chromium.CHROMIUM is None, reason="there is no Chromium on this machine")

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
LABELS = Labels.from_folders(["001.Upright_stripes", "002.Lying_stripes"])
PASTE = """(async () => {
  const bytes = Uint8Array.from(atob("%s"), one => one.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
  document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
})()"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One photo of each class, one that is neither, and a file that is no photo."""
    folder = tmp_path_factory.mktemp("photos")
    views, classes, _ = drawing.drawn(16, seed=9)
    found = {}
    for name, view in {
        "upright": views[classes == 0][0],
        "lying": views[classes == 1][0],
        "neither": torch.full_like(views[0], 90),
    }.items():
        found[name] = folder / f"{name}.png"
        # Larger than the network sees, so that only the middle counts.
        picture = torch.full((3, 73, 100), 90, dtype=torch.uint8)
        picture[:, 4:68, 18:82] = view
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(found[name])
    found["text"] = folder / "text.png"
    found["text"].write_text("no photo")
    return found


def scores(bundle: Bundle, file: Path) -> Tensor:
    from dogbreed import preprocessing

    view = bundle.preprocessing.centre_view(preprocessing.decode(file))
    with torch.inference_mode():
        return bundle.build()(bundle.preprocessing.normalise(view[None]))


@pytest.fixture(scope="module")
def address(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a network that knows stripes, and how sure of them it is."""
    root = tmp_path_factory.mktemp("ml")
    bundle = Bundle(
        backbone=backbones.TINY,
        head=HeadSpec(2),
        labels=LABELS,
        preprocessing=drawing.SPEC,
        weights=artifacts.clone_weights(drawing.teach()),
        hyperparameters={},
        metrics={"test_accuracy": 0.97},
        data_fingerprint="none",
    )
    sure = {name: float(calibration.familiarity(scores(bundle, photos[name]))) for name in ("upright", "neither")}
    assert sure["neither"] < sure["upright"]
    limit = Familiarity(sum(sure.values()) / 2, 100, 0.95)
    artifacts.save(replace(bundle, familiarity=limit), root / "model")
    server = start(root, DOGBREED_PAGE="true", DOGBREED_ENGINE="torch")
    try:
        server.wait(is_ready)
        yield f"http://127.0.0.1:{server.port}/"
    finally:
        stop_hard(server)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium.tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def page(browser: Tab, address: str) -> Iterator[Tab]:
    """The page, freshly opened; it must say nothing on the console."""
    browser.see(width=1280)
    browser.open(address)
    browser.said.clear()
    yield browser
    assert browser.said == []


def answer(page: Tab) -> str:
    page.until("document.querySelector('#answer h2') && answer.getAttribute('aria-busy') === 'false'")
    return str(page.ask("document.querySelector('#answer h2').textContent"))


def test_a_dropped_photo_is_answered_with_the_right_class(page: Tab, photos: dict[str, Path]) -> None:
    page.drop(photos["lying"], 300, 300)
    assert answer(page) == "Lying stripes"
    assert page.ask("document.querySelectorAll('#answer li').length") == 2
    assert page.ask("preview.naturalWidth") == 100
    assert "none of the classes" not in page.text()


def test_a_chosen_photo_is_answered_and_the_next_one_takes_its_place(page: Tab, photos: dict[str, Path]) -> None:
    page.choose("#file", photos["upright"])
    assert answer(page) == "Upright stripes"
    page.choose("#file", photos["lying"])
    page.until("document.querySelector('#answer h2')?.textContent === 'Lying stripes'")


def test_a_pasted_photo_is_answered(page: Tab, photos: dict[str, Path]) -> None:
    page.ask(PASTE % base64.b64encode(photos["upright"].read_bytes()).decode())
    assert answer(page) == "Upright stripes"


def test_what_may_be_none_of_the_classes_is_said_to_be(page: Tab, photos: dict[str, Path]) -> None:
    page.choose("#file", photos["neither"])
    answer(page)
    assert "This may be none of the classes" in page.text()


def test_what_is_no_photo_is_a_sentence(page: Tab, photos: dict[str, Path]) -> None:
    page.choose("#file", photos["text"])
    page.until("document.querySelector('#answer .wrong')")
    assert "The image cannot be decoded" in page.text()
    # The browser tells of the 400 itself.
    assert len(page.said) == 1
    assert "400" in page.said.pop()


@pytest.mark.skipif(not heatmap.is_installed(), reason="the captum package is not installed")
def test_the_heat_map_is_switched_by_keyboard_and_leaves_bright_what_spoke(page: Tab, photos: dict[str, Path]) -> None:
    page.choose("#file", photos["lying"])
    answer(page)
    page.ask("document.activeElement.blur()")
    page.press("Tab", 9)
    assert page.ask("document.activeElement.id") == "file"
    page.press("Tab", 9)
    assert page.ask("document.activeElement.id") == "look"
    page.press(" ", 32)
    page.until("!heat.hidden")
    assert "Bright: what spoke for Lying stripes." in page.text()
    pixels = "heat.getContext('2d').getImageData(0, 0, heat.width, heat.height).data"
    alphas = page.ask(f"Array.from({pixels}.filter((_, place) => place % 4 == 3))")
    shade = torch.tensor(alphas).view(73, 100)
    assert int(shade[:, :10].min()) == 204, "what the network does not see is dark"
    assert int(shade.min()) < 60
    page.press(" ", 32)
    page.until("heat.hidden")
    page.press("Tab", 9)
    assert page.ask("document.activeElement.textContent") == "Model card"
    page.press("Enter", 13)
    page.until("document.querySelector('h1')?.textContent.startsWith('Model card: tiny')")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(page: Tab, address: str, photos: dict[str, Path], width: int, scheme: str) -> None:
    page.see(width=width, scheme=scheme)
    page.open(address)
    look = heatmap.is_installed()
    page.ask(f"look.checked = {json.dumps(look)}")
    page.choose("#file", photos["neither"])
    answer(page)
    page.shoot(SCREENSHOTS / f"try-{width}-{scheme}.png")
    assert page.ask("document.documentElement.scrollWidth") == width
    small = (
        "[...document.querySelectorAll('a, .button, .option')].map(one => one.getBoundingClientRect())"
        ".filter(one => one.height < 24 || one.right > innerWidth).length"
    )
    assert page.ask(small) == 0, "what is touched is large enough and on the screen"
    assert page.ask("document.querySelectorAll('img:not([alt]), input:not([id])').length") == 0
    page.open(address + "model-card")
    assert page.ask("document.documentElement.scrollWidth") == width
    page.shoot(SCREENSHOTS / f"card-{width}-{scheme}.png")
