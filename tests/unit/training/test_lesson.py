"""What is learnt in which order, and from what."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from dogbreed import backbones, calibration
from dogbreed.backbones import Classifier, Cut, HeadSpec
from dogbreed.errors import ConfigurationError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.insight import tensors
from dogbreed.insight.rules.registry import parse_rules
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, data, lesson
from dogbreed.training.compute import Compute
from dogbreed.training.data import Loading, Splits, find_splits
from dogbreed.training.features import read_store
from dogbreed.training.lesson import Lesson, Taught
from dogbreed.training.loop import CorruptImages, Loop, Phase
from dogbreed.training.mixing import SmoothedCrossEntropyLoss
from dogbreed.training.state import EpochResult

SPEC = PreprocessSpec.for_size(32)


class Recorder:
    def __init__(self) -> None:
        self.passes: list[tuple[Phase, int]] = []
        self.epochs = 0

    def on_fit_start(self, history: Sequence[EpochResult], batches: int) -> None: ...

    def on_pass_start(self, phase: Phase, epoch: int, batches: int) -> None:
        self.passes.append((phase, batches))

    def on_part(self, part: str) -> None: ...

    def on_batch(self, phase: Phase) -> None: ...

    def on_left_out(self, samples: int) -> None: ...

    def on_pass_end(self, phase: Phase) -> None: ...

    def on_epoch_end(self, result: EpochResult) -> None:
        self.epochs += 1

    def count(self, phase: Phase) -> int:
        return sum(one is phase for one, _ in self.passes)


class Setup:
    def __init__(self, data: Path, cache: Path, **options: object) -> None:
        values = {"lr": 0.003, "epochs": 2, "image_size": 32, "batch_size": 9, "num_workers": 0, "dropout": 0.0}
        self.hyperparameters = Hyperparameters(**{**values, **options})  # type: ignore[arg-type]
        self.splits: Splits = find_splits({"train": data}, validation_fraction=0.2, seed=0)
        torch.manual_seed(0)
        self.model: Classifier = backbones.build("tiny", HeadSpec(len(self.splits.labels)))
        self.model.freeze(
            self.hyperparameters.trainable,  # type: ignore[arg-type]
            32,
            keep_statistics=self.hyperparameters.keeps_statistics,
        )
        self.recorder = Recorder()
        self.watched: list[nn.Module] = []
        self.loading: Loading | None = None
        loop = Loop(
            model=self.model,
            criterion=SmoothedCrossEntropyLoss(),
            prepare=SPEC.normalise,
            classes=len(self.splits.labels),
            compute=compute.choose("fp32"),
            observers=[self.recorder],
            corrupt=CorruptImages(self.splits.images, 0.1),
            stop_requested=lambda: False,
        )
        self.lesson = Lesson(loop, SPEC, self.hyperparameters, self.watch)
        self.cache = cache

    def watch(
        self, learning: nn.Module, criterion: nn.Module, scale: Callable[[], float], loading: Loading | None
    ) -> None:
        self.watched.append(learning)
        self.loading = loading

    def teach(self) -> Taught:
        return self.lesson.teach(self.model, self.splits, cache=self.cache, checkpoints=None)


def statistics(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


@pytest.mark.parametrize("workers", [0, 2])
def test_who_watches_is_told_who_loads_the_images_and_how_long_it_took(
    drawn_data: Path, tmp_path: Path, workers: int
) -> None:
    setup = Setup(drawn_data, tmp_path, trainable="all", head_epochs=0, num_workers=workers)
    setup.teach()
    assert setup.loading is not None
    assert (setup.loading.threads, setup.loading.processes) == (workers, 1)
    assert setup.loading.seconds() > 0


def test_where_stored_outputs_are_learnt_from_nobody_loads_images(drawn_data: Path, tmp_path: Path) -> None:
    setup = Setup(drawn_data, tmp_path, trainable="head")
    setup.teach()
    assert setup.loading is None


@pytest.mark.parametrize("trainable", ["all", "last_stage"])
def test_the_head_learns_before_the_layers_below_it(drawn_data: Path, tmp_path: Path, trainable: str) -> None:
    setup = Setup(drawn_data, tmp_path, trainable=trainable, head_epochs=6, pretrained=True)
    torch.manual_seed(1)
    taught = setup.teach()
    assert set(taught.head_metrics) >= {"validation_accuracy", "validation_loss"}
    assert taught.fit.metrics["validation_accuracy"] >= taught.head_metrics["validation_accuracy"]
    assert setup.recorder.epochs == len(taught.fit.history) == 2, "the head's epochs are not told as the job's"
    assert setup.recorder.count(Phase.TRAIN) == 6 + 2
    assert len(setup.watched) == 1, "and not watched"


@pytest.mark.parametrize("options", [{"trainable": "head"}, {"trainable": "all", "head_epochs": 0}])
def test_the_kept_weights_are_calibrated_on_the_validation_images(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.setattr(calibration, "MIN_IMAGES", 2)
    setup = Setup(drawn_data, tmp_path, epochs=3, **options)
    taught = setup.teach()
    found = taught.fitted.calibration
    assert found is not None
    assert found.images == len(setup.splits.validation)
    # Of the best epoch, which need not be the last.
    assert found.loss_before == pytest.approx(taught.fit.metrics["validation_loss"], rel=1e-3)
    assert found.loss < found.loss_before
    assert taught.fitted.familiarity is not None
    assert taught.fitted.familiarity.images == len(setup.splits.validation)
    assert taught.fitted.familiarity.kept >= calibration.KEPT
    assert setup.recorder.epochs == 3


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_the_calibration_is_told_as_what_it_is_and_not_as_a_test(
    drawn_data: Path, tmp_path: Path, trainable: str
) -> None:
    setup = Setup(drawn_data, tmp_path, trainable=trainable, head_epochs=0)
    setup.teach()
    assert (setup.recorder.count(Phase.CALIBRATION), setup.recorder.count(Phase.TEST)) == (1, 0)


def test_a_stop_spares_the_calibration(drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MIN_IMAGES", 2)
    setup = Setup(drawn_data, tmp_path, trainable="head", epochs=3)
    loop = replace(setup.lesson.loop, stop_requested=lambda: setup.recorder.epochs == 1)
    setup.lesson = replace(setup.lesson, loop=loop)
    taught = setup.teach()
    assert (taught.fit.ended_by, taught.fitted.calibration, taught.fitted.familiarity) == ("stop signal", None, None)


@dataclass(frozen=True)
class Scaled(Compute):
    """Float32 on the CPU with the loss scaling of float16 on a GPU."""

    def make_scaler(self) -> GradScaler:
        return GradScaler("cpu", init_scale=1024.0, enabled=True)


def test_gradients_under_loss_scaling_are_watched_as_they_are(drawn_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("smdebug", reason="the image has smdebug; this machine does not")

    def gradients(folder: Path, arithmetic: Compute) -> dict[str, float]:
        setup = Setup(drawn_data, tmp_path / "cache", trainable="all", head_epochs=0, epochs=1)
        hooks: list[tensors.TensorHook] = []

        def attach(learning: nn.Module, criterion: nn.Module, scale: Callable[[], float], _loading: object) -> None:
            wanted = tensors.wanted(parse_rules("VanishingGradient"))
            hooks.append(
                tensors.attach(learning, criterion, folder=folder, config=None, wanted=wanted, gradient_scale=scale)
            )

        setup.lesson = replace(setup.lesson, watch=attach, loop=replace(setup.lesson.loop, compute=arithmetic))
        setup.teach()
        (hook,) = hooks
        hook.close()
        assert not hook.failure
        return {name: one[0].values["abs_mean"] for name, one in hook.evidence()[1]["gradients"].items()}

    plain = gradients(tmp_path / "plain", compute.choose("fp32"))
    scaled = gradients(tmp_path / "scaled", Scaled(torch.device("cpu"), torch.float32))
    assert plain
    assert scaled == pytest.approx(plain, rel=1e-3)


def test_what_goes_into_the_head_comes_from_the_stored_maps(drawn_data: Path, tmp_path: Path) -> None:
    setup = Setup(drawn_data, tmp_path, trainable="last_stage", head_epochs=1, augment="none")
    setup.teach()
    assert setup.recorder.count(Phase.FEATURES) == 4, "images to maps and maps to features, train and validation"
    shapes = {tuple(array.shape[2:]) for array in stored(setup)}
    assert shapes == {(setup.model.features,), (64, 4, 4)}
    for array in stored(setup):
        if array.shape[2:] == (setup.model.features,) and array.shape[1] == len(setup.splits.train):
            break
    images = torch.cat([batch.images for batch in setup.lesson.images(setup.splits.train, SPEC.centre_view).epoch(0)])
    untouched = Setup(drawn_data, tmp_path, trainable="last_stage").model.eval()
    with torch.no_grad():
        expected = untouched.backbone(SPEC.normalise(images))
    torch.testing.assert_close(array[0].float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("trainable", "views"), [("last_stage", 1), ("head", 2)])
def test_maps_are_mirrored_and_not_stored_twice(drawn_data: Path, tmp_path: Path, trainable: str, views: int) -> None:
    setup = Setup(drawn_data, tmp_path, trainable=trainable, head_epochs=0, augment="flip")
    setup.teach()
    train = [array for array in stored(setup) if array.shape[1] == len(setup.splits.train)]
    assert [len(array) for array in train] == [views], "features have no side to be mirrored"


@pytest.mark.parametrize(
    ("shape", "found"), [((96, 14, 14), True), ((14, 14, 384), False), ((50, 768), False), ((512,), False)]
)
def test_what_can_be_mirrored_are_maps_whose_channels_come_first(shape: tuple[int, ...], found: bool) -> None:
    class Putting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), *shape)

    assert lesson._puts_out_maps(Cut("anywhere", Putting(), nn.Identity()), SPEC, torch.device("cpu")) is found


def test_stored_maps_teach_what_the_whole_network_teaches_every_epoch(drawn_data: Path, tmp_path: Path) -> None:
    """The same photos in the same order: only float16 lies between them."""
    losses = []
    for cache in (True, False):
        setup = Setup(drawn_data, tmp_path, trainable="last_stage", head_epochs=0, augment="none", dropout=0.2)
        setup.lesson = replace(setup.lesson, hyperparameters=replace(setup.hyperparameters, cache=cache))
        losses.append([epoch.metrics["train_loss"] for epoch in setup.teach().fit.history])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[1], "two ways were taken"
    assert losses[0][1] < losses[0][0]


def stored(setup: Setup) -> list[Tensor]:
    return [torch.from_numpy(read_store(file).outputs) for file in sorted(setup.cache.glob("*.f16"))]


def test_a_photo_that_one_view_cannot_read_costs_the_job_that_photo(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(drawn_data, tmp_path, trainable="head", augment="crop", cached_views=2)
    unlucky = setup.splits.train[5].path
    real, reads = data.decode, Counter[Path]()

    def decode(path: Path) -> Tensor:
        reads[path] += 1
        if path == unlucky and reads[path] == 2:
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(data, "decode", decode)
    taught = setup.teach()
    assert (taught.fit.ended_by, len(taught.fit.history)) == ("epochs", 2)
    assert taught.features is not None
    truth = [sample.index for sample in setup.splits.train if sample.path != unlucky]
    assert taught.features[0].indices.tolist() == truth
    assert setup.lesson.loop.corrupt.found == (f"{unlucky} ([Errno 5] Input/output error)",)


def test_what_was_made_of_fewer_maps_is_not_taken_for_that_of_all(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job() -> Taught:
        setup = Setup(drawn_data, tmp_path, trainable="last_stage", head_epochs=1, augment="none")
        setup.lesson = replace(setup.lesson, hyperparameters=replace(setup.hyperparameters, epochs=1))
        return setup.teach()

    unlucky = Setup(drawn_data, tmp_path).splits.train[5].path
    real = data.decode

    def decode(path: Path) -> Tensor:
        if path == unlucky:
            raise OSError(5, "Input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(data, "decode", decode)
        first = job().features
    second = job().features
    assert first is not None
    assert second is not None
    assert (len(first[0].indices), len(second[0].indices)) == (17, 18)


def test_a_store_that_is_damaged_as_it_is_written_ends_the_job(
    drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: os.ftruncate(number, 7))
    with pytest.raises(ConfigurationError, match=r"cannot be stored in .*f16 is damaged or gone"):
        Setup(drawn_data, tmp_path, trainable="head").teach()


def test_a_head_that_no_epoch_betters_is_kept(
    drawn_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    setup = Setup(drawn_data, tmp_path, trainable="all", head_epochs=6, lr=1e-7, warmup_epochs=0, epochs=1)
    before = setup.model.backbone.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    taught = setup.teach()
    assert taught.fit.best_epoch == 0
    assert taught.fit.metrics == taught.head_metrics
    assert "no epoch bettered the head alone" in caplog.text
    after = setup.model.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("head_epochs", "pretrained"), [(0, True), (-1, False)])
def test_no_head_alone_when_it_is_not_asked_for_or_what_is_below_it_knows_nothing(
    drawn_data: Path, tmp_path: Path, head_epochs: int, pretrained: bool
) -> None:
    setup = Setup(drawn_data, tmp_path, trainable="all", head_epochs=head_epochs, pretrained=pretrained)
    assert not setup.teach().head_metrics
    assert setup.recorder.count(Phase.FEATURES) == 0


@pytest.mark.parametrize("trainable", ["all", "last_stage"])
@pytest.mark.parametrize(("batch_statistics", "kept"), [("auto", True), ("keep", True), ("learn", False)])
def test_statistics_of_batchnorm_are_kept_or_learnt(
    drawn_data: Path, tmp_path: Path, trainable: str, batch_statistics: str, kept: bool
) -> None:
    setup = Setup(
        drawn_data, tmp_path, trainable=trainable, head_epochs=0, batch_statistics=batch_statistics, lr=0.01, epochs=3
    )
    before = statistics(setup.model)
    scales = setup.model.backbone.state_dict()
    scales = {name: value.clone() for name, value in scales.items() if "running" not in name}
    setup.teach()
    unchanged = all(torch.equal(old, new) for old, new in zip(before, statistics(setup.model), strict=True))
    assert unchanged == kept
    assert any(not torch.equal(scales[name], setup.model.backbone.state_dict()[name]) for name in scales)


def test_parts_of_a_batch_learn_what_the_batch_does(drawn_data: Path, tmp_path: Path) -> None:
    """With kept statistics a gradient of parts added up is the gradient of the whole."""
    weights = []
    for accumulate in (1, 3):
        setup = Setup(drawn_data, tmp_path, trainable="all", head_epochs=0, optimizer="sgd", augment="none")
        setup.lesson = replace(setup.lesson, loop=replace(setup.lesson.loop, accumulate=accumulate))
        weights.append(setup.teach().fit.weights)
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("statistics", "told"), [("learn", True), ("keep", False)])
def test_fewer_parts_than_were_asked_for_are_told(
    drawn_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, statistics: str, told: bool
) -> None:
    setup = Setup(
        drawn_data, tmp_path, trainable="all", head_epochs=0, batch_statistics=statistics, accumulate=9, epochs=1
    )
    setup.lesson = replace(setup.lesson, loop=replace(setup.lesson.loop, accumulate=9))
    setup.teach()
    assert ("the 9 samples of a step go through in 4;" in caplog.text) == told


def test_a_clipped_gradient_moves_the_weights_no_further_than_its_norm(drawn_data: Path, tmp_path: Path) -> None:
    setup = Setup(
        drawn_data, tmp_path, trainable="all", head_epochs=0, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0,
        epochs=1, schedule="constant", warmup_epochs=0, batch_size=1000,
    )  # fmt: skip
    setup.lesson = replace(setup.lesson, loop=replace(setup.lesson.loop, clip_norm=0.01))
    before = torch.cat([parameter.detach().flatten().clone() for parameter in setup.model.parameters()])
    setup.teach()
    after = torch.cat([parameter.detach().flatten() for parameter in setup.model.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_weight_average_is_what_is_kept(drawn_data: Path, tmp_path: Path) -> None:
    plain = Setup(drawn_data, tmp_path, trainable="all", head_epochs=0, augment="none").teach().fit
    averaged = Setup(drawn_data, tmp_path, trainable="all", head_epochs=0, augment="none", ema=0.9).teach().fit
    assert [one.metrics["train_loss"] for one in averaged.history] == [
        one.metrics["train_loss"] for one in plain.history
    ], "what learns is the same"
    assert averaged.metrics["validation_loss"] != plain.metrics["validation_loss"]


def test_the_best_of_the_heads_that_were_tried_is_trained_as_if_it_had_been_given(
    drawn_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = {"search_trials": 8, "search_over": "lr+hidden-units+label-smoothing", "lr": 1e-6, "epochs": 4}
    setup = Setup(drawn_data, tmp_path, **options)
    taught = setup.teach()
    assert len(taught.search["trials"]) == 8
    assert taught.search["value"] > taught.search["trials"][0]["value"], "nothing is learnt at 1e-6"
    assert taught.hyperparameters.lr == float(taught.search["hyperparameters"]["lr"])
    assert setup.recorder.epochs == len(taught.fit.history), "the job's epochs are those of one head"
    assert setup.watched == [setup.model.head]
    assert taught.fit.metrics["validation_accuracy"] == pytest.approx(taught.search["value"])
    assert "validation_accuracy=" not in caplog.text, "nothing that SageMaker's tuner would take for a metric"

    assert taught.hyperparameters.search_trials == 0

    chosen = taught.hyperparameters
    values = {name: getattr(chosen, name) for name in ("lr", "hidden_units", "label_smoothing")}
    alone = Setup(drawn_data, tmp_path, **{**options, **values, "search_trials": 0})
    # The same start as in the search, which a hidden layer changes.
    alone.model.head = setup.lesson._make_head(Setup(drawn_data, tmp_path, **options).model, chosen)
    smoothed = SmoothedCrossEntropyLoss(label_smoothing=chosen.label_smoothing)
    alone.lesson = replace(alone.lesson, loop=replace(alone.lesson.loop, criterion=smoothed))
    assert alone.teach().fit.metrics == taught.fit.metrics


class Interrupting:
    """Asks to stop after so many questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def interrupted(setup: Setup, folder: Path, questions: int) -> Taught:
    loop = replace(setup.lesson.loop, stop_requested=Interrupting(questions))
    lesson = replace(setup.lesson, loop=loop)
    return lesson.teach(setup.model, setup.splits, cache=setup.cache, checkpoints=folder)


