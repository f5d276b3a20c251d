"""The processes of one job, and what they tell each other.

A `Team` is this process's place among them. Alone, every method is the obvious answer at no cost, so that nothing above
this module asks how many there are. Decisions that must be the same everywhere (stop now? keep a checkpoint now?) are
agreed on before each step, because a process that leaves a collective call early makes all others hang in it.

gloo carries what is on the CPU and NCCL what is on a GPU. Knows no files and nothing of a job's order of events.

Sources: torch.distributed, torch.nn.parallel.DistributedDataParallel.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from dogbreed.errors import JobError

logger = logging.getLogger(__name__)

_LAST_WORDS = "last words"
# Between two collective calls a process may read a whole data set; a lost one is noticed by its closed connection.
_TIMEOUT = timedelta(hours=2)
_LAST_WORDS_WAIT = timedelta(seconds=3)

T = TypeVar("T")


class ProcessLostError(JobError):
    """Another process of the job failed or disappeared, so that this one cannot go on."""


@dataclass(frozen=True, slots=True)
class Team:
    """This process among those of its job.

    Attributes:
        rank: from 0; rank 0 leads: it writes what the job leaves behind.
        size: number of processes on all hosts.
        local_rank: from 0 among the processes of this host; also the number of its GPU.
        local_size: number of processes of this host.
        name: of this process, for people.
        apart: each host holds images of its own (ShardedByS3Key), instead of all of them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    name: str = "the job"
    store: Store | None = None
    apart: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process writes what the job leaves behind."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def total(self, *counts: int) -> tuple[int, ...]:
        """Each count summed over all processes."""
        if self.alone:
            return counts
        summed = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(summed)
        return tuple(summed.tolist())

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor of one shape over all processes, in place."""
        if not self.alone:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank; anything that pickles."""
        if self.alone:
            return [value]
        gathered: list[T | None] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return cast(list[T], gathered)

    def hand_out(self, tensor: Tensor, source: int) -> Tensor:
        """A tensor of process ``source``, in place in the others, which give one of its shape."""
        if not self.alone:
            dist.broadcast(tensor, src=source)
        return tensor

    def share(self, state: T) -> T:
        """The leader's value: tensors, numbers and texts in containers, as `torch.load(weights_only)` takes them."""
        if self.alone:
            return state
        buffer = io.BytesIO()
        if self.leads:
            torch.save(state, buffer)
        (length,) = self.total(len(buffer.getvalue()))
        content = torch.empty(length, dtype=torch.uint8)
        if self.leads:
            content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        self.hand_out(content, 0)
        if self.leads:
            return state
        return cast(T, torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True, map_location="cpu"))

    def wait(self) -> None:
        """Returns when all processes have come here."""
        self.total(0)

    def part_of(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a list: consecutive items, so that all shares in order are the list.

        Where hosts hold images of their own, the list is this host's and is shared among its processes.
        """
        rank, size = (self.local_rank, self.local_size) if self.apart else (self.rank, self.size)
        return items[len(items) * rank // size : len(items) * (rank + 1) // size]

    def averaging(self, model: nn.Module) -> nn.Module:
        """The model, whose gradients become the mean over all processes as they are computed.

        Where it is handed None in the place of inputs, its output is a zero whose gradients are zeros: all processes go
        backward at every step, also one that has nothing to learn from. Statistics of BatchNorm stay each process's own
        until `average_buffers`.
        """
        if self.alone or not any(parameter.requires_grad for parameter in model.parameters()):
            return model
        return DistributedDataParallel(_Sparing(model), broadcast_buffers=False)

    def unsynchronised(self, learner: nn.Module) -> contextlib.AbstractContextManager[None]:
        """For backward passes whose gradients are added up here first."""
        return learner.no_sync() if isinstance(learner, DistributedDataParallel) else contextlib.nullcontext()

    def average_buffers(self, buffers: Iterable[Tensor], share: float | None = None) -> None:
        """Replaces floating-point buffers (BatchNorm's running statistics) by their mean over all processes, in place.

        Args:
            buffers: of a model, or of an average of it; the others stay as they are.
            share: weight of this process's, of 1 for all together; by default all count the same.
        """
        if self.alone:
            return
        for buffer in buffers:
            if buffer.is_floating_point():
                if share is not None:
                    buffer.mul_(share)
                dist.all_reduce(buffer)
                if share is None:
                    buffer.div_(self.size)

    def say_last_words(self, reason: str) -> None:
        """Tells the others why this process ends; the first to speak is heard. Never raises."""
        if self.store is None:
            return
        with contextlib.suppress(Exception):
            if not self.store.check([_LAST_WORDS]):
                self.store.set(_LAST_WORDS, f"{self.name}: {reason}")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around all that processes do together: a connection that breaks becomes the reason why it broke.

        Raises:
            ProcessLostError: instead of what torch raises when another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if self.alone or isinstance(error, torch.OutOfMemoryError) or not _is_broken_connection(error):
                raise
            raise ProcessLostError(self._why_lost(error)) from error

    def close(self) -> None:
        """Leaves the others; called when there is nothing left to say."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _why_lost(self, error: RuntimeError) -> str:
        words = ""
        if self.store is not None:
            with contextlib.suppress(Exception):
                self.store.wait([_LAST_WORDS], _LAST_WORDS_WAIT)
                words = self.store.get(_LAST_WORDS).decode()
        if words and not words.startswith(f"{self.name}: "):
            return f"another process of this job failed: {words}"
        first_line = (str(error).strip().splitlines() or [""])[0]
        return (
            f"another process of this job is gone without a word, killed or out of memory ({first_line[:200]}); its "
            f"host's log may say more"
        )


class _Sparing(nn.Module):
    """A model that a process can also leave out of a step without leaving the others waiting.

    Args:
        model: inputs -> outputs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor | None) -> Tensor:
        """The model's outputs; for None a zero that everything that learns has a part in."""
        if inputs is not None:
            return cast(Tensor, self.model(inputs))
        parts = [parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad]
        return 0 * torch.stack(parts).sum()


ALONE = Team()
"""The only process of its job."""


def join(*, rank: int, size: int, local_rank: int, local_size: int, host: str) -> Team:
    """Meets the other processes at the address that the launcher put into the environment.

    Args:
        rank: of this process among ``size``.
        size: number of processes of the job.
        local_rank: of this process among ``local_size``.
        local_size: number of processes on this host.
        host: name of this host.

    Raises:
        ProcessLostError: not all processes came.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
        store = PrefixStore("dogbreed", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ProcessLostError(f"the {size} processes of the job do not find each other: {error}") from error
    return Team(rank, size, local_rank, local_size, f"process {rank} on {host}", store)


def _is_broken_connection(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    text = str(error)
    return any(sign in text for sign in ("gloo", "Connection closed by peer", "Connection reset", "Broken pipe"))
