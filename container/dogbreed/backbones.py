"""Networks: a torchvision backbone by name, a new head, and pretrained weights from somewhere explicit.

Knows torchvision's naming and nothing of channels or jobs: it is handed the files and folders to look in.
Weights are read as safetensors or with ``weights_only``; nothing here unpickles code.

Legend: N batch, S image side, F features, K classes.
"""

from __future__ import annotations

import copy
import math
import re
import socket
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, cast
from urllib.error import URLError

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from dogbreed.errors import HyperparameterError, WeightsError

TINY = "tiny"
"""A four-layer network of our own, for tests and demonstrations: it learns drawn shapes in seconds, unpretrained."""

Trainable = Literal["head", "last_stage", "all"]

WEIGHT_SUFFIXES = frozenset({".pt", ".pth", ".safetensors"})

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
"""Layers that normalise and scale; those of torchvision's own that learn derive from them."""

# Where torchvision's architectures keep their classifier.
_CLASSIFIER_NAMES = ("fc", "classifier", "heads", "head")
# DenseNet files of before 2018 name sub-layers `norm.1`; a dot is not allowed in a module name any more.
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")
_HUB_TIMEOUT_S = 20.0
# The first bytes of what torch.save writes: today, and until torch 1.6.
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_GIVE = "give a state dict saved by torch.save(model.state_dict(), FILE), or a safetensors file"
# Groups of layers with a learning rate of their own, beside the head: as many as ViT-B's blocks and its embedding.
# ConvNeXt's authors put their deeper networks into twelve too (Liu et al. 2022, A ConvNet for the 2020s, appendix A.2),
# so that one decay per group means much the same for all networks.
_MOST_STAGES = 13


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The new classifier on top of the features.

    Attributes:
        classes: outputs K.
        hidden_units: width of a hidden ReLU layer; 0 is a plain linear head.
        dropout: share of inputs dropped before the last layer, in training only.
    """

    classes: int
    hidden_units: int = 0
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Cut:
    """A classifier in two: what is frozen, and the rest that learns.

    Attributes:
        name: where it is cut, in words.
        frozen: normalised images [N, 3, S, S] -> outputs [N, ...]; a copy to be changed at will (precision, layout).
        rest: outputs -> logits [N, K]; shares its parameters and buffers with the classifier.
    """

    name: str
    frozen: nn.Module
    rest: nn.Module


class Classifier(nn.Module):
    """A backbone and a head: float32 images [N, 3, S, S], normalised -> logits [N, K].

    What is frozen stays in eval mode whatever `train` is told, so that BatchNorm keeps the statistics that the
    pretrained weights were learnt with and no dropout disturbs fixed features.
    """

    def __init__(self, backbone: nn.Module, features: int, head: HeadSpec) -> None:
        super().__init__()
        self.features = features
        self.classes = head.classes
        self.backbone = backbone
        self.head = _make_head(features, head)
        self._frozen: list[nn.Module] = []
        self._keeps_statistics = False

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits [N, K] of normalised images [N, 3, S, S]."""
        return cast(Tensor, self.head(self.backbone(images_NCHW)))

    def train(self, mode: bool = True) -> Classifier:
        """Train or eval mode for what learns; what is frozen stays in eval mode, and so may BatchNorm."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        if self._keeps_statistics:
            keep_statistics(self.backbone)
        return self

    @property
    def learning_blocks(self) -> list[nn.Module]:
        """The backbone's blocks that learn, in the order of computation."""
        if self._frozen == [self.backbone]:
            return []
        return _blocks(self.backbone)[len(self._frozen) :]

    @property
    def frozen_blocks(self) -> list[nn.Module]:
        """What does not learn, in the order of computation: the backbone, its first blocks, or nothing."""
        return list(self._frozen)

    @property
    def keeps_statistics(self) -> bool:
        """Whether the backbone's BatchNorm keeps its running statistics while its scales learn."""
        return self._keeps_statistics

    def freeze(self, trainable: Trainable, image_size_px: int, *, keep_statistics: bool = False) -> None:
        """Chooses what learns.

        Args:
            trainable: ``head``; ``last_stage``, the head and all blocks that work at the backbone's final resolution;
                or ``all``.
            image_size_px: side S, needed to find where the resolution changes last.
            keep_statistics: BatchNorm normalises by the statistics that the weights came with, in training as in
                evaluation, instead of a batch's own. A batch of a few photos estimates them badly, and each process
                of several, or each part of a batch, otherwise.
        """
        self._keeps_statistics = keep_statistics
        self.requires_grad_(True)
        self._frozen = []
        if trainable == "head":
            self._frozen = [self.backbone]
            self.backbone.requires_grad_(False)
        elif trainable == "last_stage":
            blocks = _blocks(self.backbone)
            start = _last_stage_start(self.backbone, blocks, image_size_px)
            self._frozen = blocks[:start]
            # Parameters outside of all blocks (a class token, position embeddings) belong to the input: frozen too.
            self.backbone.requires_grad_(False)
            for block in blocks[start:]:
                block.requires_grad_(True)
        self.train(self.training)


