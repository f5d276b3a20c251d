"""The command line: every command plugs in alike, help is enough to work from, errors are sentences."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.launch.conftest import REPOSITORY
from tests.launch.scripted import Scripted

from scripts.launcher import cli

COMMANDS = REPOSITORY / "scripts" / "launcher" / "commands"
MODULES = sorted((REPOSITORY / "scripts" / "launcher").rglob("*.py"))


def test_every_module_is_a_command_and_every_command_a_module():
    assert sorted(cli._COMMANDS) == sorted(file.stem for file in COMMANDS.glob("*.py") if file.stem != "__init__")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
def test_every_module_says_what_it_is_for(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if file.name == "__init__.py":
        assert tree.body == []
    else:
        assert (ast.get_docstring(tree) or "").splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_every_command_explains_itself(launch, command):
    ended = launch(command, "--help")
    assert ended.code == 0
    assert "--dry-run" in ended.out
    assert "--region" in ended.out
    assert f"usage: launch.py {command}" in ended.out


def test_the_help_lists_every_command(launch):
    ended = launch("--help")
    assert [command for command in cli._COMMANDS if f"\n  {command} " not in ended.out] == []


@pytest.mark.parametrize("argv", [[], ["fly"], ["stop"]])
def test_what_is_no_command_is_exit_code_2(launch, argv):
    ended = launch(*argv)
    assert ended.code == 2
    assert ended.err.startswith("usage: launch.py")


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (
            ["tune", "--trials", "0"],
            [
                "usage: launch.py tune [options]; `launch.py tune --help` lists them",
                "launch.py tune: error: argument --trials: '0' is not a whole number from 1 on",
            ],
        ),
        (
            ["evaluate", "dogs", "--parallel", "0"],
            [
                "usage: launch.py evaluate [DATA] [options]; `launch.py evaluate --help` lists them",
                "launch.py evaluate: error: argument --parallel: '0' is not a whole number from 1 on",
            ],
        ),
        (
            ["api", "deploy", "--fly"],
            None,
        ),
    ],
)
def test_what_is_wrong_stands_below_one_line_of_usage(launch, argv, lines):
    ended = launch(*argv)
    assert (ended.code, ended.out) == (2, "")
    said = ended.err.splitlines()
    assert len(said) == 2
    assert lines is None or said == lines


def test_without_a_region_nothing_is_sent(launch, monkeypatch):
    launch.aws = Scripted()
    monkeypatch.delenv("AWS_REGION")
    del launch.environ["AWS_REGION"]
    ended = launch("stop", "dogs-1")
    assert ended.code == 2
    assert ended.err.startswith("launch.py stop: no region: give --region or AWS_REGION or AWS_DEFAULT_REGION")


def test_a_dry_run_needs_neither_region_nor_credentials(launch, monkeypatch):
    for name in ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
        del launch.environ[name]
    (call,) = json.loads(launch("stop", "dogs-1", "--dry-run").out)
    assert call == {
        "service": "sagemaker",
        "operation": "StopTrainingJob",
        "parameters": {"TrainingJobName": "dogs-1"},
    }


def test_the_script_runs_from_anywhere_without_torch_or_an_installation(tmp_path, environ):
    """An interpreter that finds the libraries, but neither an installed dogbreed nor torch."""
    script = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "smdebug", "sagemaker"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one).lower()]
sys.argv = ["launch.py", "train", "--data", "s3://bucket/x", "--hp", "lr=0.1", "--dry-run"]
runpy.run_path({str(REPOSITORY / "scripts" / "launch.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["operation"] == "CreateTrainingJob"


def test_a_reader_that_goes_away_is_no_error(tmp_path, environ):
    launch = [
        sys.executable,
        str(REPOSITORY / "scripts" / "launch.py"),
        "train",
        "--data",
        "s3://bucket/x",
        "--dry-run",
    ]
    with subprocess.Popen(launch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert complaint == b""
    assert Path(launch[1]).stat().st_mode & 0o111, "it is run as scripts/launch.py"
