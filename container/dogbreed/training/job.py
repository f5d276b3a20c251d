"""One training run, from the platform's files to the bundle.

The only training module that knows the order of events: environment -> hyperparameters -> data -> network -> loop ->
bundle -> report. Whatever goes wrong becomes an exit code and one sentence in the failure file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
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
    name_network_interface,
    read_paths,
    read_training_environment,
    write_failure,
)
from dogbreed.errors import ConfigurationError, DataError, DogbreedError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.insight import report, tensors
from dogbreed.insight.report import EpochRecord, JobRecord
from dogbreed.insight.rules.losses import evaluate_all
from dogbreed.insight.tensors import TensorHook
from dogbreed.insight.verdicts import Verdict
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, distributed, processes
from dogbreed.training.console import Console
from dogbreed.training.data import Splits, find_splits, merge_labels
from dogbreed.training.distributed import ALONE, Team
from dogbreed.training.lesson import Lesson, Taught
from dogbreed.training.loop import CorruptImages, FitResult, Loop, Observer, Phase
from dogbreed.training.mixing import SmoothedCrossEntropyLoss, make_mixing
from dogbreed.training.sources import class_folders
from dogbreed.training.state import EpochResult

logger = logging.getLogger(__name__)


def main() -> int:
    """Runs the job that the platform's files describe; returns the exit code, 0 or 1."""
    paths = read_paths()
    logs.configure()
    team = ALONE
    try:
        environment = read_training_environment()
        logs.configure(environment.log_level)
        here = environment.processes or max(1, torch.cuda.device_count())
        if environment.worker is None and here * len(environment.hosts.all) > 1:
            _run_processes(environment, here)
            return 0
        stop_requested = _stop_on_signals()
        team = _join(environment)
        with team.together():
            run(environment, team, stop_requested)
            team.wait()
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
        team.close()
        return 0
    # In this order: the others may read the words only when this process is gone, and then their own reason comes late.
    write_failure(paths, reason)
    team.say_last_words(reason)
    return 1


