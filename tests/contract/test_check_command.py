"""`python -m local_test check` as a user has it: report files, exit codes, and mistakes in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from local_test.cli import main
from tests.contract.conformance import SUBJECTS

FAITHFUL = str(SUBJECTS / "faithful")
CLASSIC = SUBJECTS / "classic"
# What the classic container is known for, without the checks that take a long wait.
CLASSIC_TRAIN = {
    "starts": "passed",
    "quoted": "failed",  # casts by hand
    "failure-cause": "passed",
    "hosts-model": "failed",  # every host leaves the same file
    "empty-shard": "failed",
}
CLASSIC_SERVE = {
    "ready": "passed",
    "ping-honest": "passed",
    "invocations": "passed",
    "accept-unsupported": "failed",
    "type-unsupported": "passed",
    "type-parameter": "failed",  # CSV by its exact name alone
    "bad-body": "failed",
    "errors-plain": "failed",
    "payload-6mb": "failed",  # its nginx allows 5 MB
    "payload-25mb": "failed",
    "ping-busy": "failed",  # two sync workers
    "concurrent": "passed",
    "broken-model": "passed",  # 404
    "missing-model": "passed",
    "worker-crash": "failed",  # exit code 0
}
ONLY = ["--only", "serve.invocations", "--only", "serve.accept-[amu]*"]


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Arguments for the faithful subject with a model and a request of its own; no training."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text('{"slope": 2.0}')
    (tmp_path / "request.csv").write_text("1\n2\n")
    profile = tmp_path / "profile.toml"
    profile.write_text('[serve]\nrequest = "request.csv"\ncontent_type = "text/csv"\nmodel = "model"\n')
    return ["check", "--process", FAITHFUL, "--profile", str(profile)]


def test_what_passes_ends_with_0_and_writes_three_reports(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "new" / name for name in ("report.xml", "report.json", "report.md")]
    junit, found, markdown = map(str, files)

    assert main([*asked, *ONLY, "--junit", junit, "--json", found, "--markdown", markdown]) == 0

    assert "4 passed, 0 failed, 0 not applicable" in capsys.readouterr().out
    assert ElementTree.parse(junit).getroot().get("tests") == "4"
    assert json.loads(files[1].read_text())["counts"]["passed"] == 4
    assert "serve.invocations" in files[2].read_text()


def test_what_fails_ends_with_1_and_tells_the_evidence(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.csv").write_text("one two")

    assert main([*asked, *ONLY, "--request", str(tmp_path / "odd.csv")]) == 1

    out = capsys.readouterr().out
    assert "FAILED  serve.invocations" in out
    assert "the body is no column of numbers" in out


def test_programs_are_checked_as_a_container_has_them(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with what keeps a bare process to this machine; here that would not even let Python start."""
    programs = tmp_path / "programs"
    shutil.copytree(FAITHFUL, programs)
    (programs / "process.json").write_text('{"PYTHONHOME": "/no/where"}')
    asked[asked.index(FAITHFUL)] = str(programs)

    assert main([*asked, "--only", "serve.all-interfaces"]) == 0
    assert "1 passed, 0 failed, 0 not applicable" in capsys.readouterr().out


def test_training_is_not_applicable_where_the_profile_has_none(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*asked, "--only", "train.*"]) == 0

    out = capsys.readouterr().out
    assert "the profile has no [train]" in out
    assert "0 passed, 0 failed" in out


def test_the_list_needs_no_subject(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "--list"])

    assert caught.value.code == 0
    assert "train.sigterm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "serve.nothing"], "--only 'serve.nothing' matches no check"),
        (["--profile", "nowhere.toml"], "the profile nowhere.toml cannot be read"),
        (["--model", "nowhere"], "--model nowhere is not a folder"),
        (["--request", "nowhere"], "--request nowhere cannot be read"),
        (["--keep", FAITHFUL], "is not empty"),
    ],
)
def test_a_mistake_is_one_sentence_and_2(
    arguments: list[str], told: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*asked, *arguments]) == 2

    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_classic_container_fails_where_it_is_known_to(tmp_path: Path) -> None:
    """Sync workers, 5 MB, no SIGTERM in training, exit code 0 on a crash, CSV by its exact name alone."""
    report = tmp_path / "report.json"
    profile = ["--profile", str(CLASSIC / "given" / "profile.toml")]
    side = {"train": CLASSIC_TRAIN, "serve": CLASSIC_SERVE}
    only = [argument for word, names in side.items() for name in names for argument in ("--only", f"{word}.{name}")]

    assert main(["check", "--process", str(CLASSIC), *profile, *only, "--json", str(report)]) == 1

    checks = json.loads(report.read_text())["checks"]
    found = {check["name"]: check["status"] for check in checks}
    assert found == {f"{word}.{name}": status for word, names in side.items() for name, status in names.items()}
