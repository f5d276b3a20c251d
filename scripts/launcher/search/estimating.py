"""`launch.py tune --estimate`: what is given becomes a plan of figures, and the plan a table with its assumptions."""

from __future__ import annotations

import argparse
from pathlib import Path

from dogbreed.hyperparameters import SEARCHED_IN_JOB, Hyperparameters
from scripts.launcher import arguments as types
from scripts.launcher import jobs
from scripts.launcher.context import Context
from scripts.launcher.errors import SettingError
from scripts.launcher.plan import Call
from scripts.launcher.search import estimate, trials, tuning
from scripts.launcher.search import space as spaces
from scripts.launcher.search.space import Space

_PARALLEL = 2
# Instance, image and data of a job: minutes, which no two accounts agree on; a job's page in the console tells.
_START_S = 240
_WARM_START_S = 30
_WARM_POOL_S = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what `--estimate` takes."""
    before = parser.add_argument_group("what it would cost")
    before.add_argument("--estimate", action="store_true", help="say hours and cost of the search, and start nothing")
    before.add_argument(
        "--record", type=Path, metavar="FILE", help="insight/record.json of a former job, to measure by"
    )
    before.add_argument(
        "--image-ms", type=types.number, metavar="MS", help="per image for what runs once in a job, instead of --record"
    )
    before.add_argument(
        "--epoch-ms",
        type=types.number,
        metavar="MS",
        help="per image for one epoch of what learns, instead of --record",
    )
    before.add_argument("--images", type=types.positive, metavar="N", help="in all channels; default those of --data")
    before.add_argument(
        "--start-up", type=types.duration, default=_START_S, metavar="TIME", help="of a job's instance; default 4m"
    )
    before.add_argument(
        "--warm-start-up", type=types.duration, default=_WARM_START_S, metavar="TIME", help="in a pool; default 30"
    )
    before.add_argument(
        "--prices", type=Path, default=estimate.PRICES, metavar="FILE", help="of instance hours, by type: %(default)s"
    )


def plan(arguments: argparse.Namespace, space: Space) -> Call:
    """All that the estimate rests on; no request, for nobody is asked."""
    if arguments.local:
        raise SettingError("--estimate is of a search in an account, and --local costs nothing; leave one of them out")
    objective = trials.objective(arguments.objective)
    parallel = arguments.parallel or _PARALLEL
    config = tuning.configuration(
        space,
        objective,
        strategy=arguments.strategy,
        trials=arguments.trials,
        parallel=parallel,
        early_stopping=arguments.early_stopping,
        seconds=None,
    )
    count = config["ResourceLimits"].get("MaxNumberOfTrainingJobs") or tuning.combinations(config)
    fixed = Hyperparameters.parse(space.fixed)
    work = _work(arguments)
    epochs, epochs_from = float(spaces.most_epochs(space)), "as many as they may"
    if "epochs" in space.ranges:
        epochs, epochs_from = spaces.mean_epochs(space), "the middle of what is searched"
    if arguments.strategy == "Hyperband":
        most = spaces.most_epochs(space)
        epochs = estimate.hyperband_epochs(config["StrategyConfig"]["HyperbandStrategyConfig"]["MinResource"], most)
        epochs_from = f"on average over Hyperband's brackets, one of {estimate.HYPERBAND_FACTOR} going on at each rung"
    instance_type = arguments.instance_type or jobs.INSTANCE_TYPE
    hour, currency = estimate.price(arguments.prices, instance_type)
    outside = sorted(set(space.ranges) - set(SEARCHED_IN_JOB))
    searched = space.ranges.get("model")
    parameters = {
        "Trials": count,
        "Parallel": parallel,
        "Epochs": round(epochs, 2),
        "EpochsAre": epochs_from,
        "Networks": len(searched.choices) if searched else 1,
        "Instances": arguments.instance_count,
        "InstanceType": instance_type,
        "PerHour": hour,
        "Currency": currency,
        "StartSeconds": arguments.start_up,
        "WarmStartSeconds": arguments.warm_start_up,
        "KeepSeconds": arguments.warm_pool or _WARM_POOL_S,
        "InOneJob": fixed.trainable == "head" and not outside,
        "NotInOneJob": ", ".join(outside) or f"trainable={fixed.trainable}",
        "Images": work.images,
        "ImageSeconds": work.image_s,
        "EpochSeconds": work.epoch_s,
    }
    return Call("local", "Estimate", parameters)


def _work(arguments: argparse.Namespace) -> estimate.Work:
    """What the images cost, from a record, and what was given in its place."""
    known = estimate.measured(arguments.record) if arguments.record else None
    if known is None and (arguments.image_ms is None or arguments.epoch_ms is None):
        raise SettingError(
            "--estimate needs to know what an image costs: give --record with the insight/record.json of a job on such "
            "an instance, or --image-ms and --epoch-ms"
        )
    images = arguments.images
    if images is None and arguments.data and not arguments.data.startswith("s3://"):
        images = estimate.count_images(Path(arguments.data))
    if images is None and known is None:
        raise SettingError("--estimate needs to know how many images there are: give --images N, or --data FOLDER")
    return estimate.Work(
        images=images or (known.images if known else 0),
        image_s=known.image_s if arguments.image_ms is None and known else arguments.image_ms / 1000,
        epoch_s=known.epoch_s if arguments.epoch_ms is None and known else arguments.epoch_ms / 1000,
    )


def say(call: Call, context: Context) -> int:
    """Prints the ways side by side on stdout, and all that was assumed on stderr."""
    given = call.parameters
    search = estimate.Search(
        trials=given["Trials"],
        parallel=given["Parallel"],
        epochs=given["Epochs"],
        networks=given["Networks"],
        instances=given["Instances"],
        start_s=given["StartSeconds"],
        warm_start_s=given["WarmStartSeconds"],
        keep_s=given["KeepSeconds"],
        in_one_job=given["InOneJob"],
    )
    work = estimate.Work(given["Images"], given["ImageSeconds"], given["EpochSeconds"])
    print(estimate.as_table(estimate.estimates(search, work), given["PerHour"], given["Currency"]))
    for line in (
        f"{search.trials} trials, {search.parallel} at a time, of {search.epochs:g} epochs each: {given['EpochsAre']}; "
        f"what early stopping saves is not counted",
        f"{work.images} images, {1000 * work.image_s:.3g} ms each for what runs once in a job and "
        f"{1000 * work.epoch_s:.3g} ms for an epoch"
        + (f", as in {context.arguments.record}" if context.arguments.record else ""),
        f"a job starts in {types.in_words(search.start_s)}, on a warm instance in "
        f"{types.in_words(search.warm_start_s)}; all of it is taken to be billed",
        f"warm pools: an instance has the features of what it has seen, and is kept for "
        f"{types.in_words(search.keep_s)} after its last job",
        "inside one job: one start, one pass over the images, and one head more than there are trials; what stacking "
        "saves is not counted"
        if search.in_one_job
        else f"inside one job it cannot be done, because of {given['NotInOneJob']}",
        f"{given['Instances']} x {given['InstanceType']} at {given['PerHour']:g} {given['Currency']} an hour, from "
        f"{context.arguments.prices}; spot is not counted",
    ):
        context.say(f"assumed: {line}")
    return 0
