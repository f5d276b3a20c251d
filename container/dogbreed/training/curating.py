"""Curation of a job's data, or of a folder: brings together what is stored, what learns from it, and what looks at it.

The features are those of a backbone that has not learned from these labels; one that has would have learned the wrong
ones too.

Legend: N images, F features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed import artifacts, backbones
from dogbreed.curation import finds
from dogbreed.curation.copies import Group
from dogbreed.curation.finds import TRAIN, Curation, Photo, Unreadable
from dogbreed.training import compute, folds, frozen
from dogbreed.training.console import Console
from dogbreed.training.data import make_loader
from dogbreed.training.features import STOPPED, FeatureStore
from dogbreed.training.frozen import FrozenPart
from dogbreed.training.loop import CorruptImages, Loop
from dogbreed.training.sources import Sample, Splits, find_corrupt, find_splits

_BATCH = 32
_MOST_CORRUPT = 0.5
"""Share of a folder; unreadable images are what curation is there to find."""


@dataclass(frozen=True, slots=True)
class Part:
    """One split as far as it is known.

    Attributes:
        samples: of the split.
        outputs: float16 [N, F], features of the samples that could be decoded, in their order.
        lost: the others, each with the reason.
    """

    samples: Sequence[Sample]
    outputs: NDArray[np.float16]
    lost: Mapping[Sample, str]

    @classmethod
    def stored(cls, samples: Sequence[Sample], store: FeatureStore) -> Part:
        """The first view of a store."""
        # A store may have been made of the same images at another place.
        return cls(samples, store.outputs[0], find_corrupt(samples, store.problems, parts=2))

    def photos(self, split: str) -> list[Photo]:
        """Of the samples that have features."""
        return [Photo(one.path, split, one.index) for one in self.samples if one not in self.lost]

    def unreadable(self, split: str) -> list[Unreadable]:
        """The samples that have none."""
        return [Unreadable(Photo(one.path, split, one.index), why) for one, why in self.lost.items()]


@dataclass(slots=True)
class Outputs:
    """What the frozen part of a network puts out while something else runs it."""

    heard: list[NDArray[np.float16]] = field(default_factory=list)

    @contextlib.contextmanager
    def of(self, network: nn.Module | None) -> Iterator[None]:
        """Listens to the first of the two parts that `frozen.whole` puts together; to nothing where it is None."""
        if network is None:
            yield
            return

        def hear(_module: nn.Module, _inputs: object, outputs: Tensor) -> None:
            self.heard.append(outputs.detach().to("cpu", torch.float16).numpy())

        handle = next(network.children()).register_forward_hook(hear)
        try:
            yield
        finally:
            handle.remove()

    def all(self) -> NDArray[np.float16]:
        """Of all batches, in order."""
        return np.concatenate(self.heard) if self.heard else np.empty((0, 0), dtype=np.float16)


def of_job(
    splits: Splits,
    stores: tuple[FeatureStore, FeatureStore],
    tested: NDArray[np.float16] | None,
    corrupt: Sequence[str],
    *,
    seed: int,
    device: torch.device,
    threads: int,
    stop_requested: Callable[[], bool],
) -> Curation | None:
    """The finds of a job; None after a stop.

    Args:
        splits: of the job.
        stores: features of training and validation.
        tested: features of the test images that could be decoded, where they are known.
        corrupt: all images that could not be decoded, with reasons.
        seed: of the job.
        device: that trains.
        threads: that read photos.
        stop_requested: asked now and then.
    """
    parts = {
        TRAIN: Part.stored(splits.train, stores[0]),
        "validation": Part.stored(splits.validation, stores[1]),
    }
    notes = []
    if splits.test is not None and tested is not None:
        parts["test"] = Part(splits.test, tested, find_corrupt(splits.test, corrupt))
    elif splits.test is not None:
        notes.append(
            f"The {len(splits.test)} test images are left out: only a job of one process with trainable=head has their "
            f"features. `python -m dogbreed.curation` looks at them as well."
        )
    return of_parts(
        parts,
        splits.labels.names,
        seed=seed,
        device=device,
        threads=threads,
        notes=notes,
        stop_requested=stop_requested,
    )


def of_parts(
    parts: Mapping[str, Part],
    labels: Sequence[str],
    *,
    seed: int,
    device: torch.device,
    threads: int,
    root: Path | None = None,
    notes: Sequence[str] = (),
    stop_requested: Callable[[], bool] = lambda: False,
) -> Curation | None:
    """The finds of splits by name, of which ``train`` is learned from; None after a stop.

    Raises:
        ValueError: features and readable images do not go together, or a feature is not finite.
    """
    photos = [photo for split, part in parts.items() for photo in part.photos(split)]
    features = np.concatenate([part.outputs.reshape(len(part.outputs), -1) for part in parts.values()])
    if len(photos) != len(features):
        raise ValueError(f"there are features of {len(features)} images, and {len(photos)} that could be read")
    indices = np.array([photo.index for photo in photos], dtype=np.int64)
    learning = np.array([photo.split == TRAIN for photo in photos])

    def judge(groups: Sequence[Group]) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        dealt = _deal(indices, learning, groups, seed)
        found = folds.probabilities(
            features,
            indices,
            dealt,
            learning,
            classes=len(labels),
            seed=seed,
            device=device,
            stop_requested=stop_requested,
        )
        return None if found is None else (found, _can_be_judged(indices, learning, dealt, len(labels)))

    return finds.curate(
        photos,
        features,
        labels,
        judge,
        unreadable=[one for split, part in parts.items() for one in part.unreadable(split)],
        root=root,
        threads=threads,
        notes=notes,
        stop_requested=stop_requested,
    )


def of_folder(folder: Path, bundle: Path, *, cache: Path, seed: int, threads: int) -> Curation:
    """The finds in a folder that holds train, valid and test, or one folder per class.

    Args:
        folder: with the images.
        bundle: folder of a bundle, whose backbone gives the features.
        cache: folder for the features.
        seed: of the folds.
        threads: that read photos.

    Raises:
        DataError: the folder is not laid out so, or too many images are corrupt.
        BundleError: the bundle cannot be used.
        OSError: the cache cannot be written.
    """
    loaded = artifacts.load(bundle)
    splits = find_splits({TRAIN: folder}, validation_fraction=0.5, seed=seed)
    samples = {TRAIN: splits.train, "validation": splits.validation, "test": splits.test or ()}
    if splits.held_out:
        # Everything is learned from, and everything is judged.
        samples[TRAIN] = tuple(sorted(splits.train + splits.validation, key=lambda one: (one.index, one.path)))
        samples["validation"] = ()
    device = compute.choose("auto").device
    spec = loaded.preprocessing
    part = FrozenPart(
        backbones.cut_at_head(loaded.build().to(device)),
        loaded.backbone,
        spec,
        compute.frozen_dtype("auto", device),
        device,
        sum(map(len, samples.values())),
        cache,
    )
    loop = Loop(
        model=part.cut.rest,
        prepare=lambda images: spec.normalise(images).contiguous(memory_format=torch.channels_last),
        classes=len(splits.labels),
        criterion=nn.Identity(),
        compute=compute.choose("fp32"),
        observers=[Console(0)],
        corrupt=CorruptImages(splits.images, _MOST_CORRUPT),
        stop_requested=lambda: False,
    )
    parts = {}
    for split, members in samples.items():
        if not members:
            continue
        store = frozen.store_outputs(
            part,
            loop,
            samples=members,
            views=[("centre", spec.centre_view)],
            make_batches=partial(
                make_loader, batch_size=_BATCH, workers=threads, seed=seed, shuffle=False, pin=device.type == "cuda"
            ),
            seed=seed,
        )
        if store is not STOPPED:
            parts[split] = Part.stored(members, store)
    notes = list(splits.notes)
    learned = loaded.hyperparameters.get("trainable")
    if learned not in (None, "head"):
        notes.append(
            f"This bundle's backbone has learned too (trainable={learned}): of images that it has learned from, wrong "
            f"labels included, it doubts few. For these give a bundle of trainable=head, or train with curate=true."
        )
    found = of_parts(
        parts, splits.labels.names, seed=seed, device=device, threads=threads, root=folder.absolute(), notes=notes
    )
    if found is None:
        raise RuntimeError("nothing asked for a stop")
    return found


def _deal(
    indices: NDArray[np.int64], learning: NDArray[np.bool_], groups: Sequence[Group], seed: int
) -> NDArray[np.int64]:
    """Folds: copies that learn stay together, and a copy of one that learns is judged like it."""
    rows = np.flatnonzero(learning)
    place = {int(row): position for position, row in enumerate(rows)}
    learners = [[member for member in group.members if learning[member]] for group in groups]
    together = [[place[member] for member in members] for members in learners if len(members) > 1]
    dealt = np.full(len(indices), folds.NO_FOLD, dtype=np.int64)
    dealt[rows] = folds.deal(indices[rows].tolist(), together, seed=seed)
    for group, members in zip(groups, learners, strict=True):
        if members:
            dealt[list(group.members)] = dealt[members[0]]
    return dealt


def _can_be_judged(
    indices: NDArray[np.int64], learning: NDArray[np.bool_], dealt: NDArray[np.int64], classes: int
) -> NDArray[np.bool_]:
    """Whether what judges an image has learned from its class: bool [N]."""
    knows = np.zeros((int(dealt.max()) + 1, classes), dtype=bool)
    for fold in range(len(knows)):
        knows[fold, indices[learning & (dealt != fold)]] = True
    judges = np.where((dealt == folds.NO_FOLD)[:, None], knows.all(axis=0), knows[dealt])
    found: NDArray[np.bool_] = judges[np.arange(len(indices)), indices]
    return found
