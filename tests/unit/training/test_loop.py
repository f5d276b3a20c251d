from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.errors import DataError, HyperparameterError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute
from dogbreed.training.averaging import make_averaging
from dogbreed.training.data import Batch, EpochLoader, LeftOut, find_splits, make_loader
from dogbreed.training.distributed import T, Team, _Sparing
from dogbreed.training.loop import CorruptImages, FitResult, Keeper, Loop, NoKeeper, Phase, _split
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.optim import make_optimizer, make_schedule
from dogbreed.training.selection import Selection
from dogbreed.training.state import EpochResult, FitState

SPEC = PreprocessSpec.for_size(32)


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.behind: tuple[Sequence[EpochResult], int] | None = None

    def on_fit_start(self, history: Sequence[EpochResult], batches: int) -> None:
        assert not self.told
        self.behind = history, batches

    def on_pass_start(self, phase: Phase, epoch: int, batches: int) -> None:
        self.told.append(f"{phase.value} {epoch}: {batches}")

    def on_part(self, part: str) -> None:
        pass

    def on_batch(self, phase: Phase) -> None:
        self.told.append(phase.value)

    def on_left_out(self, samples: int) -> None:
        self.told.append(f"left out {samples}")

    def on_pass_end(self, phase: Phase) -> None:
        self.told.append(f"{phase.value} over")

    def on_epoch_end(self, result: EpochResult) -> None:
        self.told.append(f"epoch {result.epoch}")


class Setup:
    """A tiny job: model, loaders, and what the loop needs."""

    def __init__(self, data: Path, *, stop: Callable[[], bool] = lambda: False, **options: object) -> None:
        self.hyperparameters = Hyperparameters(
            **{"lr": 0.01, "epochs": 2, "dropout": 0.0, "trainable": "all", **options}  # type: ignore[arg-type]
        )
        splits = find_splits({"train": data}, validation_fraction=0.2, seed=0)
        torch.manual_seed(0)
        self.model = backbones.build("tiny", HeadSpec(len(splits.labels)))
        self.model.freeze(self.hyperparameters.trainable, 32)  # type: ignore[arg-type]
        self.recorder = Recorder()
        self.train = self.loader(splits.train, shuffle=True)
        self.validation = self.loader(splits.validation, shuffle=False)
        self.loop = Loop(
            model=self.model,
            criterion=nn.CrossEntropyLoss(),
            prepare=SPEC.normalise,
            classes=len(splits.labels),
            compute=compute.choose("fp32"),
            observers=[self.recorder],
            corrupt=CorruptImages(splits.images, self.hyperparameters.max_corrupt_fraction),
            stop_requested=stop,
        )

    def loader(self, samples: Sequence[object], *, shuffle: bool) -> EpochLoader:
        return make_loader(
            samples,  # type: ignore[arg-type]
            SPEC.centre_view,
            batch_size=9,
            workers=0,
            seed=0,
            shuffle=shuffle,
            pin=False,
        )

    def state(self) -> FitState:
        optimizer = make_optimizer(self.hyperparameters, self.model)
        steps = len(self.train) * self.hyperparameters.epochs
        return FitState(
            model=self.model,
            optimizer=optimizer,
            schedule=make_schedule(self.hyperparameters, optimizer, steps=steps),
            averaging=make_averaging(self.hyperparameters.ema, self.model),
            scaler=self.loop.compute.make_scaler(),
            selection=Selection(
                maximise=self.hyperparameters.objective.endswith("accuracy"),
                patience=self.hyperparameters.patience,
                min_delta=0.0,
                min_epochs=0,
            ),
            learnt=PassMetrics(self.loop.compute.device),
        )

    def fit(self, state: FitState | None = None, keeper: Keeper | None = None) -> FitResult:
        return self.loop.fit(
            self.train,
            self.validation,
            state or self.state(),
            epochs=self.hyperparameters.epochs,
            objective=self.hyperparameters.objective,
            keeper=keeper or NoKeeper(),
        )


def test_training_lowers_the_loss(drawn_data: Path) -> None:
    fit = Setup(drawn_data, epochs=8).fit()
    losses = [result.metrics["train_loss"] for result in fit.history]
    assert losses[-1] < 0.6 * losses[0]
    assert fit.ended_by == "epochs"


