"""Two hosts as two containers on a network of their own: one model, one bundle, and a stop that both obey."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.container.engine import QUICK, container_name, docker, lay_out, mounts, trouble, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

HOSTS = ("algo-1", "algo-2")


@dataclass(frozen=True)
class Job:
    """One container per host, on a network where they know each other by name."""

    image: str
    network: str
    folder: Path

    def start(self, data: Path, hyperparameters: dict[str, str]) -> None:
        for host in HOSTS:
            ml = self.folder / host
            lay_out(ml, hyperparameters, hosts=HOSTS, current=host)
            docker(
                *("run", "--detach", "--name", f"{self.network}-{host}", "--hostname", host),
                *("--network", self.network, "--network-alias", host),
                *mounts(ml, data),
                *(self.image, "train"),
            )

    def stop(self, host: str) -> None:
        docker("kill", "--signal=SIGTERM", f"{self.network}-{host}")

    def log(self, host: str) -> str:
        return docker("logs", f"{self.network}-{host}").log

    def end(self) -> list[int]:
        return [int(docker("wait", f"{self.network}-{host}").log) for host in HOSTS]


@pytest.fixture
def job(image: str, tmp_path: Path) -> Iterator[Job]:
    made = Job(image, container_name(), tmp_path)
    docker("network", "create", "--internal", made.network)
    try:
        yield made
    finally:
        for host in HOSTS:
            docker("rm", "--force", f"{made.network}-{host}", check=False)
        docker("network", "rm", made.network)


def test_two_hosts_train_one_model(job: Job, data: Path) -> None:
    job.start(data, QUICK)
    codes = job.end()
    logs = [job.log(host) for host in HOSTS]
    assert codes == [0, 0], "\n".join(logs)
    assert [trouble(log) for log in logs] == [[], []]
    assert sum("epoch=2;" in log for log in logs) == 1, "the leader alone prints metrics"
    bundles = [job.folder / host / "model" / "bundle.json" for host in HOSTS]
    assert [bundle.exists() for bundle in bundles] == [True, False]
    assert "test_accuracy" in json.loads(bundles[0].read_text())["metrics"]


def test_a_stop_of_one_host_ends_both_with_a_bundle(job: Job, data: Path) -> None:
    job.start(data, QUICK | {"epochs": "1000", "patience": "0"})
    wait_for(lambda: "epoch=2;" in job.log(HOSTS[0]), 300)
    job.stop(HOSTS[1])
    assert job.end() == [0, 0], job.log(HOSTS[0]) + job.log(HOSTS[1])
    assert "ended by stop signal" in job.log(HOSTS[0])
    assert (job.folder / HOSTS[0] / "model" / "model.safetensors").stat().st_size > 0
