"""docs/aws-endpoints.md says what the command line does: its commands are run, its JSON is compared."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.launch.conftest import REPOSITORY, Launch

GUIDE = (REPOSITORY / "docs" / "aws-endpoints.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^scripts/launch\.py (.+)$", GUIDE, re.MULTILINE)
STAMP = re.compile(r"dogs-\d{8}-\d{6}-\d{3}")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the guide speaks of."""
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg"):
        (tmp_path / name).write_bytes(b"-")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_is_understood(launch: Launch, command: str) -> None:
    argv = [word for word in shlex.split(command.partition(" < ")[0]) if word != "--dry-run"]
    ended = launch(*argv, "--dry-run")
    assert (ended.code, ended.err) == (0, "")


def test_the_guide_shows_the_requests_as_they_are(launch: Launch) -> None:
    for name, value in re.findall(r"^export (\w+)=(\S+)$", GUIDE, re.MULTILINE):
        launch.environ[name] = value
    (command,) = (command for command in COMMANDS if command.endswith("--dry-run"))
    ended = launch(*shlex.split(command))
    shown = re.search(r"```json\n(\[.*?\n\])\n```", GUIDE, re.DOTALL)
    assert shown is not None
    assert STAMP.sub("dogs-TIME", shown[1]) == STAMP.sub("dogs-TIME", ended.out.rstrip())
    assert json.loads(shown[1])
