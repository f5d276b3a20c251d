"""Reads what a hook saved, through smdebug's own readers: of an old job, or to see that the files are right."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dogbreed.insight.evidence import Answers, Losses, Point, Reading, Readings, Tensors
from dogbreed.insight.reductions import EXTRA, PLACES, UNKNOWN
from dogbreed.insight.saveplan import KEPT, quieten_smdebug


def read(folder: Path) -> tuple[Losses, Tensors, Answers]:
    """Reads what a hook saved, through smdebug's own reader: what `TensorHook.evidence` gave, from an old job.

    Raises:
        FileNotFoundError: the folder holds no saved tensors.
    """
    trial = _open(folder)
    from smdebug.pytorch import modes

    known = set(trial.tensor_names())
    tensors: dict[str, dict[str, Readings]] = {}
    for name in sorted(known):
        collection = next((one for one in KEPT if name in _cached_names(trial, one)), None)
        if collection is None or f"insight/{name}" not in known:
            continue
        readings = []
        for step in trial.tensor(f"insight/{name}").steps(mode=modes.TRAIN):
            tensor = trial.tensor(name)
            numbers = {
                reduction if not absolute else f"abs_{reduction}": float(
                    tensor.reduction_value(step, reduction, mode=modes.TRAIN, abs=absolute)
                )
                for reduction, absolute in PLACES
            }
            extra = trial.tensor(f"insight/{name}").value(step, mode=modes.TRAIN)
            numbers |= {one: float(value) for one, value in zip(EXTRA, extra, strict=True) if value != UNKNOWN}
            units = trial.tensor(f"units/{name}").value(step, mode=modes.TRAIN) if f"units/{name}" in known else None
            readings.append(Reading(step, numbers, units))
        tensors.setdefault(collection, {})[name] = tuple(readings)
    return read_losses(folder, trial), tensors, _read_answers(trial)


def read_losses(folder: Path, trial: Any = None) -> Losses:  # noqa: ANN401  smdebug has no types
    """Reads the losses that a hook saved.

    Args:
        folder: of the saved tensors.
        trial: the folder when it is open already.

    Returns:
        Train losses at their steps, and the mean loss of each validation pass at the number of train steps before it.

    Raises:
        FileNotFoundError: the folder holds no saved tensors.
    """
    trial = trial or _open(folder)
    from smdebug.pytorch import modes

    names = [name for name in trial.tensor_names(collection="losses") if "_output_" in name]
    if not names:
        return Losses(train=(), evaluation=())
    loss = trial.tensor(names[0])
    train = tuple(Point(step, float(loss.value(step, mode=modes.TRAIN))) for step in loss.steps(mode=modes.TRAIN))
    # smdebug numbers steps per mode and over all modes: train steps between two validation passes leave a gap, and the
    # difference of the numbers is how many train steps were done before, whether all passes were saved or not.
    passes: list[list[tuple[int, float]]] = []
    points: list[int] = []
    for step in loss.steps(mode=modes.EVAL):
        overall = trial.global_step(modes.EVAL, step)
        if not passes or overall != passes[-1][-1][0] + 1:
            passes.append([])
            points.append(overall - step)
        passes[-1].append((overall, float(loss.value(step, mode=modes.EVAL))))
    evaluation = (
        Point(point, sum(value for _, value in losses) / len(losses))
        for point, losses in zip(points, passes, strict=True)
    )
    return Losses(train=train, evaluation=tuple(evaluation))


def _read_answers(trial: Any) -> Answers:  # noqa: ANN401  smdebug has no types
    from smdebug.pytorch import modes

    known = set(trial.tensor_names())
    train: list[NDArray[np.int64]] = []
    if "labels" in known:
        labels = trial.tensor("labels")
        train = [labels.value(step, mode=modes.TRAIN) for step in labels.steps(mode=modes.TRAIN)]
    found = Answers(train_labels=np.concatenate(train)) if train else Answers()
    if "predictions" not in known:
        return found
    steps = trial.tensor("predictions").steps(mode=modes.EVAL)
    return Answers(
        train_labels=found.train_labels,
        labels=trial.tensor("labels").value(steps[-1], mode=modes.EVAL),
        predictions=trial.tensor("predictions").value(steps[-1], mode=modes.EVAL),
        evaluated=sum(len(trial.tensor("predictions").value(step, mode=modes.EVAL)) for step in steps),
    )


def _open(folder: Path) -> Any:  # noqa: ANN401  smdebug has no types
    if not any((folder / "collections").glob("*/*_collections.json")):
        raise FileNotFoundError(f"{folder} holds no tensors saved by smdebug")
    quieten_smdebug()
    from smdebug.trials import create_trial

    return create_trial(str(folder))


@lru_cache(maxsize=64)
def _cached_names(trial: Any, collection: str) -> frozenset[str]:  # noqa: ANN401  smdebug has no types
    if collection not in trial.collections():
        return frozenset()
    try:
        return frozenset(trial.tensor_names(collection=collection))
    except Exception:  # smdebug: no such collection
        return frozenset()
