"""Jobs of little programs, each of which does one thing."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_test.cli import main
from local_test.simulator.channels import RequestError, parse
from local_test.simulator.consoles import Quiet
from local_test.simulator.jobs import Checkpoints, Request, run
from local_test.simulator.processes import ProcessSubject
from local_test.simulator.records import Record
from local_test.stage import held
from tests.unit.local_test.programs import programs

HEAD = """
import json, os, pathlib, signal, sys, time
ml = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"])
config = {file.stem: json.loads(file.read_text()) for file in (ml / "input/config").iterdir()}
me, hosts = config["resourceconfig"]["current_host"], config["resourceconfig"]["hosts"]
"""


class Heard(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.statuses: list[str] = []

    def line(self, host: str, text: str) -> None:
        self.lines.append(f"{host} {text}")

    def status(self, record: Record) -> None:
        self.statuses.append(record.content["SecondaryStatus"])


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = folder / "jobs"
        self.heard = Heard()

    def program(self, body: str) -> Path:
        return programs(self.folder / "programs", train=HEAD + body)

    def run(
        self, body: str, *, stop_on: str = "", lose: Callable[[], bool] = lambda: False, **options: object
    ) -> Record:
        """Runs a job; it is stopped when somebody says ``stop_on``."""
        subject = ProcessSubject(self.program(body))

        def stop() -> bool:
            return bool(stop_on) and any(stop_on in line for line in self.heard.lines)

        return run(Request("job-1", **options), subject, self.jobs, self.heard, stop=stop, lose=lose)

    def archived(self, name: str) -> dict[str, str]:
        with tarfile.open(self.jobs / "job-1" / "output" / name) as packed:
            return {one.name: packed.extractfile(one).read().decode() for one in packed.getmembers() if one.isfile()}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    return tmp_path / "photos"


def test_a_job_finds_what_the_platform_writes(stage, photos):
    record = stage.run(
        """
print(json.dumps(config))
print(json.dumps({name: os.environ[name] for name in ("TRAINING_JOB_NAME", "TRAINING_JOB_ARN", "AWS_REGION", "OWN")}))
print(sorted(file.name for file in (ml / "input/data/train").iterdir()))
(ml / "model/weights").write_text("w")
(ml / "output/data/report").write_text("r")
""",
        hyperparameters={"lr": "0.1", "optimizer": "adam", "_tuning_objective_metric": "loss"},
        quoted=True,
        channels=[parse([f"train={photos}", "content-type=a/b"])],
        instance_type="ml.g5.xlarge",
        environment={"OWN": "/opt/ml/model"},
        region="eu-west-1",
        checkpoints=Checkpoints("/opt/ml/checkpoints/mine"),
        documents={"debughookconfig": {"LocalPath": "/opt/ml/output/tensors"}},
    )
    config, environment, files = (line.removeprefix("algo-1 ") for line in stage.heard.lines)
    ml = stage.jobs / "job-1" / "hosts" / "algo-1" / "ml"
    assert json.loads(config) == {
        "hyperparameters": {"lr": "0.1", "optimizer": '"adam"', "_tuning_objective_metric": "loss"},
        "inputdataconfig": {
            "train": {
                "TrainingInputMode": "File",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
                "ContentType": "a/b",
            }
        },
        "resourceconfig": {
            "current_host": "algo-1",
            "current_instance_type": "ml.g5.xlarge",
            "current_group_name": "homogeneousCluster",
            "hosts": ["algo-1"],
            "instance_groups": [
                {
                    "instance_group_name": "homogeneousCluster",
                    "instance_type": "ml.g5.xlarge",
                    "hosts": ["algo-1"],
                }
            ],
            "network_interface_name": "eth0",
        },
        "checkpointconfig": {"LocalPath": str(ml / "checkpoints/mine")},
        "debughookconfig": {"LocalPath": str(ml / "output/tensors")},
    }
    assert json.loads(environment) == {
        "TRAINING_JOB_NAME": "job-1",
        "TRAINING_JOB_ARN": "arn:aws:sagemaker:eu-west-1:111122223333:training-job/job-1",
        "AWS_REGION": "eu-west-1",
        "OWN": str(ml / "model"),
    }
    assert files == "['a', 'b', 'c']"
    assert record.status == "Completed"
    assert stage.heard.statuses == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert stage.archived("model.tar.gz") == {"weights": "w"}
    assert stage.archived("output.tar.gz") == {"report": "r"}
    assert Record.read(stage.jobs, "job-1").content == record.content


def test_hosts_share_the_objects_and_their_files_are_merged(stage, photos):
    record = stage.run(
        """
