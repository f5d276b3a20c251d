"""A search on this machine: Optuna picks, `process` trains, and what is done is kept in SQLite.

The space, the objective and the regexes are those of SageMaker's tuner; a trial that falls behind gets SIGTERM, as it
would there. A search that was ended, by Ctrl-C or otherwise, goes on with what it had: a trial that had not ended is
tried again, one that had is not, unless all that had have failed. One process at a time runs a search. Everything
happens in one thread.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from dogbreed.hyperparameters import Hyperparameters, SearchRange
from dogbreed.statistics import standard_error
from scripts.launcher.errors import SettingError
from scripts.launcher.search import space as spaces
from scripts.launcher.search.contents import Contents, contents
from scripts.launcher.search.process import Job, Order, Started, Starter, forget_model
from scripts.launcher.search.space import Space, is_whole, most_epochs, text
from scripts.launcher.search.trials import Best, Objective, Trial, ranked

if TYPE_CHECKING:
    import optuna

_POLL_S = 0.2
# Before two epochs there is nothing to compare, and with fewer trials no median.
_FIRST_RUNG = 2
_STARTUP_TRIALS = 5
_HYPERBAND_FACTOR = 3
# Draws that repeat a finished trial, in a row, after which a space counts as explored.
_MOST_REPEATS = 100

# As `dogbreed.training.data` knows them, which this side does not import.
_TRAIN_NAMES = frozenset({"train", "training"})
_TEST_NAMES = frozenset({"test", "testing"})

# Below a search's folder: what is left of the images without those of the test, and what the process that runs holds.
_LINKS = "data"
_LOCK = "study.db.lock"
# Where a trial that is a container finds them.
_CONTAINER_CHANNELS = Path("/opt/ml/input/data")

# Of the study.
_PLAN = "plan"
_CONTENTS = "contents"
_FORGOTTEN = "forgotten"
# Of a trial.
_REASON = "reason"
_VALUE = "value"
_IMAGES = "images"
_STATE = "state"
# Only a trial that has ended has it: one that was interrupted or repeats another does not count.
_SECONDS = "seconds"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is searched, and how.

    Attributes:
        name: of the search.
        folder: of its study and trials.
        space: what is searched.
        objective: what it is judged by.
        strategy: as SageMaker has them: Bayesian, Random, Hyperband or Grid.
        prune: whether trials that fall behind are stopped.
        trials: how many there are to be in all, those of earlier runs included.
        parallel: trials at a time.
        seed: of the draws.
        job: data, weights and cache.
    """

    name: str
    folder: Path
    space: Space
    objective: Objective
    strategy: str
    prune: bool
    trials: int
    parallel: int
    seed: int
    job: Job

    def identity(self) -> str:
        """What two runs of one search must agree in, as `differences` reads it."""
        ranges = {name: str(one) for name, one in self.space.ranges.items()}
        fixed = dict(self.space.fixed)
        places = [str(self.job.data.resolve()), str(self.job.weights.resolve()) if self.job.weights else ""]
        return json.dumps([ranges, fixed, self.objective.metric, self.strategy, places], sort_keys=True)

    def differences(self, known: str) -> list[str]:
        """In what a run with another identity differs from this one, as ends of a sentence about it."""
        ranges, fixed, metric, strategy, (data, weights) = json.loads(known)
        own_ranges, own_fixed, own_metric, own_strategy, (own_data, own_weights) = json.loads(self.identity())
        found = {
            "another space": (ranges, fixed) != (own_ranges, own_fixed),
            f"another objective ({metric})": metric != own_metric,
            f"another strategy ({strategy})": strategy != own_strategy,
            f"other data ({data})": data != own_data,
            f"other weights ({weights or 'none'})": weights != own_weights,
        }
        return [text for text, differs in found.items() if differs]

    @property
    def left_out(self) -> frozenset[str]:
        """Folders of images that this search does not look at: those of the test, unless the objective is theirs."""
        return frozenset() if self.objective.metric.startswith("test_") else _test_folders(self.job.data)


@dataclass
class _Running:
    """A trial that runs: as Optuna has it, and what was started for it."""

    trial: optuna.Trial
    process: Started
    stopped: bool = False


