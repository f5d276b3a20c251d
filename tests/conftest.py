"""Fixtures that every kind of test shares: a drawn data set, one drawn image, and a temporary `/opt/ml`."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import configuration, settings

REPOSITORY = Path(__file__).resolve().parent.parent

# local_test is a folder of commands, not a part of the distribution.
sys.path.insert(0, str(REPOSITORY))

from local_test import make_data  # noqa: E402  found by the line above

# The networks of tests are tiny, and pytest-xdist runs as many processes as there are cores. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start: it is a handler that
# children do not inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing is written outside build. No deadline: a busy machine is no failure.
configuration.set_hypothesis_home_dir(REPOSITORY / "build" / "cache" / "hypothesis")
settings.register_profile("dogbreed", deadline=None)
settings.load_profile("dogbreed")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A job that ran in the test's process leaves a handler that prints to the stream that pytest had for that test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers and type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.setLevel(level)


@dataclass(frozen=True)
class OptMl:
    """A temporary stand-in for `/opt/ml`, with the files that the platform writes as it writes them."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "input" / "config"

    @property
    def data(self) -> Path:
        return self.root / "input" / "data"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def failure(self) -> Path:
        return self.root / "output" / "failure"

    def write(self, name: str, content: object) -> Path:
        """Writes one file of input/config: text as it is, anything else as JSON."""
        file = self.config / name
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return file

    def hyperparameters(self, values: Mapping[str, object]) -> None:
        """Every value as a string, as SageMaker passes it; names with hyphens."""
        self.write("hyperparameters.json", {name: str(value) for name, value in values.items()})

    def channels(self, **folders: Path) -> None:
        """Adds channels as links to folders, and describes them in inputdataconfig.json."""
        described = {}
        for name, folder in folders.items():
            (self.data / name).symlink_to(folder, target_is_directory=True)
            described[name] = {
                "ContentType": "application/x-image",
                "TrainingInputMode": "File",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
            }
        self.write("inputdataconfig.json", described)

    def hosts(self, *names: str, current: str = "algo-1") -> None:
        """Describes the machines of the job."""
        self.write(
            "resourceconfig.json",
            {
                "current_host": current,
                "current_instance_type": "ml.m5.xlarge",
                "current_group_name": "homogeneousCluster",
                "hosts": list(names),
                "instance_groups": [
                    {
                        "instance_group_name": "homogeneousCluster",
                        "instance_type": "ml.m5.xlarge",
                        "hosts": list(names),
                    }
                ],
                "network_interface_name": "eth0",
            },
        )


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train, valid and test: 3 classes of 6, 3 and 3 images, shorter side 48 pixels. Do not change it."""
    out = tmp_path_factory.mktemp("drawn")
    make_data.make(out, classes=3, train=6, valid=3, test=3, size=48)
    return out


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A drawn image, 48 pixels, as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    make_data.draw("circle", np.random.default_rng(0), 48).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def opt_ml(tmp_path: Path) -> OptMl:
    """An empty `/opt/ml` of a one-host job without hyperparameters; its methods add what a test needs."""
    built = OptMl(tmp_path / "ml")
    for folder in (built.config, built.data, built.model, built.failure.parent):
        folder.mkdir(parents=True)
    built.hyperparameters({})
    built.hosts("algo-1")
    return built
