"""Lays out /opt/ml for the jobs that checks start, in all the shapes in which the platform is known to do so."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from local_test.simulator.subjects import Mount


class Trait(StrEnum):
    """One way in which a job's files may look, and which must not change what comes of it."""

    QUOTED = "hyperparameters encoded as JSON"
    TUNING_KEY = "the tuner's key among the hyperparameters"
    SDK_KEYS = "the SDK's keys among the hyperparameters"
    SIDE_CHANNELS = "the channels `code` and `sm_drivers`"
    FAST_FILE = 'the input mode "FastFile"'
    LEAST = "the least that the files may hold"
    MORE_FILES = "configuration files beside the documented ones"
    NO_INTERFACE = "a network interface that does not exist"


# As the tuner and the SDK write them; the first is not JSON-encoded by either.
_TUNING = {"_tuning_objective_metric": "validation:accuracy"}
_SDK = {
    "sagemaker_program": "train.py",
    "sagemaker_submit_directory": "s3://bucket/source.tar.gz",
    "sagemaker_region": "eu-central-1",
    "sagemaker_container_log_level": "20",
    "sagemaker_job_name": "conformance",
}
_SIDE_FILES = {"code": ("train.py", "raise SystemExit('not to be run')\n"), "sm_drivers": ("sm_train.sh", "exit 1\n")}
# Seen beside the documented files, written by the platform itself.
_MORE_FILES: Mapping[str, object] = {
    "init-config.json": {"version": "2020-11-01"},
    "metric-definition-regex.json": [],
    "trainingjobconfig.json": {"TrainingJobName": "conformance"},
    "upstreamoutputdataconfig.json": [],
    "debughookconfig.json": {},
    "profilerconfig.json": {"ProfilingIntervalInMilliseconds": 500, "DisableProfiler": True},
}


@dataclass(frozen=True)
class Host:
    """One machine of a job.

    Args:
        name: of this host.
        names: of all.
        interface: on which they are reached.
    """

    name: str = "algo-1"
    names: Sequence[str] = ("algo-1",)
    interface: str = "eth0"


def lay_out(
    root: Path,
    beside: Path,
    *,
    channels: Mapping[str, Path],
    hyperparameters: Mapping[str, str],
    traits: Collection[Trait] = (),
    host: Host | None = None,
    sharded: bool = False,
    checkpoints: str = "",
) -> list[Mount]:
    """Makes the folders of one host of a job.

    Args:
        root: stands for /opt/ml; new.
        beside: new folder for what is mounted read-only.
        channels: name -> folder.
        hyperparameters: every value a string.
        traits: ways in which this job is unlike a plain one.
        host: where it runs.
        sharded: channels are reported as ShardedByS3Key.
        checkpoints: LocalPath of a CheckpointConfig, as the subject sees it; empty without one.

    Returns:
        The mounts: configuration and channels.
    """
    host = host or Host()
    for folder in ("input/data", "model", "output/data"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    config = beside / "config"
    config.mkdir(parents=True)
    channels = dict(channels)
    if Trait.SIDE_CHANNELS in traits:
        for name, (file, text) in _SIDE_FILES.items():
            (beside / name).mkdir()
            (beside / name / file).write_text(text)
            channels[name] = beside / name
    documents = {
        "hyperparameters.json": _hyperparameters(hyperparameters, traits),
        "inputdataconfig.json": {name: _channel(traits, sharded) for name in channels},
        "resourceconfig.json": _resources(host, traits),
        **({"checkpointconfig.json": {"LocalPath": checkpoints}} if checkpoints else {}),
        **(_MORE_FILES if Trait.MORE_FILES in traits else {}),
    }
    for name, document in documents.items():
        (config / name).write_text(json.dumps(document), encoding="utf-8")
    return [
        Mount(config, "input/config"),
        *(Mount(folder.resolve(), f"input/data/{name}") for name, folder in channels.items()),
    ]


def _hyperparameters(given: Mapping[str, str], traits: Collection[Trait]) -> dict[str, str]:
    more = {**(_TUNING if Trait.TUNING_KEY in traits else {})}
    plain = {**given, **(_SDK if Trait.SDK_KEYS in traits else {})}
    if Trait.QUOTED in traits:
        # As the SDK's framework estimators do with values that are strings, `"3"` among them.
        plain = {name: json.dumps(value) for name, value in plain.items()}
    return {**plain, **more}


def _channel(traits: Collection[Trait], sharded: bool) -> dict[str, str]:
    described = {
        "TrainingInputMode": "FastFile" if Trait.FAST_FILE in traits else "File",
        "S3DistributionType": "ShardedByS3Key" if sharded else "FullyReplicated",
        "RecordWrapperType": "None",
    }
    return described if Trait.LEAST in traits else {"ContentType": "application/x-image", **described}


def _resources(host: Host, traits: Collection[Trait]) -> dict[str, object]:
    least: dict[str, object] = {"current_host": host.name, "hosts": list(host.names)}
    if Trait.LEAST in traits:
        return least
    group = {"instance_group_name": "homogeneousCluster", "instance_type": "ml.m5.xlarge", "hosts": list(host.names)}
    return {
        **least,
        "current_instance_type": "ml.m5.xlarge",
        "current_group_name": "homogeneousCluster",
        "instance_groups": [group],
        "network_interface_name": "ethwe" if Trait.NO_INTERFACE in traits else host.interface,
    }