def test_the_first_steps_of_the_tiny_network_give_the_losses_on_record(drawn_data: Path) -> None:
    """Golden losses: whatever moves them changed initialisation, order, preprocessing or arithmetic."""
    fit = Setup(drawn_data, epochs=2).fit()
    losses = [result.metrics["train_loss"] for result in fit.history]
    assert losses == pytest.approx([1.18379, 1.06922], rel=5e-3)


def test_the_same_job_twice_gives_the_same_weights(drawn_data: Path) -> None:
    first, second = Setup(drawn_data).fit().weights, Setup(drawn_data).fit().weights
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_observers_are_told_of_every_pass_batch_and_epoch(drawn_data: Path) -> None:
    setup = Setup(drawn_data, epochs=1)
    setup.fit()
    assert setup.recorder.told == [
        "train 1: 2",
        "train",
        "train",
        "train over",
        "validation 1: 1",
        "validation",
        "validation over",
        "epoch 1",
    ]


def test_the_weights_of_the_best_epoch_are_kept_not_the_last(drawn_data: Path) -> None:
    setup = Setup(drawn_data, epochs=4, lr=0.05, objective="validation_loss", patience=0)
    fit = setup.fit()
    losses = [result.metrics["validation_loss"] for result in fit.history]
    assert fit.best_epoch == losses.index(min(losses)) + 1
    setup.model.load_state_dict(fit.weights)
    again = setup.loop.evaluate(setup.validation, Phase.VALIDATION, 1)
    assert again is not None
    assert again.loss == pytest.approx(min(losses), rel=1e-5)
    assert fit.best_validation is not None
    assert fit.best_validation.confusion == again.confusion


def test_a_frozen_backbone_keeps_its_weights_and_its_batchnorm_statistics(drawn_data: Path) -> None:
    setup = Setup(drawn_data, trainable="head")
    before = {name: tensor.clone() for name, tensor in setup.model.backbone.state_dict().items()}
    head = setup.model.head.linear.weight.clone()
    setup.fit()
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.model.backbone.state_dict().items())
    assert not torch.equal(setup.model.head.linear.weight, head)


def test_early_stopping_ends_the_job(drawn_data: Path) -> None:
    fit = Setup(drawn_data, epochs=50, lr=1e-7, patience=1).fit()
    assert fit.ended_by == "early stopping"
    assert len(fit.history) < 50


@pytest.mark.parametrize(("steps", "epochs", "best"), [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 1, 1)])
def test_a_stop_is_seen_at_the_next_step_and_keeps_the_best_epoch_so_far(
    drawn_data: Path, steps: int, epochs: int, best: int
) -> None:
    asked = iter(range(1000))
    fit = Setup(drawn_data, epochs=9, stop=lambda: next(asked) >= steps).fit()
    assert (len(fit.history), fit.best_epoch, fit.ended_by) == (epochs, best, "stop signal")
    assert "head.linear.weight" in fit.weights


def test_a_loss_that_is_not_finite_ends_the_job_with_advice(drawn_data: Path) -> None:
    setup = Setup(drawn_data)
    with torch.no_grad():
        setup.model.head.linear.bias.fill_(float("nan"))
    with pytest.raises(HyperparameterError, match=r"loss became nan in epoch 1, step 1, at learning rate .* lower lr"):
        setup.fit()


class Rates:
    """Notes the head's rate at each step of an optimizer."""

    def __init__(self, state: FitState) -> None:
        self.seen: list[float] = []
        self._state = state
        self._step = state.scaler.step
        state.scaler.step = self  # type: ignore[method-assign, assignment]

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])
        self._step(optimizer)


@pytest.mark.parametrize(
    "schedule", [{"schedule": "step", "step_epochs": 1}, {"schedule": "cosine"}, {"schedule": "plateau", "gamma": 0.5}]
)
def test_the_rate_that_is_told_of_an_epoch_is_that_of_its_last_step(
    drawn_data: Path, schedule: dict[str, object]
) -> None:
    setup = Setup(drawn_data, epochs=3, warmup_epochs=0.5, plateau_patience=1, patience=0, **schedule)
    state = setup.state()
    rates = Rates(state)
    memory = Memory()
    fit = setup.fit(state, memory)
    assert [result.learning_rate for result in fit.history] == pytest.approx(rates.seen[1::2])
    assert all(result.learning_rate > 0 for result in fit.history)
    # Kept behind the last step of an epoch, and gone on from there: that step is done by another start of the job.
    resumed = Setup(drawn_data, epochs=3, warmup_epochs=0.5, plateau_patience=1, patience=0, **schedule)
    again = resumed.state()
    again.load_state_dict(next(one for one in memory.states if (one["epoch"], one["batch"]) == (2, 2)))
    assert [result.learning_rate for result in resumed.fit(again).history] == pytest.approx(rates.seen[1::2])


