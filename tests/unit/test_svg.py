"""What every picture is made of."""

import pytest

from dogbreed.svg import Plane, nice_ticks, picture, share_of, shortened, text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 3.2, [0, 1, 2, 3, 4]),
        (0.31, 0.93, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.001, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
        (5, 5, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
        (0, 0, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (-2, 2, [-2, -1, 0, 1, 2]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low, high, ticks):
    found = nice_ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert found == pytest.approx(ticks)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.999, 1.0), (0.2, 0.97)])
def test_ticks_end_where_they_must(low, high):
    assert nice_ticks(low, high, at_most=1.0)[-1] == 1.0


def test_up_is_more_and_right_is_more():
    plane = Plane()
    assert plane.down(1) < plane.down(0)
    assert plane.across(0) < plane.across(1)


def test_an_inset_plane_is_narrower_at_both_ends():
    assert Plane(inset=6).across(0) == Plane().across(0) + 6
    assert Plane(inset=6).across(1) == Plane().across(1) - 6


def test_a_frame_writes_at_its_rulings():
    frame = "".join(Plane().frame([(0, "none"), (1, "all")], [(0.5, "half")], "epoch"))
    assert frame.count('class="grid"') == 2
    assert all(f">{word}</text>" in frame for word in ("none", "all", "half", "epoch"))


def test_texts_are_escaped():
    drawn = str(picture("chart", 10, 20, "<b>", [text(1, 2, "a & b", "tick", "end")], fixed=True))
    assert "<b>" not in drawn
    assert "a &amp; b" in drawn
    assert 'width="10" height="20"' in drawn


def test_long_words_are_shortened():
    assert shortened("affenpinscher", 6) == "affen…"
    assert shortened("pug", 3) == "pug"


def test_a_value_between_equal_ones_is_in_the_middle():
    assert share_of(3, 3, 3) == 0.5
    assert share_of(3, 2, 6) == 0.25
