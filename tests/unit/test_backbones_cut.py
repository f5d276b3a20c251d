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


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        # Three tensors per convolution with BatchNorm, two per linear layer.
        ("tiny", [3, 3, 3, 3, 2]),
        ("resnet18", [3, 6, 6, 9, 6, 9, 6, 9, 6, 2]),
        # Patch embedding, class token and position embedding; twelve blocks, the last norm with its block.
        ("vit_b_32", [4, *[12] * 11, 14, 2]),
        # Fifty blocks and the stem, four to a group.
        ("resnet152", [24, 39, 36, 39, *[36] * 8, 39, 2]),
    ],
)
def test_a_network_learns_in_groups_from_the_input_to_the_head(name: str, sizes: list[int]) -> None:
    with torch.device("meta"):
        model = backbones.build(name, HeadSpec(3), image_size_px=32)
    groups = backbones.stages(model)
    assert [len(group) for group in groups] == sizes
    assert {id(parameter) for group in groups for parameter in group} == {id(one) for one in model.parameters()}
    assert sum(sizes) == len(list(model.parameters()))
    assert [id(one) for one in groups[-1]] == [id(one) for one in model.head.parameters()]


@pytest.mark.parametrize("trainable", ["head", "last_stage"])
@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "tiny"])
def test_behind_a_cut_the_groups_are_those_of_the_whole(name: str, trainable: str) -> None:
    model = backbones.build(name, HeadSpec(3))
    model.freeze(trainable, 64)  # type: ignore[arg-type]
    cut = backbones.cut(model, 64)
    assert cut is not None
    whole = [[id(one) for one in group] for group in backbones.stages(model)]
    assert [[id(one) for one in group] for group in backbones.stages(cut.rest)] == whole
    assert {one for group in whole for one in group} == {
        id(parameter) for parameter in model.parameters() if parameter.requires_grad
    }


def test_a_network_of_another_make_is_all_head() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [[id(one) for one in group] for group in backbones.stages(model)] == [[id(model.weight)]]