@dataclass
class Search:
    """A study, and what of it is running.

    Args:
        plan: what to do.
        starter: runs the trials.
        say: takes one line.

    Raises:
        SettingError: Optuna is missing, or the folder holds another search, or this one is running already.
    """

    plan: Plan
    starter: Starter
    say: Callable[[str], None]
    interrupted: bool = False
    _running: dict[int, _Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._optuna = _library()
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _held(self.plan)
        try:
            self._prepare()
        except BaseException:
            self._lock.close()
            raise

    def _prepare(self) -> None:
        self._study = self._study_of()
        # Numbers of trials that have ended and do not count.
        self._forgotten = set(self._study.user_attrs.get(_FORGOTTEN, ()))
        self._open()
        self._forget_models(self._folder(one.number).name for one in self._finished())
        self._job = self.plan.job
        if not self.plan.objective.metric.startswith("test_"):
            self._job = replace(self._job, data=without_test(self._job.data, self.plan.folder / _LINKS))
        self._slots = _slots(self.plan.parallel)
        # Where every trial has the same network, the first computes the features and the others wait for them.
        self._features_known = "model" in self.plan.space.ranges

    def run(self, sleep: Callable[[float], None]) -> None:
        """Runs trials until there are as many as planned, or until Ctrl-C; then those that run are stopped."""
        with tqdm(total=self.plan.trials, initial=self._done(), unit="trial", desc=self.plan.name, disable=None) as bar:
            try:
                while self._start():
                    sleep(_POLL_S)
                    self._look(bar)
            except KeyboardInterrupt:
                self.interrupted = True
            finally:
                self._stop()

    def trials(self) -> list[Trial]:
        """The trials that have ended, in the order of their start."""
        return [self._trial(one) for one in self._finished()]

    def best(self) -> Best | None:
        """The best of them, or the defaults where it is better by no more than chance; None where none has a value."""
        found = ranked(self.trials(), self.plan.objective)
        if not found:
            return None
        best = found[0] if self._chance() is None else self._defaults_of(found) or found[0]
        if best.value is None:
            return None
        together = {**self.plan.space.fixed, **best.hyperparameters}
        return Best(self.plan.name, best.name, self.plan.objective.metric, best.value, together)

    def said_of_best(self) -> str:
        """Why the best is not the trial with the best value; empty where it is."""
        found, error = ranked(self.trials(), self.plan.objective), self._chance()
        defaults = self._defaults_of(found)
        if error is None or defaults is None or defaults is found[0]:
            return ""
        return (
            f"{found[0].name} reached {found[0].value:.6g} and the defaults {defaults.value:.6g}: the difference is "
            f"within one standard error of what was measured, {error:.4f}, and the defaults stay"
        )

    def _chance(self) -> float | None:
        """The standard error of the defaults' accuracy where no trial is better by more; None elsewhere.

        As inside a job: see `dogbreed.training.tryout`.
        """
        found = ranked(self.trials(), self.plan.objective)
        defaults = self._defaults_of(found)
        if defaults is None or self.plan.objective.goal != "maximise":
            return None
        images = next(
            (one.user_attrs.get(_IMAGES) for one in self._finished() if self._folder(one.number).name == defaults.name),
            None,
        )
        if images is None or defaults.value is None or found[0].value is None:
            return None
        error = standard_error(defaults.value, images)
        return error if found[0].value - defaults.value <= error else None

    def _defaults_of(self, found: Sequence[Trial]) -> Trial | None:
        """The trial that has what a job has that is not searched for; None where the ranges leave it out."""
        values = {name: text(value) for name, value in self._inside().items()}
        return next((one for one in found if one.hyperparameters == values), None)

    def model(self, best: Best) -> Path:
        """Folder of the best trial's bundle."""
        return self.plan.folder / best.trial / "model"

    def _study_of(self) -> optuna.Study:
        plan, logging = self.plan, self._optuna.logging
        logging.set_verbosity(logging.ERROR)
        study: optuna.Study = self._optuna.create_study(
            storage=f"sqlite:///{(plan.folder / 'study.db').resolve()}",
            study_name=plan.name,
            direction=plan.objective.goal.replace("ise", "ize"),
            load_if_exists=True,
        )
        return study

    def _open(self) -> None:
        plan, study = self.plan, self._study
        found = contents(plan.job.data, plan.job.weights, without=plan.left_out)
        self._refuse_another(found)
        study.set_user_attr(_PLAN, plan.identity())
        study.set_user_attr(_CONTENTS, asdict(found))
        self._resume(study)
        self._try_again()
        # The draws of an earlier run must not come again.
        seed = plan.seed + len(study.get_trials(deepcopy=False))
        samplers = self._optuna.samplers
        draws = samplers.TPESampler if plan.strategy in ("Bayesian", "Hyperband") else samplers.RandomSampler
        study.sampler = draws(seed=seed)
        study.pruner = self._pruner()

    def _refuse_another(self, found: Contents) -> None:
        """Raises `SettingError` where the folder holds another search, or this one of images that have changed.

        Values of other images cannot be compared; where there are none yet, there is nothing to compare.
        """
        known, before = (self._study.user_attrs.get(name) for name in (_PLAN, _CONTENTS))
        differences = self.plan.differences(known) if known is not None else []
        if not differences and before is not None and any(self._has_value(one) for one in self._ended()):
            differences = [change] if (change := found.change_since(Contents(**before))) else []
        if differences:
            raise SettingError(
                f"{self.plan.folder} holds a search of the same name with {', '.join(differences)}; give another "
                f"--name, or remove that folder"
            )

    def _try_again(self) -> None:
        """Where all that has ended has failed, nothing of it counts: what was wrong may have been put right since."""
        failed = self._finished()
        if not failed or any(self._has_value(one) for one in failed):
            return
        for one in failed:
            self._study.enqueue_trial(one.params)
        self._forgotten |= {one.number for one in failed}
        self._study.set_user_attr(_FORGOTTEN, sorted(self._forgotten))
        self.say(f"all {len(failed)} trials so far have failed; they are tried again")

    def _resume(self, study: optuna.Study) -> None:
        """Queues what had not ended; the first time, the defaults, or the whole grid."""
        states = self._optuna.trial.TrialState
        trials = study.get_trials(deepcopy=False)
        for one in trials:
            if one.state != states.RUNNING:
                continue
            if _SECONDS in one.user_attrs:  # it had ended, and the search before the study was told
                state = states[one.user_attrs[_STATE]]
                study.tell(one.number, one.user_attrs[_VALUE] if state == states.COMPLETE else None, state=state)
            else:
                study.tell(one.number, state=states.FAIL)
                study.enqueue_trial(one.params)
        if not trials:
            for params in self._first():
                study.enqueue_trial(dict(params))

    def _first(self) -> Sequence[Mapping[str, Any]]:
        space = self.plan.space
        if self.plan.strategy == "Grid":
            return list(spaces.grid(space))
        inside = self._inside()
        return [{name: text(value) if space.ranges[name].choices else value for name, value in inside.items()}]

    def _inside(self) -> dict[str, Any]:
        """The defaults, or the preset's values, of what is searched, where its range has them."""
        space = self.plan.space
        defaults = Hyperparameters.parse(space.fixed).as_dict()
        return {name: defaults[name] for name, one in space.ranges.items() if _holds(one, defaults[name])}

    def _pruner(self) -> optuna.pruners.BasePruner:
        pruners, plan = self._optuna.pruners, self.plan
        found: optuna.pruners.BasePruner = pruners.NopPruner()
        if plan.strategy == "Hyperband":
            epochs = most_epochs(plan.space)
            found = pruners.HyperbandPruner(
                min_resource=min(_FIRST_RUNG, epochs), max_resource=epochs, reduction_factor=_HYPERBAND_FACTOR
            )
        elif plan.prune:
            found = pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=_FIRST_RUNG)
        return found

    def _start(self) -> bool:
        """Starts as many trials as there is room for; False when nothing runs and nothing is left."""
        while len(self._running) < self.plan.parallel and self._done() + len(self._running) < self.plan.trials:
            if self._running and not self._features_known:
                break
            trial = self._next()
            if trial is None:
                break
            slot = next(slot for slot in self._slots if slot not in self._running)
            cores, device = self._slots[slot]
            drawn = {name: text(value) for name, value in trial.params.items()}
            hyperparameters = {**_spared(self.plan.space), **self.plan.space.fixed, **drawn}
            folder = self._folder(trial.number)
            running = self.starter.start(Order(self._job, folder, hyperparameters, cores, device))
            self._running[slot] = _Running(trial, Started(folder, running))
        return bool(self._running)

    def _next(self) -> optuna.Trial | None:
        """A trial that no other repeats, or None when there is none left."""
        tried = [one.params for one in self._ended()]
        tried += [one.trial.params for one in self._running.values()]
        for _ in range(_MOST_REPEATS):
            trial = self._study.ask()
            self._suggest(trial)
            if trial.params not in tried:
                return trial
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            if self.plan.space.combinations is not None:
                left = [params for params in spaces.grid(self.plan.space) if params not in tried]
                if not left:
                    return None
                self._study.enqueue_trial(left[0])
        return None

    def _suggest(self, trial: optuna.Trial) -> None:
        for name, one in self.plan.space.ranges.items():
            if one.choices:
                trial.suggest_categorical(name, [text(choice) for choice in one.choices])
            elif one.low is not None and one.high is not None and is_whole(name):
                trial.suggest_int(name, int(one.low), int(one.high), log=one.scale == "log")
            elif one.low is not None and one.high is not None:
                trial.suggest_float(name, one.low, one.high, log=one.scale == "log")

    def _look(self, bar: tqdm[Any]) -> None:
        """Reads what the trials have printed, stops those that fall behind, and keeps those that have ended."""
        for slot, running in list(self._running.items()):
            ended = running.process.ended
            self._report(running)
            if ended:
                del self._running[slot]
                self._features_known = True
                self._keep(running)
                best = self.best()
                bar.update()
                bar.set_postfix_str(f"best {best.metric}={best.value:.6g}" if best else "no result yet")

    def _report(self, running: _Running) -> None:
        for epoch, metrics in running.process.epochs():
            self._features_known = True
            value = metrics.get(self.plan.objective.metric)
            if value is None or running.stopped:
                continue
            running.trial.report(value, step=epoch)
            if running.trial.should_prune():
                running.stopped = True
                running.process.stop()

    def _keep(self, running: _Running) -> None:
        """Tells the study how a trial has ended, and forgets its model unless it is the best."""
        states = self._optuna.trial.TrialState
        trial, process = running.trial, running.process
        metric = self.plan.objective.metric
        value = process.metrics().get(metric)
        before = self.best()
        state = states.PRUNED if running.stopped else states.COMPLETE
        if value is None or (process.code and not running.stopped):
            state = states.FAIL
            trial.set_user_attr(_REASON, process.reason())
        elif not math.isfinite(value):
            state, value = states.FAIL, None
            trial.set_user_attr(_REASON, f"its {metric} is no finite number")
        if value is not None:
            trial.set_user_attr(_VALUE, value)
            trial.set_user_attr(_IMAGES, process.images(metric))
        trial.set_user_attr(_STATE, state.name)
        # The last: with it the trial counts as one that has ended.
        trial.set_user_attr(_SECONDS, process.seconds)
        self._study.tell(trial, value if state == states.COMPLETE else None, state=state)
        kept = self._trial(self._study.get_trials(deepcopy=False)[trial.number])
        self._forget_models({kept.name, *([before.trial] if before else [])})
        self.say(_line(kept, self.plan.objective))

    def _forget_models(self, of: Iterable[str]) -> None:
        """Removes the bundles of these trials, but for the best one's."""
        best = self.best()
        for name in set(of) - {best.trial if best else ""}:
            forget_model(self.plan.folder / name)

    def _stop(self) -> None:
        """Ends what runs; the study has it as running, and the next run tries it again."""
        for running in self._running.values():
            running.process.stop()
        for running in self._running.values():
            running.process.running.wait()
        self._running.clear()
        self.starter.close()
        self._lock.close()

    def _done(self) -> int:
        return len(self._finished())

    def _finished(self) -> list[optuna.trial.FrozenTrial]:
        return [one for one in self._ended() if one.state.is_finished()]

    def _ended(self) -> list[optuna.trial.FrozenTrial]:
        """Those that count; the study may not have been told yet."""
        trials = self._study.get_trials(deepcopy=False)
        return [one for one in trials if _SECONDS in one.user_attrs and one.number not in self._forgotten]

    def _has_value(self, one: optuna.trial.FrozenTrial) -> bool:
        states = self._optuna.trial.TrialState
        state = states[one.user_attrs[_STATE]] if _STATE in one.user_attrs else one.state
        return state in (states.COMPLETE, states.PRUNED)

    def _trial(self, one: optuna.trial.FrozenTrial) -> Trial:
        states = self._optuna.trial.TrialState
        statuses = {states.COMPLETE: "Completed", states.PRUNED: "Stopped", states.FAIL: "Failed"}
        attributes = one.user_attrs
        return Trial(
            self._folder(one.number).name,
            statuses[one.state],
            None if one.state == states.FAIL else attributes.get(_VALUE),
            {name: text(value) for name, value in one.params.items()},
            seconds=attributes.get(_SECONDS),
            reason=self._as_given(attributes.get(_REASON, ""), self._folder(one.number)),
        )

    def _as_given(self, reason: str, folder: Path) -> str:
        """A reason with images and weights where the user has them, and not where the trial found them."""
        job, channels = self.plan.job, [folder.resolve() / "input" / "data", _CONTAINER_CHANNELS]
        found = [(channel / "train", job.data) for channel in channels]
        found.append((self.plan.folder.resolve() / _LINKS, job.data))
        if job.weights:
            found += [(channel / "pretrained" / job.weights.resolve().name, job.weights) for channel in channels]
        for there, given in found:
            reason = reason.replace(str(there), str(given))
        return reason

    def _folder(self, number: int) -> Path:
        return self.plan.folder / f"trial-{number:03d}"