class Rest(nn.Module):
    """What of a classifier is behind a cut: feature maps [N, ...] -> logits [N, K].

    Args:
        backbone: with identities in the place of what is before the cut.
        head: of the classifier.
        learning_blocks: the backbone's blocks that learn, in the order of computation.
        keeps_statistics: as the classifier does.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, learning_blocks: Sequence[nn.Module], *, keeps_statistics: bool
    ) -> None:
        super().__init__()
        self._keeps_statistics = keeps_statistics
        self.backbone = backbone
        self.head = head
        # In a tuple, which Module does not look into: they are registered once, as parts of the backbone.
        self.learning_blocks = tuple(learning_blocks)

    def train(self, mode: bool = True) -> Rest:
        """Train or eval mode for all but what the classifier keeps in eval mode."""
        super().train(mode)
        if self._keeps_statistics:
            keep_statistics(self.backbone)
        return self

    def forward(self, maps: Tensor) -> Tensor:
        """Logits [N, K] of feature maps [N, ...]."""
        return cast(Tensor, self.head(self.backbone(maps)))


def keep_statistics(network: nn.Module) -> None:
    """Puts the layers with running statistics into eval mode; their scales and shifts learn as before."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def cut(model: Classifier, image_size_px: int) -> Cut | None:
    """Cuts a classifier behind its frozen part, so that this part can be run once and its outputs kept.

    Returns:
        None when nothing is frozen, or when the two parts in series would not compute what the whole does (networks
        whose frozen and learning parts exchange more than one tensor).
    """
    frozen = model.frozen_blocks
    if not frozen:
        return None
    if frozen == [model.backbone]:
        return cut_at_head(model)
    blocks = _blocks(model.backbone)
    # Blocks before the cut become identities, those behind it stay the very same objects.
    memo: dict[int, object] = {id(block): nn.Identity() for block in frozen}
    memo.update({id(block): block for block in blocks[len(frozen) :]})
    rest = copy.deepcopy(model.backbone, memo)
    if hasattr(rest, "transform_input"):
        setattr(rest, "transform_input", False)  # noqa: B010  it belongs before the cut; Module's type hides it
    found = Cut(
        f"block {len(frozen)} of {len(blocks)}",
        _UntilBlock(copy.deepcopy(model.backbone).eval(), len(frozen)),
        Rest(rest, model.head, model.learning_blocks, keeps_statistics=model.keeps_statistics),
    )
    return found if _computes_the_same(found, model, image_size_px) else None


def cut_at_head(model: Classifier) -> Cut:
    """Cuts a classifier in front of its head, whatever of it learns: what is frozen is the backbone as it is now."""
    return Cut("head", copy.deepcopy(model.backbone).eval().requires_grad_(False), model.head)


def stages(model: nn.Module) -> list[list[nn.Parameter]]:
    """What learns in a network, in groups by their distance from the loss: input first, the head last.

    Adjacent blocks of the backbone share a group where there are more than thirteen. Norm layers between blocks belong
    to the block before them, parameters outside of all blocks (class token, position embeddings) to the first group.

    Args:
        model: a `Classifier`, or what is behind its cut, which gives the same groups; of anything else all is head.
    """
    if not isinstance(model, Classifier | Rest):
        return [_learning(model.parameters())]
    head = _learning(model.head.parameters())
    blocks: list[list[nn.Parameter]] = []
    for block in model.learning_blocks:
        parameters = _learning(block.parameters())
        if blocks and isinstance(block, NORM_LAYERS):
            blocks[-1] += parameters
        elif parameters:
            blocks.append(parameters)
    known = {id(parameter) for parameter in (*head, *(one for block in blocks for one in block))}
    outside = [parameter for parameter in _learning(model.parameters()) if id(parameter) not in known]
    # Counted from the head, so that an incomplete group is the one at the input.
    size = max(1, math.ceil(len(blocks) / _MOST_STAGES))
    ends = range(len(blocks), 0, -size)
    grouped = [list(chain.from_iterable(blocks[max(0, end - size) : end])) for end in reversed(ends)] or [[]]
    grouped[0] = outside + grouped[0]
    return [group for group in (*grouped, head) if group]