(ml / "model" / me).write_text(" ".join(sorted(file.name for file in (ml / "input/data/train").iterdir())))
(ml / "model" / "same").write_text(me)
""",
        hosts=2,
        channels=[parse([f"train={photos}", "distribution=ShardedByS3Key"])],
    )
    assert stage.archived("model.tar.gz") == {"127.0.0.1": "a c", "localhost": "b", "same": "127.0.0.1"}
    (clash,) = record.local["Clashes"]
    assert "same was written by 127.0.0.1 and localhost" in clash


def test_a_reason_is_cut_where_the_console_cuts_it(stage):
    record = stage.run('(ml / "output/failure").write_text("x" * 1023 + "é" + "y" * 50); sys.exit(3)')
    assert record.status == "Failed"
    assert record.content["FailureReason"] == "x" * 1023 + "é"
    assert record.local["ExitCodes"] == {"algo-1": 3}
    assert not (stage.jobs / "job-1" / "output" / "model.tar.gz").exists()


def test_without_a_reason_the_platform_has_one(stage):
    assert stage.run("sys.exit(9)").content["FailureReason"] == "AlgorithmError: , exit code: 9"


def test_a_failure_file_does_not_make_a_success_a_failure(stage):
    record = stage.run('(ml / "output/failure").write_text("never mind")')
    assert record.status == "Completed"
    assert "FailureReason" not in record.content


def test_metrics_come_from_all_lines(stage):
    record = stage.run(
        'print("loss=0.5\\rloss=0.25", file=sys.stderr); print("loss=0.125", end="")',
        metrics={"loss": r"loss=([0-9.]+)"},
    )
    (final,) = record.content["FinalMetricDataList"]
    assert final["MetricName"] == "loss"
    assert len(stage.heard.lines) == 3


OBEYS = """
def leave(*_):
    (ml / "model/weights").write_text("so far")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(100)
"""


def test_a_stop_leaves_time_to_save(stage):
    record = stage.run(OBEYS, stop_on="ready")
    assert record.status == "Stopped"
    assert stage.heard.statuses[-3:] == ["Stopping", "Uploading", "Stopped"]
    assert stage.archived("model.tar.gz") == {"weights": "so far"}


def test_a_stop_at_a_given_time(stage):
    record = stage.run("time.sleep(100)", stop_after_s=1.0, stop_grace_s=0)
    assert record.status == "Stopped"
    assert record.content["BillableTimeInSeconds"] >= 1


def test_who_does_not_hear_is_killed(stage):
    record = stage.run(
        '(ml / "model/early").write_text("e"); print("ready", flush=True); time.sleep(100)',
        stop_on="ready",
        stop_grace_s=0.3,
    )
    assert record.status == "Stopped"
    assert record.local["ExitCodes"] == {"algo-1": 137}
    assert stage.archived("model.tar.gz") == {"early": "e"}


def test_the_longest_run_is_a_stop(stage):
    record = stage.run("time.sleep(100)", max_runtime_s=0.5, stop_grace_s=0)
    assert record.status == "Stopped"
    assert stage.heard.statuses[-2:] == ["MaxRuntimeExceeded", "Stopped"]


COUNTS = """
checkpoint = pathlib.Path(config["checkpointconfig"]["LocalPath"])
signal.signal(signal.SIGTERM, lambda *_: (checkpoint / f"terminated-{me}").touch())
(ml / "model/leftover").touch() if not list(checkpoint.iterdir()) else None
found = sorted(file.name for file in checkpoint.iterdir())
print("found", *found, flush=True)
(checkpoint / f"{len(found)}-{me}").touch()
if len(found) < 4:
    time.sleep(100)