def _spared(space: Space) -> dict[str, str]:
    """What is worth knowing of the model that is kept, and not of each trial, unless somebody asks for it.

    What an endpoint may do is one; the hook, the rules and the report are another, which cost a short job more than its
    training does.
    """
    asked = any(space.fixed.get(name) for name in ("rules", "stop-on", "tensorboard"))
    return {"check-precision": "false"} | ({} if asked else {"insight": "false"})


def without_test(data: Path, folder: Path) -> Path:
    """The same images without those of the test, as links in ``folder``; ``data`` itself where there is no test.

    A search that does not look at them neither pays for them nor learns from them.
    """
    left_out = _test_folders(data)
    if not left_out:
        return data
    wanted = {path.name: path.resolve() for path in data.iterdir() if path.is_dir() and path.name not in left_out}
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():  # of an earlier run, when there may have been others
        if link.resolve() != wanted.get(link.name):
            link.unlink()
    for name, path in wanted.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(path)
    return folder


def _test_folders(data: Path) -> frozenset[str]:
    """Names of the folders that hold the images of the test; none where the folders are classes."""
    inside = {path.name for path in data.iterdir() if path.is_dir()} if data.is_dir() else set()
    if not _TRAIN_NAMES & {name.lower() for name in inside}:
        return frozenset()
    return frozenset(name for name in inside if name.lower() in _TEST_NAMES)