def _learning(parameters: Iterator[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


class _UntilBlock(nn.Module):
    """Runs a backbone up to one of its blocks and returns what goes into it."""

    def __init__(self, backbone: nn.Module, position: int) -> None:
        super().__init__()
        self.backbone = backbone
        _blocks(backbone)[position].register_forward_pre_hook(self._arrive)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        try:
            self.backbone(images_NCHW)
        except _ArrivedError as arrival:
            return arrival.tensor
        raise RuntimeError("the backbone did not run the block that it is cut at")

    def _arrive(self, _block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _ArrivedError(inputs[0])


class _ArrivedError(Exception):
    """Ends a forward pass at the cut; no error, but an exception is what leaves a forward method."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _computes_the_same(parts: Cut, model: Classifier, image_size_px: int) -> bool:
    training = model.training
    model.eval()
    parts.rest.eval()
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size_px, image_size_px, generator=generator).to(parameter.device)
    try:
        with torch.no_grad():
            whole = model(images)
            series = parts.rest(parts.frozen(images))
        return whole.shape == series.shape and torch.allclose(whole, series, rtol=1e-3, atol=1e-3)
    except Exception:  # whatever a foreign forward method makes of a feature map in place of an image
        return False
    finally:
        model.train(training)
        parts.rest.train(training)


def names() -> tuple[str, ...]:
    """Every model name that `build` takes, sorted."""
    return tuple(sorted([TINY, *torchvision.models.list_models(module=torchvision.models)]))


def check_name(name: str) -> None:
    """Raises HyperparameterError for a model name that `build` does not take, with the nearest ones."""
    if name not in names():
        close = get_close_matches(name, names(), n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        families = sorted({re.split(r"\d|_(?!resnet)", known)[0] for known in names()})
        raise HyperparameterError(
            f"model={name!r} is unknown; {hint}allowed are {TINY} and torchvision's classification models (families: "
            f"{', '.join(families)})"
        )


def build(
    name: str, head: HeadSpec, *, image_size_px: int = 224, weights: Mapping[str, Tensor] | None = None
) -> Classifier:
    """Builds a network with a new head.

    Args:
        name: one of `names()`.
        head: the new classifier.
        image_size_px: side S; vision transformers are built for one size.
        weights: state dict of the *whole* torchvision network, as `load_weights` returns it; its old classifier may
            have any number of classes. None keeps random weights.

    Raises:
        HyperparameterError: unknown name.
        WeightsError: the weights are not this network's; says what differs.
    """
    network = _make_network(name, image_size_px)
    backbone, features, replaced = _detach_classifier(network)
    if weights is not None:
        _fill(backbone, weights, name, replaced)
    return Classifier(backbone, features, head)


def rebuild(name: str, head: HeadSpec, weights: Mapping[str, Tensor], *, image_size_px: int = 224) -> Classifier:
    """A network all of whose weights are known: none is drawn first, none is copied.

    Args:
        name: one of `names()`.
        head: its classifier.
        weights: state dict of the whole `Classifier`. Its tensors become the network's own where their dtype is.
        image_size_px: as in `build`.

    Raises:
        HyperparameterError: unknown name.
        RuntimeError: the weights are not this network's; says what differs.
    """
    try:
        with torch.device("meta"):  # shapes without memory
            model = build(name, head, image_size_px=image_size_px)
    except NotImplementedError:  # RegNet computes its widths with tensors
        model = build(name, head, image_size_px=image_size_px)
    dtypes = {key: tensor.dtype for key, tensor in model.state_dict().items()}
    model.load_state_dict({key: value.to(dtypes.get(key)) for key, value in weights.items()}, assign=True)
    return model


def load_weights(name: str, *, channel: Path | None, baked: Path) -> tuple[dict[str, Tensor], str]:
    """Finds pretrained weights, in the order channel, image, torchvision's hub.

    Args:
        name: model name.
        channel: folder of the `pretrained` channel, or None when the job has none.
        baked: folder of weights inside the image; may not exist.

    Returns:
        The state dict on the CPU, and where it came from, for the log and the bundle.

    Raises:
        WeightsError: no source has them, or a file cannot be read.
    """
    if channel is not None:
        file = _only_weights_file(channel, name)
        return _read_state_dict(file), f"pretrained channel, {file.name}"
    for suffix in sorted(WEIGHT_SUFFIXES):
        file = baked / f"{name}{suffix}"
        if file.is_file():
            return _read_state_dict(file), f"image, {file.name}"
    if name == TINY:
        raise WeightsError(f"no pretrained weights exist for model={TINY}; set pretrained=false")
    try:
        return download_weights(name), "torchvision hub, default weights"
    except WeightsError as error:
        raise WeightsError(
            f"{error}; give a `pretrained` channel with {name}.pth, build the image with the weights in {baked}, allow "
            f"network access to torchvision's hub, or set pretrained=false"
        ) from error


def download_weights(name: str) -> dict[str, Tensor]:
    """Fetches a torchvision model's default weights from torchvision's hub, or takes them from torch.hub's cache.

    A file is put into the cache only when its SHA-256 begins with the digits in its name.

    Raises:
        WeightsError: the hub is out of reach, or what it sent is damaged.
    """
    timeout = socket.getdefaulttimeout()
    try:
        # torch.hub has no timeout of its own, and a closed VPC drops packets silently.
        socket.setdefaulttimeout(_HUB_TIMEOUT_S)
        weights = torchvision.models.get_model_weights(name).DEFAULT
        found = weights.get_state_dict(map_location="cpu", progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, UnpicklingError) as error:
        raise WeightsError(f"no pretrained weights for model={name} and the hub is out of reach ({error})") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return {_modern_key(key): value for key, value in found.items()}


def _make_head(features: int, spec: HeadSpec) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = features
    if spec.hidden_units:
        layers["hidden"] = nn.Linear(features, spec.hidden_units)
        layers["relu"] = nn.ReLU()
        width = spec.hidden_units
    layers["dropout"] = nn.Dropout(spec.dropout)
    layers["linear"] = nn.Linear(width, spec.classes)
    return nn.Sequential(layers)


def _make_tiny() -> nn.Module:
    """Four strided convolutions and the classifier that `_detach_classifier` expects of any network."""

    def stage(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    stages = nn.Sequential(*(stage(i, o) for i, o in ((3, 16), (16, 32), (32, 64), (64, 128))))
    return nn.Sequential(
        OrderedDict(stages=stages, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(128, 1000))
    )


def _make_network(name: str, image_size_px: int) -> nn.Module:
    check_name(name)
    if name == TINY:
        return _make_tiny()
    options: dict[str, object] = {}
    if name in ("googlenet", "inception_v3"):
        # The auxiliary classifiers only helped the first training of these networks; their weights expect inputs in
        # [-1, 1], into which transform_input turns ours.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
    elif name.startswith("vit_"):
        options = {"image_size": image_size_px}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size_px, image_size_px)}
    try:
        return cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))
    except (ValueError, AssertionError) as error:  # torchvision checks its arguments with either
        raise HyperparameterError(f"model={name} cannot be built for image-size={image_size_px}: {error}") from error


def _detach_classifier(network: nn.Module) -> tuple[nn.Module, int, str]:
    """Replaces the last classifying layer, and dropout before it, by identities.

    Returns:
        The backbone, its number of features F, and the name of the layer that was replaced.
    """
    candidates = [
        (path, module)
        for path, module in network.named_modules()
        if path.split(".")[0] in _CLASSIFIER_NAMES and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    path, layer = candidates[-1]
    features = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    parent = network.get_submodule(path.rpartition(".")[0])
    # The head has its own dropout; two would compound, and this one no hyperparameter reaches.
    siblings = list(parent.named_children())
    before = siblings[: [name for name, _ in siblings].index(path.rpartition(".")[2])]
    if before and isinstance(before[-1][1], nn.Dropout):
        setattr(parent, before[-1][0], nn.Identity())
    network.set_submodule(path, nn.Identity())
    return network, features, path


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """The backbone as a list of blocks in the order of computation: containers are opened, building blocks are not."""
    total = max(1, sum(parameter.numel() for parameter in backbone.parameters()))

    def open_up(module: nn.Module) -> list[nn.Module]:
        found: list[nn.Module] = []
        for child in module.children():
            size = sum(parameter.numel() for parameter in child.parameters())
            # A part that holds nearly everything is a container whatever its class (ViT's Encoder).
            if isinstance(child, nn.Sequential) or size > 0.9 * total:
                found += open_up(child) or [child]
            else:
                found.append(child)
        return found

    return open_up(backbone)


def _last_stage_start(backbone: nn.Module, blocks: Sequence[nn.Module], image_size_px: int) -> int:
    """Position of the first block whose output has the backbone's final resolution.

    Networks without a pyramid (vision transformers) have one resolution: there the last quarter of the blocks is taken.
    """
    sides: dict[int, int] = {}

    def record(position: int) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                # Square maps: channels come first in most networks, last in Swin.
                side = output.shape[-1] if output.shape[-1] == output.shape[-2] else output.shape[1]
                if side > 1:
                    sides[position] = side

        return hook

    handles = [block.register_forward_hook(record(i)) for i, block in enumerate(blocks)]  # type: ignore[arg-type]
    training = backbone.training
    try:
        backbone.eval()
        parameter = next(backbone.parameters())
        with torch.no_grad():
            backbone(torch.zeros(1, 3, image_size_px, image_size_px, device=parameter.device))
    finally:
        backbone.train(training)
        for handle in handles:
            handle.remove()
    final = min(sides.values(), default=0)
    start = min((position for position, side in sides.items() if side == final), default=0)
    first_of_pyramid = min(sides, default=0)
    if start <= first_of_pyramid:
        return len(blocks) - max(1, len(blocks) // 4)
    return start


def _only_weights_file(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise WeightsError(f"the pretrained channel {folder} is not a folder")
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    named = [file for file in files if file.stem == name]
    if named or len(files) == 1:
        return (named or files)[0]
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise WeightsError(
        f"the pretrained channel holds {found}; put one .pth, .pt or .safetensors file there, or name it {name}.pth"
    )


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            found: object = safetensors.torch.load_file(file)
        else:
            with warnings.catch_warnings(action="ignore"):  # of pickles, whose refusal is told below
                found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the archive or the unpickler meets
        raise WeightsError(f"{file.name} cannot be read as weights: {_why_unreadable(file, error)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        others = {type(value).__name__ for value in found.values()} - {"Tensor"} if isinstance(found, dict) else set()
        kind = f"dict of {', '.join(sorted(others))}" if others else type(found).__name__
        raise WeightsError(f"{file.name} holds {kind} instead of a state dict (name -> tensor); {_GIVE}")
    lost = [name for name, value in found.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if lost:
        raise WeightsError(
            f"{file.name} holds numbers that are not finite, in {len(lost)} of {len(found)} tensors, first {lost[0]}: "
            f"they are of a training that diverged, or damaged; give other weights"
        )
    return {_modern_key(str(key)): value for key, value in found.items()}


def _why_unreadable(file: Path, error: Exception) -> str:
    """What is wrong with a file of weights by its first bytes and its reader's error, and what to do."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}; {_GIVE}"
    if file.stat().st_size == 0:
        return f"it is empty; {_GIVE}"
    if file.suffix == ".safetensors":
        return f"it is no whole safetensors file ({error}); copy it again, or {_GIVE}"
    with file.open("rb") as stream:
        start = stream.read(len(_ZIP))
    zipped, pickled = start == _ZIP, start.startswith(_PICKLE)
    if (zipped or pickled) and isinstance(error, UnpicklingError):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        return (
            f"it is a pickle of more than tensors{f' ({named[1]})' if named else ''}, and reading that can run code, "
            f"which is not done; {_GIVE}"
        )
    if zipped or (pickled and isinstance(error, EOFError | RuntimeError | IndexError)):
        return "it is cut off or damaged; copy it again, in whole"
    return f"it is no file that torch.save has written; {_GIVE}"


def _modern_key(key: str) -> str:
    key = key.removeprefix("module.")
    old = _OLD_DENSENET_KEY.match(key)
    return old.group(1) + old.group(2) if old else key


def _fill(backbone: nn.Module, weights: Mapping[str, Tensor], name: str, replaced: str) -> None:
    """Loads a whole network's state dict into its backbone, strictly but for the classifier that was replaced."""
    own = backbone.state_dict()
    given = {key: value for key, value in weights.items() if not key.startswith(f"{replaced}.")}
    if name in ("googlenet", "inception_v3"):
        given = {key: value for key, value in given.items() if not key.lower().startswith("aux")}
    missing = sorted(set(own) - set(given))
    extra = sorted(set(given) - set(own))
    shapes = sorted(key for key in set(own) & set(given) if own[key].shape != given[key].shape)
    if missing or extra or shapes:
        details = [
            f"{len(keys)} tensors {what}, first {keys[0]}"
            for keys, what in (
                (missing, "are missing"),
                (extra, "are unknown"),
                (shapes, "have another shape"),
            )
            if keys
        ]
        raise WeightsError(
            f"the weights are not those of model={name}: {'; '.join(details)}; give the weights of this network or "
            f"change `model`"
        )
    backbone.load_state_dict(given)
