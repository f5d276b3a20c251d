"""Many heads tried at once: each must be what it is alone, and the best of them what the job goes on with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dogbreed.artifacts import clone_weights
from dogbreed.backbones import Classifier, HeadSpec
from dogbreed.errors import DataError, HyperparameterError
from dogbreed.hyperparameters import SEARCHED_IN_JOB, Hyperparameters, declared
from dogbreed.training import compute, tryout
from dogbreed.training.averaging import make_averaging
from dogbreed.training.features import FeatureBatches, FeatureStore
from dogbreed.training.loop import CorruptImages, FitResult, Loop, NoKeeper
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.mixing import SmoothedCrossEntropyLoss, make_mixing
from dogbreed.training.optim import make_optimizer, make_schedule
from dogbreed.training.selection import Selection
from dogbreed.training.state import FitState

CPU = torch.device("cpu")
FEATURES, CLASSES = 12, 4


def store(count: int, seed: int) -> FeatureStore:
    """Features around a centre per class, so near to one another that no head gets all of them right."""
    generator = np.random.default_rng(seed)
    indices = generator.integers(CLASSES, size=count)
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES))
    outputs = centres[indices] + 2.0 * generator.normal(size=(count, FEATURES))
    return FeatureStore(outputs[None].astype(np.float16), indices.astype(np.int64), (), "")


TRAIN, VALIDATION = store(90, 1), store(50, 2)


def feed(recipe: Hyperparameters) -> tuple[FeatureBatches, FeatureBatches]:
    batches = [
        FeatureBatches(one, batch_size=recipe.batch_size, seed=recipe.seed, shuffle=shuffle, device=CPU)
        for one, shuffle in ((TRAIN, True), (VALIDATION, False))
    ]
    return batches[0], batches[1]


def make_head(recipe: Hyperparameters) -> nn.Sequential:
    torch.manual_seed(recipe.seed)
    return Classifier(nn.Identity(), FEATURES, HeadSpec(CLASSES, recipe.hidden_units, recipe.dropout)).head


def alone(recipe: Hyperparameters) -> FitResult:
    """The same head in a loop of its own, with torch's own optimizer."""
    head = make_head(recipe)
    loop = Loop(
        model=head,
        prepare=Tensor.float,
        classes=CLASSES,
        criterion=SmoothedCrossEntropyLoss(label_smoothing=recipe.label_smoothing),
        compute=compute.choose("fp32"),
        observers=[],
        corrupt=CorruptImages(1, 0.0),
        stop_requested=lambda: False,
        seed=recipe.seed,
        clip_norm=recipe.clip_norm,
        mix=make_mixing(recipe, CLASSES),
    )
    train, validation = feed(recipe)
    optimizer = make_optimizer(recipe, head)
    state = FitState(
        model=head,
        optimizer=optimizer,
        schedule=make_schedule(recipe, optimizer, steps=len(train) * recipe.epochs),
        averaging=make_averaging(recipe.ema, head),
        scaler=loop.compute.make_scaler(),
        selection=Selection(
            recipe.objective.endswith("accuracy"), recipe.patience, recipe.min_delta, recipe.min_epochs
        ),
        learnt=PassMetrics(CPU),
    )
    return loop.fit(train, validation, state, epochs=recipe.epochs, objective=recipe.objective, keeper=NoKeeper())


def search(
    recipes: list[Hyperparameters] | tuple[Hyperparameters, ...], stop: Callable[[], bool] = lambda: False
) -> tryout.Tryout:
    return tryout.try_heads(recipes, make_head, feed, device=CPU, classes=CLASSES, stop_requested=stop)


RECIPES = {
    "adamw": {},
    "adam": {"optimizer": "adam"},
    "sgd": {"optimizer": "sgd"},
    "nesterov": {"optimizer": "sgd", "nesterov": True},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0},
    "all decays": {"decay_norm_and_bias": True},
    "hidden": {"hidden_units": 7},
    "smoothed": {"label_smoothing": 0.1},
    "mixed": {"mixup": 0.4},
    "clipped": {"clip_norm": 0.05},
    "averaged": {"ema": 0.9},
    "steps": {"schedule": "step", "step_epochs": 2},
    "plateau": {"schedule": "plateau", "plateau_patience": 1},
    "warm": {"warmup_epochs": 2.0},
    "the head's own rate": {"head_lr_factor": 3.0},
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_a_head_learns_in_a_stack_what_it_learns_alone(options: dict[str, object]) -> None:
    """As the same head in the job's own loop: losses within 1e-4 of themselves, weights within 1e-4.

    The stack adds up in another order, which is all that may differ; 40 steps let that grow.
    """
    base = Hyperparameters(epochs=8, batch_size=20, dropout=0.3, patience=3, objective="validation_loss", **options)  # type: ignore[arg-type]
    recipes = [
        replace(base, lr=lr, weight_decay=decay) for lr, decay in ((0.02, 0.1), (0.001, 0.0), (0.3, 0.001), (0.05, 1.0))
    ]
    found = search(recipes)
    expected = [alone(recipe) for recipe in recipes]
    for trial, fit in zip(found.trials, expected, strict=True):
        assert trial.metrics["validation_loss"] == pytest.approx(fit.metrics["validation_loss"], rel=1e-4)
        assert trial.metrics["validation_accuracy"] == pytest.approx(fit.metrics["validation_accuracy"])
        assert (trial.best_epoch, trial.epochs) == (fit.best_epoch, len(fit.history))
        assert trial.ended_by == fit.ended_by
    assert found.best is not None
    best = min(range(4), key=lambda number: expected[number].metrics["validation_loss"])
    assert found.best.number == best + 1
    for name, weight in found.weights.items():
        torch.testing.assert_close(weight, expected[best].weights[name], atol=1e-4, rtol=1e-4)