"""


def test_an_interruption_takes_all_but_the_checkpoints(stage):
    lost = 0

    def lose() -> bool:
        """Once each attempt, when all it wrote is in the store."""
        nonlocal lost
        stored = list((stage.jobs / "job-1" / "checkpoints").glob("*-*"))
        if lost < 2 and len(stored) == 2 * (lost + 1) and len(stage.heard.lines) == len(stored):
            lost += 1
            return True
        return False

    record = stage.run(COUNTS, hosts=2, lose=lose, checkpoints=Checkpoints(every_s=0.05))
    assert record.status == "Completed"
    assert record.local["Attempts"] == 3
    assert stage.heard.statuses.count("Interrupted") == 2
    assert stage.heard.statuses[3:5] == ["Interrupted", "Starting"]
    assert sorted(stage.heard.lines) == [
        "127.0.0.1 found",
        "127.0.0.1 found 0-127.0.0.1 0-localhost",
        "127.0.0.1 found 0-127.0.0.1 0-localhost 2-127.0.0.1 2-localhost",
        "localhost found",
        "localhost found 0-127.0.0.1 0-localhost",
        "localhost found 0-127.0.0.1 0-localhost 2-127.0.0.1 2-localhost",
    ], "and nobody was told by SIGTERM"
    assert stage.archived("model.tar.gz") == {}, "the model folder of a lost host is lost"


def test_an_interruption_at_a_given_time_of_each_attempt(stage):
    record = stage.run("time.sleep(1)", interruptions_s=[0.1, 0.1])
    assert (record.status, record.local["Attempts"]) == ("Completed", 3)


def test_when_one_host_fails_the_others_are_stopped(stage, monkeypatch):
    monkeypatch.setattr("local_test.simulator.jobs._OTHERS_S", 0.2)
    record = stage.run(
        f"if me == 'localhost':\n    (ml / 'output/failure').write_text('mine'); sys.exit(5)\n{OBEYS}", hosts=2
    )
    assert record.status == "Failed"
    assert record.content["FailureReason"] == "mine"


def test_pipes_are_fed_until_the_job_ends(stage, photos):
    record = stage.run(
        """
for epoch in range(2):
    pipe = ml / f"input/data/train_{epoch}"
    while not pipe.exists():
        time.sleep(0.01)
    print(pipe.read_text(), flush=True)
""",
        channels=[parse([f"train={photos}", "mode=Pipe"])],
    )
    assert record.status == "Completed"
    assert stage.heard.lines == ["algo-1 abc", "algo-1 abc"]


def test_what_is_written_to_a_channel_is_told(stage, photos):
    record = stage.run(
        '(ml / "input/data/train/cache").touch()', channels=[parse([f"train={photos}", "mode=FastFile"])]
    )
    assert record.local["WrittenChannels"] == ["input/data/train"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hosts": 0}, "0 hosts"),
        ({"hyperparameters": {"a": "x" * 2501}}, "has 1 and 2501 characters"),
        ({"hyperparameters": {str(number): "1" for number in range(101)}}, "101 hyperparameters; a job takes 100"),
        ({"name": "under_score"}, "'under_score' is no name of a job"),
    ],
)
def test_requests_that_the_service_refuses(stage, options, sentence):
    subject = ProcessSubject(stage.program(""))
    with pytest.raises(RequestError, match=sentence):
        run(Request(**{"name": "job-1", **options}), subject, stage.jobs, stage.heard)


@pytest.mark.parametrize("path", ["/tmp/x", "/opt/ml", "/opt/ml/../x", "checkpoints"])
def test_checkpoints_are_below_opt_ml(path):
    with pytest.raises(RequestError, match=f"checkpoints at {path!r}: only folders below /opt/ml"):
        Checkpoints(path)


def test_a_name_is_used_once(stage):
    stage.run("pass")
    with pytest.raises(RequestError, match="there is a job job-1"):
        stage.run("pass")


def train(stage: Stage, body: str, *options: str) -> list[str]:
    folders = ["--process", str(stage.program(body)), "--folder", str(stage.jobs), "--name", "job-1"]
    return ["train", *folders, *options]


def test_the_command_tells_how_it_ended(stage, photos, capsys):
    body = 'print("score=3 of", config["hyperparameters"]); sys.exit(int(config["hyperparameters"]["code"]))'
    options = ["--data", str(photos), "--hp", "code=4 a='b c'", "--metric", r"score=score=(\d)", "--env", "A=b"]
    assert main(train(stage, body, *options)) == 1
    out, err = capsys.readouterr()
    assert "algo-1 | score=3 of {'code': '4', 'a': 'b c'}" in err
    assert "job-1 Training" in err
    assert "job-1: Failed, billed " in out
    assert "failure reason: AlgorithmError: , exit code: 4" in out
    assert [line.split() for line in out.splitlines()][:2] == [
        ["metric", "last", "lowest", "highest", "values"],
        ["score", "3", "3", "3", "1"],
    ]


def test_mistakes_are_one_sentence(stage, capsys):
    assert main(train(stage, "", "--hp", "lr")) == 2
    assert capsys.readouterr().err == "local_test train: --hp 'lr': write NAME=VALUE\n"
    assert main(["stop", "nothing", "--folder", str(stage.jobs)]) == 2
    assert "there is no job nothing" in capsys.readouterr().err


def test_stop_from_another_process(stage, capsys):
    command = [sys.executable, "-m", "local_test", *train(stage, OBEYS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        log = stage.jobs / "job-1" / "logs" / "algo-1.log"
        deadline = time.monotonic() + 60
        while not log.exists() or "ready" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert main(["stop", "job-1", "--folder", str(stage.jobs)]) == 0
        assert capsys.readouterr().out == "job-1: Stopped\n"
        out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "job-1: Stopped" in out
    assert main(["stop", "job-1", "--folder", str(stage.jobs)]) == 2
    assert "job job-1 has ended: Stopped" in capsys.readouterr().err


TUNED = """
values = config["hyperparameters"]
assert values["_tuning_objective_metric"] == "score" and all(isinstance(value, str) for value in values.values())
for epoch in range(3):
    print(f"score={float(values['x']) * 10 + epoch - (9 if epoch == 2 else 0)};", flush=True)
    if values.get("slow") and float(values["x"]) < 0.4:
        time.sleep(100)
