"""A heat map lies where the thing is, is Captum's, and is refused with a reason where there is none."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from dogbreed import backbones
from dogbreed.backbones import Classifier, HeadSpec
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.serving import heatmap
from dogbreed.serving.heatmap import HeatMaps, NoMapError

SPEC = PreprocessSpec.for_size(64)
HALF = SPEC.size_px // 2

needs_captum = pytest.mark.skipif(not heatmap.is_installed(), reason="the captum package is not installed")


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dim noise with stripes, upright (0) or lying (1), in one quarter: views uint8, classes, quarters."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(60, 120, (count, 3, SPEC.size_px, SPEC.size_px), generator=generator, dtype=torch.uint8)
    classes = torch.randint(0, 2, (count,), generator=generator)
    quarters = torch.randint(0, 4, (count,), generator=generator)
    stripes = ((torch.arange(HALF) // 4) % 2 * 200).to(torch.uint8)
    for view, kind, quarter in zip(views, classes.tolist(), quarters.tolist(), strict=True):
        top, left = HALF * (quarter // 2), HALF * (quarter % 2)
        view[:, top : top + HALF, left : left + HALF] = stripes[:, None] if kind else stripes
    return views, classes, quarters


def teach() -> Classifier:
    """The tiny network, which tells upright stripes from lying ones wherever they are."""
    torch.manual_seed(0)
    model = backbones.build(backbones.TINY, HeadSpec(2), image_size_px=SPEC.size_px)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        views, classes, _ = drawn(32, seed=step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(SPEC.normalise(views)), classes).backward()
        optimizer.step()
    model.eval()
    views, classes, _ = drawn(64, seed=1000)
    assert float((model(SPEC.normalise(views)).argmax(1) == classes).float().mean()) > 0.95
    return model


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    return teach()


def mass(found: Tensor, quarter: int) -> float:
    """The share of a map that lies in one quarter of the image."""
    half = len(found) // 2
    top, left = half * (quarter // 2), half * (quarter % 2)
    return float(found[top : top + half, left : left + half].sum() / found.sum())


@needs_captum
def test_the_map_lies_where_the_thing_is(taught: nn.Module) -> None:
    maps = HeatMaps(taught, SPEC)
    views, classes, quarters = drawn(40, seed=2000)
    shares = []
    for view, kind, quarter in zip(views, classes.tolist(), quarters.tolist(), strict=True):
        found = maps.draw(view, kind)
        assert found.shape == (4, 4)
        assert float(found.min()) >= 0
        assert float(found.max()) == 1
        shares.append(mass(found, quarter))
    # A map that knows nothing has 0.25 there.
    assert sum(shares) / len(shares) > 0.7
    assert sum(share > 0.5 for share in shares) >= 36


@needs_captum
def test_it_is_the_gradient_weighted_sum_of_the_last_maps(taught: nn.Module) -> None:
    view = drawn(1, seed=3000)[0][0]
    layer = heatmap.find_layer(taught, SPEC.size_px)
    held: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *heard: held.append(heard[2]))
    logits = taught(SPEC.normalise(view[None]).requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, 1], held[0])
    expected = (gradient.mean((2, 3), keepdim=True) * held[0]).sum(1)[0].relu()
    found = HeatMaps(taught, SPEC).draw(view, 1)
    torch.testing.assert_close(found, (expected / expected.max()).detach(), rtol=1e-4, atol=1e-5)


@needs_captum
def test_several_threads_get_their_own_maps(taught: nn.Module) -> None:
    maps = HeatMaps(taught, SPEC)
    views, classes, _ = drawn(8, seed=4000)
    alone = [maps.draw(view, kind) for view, kind in zip(views, classes.tolist(), strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(maps.draw, views.repeat(3, 1, 1, 1), classes.tolist() * 3))
    for place, found in enumerate(together):
        torch.testing.assert_close(found, alone[place % 8], rtol=1e-4, atol=1e-5)


@needs_captum
def test_where_nothing_speaks_for_a_class_the_map_is_empty() -> None:
    torch.manual_seed(0)
    model = backbones.build(backbones.TINY, HeadSpec(2), image_size_px=64).eval()
    nn.init.constant_(model.head.linear.weight, -1.0)
    found = HeatMaps(model, SPEC).draw(drawn(1, seed=0)[0][0], 0)
    assert found.shape == (4, 4)
    assert float(found.abs().max()) == 0


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("tiny", "backbone.stages"),
        ("resnet18", "backbone.layer4"),
        ("mobilenet_v2", "backbone.features"),
        ("squeezenet1_1", "backbone.classifier.2"),
        ("swin_t", "backbone.permute"),
    ],
)
def test_the_layer_is_the_last_with_positions(name: str, layer: str) -> None:
    model = backbones.build(name, HeadSpec(3), image_size_px=224).eval()
    assert heatmap.find_layer(model, 224) is model.get_submodule(layer)
    assert not any(module._forward_hooks for module in model.modules())


@needs_captum
def test_a_vision_transformer_is_refused_with_the_reason() -> None:
    model = backbones.build("vit_b_32", HeadSpec(3), image_size_px=64).eval()
    with pytest.raises(NoMapError, match="vision transformer"):
        HeatMaps(model, SPEC)


def test_without_captum_a_sentence_says_so(taught: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatmap, "is_installed", lambda: False)
    with pytest.raises(NoMapError, match="the captum package, which is not installed"):
        HeatMaps(taught, SPEC)


@needs_captum
def test_drawing_loads_nothing_that_paints_and_leaves_the_real_one_to_others() -> None:
    program = (
        "import sys\n"
        "from dogbreed.serving import heatmap\n"
        "assert 'captum' not in sys.modules\n"
        "heatmap._import_captum().LayerGradCam\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
