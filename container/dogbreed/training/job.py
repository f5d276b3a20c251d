"""One training run, from the platform's files to the bundle.

The only training module that knows the order of events: environment -> hyperparameters -> data -> network -> loop ->
bundle -> report. Whatever goes wrong becomes an exit code and one sentence in the failure file.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import cast

import torch
from torch import nn

from dogbreed import artifacts, backbones, logs
from dogbreed.artifacts import Bundle
from dogbreed.backbones import Classifier, HeadSpec, Trainable
from dogbreed.environment import (
    FAILURE_MAX_CHARACTERS,
    TrainingEnvironment,
    read_paths,
    read_training_environment,
    write_failure,
)
from dogbreed.errors import ConfigurationError, DogbreedError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.insight import report, tensors
from dogbreed.insight.report import EpochRecord, JobRecord
from dogbreed.insight.rules.losses import evaluate_all
from dogbreed.insight.tensors import TensorHook
from dogbreed.insight.verdicts import Verdict
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, frozen
from dogbreed.training.console import Console
from dogbreed.training.data import Splits, find_splits
from dogbreed.training.lesson import Lesson
from dogbreed.training.loop import CorruptImages, FitResult, Loop, Phase
from dogbreed.training.state import EpochResult

logger = logging.getLogger(__name__)


def main() -> int:
    """Runs the job that the platform's files describe; returns the exit code, 0 or 1."""
    paths = read_paths()
    logs.configure()
    try:
        environment = read_training_environment()
        logs.configure(environment.log_level)
        run(environment, _stop_on_signals())
    except DogbreedError as error:
        reason = str(error)
        logger.error("%s", reason)
    except MemoryError:
        reason = "out of memory; lower batch-size, image-size or num-workers, or use a larger instance"
        logger.exception("%s", reason)
    except torch.OutOfMemoryError as error:
        reason = f"out of GPU memory; lower batch-size or image-size ({_first_line(error)})"
        logger.exception("%s", reason)
    except Exception as error:
        # Cause first: the platform shows 1,024 characters. The end of a traceback is where it happened.
        cause = f"{type(error).__name__}: {_first_line(error)}\n"
        reason = cause + traceback.format_exc()[-(FAILURE_MAX_CHARACTERS - len(cause)) :]
        logger.exception("the job failed")
    else:
        return 0
    write_failure(paths, reason)
    return 1


