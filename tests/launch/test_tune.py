"""`launch.py tune`: the request it makes, what it refuses before anything is started, and how it follows the search."""

import json
import re
import shlex
from datetime import UTC, datetime

import pytest
from tests.launch.conftest import BUCKET, IMAGE, REPOSITORY, ROLE
from tests.launch.scripted import Scripted, problems, refusal

from dogbreed.hyperparameters import declarations
from dogbreed.logs import METRIC_REGEXES
from scripts.launcher.aws import Aws
from scripts.launcher.plan import Call
from scripts.launcher.search import space as spaces
from scripts.launcher.search import tuning

DATA = ("--data", f"s3://{BUCKET}/dogbreed/data/dogs")
NAME = ("--name", "search-1")
START = datetime(2026, 11, 20, 20, 31, tzinfo=UTC)
NOT_FOUND = refusal("ValidationException", "Requested resource not found.")
NO_SEARCH = refusal("ResourceNotFound", "Could not find hyper parameter tuning job.")
ONE = ("--range", "lr=0.001:0.1:log")


def request(launch, *argv):
    """The one request that the dry run prints; right by the model of the service."""
    ended = launch("tune", *DATA, *NAME, *argv, "--dry-run")
    assert ended.code == 0, ended.err
    (call,) = json.loads(ended.out)
    assert problems(Call(**call)) == []
    return call["parameters"]


def config(launch, *argv):
    return request(launch, *argv)["HyperParameterTuningJobConfig"]


def described(status, *, strategy="Bayesian", metric="validation_accuracy", kind="Maximize", **more):
    return {
        "HyperParameterTuningJobName": "search-1",
        "HyperParameterTuningJobStatus": status,
        "HyperParameterTuningJobConfig": {
            "Strategy": strategy,
            "HyperParameterTuningJobObjective": {"Type": kind, "MetricName": metric},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 3, "MaxParallelTrainingJobs": 2},
        },
        "TrainingJobDefinition": {
            "StaticHyperParameters": {"epochs": "5", "_tuning_objective_metric": metric},
        },
        "TrainingJobStatusCounters": {"Completed": 0, "InProgress": 0, "NonRetryableError": 0, "Stopped": 0},
        **more,
    }


def summary(number, status, value=None, lr="0.01", **more):
    final = {"Type": "Maximize", "MetricName": "validation_accuracy", "Value": value}
    return {
        "TrainingJobName": f"search-1-00{number}-0a1b",
        "TrainingJobStatus": status,
        "CreationTime": START,
        "TunedHyperParameters": {"lr": lr},
        **({} if value is None else {"FinalHyperParameterTuningJobObjectiveMetric": final}),
        **more,
    }


def listed(*summaries):
    return {"TrainingJobSummaries": list(summaries)}


def times(**asked):
    return {"TrainingTimeInSeconds": 600, "BillableTimeInSeconds": 200, "ResourceConfig": {"InstanceCount": 2}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_request_of_the_issue(launch):
    found = request(
        launch,
        *ONE,
        *("--choice", "model=resnet18,resnet34", "--choice", "batch-size=128,256", "--hp", "epochs=10"),
        *("--weights", "s3://b-1/w", "--trials", "6", "--parallel", "2"),
    )
    tuning, definition = found["HyperParameterTuningJobConfig"], found["TrainingJobDefinition"]
    assert found["HyperParameterTuningJobName"] == "search-1"
    assert tuning == {
        "Strategy": "Bayesian",
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "validation_accuracy"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 2},
        "ParameterRanges": {
            "ContinuousParameterRanges": [
                {"Name": "lr", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
            ],
            "CategoricalParameterRanges": [
                {"Name": "model", "Values": ["resnet18", "resnet34"]},
                {"Name": "batch-size", "Values": ["128", "256"]},
            ],
        },
        "TrainingJobEarlyStoppingType": "Auto",
    }
    assert definition["StaticHyperParameters"] == {"objective": "validation_accuracy", "epochs": "10"}
    assert definition["RoleArn"] == ROLE
    assert definition["AlgorithmSpecification"] == {
        "TrainingImage": IMAGE,
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in METRIC_REGEXES.items()],
    }
    assert [one["ChannelName"] for one in definition["InputDataConfig"]] == ["train", "pretrained"]
    assert definition["OutputDataConfig"] == {"S3OutputPath": f"s3://{BUCKET}/dogbreed/jobs"}


