"""Where a network looked: Grad-CAM, by Captum.

The maps of the last layer that still has positions are weighted by how much each speaks for the answer (the mean of its
gradient), added up, and what speaks against is cut off. The result is as coarse as those maps, 7 x 7 for most networks
at 224 pixels: it shows a region, not an outline, and which region spoke for the class, not why.

Needs the network as torch has it: float32, on the CPU, beside whatever engine gives the answers. Knows networks and
tensors; nothing of requests, nor when the network is loaded. Captum is imported on first use.

Source: Selvaraju et al. 2017, Grad-CAM. Legend: S image side, h w positions of the maps.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dogbreed.preprocessing import PreprocessSpec

if TYPE_CHECKING:
    from collections.abc import Iterator


class NoMapError(Exception):
    """There are no heat maps for this network or in this installation; the message says why, in one sentence."""


def is_installed() -> bool:
    """Whether Captum is there; imports nothing."""
    return importlib.util.find_spec("captum") is not None


class HeatMaps:
    """Draws heat maps of one network, one at a time; others wait.

    Args:
        model: normalised images -> logits; in eval mode, on the CPU. Its parameters are told to need no gradients.
        spec: how images are normalised.

    Raises:
        NoMapError: Captum is not installed, or the network ends in tokens, which have no positions to speak of.
    """

    def __init__(self, model: nn.Module, spec: PreprocessSpec) -> None:
        if not is_installed():
            raise NoMapError("heat maps need the captum package, which is not installed here")
        self._spec = spec
        self._model = model.requires_grad_(False)
        layer = find_layer(model, spec.size_px)
        if layer is None:
            raise NoMapError(
                "there are no heat maps for this network: it ends in tokens (a vision transformer), and Grad-CAM "
                "needs maps"
            )
        self._attribution = _import_captum().LayerGradCam(model, layer)
        # Captum hangs hooks into the network while it works.
        self._lock = threading.Lock()

    def draw(self, view_CHW: Tensor, index: int) -> Tensor:
        """What speaks for one class.

        Args:
            view_CHW: prepared image, uint8 [3, S, S].
            index: of the class.

        Returns:
            float32 [h, w] in [0, 1], the most telling position 1; all 0 where nothing speaks for the class.
        """
        with self._lock, torch.enable_grad():
            inputs = self._spec.normalise(view_CHW[None]).requires_grad_()
            map_11hw = self._attribution.attribute(inputs, target=index, relu_attributions=True)
        found: Tensor = map_11hw.detach()[0, 0].float()
        highest = float(found.max())
        return found / highest if highest > 0 else torch.zeros_like(found)


def find_layer(model: nn.Module, size_px: int) -> nn.Module | None:
    """The layer that computes a network's last maps [N, C, h, w] with more than one position.

    None where tokens come after it. Networks that keep the channels last between their blocks (Swin) put them first
    before they pool.
    """
    finished: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            finished.append((module, output))

    handles = [module.register_forward_hook(record) for module in model.modules()]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, size_px, size_px))
    finally:
        for handle in handles:
            handle.remove()
    # One that is used at several places would be heard at all of them.
    times = Counter(module for module, _ in finished)
    for module, output in reversed(finished):
        if output.dim() == 3 and output.shape[1] > 1:
            return None
        if output.dim() == 4 and output.shape[2] * output.shape[3] > 1 and times[module] == 1:
            return module
    return None


def _import_captum() -> Any:  # noqa: ANN401  optional package
    """Captum's attribution methods, without what draws them on a screen: 2 s, and a cache of fonts in the home folder.

    Only while it is imported: whoever wants matplotlib later gets the real one.
    """
    if "captum.attr" in sys.modules:
        return sys.modules["captum.attr"]
    with _stand_ins("captum.attr._utils.visualization", "matplotlib", "matplotlib.colors"):
        return importlib.import_module("captum.attr")


@contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    """Empty modules in the place of those that are not loaded yet."""
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        module = _Empty(name)
        module.__path__ = []
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


class _Empty(ModuleType):
    """Whatever is imported from it is another one."""

    def __getattr__(self, name: str) -> ModuleType:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name)