def test_some_end_early_and_the_others_go_on() -> None:
    base = Hyperparameters(epochs=12, batch_size=20, patience=2, min_epochs=2, dropout=0.0)
    found = search([replace(base, lr=lr) for lr in (1.0, 0.0005, 0.1)])
    assert len({trial.epochs for trial in found.trials}) > 1, "else nothing was taken out of the stack"
    for trial in found.trials:
        assert trial.epochs == len(alone(trial.hyperparameters).history)


def test_what_differs_in_more_is_trained_apart_and_keeps_its_number() -> None:
    base = Hyperparameters(epochs=3, batch_size=20)
    recipes = [base, replace(base, hidden_units=5), replace(base, lr=0.01), replace(base, hidden_units=5, lr=0.1)]
    found = search(recipes)
    assert [trial.number for trial in found.trials] == [1, 2, 3, 4]
    assert [trial.hyperparameters for trial in found.trials] == recipes
    for trial in found.trials:
        fit = alone(trial.hyperparameters)
        assert trial.metrics["validation_loss"] == pytest.approx(fit.metrics["validation_loss"], rel=1e-4)


def test_of_equals_the_first_is_best() -> None:
    base = Hyperparameters(epochs=2, batch_size=20)
    found = search([base, replace(base, min_epochs=2), base])
    assert found.best is not None
    assert found.best.number == 1
    assert len({trial.metrics["validation_accuracy"] for trial in found.trials}) == 1


def test_a_head_that_diverges_is_a_row_and_spoils_no_other() -> None:
    base = Hyperparameters(epochs=15, batch_size=20, optimizer="sgd", schedule="constant", patience=0)
    found = search([replace(base, lr=10.0, weight_decay=0.9), replace(base, lr=10.0, weight_decay=1.0), base])
    assert found.trials[0].ended_by == "a loss that is not finite"
    assert not found.trials[0].metrics
    assert found.best is not None
    assert found.best.number == 3, "a job with what diverges would fail, however well it begins"
    assert found.trials[2].metrics["validation_loss"] == pytest.approx(alone(base).metrics["validation_loss"], rel=1e-4)


def test_when_all_diverge_there_is_one_sentence() -> None:
    wild = Hyperparameters(
        epochs=6, batch_size=20, optimizer="sgd", schedule="constant", lr=10.0, weight_decay=1.0, head_lr_factor=1000.0,
        objective="validation_loss", patience=0,
    )  # fmt: skip
    recipes = [wild, replace(wild, lr=9.0)]
    with pytest.raises(HyperparameterError, match="none of 2 heads has a loss that stays finite; lower lr"):
        search(recipes)


def test_without_one_validation_image_it_is_said_as_without_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "VALIDATION", store(0, 2))
    with pytest.raises(DataError, match="not one validation image could be decoded"):
        search([Hyperparameters(epochs=2)])


def test_a_stop_keeps_the_best_so_far() -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20  # 5 steps and 3 batches of validation an epoch: in the third

    base = Hyperparameters(epochs=10, batch_size=20)
    found = search([base, replace(base, lr=0.05), replace(base, hidden_units=4)], stop)
    assert found.stopped
    assert [trial.number for trial in found.trials] == [1, 2], "the third was not begun"
    assert {trial.ended_by for trial in found.trials} == {"stop signal"}
    assert {trial.epochs for trial in found.trials} == {2}
    assert found.best is not None
    head = make_head(found.best.hyperparameters)
    head.load_state_dict(found.weights)
    head.eval()
    accuracy = head(torch.from_numpy(VALIDATION.outputs[0]).float()).argmax(1) == torch.from_numpy(VALIDATION.indices)
    assert float(accuracy.float().mean()) == pytest.approx(found.best.metrics["validation_accuracy"])


def test_a_stop_before_the_first_epoch_leaves_nothing() -> None:
    found = search([Hyperparameters(batch_size=20), Hyperparameters(batch_size=20, lr=0.01)], lambda: True)
    assert found.stopped
    assert found.best is None
    assert not found.weights