def test_the_rate_in_the_message_of_a_loss_that_is_not_finite_is_that_of_the_step(drawn_data: Path) -> None:
    setup = Setup(drawn_data, epochs=1, schedule="cosine", warmup_epochs=0)
    with torch.no_grad():
        setup.model.head.linear.bias.fill_(float("nan"))
    with pytest.raises(HyperparameterError, match=r"in epoch 1, step 1, at learning rate 0\.01; "):
        setup.fit()


def test_corrupt_images_count_once_and_end_the_job_above_the_limit() -> None:
    corrupt = CorruptImages(10, 0.2)
    corrupt.add(("a", "b"))
    corrupt.add(("a",))
    assert corrupt.found == ("a", "b")
    with pytest.raises(
        DataError, match=r"3 of 10 images cannot be decoded, more than max-corrupt-fraction=0.2; the first is a"
    ):
        corrupt.add(("c",))


class Finder(Team):
    """One of two processes, of which the other has found an unreadable image too."""

    def gather(self, value: T) -> list[T]:
        return [("other.jpg (truncated)",), value] if isinstance(value, tuple) else [value]  # type: ignore[list-item]


def test_the_corrupt_images_of_all_processes_count_together() -> None:
    corrupt = CorruptImages(20, 0.1)
    corrupt.add(("own.jpg (empty)",))
    for _ in range(2):
        corrupt.gather(Finder(size=2))
        assert corrupt.found == ("other.jpg (truncated)", "own.jpg (empty)")
    corrupt.gather(Team())
    strict = CorruptImages(20, 0.05)
    strict.add(("own.jpg (empty)",))
    with pytest.raises(DataError, match="2 of 20 images cannot be decoded"):
        strict.gather(Finder(size=2))


def test_what_each_process_found_in_a_pass_is_known_after_it(drawn_data: Path) -> None:
    for run in (
        lambda setup: setup.loop.evaluate(Few(4), Phase.VALIDATION, 1),
        lambda setup: setup.fit(),
    ):
        setup = beside(5, Setup(drawn_data, epochs=1, max_corrupt_fraction=1.0))
        team = Gathering(rank=0, size=2)
        object.__setattr__(team, "other", setup.loop.team.other)  # type: ignore[attr-defined]
        setup.loop = replace(setup.loop, team=team)
        setup.train = Few(4, corrupt=("own.jpg (empty)",))  # type: ignore[assignment]
        run(setup)
        assert setup.loop.corrupt.found[0] == "other.jpg (truncated)"


def test_a_pass_without_one_decodable_image_is_an_error(drawn_data: Path) -> None:
    setup = Setup(drawn_data, max_corrupt_fraction=1.0)

    class Empty:
        def __len__(self) -> int:
            return 0

        def epoch(self, number: int, start: int = 0) -> list[object]:
            return []

    with pytest.raises(DataError, match="not one validation image could be decoded"):
        setup.loop.evaluate(Empty(), Phase.VALIDATION, 1)  # type: ignore[arg-type]


class Companion(Team):
    """One of two processes; what the other one counts at each step is a value of the test."""

    other: tuple[int, ...] = ()
    adds: float = 0.0

    def total(self, *counts: int) -> tuple[int, ...]:
        return tuple(map(sum, zip(counts, self.other, strict=True))) if len(counts) == len(self.other) else counts

    def add_up(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, value: T) -> list[T]:
        return [value]

    def averaging(self, model: nn.Module) -> nn.Module:
        return _Sparing(model)

    def average_buffers(self, buffers: Iterable[Tensor], share: float | None = None) -> None:
        shares.append(share)
        for buffer in buffers:
            if buffer.is_floating_point() and self.adds:
                buffer.add_(self.adds)


shares: list[float | None] = []


class Gathering(Companion, Finder):
    """Both at once."""

    gather = Finder.gather