(ml / "model/x").write_text(values["x"])
"""


def tune(stage: Stage, body: str, *options: str) -> list[str]:
    where = ["--process", str(stage.program(body)), "--folder", str(stage.jobs), "--name", "search"]
    return ["tune", *where, "--metric", r"score=score=([-0-9.]+);", "--objective", "score", *options]


def test_a_search_takes_the_last_value_and_shows_the_best_first(stage, capsys):
    assert main(tune(stage, TUNED, "--float", "x=0..1", "--max-jobs", "3", "--parallel", "2", "--seed", "1")) == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[:3] == ["job", "status", "score"]
    assert sorted(row[0] for row in rows) == ["search-001", "search-002", "search-003"]
    scores = [float(row[2]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    best = float(rows[0][-1].removeprefix("x="))
    assert scores[0] == pytest.approx(best * 10 + 2 - 9, rel=1e-4)


def test_a_search_stops_what_is_worse_than_the_median(stage, capsys):
    options = ["--hp", "slow=1", "--float", "x=0.2..0.8", "--strategy", "grid", "--early-stop", "--grace", "0"]
    body = TUNED.replace("< 0.4", "> 0.7")
    assert main(tune(stage, body, *options, "--minimize")) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["search-001", "Completed", "-5"],
        ["search-002", "Completed", "-2"],
        ["search-003", "Stopped", "early"],
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--float", "x=0..1", "--objective", "none"], "--objective 'none' is no metric; there are score"),
        (["--float", "x=0..1", "--hp", "x=1"], "x is given by --hp and has a range"),
        (["--float", "x=0..1", "--parallel", "0"], "give 1 at least"),
        (["--float", "x=0..1", "--name", "n" * 33], "has 33 characters"),
    ],
)
def test_searches_that_the_service_refuses(stage, capsys, options, sentence):
    assert main(tune(stage, TUNED, *options)) == 2
    assert sentence in capsys.readouterr().err


GROUPED = """
channels = sorted(config["inputdataconfig"])
files = [name for name in channels if name != "piped"]
folders = {name: sorted(file.name for file in (ml / "input/data" / name).iterdir()) for name in files}
pipes = sorted(file.name for file in (ml / "input/data").glob("*_0"))
(ml / "output/data" / f"{me}.json").write_text(json.dumps([config["resourceconfig"], channels, folders, pipes]))
"""


def test_instance_groups_have_types_and_channels_of_their_own(stage, tmp_path, capsys):
    objects = tmp_path / "objects"
    objects.mkdir()
    for name in ("a", "b", "c"):
        (objects / name).touch()
    options = ["--process", str(stage.program(GROUPED)), "--folder", str(stage.jobs), "--name", "grouped"]
    options += ["--group", "loaders=ml.c5.xlarge:2", "--group", "trainer=ml.g5.xlarge:1", "--data", str(objects)]
    options += ["--channel", f"shards={objects}", "groups=loaders", "distribution=ShardedByS3Key"]
    options += ["--channel", f"piped={objects}", "groups=trainer", "mode=Pipe"]
    assert main(["train", *options, "--results", str(tmp_path / "ml")]) == 0, capsys.readouterr().err
    told = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "ml" / "output" / "data").iterdir()}
    first, second, third = sorted(told)
    groups = [
        {"instance_group_name": "loaders", "instance_type": "ml.c5.xlarge", "hosts": [first, second]},
        {"instance_group_name": "trainer", "instance_type": "ml.g5.xlarge", "hosts": [third]},
    ]
    for name, (resources, _, folders, _) in told.items():
        group = groups[name == third]
        assert resources["instance_groups"] == groups
        assert resources["current_group_name"] == group["instance_group_name"]
        assert resources["current_instance_type"] == group["instance_type"]
        assert folders["train"] == ["a", "b", "c"]
    assert [told[name][1] for name in (first, third)] == [["shards", "train"], ["piped", "train"]]
    assert [told[name][2].get("shards") for name in (first, second, third)] == [["a", "c"], ["b"], None]
    assert [told[name][3] for name in (first, second, third)] == [[], [], ["piped_0"]]
    described = json.loads((stage.jobs / "grouped" / "job.json").read_text())
    assert described["ResourceConfig"]["InstanceGroups"][1] == {
        "InstanceGroupName": "trainer",
        "InstanceType": "ml.g5.xlarge",
        "InstanceCount": 1,
    }
    sources = {one["ChannelName"]: one["DataSource"]["S3DataSource"] for one in described["InputDataConfig"]}
    assert sources["shards"]["InstanceGroupNames"] == ["loaders"]
    assert "InstanceGroupNames" not in sources["train"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--group", "a"], "--group 'a': write NAME=TYPE:COUNT"),
        (["--group", "a=ml.m5.xlarge:0"], "instance group a: 0 instances; give 1 or more"),
        (["--group", f"{'a' * 65}=ml.m5.xlarge:1"], "a name has 1 to 64 characters"),
        (
            ["--group", "a=ml.m5.xlarge:1", "--group", "a=ml.m5.large:1"],
            "instance groups a, a: 5 at most, each name once",
        ),
        ([word for name in "abcdef" for word in ("--group", f"{name}=ml.m5.xlarge:1")], "5 at most"),
        (["--group", "a=ml.m5.xlarge:2", "--hosts", "2"], "leave --hosts out"),
        (["--group", "a=ml.m5.xlarge:1", "--warm-pool", "pool"], "a warm pool and instance groups exclude each other"),
        (
            ["--group", "a=ml.m5.xlarge:1", "--channel", "x=/", "groups=b"],
            "for the instance group b, which the job does",
        ),
        (["--channel", "x=/", "groups=b"], "for the instance group b, which the job does not have"),
    ],
)
def test_instance_groups_that_the_service_refuses(stage, capsys, options, sentence):
    assert main(["train", "--process", str(stage.program("")), "--folder", str(stage.jobs), *options]) == 2
    assert sentence in capsys.readouterr().err


KEEPS = """
kept = pathlib.Path(os.environ["SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY"])
assert kept == ml / "sagemaker/warmpoolcache"
(kept / os.environ["TRAINING_JOB_NAME"]).write_text(me)
print("kept", sorted(file.name for file in kept.iterdir()))
"""


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_cache_of_a_warm_pool_outlives_the_job(stage, tmp_path, capsys, hosts):
    pool = tmp_path / "pool"
    options = ["--process", str(stage.program(KEEPS)), "--folder", str(stage.jobs), "--warm-pool", str(pool)]
    for name in ("first", "second"):
        assert main(["train", *options, "--hosts", str(hosts), "--name", name]) == 0
    assert capsys.readouterr().err.count("kept ['first', 'second']") == hosts, "each host finds its own"
    assert (
        {file.read_text() for file in pool.rglob("second")} == {"algo-1"} if hosts == 1 else {"127.0.0.1", "localhost"}
    )
    assert main(["train", *options, "--spot-interrupt-after", "1"]) == 2
    assert "a warm pool and spot instances exclude each other" in capsys.readouterr().err


def test_results_are_unpacked_instead_of_earlier_ones(stage, tmp_path, capsys):
    leaves = '(ml / "model" / me).write_text("m"); (ml / "output/data/report").write_text("r")'
    folders = ["--folder", str(stage.jobs), "--results", str(tmp_path / "ml")]

    def files() -> list[str]:
        return sorted(
            str(file.relative_to(tmp_path / "ml")) for file in (tmp_path / "ml").rglob("*") if file.name != ".staged"
        )

    assert main(["train", "--process", str(stage.program(leaves)), "--name", "one", *folders]) == 0
    assert files() == ["model", "model/algo-1", "output", "output/data", "output/data/report"]
    assert main(["train", "--process", str(stage.program("sys.exit(1)")), "--name", "two", *folders]) == 1
    assert files() == ["model", "output", "output/data"]


def test_results_move_a_model_aside_and_their_folder_is_held(stage, tmp_path, capsys):
    leaves = '(ml / "model" / "bundle.json").write_text("{}")'
    ml = tmp_path / "ml"
    folders = ["--folder", str(stage.jobs), "--results", str(ml)]
    assert main(["train", "--process", str(stage.program(leaves)), "--name", "one", *folders]) == 0
    fails = ["train", "--process", str(stage.program("sys.exit(1)")), *folders]
    with held(ml):
        assert main([*fails, "--name", "never"]) == 2
    assert "a job is running on ML=" in capsys.readouterr().err
    assert not (stage.jobs / "never").exists()
    assert (ml / "model" / "bundle.json").exists()
    for name in ("two", "three"):
        assert main([*fails, "--name", name]) == 1
    assert f"the model that was there before is now in {ml / 'model.previous'}" in capsys.readouterr().err
    assert [str(file.relative_to(ml)) for file in ml.rglob("bundle.json")] == ["model.previous/bundle.json"]


def test_a_folder_of_somebody_else_takes_no_results(stage, tmp_path, capsys):
    (tmp_path / "home" / "model").mkdir(parents=True)
    (tmp_path / "home" / "model" / "thesis").touch()
    folders = ["--process", str(stage.program("")), "--folder", str(stage.jobs)]
    assert main(["train", *folders, "--results", str(tmp_path / "home")]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "home" / "model" / "thesis").exists()
    assert not stage.jobs.exists(), "no job was begun"


def test_hyperparameters_that_cannot_be_read_are_a_sentence(stage, capsys):
    assert main(["train", "--process", str(stage.program("")), "--folder", str(stage.jobs), "--hp", "a='b"]) == 2
    assert """--hp "a='b" cannot be read: No closing quotation""" in capsys.readouterr().err


RESUMES = """
checkpoint = pathlib.Path(config["checkpointconfig"]["LocalPath"]) / me
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
name = os.environ["TRAINING_JOB_NAME"]
whole = name.endswith("whole")
if done:
    print(f"going on from {{done // 10 + 1:05d}}-{{done % 10:07d}}.pt", flush=True)
