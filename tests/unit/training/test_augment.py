from __future__ import annotations

import pytest
import torch

from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training.augment import make_view, resolve, stored_views

SPEC = PreprocessSpec.for_size(32)
IMAGE = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["none", "flip", "crop", "auto"])
def test_every_view_has_the_size_that_the_network_sees(name: str) -> None:
    view = make_view(name, SPEC, "all")(IMAGE)
    assert view.shape == (3, 32, 32)
    assert view.dtype is torch.uint8


def test_auto_is_the_centre_for_a_head_and_random_for_more() -> None:
    assert [resolve("auto", trainable) for trainable in ("head", "last_stage", "all")] == ["none", "flip", "crop"]
    assert resolve("flip", "head") == "flip"
    assert torch.equal(make_view("auto", SPEC, "head")(IMAGE), SPEC.centre_view(IMAGE))


def test_stored_views_are_exact_where_views_can_be_counted_and_drawn_where_not() -> None:
    centre = SPEC.centre_view(IMAGE)
    (only,) = stored_views("none", SPEC, 4)
    assert torch.equal(only[1](IMAGE), centre)
    first, second = stored_views("flip", SPEC, 4)
    assert torch.equal(first[1](IMAGE), centre)
    assert torch.equal(second[1](IMAGE), centre.flip(-1))
    assert [name for name, _ in stored_views("crop", SPEC, 3)] == ["crop 0", "crop 1", "crop 2"]


def test_flip_gives_the_centre_view_or_its_mirror_image() -> None:
    centre = SPEC.centre_view(IMAGE)
    view = make_view("flip", SPEC, "all")
    torch.manual_seed(0)
    seen = {
        torch.equal(one, centre) or -1 * torch.equal(one, centre.flip(-1)) for one in (view(IMAGE) for _ in range(20))
    }
    assert seen == {True, -1}
