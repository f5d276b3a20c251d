from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from dogbreed import backbones
from dogbreed.backbones import HeadSpec
from dogbreed.errors import DataError, HyperparameterError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute
from dogbreed.training.averaging import make_averaging
from dogbreed.training.data import EpochLoader, find_splits, make_loader
from dogbreed.training.loop import CorruptImages, FitResult, Keeper, Loop, NoKeeper, Phase
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.optim import make_optimizer, make_schedule
from dogbreed.training.selection import Selection
from dogbreed.training.state import EpochResult, FitState

SPEC = PreprocessSpec.for_size(32)


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_pass_start(self, phase: Phase, epoch: int, batches: int) -> None:
        self.told.append(f"{phase.value} {epoch}: {batches}")

    def on_part(self, part: str) -> None:
        pass

    def on_batch(self, phase: Phase) -> None:
        self.told.append(phase.value)

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


def test_corrupt_images_count_once_and_end_the_job_above_the_limit() -> None:
    corrupt = CorruptImages(10, 0.2)
    corrupt.add(("a", "b"))
    corrupt.add(("a",))
    assert corrupt.found == ("a", "b")
    with pytest.raises(
        DataError, match=r"3 of 10 images cannot be decoded, more than max-corrupt-fraction=0.2; the first is a"
    ):
        corrupt.add(("c",))


def test_a_pass_without_one_decodable_image_is_an_error(drawn_data: Path) -> None:
    setup = Setup(drawn_data, max_corrupt_fraction=1.0)

    class Empty:
        def __len__(self) -> int:
            return 0

        def epoch(self, number: int, start: int = 0) -> list[object]:
            return []

    with pytest.raises(DataError, match="not one validation image could be decoded"):
        setup.loop.evaluate(Empty(), Phase.VALIDATION, 1)  # type: ignore[arg-type]


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


def test_an_early_stopped_fit_that_is_continued_stays_stopped(drawn_data: Path) -> None:
    memory = Memory()
    first = Setup(drawn_data, epochs=50, lr=1e-7, patience=1).fit(keeper=memory)
    setup = Setup(drawn_data, epochs=50, lr=1e-7, patience=1)
    state = setup.state()
    state.load_state_dict(memory.states[-1])
    again = setup.fit(state)
    assert (again.ended_by, len(again.history)) == ("early stopping", len(first.history))
