"""The page of a search in headless Chromium: no console errors, every picture there, nothing wider than the screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.browser.test_pages import CHROMIUM, look
from tests.launch import searched

from scripts.launcher.search import page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_search_is_whole_in_a_browser(tmp_path: Path, width: int, scheme: str) -> None:
    file = page.write(searched.report(), tmp_path / "search.html")
    said, title = look(file, width, scheme)
    assert "CONSOLE" not in said
    found = json.loads(title)
    assert found["outside"] == 0, "nothing is fetched from a network"
    assert found["unlabelled"] == 0
    assert found["wide"] <= found["screen"] == width, "nothing but tables and the lines scroll sideways"
    assert found["pictures"] == 2 + len(searched.RANGES)
    assert file.stat().st_size < 500_000