def run(environment: TrainingEnvironment, team: Team, stop_requested: Callable[[], bool]) -> None:
    """Trains one model, leaves its bundle in the model directory and its report beside the output data.

    Args:
        environment: what the platform says.
        team: the processes of the job; the leader alone writes.
        stop_requested: asked before every step; see `loop.Loop`.

    Raises:
        JobError: the job's input is wrong.
    """
    started = datetime.now(UTC)
    compute.keep_freed_memory()
    hyperparameters = Hyperparameters.parse(environment.hyperparameters)
    if hyperparameters.batch_size < 2 * team.size and not team.alone:
        raise ConfigurationError(
            f"batch-size={hyperparameters.batch_size} leaves fewer than two samples to each of {team.size} processes; "
            f"set batch-size to {2 * team.size} or more, or use fewer hosts or GPUs"
        )
    team, splits = _find_splits(environment, hyperparameters, team)
    counts = _count(team, splits)
    arithmetic = compute.choose(hyperparameters.precision)
    model, source = _make_model(environment, hyperparameters, len(splits.labels))
    model = model.to(arithmetic.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%s, %s; %d parameters learn; %s", hyperparameters.model, source, count, arithmetic)

    hook: TensorHook | None = None

    def watch(learning: nn.Module, criterion: nn.Module) -> Sequence[Observer]:
        nonlocal hook
        if team.leads:
            hook = tensors.attach(learning, criterion, folder=environment.paths.tensors, config=environment.hook_config)
        return [_HookObserver(hook)] if hook else []

    spec = PreprocessSpec.for_size(hyperparameters.image_size)
    loop = Loop(
        model=model,
        prepare=lambda images: spec.normalise(images).contiguous(memory_format=torch.channels_last),
        classes=len(splits.labels),
        criterion=SmoothedCrossEntropyLoss(label_smoothing=hyperparameters.label_smoothing),
        compute=arithmetic,
        observers=[Console(hyperparameters.epochs)] if team.leads else [],
        corrupt=CorruptImages(sum(counts), hyperparameters.max_corrupt_fraction),
        stop_requested=stop_requested,
        seed=hyperparameters.seed,
        team=team,
        accumulate=hyperparameters.accumulate,
        clip_norm=hyperparameters.clip_norm,
        mix=make_mixing(hyperparameters, len(splits.labels)),
    )
    lesson = Lesson(loop, spec, hyperparameters, watch)
    taught = lesson.teach(model, splits, cache=environment.cache, checkpoints=environment.checkpoints)
    fit = taught.fit
    logger.info("training ended by %s after %d epochs; best epoch %d", fit.ended_by, len(fit.history), fit.best_epoch)

    facts = {**_facts(splits, counts, fit, source, loop.corrupt), **_head_facts(taught)}
    bundle = Bundle(
        backbone=hyperparameters.model,
        head=_head_spec(hyperparameters, len(splits.labels)),
        labels=splits.labels,
        preprocessing=spec,
        weights=artifacts.clone_weights(model),
        hyperparameters=hyperparameters.as_dict(),
        metrics=fit.metrics,
        data_fingerprint=splits.fingerprint,
        facts=facts,
        versions=artifacts.current_versions(),
    )
    # Saved before the test: a stop or a fault from here on costs a number, not the model.
    if team.leads:
        artifacts.save(bundle, environment.paths.model)
    judged, channel = fit.best_validation, "validation"
    if splits.test is not None and not any(team.total(stop_requested())):
        # The debugger hook listens to the criterion of training; a test is none of its epochs.
        tester = replace(loop, model=taught.network, criterion=SmoothedCrossEntropyLoss())
        tested = tester.evaluate(lesson.images(splits.test, spec.centre_view), Phase.TEST, epoch=1)
        if tested is not None:
            judged, channel = tested, "test"
            scores = {"test_loss": tested.loss, "test_accuracy": tested.accuracy}
            logger.info("%s", logs.metric_line(scores))
            facts = {**facts, "corrupt_images": len(loop.corrupt.found)}
            bundle = replace(bundle, metrics={**bundle.metrics, **scores}, facts=facts)
            if team.leads:
                artifacts.save(bundle, environment.paths.model)
    if not team.leads:
        return
    logger.info("the bundle is in %s", environment.paths.model)
    if hook is not None:
        hook.close()
    logger.info("%s; peak memory %s", _cost(environment, datetime.now(UTC) - started), compute.peak_memory())
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


def _join(environment: TrainingEnvironment) -> Team:
    """This process's place among those of the job."""
    worker = environment.worker
    if worker is None or worker.size == 1:
        return ALONE
    # What all processes would say alike, the leader says.
    if worker.rank and environment.log_level == "INFO":
        logs.configure("WARNING")
    return distributed.join(
        rank=worker.rank,
        size=worker.size,
        local_rank=worker.local_rank,
        local_size=worker.local_size,
        host=environment.hosts.current,
    )


def _run_processes(environment: TrainingEnvironment, here: int) -> None:
    """Starts the job's processes on this host, each of which comes back to `main`."""
    hosts = environment.hosts
    if len(hosts.all) > 1:
        other = next(host for host in hosts.all if host != hosts.current)
        interface = hosts.network_interface or processes.interface_towards(other)
        if interface is not None:
            name_network_interface(interface)
        for group, members in hosts.groups.items():
            logger.info("instance group %s: %s", group, ", ".join(members))
    processes.run_all(
        [sys.executable, "-m", "dogbreed", "train"],
        hosts=hosts.all,
        rank=hosts.rank,
        processes=here,
        port=environment.rendezvous_port,
    )


def _find_splits(environment: TrainingEnvironment, hyperparameters: Hyperparameters, team: Team) -> tuple[Team, Splits]:
    """The samples of the job, or of this host where each has its own, and the team that knows which it is."""
    channels, hosts = environment.channels, environment.hosts
    find = partial(
        find_splits,
        {name: channel.path for name, channel in channels.items()},
        validation_fraction=hyperparameters.validation_fraction,
        seed=hyperparameters.seed,
    )
    sharded = {name: channel.sharded for name, channel in channels.items()}
    if len(hosts.all) == 1 or not any(sharded.values()):
        splits = find()
        _log_splits(splits)
        _check_same_data(team, splits, hosts.current)
        return team, splits
    folders = class_folders({name: channel.path for name, channel in channels.items()})
    splits = find(labels=merge_labels(team.gather(folders)))
    fingerprint = hashlib.sha256("".join(team.gather(splits.fingerprint)).encode()).hexdigest()
    splits = replace(splits.of_host(hosts.rank, len(hosts.all), sharded), fingerprint=fingerprint)
    _log_splits(splits)
    return replace(team, apart=True), splits


def _count(team: Team, splits: Splits) -> tuple[int, ...]:
    """Images of training, validation and test on all hosts."""
    own = (len(splits.train), len(splits.validation), len(splits.test or ()))
    return team.total(*(count if team.local_rank == 0 else 0 for count in own)) if team.apart else own


def _check_same_data(team: Team, splits: Splits, host: str) -> None:
    """All processes must see the same classes and images, or their batches would not be parts of one.

    Raises:
        DataError: names a class or a host that differs.
    """
    everyone = team.gather((host, splits.labels.folders, splits.fingerprint))
    first_host, first_folders, first_fingerprint = everyone[0]
    for other_host, folders, fingerprint in everyone[1:]:
        differing = sorted(set(folders) ^ set(first_folders))
        if differing:
            owner = other_host if differing[0] in folders else first_host
            raise DataError(
                f"the class folder {differing[0]} is on host {owner} only; give every host all of the data "
                f"(S3DataDistributionType=FullyReplicated), or all hosts parts of it (ShardedByS3Key)"
            )
        if fingerprint != first_fingerprint:
            raise DataError(
                f"hosts {first_host} and {other_host} have different training images; give every host all of the data "
                f"(S3DataDistributionType=FullyReplicated), or all hosts parts of it (ShardedByS3Key)"
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
    model.freeze(
        cast(Trainable, hyperparameters.trainable),
        hyperparameters.image_size,
        keep_statistics=hyperparameters.keeps_statistics,
    )
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


def _facts(
    splits: Splits, counts: tuple[int, ...], fit: FitResult, source: str, corrupt: CorruptImages
) -> dict[str, object]:
    train, validation, test = counts
    return {
        "train_images": train,
        "validation_images": validation,
        "validation_held_out_of_train": splits.held_out,
        "test_images": test,
        "corrupt_images": len(corrupt.found),
        "initial_weights": source,
        "epochs_run": len(fit.history),
        "best_epoch": fit.best_epoch,
        "ended_by": fit.ended_by,
    }


def _cost(environment: TrainingEnvironment, duration: timedelta) -> str:
    """What the job took, in the unit that is billed where the instance type is known."""
    seconds, hosts = duration.total_seconds(), environment.hosts
    took = f"{seconds:.0f} s on {len(hosts.all)} host{'s' if len(hosts.all) > 1 else ''}"
    if hosts.instance_type is None:
        return took
    return f"{took}: {seconds * len(hosts.all) / 3600:.3f} instance hours of {hosts.instance_type}"


def _head_facts(taught: Taught) -> dict[str, object]:
    """What the head reached before the layers below it learnt, where it did."""
    return {f"head_{name}": value for name, value in taught.head_metrics.items() if name.startswith("validation")}


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
    processes.unblock_stop_signals()
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
