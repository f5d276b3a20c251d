"""Which images a job's hosts work on: all of them the same ones, or each its own (ShardedByS3Key), agreed on by all."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import partial

from dogbreed.environment import TrainingEnvironment
from dogbreed.errors import DataError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.training.distributed import Team
from dogbreed.training.sources import Splits, find_classes, find_splits

logger = logging.getLogger(__name__)

_SHOWN = 5


def find_shares(environment: TrainingEnvironment, hyperparameters: Hyperparameters, team: Team) -> tuple[Team, Splits]:
    """The samples of the job, or of this host where each has its own, and the team that knows which it is."""
    channels, hosts = environment.channels, environment.hosts
    folders = {name: channel.path for name, channel in channels.items()}
    find = partial(
        find_splits,
        folders,
        validation_fraction=hyperparameters.validation_fraction,
        seed=hyperparameters.seed,
    )
    sharded = {name: channel.sharded for name, channel in channels.items()}
    if len(hosts.all) == 1 or not any(sharded.values()):
        splits = find()
        _log_splits(replace(splits, notes=(*splits.notes, *_unvalidated(splits))), speaks=team.leads)
        _check_same_data(team, splits, hosts.current)
        return team, splits
    splits = find(classes=set().union(*team.gather(find_classes(folders))))
    fingerprint = hashlib.sha256("".join(team.gather(splits.fingerprint)).encode()).hexdigest()
    splits = replace(splits.of_host(hosts.rank, len(hosts.all), sharded), fingerprint=fingerprint)
    _log_splits(splits, speaks=team.local_rank == 0)
    return replace(team, apart=True), splits


def count(team: Team, splits: Splits) -> tuple[int, ...]:
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


def _unvalidated(splits: Splits) -> tuple[str, ...]:
    """A note on classes that validation does not know, of which a class of one image is one."""
    missing = {sample.index for sample in splits.train} - {sample.index for sample in splits.validation}
    if not missing:
        return ()
    names = [splits.labels.names[index] for index in sorted(missing)]
    advice = "none is held out of a single image" if splits.held_out else "give it some"
    return (
        f"no validation image of {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''} ({len(names)} of "
        f"{len(splits.labels)} classes): how well these are told is not measured; {advice}",
    )


def _log_splits(splits: Splits, *, speaks: bool) -> None:
    """Says what was found; what was left out of it, only a process that speaks for those that found the same."""
    logger.info(
        "%d classes; %d train images, %d validation%s, %s test",
        len(splits.labels),
        len(splits.train),
        len(splits.validation),
        " (held out of train)" if splits.held_out else "",
        "no" if splits.test is None else len(splits.test),
    )
    for note in splits.notes if speaks else ():
        logger.warning("%s", note)
