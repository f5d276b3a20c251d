"""Cutting a network behind its frozen part."""

from __future__ import annotations

import pytest
import torch

from dogbreed import backbones
from dogbreed.backbones import HeadSpec


@pytest.mark.parametrize("trainable", ["head", "last_stage"])
@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_the_two_parts_in_series_compute_what_the_whole_does(name: str, trainable: str) -> None:
    torch.manual_seed(0)
    model = backbones.build(name, HeadSpec(3)).eval()
    model.freeze(trainable, 64)  # type: ignore[arg-type]
    cut = backbones.cut(model, 64)
    assert cut is not None
    cut.rest.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(cut.rest(cut.frozen(images)), model(images))


def test_the_rest_learns_for_the_whole() -> None:
    model = backbones.build("resnet18", HeadSpec(3))
    model.freeze("last_stage", 64)
    cut = backbones.cut(model, 64)
    assert cut is not None
    learning = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in cut.rest.parameters()} == learning
    assert not learning & {id(parameter) for parameter in cut.frozen.parameters()}


def test_a_network_that_learns_as_a_whole_has_no_cut() -> None:
    model = backbones.build("tiny", HeadSpec(3))
    model.freeze("all", 64)
    assert backbones.cut(model, 64) is None


def test_a_network_that_cannot_be_cut_there_has_no_cut() -> None:
    """A vision transformer reshapes its input to tokens before its blocks run."""
    model = backbones.build("vit_b_32", HeadSpec(3), image_size_px=32)
    model.freeze("last_stage", 32)
    assert backbones.cut(model, 32) is None
