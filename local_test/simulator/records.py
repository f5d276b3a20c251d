"""What is known of a job, as DescribeTrainingJob tells it, and the folder in which jobs stand.

`job.json` is written anew with every change, whole or not at all. What AWS does not tell stands under `Local`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_test.simulator.channels import RequestError

JOBS = Path("build/platform/jobs")
"""Where jobs stand unless told otherwise."""

ACCOUNT = "111122223333"
"""The account of AWS's documentation."""

ENDED = ("Completed", "Failed", "Stopped")
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_STOP = "stop"
_RECORD = "job.json"


@dataclass
class Record:
    """One job's description.

    Args:
        folder: of the job.
        content: what job.json holds.
    """

    folder: Path
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, folder: Path, name: str, region: str, request: Mapping[str, object]) -> Record:
        """Makes the folder of a new job.

        Raises:
            RequestError: the name is none, or taken.
        """
        if not _NAME.fullmatch(name):
            raise RequestError(f"{name!r} is no name of a job: letters, digits and hyphens between them, 63 at most")
        place = folder / name
        try:
            place.mkdir(parents=True)
        except FileExistsError as error:
            raise RequestError(f"there is a job {name} in {folder}; give another name, or remove {place}") from error
        now = time.time()
        arn = f"arn:aws:sagemaker:{region}:{ACCOUNT}:training-job/{name}"
        content = {"TrainingJobName": name, "TrainingJobArn": arn, "TrainingJobStatus": "InProgress"}
        made = cls(place, {**content, **request, "CreationTime": now, "SecondaryStatusTransitions": [], "Local": {}})
        made.content["Local"]["Runner"] = os.getpid()
        made.write()
        return made

    @classmethod
    def read(cls, folder: Path, name: str) -> Record:
        """The record of a job.

        Raises:
            RequestError: there is none.
        """
        try:
            return cls(folder / name, json.loads((folder / name / _RECORD).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            known = sorted(file.parent.name for file in folder.glob(f"*/{_RECORD}"))
            there = f"there are {', '.join(known)}" if known else "there are none"
            raise RequestError(f"there is no job {name} in {folder}; {there}") from error

    @property
    def status(self) -> str:
        """TrainingJobStatus."""
        return str(self.content["TrainingJobStatus"])

    @property
    def local(self) -> dict[str, Any]:
        """What AWS does not tell."""
        found: dict[str, Any] = self.content["Local"]
        return found

    def move(self, status: str, message: str = "") -> None:
        """Enters a secondary status."""
        now = time.time()
        transitions = self.content["SecondaryStatusTransitions"]
        if transitions:
            transitions[-1].setdefault("EndTime", now)
        entry = {"Status": status, "StartTime": now, "StatusMessage": message}
        if status in (*ENDED, "MaxRuntimeExceeded"):
            entry["EndTime"] = now
        transitions.append(entry)
        self.content["SecondaryStatus"] = status
        if status == "Stopping":
            self.content["TrainingJobStatus"] = status
        self.write()

    def seconds(self, *statuses: str) -> float:
        """Time spent in some secondary statuses."""
        return sum(
            float(entry.get("EndTime", time.time())) - float(entry["StartTime"])
            for entry in self.content["SecondaryStatusTransitions"]
            if entry["Status"] in statuses
        )

    def write(self) -> None:
        """Puts it on the disk."""
        self.content["LastModifiedTime"] = time.time()
        part = self.folder / f".{_RECORD}"
        part.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")
        part.replace(self.folder / _RECORD)

    def ask_to_stop(self) -> None:
        """StopTrainingJob, from another process."""
        (self.folder / _STOP).touch()

    def is_asked_to_stop(self) -> bool:
        """Whether somebody did."""
        return (self.folder / _STOP).exists()
