"""The files that the platform writes before it starts a training container.

Sources: AWS docs, your-algorithms-training-algo-running-container, train-heterogeneous-cluster; API reference,
HyperParameters, InstanceGroup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from local_test.simulator.channels import Channel, RequestError

GROUP = "homogeneousCluster"
"""Name of the only instance group, as resourceconfig.json has it for a cluster of one type."""

_MAX_HYPERPARAMETERS = 100
_MAX_KEY = 256
_MAX_VALUE = 2500
_MAX_GROUP_NAME = 64


@dataclass(frozen=True)
class InstanceGroup:
    """Hosts of one type.

    Args:
        name: 1 to 64 characters.
        instance_type: of all.
        count: of its hosts, 1 or more. (The API takes 0, for a group without instances.)

    Raises:
        RequestError: there is no such group.
    """

    name: str
    instance_type: str
    count: int

    def __post_init__(self) -> None:
        """Refuses what the service refuses."""
        if not 1 <= len(self.name) <= _MAX_GROUP_NAME:
            raise RequestError(f"instance group {self.name!r}: a name has 1 to {_MAX_GROUP_NAME} characters")
        if self.count < 1:
            raise RequestError(f"instance group {self.name}: {self.count} instances; give 1 or more")


def members(groups: Sequence[InstanceGroup], hosts: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The hosts of each group: the first ones belong to the first group, and so on."""
    found, begin = {}, 0
    for group in groups:
        found[group.name] = list(hosts[begin : begin + group.count])
        begin += group.count
    return found


def lay_out(
    root: Path,
    *,
    host: str,
    hosts: Sequence[str],
    interface: str,
    groups: Sequence[InstanceGroup],
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
        groups: to which they belong.
        hyperparameters: as `written` gives them.
        channels: that this host gets; described, not mounted.
        documents: further files of input/config: name without .json -> content.
    """
    config = root / "input" / "config"
    for folder in (config, root / "input" / "data", root / "model", root / "output" / "data"):
        folder.mkdir(parents=True)
    own = members(groups, hosts)
    current = next(group for group in groups if host in own[group.name])
    resources = {
        "current_host": host,
        "current_instance_type": current.instance_type,
        "current_group_name": current.name,
        "hosts": list(hosts),
        "instance_groups": [
            {"instance_group_name": group.name, "instance_type": group.instance_type, "hosts": own[group.name]}
            for group in groups
        ],
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