@pytest.mark.parametrize("trainable", ["last_stage", "all"])
def test_fine_tuning_starts_from_the_best_of_the_heads_that_were_tried(
    drawn_data: Path, tmp_path: Path, trainable: str
) -> None:
    options = {"trainable": trainable, "head_epochs": 6, "epochs": 1, "lr": 1e-6}
    tried = Setup(drawn_data, tmp_path, **options, search_trials=8, search_over="lr+batch-size")
    given = tried.hyperparameters
    taught = tried.teach()
    assert len(taught.search["trials"]) == 8
    assert taught.search["trials"][0]["hyperparameters"]["lr"] == "0.001", "the first head is the one without a search"
    assert taught.head_metrics["validation_accuracy"] == pytest.approx(taught.search["value"])
    assert taught.search["value"] > taught.search["trials"][0]["value"]
    assert taught.fit.metrics["validation_accuracy"] >= taught.search["value"]
    assert taught.hyperparameters == given, "the rest learns by what was given"
    assert tried.recorder.epochs == len(taught.fit.history) == 1
    # What `train --from-best` is told makes the same job: the search finds the head again.
    again = Hyperparameters.parse(taught.search["hyperparameters"])
    assert (again.search_trials, again.search_over, again.lr) == (8, "lr+batch-size", 1e-6)
    alone = Setup(drawn_data, tmp_path, **options).teach()
    assert alone.head_metrics["validation_accuracy"] == pytest.approx(taught.search["trials"][0]["value"])


