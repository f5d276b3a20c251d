"""Holds half precision against float32 on validation images, for the endpoint that will serve the model.

Half precision changes some answers, how many depends on the network and the data, so it is measured where both are at
hand: at the end of the job. A server reads the record and decides (`engines.agreement`, `engines.choice`).

Knows engines and samples; where the record goes is the job's business.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor, nn

from dogbreed import preprocessing
from dogbreed.engines import choice
from dogbreed.engines.agreement import MIN_IMAGES, Agreement, compare, most_doubtful
from dogbreed.engines.engine import Engine, PlainEngine, Precision, UnsuitableError
from dogbreed.environment import available_cpus
from dogbreed.preprocessing import CorruptImageError, PreprocessSpec
from dogbreed.training.sources import Sample

logger = logging.getLogger(__name__)

MAX_IMAGES = 512
"""More would cost time and change no verdict: the bound is a share of 1%."""

_BATCH = 16

_LOOK = 32
"""Answers that are compared between two looks at whether they are enough."""


class _StoppedError(Exception):
    """The job was told to stop; no time for comparisons."""


def compare_precisions(
    model: nn.Module,
    spec: PreprocessSpec,
    samples: Sequence[Sample],
    *,
    stop_requested: Callable[[], bool],
    quick: Callable[[], nn.Module] | None = None,
    doubtful_first: Sequence[int] = (),
) -> dict[str, Agreement | str]:
    """Scores validation images in half precision and in float32, with the quickest engine that an endpoint would use.

    That is one engine for the CPU, and the precisions of the GPU where there is one. What cannot be allowed any more is
    compared no further. Never raises: a job does not fail of a measurement.

    Args:
        model: normalised images -> logits, on any device; stays as it is.
        spec: preprocessing of an endpoint.
        samples: with the right classes; of many, 512 that are spread evenly are taken.
        stop_requested: ends it early.
        quick: makes the same network in a quicker form and in float32, the reference; or hands ``model`` back.
        doubtful_first: numbers of the samples that can be read, counted without the others, those with the most
            doubtful answers first. They are compared in this order, and not all need be scored to find one; empty where
            nobody knows.

    Returns:
        `engine.describe` -> what was found, or in one sentence why nothing was.
    """
    names: list[tuple[str, Precision]] = [
        (name, precision)
        for name, precision in choice.candidates(has_gpu=torch.cuda.is_available())
        if precision != "fp32"
    ]
    try:
        if len(samples) < MIN_IMAGES:
            raise UnsuitableError(f"the job had {len(samples)} validation images, {MIN_IMAGES} are needed")
        network = copy.deepcopy(model).eval()
        network.requires_grad_(False)
        spread = [samples[i * len(samples) // MAX_IMAGES] for i in range(MAX_IMAGES)]
        images_NCHW, truth_N = _read(spread if len(samples) > MAX_IMAGES else samples, spec, stop_requested)
        order = doubtful_first if sorted(doubtful_first) == list(range(len(truth_N))) else ()
        reference = _Answers(_plain_engine(model, network, spec, quick), images_NCHW, stop_requested)
        # The reference stays on the device, and is asked while the engines compute on the CPU.
        on_cpu = copy.deepcopy(network).cpu()
    except Exception as error:
        return dict.fromkeys((f"{name}-{precision}" for name, precision in names), _explain(error))
    found: dict[str, Agreement | str] = {}
    compared_on_cpu = ""
    for name, precision in names:
        described = f"{name}-{precision}"
        if name != "cuda" and compared_on_cpu:
            found[described] = f"{compared_on_cpu} is quicker and was compared instead"
            continue
        try:
            engine = choice.build(name, precision, on_cpu, spec, streams=available_cpus())
            agreement = _hold(_Answers(engine, images_NCHW, stop_requested), reference, truth_N, order)
        except Exception as error:
            found[described] = _explain(error)
            continue
        found[described] = agreement
        compared_on_cpu = compared_on_cpu or (described if name != "cuda" else "")
        objection = agreement.objection()
        verdict = "endpoints may use it" if objection is None else f"endpoints will not use it: {objection}"
        logger.info("%s: %s; %s", described, agreement, verdict)
    return found


class _Answers:
    """An engine's answers to the images, each computed at most once and when it is asked for.

    Args:
        engine: that computes them.
        images_NCHW: uint8 [N, 3, S, S].
        stop_requested: ends it early.
    """

    def __init__(self, engine: Engine, images_NCHW: Tensor, stop_requested: Callable[[], bool]) -> None:
        self._engine = engine
        self._images_NCHW = images_NCHW
        self._stop_requested = stop_requested
        self._known: dict[int, Tensor] = {}

    def scores(self, images: Sequence[int]) -> Tensor:
        """Log-probabilities of the images with these numbers, [M, K]."""
        missing = [number for number in images if number not in self._known]
        if missing:
            scores = _score(self._engine, self._images_NCHW[missing], self._stop_requested)
            self._known.update(zip(missing, scores, strict=True))
        return torch.stack([self._known[number] for number in images])


def _hold(answers: _Answers, reference: _Answers, truth_N: Tensor, order: Sequence[int]) -> Agreement:
    """Compares the most doubtful answers first, and no more when they are enough to refuse what gave them."""
    order = order or most_doubtful(answers.scores(range(len(truth_N))))

    def compared(count: int) -> Agreement:
        seen = order[:count]
        return compare(reference.scores(seen), answers.scores(seen), truth_N[list(seen)])

    for count in range(_LOOK, len(truth_N), _LOOK):
        found = replace(compared(count), of_images=len(truth_N))
        if found.is_refused:
            return found
    return compared(len(truth_N))


def _plain_engine(
    model: nn.Module, copied: nn.Module, spec: PreprocessSpec, quick: Callable[[], nn.Module] | None
) -> Engine:
    """What computes in float32, as quickly as can be."""
    quicker = quick() if quick else model
    if quicker is not model:
        return PlainEngine(quicker.eval(), spec)
    if next(copied.parameters()).device.type == "cpu":
        return choice.build("torch", "fp32", copied, spec)  # the same answers, in half the time
    return PlainEngine(copied, spec)


def _explain(error: Exception) -> str:
    if isinstance(error, UnsuitableError | _StoppedError):
        return str(error)
    logger.warning("half precision could not be compared with float32", exc_info=error)
    return f"comparing failed: {type(error).__name__}"


def _read(samples: Sequence[Sample], spec: PreprocessSpec, stop_requested: Callable[[], bool]) -> tuple[Tensor, Tensor]:
    """Views as an endpoint makes them, uint8 [N, 3, S, S], and classes, int64 [N]; corrupt images are left out."""

    def views() -> Iterator[tuple[Tensor, int]]:
        for sample in samples:
            if stop_requested():
                raise _StoppedError("the job was stopped before they were compared")
            try:
                yield spec.centre_view(preprocessing.decode(sample.path)), sample.index
            except (CorruptImageError, OSError):  # the job has told of it
                continue

    found = list(views())
    if len(found) < MIN_IMAGES:
        raise UnsuitableError(f"{len(found)} validation images could be read, {MIN_IMAGES} are needed")
    images_NCHW = torch.stack([view for view, _ in found]).contiguous(memory_format=torch.channels_last)
    return images_NCHW, torch.tensor([index for _, index in found])


def _score(engine: Engine, images_NCHW: Tensor, stop_requested: Callable[[], bool]) -> Tensor:
    def score(start: int) -> Tensor:
        if stop_requested():
            raise _StoppedError("the job was stopped before they were compared")
        return engine.score(images_NCHW[start : start + _BATCH])

    # OpenVINO computes one call on one CPU; torch uses all of them by itself.
    with ThreadPoolExecutor(available_cpus() if engine.name == "openvino" else 1) as pool:
        return torch.cat(list(pool.map(score, range(0, len(images_NCHW), _BATCH))))