def test_draws_begin_with_what_was_given_and_stay_in_their_ranges() -> None:
    chosen = Hyperparameters(lr=0.5, search_trials=40, search_over="all", seed=3)
    recipes = tryout.draw(chosen)
    assert len(recipes) == 40
    assert recipes[0] == replace(chosen, search_trials=0)
    assert recipes == tryout.draw(chosen)
    assert recipes[1:] != tryout.draw(replace(chosen, seed=4))[1:]
    for recipe in recipes[1:]:
        for name in SEARCHED_IN_JOB:
            value, range_ = recipe.as_dict()[name], declared(name).search
            assert range_ is not None
            if range_.choices:
                assert value in range_.choices
            else:
                assert range_.low <= value <= range_.high  # type: ignore[operator]
        unsearched = {
            name: value for name, value in recipe.as_dict().items() if name not in (*SEARCHED_IN_JOB, "search-trials")
        }
        assert unsearched.items() <= chosen.as_dict().items()
    assert len({recipe.lr for recipe in recipes}) == 40
    assert {recipe.optimizer for recipe in recipes} == {"sgd", "adam", "adamw"}
    rates = sorted(math.log10(recipe.lr) for recipe in recipes[1:])
    assert max(after - before for before, after in pairwise(rates)) < 0.3, "spread evenly"


def test_draws_that_cannot_go_together_are_drawn_again() -> None:
    chosen = Hyperparameters(accumulate=64, batch_size=64, search_trials=12, search_over="batch-size+lr")
    recipes = tryout.draw(chosen)
    assert len(recipes) == 12
    assert {recipe.batch_size for recipe in recipes} == {64, 128, 256}


def test_when_nothing_that_is_drawn_can_go_together_it_is_said() -> None:
    chosen = Hyperparameters(accumulate=500, batch_size=500, search_trials=3, search_over="batch-size")
    with pytest.raises(HyperparameterError, match=r"search-over=batch-size.*accumulate=500 cannot split batch-size"):
        tryout.draw(chosen)


def test_the_report_has_all_trials_and_a_recipe_that_a_job_reads(tmp_path: Path) -> None:
    given = Hyperparameters.parse({"preset": "resnet18", "epochs": "20", "search-trials": "5", "lr": "0.0012345678"})
    chosen = replace(given, batch_size=20)
    tried = search(tryout.draw(chosen))
    found = json.loads(json.dumps(tryout.report(tried, chosen)))
    assert [trial["trial"] for trial in found["trials"]] == ["1", "2", "3", "4", "5"]
    assert found["trials"][0]["hyperparameters"] == {"lr": "0.0012345678", "weight-decay": "0.0"}
    assert tried.best is not None
    again = Hyperparameters.parse(found["hyperparameters"])
    assert replace(again, preset="resnet18") == tried.best.hyperparameters, "also where a value is the default"
    told = tryout.lines(tried, chosen)
    assert len(told) == 5
    assert f"head {found['trial']:>3}: {found['value']:.4f}" in told[0]


def test_weights_that_are_handed_over_are_copies() -> None:
    found = search([Hyperparameters(epochs=1, batch_size=20)])
    assert all(not weight.requires_grad for weight in found.weights.values())
    assert clone_weights(make_head(Hyperparameters())).keys() == found.weights.keys()


def learner(number: int, value: float, objective: str = "validation_accuracy") -> tryout._Learner:
    made = tryout._begin(number, Hyperparameters(objective=objective), 1)
    made.metrics = {objective: value}
    return made


@pytest.mark.parametrize(
    ("given", "best", "samples", "taken"),
    [
        (0.90, 0.92, 240, 1),  # one standard error is 0.0194, and 0.02 is more; see the next
        (0.90, 0.919, 240, 0),
        (0.90, 0.919, 2400, 1),  # more images tell smaller differences
        (0.50, 0.60, 24, 0),
        (1.0, 1.0, 24, 0),
    ],
)
def test_a_head_that_is_better_by_chance_alone_does_not_replace_what_was_given(
    given: float, best: float, samples: int, taken: int
) -> None:
    found = tryout._Search(CPU, CLASSES, lambda: False, 2)
    learners = [learner(1, given), learner(2, best)]
    found.first, found.samples = learners[0], samples
    found.best = min(learners, key=lambda one: one.rank)
    assert tryout._worth_taking(found) is learners[taken]


def test_by_a_loss_or_where_what_was_given_has_failed_the_best_head_is_taken() -> None:
    found = tryout._Search(CPU, CLASSES, lambda: False, 2)
    found.samples = 4
    found.first, found.best = learner(1, 0.5, "validation_loss"), learner(2, 0.49, "validation_loss")
    assert tryout._worth_taking(found) is found.best
    found.first, found.best = learner(1, 0.5), learner(2, 0.51)
    assert tryout._worth_taking(found) is found.first
    found.first.metrics = {}
    assert tryout._worth_taking(found) is found.best
