"""Samples -> batches, an epoch at a time.

Threads read, decode and view; every one of them works on the same few batches, each on its share, so that what is in
memory does not grow with their number. Decoding, resizing and copying release the interpreter's lock, and threads need
no shared memory, no pickling and no time to start. An image that cannot be decoded is a fact about the data: it is left
out of its batch and reported with it. So is one whose file cannot be read, which is a fact about this moment.

Order and views follow from (seed, epoch, position) alone, whatever the number of threads and of ranks.

Legend: N batch, S side of the network's input in pixels.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import psutil
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dogbreed.preprocessing import CorruptImageError, decode
from dogbreed.training.sources import Sample, Splits, find_splits

__all__ = [
    "Batch",
    "DecodedImages",
    "EpochLoader",
    "ImageSource",
    "LeftOut",
    "Loading",
    "Sample",
    "SeededView",
    "Splits",
    "View",
    "advise_workers",
    "choose_workers",
    "find_splits",
    "make_loader",
    "turn",
]

_BATCHES_AHEAD = 3
# Of the free memory, at most this share is for batches that wait.
_MEMORY_SHARE = 0.25
_TOLERATED_WAIT = 0.1

View = Callable[[Tensor], Tensor]
"""uint8 [3, H, W] -> uint8 [3, S, S]; leaves its input as it is. A random one draws from torch's global generator, in
place of which the loader puts one that is seeded for the image and the epoch; see also `SeededView`."""


@runtime_checkable
class SeededView(Protocol):
    """A random view that can be handed its generator, which is quicker than to have all of its calls watched."""

    def seeded(self, image_CHW: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [3, H, W] -> uint8 [3, S, S]; leaves its input as it is."""


class LeftOut(NamedTuple):
    """An image that is not in its batch.

    Attributes:
        position: of its sample among those that the loader was given.
        problem: its path, with the reason in brackets.
        unread: its file could not be read, which it may be another time; else what is in it cannot be decoded.
    """

    position: int
    problem: str
    unread: bool = False


