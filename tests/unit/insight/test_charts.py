import math
import re

import pytest

from dogbreed.insight.charts import Line, heat_map, line_chart


def show(value):
    return f"{value:g}"


def test_a_line_goes_from_the_first_point_to_the_last_with_up_being_more():
    chart = str(line_chart("Loss", [Line("train", [(1, 0.0), (2, 1.0)])], x_label="epoch", show=show))
    points = re.search(r'<polyline[^>]* points="([^"]*)"', chart).group(1)
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 < x2
    assert y1 > y2


def test_a_gap_splits_a_line_in_two():
    points = [(1, 1.0), (2, 1.0), (3, math.nan), (4, 1.0), (5, 1.0)]
    chart = str(line_chart("Loss", [Line("train", points)], x_label="epoch", show=show))
    assert chart.count("<polyline") == 2
    assert chart.count("<circle") == 4


def test_one_point_is_drawn_and_none_is_no_chart():
    assert "<circle" in line_chart("Loss", [Line("train", [(1, 2.0)])], x_label="epoch", show=show)
    assert line_chart("Loss", [Line("train", [(1, math.nan)])], x_label="epoch", show=show) == ""


@pytest.mark.parametrize(("best", "marked"), [(2, True), (None, False), (9, False)])
def test_the_best_epoch_is_marked(best, marked):
    chart = line_chart("Loss", [Line("train", [(1, 2.0), (2, 1.0)])], x_label="epoch", show=show, best_x=best)
    assert ("best, epoch 2" in chart) is marked


def test_a_thousand_epochs_have_few_ticks_and_no_dots():
    points = [(epoch, 1 / epoch) for epoch in range(1, 1001)]
    chart = str(line_chart("Loss", [Line("train", points)], x_label="epoch", show=show))
    assert "<circle" not in chart
    assert chart.count('class="tick"') < 22


def test_a_matrix_draws_and_explains_the_cells_that_count():
    matrix = str(heat_map("Mistakes", ["a", "b"], [[3, 1], [0, 0]]))
    assert matrix.count("<rect") == 2
    assert "a: 3 of 4 right" in matrix
    assert "a taken for b: 1 of 4" in matrix


def test_names_are_escaped():
    matrix = heat_map("<b>", ["<i>", "b"], [[1, 1], [0, 1]])
    chart = line_chart("<b>", [Line("<i>", [(1, 1.0)])], x_label="<u>", show=show)
    assert not re.search(r"<[biu]>", matrix + chart)
