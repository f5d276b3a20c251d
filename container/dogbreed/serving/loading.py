"""From the folder of a bundle to a predictor that is ready, and the memory that is free again afterwards.

Imports torch when it is called and not before: a server answers `/ping` while that takes its seconds.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreed import collector
from dogbreed.errors import BundleError
from dogbreed.serving.lifecycle import ModelLifecycle
from dogbreed.serving.metrics import Metrics

if TYPE_CHECKING:
    from torch import nn

    from dogbreed.serving.predictor import Predictor

_LOGGER = logging.getLogger(__name__)


def load_predictor(
    folder: Path,
    metrics: Metrics,
    *,
    max_pixels: int,
    engine: str = "auto",
    precision: str = "auto",
    streams: int = 1,
    low_latency: bool = True,
    heat_maps: bool = True,
    shared: bool = False,
) -> Predictor:
    """Imports torch and loads the bundle in a folder; runs in a worker's background thread.

    Args:
        folder: of the bundle.
        metrics: are told what is served, and how long it took.
        max_pixels: larger images are refused.
        engine: what computes, one of `environment.ENGINES`.
        precision: of its arithmetic, one of `environment.PRECISIONS`.
        streams: images that are computed side by side on a CPU.
        low_latency: one that comes while nothing else is computed may have the CPUs of all, for more memory.
        heat_maps: offer them; the first one loads the bundle once more.
        shared: other models are loaded too.

    Raises:
        BundleError: there is none, or it cannot be served.
        ConfigurationError: the engine or the precision cannot be had here.
        MemoryError: the GPU is full of other models.
    """
    first = "torch" not in sys.modules
    import torch

    from dogbreed import artifacts
    from dogbreed.engines import choice
    from dogbreed.engines.engine import describe
    from dogbreed.serving.predictor import Predictor

    if first:  # of several models: each can be deleted again, the modules cannot
        collector.settle()
    # Requests run side by side, one thread each: torch's own threads would only fight for the same CPUs.
    torch.set_num_threads(1)
    if torch.cuda.device_count() > 1:  # of this thread, which builds the engine; that stays where it was built
        torch.cuda.set_device(_roomiest_gpu(torch.cuda.device_count()))
    written = _state_of(folder)
    bundle = artifacts.load(folder)
    chosen = choice.choose(
        bundle.build(),
        bundle.preprocessing,
        bundle.agreements,
        wish=choice.Wish(engine, precision),
        streams=streams,
        low_latency=low_latency,
        shared=shared,
    )
    computes = describe(chosen.engine)
    _LOGGER.info("%s with %d classes by %s: %s", bundle.backbone, len(bundle.labels), computes, chosen.reason)
    metrics.serves(
        {
            "backbone": bundle.backbone,
            "classes": len(bundle.labels),
            "device": "cuda" if chosen.engine.name == "cuda" else "cpu",
            "engine": computes,
            "version": bundle.versions.get("dogbreed", ""),
        }
    )
    return Predictor(
        bundle,
        chosen.engine,
        observer=metrics,
        max_pixels=max_pixels,
        lanes=(1 if chosen.engine.name == "cuda" else streams) + chosen.engine.ahead,
        helpers=streams - 1,
        network=partial(_load_again, folder, written) if heat_maps else None,
        trim=trim_memory,
    )


def _roomiest_gpu(count: int) -> int:
    import torch

    return max(range(count), key=lambda index: torch.cuda.mem_get_info(index)[0])


def _load_again(folder: Path, written: object) -> nn.Module:
    """The network of a bundle that is served already, by whatever engine.

    Raises:
        NoMapError: the files are not those that are served.
    """
    from dogbreed import artifacts
    from dogbreed.serving.heatmap import NoMapError

    try:
        network = artifacts.load(folder).build()
    except BundleError as error:
        raise NoMapError(f"the network cannot be loaded again for heat maps: {error}") from error
    if written is None or _state_of(folder) != written:
        raise NoMapError("the model's files have changed since it was loaded; start the server again for heat maps")
    return network


def _state_of(folder: Path) -> tuple[int, int, int] | None:
    """What changes when a bundle is replaced; its document is written last."""
    try:
        found = (folder / "bundle.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def load_now(load: Callable[[], Predictor], *, stuck_after_s: float) -> ModelLifecycle:
    """A model of a multi-model endpoint, loaded and tested; waits for it.

    Raises:
        BundleError: it cannot be served; says why.
        Exception: anything else that loading raised.
    """
    raised: list[Exception] = []

    def loading() -> Predictor:
        try:
            return load()
        except Exception as error:
            raised.append(error)
            raise

    model = ModelLifecycle(loading, stuck_after_s=stuck_after_s)
    model.start().join()
    if raised:
        raise raised[0]
    if (reason := model.status()) is not None:
        raise BundleError(reason)
    return model


def release_memory() -> None:
    """Gives memory that Python and torch hold and nobody uses back to the system."""
    gc.collect()
    if (cuda := sys.modules.get("dogbreed.engines.cuda")) is not None:
        cuda.release_unused()
    trim_memory()


def trim_memory() -> None:
    """Gives what is free in the allocator's heaps back to the system.

    glibc maps what is larger than 32 MiB by itself, and so returns it. The blocks of 16 MiB that Pillow keeps images in
    it takes from a heap for each thread, which stays as large as it was. A lower bound for what is mapped (mallopt)
    returns them, too, but doubles the time of a photo of 5 megapixels, whose memory is then had page by page.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