if {begins}:
    print("begun", flush=True)
step = done  # all of them, if it was lost at its very end
for step in range(done + 1, 41):
    time.sleep({step_s})
    part = checkpoint.with_suffix(".tmp")
    part.write_text(str(step))
    part.rename(checkpoint)
(ml / "model" / me).write_text({model})
"""
SPOT = ["--name", "spot", "--compare", "*", "--hosts", "2", "--from", "begun", "--seed", "3"]


def spot(stage: Stage, *options: str, model: str = "str(step)", step_s: str = "0.05", begins: str = "True") -> int:
    program = stage.program(RESUMES.format(model=model, step_s=step_s, begins=begins))
    folders = ["--process", str(program), "--folder", str(stage.jobs)]
    return main(["spot", *folders, *SPOT, "--checkpoints", "--checkpoint-every", "0.01", *options])


@pytest.mark.parametrize(("model", "code"), [("str(step)", 0), ("str(done)", 1)])
def test_interrupted_jobs_must_give_the_model_of_the_whole_one(stage, capsys, model, code):
    assert spot(stage, "--times", "2", model=model) == code
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith(f"{2 if code == 0 else 0} of 2 equal; interrupted: ")
    assert "compared: 127.0.0.1, localhost" in out[0]
    assert out[1].endswith("equal" if code == 0 else "different: 127.0.0.1, localhost")
    restarted = [json.loads((stage.jobs / f"spot-00{number}" / "job.json").read_text()) for number in (1, 2)]
    assert [record["Local"]["Attempts"] for record in restarted] == [2, 2]


@pytest.mark.parametrize(("model", "code"), [("str(step)", 0), ("str(step) + str(name.endswith('-001'))", 1)])
def test_a_job_that_was_over_too_early_is_no_interruption_but_must_be_equal(stage, capsys, model, code):
    """All jobs but the first are quicker, and the first moment is drawn near the end."""
    assert spot(stage, "--times", "2", "--seed", "2", model=model, step_s="0.08 if whole else 0.01") == code
    out = capsys.readouterr().out.splitlines()
    over = [line for line in out if " s, before it was lost at " in line]
    assert over
    assert out[1] == over[0]
    assert out[-1].startswith("2 of 2 equal; interrupted: ")
    assert out[-1].endswith(f"; {len(over)} more were over before their moments, {len(over) - code} of them equal")


def test_a_job_that_cannot_be_interrupted_is_a_sentence(stage, capsys):
    assert spot(stage, "--times", "2", step_s="0.01", begins="whole") == 1
    out, err = capsys.readouterr()
    assert "10 jobs in a row were over before their moments" in err
    assert out.splitlines()[-1] == (
        "0 of 1 equal; interrupted: none; 10 more were over before their moments, 10 of them equal"
    )


@pytest.mark.parametrize(
    ("line", "told", "kind"),
    [
        ("going on from 00003-0000002.pt", "went on in epoch 3 after batch 2", "within an epoch"),
        ("going on from 00003-0000000.pt", "went on before epoch 3", "between epochs"),
        ("hello", "began anew", "before a checkpoint"),
    ],
)
def test_where_a_job_went_on_is_told(stage, capsys, line, told, kind):
    body = f'print("begun" if not list(checkpoints.iterdir()) else {line!r}, flush=True)'
    program = stage.program(
        'checkpoints = pathlib.Path(config["checkpointconfig"]["LocalPath"])\n'
        + body
        + '\n(checkpoints / me).touch()\ntime.sleep(1)\n(ml / "model" / me).touch()'
    )
    folders = ["--process", str(program), "--folder", str(stage.jobs), "--checkpoints", "--checkpoint-every", "0.01"]
    assert main(["spot", *folders, *SPOT, "--hosts", "1", "--times", "1", "--seed", "0"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert f" s, {told}: equal" in out[1]
    assert out[-1] == f"1 of 1 equal; interrupted: 1 {kind}"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--times", "0"], "--times 0: give 1 at least"),
        (["--from", "("], "--from '(' is no regular expression"),
        (["--resumed", "("], "--resumed '(' is no regular expression"),
        (["--from", "never said"], "no moment lies in the uninterrupted job: 'never said' is in no line"),
        (["--compare", "*.pt"], "the uninterrupted job Completed: no file *.pt in its model"),
    ],
)
def test_interruptions_that_would_prove_nothing_are_refused(stage, capsys, options, sentence):
    assert spot(stage, *options, step_s="0.002") == 2
    assert sentence in capsys.readouterr().err


def test_interruptions_without_checkpoints_are_refused(stage, capsys):
    assert main(["spot", "--process", str(stage.program("")), "--folder", str(stage.jobs), *SPOT]) == 2
    assert "without --checkpoints nothing outlives an interruption" in capsys.readouterr().err


def test_stop_ends_what_is_no_training_job_by_sigterm(stage, capsys):
    """Endpoints and transform jobs tell by state.json who runs them."""
    program = (
        "import signal, sys, time; from pathlib import Path; from local_test.simulator import state;"
        "signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[1], 'told').touch(), sys.exit()));"
        "state.write(Path(sys.argv[1])); time.sleep(100)"
    )
    place = stage.folder / "endpoints" / "dogs"
    place.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", program, str(place)]) as running:
        # A runner that has ended and is not waited for would look alive.
        threading.Thread(target=running.wait).start()
        deadline = time.monotonic() + 60
        while not (place / "state.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert main(["stop", "dogs", "--folder", str(stage.jobs)]) == 0
    assert (place / "told").exists()
    assert capsys.readouterr().out == "dogs: Stopped\n"
    assert main(["stop", "dogs", "--folder", str(stage.jobs)]) == 2