@pytest.mark.parametrize(
    "options",
    [
        {"search_over": "lr+hidden-units", "epochs": 3},
        {"search_over": "lr", "trainable": "last_stage", "head_epochs": 3, "epochs": 2},
    ],
)
def test_a_search_that_is_interrupted_anywhere_ends_as_if_it_had_not_been(
    drawn_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, object]
) -> None:
    caplog.set_level("INFO")
    options = {"search_trials": 4, **options}
    whole = interrupted(Setup(drawn_data, tmp_path / "cache", **options), tmp_path / "whole", 10**6)
    fresh = tmp_path / "cache"
    endings = set()
    for questions in range(1, 60, 3):
        caplog.clear()
        folder = tmp_path / str(questions)
        first = interrupted(Setup(drawn_data, fresh, **options), folder, questions)
        endings.add((first.fit.ended_by, bool(first.search), (folder / "search.json").is_file()))
        again = interrupted(Setup(drawn_data, fresh, **options), folder, 10**6)
        assert again.search == whole.search
        assert again.hyperparameters == whole.hyperparameters
        assert all(torch.equal(value, whole.fit.weights[name]) for name, value in again.fit.weights.items())
    assert endings >= {
        ("stop signal", False, False),  # before the first epoch of the search
        ("stop signal", True, False),  # in the search: the best head so far
        ("stop signal", True, True),  # after it
    }


def test_the_head_that_a_stop_leaves_is_the_best_so_far(drawn_data: Path, tmp_path: Path) -> None:
    options = {"search_trials": 6, "lr": 1e-6, "epochs": 10}
    Setup(drawn_data, tmp_path, **options).teach()  # the features are stored
    setup = Setup(drawn_data, tmp_path, **options)
    taught = interrupted(setup, tmp_path / "checkpoints", 12)
    assert taught.fit.ended_by == "stop signal"
    assert taught.fit.best_epoch > 0
    images = setup.lesson.images(setup.splits.validation, SPEC.centre_view)
    judged = setup.lesson.loop.evaluate(images, Phase.VALIDATION, 1)
    assert judged is not None
    assert judged.accuracy == pytest.approx(taught.fit.metrics["validation_accuracy"])
    assert judged.accuracy == pytest.approx(taught.search["value"])