class Few:
    """Batches of so many samples, of which the others could not be read."""

    def __init__(self, *sizes: int, corrupt: tuple[str, ...] = (), side: int = 32) -> None:
        self.sizes, self.corrupt, self.side = sizes, corrupt, side

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for size in self.sizes[start:]:
            images = torch.full((size, 3, self.side, self.side), 90, dtype=torch.uint8)
            left_out = tuple(LeftOut(size + place, problem) for place, problem in enumerate(self.corrupt))
            yield Batch(images, torch.arange(size) % 3, left_out)


def beside(other: int, setup: Setup) -> Setup:
    """The set-up as one of two processes, of which the other has so many samples in each batch."""
    team = Companion(rank=0, size=2)
    object.__setattr__(team, "other", (0, 0, other, 0, other == 0))
    setup.loop = replace(setup.loop, team=team)
    shares.clear()
    return setup


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_a_process_without_samples_steps_with_the_others_on_gradients_of_zero(drawn_data: Path, trainable: str) -> None:
    setup = beside(5, Setup(drawn_data, trainable=trainable, epochs=1, optimizer="sgd", weight_decay=0.0))
    before = [parameter.detach().clone() for parameter in setup.model.parameters()]
    setup.train = Few(0, 0, 4)  # type: ignore[assignment]
    state = setup.state()
    seen: list[bool] = []
    step = state.optimizer.step

    def watched() -> None:
        step()
        same = [torch.equal(one, now) for one, now in zip(before, setup.model.parameters(), strict=True)]
        learning = [parameter for parameter in setup.model.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in learning)
        seen.append(all(same))

    state.scaler.step = lambda optimizer: watched()  # type: ignore[method-assign, assignment]
    setup.fit(state)
    assert seen == [True, True, False]
    assert state.schedule.state_dict()["step"] == 3
    # Where norm layers learn, who saw nothing takes over what the other saw; None is the epoch's end.
    assert shares == ([0.0, 0.0, None] if trainable == "all" else [None])


def test_a_single_sample_teaches_no_batchnorm_and_observers_hear_of_it(drawn_data: Path) -> None:
    setup = beside(5, Setup(drawn_data, epochs=1))
    setup.train = Few(1, 4)  # type: ignore[assignment]
    state = setup.state()
    setup.fit(state)
    assert setup.recorder.told[:4] == ["train 1: 2", "left out 1", "train", "train"]
    assert state.schedule.state_dict()["step"] == 2
    assert shares == [0.0, None]
    kept = beside(5, Setup(drawn_data, epochs=1, trainable="head"))
    kept.train = Few(1, 4)  # type: ignore[assignment]
    kept.fit()
    assert "left out 1" not in kept.recorder.told
    assert shares == [None]


def test_the_average_of_weights_is_validated_with_the_statistics_of_all_processes(drawn_data: Path) -> None:
    """Here the mean over processes is one more than each process's own."""
    setup = beside(5, Setup(drawn_data, epochs=1, ema=0.9))
    object.__setattr__(setup.loop.team, "adds", 1.0)
    setup.train = Few(4, 4)  # type: ignore[assignment]
    state = setup.state()
    judged: list[dict[str, Tensor]] = []
    evaluate = Loop.evaluate

    def watched(loop: Loop, *arguments: object) -> PassMetrics | None:
        judged.append({name: buffer.clone() for name, buffer in setup.model.named_buffers()})
        return evaluate(loop, *arguments)  # type: ignore[arg-type]

    before: dict[str, Tensor] = {}
    gather = CorruptImages.gather

    def note(corrupt: CorruptImages, team: Team) -> None:
        before.update(
            {name: tensor.clone() for name, tensor in state.averaging.state_dict().items()} if not before else {}
        )
        gather(corrupt, team)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loop, "evaluate", watched)
        patched.setattr(CorruptImages, "gather", note)
        fit = setup.fit(state)
    statistics = [name for name, buffer in setup.model.named_buffers() if buffer.is_floating_point()]
    assert statistics
    for name in statistics:
        assert torch.allclose(judged[0][name], before[name] + 1)
        assert torch.equal(fit.weights[name], judged[0][name]), "and is what is kept"


def test_where_every_sample_stands_alone_the_error_says_so(drawn_data: Path) -> None:
    setup = beside(0, Setup(drawn_data, epochs=1))
    setup.train = Few(1, 1)  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"each of 2 readable train images stood alone.*batch-statistics=keep"):
        setup.fit()


