"""Puts a loop on stored outputs: runs the frozen part over all splits, once, and hands back what trains the rest.

Knows networks, splits and stores; the order of a job's events is not its business.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from dogbreed.backbones import Cut
from dogbreed.engines import openvino_cpu
from dogbreed.engines.engine import Precision, UnsuitableError
from dogbreed.engines.openvino_cpu import OpenVinoNetwork
from dogbreed.folding import accelerated
from dogbreed.imagefiles import size_bytes
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training.augment import is_random
from dogbreed.training.data import Batch, Sample, View
from dogbreed.training.features import (
    STOPPED,
    FeatureStore,
    Stopped,
    StoreKey,
    digest_weights,
    gather_store,
    open_store,
    remove_store,
    write_store,
)
from dogbreed.training.loop import Batches, Loop
from dogbreed.training.sources import digest_files, find_corrupt

logger = logging.getLogger(__name__)


_PRECISIONS: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16"}

_WORTH_COMPILING_PX = 384 * 224**2
"""Converting a network for OpenVINO takes 0.3 to 2 s (ResNet-18, DenseNet-121), which 120 to 260 photos give back."""


@dataclass(frozen=True)
class FrozenPart:
    """What is run once, and everything that its outputs depend on.

    Attributes:
        cut: of the classifier.
        model: its name.
        spec: preprocessing.
        dtype: arithmetic of the pass.
        device: of the pass.
        images: how many will go through, of all splits and views; decides whether compiling is worth its time.
        folder: where stores are kept.
    """

    cut: Cut
    model: str
    spec: PreprocessSpec
    dtype: torch.dtype
    device: torch.device
    images: int
    folder: Path

    @cached_property
    def weights(self) -> str:
        """Digest of the frozen weights."""
        return digest_weights(self.cut.frozen.state_dict())

    @property
    def arithmetic(self) -> str:
        """What computes, for a store's name."""
        names = [str(self.dtype), f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
        if _is_worth_compiling(self.device, self.dtype, self.images, self.spec):
            names.append(f"openvino {openvino_cpu.version()}")
        return ", ".join(names)

    @cached_property
    def network(self) -> nn.Module:
        """What runs: made once for all splits, when a first one is not found stored."""
        return _quickest(self.cut.frozen, self.dtype, self.spec, self.device, self.images)

    def key(self, described: Sequence[str], views: Sequence[str], seed: int, first: int = 0) -> StoreKey:
        """Names the store of a split, or of a share of one that begins at position ``first``.

        The seed and the position matter only where views are random.

        Args:
            described: file and class of each sample, see `_describe`.
            views: their names.
            seed: of random views.
            first: 0 for a whole split.
        """
        drawn = ""
        if any(is_random(view) for view in views):
            drawn = f" by seed {seed}" + (f" from image {first} on" if first else "")
        return StoreKey(
            samples=hashlib.sha256("\n".join(described).encode()).hexdigest(),
            network=f"{self.model}, {self.cut.name}",
            weights=self.weights,
            preprocessing=repr(self.spec),
            views=", ".join(views) + drawn,
            arithmetic=self.arithmetic,
        )


def store_outputs(
    part: FrozenPart,
    loop: Loop,
    *,
    samples: Sequence[Sample],
    views: Sequence[tuple[str, View]],
    make_batches: Callable[[Sequence[Sample], View, int], Batches],
    seed: int,
) -> FeatureStore | Stopped:
    """The outputs of a split: found in the folder, or computed and stored there.

    Args:
        part: what runs.
        loop: runs it; tells its observers, and collects corrupt images.
        samples: the split.
        views: with a name for each.
        make_batches: batches of a view of samples, unshuffled; told the position of the first one in the split.
        seed: of random views.

    Returns:
        STOPPED when a stop signal came in between.

    Raises:
        DataError: too many images are corrupt.
        OSError: the folder cannot hold the outputs.
    """
    team = loop.team
    names = [name for name, _ in views]
    share = team.part_of(samples)
    # Shares in the order of the processes are the split, also where each host has images of its own.
    shares = team.gather(_describe(share))
    first = sum(map(len, shares[: team.rank]))
    share_key = part.key(shares[team.rank], names, seed, first)
    key = part.key([one for described in shares for one in described], names, seed)
    found = _find(part.folder, key, samples)
    # Another host may have those of another job, without an image that could not be read then.
    rows = team.gather(None if found is None else zlib.crc32(found.indices.tobytes()))
    if found is not None and len(set(rows)) == 1:
        logger.info("found stored outputs of %d images in %s", len(found.indices), part.folder)
        loop.corrupt.add(found.problems)
        return found
    passes = [
        _pass(part.network, part.dtype, loop, make_batches(share, view, first), number)
        for number, (_, view) in enumerate(views)
    ]
    if team.alone:
        return write_store(part.folder, key, passes, len(samples))
    # Named by its samples like any other store, so that a job that is started again finds the shares it has.
    computed = _find(part.folder, share_key, share) or write_store(part.folder, share_key, passes, len(share))
    if any(team.gather(computed is STOPPED)) or computed is STOPPED:
        return STOPPED
    whole_store = gather_store(part.folder, key, computed, team)
    if share_key != key:
        remove_store(part.folder, share_key)
    loop.corrupt.add(whole_store.problems)
    return whole_store


def deepen(
    part: FrozenPart, loop: Loop, store: FeatureStore, key: StoreKey, batches: Batches
) -> FeatureStore | Stopped:
    """The outputs of a further part, from the stored outputs of the part before it; found, or computed and stored.

    Args:
        part: takes the store's outputs in.
        loop: runs it.
        store: of the part before.
        key: names the new store.
        batches: of the store, in its order.

    Returns:
        STOPPED when a stop signal came in between.

    Raises:
        OSError: the folder cannot hold the outputs.
    """
    found = open_store(part.folder, key)
    if found is not None:
        return found
    example = torch.from_numpy(store.outputs[0, :1]).float().to(loop.compute.device)
    frozen = accelerated(part.cut.frozen, part.dtype, example)
    on_outputs = replace(loop, prepare=Tensor.float)
    return write_store(part.folder, key, [_pass(frozen, part.dtype, on_outputs, batches, 0)], len(store.indices))


def _describe(samples: Sequence[Sample]) -> list[str]:
    return [f"{digest} {one.index}" for digest, one in zip(digest_files(samples), samples, strict=True)]


def _find(folder: Path, key: StoreKey, samples: Sequence[Sample]) -> FeatureStore | None:
    """What is stored; None also where an image that it lacks, because its file could not be read, can be read now."""
    found = open_store(folder, key)
    if found is None:
        return None
    missed = [sample.path for sample in find_corrupt(samples, found.unread, parts=2) if _is_readable(sample.path)]
    if not missed:
        return found
    logger.info("the stored outputs lack %d images that can be read now, and are computed again", len(missed))
    return None


def _is_readable(file: Path) -> bool:
    if size_bytes(file) < 0:  # nothing to read, or a pipe, at which one would wait
        return False
    try:
        file.read_bytes()
    except OSError:
        return False
    return True


def _pass(
    frozen: nn.Module, dtype: torch.dtype, loop: Loop, batches: Batches, number: int
) -> Callable[[], Iterator[tuple[Tensor, Batch]]]:
    dtype = torch.float32 if isinstance(frozen, OpenVinoNetwork) else dtype
    receiving = replace(loop, prepare=lambda inputs: loop.prepare(inputs).to(dtype))
    return lambda: receiving.outputs(frozen, batches, number)


def on_outputs(loop: Loop, cut: Cut) -> Loop:
    """The loop that trains the rest of a cut network on stored outputs."""
    return replace(loop, model=cut.rest, prepare=Tensor.float)


def whole(cut: Cut, spec: PreprocessSpec, device: torch.device, images: int) -> nn.Module:
    """The cut network in one piece again, quicker than the original and in the same float32: for a test pass.

    Args:
        cut: of the classifier.
        spec: preprocessing.
        device: of the pass.
        images: how many will go through.
    """
    return nn.Sequential(_quickest(cut.frozen, torch.float32, spec, device, images), cut.rest)


def _is_worth_compiling(device: torch.device, dtype: torch.dtype, images: int, spec: PreprocessSpec) -> bool:
    return (
        device.type == "cpu"
        and dtype in _PRECISIONS
        and images * spec.size_px**2 >= _WORTH_COMPILING_PX
        and openvino_cpu.is_installed()
    )


def _quickest(
    network: nn.Module, dtype: torch.dtype, spec: PreprocessSpec, device: torch.device, images: int
) -> nn.Module:
    """A network that does not learn in its quickest form: compiled by OpenVINO, or as torch has it with folding."""
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, 3, spec.size_px, spec.size_px, generator=generator).to(device)
    if _is_worth_compiling(device, dtype, images, spec):
        try:
            return OpenVinoNetwork(network, example, _PRECISIONS[dtype], streams=torch.get_num_threads())
        except UnsuitableError as error:
            logger.info("%s; torch computes what is frozen", error)
    return accelerated(network, dtype, example)
