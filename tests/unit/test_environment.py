"""SageMaker's contract: what is read, what is refused and how, and the failure file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dogbreed import environment
from dogbreed.environment import (
    Paths,
    Profiling,
    Tracking,
    available_cpus,
    quiet_profiler,
    read_serving_environment,
    read_training_environment,
    shorten_mlflow_requests,
)
from dogbreed.errors import ConfigurationError

CONFIG_FILES = ("hyperparameters.json", "inputdataconfig.json", "resourceconfig.json", "checkpointconfig.json")


def read(opt_ml, **environ):
    return read_training_environment(environ, root=opt_ml.root)


def write_cgroup(folder: Path, **files: str) -> Path:
    """A cgroup file system; `__` stands for a folder and `_` for itself, as in cpu__cpu_cfs_quota_us."""
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cpu_cfs", "cpu.cfs")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


# The training side


def test_without_any_file_a_job_gets_the_defaults(tmp_path):
    found = read_training_environment({}, root=tmp_path / "nowhere")
    assert found.hyperparameters == {}
    assert found.channels == {}
    assert found.hosts == environment.Hosts("localhost", ("localhost",), None)
    assert found.hosts.rank == 0
    assert (found.job_name, found.checkpoints, found.hook_config) == (None, None, None)
    assert found.weights == Path("/opt/dogbreed/weights")
    assert found.log_level == "INFO"


def test_paths_are_those_of_the_platform():
    paths = environment.read_paths({})
    assert paths.config == Path("/opt/ml/input/config")
    assert paths.data == Path("/opt/ml/input/data")
    assert paths.model == Path("/opt/ml/model")
    assert paths.output_data == Path("/opt/ml/output/data")
    assert paths.tensors == Path("/opt/ml/output/tensors")
    assert paths.failure == Path("/opt/ml/output/failure")


def test_base_dir_moves_every_path_and_an_explicit_root_wins(tmp_path):
    environ = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    assert environment.read_paths(environ).model == tmp_path / "model"
    assert read_training_environment(environ).paths.root == tmp_path
    assert read_serving_environment(environ).paths.root == tmp_path
    assert environment.read_paths(environ, root=tmp_path / "other").root == tmp_path / "other"


def test_a_process_knows_its_place_from_the_launcher(opt_ml):
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert read(opt_ml, **variables, TORCHELASTIC_RUN_ID="a").worker == environment.Worker(3, 4, 1, 2)
    assert read(opt_ml, **variables).worker is None, "a RANK of something else"
    assert read(opt_ml, TORCHELASTIC_RUN_ID="a", RANK="0").worker is None


def test_how_many_processes_and_where_they_meet(opt_ml):
    found = read(opt_ml)
    assert (found.processes, found.rendezvous_port) == (None, 29500)
    found = read(opt_ml, DOGBREED_PROCESSES="4", MASTER_PORT="1234")
    assert (found.processes, found.rendezvous_port) == (4, 1234)
    with pytest.raises(ConfigurationError, match="DOGBREED_PROCESSES='none' is not allowed; give a whole number"):
        read(opt_ml, DOGBREED_PROCESSES="none")


def test_instance_type_and_groups_are_read(opt_ml):
    opt_ml.hosts("algo-1", "algo-2")
    hosts = read(opt_ml).hosts
    assert hosts.instance_type == "ml.m5.xlarge"
    assert hosts.groups == {"homogeneousCluster": ("algo-1", "algo-2")}
    opt_ml.write("resourceconfig.json", {"current_host": "a", "hosts": ["a"], "instance_groups": [{"hosts": "a"}, 3]})
    assert read(opt_ml).hosts.groups == {}


def test_a_network_interface_that_the_user_named_stays():
    environ = {"NCCL_SOCKET_IFNAME": "mine"}
    environment.name_network_interface("eth1", environ)
    assert environ == {"NCCL_SOCKET_IFNAME": "mine", "GLOO_SOCKET_IFNAME": "eth1"}


@pytest.mark.parametrize("name", CONFIG_FILES)
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON: "),
        ("", "is not JSON: "),
        ("[1, 2]", "holds list instead of a JSON object"),
        ("3", "holds int instead of a JSON object"),
        ("null", "holds NoneType instead of a JSON object"),
    ],
)
def test_a_malformed_file_is_named(opt_ml, name, content, complaint):
    file = opt_ml.write(name, content)
    with pytest.raises(ConfigurationError) as error:
        read(opt_ml)
    assert str(error.value).startswith(f"{file} {complaint}")


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_a_file_that_is_not_text_is_named(opt_ml, name):
    (opt_ml.config / name).write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigurationError, match=f"{name} cannot be read: "):
        read(opt_ml)


def test_a_folder_in_place_of_a_file_is_named(opt_ml):
    (opt_ml.config / "checkpointconfig.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"checkpointconfig\.json cannot be read: "):
        read(opt_ml)


def test_hyperparameters_come_as_the_strings_they_are(opt_ml):
    opt_ml.hyperparameters({"lr": 0.1, "model": '"resnet18"'})
    assert read(opt_ml).hyperparameters == {"lr": "0.1", "model": '"resnet18"'}


@pytest.mark.parametrize("value", [0.1, 3, True, None, ["a"], {"b": 1}])
def test_a_hyperparameter_that_is_not_a_string_is_refused(opt_ml, value):
    file = opt_ml.write("hyperparameters.json", {"epochs": "3", "lr": value})
    with pytest.raises(ConfigurationError) as error:
        read(opt_ml)
    assert str(error.value) == (
        f"{file}: the value of 'lr' is {value!r}, but SageMaker writes every hyperparameter as a string; quote it"
    )


def test_channels_are_those_that_are_described(opt_ml, drawn_data):
    opt_ml.channels(train=drawn_data / "train", valid=drawn_data / "valid")
    (opt_ml.data / "undescribed").mkdir()
    channels = read(opt_ml).channels
    assert list(channels) == ["train", "valid"]
    assert channels["train"] == environment.Channel("train", opt_ml.data / "train", sharded=False)
    assert len(list(channels["train"].path.iterdir())) == 3


def test_without_a_description_every_folder_is_a_channel(opt_ml):
    for name in ("valid", "train", "code"):
        (opt_ml.data / name).mkdir()
    (opt_ml.data / "train-manifest").write_text("")
    assert list(read(opt_ml).channels) == ["train", "valid"]


@pytest.mark.parametrize("side_channel", ["code", "sm_drivers"])
def test_the_sdks_own_channels_are_ignored(opt_ml, side_channel):
    opt_ml.write("inputdataconfig.json", {"train": {}, side_channel: {}})
    assert list(read(opt_ml).channels) == ["train"]


def test_a_channel_in_pipe_mode_is_a_pipe_for_each_opening(opt_ml):
    described = {"TrainingInputMode": "Pipe", "S3DistributionType": "ShardedByS3Key"}
    opt_ml.write("inputdataconfig.json", {"a.b": {**described, "RecordWrapperType": "RecordIO"}, "c": described})
    channels = read(opt_ml).channels
    assert channels["a.b"] == environment.Channel("a.b", opt_ml.data / "a.b", sharded=True, piped=True, wrapped=True)
    assert [channels["a.b"].pipe(opening) for opening in (0, 1)] == [opt_ml.data / "a.b_0", opt_ml.data / "a.b_1"]
    assert not channels["c"].wrapped


def test_fast_file_mode_is_read_like_file_mode(opt_ml):
    opt_ml.write("inputdataconfig.json", {"train": {"TrainingInputMode": "FastFile"}})
    assert list(read(opt_ml).channels) == ["train"]


@pytest.mark.parametrize(("distribution", "sharded"), [("ShardedByS3Key", True), ("FullyReplicated", False)])
def test_a_sharded_channel_is_marked(opt_ml, distribution, sharded):
    opt_ml.write("inputdataconfig.json", {"train": {"S3DistributionType": distribution}})
    assert read(opt_ml).channels["train"].sharded is sharded


def test_a_channel_that_is_not_an_object_is_refused(opt_ml):
    opt_ml.write("inputdataconfig.json", {"train": "s3://bucket"})
    with pytest.raises(ConfigurationError, match=r"inputdataconfig\.json: channel 'train' holds 's3://bucket' instead"):
        read(opt_ml)


def test_hosts_are_sorted_so_that_all_agree_on_the_leader(opt_ml):
    opt_ml.hosts("algo-3", "algo-1", "algo-2", current="algo-2")
    hosts = read(opt_ml).hosts
    assert hosts.all == ("algo-1", "algo-2", "algo-3")
    assert (hosts.current, hosts.rank) == ("algo-2", 1)


@pytest.mark.parametrize(("name", "kept"), [("lo", "lo"), ("eth99", None), (None, None), (7, None)])
def test_only_an_interface_of_this_machine_is_kept(opt_ml, name, kept):
    opt_ml.write(
        "resourceconfig.json",
        {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": name},
    )
    assert read(opt_ml).hosts.network_interface == kept


@pytest.mark.parametrize(
    "content",
    [
        {"current_host": "algo-3", "hosts": ["algo-1", "algo-2"]},
        {"current_host": "algo-1", "hosts": "algo-1"},
        {"current_host": 1, "hosts": [1]},
    ],
)
def test_a_host_that_is_not_among_the_hosts_is_refused(opt_ml, content):
    opt_ml.write("resourceconfig.json", content)
    with pytest.raises(ConfigurationError, match=r"resourceconfig\.json: current_host=.* is not among hosts="):
        read(opt_ml)


def test_checkpoints_go_where_the_job_says(opt_ml):
    opt_ml.write("checkpointconfig.json", {"LocalPath": "/opt/ml/elsewhere", "S3Uri": "s3://bucket/job"})
    assert read(opt_ml).checkpoints == Path("/opt/ml/elsewhere")


def test_the_profilers_configuration_says_how_the_machine_is_watched(opt_ml, tmp_path):
    nothing = read(opt_ml).profiling
    assert nothing == Profiling(opt_ml.root / "output" / "profiler", None, None, None)
    opt_ml.write(
        "profilerconfig.json",
        {
            "S3OutputPath": "s3://b/p",
            "ProfilingIntervalInMilliseconds": 200,
            "ProfilingParameters": {
                "LocalPath": "/elsewhere",
                "DetailedProfilingConfig": '{"StartStep": "5", "NumSteps": 2}',
            },
        },
    )
    assert read(opt_ml).profiling == Profiling(Path("/elsewhere"), 0.2, 5, 2)
    other = tmp_path / "profiler.json"
    other.write_text(
        '{"profilingintervalinmilliseconds": "1000", "ProfilingParameters": null, "DisableProfiler": true}'
    )
    assert read(opt_ml, SMPROFILER_CONFIG_PATH=str(other)).profiling.interval_s == 1.0


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"ProfilingIntervalInMilliseconds": "soon"}, "ProfilingIntervalInMilliseconds='soon' is not a whole number"),
        ({"ProfilingParameters": [1]}, r"ProfilingParameters holds \[1\] instead of a JSON object"),
        ({"ProfilingParameters": {"DetailedProfilingConfig": "{"}}, "DetailedProfilingConfig is not JSON"),
    ],
)
def test_a_profilers_configuration_that_cannot_be_read(opt_ml, config, says):
    opt_ml.write("profilerconfig.json", config)
    with pytest.raises(ConfigurationError, match=says):
        read(opt_ml)


def test_mlflows_variables_name_a_run(opt_ml):
    assert read(opt_ml).tracking is None
    assert read(opt_ml, MLFLOW_EXPERIMENT_NAME="dogs", MLFLOW_TRACKING_URI=" ").tracking is None
    assert read(opt_ml, MLFLOW_TRACKING_URI="http://here").tracking == Tracking("http://here", None, None, None)
    given = {"MLFLOW_EXPERIMENT_NAME": "dogs", "MLFLOW_RUN_ID": "12ab", "MLFLOW_RUN_NAME": "first"}
    found = read(opt_ml, MLFLOW_TRACKING_URI="http://here", **given).tracking
    assert found == Tracking("http://here", "dogs", "12ab", "first")


def test_mlflow_gives_up_a_server_soon_unless_the_user_says_otherwise():
    environ = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "100"}
    shorten_mlflow_requests(environ)
    assert environ == {"MLFLOW_HTTP_REQUEST_TIMEOUT": "100", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


def test_the_profiler_calls_no_machine_without_a_gpu_an_error(opt_ml):
    program = "from torch.autograd import profiler\nwith profiler.profile(use_kineto=True): pass"
    said = []
    for quiet in (False, True):
        environ = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
        if quiet:
            quiet_profiler(environ)
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
        said.append(done.stderr)
    assert not said[1]
    kept = {"KINETO_LOG_LEVEL": "0"}
    quiet_profiler(kept)
    assert kept == {"KINETO_LOG_LEVEL": "0"}


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        ({"S3OutputPath": "s3://b/t", "LocalPath": "/elsewhere"}, "/elsewhere"),
        ({"S3OutputPath": "s3://b/t"}, "{root}/output/tensorboard"),
        ({}, None),
    ],
)
def test_tensorboards_folder_is_the_platforms(opt_ml, config, folder):
    opt_ml.write("tensorboardoutputconfig.json", config)
    expected = None if folder is None else folder.format(root=opt_ml.root)
    found = read(opt_ml).tensorboard
    assert (None if found is None else str(found)) == expected


def test_a_trial_of_a_tuner_keeps_its_checkpoints_apart_from_the_others(opt_ml):
    opt_ml.write("checkpointconfig.json", {"LocalPath": "/opt/ml/checkpoints"})
    assert read(opt_ml, TRAINING_JOB_NAME="dogs-001").checkpoints == Path("/opt/ml/checkpoints"), "no trial"
    opt_ml.hyperparameters({"_tuning_objective_metric": "validation_accuracy"})
    assert read(opt_ml, TRAINING_JOB_NAME="dogs-001").checkpoints == Path("/opt/ml/checkpoints/dogs-001")
    assert read(opt_ml).checkpoints == Path("/opt/ml/checkpoints")


def test_the_hook_configuration_is_found_at_its_default_place_or_where_the_variable_points(opt_ml, tmp_path):
    assert read(opt_ml).hook_config is None
    default = opt_ml.write("debughookconfig.json", {})
    assert read(opt_ml).hook_config == default
    elsewhere = tmp_path / "hook.json"
    elsewhere.write_text("{}")
    assert read(opt_ml, SMDEBUG_CONFIG_FILE_PATH=str(elsewhere)).hook_config == elsewhere
    assert read(opt_ml, SMDEBUG_CONFIG_FILE_PATH=str(tmp_path / "absent.json")).hook_config is None


def test_variables_of_a_job(opt_ml):
    found = read(
        opt_ml,
        TRAINING_JOB_NAME="breeds-1",
        DOGBREED_WEIGHTS_DIR="/weights",
    )
    assert found.job_name == "breeds-1"
    assert found.weights == Path("/weights")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/tmp/dogbreed"),
        ({"TMPDIR": "/scratch"}, "/scratch/dogbreed"),
        ({"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": "/warm"}, "/warm"),
        ({"SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY": "/warm", "DOGBREED_CACHE_DIR": "/mine"}, "/mine"),
    ],
)
def test_the_cache_is_where_the_user_says_or_where_it_outlives_the_job(opt_ml, variables, folder):
    assert read(opt_ml, **variables).cache == Path(folder)


@pytest.mark.parametrize(
    ("text", "level"),
    [("10", "DEBUG"), ("20", "INFO"), ("warning", "WARNING"), ("50", "CRITICAL"), ("loud", "INFO"), ("", "INFO")],
)
def test_log_level_is_a_number_or_a_name_and_never_an_error(opt_ml, text, level):
    assert read(opt_ml, SM_LOG_LEVEL=text).log_level == level
    assert read_serving_environment({"SM_LOG_LEVEL": text}).log_level == level


# The failure file


def test_a_failure_is_cut_to_what_the_platform_shows(tmp_path):
    paths = Paths(tmp_path)
    environment.write_failure(paths, "cause: " + "é" * 2000)
    text = paths.failure.read_text(encoding="utf-8")
    assert len(text) == 1024
    assert text.startswith("cause: é")


def test_a_failure_that_names_what_is_not_utf_8_is_written_all_the_same(tmp_path):
    paths = environment.Paths(tmp_path)
    environment.write_failure(paths, "found: dog\udce9")
    assert paths.failure.read_text(encoding="utf-8") == r"found: dog\udce9"


def test_the_first_failure_wins(tmp_path):
    paths = Paths(tmp_path)
    environment.write_failure(paths, "the cause")
    environment.write_failure(paths, "a consequence")
    assert paths.failure.read_text() == "the cause"


@pytest.mark.parametrize("obstacle", [".", "output", "output/failure"])
def test_writing_a_failure_never_raises(tmp_path, obstacle):
    root = tmp_path / "ml"
    blocked = root / obstacle
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file in the way")
    environment.write_failure(Paths(root), "the cause")
    assert blocked.read_text() == "a file in the way"


# The serving side


def test_serving_defaults():
    found = read_serving_environment({})
    assert (found.host, found.port, found.workers, found.request_timeout_s) == ("0.0.0.0", 8080, None, 60)
    assert found.max_payload_bytes == 25 * 1024 * 1024
    assert found.default_accept == "application/json"
    assert found.batch_transform is False
    assert (found.engine, found.precision) == ("auto", "auto")
    assert found.cpus >= 1
    assert found.max_pixels == 64_000_000
    assert found.low_latency is True


def test_serving_variables():
    found = read_serving_environment(
        {
            "DOGBREED_HOST": "127.0.0.1",
            "SAGEMAKER_BIND_TO_PORT": "9090",
            "SAGEMAKER_MODEL_SERVER_WORKERS": " 2 ",
            "SAGEMAKER_MODEL_SERVER_TIMEOUT": "120",
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6",
            "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv",
            "SAGEMAKER_BATCH": "true",
            "DOGBREED_ENGINE": "OpenVINO",
            "DOGBREED_PRECISION": "bf16",
            "DOGBREED_LOW_LATENCY": "false",
        }
    )
    assert (found.engine, found.precision) == ("openvino", "bf16")
    assert found.low_latency is False
    assert (found.host, found.port, found.workers, found.request_timeout_s) == ("127.0.0.1", 9090, 2, 120)
    assert found.max_payload_bytes == 6 * 1024 * 1024
    assert found.default_accept == "text/csv"
    assert found.batch_transform is True


def test_no_payload_limit_is_a_gibibyte():
    assert read_serving_environment({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}).max_payload_bytes == 1024**3


@pytest.mark.parametrize("name", ["SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_MODEL_SERVER_WORKERS", "SAGEMAKER_BATCH"])
def test_an_empty_variable_is_an_absent_one(name):
    assert read_serving_environment({name: " "}) == read_serving_environment({})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "http", "a port from 1 to 65535"),
        ("SAGEMAKER_BIND_TO_PORT", "0", "a port from 1 to 65535"),
        ("SAGEMAKER_BIND_TO_PORT", "65536", "a port from 1 to 65535"),
        ("SAGEMAKER_BIND_TO_PORT", "80.5", "a port from 1 to 65535"),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "0", "a whole number from 1 to 256"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "3601", "seconds, 1 to 3600"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "-1", "0 (no limit) to 1024"),
        ("SAGEMAKER_BATCH", "maybe", "true or false"),
        ("DOGBREED_ENGINE", "abacus", "one of auto, torch, openvino, cuda"),
        ("DOGBREED_PRECISION", "fp4", "one of auto, fp32, bf16, fp16"),
        ("SAGEMAKER_MULTI_MODEL", "several", "true or false"),
        ("DOGBREED_MODELS_MEMORY_MB", "0", "a whole number of MB from 1 to 1048576"),
        ("DOGBREED_LOG_FORMAT", "xml", "text or json"),
        ("DOGBREED_MAX_PIXELS", "178956971", "a whole number of pixels from 1 to 178956970"),
        (
            "DOGBREED_EMF_NAMESPACE",
            ":mine",
            "1 to 255 letters, digits and ._/#:- that do not begin with a colon",
        ),
    ],
)
def test_a_bad_variable_is_named_with_its_value_and_what_is_allowed(name, value, allowed):
    with pytest.raises(ConfigurationError) as error:
        read_serving_environment({name: value})
    assert str(error.value) == f"{name}={value!r} is not allowed; give {allowed}"


@pytest.mark.parametrize(("text", "batch"), [("True", True), ("1", True), ("FALSE", False), ("0", False)])
def test_batch_transform_is_read_in_any_spelling(text, batch):
    assert read_serving_environment({"SAGEMAKER_BATCH": text}).batch_transform is batch


def test_one_process_serves_several_models():
    found = read_serving_environment({"SAGEMAKER_MODEL_SERVER_WORKERS": "4"})
    assert (found.multi_model, found.workers, found.models_budget_bytes, found.evict_models) == (False, 4, None, False)
    found = read_serving_environment(
        {
            "SAGEMAKER_MULTI_MODEL": "true",
            "SAGEMAKER_MODEL_SERVER_WORKERS": "4",
            "DOGBREED_MODELS_MEMORY_MB": "2",
            "DOGBREED_MODELS_EVICT": "true",
        }
    )
    assert (found.multi_model, found.workers, found.evict_models) == (True, 1, True)
    assert found.low_latency is False, "memory is for more models, unless somebody says otherwise"
    told = read_serving_environment({"SAGEMAKER_MULTI_MODEL": "true", "DOGBREED_LOW_LATENCY": "true"})
    assert told.low_latency is True
    assert found.models_budget_bytes == 2 * 1024 * 1024
    assert found.paths.models == Path("/opt/ml/models")


def test_cuda_is_told_of_one_gpu_where_several_are_shared_out():
    assert read_serving_environment({}).gpus is None
    environ = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert read_serving_environment(environ).gpus == "GPU-a,GPU-b"
    environment.show_gpu("GPU-b", environ)
    assert environ == {"CUDA_VISIBLE_DEVICES": "GPU-b"}


def test_logs_are_text_and_not_for_cloudwatch_unless_asked():
    plain = read_serving_environment({})
    asked = read_serving_environment({"DOGBREED_LOG_FORMAT": "JSON", "DOGBREED_EMF_NAMESPACE": "dogs/prod"})
    assert (plain.json_logs, plain.emf_namespace) == (False, None)
    assert (asked.json_logs, asked.emf_namespace) == (True, "dogs/prod")


def test_the_processes_of_a_server_are_told_where_to_share_their_counts(tmp_path):
    environ = {}
    shared = environment.share_metrics(environ, scratch=tmp_path)
    folder = shared.folder
    assert folder.is_dir()
    assert (shared.named, shared.made) == (False, True)
    assert folder.parent == tmp_path
    assert environ == {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    assert environment.share_metrics(environ, scratch=tmp_path / "absent") == environment.SharedCounts(
        folder, named=True, made=False
    )


def test_a_named_folder_for_counts_is_made_if_it_is_not_there(tmp_path):
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "a" / "b")}
    found = environment.share_metrics(environ)
    assert found == environment.SharedCounts(tmp_path / "a" / "b", named=True, made=True)
    assert found.folder.is_dir()


def test_without_a_disk_to_write_on_each_process_counts_for_itself(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for environ in ({}, {"PROMETHEUS_MULTIPROC_DIR": str(blocked / "below")}):
        assert environment.share_metrics(environ, scratch=tmp_path / "absent") is None
        assert environ == {}


# The CPUs of a container


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"cpu_max": "200000 100000\n"}, 2),
        ({"cpu_max": "150000 100000\n"}, 1),
        ({"cpu_max": "50000 100000\n"}, 1),
        ({"cpu_max": "6400000 100000\n"}, 8),
        ({"cpu_max": "max 100000\n"}, 8),
        ({"cpu_max": "nonsense"}, 8),
        ({"cpu__cpu_cfs_quota_us": "300000\n", "cpu__cpu_cfs_period_us": "100000\n"}, 3),
        ({"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}, 8),
        ({"cpu__cpu_cfs_quota_us": "300000\n", "cpu__cpu_cfs_period_us": "0\n"}, 8),
        ({"cpu__cpu_cfs_quota_us": "300000\n"}, 8),
    ],
    ids=lambda value: " ".join(value.values()).replace("\n", "") if isinstance(value, dict) else str(value),
)
def test_cpus_are_cut_by_the_quota(tmp_path, files, cpus):
    cgroup = write_cgroup(tmp_path, **files)
    assert available_cpus(cgroup=cgroup, affinity=lambda _pid: set(range(8))) == cpus


def test_cpus_are_cut_by_the_affinity_mask(tmp_path):
    cgroup = write_cgroup(tmp_path, cpu_max="800000 100000")
    assert available_cpus(cgroup=cgroup, affinity=lambda _pid: {0, 5}) == 2


def test_the_opt_ml_fixture_is_what_a_job_reads(opt_ml, drawn_data):
    opt_ml.channels(train=drawn_data / "train")
    opt_ml.hyperparameters({"epochs": 2})
    assert json.loads((opt_ml.config / "hyperparameters.json").read_text()) == {"epochs": "2"}
    found = read(opt_ml)
    assert (found.hyperparameters, list(found.channels), found.hosts.all) == ({"epochs": "2"}, ["train"], ("algo-1",))


# The memory of a container


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 8_000_000 * 1024),
        ({"memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""}, 8_000_000 * 1024),
        ({"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": "anon 1\nslab 3\n"}, 600),
        ({"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "inactive_file 200\n"}, 300),
        ({"memory.max": "1000\n", "memory.current": "1200\n", "memory.stat": ""}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "500\n",
                "memory/memory.stat": "total_inactive_file 7\n",
            },
            507,
        ),
    ],
)
def test_memory_is_what_the_cgroup_leaves_and_cached_files_are_free(tmp_path, files, available):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert environment.available_memory_bytes(cgroup=tmp_path, meminfo=meminfo) == available


def test_memory_is_unknown_where_nobody_says(tmp_path):
    assert environment.available_memory_bytes(cgroup=tmp_path, meminfo=tmp_path / "absent") is None
    assert environment.available_memory_bytes() > 0
