"""Cards become headings, lists and tables, and whatever is in them stays text."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from dogbreed.serving import card

CARD = """# Model card: tiny, 2 classes

A classifier of *every* `image`.
It answers 2*3*4.

| metric | value |
|---|---|
| loss | 0.5 |
| <b>x</b> | 1 |

- images: 7
- made by: <me>
"""


def test_what_a_card_has_becomes_html() -> None:
    assert re.sub(r"\n+", "\n", card.render(CARD)) == (
        "<h1>Model card: tiny, 2 classes</h1>\n"
        "<p>A classifier of <em>every</em> <code>image</code>. It answers 2*3*4.</p>\n"
        "<table><thead><tr><th>metric</th><th>value</th></tr></thead><tbody><tr><td>loss</td><td>0.5</td></tr>"
        "<tr><td>&lt;b&gt;x&lt;/b&gt;</td><td>1</td></tr></tbody></table>\n"
        "<ul><li>images: 7</li><li>made by: &lt;me&gt;</li></ul>"
    )


@given(st.text(alphabet="#|-*` \n<>&\"'ab:", max_size=80))
def test_nothing_in_a_card_becomes_a_tag(text: str) -> None:
    made = re.sub("</?(h[1-3]|p|ul|li|table|thead|tbody|tr|th|td|em|code)>", "", card.render(text))
    assert "<" not in made
    assert ">" not in made