class Batch(NamedTuple):
    """What the loop gets.

    Attributes:
        images: uint8 [N, 3, S, S]; N is smaller where images were left out, and may be 0.
        indices: int64 [N], class indices.
        left_out: the images that could not be read or decoded, in the order of the batch.
    """

    images: Tensor
    indices: Tensor
    left_out: tuple[LeftOut, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Paths, with the reason, of the images that were left out."""
        return tuple(one.problem for one in self.left_out)


class ImageSource(Protocol):
    """Where the images of a split come from. Threads share one."""

    def read(self, position: int) -> Tensor:
        """The image of the sample at a position, uint8 [3, H, W]; raises CorruptImageError or OSError."""

    def end_epoch(self) -> None:
        """All that was asked for has been read, for now."""


class DecodedImages:
    """Decodes the files anew whenever they are asked for."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def read(self, position: int) -> Tensor:
        """See `ImageSource`."""
        return decode(self._samples[position].path)

    def end_epoch(self) -> None:
        """Nothing is kept."""


def make_loader(
    samples: Sequence[Sample],
    view: View,
    first: int = 0,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    shuffle: bool,
    pin: bool,
    images: ImageSource | None = None,
    rank: int = 0,
    ranks: int = 1,
    batches: int | None = None,
) -> EpochLoader:
    """Batches of one split; the same seed and epoch give the same batches, whatever the number of workers.

    Args:
        samples: the split.
        view: image -> network input.
        first: position of the first sample in its split, where the samples are a share of one that is not shuffled:
            random views are those that the whole split would get.
        batch_size: N, over all ranks.
        workers: threads that decode; 0 decodes in the caller's.
        seed: of the order and of random views.
        shuffle: a new order each epoch.
        pin: page-locked batches, for copies to a GPU.
        images: where the samples' images come from, by position; None decodes their files.
        rank: of this process; of every batch it takes what `turn` says.
        ranks: processes that share the batches. Together their batches are those of a single process.
        batches: where the samples are this process's own: divide them evenly into so many, whatever ``batch_size``.
    """
    return EpochLoader(
        _Recipe(samples, _seeding(view), images or DecodedImages(samples), pin),
        _Plan(
            len(samples), batch_size, seed=seed, first=first, shuffle=shuffle, rank=rank, ranks=ranks, batches=batches
        ),
        workers,
    )


class Loading(NamedTuple):
    """Who loads the images of a training, for those that watch it.

    Attributes:
        threads: of this process; 0 where it loads its images itself.
        processes: of this host, which do the same.
        seconds: what this process has spent on decoding and viewing so far, all its threads together.
    """

    threads: int
    processes: int
    seconds: Callable[[], float]


def turn(samples: int, rank: int, ranks: int) -> slice:
    """The positions of a batch of ``samples`` that are a process's: all processes take them by turns.

    Where there are fewer than two for each, only as many take part as have two, since BatchNorm cannot learn from one.
    """
    takers = max(1, min(ranks, samples // 2))
    return slice(rank, None, takers) if rank < takers else slice(0)


class EpochLoader:
    """Iterates over the batches of one epoch at a time; `len` is the number of batches.

    Attributes:
        workers: threads that decode; 0 decodes in the caller's.
        worked_s: seconds that decoding and viewing took so far, of all threads together.
    """

    def __init__(self, recipe: _Recipe, plan: _Plan, workers: int) -> None:
        self._recipe = recipe
        self._plan = plan
        self.workers = workers
        self.worked_s = 0.0

    def __len__(self) -> int:
        return len(self._plan)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on; the order depends on the seed and the epoch alone.

        The threads live as long as the iterator, also when it is left early.
        """
        batches = (_Assembly(self._recipe, keys) for keys in self._plan.epoch(number)[start:])
        try:
            if self.workers:
                yield from _work_ahead(batches, self.workers, self._count)
            else:
                for batch in batches:
                    self._count(batch.work_timed(0, 1))
                    yield batch.finish()
        finally:
            self._recipe.images.end_epoch()

    def _count(self, seconds: float) -> None:
        self.worked_s += seconds


def choose_workers(requested: int, *, cpus: int, batches: int, batch_bytes: int, free_bytes: int | None = None) -> int:
    """Number of loader threads; 0 where not even the batches that wait would fit the memory.

    Args:
        requested: -1 for as many as ``cpus``.
        cpus: CPUs that loading may use.
        batches: batches per epoch; a loader of a single batch has nothing to work ahead on.
        batch_bytes: size of one batch; a few wait, whatever the number of threads.
        free_bytes: memory; default is what the machine has.
    """
    free = psutil.virtual_memory().available if free_bytes is None else free_bytes
    if batches < 1 or (_BATCHES_AHEAD + 1) * batch_bytes > free * _MEMORY_SHARE:
        return 0
    return cpus if requested < 0 else requested


def advise_workers(wait_share: float, cpus: int, workers: int) -> str:
    """What to change when training waits for its images; empty when it hardly does.

    Args:
        wait_share: of an epoch's time that was spent waiting for batches, in [0, 1].
        cpus: CPUs that the job may use.
        workers: loader threads that it used.
    """
    if wait_share < _TOLERATED_WAIT:
        return ""
    found = f"training waited for images {wait_share:.0%} of the time"
    if workers < cpus:
        return f"{found} with {workers} loader threads on {cpus} CPUs; set num-workers={cpus}"
    if workers > cpus:
        return f"{found} with {workers} loader threads on {cpus} CPUs, more than can run; set num-workers={cpus}"
    return (
        f"{found} with all {cpus} CPUs loading; use an instance with more CPUs, or store the photos smaller, with the "
        f"shorter side near image-size"
    )


class _Plan:
    """Which samples make up which batch: keys of (position, seed of its view), from (seed, epoch) alone."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: int,
        first: int,
        shuffle: bool,
        rank: int,
        ranks: int,
        batches: int | None,
    ) -> None:
        # BatchNorm cannot learn from a single sample with 1x1 maps: a last batch of one sits out, another one each
        # epoch.
        lonely = shuffle and batch_size > 1 and samples > batch_size and samples % batch_size == 1
        self._samples = samples
        self._bounds = [*range(0, samples - lonely, batch_size), samples - lonely]
        if batches is not None:
            # Fewer samples than two for each batch come in pairs, and none to the batches between: BatchNorm again.
            groups = min(batches, max(1, samples // 2))
            self._bounds = [samples * (groups * number // batches) // groups for number in range(batches + 1)]
        self._seed = seed
        self._first = first
        self._shuffle = shuffle
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def epoch(self, number: int) -> list[list[tuple[int, int]]]:
        generator = random.Random(f"{self._seed}/{number}")
        order = list(range(self._samples))
        if self._shuffle:
            generator.shuffle(order)
        for _ in range(self._first):
            generator.getrandbits(63)
        keys = [(position, generator.getrandbits(63)) for position in order]
        return [keys[start:end][turn(end - start, self._rank, self._ranks)] for start, end in pairwise(self._bounds)]


_Seeded = Callable[[Tensor, torch.Generator], Tensor]


class _Recipe(NamedTuple):
    """How a key becomes an image of a batch."""

    samples: Sequence[Sample]
    view: _Seeded
    images: ImageSource
    pin: bool


class _Assembly:
    """One batch in the making, by any number of threads."""

    def __init__(self, recipe: _Recipe, keys: Sequence[tuple[int, int]]) -> None:
        self._recipe = recipe
        self._keys = keys
        self._images: Tensor | None = None
        self._left_out: dict[int, LeftOut] = {}
        self._lock = threading.Lock()
        self.abandoned = False

    def work(self, first: int, step: int) -> None:
        """Makes the images ``first``, ``first + step``, ... of the batch."""
        for row in range(first, len(self._keys), step):
            if self.abandoned:
                return
            position, view_seed = self._keys[row]
            try:
                image = self._recipe.images.read(position)
            except (CorruptImageError, OSError) as error:
                problem = f"{self._recipe.samples[position].path} ({error})"
                self._left_out[row] = LeftOut(position, problem, unread=isinstance(error, OSError))
                continue
            viewed = self._recipe.view(image, torch.Generator().manual_seed(view_seed))
            self._row(row, viewed.shape).copy_(viewed)

    def work_timed(self, first: int, step: int) -> float:
        """As `work`; returns the seconds that it took."""
        began = time.perf_counter()
        self.work(first, step)
        return time.perf_counter() - began

    def finish(self) -> Batch:
        """The batch, when all its images are made."""
        indices = torch.tensor([self._recipe.samples[position].index for position, _ in self._keys], dtype=torch.int64)
        images = torch.empty(0, 3, 0, 0, dtype=torch.uint8) if self._images is None else self._images
        if self._left_out:
            whole = [row for row in range(len(self._keys)) if row not in self._left_out]
            indices = indices[whole]
            images = images[whole] if whole else images
        return Batch(images, indices, tuple(self._left_out[row] for row in sorted(self._left_out)))

    def _row(self, row: int, shape: torch.Size) -> Tensor:
        """The place of an image; the first one tells how large the images are."""
        with self._lock:
            if self._images is None:
                channels, height, width = shape
                # Pixel by pixel, as images are decoded and as the network wants them.
                self._images = torch.empty(
                    len(self._keys), height, width, channels, dtype=torch.uint8, pin_memory=self._recipe.pin
                ).permute(0, 3, 1, 2)
        return self._images[row]


def _seeding(view: View | SeededView) -> _Seeded:
    """The view with the generator that it draws from as its second argument."""
    if isinstance(view, SeededView):
        return view.seeded
    plain = view

    def seeded(image: Tensor, generator: torch.Generator) -> Tensor:
        with _OwnGenerator(generator):
            return plain(image)

    return seeded


class _OwnGenerator(TorchFunctionMode):
    """In this thread, random functions that are not given a generator draw from this one.

    The global generator belongs to all threads: seeding it here would disturb the dropout of the training step, and
    other views. torch keeps modes per thread.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204  torch declares it untyped
        kwargs = kwargs or {}
        if func in _RANDOM_FUNCTIONS:
            kwargs = {"generator": self._generator, **kwargs}
        return func(*args, **kwargs)


# All that torchvision's transforms draw with, and their relatives.
_RANDOM_FUNCTIONS = frozenset(
    {
        torch.bernoulli,
        torch.multinomial,
        torch.normal,
        torch.poisson,
        torch.rand,
        torch.rand_like,
        torch.randint,
        torch.randint_like,
        torch.randn,
        torch.randn_like,
        torch.randperm,
        torch._sample_dirichlet,
        torch._standard_gamma,
        Tensor.bernoulli,
        Tensor.bernoulli_,
        Tensor.cauchy_,
        Tensor.exponential_,
        Tensor.geometric_,
        Tensor.log_normal_,
        Tensor.multinomial,
        Tensor.normal_,
        Tensor.random_,
        Tensor.uniform_,
    }
)


def _work_ahead(batches: Iterator[_Assembly], workers: int, worked: Callable[[float], None]) -> Iterator[Batch]:
    """Finished batches in their order, while threads work on the next few; ``worked`` is told what each took them.

    What a thread raises is raised here. When the iterator is closed, the threads stop at their next image.
    """
    waiting: deque[tuple[_Assembly, list[Future[float]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="loader") as pool:
        _use_one_core_each(pool, workers)
        try:
            for batch in batches:
                waiting.append((batch, [pool.submit(batch.work_timed, first, workers) for first in range(workers)]))
                if len(waiting) > _BATCHES_AHEAD:
                    yield _wait_for(waiting, worked)
            while waiting:
                yield _wait_for(waiting, worked)
        finally:
            for batch, shares in waiting:
                batch.abandoned = True
                for share in shares:
                    share.cancel()


def _use_one_core_each(pool: ThreadPoolExecutor, workers: int) -> None:
    """Starts the threads of a pool, without the threads that torch would start for each of them.

    The loader's threads are the parallelism; more of them inside each only contend for the same cores. torch keeps the
    number per thread, but also one for threads that are yet to come, which is put back.
    """
    number = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # takes over the common number, which would otherwise happen later
        torch.set_num_threads(1)
        started.wait()

    for _ in range(workers):
        pool.submit(start)
    started.wait()
    torch.set_num_threads(number)


def _wait_for(waiting: deque[tuple[_Assembly, list[Future[float]]]], worked: Callable[[float], None]) -> Batch:
    batch, shares = waiting[0]
    worked(sum(share.result() for share in shares))
    waiting.popleft()
    return batch.finish()