def _held(plan: Plan) -> IO[str]:
    """Holds a search for this process, until the file is closed. Raises `SettingError` where another has it.

    Whoever else opens the study would take its running trials for those of a search that was killed.
    """
    lock = (plan.folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise SettingError(f"the search {plan.name} is running already; wait for it, or give another --name") from error
    except OSError:  # a file system without locks
        pass
    return lock


def _library() -> Any:  # noqa: ANN401  a module, which need not be installed
    try:
        import optuna
    except ImportError as error:
        raise SettingError("a local search needs Optuna: run `make install`") from error
    return optuna


def _holds(one: SearchRange, value: Any) -> bool:  # noqa: ANN401  whatever type the hyperparameter has
    if one.choices:
        return value in one.choices
    return one.low is not None and one.high is not None and one.low <= value <= one.high


def _slots(parallel: int) -> dict[int, tuple[list[int], str | None]]:
    """Cores and GPU for each of the trials that run at a time."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    share = len(cores) // parallel
    if not share:
        raise SettingError(f"--parallel {parallel}: there are {len(cores)} cores for it; give at most {len(cores)}")
    devices = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return {
        slot: (cores[slot * share : (slot + 1) * share], devices[slot % len(devices)] if devices else None)
        for slot in range(parallel)
    }


def _line(trial: Trial, objective: Objective) -> str:
    searched = " ".join(f"{name}={value}" for name, value in trial.hyperparameters.items())
    if trial.status == "Failed":
        return f"{trial.name} failed: {trial.reason} ({searched})"
    return f"{trial.name} {trial.status} {objective.metric}={trial.value:.6g} ({searched})"
