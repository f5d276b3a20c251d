"""The local platform's endpoints and transform jobs on this project's image, with a real Docker engine."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_test.simulator import instance_types
from local_test.simulator.batch.job import Plan as JobPlan
from local_test.simulator.batch.job import Transform
from local_test.simulator.containers import ImageSubject
from local_test.simulator.hosting.endpoint import Several
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import Fleet
from local_test.simulator.hosting.launching import Launch
from local_test.simulator.hosting.service import Plan
from PIL import Image
from tests.contract.local_platform import HEALTH, PATIENCE_S, serving
from tests.contract.serving import save_bundle

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(600),
    # docker-py leaves the socket of a log that was followed to the end to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.tar.gz of the tiny network."""
    root = tmp_path_factory.mktemp("bundle")
    save_bundle(root)
    with tarfile.open(root / "model.tar.gz", "w:gz") as archive:
        archive.add(root / "model", ".")
    return root / "model.tar.gz"


def photo() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (80, 80), (200, 10, 30)).save(content, "JPEG")
    return content.getvalue()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.1)


def test_an_instance_type_two_containers_and_one_that_is_killed(image: str, bundle: Path, tmp_path: Path) -> None:
    limits = instance_types.instance_type("ml.t2.medium").limits
    plan = Plan("dogs", ImageSubject(image), tmp_path / "dogs", model=bundle, instances=2, limits=limits, health=HEALTH)
    with serving(plan, attempts=4) as endpoint:
        assert json.loads(endpoint.invoke(photo(), ContentType="image/jpeg")["Body"].read())["predictions"]
        victim = endpoint.service.fleet.in_service()[0]
        victim.launched.running.kill()
        for _ in range(5):
            assert endpoint.invoke(photo(), ContentType="image/jpeg")["InvokedProductionVariant"] == "AllTraffic"
        eventually(lambda: "i-0003" in {one.name for one in endpoint.service.fleet.in_service()})
    # Its pings may fail before the engine tells of its end.
    assert f"{victim.name} failed: " in endpoint.events
    assert f"{victim.name} ended with exit code 137" in endpoint.events
    assert "SIGKILL" not in endpoint.events


def test_many_models(image: str, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.tar.gz").write_bytes(bundle.read_bytes())
    # Any model is too much, so that the other goes.
    several = Several(folder, inside="/opt/ml", limit_bytes=1)
    plan = Plan("dogs", ImageSubject(image), tmp_path / "dogs", several=several, health=HEALTH)
    with serving(plan) as endpoint:
        for name in ("one", "two", "one"):
            answer = endpoint.invoke(photo(), ContentType="image/jpeg", TargetModel=f"{name}.tar.gz")
            assert json.loads(answer["Body"].read())["predictions"]
        assert endpoint.events.count('"event": "loaded"') == 3
        assert endpoint.events.count('"event": "unloaded"') == 2


def test_a_transform_job_without_a_network(image: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(photo())
    (tmp_path / "model").mkdir()
    shutil.unpack_archive(bundle, tmp_path / "model")
    events = Events(tmp_path / "events.jsonl")
    plan = JobPlan("night", tmp_path / "in", tmp_path / "out", "image/jpeg")
    launch = Launch(
        ImageSubject(image),
        tmp_path / "job",
        tmp_path / "model",
        environment=plan.asked.environment,
        network_isolation=True,
    )
    fleet = Fleet(launch, count=1, rules=HEALTH, events=events)
    fleet.open()
    try:
        assert fleet.wait_until_in_service(threading.Event())
        result = Transform(plan, fleet, instances=1, events=events).run(threading.Event())
    finally:
        fleet.close()
    assert result.status == "Completed"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{number}.jpg.out" for number in range(4)]