def test_a_sample_that_unreadable_ones_leave_alone_teaches_nothing_but_one_that_was_asked_for_does(
    drawn_data: Path,
) -> None:
    for corrupt, left_out in (("x",), 1), ((), 0):
        setup = Setup(drawn_data, epochs=1, max_corrupt_fraction=1.0)
        setup.train = Few(1, 4, corrupt=corrupt)  # type: ignore[assignment]
        state = setup.state()
        setup.fit(state)
        assert setup.recorder.told.count("left out 1") == left_out
        assert state.schedule.state_dict()["step"] == 2 - left_out


@pytest.mark.parametrize(
    ("samples", "parts", "fewest", "sizes"),
    [
        (8, 1, 2, [8]),
        (8, 8, 1, [1] * 8),
        (8, 8, 2, [2] * 4),
        (7, 7, 2, [3, 2, 2]),
        (1, 4, 2, [1]),
        (9, 4, 1, [3, 2, 2, 2]),
    ],
)
def test_the_parts_of_a_batch(samples: int, parts: int, fewest: int, sizes: list[int]) -> None:
    (batch,) = Few(samples).epoch(1)
    found = _split(batch, parts, fewest)
    assert [len(part.indices) for part in found] == [len(part.images) for part in found] == sizes
    assert torch.equal(torch.cat([part.indices for part in found]), batch.indices)


def test_parts_of_a_batch_leave_batchnorm_no_single_sample(drawn_data: Path) -> None:
    """At 16 pixels the last maps are down to one, which BatchNorm refuses of one sample."""
    setup = Setup(drawn_data, epochs=1)
    setup.loop = replace(setup.loop, accumulate=8)
    setup.train = Few(8, 3, side=16)  # type: ignore[assignment]
    assert setup.fit().ended_by == "epochs"


def test_batches_of_one_sample_with_maps_of_one_pixel_are_refused_with_a_way_out(drawn_data: Path) -> None:
    setup = Setup(drawn_data, epochs=1)
    setup.train = Few(1, side=16)  # type: ignore[assignment]
    with pytest.raises(HyperparameterError, match=r"set batch-size to 2 or more, batch-statistics=keep"):
        setup.fit()


def test_a_training_pass_without_one_decodable_image_is_not_taken_for_a_loss_that_is_not_finite(
    drawn_data: Path,
) -> None:
    setup = Setup(drawn_data, max_corrupt_fraction=1.0)
    setup.train = Few(0, 0, corrupt=("x",))  # type: ignore[assignment]
    with pytest.raises(DataError, match="not one train image could be decoded"):
        setup.fit()


class Memory:
    """A keeper that keeps every step in memory."""

    def __init__(self) -> None:
        self.states: list[dict[str, object]] = []

    def due(self) -> bool:
        return True

    def keep(self, state: FitState) -> None:
        self.states.append(copy.deepcopy(state.state_dict()))


def test_a_fit_that_goes_on_from_any_step_ends_with_the_same_weights_and_history(drawn_data: Path) -> None:
    """Dropout, momentum, schedule, order, best epoch: whatever is forgotten shows here."""
    options = {"epochs": 3, "dropout": 0.5, "optimizer": "sgd", "patience": 0}
    memory = Memory()
    whole = Setup(drawn_data, **options).fit(keeper=memory)
    assert len(memory.states) == 3 * (2 + 1) + 1
    for kept in memory.states:
        setup = Setup(drawn_data, **options)
        torch.manual_seed(123)
        state = setup.state()
        state.load_state_dict(kept)
        again = setup.fit(state)
        assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)
        assert [result.metrics for result in again.history] == [result.metrics for result in whole.history]
        assert again.best_epoch == whole.best_epoch
        assert setup.recorder.behind == (
            whole.history[: len(kept["history"])],  # type: ignore[arg-type]
            (kept["epoch"] - 1) * 2 + kept["batch"],  # type: ignore[operator]
        )


def test_an_early_stopped_fit_that_is_continued_stays_stopped(drawn_data: Path) -> None:
    memory = Memory()
    first = Setup(drawn_data, epochs=50, lr=1e-7, patience=1).fit(keeper=memory)
    setup = Setup(drawn_data, epochs=50, lr=1e-7, patience=1)
    state = setup.state()
    state.load_state_dict(memory.states[-1])
    again = setup.fit(state)
    assert (again.ended_by, len(again.history)) == ("early stopping", len(first.history))