def run(environment: TrainingEnvironment, stop_requested: Callable[[], bool]) -> None:
    """Trains one model, leaves its bundle in the model directory and its report beside the output data.

    Args:
        environment: what the platform says.
        stop_requested: asked before every step; see `loop.Loop`.

    Raises:
        JobError: the job's input is wrong.
    """
    started = datetime.now(UTC)
    compute.keep_freed_memory()
    hyperparameters = Hyperparameters.parse(environment.hyperparameters)
    if len(environment.hosts.all) > 1:
        raise ConfigurationError(
            f"the job has {len(environment.hosts.all)} hosts, but this version trains on one; set the instance count "
            f"to 1"
        )
    splits = find_splits(
        {name: channel.path for name, channel in environment.channels.items()},
        validation_fraction=hyperparameters.validation_fraction,
        seed=hyperparameters.seed,
    )
    _log_splits(splits)
    arithmetic = compute.choose(hyperparameters.precision)
    model, source = _make_model(environment, hyperparameters, len(splits.labels))
    model = model.to(arithmetic.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%s, %s; %d parameters learn; %s", hyperparameters.model, source, count, arithmetic)

    criterion = nn.CrossEntropyLoss()
    cut = backbones.cut(model, hyperparameters.image_size) if hyperparameters.cache else None
    learning = model if cut is None else cut.rest
    hook = tensors.attach(learning, criterion, folder=environment.paths.tensors, config=environment.hook_config)
    spec = PreprocessSpec.for_size(hyperparameters.image_size)
    loop = Loop(
        model=model,
        prepare=lambda images: spec.normalise(images).contiguous(memory_format=torch.channels_last),
        classes=len(splits.labels),
        criterion=criterion,
        compute=arithmetic,
        observers=[Console(hyperparameters.epochs), *([_HookObserver(hook)] if hook else [])],
        corrupt=CorruptImages(splits.images, hyperparameters.max_corrupt_fraction),
        stop_requested=stop_requested,
    )
    lesson = Lesson(loop, spec, hyperparameters)
    fit = lesson.teach(model, cut, splits, cache=environment.cache, checkpoints=environment.checkpoints)
    logger.info("training ended by %s after %d epochs; best epoch %d", fit.ended_by, len(fit.history), fit.best_epoch)

    bundle = Bundle(
        backbone=hyperparameters.model,
        head=_head_spec(hyperparameters, len(splits.labels)),
        labels=splits.labels,
        preprocessing=spec,
        weights=artifacts.clone_weights(model),
        hyperparameters=hyperparameters.as_dict(),
        metrics=fit.history[fit.best_epoch - 1].metrics if fit.best_epoch else {},
        data_fingerprint=splits.fingerprint,
        facts=_facts(splits, fit, source, loop.corrupt),
        versions=artifacts.current_versions(),
    )
    # Saved before the test: a stop or a fault from here on costs a number, not the model.
    artifacts.save(bundle, environment.paths.model)
    judged, channel = fit.best_validation, "validation"
    if splits.test is not None and not stop_requested():
        # The debugger hook listens to the criterion of training; a test is none of its epochs.
        tester = replace(
            loop,
            model=frozen.whole(cut, spec.size_px, arithmetic.device) if cut else model,
            criterion=nn.CrossEntropyLoss(),
        )
        tested = tester.evaluate(lesson.images(splits.test, spec.centre_view), Phase.TEST, epoch=1)
        if tested is not None:
            judged, channel = tested, "test"
            scores = {"test_loss": tested.loss, "test_accuracy": tested.accuracy}
            logger.info("%s", logs.metric_line(scores))
            bundle = replace(
                bundle, metrics={**bundle.metrics, **scores}, facts=_facts(splits, fit, source, loop.corrupt)
            )
            artifacts.save(bundle, environment.paths.model)
    logger.info("the bundle is in %s", environment.paths.model)
    if hook is not None:
        hook.close()
    _write_report(
        JobRecord(
            job_name=environment.job_name,
            backbone=bundle.backbone,
            trainable=hyperparameters.trainable,
            started=started,
            ended=datetime.now(UTC),
            epochs=tuple(_epoch_record(result) for result in fit.history),
            best_epoch=fit.best_epoch,
            metrics=bundle.metrics,
            labels=splits.labels.names,
            hyperparameters=bundle.hyperparameters,
            facts=bundle.facts,
            versions=bundle.versions,
            confusion=judged.confusion if judged else None,
            confusion_channel=channel,
            verdicts=_verdicts(hook),
            corrupt_images=loop.corrupt.found,
        ),
        environment,
    )


def _make_model(
    environment: TrainingEnvironment, hyperparameters: Hyperparameters, classes: int
) -> tuple[Classifier, str]:
    """The network, with what is frozen frozen, and where its weights came from."""
    weights, source = None, "random weights (pretrained=false)"
    if hyperparameters.pretrained:
        channel = environment.channels.get("pretrained")
        backbones.check_name(hyperparameters.model)
        weights, origin = backbones.load_weights(
            hyperparameters.model, channel=channel.path if channel else None, baked=environment.weights
        )
        source = f"weights from {origin}"
    elif hyperparameters.trainable != "all":
        logger.warning(
            "pretrained=false with trainable=%s: the frozen part keeps random weights and learns nothing; set "
            "trainable=all",
            hyperparameters.trainable,
        )
    torch.manual_seed(hyperparameters.seed)
    model = backbones.build(
        hyperparameters.model,
        _head_spec(hyperparameters, classes),
        image_size_px=hyperparameters.image_size,
        weights=weights,
    )
    model.freeze(cast(Trainable, hyperparameters.trainable), hyperparameters.image_size)
    return model, source


def _head_spec(hyperparameters: Hyperparameters, classes: int) -> HeadSpec:
    return HeadSpec(classes, hyperparameters.hidden_units, hyperparameters.dropout)


def _log_splits(splits: Splits) -> None:
    logger.info(
        "%d classes; %d train images, %d validation%s, %s test",
        len(splits.labels),
        len(splits.train),
        len(splits.validation),
        " (held out of train)" if splits.held_out else "",
        "no" if splits.test is None else len(splits.test),
    )


def _facts(splits: Splits, fit: FitResult, source: str, corrupt: CorruptImages) -> dict[str, object]:
    return {
        "train_images": len(splits.train),
        "validation_images": len(splits.validation),
        "validation_held_out_of_train": splits.held_out,
        "test_images": len(splits.test or ()),
        "corrupt_images": len(corrupt.found),
        "initial_weights": source,
        "epochs_run": len(fit.history),
        "best_epoch": fit.best_epoch,
        "ended_by": fit.ended_by,
    }


def _epoch_record(result: EpochResult) -> EpochRecord:
    return EpochRecord(result.epoch, result.metrics, result.learning_rate, result.seconds)


def _verdicts(hook: TensorHook | None) -> tuple[Verdict, ...]:
    """Verdicts on what the hook saved; none when nothing can be read, which the log explains."""
    if hook is None:
        return ()
    try:
        return evaluate_all(tensors.read_losses(hook.folder))
    except Exception as error:  # reading is smdebug's and may fail as it likes; the model is already safe
        logger.warning("the rules cannot be evaluated: %s: %s", type(error).__name__, error)
        return ()


def _write_report(record: JobRecord, environment: TrainingEnvironment) -> None:
    try:
        page = report.write(record, environment.paths.output_data / "insight")
    except OSError as error:
        logger.warning("the report cannot be written: %s", error)
        return
    for line in report.summary(record, page).splitlines():
        logger.info("%s", line)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _stop_on_signals() -> Callable[[], bool]:
    """Makes SIGTERM (the platform's stop) and SIGINT (Ctrl-C) a request that the loop sees at its next step."""
    requested = threading.Event()

    def request(number: int, _frame: FrameType | None) -> None:
        # A handler may interrupt a write to a buffered stream, which cannot be re-entered: write past it.
        text = f"{signal.Signals(number).name}: stopping after this step, keeping the best epoch so far\n"
        os.write(sys.stderr.fileno(), text.encode())
        requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request)
    return requested.is_set


class _HookObserver:
    """Tells the debugger hook which pass is running."""

    def __init__(self, hook: TensorHook) -> None:
        self._hook = hook

    def on_pass_start(self, phase: Phase, epoch: int, batches: int) -> None:
        if phase is not Phase.FEATURES:
            self._hook.set_mode(phase.value)

    def on_batch(self, phase: Phase) -> None:
        pass

    def on_pass_end(self, phase: Phase) -> None:
        pass

    def on_epoch_end(self, result: EpochResult) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main())
