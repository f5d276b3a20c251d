"""The files that the platform writes before it starts a training container.

Sources: AWS docs, your-algorithms-training-algo-running-container; API reference, HyperParameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_test.simulator.channels import Channel, RequestError

GROUP = "homogeneousCluster"
"""Name of the only instance group, as resourceconfig.json has it for a cluster of one type."""

_MAX_HYPERPARAMETERS = 100
_MAX_KEY = 256
_MAX_VALUE = 2500


def lay_out(
    root: Path,
    *,
    host: str,
    hosts: Sequence[str],
    interface: str,
    instance_type: str,
    hyperparameters: Mapping[str, str],
    channels: Sequence[Channel],
    documents: Mapping[str, object],
) -> None:
    """Makes the folders and files of one host below ``root``.

    Args:
        root: stands for /opt/ml; new.
        host: this one.
        hosts: all, sorted.
        interface: of the network between them.
        instance_type: of all.
        hyperparameters: as `written` gives them.
        channels: described, not mounted.
        documents: further files of input/config: name without .json -> content.
    """
    config = root / "input" / "config"
    for folder in (config, root / "input" / "data", root / "model", root / "output" / "data"):
        folder.mkdir(parents=True)
    group = {"instance_group_name": GROUP, "instance_type": instance_type, "hosts": list(hosts)}
    resources = {
        "current_host": host,
        "current_instance_type": instance_type,
        "current_group_name": GROUP,
        "hosts": list(hosts),
        "instance_groups": [group],
        "network_interface_name": interface,
    }
    all_documents = {
        "hyperparameters": hyperparameters,
        "inputdataconfig": {channel.name: channel.described() for channel in channels},
        "resourceconfig": resources,
        **documents,
    }
    for name, content in all_documents.items():
        (config / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def written(hyperparameters: Mapping[str, str], *, quoted: bool) -> Mapping[str, str]:
    """Hyperparameters as they stand in the file: every value a string.

    Args:
        hyperparameters: bare values.
        quoted: each value JSON-encoded, as SDK v2's framework estimators and `as_json_range` do it: the text adam
            becomes ``"adam"`` with its quotes, numbers stay. The objective's name of a tuning job stays bare.

    Raises:
        RequestError: more, or longer ones, than CreateTrainingJob takes.
    """
    if len(hyperparameters) > _MAX_HYPERPARAMETERS:
        raise RequestError(f"{len(hyperparameters)} hyperparameters; a job takes {_MAX_HYPERPARAMETERS}")
    told = {
        name: _quoted(value) if quoted and name != "_tuning_objective_metric" else value
        for name, value in hyperparameters.items()
    }
    for name, value in told.items():
        if len(name) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise RequestError(
                f"hyperparameter {name[:80]!r} has {len(name)} and {len(value)} characters in name and value; "
                f"{_MAX_KEY} and {_MAX_VALUE} are allowed"
            )
    return told


def _quoted(value: str) -> str:
    try:
        json.loads(value)
    except ValueError:
        return json.dumps(value)
    return value
