"""Trials as forks: real trainings that end as processes do, their signals, their ends, and what cannot be forked."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.launch.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "container"))

from local_test import fork_server

from scripts.launcher.errors import OutcomeError
from scripts.launcher.search.forks import Forks
from scripts.launcher.search.process import Job, Order, Processes, Started

TINY = {
    "model": "tiny",
    "pretrained": "false",
    "image-size": "32",
    "epochs": "2",
    "batch-size": "4",
    "insight": "false",
}
# Thousands of batches, read anew in every epoch: it is still at work when a test looks at it.
SLOW = {**TINY, "trainable": "all", "cache": "false", "epochs": "1000", "patience": "0"}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks trials")
PATIENCE_S = 120


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "data"
    draw = [sys.executable, str(REPOSITORY / "local_test" / "make_data.py"), str(folder), "--classes", "2"]
    subprocess.run([*draw, "--train", "6", "--valid", "2", "--test", "2"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


@pytest.fixture
def order(tmp_path: Path, data: Path) -> Order:
    return Order(Job(data, None, tmp_path / "cache"), tmp_path / "trial-000", TINY, [], None)


def start(starter: Any, order: Order) -> Started:
    return Started(order.folder, starter.start(order))


def end(trial: Started) -> Started:
    deadline = time.monotonic() + PATIENCE_S
    while not trial.ended:
        assert time.monotonic() < deadline, (trial.folder / "log").read_text()
        time.sleep(0.02)
    return trial


def until_printed(trial: Started, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    log = trial.folder / "log"
    while not log.exists() or text not in log.read_text():
        assert not trial.ended
        assert time.monotonic() < deadline
        time.sleep(0.02)


@LINUX
@pytest.mark.timeout(300)
def test_a_fork_ends_as_a_process_does(forks: Forks, order: Order) -> None:
    forked = end(start(forks, order))
    process = end(start(Processes(), replace(order, folder=order.folder.with_name("trial-001"))))
    assert (forked.code, process.code) == (0, 0)
    assert forked.metrics() == process.metrics()
    assert [epoch for epoch, _ in forked.epochs()] == [1, 2]
    assert (forked.folder / "model" / "model.safetensors").read_bytes() == (
        process.folder / "model" / "model.safetensors"
    ).read_bytes()


@LINUX
@pytest.mark.timeout(300)
def test_two_forks_have_their_own_folder_log_name_and_session(forks: Forks, order: Order, tmp_path: Path) -> None:
    slow = SLOW
    orders = [replace(order, folder=tmp_path / f"trial-{one}", hyperparameters=slow, cores=[one]) for one in (0, 1)]
    if not {0, 1} <= os.sched_getaffinity(0):
        orders = [replace(one, cores=[]) for one in orders]
    trials = [start(forks, one) for one in orders]
    for trial, given in zip(trials, orders, strict=True):
        until_printed(trial, "epoch=1;")
        pid = trial.running.pid  # type: ignore[attr-defined]
        assert os.getsid(pid) == pid
        if given.cores:
            assert os.sched_getaffinity(pid) == set(given.cores)
        places = [Path(f"/proc/{pid}/fd/{number}").resolve() for number in range(3)]
        assert places == [Path("/dev/null"), *[trial.folder / "log"] * 2]
    trials[0].stop()
    assert end(trials[0]).code == 0
    assert "SIGTERM: stopping" in (trials[0].folder / "log").read_text()
    assert trials[0].metrics()["validation_accuracy"] >= 0
    assert not trials[1].ended  # the other goes on
    trials[1].stop()
    trials[1].running.wait()
    assert end(trials[1]).code == 0
    assert "SIGTERM: stopping" in (trials[1].folder / "log").read_text()


@LINUX
@pytest.mark.timeout(300)
def test_a_fork_that_fails_has_its_code_and_its_reason(forks: Forks, order: Order) -> None:
    failed = end(start(forks, replace(order, hyperparameters={**TINY, "lr": "fast"})))
    assert failed.code == 1
    assert "lr" in failed.reason()
    assert "'fast'" in failed.reason()
    killed = start(forks, replace(order, hyperparameters={**TINY, "epochs": "500"}))
    until_printed(killed, "epoch=1;")
    os.kill(killed.running.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert end(killed).code == -signal.SIGKILL


@LINUX
@pytest.mark.timeout(300)
def test_a_folder_that_cannot_be_laid_out_is_one_sentence(forks: Forks, order: Order, tmp_path: Path) -> None:
    (tmp_path / "trial-000").mkdir()
    (tmp_path / "trial-000" / "thesis.txt").write_text("mine")
    with pytest.raises(OutcomeError, match="holds files that were not put there by a local run"):
        forks.start(order)
    assert end(start(forks, replace(order, folder=tmp_path / "other"))).code == 0


@LINUX
@pytest.mark.timeout(300)
def test_a_server_that_is_lost_takes_its_trials_along_and_is_started_anew(order: Order, tmp_path: Path) -> None:
    forks = Forks(tmp_path)
    trial = start(forks, replace(order, hyperparameters=SLOW))
    until_printed(trial, "epoch=1;")
    parent = Path(f"/proc/{trial.running.pid}/stat").read_text().rsplit(")", 1)[1].split()[1]  # type: ignore[attr-defined]
    os.kill(int(parent), signal.SIGKILL)
    assert end(trial).code == 1
    assert trial.metrics()  # it got SIGTERM and kept its best epoch
    assert end(start(forks, replace(order, folder=tmp_path / "trial-001"))).code == 0
    forks.close()


def test_where_nothing_can_be_forked_a_trial_is_a_process(order: Order, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *fork_server*) echo \'{{"ready": "there are 2 threads"}}\'; read end;;\n'
        f'*stage.py*) exec {sys.executable} "$@";;\n*) echo "trained: $*"; exit 3;; esac\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    forks = Forks(tmp_path)
    trial = end(start(forks, replace(order, job=replace(order.job, python=str(python)))))
    forks.close()
    assert trial.code == 3
    assert (trial.folder / "log").read_text() == f"trained: {REPOSITORY / 'container' / 'train'}\n"
    assert json.loads((trial.folder / "input" / "config" / "hyperparameters.json").read_text()) == TINY


def test_a_server_that_cannot_start_is_one_sentence(order: Order, tmp_path: Path) -> None:
    forks = Forks(tmp_path)
    with pytest.raises(OutcomeError, match=r"the process that starts the trials has ended; see .*fork-server\.log"):
        forks.start(replace(order, job=replace(order.job, python="/bin/false")))


@LINUX
def test_a_process_with_a_second_thread_or_cuda_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert "threads, of which a fork has one" in fork_server.why_not()
    finally:
        done.set()
        thread.join()

    class Torch:
        class cuda:
            is_initialized = staticmethod(lambda: True)

    monkeypatch.setitem(sys.modules, "torch", Torch)  # type: ignore[arg-type]
    assert fork_server.why_not() == "CUDA is in use, which a fork cannot use any more"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fork_server.why_not() == "darwin does not let a process go on after a fork"