def test_where_nothing_is_named_every_declared_range_is_searched_but_the_models(launch):
    ranges = config(launch)["ParameterRanges"]
    names = {one["Name"] for kind in ranges.values() for one in kind}
    declared = {one.name for one in declarations() if one.search}
    assert names == declared - {"model", "layer-decay"}
    below = config(launch, "--hp", "trainable=last_stage", "lr=0.0001")["ParameterRanges"]
    assert {one["Name"] for kind in below.values() for one in kind} == declared - {"model", "lr"}


def test_a_name_alone_takes_the_declared_range(launch):
    assert config(launch, "--search", "weight_decay")["ParameterRanges"] == {
        "ContinuousParameterRanges": [
            {"Name": "weight-decay", "MinValue": "1e-05", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
        ]
    }


def test_whole_numbers_stay_whole(launch):
    assert config(launch, "--range", "epochs=2:5")["ParameterRanges"] == {
        "IntegerParameterRanges": [{"Name": "epochs", "MinValue": "2", "MaxValue": "5", "ScalingType": "Linear"}]
    }


@pytest.mark.parametrize(
    ("metric", "kind", "stopping", "static"),
    [
        ("validation_accuracy", "Maximize", "Auto", {"objective": "validation_accuracy"}),
        ("validation_loss", "Minimize", "Auto", {"objective": "validation_loss"}),
        ("test_loss", "Minimize", "Off", {}),
    ],
)
def test_the_name_of_the_objective_says_which_way_is_better(launch, metric, kind, stopping, static):
    found = request(launch, *ONE, "--objective", metric)
    tuning = found["HyperParameterTuningJobConfig"]
    assert tuning["HyperParameterTuningJobObjective"] == {"Type": kind, "MetricName": metric}
    assert tuning["TrainingJobEarlyStoppingType"] == stopping
    assert found["TrainingJobDefinition"]["StaticHyperParameters"] == static


@pytest.mark.parametrize("strategy", ["Bayesian", "Random"])
def test_the_strategies_that_take_early_stopping_have_it(launch, strategy):
    assert config(launch, *ONE, "--strategy", strategy)["TrainingJobEarlyStoppingType"] == "Auto"
    off = config(launch, *ONE, "--strategy", strategy, "--early-stopping", "off")
    assert off["TrainingJobEarlyStoppingType"] == "Off"


def test_hyperband_stops_by_itself_between_two_and_all_epochs(launch):
    found = config(launch, *ONE, "--strategy", "Hyperband", "--hp", "epochs=10")
    assert found["TrainingJobEarlyStoppingType"] == "Off"
    assert found["StrategyConfig"] == {"HyperbandStrategyConfig": {"MinResource": 2, "MaxResource": 10}}
    searched = config(launch, "--range", "epochs=2:7", "--strategy", "Hyperband")
    assert searched["StrategyConfig"]["HyperbandStrategyConfig"]["MaxResource"] == 7


def test_grid_tries_every_combination_and_names_no_number(launch):
    found = config(launch, "--strategy", "Grid", "--choice", "model=resnet18,resnet34", "batch-size=128,256,512")
    assert found["ResourceLimits"] == {"MaxParallelTrainingJobs": 2}
    launch.aws = Scripted(CreateHyperParameterTuningJob={})
    ended = launch("tune", *DATA, "--strategy", "Grid", "--choice", "batch-size=128,256,512", "--no-wait")
    assert "each of at most 3 trials" in ended.err


def test_a_request_with_everything_is_right(launch):
    found = request(
        launch,
        *ONE,
        *("--spot", "--max-run", "1h", "--stop-after", "8h", "--seed", "7", "--tags", "team=dogs"),
        *("--warm-start", "search-0", "search-00", "--warm-start-type", "TransferLearning"),
        *(
            "--subnets",
            "subnet-0a",
            "--security-groups",
            "sg-0a",
            "--network-isolation",
            "--instance-type",
            "ml.c7i.xlarge",
        ),
        *("--kms-key", "1234", "--input-mode", "FastFile", "--strategy", "Random", "--trials", "1000"),
    )
    assert found["WarmStartConfig"] == {
        "ParentHyperParameterTuningJobs": [
            {"HyperParameterTuningJobName": "search-0"},
            {"HyperParameterTuningJobName": "search-00"},
        ],
        "WarmStartType": "TransferLearning",
    }
    tuning, definition = found["HyperParameterTuningJobConfig"], found["TrainingJobDefinition"]
    assert tuning["ResourceLimits"]["MaxRuntimeInSeconds"] == 8 * 3600
    assert tuning["RandomSeed"] == 7
    assert definition["EnableManagedSpotTraining"] is True
    assert definition["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert definition["CheckpointConfig"] == {"S3Uri": f"s3://{BUCKET}/dogbreed/jobs/search-1/checkpoints"}
    assert definition["EnableNetworkIsolation"] is True
    assert definition["ResourceConfig"]["VolumeKmsKeyId"] == "1234"
    assert found["Tags"] == [{"Key": "team", "Value": "dogs"}]


def test_a_warm_pool_keeps_its_instances_for_the_next_trial(launch):
    found = request(launch, *ONE, "--warm-pool", "10m")
    assert found["TrainingJobDefinition"]["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600


def test_without_a_name_the_search_is_named_by_the_time_and_short_enough(launch):
    (call,) = json.loads(launch("tune", *DATA, *ONE, "--dry-run").out)
    assert problems(Call(**call)) == []
    assert re.fullmatch(r"dogbreed-\d{8}-\d{6}-\d{3}", call["parameters"]["HyperParameterTuningJobName"])


@pytest.mark.parametrize("preset", sorted(spaces.PRESETS))
def test_the_spaces_of_the_earlier_projects_six_jobs_two_at_a_time_created(launch, mock_aws, preset):
    argv = ("--space", preset, "--trials", "6", "--parallel", "2")
    found = request(launch, *argv)
    assert found["TrainingJobDefinition"]["StaticHyperParameters"]["preset"] == preset
    ended = launch("tune", *DATA, *NAME, *argv, "--no-wait")
    assert (ended.code, ended.out) == (0, "search-1\n")
    assert ended.err.startswith(
        "cost: 1 x ml.g4dn.xlarge for at most 4 h, for each of at most 6 trials, 2 at a time: 24 h of instances"
    )
    stored = mock_aws("sagemaker").describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="search-1")
    assert stored["HyperParameterTuningJobConfig"] == found["HyperParameterTuningJobConfig"]
    names = [
        one["Name"] for kind in stored["HyperParameterTuningJobConfig"]["ParameterRanges"].values() for one in kind
    ]
    assert sorted(names) == sorted(spaces.PRESETS[preset].ranges)


def test_a_value_takes_the_place_of_a_presets_range(launch):
    ranges = config(launch, "--space", "resnet18", "--hp", "model=resnet34", "--range", "lr=0.001:0.01")
    names = {one["Name"] for kind in ranges["ParameterRanges"].values() for one in kind}
    assert names == {"batch-size", "lr"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--range", "lr=0.001:20"], "--range lr=0.001:20: '20' is not allowed; lr is a number from 1e-07 to 10"),
        (["--range", "lr=0.1:0.01"], "the first number must be the smaller one"),
        (["--range", "lr=0.1"], "give LOW:HIGH or LOW:HIGH:log"),
        (["--range", "lr=0.1:1:square"], "give LOW:HIGH or LOW:HIGH:log"),
        (["--range", "dropout=0:0.5:log"], "a log scale begins above 0"),
        (["--range", "batch-size=1.5:8"], "'1.5' is not allowed; batch-size is a whole number"),
        (["--range", "model=a:b"], "--range model: it is text; give --choice model=VALUE,VALUE"),
        (["--range", "learning-rate=0.1:1"], "'learning-rate' is unknown"),
        (["--range", "lr"], "'lr' is not name=value"),
        (["--choice", "optimizer=sgd,lion"], "'lion' is not allowed; optimizer is one of sgd, adam, adamw"),
        (["--choice", "optimizer=sgd"], "that is one value; fix it by --hp optimizer=sgd"),
        (["--choice", "batch-size=16,16"], "a value stands twice"),
        (["--choice", "seed=" + ",".join(map(str, range(31)))], "seed has 31 choices; SageMaker takes 30"),
        (["--search", "epochs"], "--search epochs: it has no range of its own"),
        (["--search", "lr", *ONE], "lr is to be searched twice"),
        ([*ONE, "--hp", "lr=0.1"], "lr is fixed by --hp and searched as well"),
        ([*ONE, "--hp", "epochs=many"], "epochs='many' is not allowed"),
        (["--range", "cutmix=0:1"], "with cutmix=1, every such trial would fail"),
        ([*ONE, "--objective", "accuracy"], "--objective accuracy: no line of a job prints it; give one of train_loss"),
        ([*ONE, "--strategy", "Hyperband", "--early-stopping", "auto"], "Hyperband stops trials by itself"),
        ([*ONE, "--strategy", "Hyperband", "--hp", "epochs=1"], "Hyperband needs epochs to stop between"),
        ([*ONE, "--strategy", "Hyperband", "--objective", "test_loss"], "test_loss is printed at the end"),
        ([*ONE, "--early-stopping", "auto", "--objective", "test_loss"], "when there is nothing left to stop"),
        ([*ONE, "--strategy", "Grid"], "Grid tries choices, and lr is a range; give --choice lr=VALUE"),
        (["--strategy", "Grid", "--choice", "model=a,b", "--trials", "3"], "Grid tries all 2 combinations"),
        ([*ONE, "--strategy", "Grid", "--warm-start", "old"], "Grid tries choices"),
        (["--strategy", "Grid", "--choice", "model=a,b", "--warm-start", "old"], "--warm-start is for Bayesian and"),
        ([*ONE, "--warm-start", *"abcdef"], "--warm-start names 6 tuning jobs; SageMaker takes 5"),
        ([*ONE, "--trials", "751"], "751 trials: SageMaker takes 750 at most with Bayesian"),
        ([*ONE, "--parallel", "101", "--trials", "200"], "--parallel 101: SageMaker takes 100 at most"),
        ([*ONE, "--stop-after", "60"], "--stop-after is 60 s; SageMaker takes 2m to 30d"),
        ([*ONE, "--name", "a" * 33], "32 characters at most, it has 33"),
        ([*ONE, "--spot", "--warm-pool", "60"], "--warm-pool and --spot exclude each other"),
        ([*ONE, "--seed", "-1"], "'-1' is not a whole number from 0"),
        ([*ONE, "--seed", "x"], "'x' is not a whole number from 0"),
    ],
)
def test_a_mistake_costs_nothing(launch, argv, says):
    launch.aws = Scripted()  # any request fails the test
    ended = launch("tune", *DATA, *argv)
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_the_guides_commands_are_right(launch):
    text = (REPOSITORY / "docs" / "tuning.md").read_text(encoding="utf-8")
    commands = re.findall(r"^scripts/launch\.py (tune .*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    (command,) = [one for one in commands if "--estimate" not in one]  # that one is in test_estimate.py
    ended = launch(*shlex.split(command.replace("\\\n", " ")), "--dry-run")
    (call,) = json.loads(ended.out)
    assert problems(Call(**call)) == []
    assert call["parameters"]["HyperParameterTuningJobName"] == "dogs-search"


def test_data_is_needed(launch):
    ended = launch("tune", *ONE)
    assert ended.code == 2
    assert "give --data s3://bucket/key" in ended.err


def test_follows_the_trials_and_ends_with_their_table_and_the_best(launch, here):
    counters = {"Completed": 1, "InProgress": 1, "NonRetryableError": 0, "RetryableError": 0, "Stopped": 0}
    last = {"Completed": 2, "InProgress": 0, "NonRetryableError": 1, "RetryableError": 0, "Stopped": 0}
    reason = "AlgorithmError: out of memory, exit code: 1"
    launch.aws = Scripted(
        CreateHyperParameterTuningJob={},
        DescribeHyperParameterTuningJob=[
            described("InProgress"),
            described("InProgress", TrainingJobStatusCounters=counters),
            described("Completed", TrainingJobStatusCounters=last),
        ],
        ListTrainingJobsForHyperParameterTuningJob=[
            listed(summary(1, "InProgress")),
            listed(summary(1, "Completed", 0.75), summary(2, "InProgress", lr="0.0316227766016838")),
            listed(
                summary(1, "Completed", 0.75),
                summary(2, "Completed", 0.875, lr="0.0316227766016838"),
                summary(3, "Failed", FailureReason=reason),
            ),
        ],
        DescribeTrainingJob=times,
    )
    ended = launch("tune", *DATA, *NAME, *ONE, "--trials", "3")
    assert ended.code == 0
    assert ended.err.splitlines()[1:] == [
        "started search-1; Ctrl-C leaves it running",
        "search-1-001-0a1b InProgress (lr=0.01)",
        "trials: 0 completed, 0 stopped early, 0 failed, 0 running, of 3 at most",
        "search-1-001-0a1b Completed validation_accuracy=0.75, the best so far (lr=0.01)",
        "search-1-002-0a1b InProgress (lr=0.0316227766016838)",
        "trials: 1 completed, 0 stopped early, 0 failed, 1 running, of 3 at most",
        "search-1-002-0a1b Completed validation_accuracy=0.875, the best so far (lr=0.0316227766016838)",
        f"search-1-003-0a1b failed: {reason} (lr=0.01)",
        "trials: 2 completed, 0 stopped early, 1 failed, 0 running, of 3 at most",
        "search-1: Completed",
        "trials: 2 completed, 0 stopped early, 1 failed, 0 running, of 3 at most",
        f"search-1-003-0a1b failed: {reason}",
        "report: build/tuning/search-1.html",
        "best: validation_accuracy=0.875 of search-1-002-0a1b with epochs=5 lr=0.0316227766016838",
        "`launch.py train --from-best build/tuning/search-1.json` trains with it",
    ]
    assert [line.split() for line in ended.out.splitlines()] == [
        ["TRIAL", "STATUS", "VALIDATION_ACCURACY", "LR", "TOOK", "BILLED"],
        ["search-1-002-0a1b", "Completed", "0.875", "0.03162", "10", "min", "400", "s"],
        ["search-1-001-0a1b", "Completed", "0.75", "0.01", "10", "min", "400", "s"],
        ["search-1-003-0a1b", "Failed", "-", "0.01", "10", "min", "400", "s"],
        ["build/tuning/search-1.json"],
    ]
    page = (here / "build/tuning/search-1.html").read_text()
    assert "<h1>0.875 validation accuracy</h1>" in page
    assert reason in page
    assert json.loads((here / "build/tuning/search-1.json").read_text()) == {
        "search": "search-1",
        "trial": "search-1-002-0a1b",
        "metric": "validation_accuracy",
        "value": 0.875,
        "hyperparameters": {"epochs": "5", "lr": "0.0316227766016838"},
    }


def test_of_losses_the_smallest_is_the_best(launch, here):
    launch.aws = Scripted(
        DescribeHyperParameterTuningJob=described("Completed", metric="validation_loss", kind="Minimize"),
        ListTrainingJobsForHyperParameterTuningJob=listed(
            summary(1, "Completed", float("nan")), summary(2, "Stopped", 0.3), summary(3, "Completed", 0.9)
        ),
        DescribeTrainingJob=times,
    )
    ended = launch("tune", "--follow", "search-1", "--output", "best.json")
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == "best.json"
    assert json.loads((here / "best.json").read_text())["trial"] == "search-1-002-0a1b"


@pytest.mark.parametrize(
    ("trials", "says"),
    [
        (
            [
                summary(1, "Failed", FailureReason="AlgorithmError: no weights"),
                summary(2, "Failed", FailureReason="ClientError: no capacity"),
                summary(3, "Failed", FailureReason="AlgorithmError: no weights"),
            ],
            "all 3 trials of search-1 failed, 2 of them with: AlgorithmError: no weights",
        ),
        ([summary(1, "Stopped")], "search-1: none of its 1 trials has a value of validation_accuracy"),
        ([], "search-1 failed: the role may not; it has no trials"),
    ],
)
def test_without_a_result_it_is_one_error_with_the_commonest_reason(launch, here, trials, says):
    launch.aws = Scripted(
        CreateHyperParameterTuningJob={},
        DescribeHyperParameterTuningJob=described("Failed", FailureReason="the role may not"),
        ListTrainingJobsForHyperParameterTuningJob=listed(*trials),
        DescribeTrainingJob=times,
    )
    ended = launch("tune", *DATA, *NAME, *ONE)
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == f"launch.py tune: {says}"
    assert not (here / "build").exists()


def test_ctrl_c_leaves_the_search_and_says_how_to_go_on_and_how_to_stop(launch):
    launch.aws = Scripted(
        CreateHyperParameterTuningJob={},
        DescribeHyperParameterTuningJob=described("InProgress"),
        ListTrainingJobsForHyperParameterTuningJob=listed(summary(1, "InProgress")),
    )

    def interrupt(seconds):
        if len(launch.slept) == 3:
            raise KeyboardInterrupt

    launch.on_sleep = interrupt
    ended = launch("tune", *DATA, *NAME, *ONE)
    assert ended.code == 130
    assert ended.err.splitlines()[-1] == (
        "search-1 goes on, and goes on costing: `launch.py tune --follow search-1` watches it again, "
        "`launch.py stop search-1` ends it and its trials"
    )
    assert launch.aws.asked("StopHyperParameterTuningJob") == []


def test_a_minute_without_network_does_not_end_the_watching(launch, here):
    launch.aws = Scripted(
        CreateHyperParameterTuningJob={},
        DescribeHyperParameterTuningJob=[refusal("ThrottlingException", "Rate exceeded"), described("Completed")],
        ListTrainingJobsForHyperParameterTuningJob=[
            refusal("InternalFailure", "sorry", status=500),
            listed(summary(1, "Completed", 0.5)),
        ],
        DescribeTrainingJob=times,
    )
    ended = launch("tune", *DATA, *NAME, *ONE)
    assert ended.code == 0
    assert ended.err.count("trying again, the search goes on") == 2


def test_an_error_that_stays_ends_the_watching_and_not_the_search(launch):
    launch.aws = Scripted(
        CreateHyperParameterTuningJob={},
        DescribeHyperParameterTuningJob=refusal("ThrottlingException", "Rate exceeded"),
    )
    ended = launch("tune", *DATA, *NAME, *ONE)
    assert ended.code == 1
    assert "search-1 was started and may be running" in ended.err


def test_a_name_that_exists_is_one_sentence(launch, mock_aws):
    launch("tune", *DATA, *NAME, *ONE, "--no-wait")
    ended = launch("tune", *DATA, *NAME, *ONE)
    assert ended.code == 1
    assert "that name exists already; give another by --name" in ended.err


def test_followed_to_the_end_on_the_mock_aws(launch, mock_aws, here):
    """moto ends the search at once, and knows no trials: those are written down."""
    script = Scripted(
        ListTrainingJobsForHyperParameterTuningJob=listed(summary(1, "Completed", 0.75, lr="0.02")),
        DescribeTrainingJob=times,
    )

    class Client:
        def __getattr__(self, name):
            real = "hyper_parameter_tuning_job" in name and not name.startswith("list_training")
            return getattr(mock_aws("sagemaker") if real else script.client("sagemaker"), name)

    launch.aws = Aws(lambda service: Client())
    ended = launch("tune", *DATA, *NAME, *ONE, "--hp", "epochs=3")
    assert ended.code == 0, ended.err
    best = json.loads((here / "build/tuning/search-1.json").read_text())
    assert best["hyperparameters"] == {"objective": "validation_accuracy", "epochs": "3", "lr": "0.02"}


def best_file(folder, **hyperparameters):
    file = folder / "best.json"
    best = {
        "search": "s",
        "trial": "s-1",
        "metric": "validation_loss",
        "value": 0.5,
        "hyperparameters": hyperparameters,
    }
    file.write_text(json.dumps(best))
    return file


def test_train_takes_the_best_of_a_file_and_hp_goes_before_it(launch, here):
    best_file(here, lr="0.02", **{"batch-size": "128"})
    ended = launch("train", *DATA, "--from-best", "best.json", "--hp", "batch_size=64", "epochs=30", "--dry-run")
    (call,) = json.loads(ended.out)
    assert call["parameters"]["HyperParameters"] == {"lr": "0.02", "batch-size": "64", "epochs": "30"}
    assert problems(Call(**call)) == []


def test_train_takes_the_best_of_a_tuning_job(launch):
    launch.aws = Scripted(
        DescribeHyperParameterTuningJob=described("Completed", BestTrainingJob=summary(2, "Completed", 0.9, lr="0.02")),
        CreateTrainingJob={},
    )
    ended = launch("train", *DATA, "--from-best", "search-1", "--hp", "seed=3", "--no-wait")
    assert ended.code == 0, ended.err
    assert "best: validation_accuracy=0.9 of search-1-002-0a1b with epochs=5 lr=0.02" in ended.err
    (asked,) = launch.aws.asked("CreateTrainingJob")
    assert asked["HyperParameters"] == {"epochs": "5", "lr": "0.02", "seed": "3"}


def test_the_dry_run_of_the_best_of_a_tuning_job_asks_nobody(launch):
    launch.aws = Scripted()
    calls = json.loads(launch("train", *DATA, "--from-best", "search-1", "--dry-run").out)
    assert [call["operation"] for call in calls] == ["DescribeHyperParameterTuningJob", "CreateTrainingJob"]


def test_a_tuning_job_without_a_best_is_one_sentence(launch):
    launch.aws = Scripted(DescribeHyperParameterTuningJob=described("InProgress"))
    ended = launch("train", *DATA, "--from-best", "search-1")
    assert ended.code == 1
    assert "search-1 has no best trial yet" in ended.err
    assert launch.aws.asked("CreateTrainingJob") == []


@pytest.mark.parametrize(
    ("content", "argv", "says"),
    [
        (None, ["--from-best", "gone.json"], "--from-best gone.json: there is no such file"),
        (None, ["--from-best", "a_b"], "--from-best a_b: neither a file nor a tuning job"),
        (None, ["--local", "--from-best", "search-1"], "--from-best search-1: there is no such file"),
        ("{", ["--from-best", "best.json"], "best.json cannot be read as the best of a search"),
        ("[1]", ["--from-best", "best.json"], "best.json cannot be read as the best of a search: it holds a list in"),
        ('{"lr": 1}', ["--from-best", "best.json"], "it holds lr in the place of search, trial, metric, value, hyper"),
        ("{}", ["--from-best", "best.json"], "it holds nothing in the place of search, trial, metric, value, hyper"),
    ],
)
def test_what_is_no_best_is_one_sentence(launch, here, content, argv, says):
    launch.aws = Scripted()
    if content:
        (here / "best.json").write_text(content)
    data = ("--data", str(here)) if "--local" in argv else DATA
    ended = launch("train", *data, *argv)
    assert ended.code == 2
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert "object has no attribute" not in ended.err


def test_the_best_of_a_file_is_checked_like_what_is_typed(launch, here):
    best_file(here, lr="fast")
    ended = launch("train", *DATA, "--from-best", "best.json")
    assert ended.code == 2
    assert "lr='fast' is not allowed" in ended.err


def test_stop_ends_a_search(launch):
    launch.aws = Scripted(StopTrainingJob=NOT_FOUND, StopHyperParameterTuningJob={})
    ended = launch("stop", "search-1")
    assert ended.code == 0
    assert launch.aws.asked("StopHyperParameterTuningJob") == [{"HyperParameterTuningJobName": "search-1"}]
    assert "search-1 is stopping, and its trials with it" in ended.err


@pytest.mark.parametrize("name", ["nobody", "a-training-job-of-more-than-32-characters"])
def test_stop_of_what_does_not_exist(launch, name):
    launch.aws = Scripted(StopTrainingJob=NOT_FOUND, StopHyperParameterTuningJob=NO_SEARCH)
    ended = launch("stop", name)
    assert ended.code == 1
    assert f"{name} is neither a training nor a tuning job in eu-west-1" in ended.err


def test_status_of_a_search_has_its_trials(launch):
    launch.aws = Scripted(
        DescribeTrainingJob=NOT_FOUND,
        DescribeHyperParameterTuningJob=described("InProgress"),
        ListTrainingJobsForHyperParameterTuningJob=listed(summary(1, "Completed", 0.75)),
    )
    ended = launch("status", "search-1")
    assert ended.code == 0
    assert ended.out.splitlines()[0] == "search-1: InProgress"
    assert ended.out.splitlines()[-1].split()[:3] == ["search-1-001-0a1b", "Completed", "0.75"]
    assert "`launch.py stop search-1`" in ended.err


def test_status_lists_searches(launch, mock_aws):
    launch("tune", *DATA, *NAME, *ONE, "--no-wait")
    ended = launch("status")
    assert ended.code == 0
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["search-1", "Completed"] in [row[:2] for row in rows]


def test_a_running_search_says_how_it_is_ended(launch):
    nothing = {"TrainingJobSummaries": []}
    running = {
        "HyperParameterTuningJobName": "search-1",
        "HyperParameterTuningJobStatus": "InProgress",
        "CreationTime": START,
    }
    launch.aws = Scripted(
        ListTrainingJobs=nothing,
        ListHyperParameterTuningJobs={"HyperParameterTuningJobSummaries": [running]},
        ListTransformJobs={"TransformJobSummaries": []},
        ListEndpoints={"Endpoints": []},
    )
    assert launch("status").out.splitlines()[-1].endswith("launch.py stop search-1")


def test_what_a_tuning_job_searches_is_read_back_from_its_description(launch):
    asked = request(launch, *ONE, "--choice", "batch-size=16,32", "--range", "epochs=2:9", "--hp", "seed=3")
    found = tuning.ranges_of(asked)
    assert {name: str(one) for name, one in found.items()} == {
        "lr": "0.001 to 0.1, log",
        "epochs": "2 to 9",
        "batch-size": "16, 32",
    }
    assert tuning.fixed_of(asked) == {"objective": "validation_accuracy", "seed": "3"}
    assert tuning.ranges_of({"HyperParameterTuningJobConfig": {}}) == {}
