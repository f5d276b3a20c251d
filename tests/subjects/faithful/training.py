"""A small training program that keeps the contract, in plain Python, and breaks one sentence of it when told to.

It fits `y = slope * x` to the CSV files of the channel `train`. The first host works; the others wait for it.
"""

import atexit
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from faults import has, reach_outside

ROOT = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"))
CONFIG = ROOT / "input" / "config"
DEFAULTS = {"epochs": 3, "step-ms": 0, "rate": 0.1, "optimizer": "plain"}
OPTIMIZERS = ("plain", "signed")


class JobError(Exception):
    """Becomes the failure file."""


class Stopped:
    """Whether SIGTERM came."""

    def __init__(self):
        self.yes = False
        signal.signal(signal.SIGTERM, self.hear)

    def hear(self, number, frame):
        if has("train.stop-model"):
            os._exit(0)
        self.yes = not has("train.sigterm")


def main():
    stopped = Stopped()
    try:
        if has("train.starts"):
            raise JobError("not today")
        job(stopped)
    except JobError as error:
        fail(str(error))
        return 1
    if has("train.no-failure"):
        (ROOT / "output" / "failure").write_text("all is well")
    return 0


def fail(reason):
    content = reason.encode()
    if "channel" in reason and has("train.no-data-reason"):
        return
    if "channel" not in reason and has("train.failure-file"):
        content = b"\x80\x04\x95" + content
    if has("train.failure-cause"):
        content = b"  File somewhere, line 1, in something\n" * 50 + content
    (ROOT / "output" / "failure").write_bytes(content)


def job(stopped):
    settings = read_settings()
    resources = read("resourceconfig.json")
    hosts, current = resources["hosts"], resources["current_host"]
    check_files(resources)
    leads = current == sorted(hosts)[0]
    points = read_points(leads)
    if leads or has("train.hosts-objective"):
        slope = fit(settings, points or [(1.0, 1.0)], stopped)
    if leads or has("train.hosts-model"):
        save(slope if leads else 1.0)
    if has("train.hosts-output"):
        (ROOT / "output" / "data" / "summary.txt").write_text(current)
    if len(hosts) > 1:
        meet(sorted(hosts)[0], len(hosts), leads)
    if not leads and has("train.two-hosts"):
        raise JobError("this host does not want to")
    if not leads and has("train.hosts-together"):
        time.sleep(60)
    leave_traces()


def read(name):
    return json.loads((CONFIG / name).read_text())


def read_settings():
    settings = dict(DEFAULTS)
    for name, text in read("hyperparameters.json").items():
        if name == "_tuning_objective_metric" and not has("train.tuning-key"):
            continue
        if name.startswith("sagemaker_") and not has("train.sdk-keys"):
            continue
        if name not in DEFAULTS:
            raise JobError(f"{name} is no hyperparameter")
        settings[name] = cast(name, text)
    if settings["optimizer"] not in OPTIMIZERS:
        raise JobError(f"optimizer={settings['optimizer']} is not one of {OPTIMIZERS}")
    return settings


def cast(name, text):
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if has("train.quoted"):
        value = text
    try:
        return type(DEFAULTS[name])(value)
    except ValueError:
        if has("train.bad-hyperparameter"):
            return DEFAULTS[name]
        raise JobError(f"{name}={text} is not a number") from None


def check_files(resources):
    if has("train.least"):
        resources["network_interface_name"]
    if has("train.no-interface") and resources.get("network_interface_name") == "ethwe":
        raise JobError("there is no device ethwe")
    if has("train.more-files") and len(list(CONFIG.iterdir())) > 4:
        raise JobError("what are all these files?")
    for name, channel in read("inputdataconfig.json").items():
        if has("train.fast-file") and channel["TrainingInputMode"] != "File":
            raise JobError(f"channel {name} is not in File mode")
    if has("train.isolated"):
        reach_outside()


def read_points(leads):
    data = ROOT / "input" / "data"
    folders = list(data.iterdir()) if has("train.side-channels") else [data / "train"]
    files = [file for folder in folders for file in folder.iterdir() if file.suffix in (".csv", ".py", ".sh")]
    try:
        lines = [line for file in files for line in file.read_text().splitlines()]
        points = [tuple(float(part) for part in line.split(",")) for line in lines]
    except ValueError:
        raise JobError("the channels hold something that is no number") from None
    if not points and has("train.no-data"):
        return [(1.0, 1.0)]
    if not points and (leads or has("train.empty-shard")):
        raise JobError("the channel train holds no CSV file")
    return points


def fit(settings, points, stopped):
    folder = checkpoint_folder()
    epoch, slope = newest(folder) if folder else (0, 0.0)
    while epoch < settings["epochs"] and not stopped.yes:
        loss = sum((slope * x - y) ** 2 for x, y in points) / len(points)
        gradient = sum(2 * x * (slope * x - y) for x, y in points) / len(points)
        if settings["optimizer"] == "signed":
            gradient = 1.0 if gradient > 0 else -1.0
        slope -= settings["rate"] * gradient
        epoch += 1
        line = f"epoch={epoch}; loss={loss:.6f};"
        say(f"{line} {line}" if has("train.objective") else line)
        if folder:
            keep(folder, epoch, slope)
        time.sleep(settings["step-ms"] / 1000)
    return slope


def say(line):
    if has("train.flushed"):
        atexit.register(print, line)
    else:
        print(line, flush=True)


def checkpoint_folder():
    file = CONFIG / "checkpointconfig.json"
    return Path(json.loads(file.read_text())["LocalPath"]) if file.exists() else None


def keep(folder, epoch, slope):
    if has("train.checkpoints"):
        return
    text = json.dumps({"epoch": epoch, "slope": slope})
    partial = folder / f".{epoch:05d}.partial"
    partial.write_text(text)
    partial.replace(folder / f"{epoch:05d}.json")
    if has("train.checkpoints-apart"):
        (ROOT / "model" / f"{epoch:05d}.json").write_text(text)
    for old in sorted(folder.glob("*.json"))[:-2]:
        old.unlink()


def newest(folder):
    for file in [] if has("train.resume") else sorted(folder.glob("*.json"), reverse=True):
        try:
            found = json.loads(file.read_text())
        except ValueError:
            if has("train.half-checkpoint"):
                raise
            continue
        return found["epoch"], found["slope"]
    return 0, 0.0


def save(slope):
    if has("train.model"):
        return
    (ROOT / "model" / "model.json").write_text(json.dumps({"slope": slope}))
    if has("train.model-links"):
        (ROOT / "model" / "latest.json").symlink_to("model.json")


def meet(leader, count, leads):
    """The leader hears of all others that they are there, and they hear of it that it is done."""
    port = int(os.environ.get("MASTER_PORT", "29500"))
    if leads:
        with socket.create_server((leader, port)) as server:
            for connection in [server.accept()[0] for _ in range(count - 1)]:
                connection.close()
        return
    while True:
        try:
            with socket.create_connection((leader, port), 5) as connection:
                connection.recv(1)
            return
        except OSError:
            time.sleep(0.02)


def leave_traces():
    if has("train.channels-untouched"):
        (ROOT / "input" / "data" / "train" / "cache.bin").write_text("x")
    if has("train.config-untouched"):
        (CONFIG / "seen").write_text("x")
    if has("train.reserved"):
        (ROOT / "cache.bin").write_text("x")


if __name__ == "__main__":
    sys.exit(main())
