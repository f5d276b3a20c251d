"""What the command makes of its arguments; the contract tests run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_test import cli

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--serverless", "2", "--async"], "--serverless and --async exclude each other"),
        (["--serverless", "2", "--instance-type", "ml.m5.large"], "leave --instance-type out"),
        (["--serverless", "9"], "1 to 6 GB"),
        (["--instance-type", "m5.large"], "'m5.large' is not in the table of this tool; give for example ml.m5.large"),
        (["--instances", "0"], "--instances 0 is too small; give 1 or more"),
        (["--timeout", "0"], "--timeout 0 is too small"),
        (["--bind-to-port", "9000", "--instances", "2"], "processes would share the port"),
        (["--env", "X"], "--env 'X' is not NAME=VALUE"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = cli.main(["serve", "dogs", "--process", str(tmp_path), "--model", "absent", *options])
    captured = capsys.readouterr()
    assert code == 2
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("-dogs", [], "NAME '-dogs' is not letters"),
        ("dogs_", [], "NAME 'dogs_' is not letters"),
        ("d" * 64, [], "at most 63"),
        ("dogs", [], "there is no model at absent"),
    ],
)
def test_names_and_models(
    tmp_path: Path,
    name: str,
    options: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", "--process", str(tmp_path), "--model", "absent", *options, "--", name]) == 2
    assert told in capsys.readouterr().err


def test_many_models_need_the_images_promise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.json").write_text('{"maintainer": "somebody"}')
    assert cli.main(["serve", "dogs", "--process", str(tmp_path), "--models", str(tmp_path)]) == 2
    assert "has no LABEL com.amazonaws.sagemaker.capabilities.multi-models=true" in capsys.readouterr().err
