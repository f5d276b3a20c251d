r"""Search for good hyperparameters with SageMaker's tuner, and follow it until it has ended.

    launch.py tune --data s3://bucket/dogbreed/data/dogs/ --weights s3://bucket/w/ --trials 20 --parallel 2 --spot \
        --range lr=0.001:0.1:log --choice model=resnet18,resnet34 --choice batch-size=128,256 --hp epochs=10

Every trial is a training job of its own on this image. What --search, --range and --choice name is searched and
nothing else; without them, every hyperparameter that the README's table gives a range, but for the model, which takes
weights of every network. --space takes the space of an earlier project. --hp fixes a value for all trials. All of it is
checked here, before anything is started.

At the end, stdout has the table of the trials, the best first, and as its last line the file with the best
hyperparameters, which `launch.py train --from-best FILE` reads; `--from-best JOB` asks the tuning job itself. Ctrl-C
stops the watching, not the search: `launch.py tune --follow NAME` goes on with it, `launch.py stop NAME` ends it.

--local searches on this machine instead, with Optuna; no account, network or Docker is needed. --data is a folder and
--weights a file; a trial is a process that trains as in the image, and all trials share what is computed once:

    launch.py tune --local --data photos --weights resnet18.pth --hp model=resnet18 --trials 20 --name dogs

With --local, --image dogbreed:latest makes each trial a container of that image, on the local Docker engine.

--estimate starts nothing: it says what the search would take and cost as separate jobs, with warm pools and inside one
job, from what a former job took (--record) or figures that are given, and from the prices that you keep:

    launch.py tune --estimate --data photos --record insight/record.json --trials 20 --prices prices.toml

The study is in build/tuning/NAME. Ctrl-C keeps what is done; the same command goes on with it, and a larger --trials
adds to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.launcher import arguments as types
from scripts.launcher import following, jobs
from scripts.launcher import settings as settings_module
from scripts.launcher.context import Context
from scripts.launcher.errors import ServiceError, SettingError
from scripts.launcher.local import folders
from scripts.launcher.plan import Call
from scripts.launcher.search import containers, estimating, forks, local, page, process, trials, tuning
from scripts.launcher.search import space as spaces
from scripts.launcher.search.page import Report
from scripts.launcher.search.space import Space
from scripts.launcher.settings import Settings

_PARALLEL = 2
# What can be computed again; the same folder as `make train`.
_CACHE = Path("build", "cache", "features")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    search = parser.add_argument_group("what is searched")
    search.add_argument(
        "--search",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="hyperparameters with the ranges that the README gives them",
    )
    types.add_pairs(search, "--range", "NAME=LOW:HIGH[:log]", "numbers between two, both included, as lr=0.001:0.1:log")
    types.add_pairs(search, "--choice", "NAME=A,B,...", "one of some values, as model=resnet18,resnet34")
    search.add_argument(
        "--space",
        choices=tuple(spaces.PRESETS),
        help="the space of an earlier project, with the preset of that name; the options above change it",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--strategy", choices=tuning.STRATEGIES, default="Bayesian", help="default %(default)s")
    how.add_argument(
        "--objective",
        default="validation_accuracy",
        metavar="METRIC",
        help="an accuracy is maximised, a loss minimised; default %(default)s",
    )
    how.add_argument(
        "--trials", type=types.positive, metavar="N", help="jobs at most; default 20, with Grid every combination"
    )
    how.add_argument("--parallel", type=types.positive, metavar="N", help="jobs at a time; default 2, with --local one")
    how.add_argument(
        "--early-stopping",
        choices=("auto", "off"),
        help="end trials that fall behind; default auto, off with Hyperband, which does so itself",
    )
    how.add_argument("--stop-after", type=types.duration, metavar="TIME", help="end the whole search then")
    how.add_argument(
        "--warm-start", nargs="+", type=types.job_name, default=[], metavar="JOB", help="learn from earlier tuning jobs"
    )
    how.add_argument(
        "--warm-start-type",
        choices=tuning.WARM_STARTS,
        default=tuning.WARM_STARTS[0],
        help="whether data and image are those of the earlier jobs; default %(default)s",
    )
    how.add_argument("--seed", type=types.seed, metavar="N", help="of the tuner's draws")
    estimating.add_arguments(parser)
    jobs.add_data_arguments(parser)
    jobs.add_machine_arguments(parser)
    jobs.add_security_arguments(parser)
    other = parser.add_argument_group("other")
    how.add_argument("--local", action="store_true", help="on this machine, as processes; with --image, as containers")
    other.add_argument("--name", type=types.job_name, help="of the search; default dogbreed and the UTC time")
    other.add_argument("--follow", type=types.job_name, metavar="NAME", help="go on watching a search; start nothing")
    other.add_argument(
        "--output", type=Path, metavar="FILE", help=f"for the best hyperparameters; default {trials.FOLDER}/NAME.json"
    )
    other.add_argument("--tags", type=types.pair, nargs="+", default=[], metavar="KEY=VALUE", help="for the bill")
    other.add_argument("--no-wait", action="store_true", help="start the search, print its name and return")
    settings_module.add_arguments(parser, "role", "bucket", "prefix", "image")


def needs_region(arguments: argparse.Namespace) -> bool:
    """Whether the command talks to AWS at all."""
    return not arguments.local and not arguments.estimate


def plan(arguments: argparse.Namespace, settings: Settings) -> list[Call]:
    """One CreateHyperParameterTuningJob; the description alone to follow one."""
    if arguments.output is not None:
        _prove(arguments.output)
    if arguments.follow:
        return [tuning.describe(arguments.follow)]
    if arguments.estimate:
        return [estimating.plan(arguments, _space(arguments))]
    if arguments.local:
        return [_local_plan(arguments, settings)]
    name = tuning.checked_name(arguments.name or settings.unique_name("dogbreed"))
    objective = trials.objective(arguments.objective)
    space = _space(arguments)
    checkpoints = f"{settings.s3_uri('jobs')}/{name}/checkpoints" if arguments.spot else None
    parameters: dict[str, Any] = {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": tuning.configuration(
            space,
            objective,
            strategy=arguments.strategy,
            trials=arguments.trials,
            parallel=arguments.parallel or _PARALLEL,
            early_stopping=arguments.early_stopping,
            seconds=arguments.stop_after,
        ),
        "TrainingJobDefinition": {
            "StaticHyperParameters": tuning.static(space, objective),
            **jobs.definition(arguments, settings, checkpoints),
        },
    }
    if arguments.seed is not None:
        parameters["HyperParameterTuningJobConfig"]["RandomSeed"] = arguments.seed
    if arguments.warm_start:
        parameters["WarmStartConfig"] = tuning.warm_start(
            arguments.warm_start, arguments.warm_start_type, arguments.strategy
        )
    if arguments.tags:
        parameters["Tags"] = types.tags(arguments.tags)
    return [Call("sagemaker", "CreateHyperParameterTuningJob", parameters)]


def run(calls: Sequence[Call], context: Context) -> int:
    """Starts the search, or goes on with one; follows it and prints its trials and its best."""
    (call,) = calls
    if context.arguments.estimate:
        return estimating.say(call, context)
    if context.arguments.local:
        return _run_here(call, context)
    name = call.parameters["HyperParameterTuningJobName"]
    if not context.arguments.follow:
        context.say(_cost_line(call.parameters))
        context.aws.call(call)
        if context.arguments.no_wait:
            context.say(f"started; `launch.py tune --follow {name}` watches it, `launch.py stop {name}` ends it")
            print(name)
            return 0
        context.say(f"started {name}; Ctrl-C leaves it running")
    try:
        description, found = tuning.follow(context.aws, name, say=context.say, sleep=context.sleep)
    except KeyboardInterrupt:
        context.say(tuning.goes_on(name))
        return following.INTERRUPTED
    except ServiceError:
        if not context.arguments.follow:
            context.say(
                f"{name} was started and may be running: `launch.py status {name}` tells, `launch.py stop {name}` ends "
                f"it and its trials"
            )
        raise
    return _finish(description, tuning.with_times(context.aws, found), context)


def _finish(description: Mapping[str, Any], found: Sequence[trials.Trial], context: Context) -> int:
    name, objective = description["HyperParameterTuningJobName"], tuning.objective_of(description)
    for line in (*tuning.outcome(description), *trials.failures(found)):
        context.say(line)
    if found:
        print(trials.as_table(found, objective))
    tuning.raise_without_trials(description, found)
    trials.raise_without_result(name, found, objective)
    config = description["HyperParameterTuningJobConfig"]
    _write_page(
        Report(name, objective, found, tuning.ranges_of(description), tuning.fixed_of(description), config["Strategy"]),
        context,
    )
    best = tuning.best_of(description, found)
    file = context.arguments.output or trials.FOLDER / f"{name}.json"
    trials.write(best, file)
    context.say(trials.spoken(best))
    context.say(f"`launch.py train --from-best {file}` trains with it")
    print(file)
    return 0


def _prove(file: Path) -> None:
    """A search takes hours; that its end cannot be written is said before."""
    if file.is_dir():
        raise SettingError(f"--output {file} is a folder; name a file in it")
    types.prove(file.parent)


def _write_page(report: Report, context: Context) -> None:
    """Its loss is no reason to end a search without its table and its file."""
    try:
        context.say(f"report: {page.write(report, trials.FOLDER / f'{report.name}.html')}")
    except OSError as error:
        context.say(f"the report cannot be written: {error}")


def _local_plan(arguments: argparse.Namespace, settings: Settings) -> Call:
    """What a local search is given; no request, for nobody is asked."""
    folders.refuse(
        jobs.account_only(arguments)
        | {
            "--instance-type": arguments.instance_type,
            "--instance-count": arguments.instance_count != 1,
            "--max-run": arguments.max_run,
            "--stop-after": arguments.stop_after,
            "--warm-start": arguments.warm_start,
            "--channel": arguments.channel,
        }
    )
    objective, space = trials.objective(arguments.objective), _space(arguments)
    # The strategies and what goes with them are SageMaker's, and refused alike.
    config = tuning.configuration(
        space,
        objective,
        strategy=arguments.strategy,
        trials=arguments.trials,
        parallel=arguments.parallel or 1,
        early_stopping=arguments.early_stopping,
        seconds=None,
    )
    most = space.combinations or tuning.MOST_RANDOM_TRIALS
    count = min(config["ResourceLimits"].get("MaxNumberOfTrainingJobs", most), most)
    ((_, _, data), *rest) = jobs.given_channels(arguments)
    for argument, text in (("--data", data), *((one, file) for one, _, file in rest)):
        folders.given_uri(argument, text)
    parameters = {
        "Name": arguments.name or settings.unique_name("dogbreed"),
        "Strategy": arguments.strategy,
        "Objective": objective.metric,
        "Trials": count,
        "Parallel": arguments.parallel or 1,
        "EarlyStopping": config["TrainingJobEarlyStoppingType"],
        "Data": data,
        "Weights": arguments.weights,
        # As the argument has it alone: what is in the environment is the image of the account.
        "Image": arguments.image,
        "Seed": arguments.seed or 0,
        "Searched": {name: str(one) for name, one in space.ranges.items()},
        "Fixed": tuning.static(space, objective),
    }
    return Call("local", "Search", parameters)


def _run_here(call: Call, context: Context) -> int:
    given, arguments = call.parameters, context.arguments
    name, objective = given["Name"], trials.objective(given["Objective"])
    plan = local.Plan(
        name=name,
        folder=trials.FOLDER / name,
        space=Space(_space(arguments).ranges, given["Fixed"]),
        objective=objective,
        strategy=given["Strategy"],
        prune=given["EarlyStopping"] == "Auto",
        trials=given["Trials"],
        parallel=given["Parallel"],
        seed=given["Seed"],
        job=process.Job(Path(given["Data"]), Path(given["Weights"]) if given["Weights"] else None, _CACHE),
    )
    starter = containers.Containers(given["Image"]) if given["Image"] else forks.Forks(plan.folder)
    search = local.Search(plan, starter, lambda line: tqdm.write(line, file=sys.stderr))
    search.run(context.sleep)
    found, best = search.trials(), search.best()
    if found:
        print(trials.as_table(found, objective))
    again = f"the same command with --name {name} goes on with it"
    if search.interrupted:
        context.say(f"interrupted after {len(found)} of {plan.trials} trials, which are kept; {again}")
    if best is None and search.interrupted:
        return following.INTERRUPTED
    trials.raise_without_result(name, found, objective)
    _write_page(Report(name, objective, found, plan.space.ranges, plan.space.fixed, plan.strategy), context)
    if best is not None:
        file = arguments.output or trials.FOLDER / f"{name}.json"
        trials.write(best, file)
        if why := search.said_of_best():
            context.say(why)
        context.say(trials.spoken(best))
        context.say(f"its model is in {search.model(best)}; `launch.py train --from-best {file}` trains with it anew")
        print(file)
    return following.INTERRUPTED if search.interrupted else 0


def _space(arguments: argparse.Namespace) -> Space:
    return spaces.make(
        fixed=types.hyperparameters(arguments.hp),
        preset=arguments.space,
        names=arguments.search,
        ranges=arguments.range,
        choices=arguments.choice,
    )


def _cost_line(parameters: Mapping[str, Any]) -> str:
    config, definition = parameters["HyperParameterTuningJobConfig"], parameters["TrainingJobDefinition"]
    limits = config["ResourceLimits"]
    count = limits.get("MaxNumberOfTrainingJobs") or tuning.combinations(config)
    resources, seconds = definition["ResourceConfig"], definition["StoppingCondition"]["MaxRuntimeInSeconds"]
    at_most = types.in_words(count * resources["InstanceCount"] * seconds)
    line = (
        f"{jobs.cost_line(definition)}, for each of at most {count} trials, {limits['MaxParallelTrainingJobs']} at a "
        f"time: {at_most} of instances in all at most"
    )
    if "MaxRuntimeInSeconds" in limits:
        line += f", and no longer than {types.in_words(limits['MaxRuntimeInSeconds'])}"
    return line
