"""How a command is told its subject: `--image NAME` or `--process [FOLDER]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from local_test.simulator.containers import ImageSubject
from local_test.simulator.processes import ProcessSubject
from local_test.simulator.subjects import Subject

OWN_PROGRAMS = Path(__file__).resolve().parents[2] / "container"
"""`train` and `serve` of this checkout."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `--image` and `--process`, of which one is given, and `--gpus`."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--image", metavar="NAME", help="Docker image")
    group.add_argument(
        "--process",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        const=OWN_PROGRAMS,
        help="folder with programs train and serve, which honour SAGEMAKER_BASE_DIR; without one, this checkout's",
    )
    parser.add_argument("--gpus", action="store_true", help="let an image use the machine's GPUs")


def subject(image: str | None, process: Path | None, *, gpus: bool = False, as_contained: bool = False) -> Subject:
    """The subject that the arguments name.

    Args:
        image: of `--image`.
        process: of `--process`.
        gpus: see `ImageSubject`.
        as_contained: see `ProcessSubject`.

    Raises:
        SubjectError: there is no such folder or image, or no engine.
    """
    if image is not None:
        return ImageSubject(image, gpus=gpus)
    return ProcessSubject(OWN_PROGRAMS if process is None else process, as_contained=as_contained)
