"""What a search may take and cost, before anything is started: as separate jobs, with warm pools, and inside one job.

Arithmetic on figures that were measured or given, with what it assumes beside the result. A job takes its start-up, one
pass of what is frozen over all images, and its epochs; the three ways differ in how often each is paid. Pure, but for
the files that it reads figures from. Prices are the user's own: none is known here.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dogbreed.imagefiles import images_below
from scripts.launcher.errors import SettingError
from scripts.launcher.tables import table

PRICES = Path(__file__).resolve().parents[2] / "prices.toml"
"""The file that users fill in."""

HYPERBAND_FACTOR = 3
"""SageMaker does not say its own; the paper and Optuna have it (Li et al. 2018, Hyperband)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the images of one job cost to learn from.

    Attributes:
        images: in all channels.
        image_s: seconds per image for what runs once in a job: the frozen part, decoding included, and the test.
        epoch_s: seconds per image for one epoch of what learns, validation included.
    """

    images: int
    image_s: float
    epoch_s: float


@dataclass(frozen=True, slots=True)
class Search:
    """What is to be searched, and on what.

    Attributes:
        trials: in all.
        parallel: at a time.
        epochs: of a trial, on average.
        networks: different ones among the trials: a warm instance has the features of those it has seen.
        instances: of one trial.
        start_s: from a job's creation to its first step of ours: instance, image, data.
        warm_start_s: the same on an instance of a warm pool.
        keep_s: that a warm pool is kept after its last job.
        in_one_job: whether the heads can be tried inside one job.
    """

    trials: int
    parallel: int
    epochs: float
    networks: int
    instances: int
    start_s: float
    warm_start_s: float
    keep_s: float
    in_one_job: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one way of searching comes to.

    Attributes:
        way: its name.
        wall_s: from the start to the last result.
        billed_s: of all instances together.
    """

    way: str
    wall_s: float
    billed_s: float


def estimates(search: Search, work: Work) -> list[Estimate]:
    """The ways that are possible, dearest first as a rule.

    Trials are taken to last equally long. Where they do not, a search ends later than this by less than one trial.
    """
    frozen_s = work.images * work.image_s
    learning_s = work.images * work.epoch_s * search.epochs
    job_s = search.start_s + frozen_s + learning_s
    parallel = min(search.parallel, search.trials)
    rounds = math.ceil(search.trials / parallel)
    found = [Estimate("separate jobs", rounds * job_s, search.trials * job_s * search.instances)]

    # The trials of one instance, in order; a network that it has seen has its features in the pool's folder.
    again = rounds - 1
    known = max(0, again - (search.networks - 1))
    wall_s = job_s + again * (search.warm_start_s + learning_s) + (again - known) * frozen_s
    later = search.trials - parallel
    computed = min(search.trials, parallel * search.networks)
    used_s = parallel * search.start_s + later * search.warm_start_s + computed * frozen_s + search.trials * learning_s
    billed_s = (used_s + parallel * search.keep_s) * search.instances
    found.append(Estimate("warm pools", wall_s, billed_s))

    if search.in_one_job:
        one_s = search.start_s + frozen_s + (search.trials + 1) * learning_s
        found.append(Estimate("inside one job", one_s, one_s * search.instances))
    return found


def hyperband_epochs(least: int, most: int, factor: int = HYPERBAND_FACTOR) -> float:
    """Epochs of a trial on average over Hyperband's brackets, each trial paying for its own alone.

    Args:
        least: epochs before the first trials are stopped.
        most: epochs of the trials that are left in the end.
        factor: one of so many goes on at each rung.
    """
    brackets = int(math.log(most / least, factor) + 1e-9)
    trials, epochs = 0, 0.0
    for rungs in range(brackets, -1, -1):
        begun = math.ceil((brackets + 1) / (rungs + 1) * factor**rungs)
        reached = 0.0
        for rung in range(rungs + 1):
            resource = most / factor ** (rungs - rung)
            epochs += (begun // factor**rung) * (resource - reached)
            reached = resource
        trials += begun
    return epochs / trials


def measured(file: Path) -> Work:
    """What a former job took, from the record that its report was made of.

    Raises:
        SettingError: the file is no such record, or the job was too short to measure by.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        facts, epochs = record["facts"], record["epochs"]
        images = int(facts["train_images"]) + int(facts["validation_images"])
        total = images + int(facts["test_images"])
        seconds = (datetime.fromisoformat(record["ended"]) - datetime.fromisoformat(record["started"])).total_seconds()
        learning = sum(float(one["seconds"]) for one in epochs)
        if not epochs or not images:
            raise SettingError(f"--record {file}: that job ended before its first epoch; give another")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"--record {file} cannot be read as the record of a job ({type(error).__name__}: {error}); give the "
            f"insight/record.json of one, which `launch.py report JOB` fetches, or --image-ms and --epoch-ms"
        ) from error
    return Work(total, max(0.0, seconds - learning) / total, learning / len(epochs) / total)


def count_images(folder: Path) -> int:
    """Files in and below a folder that are images by their names; raises `SettingError` for none."""
    found = len(images_below(folder))
    if not found:
        raise SettingError(f"--data {folder} holds no images to count; give --images N")
    return found


def price(file: Path, instance_type: str) -> tuple[float, str]:
    """Price of an instance hour, and its currency.

    Raises:
        SettingError: the file cannot be read or does not have the instance type; says what to add.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        hours: Mapping[str, Any] = content.get("hour", {})
        found = hours.get(instance_type)
        value = None if found is None else float(found)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingError(f"--prices {file} cannot be read: {error}") from error
    if value is None or not value > 0 or not math.isfinite(value):
        raise SettingError(
            f"{file} has no price of {instance_type}; look up what an hour of it costs you for training in your "
            f'region, and add under [hour] a line "{instance_type}" = PRICE, or give another file by --prices'
        )
    return value, str(content.get("currency", ""))


def as_table(found: list[Estimate], hour: float, currency: str) -> str:
    """The ways side by side, for people."""
    rows = [
        [
            one.way,
            f"{one.wall_s / 3600:.2f}",
            f"{one.billed_s / 3600:.2f}",
            f"{one.billed_s / 3600 * hour:.2f} {currency}".rstrip(),
            f"{found[0].billed_s / one.billed_s:.1f} x",
        ]
        for one in found
    ]
    return table(["way", "hours", "instance hours", "cost", "cheaper by"], rows)
