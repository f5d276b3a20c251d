"""One training run, from the platform's files to the bundle.

The only training module that knows the order of events: environment -> hyperparameters -> data -> network -> loop ->
bundle -> report. Whatever goes wrong becomes an exit code and one sentence in the failure file.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any, cast

import torch

from dogbreed import artifacts, backbones, collector, logs
from dogbreed.artifacts import Bundle
from dogbreed.backbones import Classifier, HeadSpec, Trainable
from dogbreed.curation import page
from dogbreed.environment import (
    FAILURE_MAX_CHARACTERS,
    TrainingEnvironment,
    name_network_interface,
    quiet_profiler,
    read_paths,
    read_training_environment,
    write_failure,
)
from dogbreed.errors import ConfigurationError, DogbreedError, OutputError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.insight.report import JobRecord
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, curating, distributed, mapped, piped, processes, shares
from dogbreed.training.console import Console
from dogbreed.training.data import Splits
from dogbreed.training.distributed import ALONE, Team
from dogbreed.training.lesson import Lesson, Taught
from dogbreed.training.loop import Batches, CorruptImages, FitResult, Loop, Phase
from dogbreed.training.mixing import SmoothedCrossEntropyLoss, make_mixing
from dogbreed.training.precision import compare_precisions
from dogbreed.training.watching import Watching, WrongAnswers

logger = logging.getLogger(__name__)


def main() -> int:
    """Runs the job that the platform's files describe; returns the exit code, 0 or 1."""
    collector.resume()
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
        quiet_profiler()
        stop_requested = _stop_on_signals()
        team = _join(environment)
        with team.together(), piped.as_folders(environment, team, stop_requested) as environment:
            run(environment, team, stop_requested)
            team.wait()
    except piped.StoppedEarlyError as stopped:
        logger.warning("%s", stopped)
        team.close()
        return 0
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
    # While this process still lives: the others notice when it is gone, and then ask for its last words.
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
    team, splits = shares.find_shares(environment, hyperparameters, team)
    counts = shares.count(team, splits)
    model, source = _make_model(environment, hyperparameters, len(splits.labels))
    arithmetic = compute.choose(
        hyperparameters.precision,
        model if hyperparameters.trainable != "head" else None,
        image_px=hyperparameters.image_size,
    )
    model = model.to(arithmetic.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    logger.info("%s, %s; %d parameters learn; %s", hyperparameters.model, source, _learning(model), arithmetic)

    spec = PreprocessSpec.for_size(hyperparameters.image_size)
    record = JobRecord(
        job_name=environment.job_name,
        backbone=hyperparameters.model,
        trainable=hyperparameters.trainable,
        started=started,
        ended=started,
        epochs=(),
        best_epoch=0,
        metrics={},
        labels=splits.labels.names,
        hyperparameters=hyperparameters.as_dict(),
        facts={
            "initial_weights": source,
            "ended_by": "nothing that could be recorded: the job is running, or was lost",
        },
        versions=artifacts.current_versions(),
        confusion=None,
        confusion_channel="",
        verdicts=(),
        corrupt_images=(),
    )
    watching = Watching(environment, hyperparameters, arithmetic.device, record) if team.leads else None
    loop = Loop(
        model=model,
        prepare=lambda images: spec.normalise(images).contiguous(memory_format=torch.channels_last),
        classes=len(splits.labels),
        criterion=SmoothedCrossEntropyLoss(label_smoothing=hyperparameters.label_smoothing),
        compute=arithmetic,
        observers=[Console(hyperparameters.epochs, corrupt=lambda: loop.corrupt.found), watching] if watching else [],
        corrupt=CorruptImages(sum(counts), hyperparameters.max_corrupt_fraction),
        stop_requested=lambda: stop_requested() or (watching is not None and watching.asks_to_stop),
        seed=hyperparameters.seed,
        team=team,
        accumulate=hyperparameters.accumulate,
        clip_norm=hyperparameters.clip_norm,
        mix=make_mixing(hyperparameters, len(splits.labels)),
    )
    lesson = Lesson(loop, spec, hyperparameters, watching.attach if watching else lambda *_: None)
    known: dict[str, Any] = {}
    try:
        taught = lesson.teach(model, splits, cache=environment.cache, checkpoints=environment.checkpoints)
        if watching and watching.stopped_by:
            taught = replace(taught, fit=replace(taught.fit, ended_by=f"rule {watching.stopped_by}"))
        facts = {
            **_facts(splits, counts, taught.fit, source, loop.corrupt),
            **_head_facts(taught),
            **_search_facts(taught),
            **_calibration_facts(taught),
        }
        bundle = _bundle(taught, model, splits, spec, facts)
        # Saved before the test: a stop or a fault from here on costs a number, not the model.
        if team.leads:
            _save(bundle, environment)
            _write_search(environment, taught)
        outputs = curating.Outputs()
        known = _validated(taught)
        if splits.test is not None and not any(team.total(stop_requested())):
            tester = _tester(loop, taught, stop_requested)
            with outputs.of(taught.network() if _passes_features(taught) else None):
                bundle, tested = _test(bundle, tester, lesson.images(splits.test, spec.centre_view), splits)
            known |= tested
        if team.leads and hyperparameters.check_precision:
            found = compare_precisions(
                model,
                spec,
                splits.validation,
                stop_requested=stop_requested,
                quick=taught.network,
                doubtful_first=taught.fitted.doubtful_first,
            )
            bundle = replace(bundle, agreements=found)
        if team.leads:
            _save_again(bundle, environment)
        known |= {
            "metrics": bundle.metrics,
            "facts": bundle.facts,
            "hyperparameters": bundle.hyperparameters,
            "best_epoch": taught.fit.best_epoch,
            "corrupt_images": loop.corrupt.found,
            "curation": _curate(environment, lesson, taught, splits=splits, outputs=outputs),
        }
    except BaseException as error:
        known |= {"facts": {**record.facts, "ended_by": f"an error: {_first_line(error)[:300]}"}, "failed": True}
        raise
    finally:
        # Also of a job that failed: its report is what says why.
        if watching:
            watching.finish(**known)
    if team.leads:
        logger.info("the bundle is in %s", environment.paths.model)
        logger.info("%s; peak memory %s", _cost(environment, datetime.now(UTC) - started), compute.peak_memory())


def _bundle(
    taught: Taught, model: Classifier, splits: Splits, spec: PreprocessSpec, facts: dict[str, object]
) -> Bundle:
    """What was learnt, and the last words on how: the leader's log ends with the best epoch's metrics."""
    fit = taught.fit
    logger.info("training ended by %s after %d epochs; best epoch %d", fit.ended_by, len(fit.history), fit.best_epoch)
    if fit.metrics:
        # SageMaker's tuner judges a job by what it printed last, and the bundle is the best epoch's.
        logger.info("best: %s", logs.metric_line(fit.metrics))
    return Bundle(
        backbone=taught.hyperparameters.model,
        head=_head_spec(taught.hyperparameters, len(splits.labels)),
        labels=splits.labels,
        preprocessing=spec,
        weights=artifacts.clone_weights(model),
        hyperparameters=taught.hyperparameters.as_dict(),
        metrics=fit.metrics,
        data_fingerprint=splits.fingerprint,
        facts=facts,
        versions=artifacts.current_versions(),
        calibration=taught.fitted.calibration,
        familiarity=taught.fitted.familiarity,
    )


def _save(bundle: Bundle, environment: TrainingEnvironment) -> None:
    """Writes the bundle; raises OutputError where that cannot be."""
    try:
        artifacts.save(bundle, environment.paths.model)
    except OutputError as error:
        reason = f"{error} and start the job again: it goes on from its last checkpoint, where it has a folder for them"
        # Now: it may be the same disk, and the report of a job that failed would take what room there is.
        write_failure(environment.paths, reason)
        raise OutputError(reason) from error


def _save_again(bundle: Bundle, environment: TrainingEnvironment) -> None:
    """Replaces the bundle by one that knows more; where that cannot be written, the one of before stays."""
    try:
        artifacts.save(bundle, environment.paths.model)
    except OutputError as error:
        logger.warning("the bundle stays without what was learnt after training: %s", error)


def _validated(taught: Taught) -> dict[str, Any]:
    """What the report tells of the validation, unless there is a test."""
    judged = taught.fit.best_validation
    return {"confusion": judged.confusion if judged else None, "confusion_channel": "validation"}


def _tester(loop: Loop, taught: Taught, stop_requested: Callable[[], bool]) -> Loop:
    """The loop that tests what was taught by another.

    The criterion that training is watched by hears of no test; a rule that ended it does not end the test. On a CPU an
    endpoint computes in float32; the test scores are to be its scores.
    """
    return replace(
        loop,
        model=taught.network(),
        criterion=SmoothedCrossEntropyLoss(),
        stop_requested=stop_requested,
        compute=loop.compute if loop.compute.device.type == "cuda" else compute.choose("fp32"),
    )


def _test(bundle: Bundle, tester: Loop, batches: Batches, splits: Splits) -> tuple[Bundle, dict[str, object]]:
    """The bundle with its scores on the test images, and what the report tells of them."""
    wrong = WrongAnswers()
    tested = tester.evaluate(batches, Phase.TEST, epoch=1, hear=wrong.hear)
    if tested is None:
        return bundle, {}
    scores = {"test_loss": tested.loss, "test_accuracy": tested.accuracy}
    if tester.team.leads:
        logger.info("%s", logs.metric_line(scores))
    facts = {**bundle.facts, "corrupt_images": len(tester.corrupt.found)}
    told: dict[str, object] = {"confusion": tested.confusion, "confusion_channel": "test"}
    if tester.team.alone:
        told["wrong"] = wrong.photos(splits.test or (), tester.corrupt.found, splits.labels.names)
    return replace(bundle, metrics={**bundle.metrics, **scores}, facts=facts), told


def _passes_features(taught: Taught) -> bool:
    """Whether the first part of the taught network puts out the features that its head learned from, and to look at."""
    return taught.hyperparameters.curate and taught.hyperparameters.trainable == "head" and taught.features is not None


def _curate(
    environment: TrainingEnvironment, lesson: Lesson, taught: Taught, *, splits: Splits, outputs: curating.Outputs
) -> Mapping[str, int]:
    """Writes what to look at in the data beside the report, which counts it."""
    loop = lesson.loop
    if not taught.hyperparameters.curate or not loop.team.leads or loop.stop_requested():
        return {}
    if taught.features is None or loop.team.apart:
        why = "each host holds images of its own" if loop.team.apart else "a resumed job has no features of before"
        logger.warning("curate=true finds nothing here: %s; run `python -m dogbreed.curation` on the images", why)
        return {}
    threads = max(1, lesson.workers(splits.images))
    try:
        found = curating.of_job(
            splits,
            taught.features,
            outputs.all() if loop.team.alone and outputs.heard else None,
            loop.corrupt.found,
            seed=taught.hyperparameters.seed,
            device=loop.compute.device,
            threads=threads,
            stop_requested=loop.stop_requested,
        )
        if found is None:
            return {}
        written = page.write(found, environment.paths.output_data / "insight", threads=threads)
    except (OSError, ValueError) as error:
        logger.warning("the data cannot be looked at: %s", error)
        return {}
    logger.info("curation: %s; %s", found.sentence, written)
    return found.counts


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


def _learning(model: Classifier) -> int:
    """Number of parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _head_spec(hyperparameters: Hyperparameters, classes: int) -> HeadSpec:
    return HeadSpec(classes, hyperparameters.hidden_units, hyperparameters.dropout)


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
    if not (hosts.instance_type or "").startswith("ml."):  # local mode names its kinds `local`
        return took
    return f"{took}: {seconds * len(hosts.all) / 3600:.3f} instance hours of {hosts.instance_type}"


def _head_facts(taught: Taught) -> dict[str, object]:
    """What the head reached before the layers below it learnt, where it did."""
    return {f"head_{name}": value for name, value in taught.head_metrics.items() if name.startswith("validation")}


def _search_facts(taught: Taught) -> dict[str, object]:
    """How many heads were tried and which was best, where there was a search."""
    if not taught.search:
        return {}
    return {"search_trials": len(taught.search["trials"]), "search_best_trial": taught.search["trial"]}


def _write_search(environment: TrainingEnvironment, taught: Taught) -> None:
    """All that was tried, beside the report: the file that `launch.py train --from-best` reads."""
    if not taught.search:
        return
    file = environment.paths.output_data / "search.json"
    try:
        mapped.write_whole(file, json.dumps({"search": environment.job_name, **taught.search}, indent=2).encode())
    except OSError as error:
        logger.warning("the table of the search cannot be written: %s", error)
        return
    logger.info("the search: head %s is the best, all are in %s", taught.search["trial"], file)


def _calibration_facts(taught: Taught) -> dict[str, object]:
    """How far probabilities were from the truth, and are."""
    found = taught.fitted.calibration
    if found is None:
        return {}
    return {
        "temperature": round(found.temperature, 4),
        "calibration_error_before": round(found.error_before, 4),
        "calibration_error": round(found.error, 4),
    }


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


if __name__ == "__main__":
    sys.exit(main())
