from __future__ import annotations

import pytest
import torch

from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training.augment import is_random, make_view, resolve, stored_views

SPEC = PreprocessSpec.for_size(32)
IMAGE = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


PARTS = ["colour", "crop", "erase", "flip", "randaugment", "trivialaugment"]


@pytest.mark.parametrize("name", ["none", *PARTS, "auto", "crop+trivialaugment+colour+erase", "flip+randaugment"])
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
    assert len(stored_views("crop", SPEC, 3)) == 3


def key(name: str, crop_scale: float = 0.35) -> tuple[str, ...]:
    return tuple(view for view, _ in stored_views(name, SPEC, 2, crop_scale))


def test_views_of_other_pixels_have_other_names() -> None:
    keys = [key(name) for name in ("none", *PARTS, "crop+colour", "flip+colour", "flip+trivialaugment")]
    keys += [key("crop", 0.2), key("crop+colour", 0.2)]
    assert len(set(keys)) == len(keys)
    assert all(len(set(views)) == len(views) for views in keys)
    assert key("crop+colour") == key("colour+crop") == key("flip+crop+colour"), "the same pixels by another name"


@pytest.mark.parametrize("name", [part for part in PARTS if part != "flip"])
def test_names_of_drawn_views_say_so_and_are_the_same_everywhere(name: str) -> None:
    assert all(is_random(view) for view in key(name))
    assert not any(is_random(view) for view in key("none") + key("flip"))
    assert "0x" not in "".join(key(name)), "no address of an object"


@pytest.mark.parametrize("name", [part for part in PARTS if part != "crop"])
def test_each_part_changes_the_centre_view_by_the_generator_alone(name: str) -> None:
    centre = SPEC.centre_view(IMAGE)
    view = make_view(name, SPEC, "all")

    def draw() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return [view(IMAGE) for _ in range(30)]

    first, second = draw(), draw()
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert any(not torch.equal(one, centre) for one in first)


def test_the_order_of_the_name_does_not_matter() -> None:
    def draw(name: str) -> torch.Tensor:
        torch.manual_seed(5)
        return make_view(name, SPEC, "all")(IMAGE)

    assert torch.equal(draw("crop+trivialaugment+colour"), draw("colour+trivialaugment+crop"))


def test_a_crop_keeps_the_share_that_is_asked_for() -> None:
    """Of an image whose pixels are their own column, a crop's range of values is its width."""
    columns = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200).contiguous()

    def narrowest(crop_scale: float) -> int:
        torch.manual_seed(0)
        view = make_view("crop", PreprocessSpec.for_size(200), "all", crop_scale)
        return min(int(one.max()) - int(one.min()) for one in (view(columns) for _ in range(40)))

    assert narrowest(0.9) > 160
    assert narrowest(0.1) < 90


def test_flip_gives_the_centre_view_or_its_mirror_image() -> None:
    centre = SPEC.centre_view(IMAGE)
    view = make_view("flip", SPEC, "all")
    torch.manual_seed(0)
    seen = {
        torch.equal(one, centre) or -1 * torch.equal(one, centre.flip(-1)) for one in (view(IMAGE) for _ in range(20))
    }
    assert seen == {True, -1}
