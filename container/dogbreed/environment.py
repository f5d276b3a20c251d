"""SageMaker's container contract, both sides, in one place.

The only module that names `/opt/ml`, `SM_*` and `SAGEMAKER_*` or reads the process environment. It turns a root
folder and a mapping of variables into frozen values, so that a test passes a temporary folder and a dict, and it
writes the one file through which a job says why it failed.

Does not know what a hyperparameter means or what a model is. A missing optional file is normal; a malformed one is a
`ConfigurationError` that names the file.

Sources: AWS SageMaker developer guide, pages your-algorithms-training-algo-running-container,
your-algorithms-training-algo-output, your-algorithms-inference-code, your-algorithms-batch-code, train-warm-pools;
`DescribeTrainingJob` for the 1,024 characters of a failure reason.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dogbreed.errors import ConfigurationError

FAILURE_MAX_CHARACTERS = 1024
"""What of the failure file becomes FailureReason."""

SERVING_STOP_GRACE_S = 30
"""Between SIGTERM and SIGKILL for an endpoint (your-algorithms-inference-code)."""

DEFAULT_PORT = 8080
DEFAULT_RENDEZVOUS_PORT = 29500
"""torchrun's own default; the hosts of a job reach each other on every port."""

PORT_VARIABLE = "SAGEMAKER_BIND_TO_PORT"
"""Names the port of an endpoint."""

DEFAULT_MAX_PAYLOAD_MB = 25
"""Real-time payload limit of the hosting FAQ. The platform may cut lower, 6 MB in the API model."""

ENGINES = ("auto", "torch", "openvino", "cuda")
"""What may compute an endpoint's answers; auto takes the quickest that the machine and the bundle allow."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Arithmetic of an endpoint."""

DEFAULT_MAX_PIXELS = 64_000_000
"""Of one image in a request: 192 MB of RGB. Photos with more do not fit the payload limit, and a bomb does."""

# What Pillow opens at all.
_MOST_PIXELS = 178_956_970
_DEFAULT_ROOT = "/opt/ml"
# SDK v3's ModelTrainer mounts its own code as channels; they never hold class folders.
_SIDE_CHANNELS = frozenset({"code", "sm_drivers"})
_SCRATCH = Path("/tmp")  # noqa: S108  the folder that AWS documents as scratch (model-train-storage)
# Which GPUs CUDA shows a process.
_CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"
_MIB = 1024 * 1024
_MAX_PORT = 65535

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the platform reads and writes, under one root folder (`/opt/ml`, or SAGEMAKER_BASE_DIR)."""

    root: Path

    @property
    def config(self) -> Path:
        """Folder of the JSON files that describe the job."""
        return self.root / "input" / "config"

    @property
    def data(self) -> Path:
        """Parent of the channel folders; may be read-only (FastFile)."""
        return self.root / "input" / "data"

    @property
    def model(self) -> Path:
        """The model directory: written by a job and packed as model.tar.gz, read-only for an endpoint."""
        return self.root / "model"

    @property
    def models(self) -> Path:
        """Parent of the model folders of a multi-model endpoint."""
        return self.root / "models"

    @property
    def output_data(self) -> Path:
        """Files that are not the model, packed as output.tar.gz."""
        return self.root / "output" / "data"

    @property
    def tensors(self) -> Path:
        """smdebug's default output folder."""
        return self.root / "output" / "tensors"

    @property
    def profile(self) -> Path:
        """Folder of the system metrics, in the profiler's own files."""
        return self.root / "output" / "profiler"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's events files, which the platform sends to S3 as they grow where it was asked to."""
        return self.root / "output" / "tensorboard"

    @property
    def failure(self) -> Path:
        """The file whose first 1,024 characters become FailureReason."""
        return self.root / "output" / "failure"


@dataclass(frozen=True, slots=True)
class Channel:
    """One input of the job.

    Attributes:
        name: as given by the user, letters, digits, `.`, `-` and `_`.
        path: its folder. Treat it as read-only: FastFile cannot be told from File. There is none in Pipe mode.
        sharded: each host holds only a part of the objects (ShardedByS3Key).
        piped: it is a stream (TrainingInputMode Pipe), see `pipe`.
        wrapped: the platform puts what it streams into RecordIO records (RecordWrapperType RecordIO); what is in
            RecordIO already is streamed as it is.
    """

    name: str
    path: Path
    sharded: bool = False
    piped: bool = False
    wrapped: bool = False

    def pipe(self, opening: int = 0) -> Path:
        """The named pipe to open for the first time (0), the second time (1) and so on; it may appear late."""
        return self.path.with_name(f"{self.name}_{opening}")


@dataclass(frozen=True, slots=True)
class Hosts:
    """The machines of the job.

    Attributes:
        current: this host's name.
        all: every host's name, sorted; the first one leads.
        network_interface: named by the platform and present on this machine, else None (local mode names one that
            does not exist).
        instance_type: of this host, such as ml.g5.xlarge; None where the platform does not say.
        groups: instance group -> its hosts, for jobs of several instance types.
    """

    current: str
    all: tuple[str, ...]
    network_interface: str | None
    instance_type: str | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Position of this host among all."""
        return self.all.index(self.current)


@dataclass(frozen=True, slots=True)
class Worker:
    """This process's place among those of a job, as torchrun's launcher tells it.

    Attributes:
        rank: from 0, over all hosts.
        size: processes on all hosts.
        local_rank: from 0, on this host.
        local_size: processes on this host.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


# What the tuner adds to the hyperparameters of its trials.
_TUNING_OBJECTIVE = "_tuning_objective_metric"


@dataclass(frozen=True, slots=True)
class Profiling:
    """What a job's ProfilerConfig says of how the machine is watched; None leaves it to us.

    `DisableProfiler` is not among it: it turns off AWS's own monitoring, which many accounts cannot have any more.

    Attributes:
        folder: of the system metrics.
        interval_s: between two samples.
        start_step: train step from which operators are profiled.
        steps: that are profiled.
    """

    folder: Path
    interval_s: float | None
    start_step: int | None
    steps: int | None


@dataclass(frozen=True, slots=True)
class Tracking:
    """The MLflow run that a job is told to, in the client's own variables.

    Attributes:
        uri: of the tracking server (MLFLOW_TRACKING_URI).
        experiment: by name (MLFLOW_EXPERIMENT_NAME), or None.
        run_id: of a run that exists (MLFLOW_RUN_ID), or None.
        run_name: of a new one (MLFLOW_RUN_NAME), or None.
    """

    uri: str
    experiment: str | None
    run_id: str | None
    run_name: str | None


@dataclass(frozen=True, slots=True)
class TrainingEnvironment:
    """What the platform tells a training job.

    Attributes:
        worker: set in a process that a launcher started, None in the first one of a job.
        processes: wanted on this host (DOGBREED_PROCESSES); None is one for each GPU, or one.
        rendezvous_port: of the first host, where the processes of several hosts meet (MASTER_PORT).
        hyperparameters: raw strings, as found.
        checkpoints: folder that is synced with S3, or one of its own in it for a trial of SageMaker's tuner; None
            without CheckpointConfig.
        hook_config: smdebug's hook configuration written by the platform, or None.
        profiling: how the machine is watched.
        tensorboard: folder that a TensorBoardOutputConfig names, or None without one.
        tracking: MLflow's, or None.
        weights: folder of pretrained weights inside the image.
        cache: folder for what can be computed again: DOGBREED_CACHE_DIR, else the warm pool's, which outlives the
            job, else scratch: TMPDIR or /tmp.
        gpus: that CUDA is told of (CUDA_VISIBLE_DEVICES), as it is written; None is all.
    """

    paths: Paths
    hyperparameters: Mapping[str, str]
    channels: Mapping[str, Channel]
    hosts: Hosts
    job_name: str | None
    checkpoints: Path | None
    hook_config: Path | None
    profiling: Profiling
    tensorboard: Path | None
    tracking: Tracking | None
    weights: Path
    cache: Path
    log_level: str
    worker: Worker | None = None
    processes: int | None = None
    rendezvous_port: int = DEFAULT_RENDEZVOUS_PORT
    gpus: str | None = None


@dataclass(frozen=True, slots=True)
class ServingEnvironment:
    """What the platform tells an endpoint.

    Attributes:
        host: address to listen on.
        port: SAGEMAKER_BIND_TO_PORT where it is set, else 8080.
        workers: processes, each with its own copy of the model (SAGEMAKER_MODEL_SERVER_WORKERS); None is one for each
            GPU, or one. Of several models one process knows.
        request_timeout_s: a request that takes longer is ended between two of its images; while a single one takes
            longer, `/ping` is 503 (SAGEMAKER_MODEL_SERVER_TIMEOUT).
        max_payload_bytes: larger bodies are refused with 413.
        default_accept: content type of the answer when the client names none.
        batch_transform: the server works for a batch transform job.
        cpus: CPUs that this container may use.
        max_waiting: requests that may wait for a CPU in each worker (DOGBREED_MAX_WAITING); more are refused with 503.
        page: serve the page for trying a photo at `/` (DOGBREED_PAGE).
        heat_maps: tell clients who ask where the network looked (DOGBREED_HEATMAPS).
        engine: what computes, one of ENGINES (DOGBREED_ENGINE).
        precision: of its arithmetic, one of PRECISIONS (DOGBREED_PRECISION).
        low_latency: an image that comes while nothing else is computed may have all CPUs, for the memory of the
            weights once more (DOGBREED_LOW_LATENCY); without a word only where there is one model.
        max_pixels: larger images are refused before they are decoded (DOGBREED_MAX_PIXELS).
        multi_model: models are loaded and deleted by requests (SAGEMAKER_MULTI_MODEL); one process serves them all.
        models_budget_bytes: that the files of loaded models may have together (DOGBREED_MODELS_MEMORY_MB); None is
            any for which there is memory.
        evict_models: where memory is short, unload the least recently used model instead of answering 507
            (DOGBREED_MODELS_EVICT); on SageMaker the platform decides.
        json_logs: log one JSON object a line instead of text (DOGBREED_LOG_FORMAT=json).
        emf_namespace: log each invocation in CloudWatch's embedded metric format as well, into this namespace
            (DOGBREED_EMF_NAMESPACE); None does not.
        gpus: that CUDA is told of (CUDA_VISIBLE_DEVICES), as it is written; None is all.
    """

    paths: Paths
    host: str
    port: int
    workers: int | None
    request_timeout_s: int
    max_payload_bytes: int
    default_accept: str
    batch_transform: bool
    cpus: int
    max_waiting: int
    page: bool
    log_level: str
    engine: str = "auto"
    precision: str = "auto"
    max_pixels: int = DEFAULT_MAX_PIXELS
    multi_model: bool = False
    models_budget_bytes: int | None = None
    evict_models: bool = False
    json_logs: bool = False
    emf_namespace: str | None = None
    heat_maps: bool = True
    low_latency: bool = True
    gpus: str | None = None


def read_training_environment(
    environ: Mapping[str, str] = os.environ, *, root: Path | None = None
) -> TrainingEnvironment:
    """Reads the training side of the contract.

    Args:
        environ: environment variables.
        root: stands for `/opt/ml`; default SAGEMAKER_BASE_DIR, else `/opt/ml`.

    Raises:
        ConfigurationError: a file is not the JSON that the platform documents; names the file and what was found.
    """
    paths = read_paths(environ, root=root)
    hyperparameters = _read_hyperparameters(paths.config / "hyperparameters.json")
    hook_config = Path(environ.get("SMDEBUG_CONFIG_FILE_PATH", paths.config / "debughookconfig.json"))
    cache = environ.get("DOGBREED_CACHE_DIR") or environ.get("SAGEMAKER_MANAGED_WARMPOOL_CACHE_DIRECTORY")
    return TrainingEnvironment(
        paths=paths,
        hyperparameters=hyperparameters,
        channels=_read_channels(paths),
        hosts=_read_hosts(paths.config / "resourceconfig.json"),
        job_name=environ.get("TRAINING_JOB_NAME"),
        checkpoints=_read_checkpoints(paths, hyperparameters, environ.get("TRAINING_JOB_NAME")),
        hook_config=hook_config if hook_config.is_file() else None,
        profiling=_read_profiling(environ, paths),
        tensorboard=_read_tensorboard(paths),
        tracking=_read_tracking(environ),
        weights=Path(environ.get("DOGBREED_WEIGHTS_DIR", "/opt/dogbreed/weights")),
        cache=Path(cache) if cache else Path(environ.get("TMPDIR") or _SCRATCH) / "dogbreed",
        log_level=_log_level(environ),
        worker=_read_worker(environ),
        processes=_read_variable(
            environ, "DOGBREED_PROCESSES", _whole(1, 256), "a whole number of processes, 1 to 256", None
        ),
        gpus=environ.get(_CUDA_DEVICES),
        rendezvous_port=_read_variable(
            environ, "MASTER_PORT", _whole(1, _MAX_PORT), f"a port from 1 to {_MAX_PORT}", DEFAULT_RENDEZVOUS_PORT
        ),
    )


def read_serving_environment(
    environ: Mapping[str, str] = os.environ, *, root: Path | None = None
) -> ServingEnvironment:
    """Reads the serving side of the contract.

    Raises:
        ConfigurationError: a variable has a value that cannot be used; names the variable, the value and what is
            allowed.
    """
    batch = _read_variable(environ, "SAGEMAKER_BATCH", _boolean, "true or false", False)
    max_payload_mb = _read_variable(
        environ,
        "SAGEMAKER_MAX_PAYLOAD_IN_MB",
        _whole(0, 1024),
        "0 (no limit) to 1024",
        DEFAULT_MAX_PAYLOAD_MB,
    )
    cpus = available_cpus()
    multi_model = _read_variable(environ, "SAGEMAKER_MULTI_MODEL", _boolean, "true or false", False)
    workers = _read_variable(
        environ, "SAGEMAKER_MODEL_SERVER_WORKERS", _whole(1, 256), "a whole number from 1 to 256", None
    )
    models_budget_mb = _read_variable(
        environ, "DOGBREED_MODELS_MEMORY_MB", _whole(1, 1024 * 1024), "a whole number of MB from 1 to 1048576", None
    )
    return ServingEnvironment(
        paths=read_paths(environ, root=root),
        host=environ.get("DOGBREED_HOST", "0.0.0.0"),  # noqa: S104  the platform calls from outside the container
        port=_read_variable(
            environ,
            PORT_VARIABLE,
            _whole(1, _MAX_PORT),
            f"a port from 1 to {_MAX_PORT}",
            DEFAULT_PORT,
        ),
        # A model that one process has loaded is unknown to another.
        workers=1 if multi_model else workers,
        request_timeout_s=_read_variable(
            environ, "SAGEMAKER_MODEL_SERVER_TIMEOUT", _whole(1, 3600), "seconds, 1 to 3600", 60
        ),
        # MaxPayloadInMB=0 means unlimited and chunked; hold it to what fits a memory.
        max_payload_bytes=(max_payload_mb or 1024) * _MIB,
        default_accept=environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "application/json"),
        batch_transform=batch,
        cpus=cpus,
        max_waiting=_read_variable(
            environ, "DOGBREED_MAX_WAITING", _whole(0, 1024), "a whole number from 0 to 1024", 64
        ),
        page=_read_variable(environ, "DOGBREED_PAGE", _boolean, "true or false", False),
        heat_maps=_read_variable(environ, "DOGBREED_HEATMAPS", _boolean, "true or false", True),
        low_latency=_read_variable(environ, "DOGBREED_LOW_LATENCY", _boolean, "true or false", not multi_model),
        log_level=_log_level(environ),
        engine=_read_variable(environ, "DOGBREED_ENGINE", _one_of(ENGINES), f"one of {', '.join(ENGINES)}", "auto"),
        precision=_read_variable(
            environ, "DOGBREED_PRECISION", _one_of(PRECISIONS), f"one of {', '.join(PRECISIONS)}", "auto"
        ),
        max_pixels=_read_variable(
            environ,
            "DOGBREED_MAX_PIXELS",
            _whole(1, _MOST_PIXELS),
            f"a whole number of pixels from 1 to {_MOST_PIXELS}",
            DEFAULT_MAX_PIXELS,
        ),
        multi_model=multi_model,
        models_budget_bytes=None if models_budget_mb is None else models_budget_mb * _MIB,
        evict_models=_read_variable(environ, "DOGBREED_MODELS_EVICT", _boolean, "true or false", False),
        json_logs=_read_variable(environ, "DOGBREED_LOG_FORMAT", _log_format, "text or json", False),
        emf_namespace=_read_variable(
            environ,
            "DOGBREED_EMF_NAMESPACE",
            _namespace,
            "1 to 255 letters, digits and ._/#:- that do not begin with a colon",
            None,
        ),
        gpus=environ.get(_CUDA_DEVICES),
    )


def read_paths(environ: Mapping[str, str] = os.environ, *, root: Path | None = None) -> Paths:
    """The platform's folders; never fails, so that even a broken configuration can be reported."""
    return Paths(root if root is not None else Path(environ.get("SAGEMAKER_BASE_DIR", _DEFAULT_ROOT)))


def write_failure(paths: Paths, reason: str) -> None:
    """Writes why the job failed, cause first, cut to what the platform shows. Call it last, after all logging.

    A reason that is already there wins: it was written closer to the cause. Never raises, because it runs while
    another error is being reported.
    """
    try:
        paths.failure.parent.mkdir(parents=True, exist_ok=True)
        with paths.failure.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(reason[:FAILURE_MAX_CHARACTERS])
    except OSError:
        return


@dataclass(frozen=True, slots=True)
class SharedCounts:
    """Where the processes of a server share what they count.

    Attributes:
        folder: of prometheus-client's files.
        named: by the user, who may keep other things in it; else it is a scratch folder of this server alone.
        made: it was not there before.
    """

    folder: Path
    named: bool
    made: bool


def share_metrics(environ: MutableMapping[str, str] = os.environ, *, scratch: Path = _SCRATCH) -> SharedCounts | None:
    """A folder in which the processes of a server share what they count, made known to prometheus-client.

    One that the user has named (PROMETHEUS_MULTIPROC_DIR) is kept. Call it before anything imports prometheus-client.

    Returns:
        The folder; None where the disk is read-only, and each process then counts for itself.
    """
    named = environ.get("PROMETHEUS_MULTIPROC_DIR")
    try:
        if named:
            made = not Path(named).exists()
            Path(named).mkdir(parents=True, exist_ok=True)
            return SharedCounts(Path(named), named=True, made=made)
        folder = tempfile.mkdtemp(prefix="dogbreed-metrics-", dir=scratch)
    except OSError:
        environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        return None
    environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    return SharedCounts(Path(folder), named=False, made=True)


def available_cpus(
    *, cgroup: Path = Path("/sys/fs/cgroup"), affinity: Callable[[int], set[int]] = os.sched_getaffinity
) -> int:
    """CPUs that this container may use: the affinity mask, cut by the cgroup quota (v2, then v1), at least 1.

    Never the host's count: inference components and Docker give a share of a large machine.
    """
    cpus = len(affinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return cpus
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no quota
        return cpus
    return cpus if share <= 0 else max(1, min(cpus, int(share)))


def _read_checkpoints(paths: Paths, hyperparameters: Mapping[str, str], job_name: str | None) -> Path | None:
    """The folder for checkpoints.

    All trials of a tuning job have one CheckpointConfig, and with it one folder in S3 (API reference:
    HyperParameterTrainingJobDefinition), where each would find the checkpoints of the others. A trial that is started
    again after an interruption keeps its name, and so its folder. Other jobs may be given that of an earlier one.
    """
    given = _read_object(paths.config / "checkpointconfig.json").get("LocalPath")
    if not given:
        return None
    folder = Path(str(given))
    return folder / job_name if job_name and _TUNING_OBJECTIVE in hyperparameters else folder


def available_memory_bytes(
    *, cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> int | None:
    """Memory that this container may still take: what its cgroup (v2, then v1) leaves, at most what the machine has.

    Cached files, which the kernel drops when memory is asked for, count as free. None when nobody says.
    """
    left = [
        found
        for found in (
            _cgroup_memory(cgroup / "memory.max", cgroup / "memory.current", cgroup / "memory.stat"),
            _cgroup_memory(
                cgroup / "memory" / "memory.limit_in_bytes",
                cgroup / "memory" / "memory.usage_in_bytes",
                cgroup / "memory" / "memory.stat",
            ),
            _machine_memory(meminfo),
        )
        if found is not None
    ]
    return max(0, min(left)) if left else None


def _cgroup_memory(limit: Path, used: Path, statistics: Path) -> int | None:
    try:
        allowed, taken = int(limit.read_text()), int(used.read_text())
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics.read_text(), re.MULTILINE)
    except (OSError, ValueError):  # "max": no limit
        return None
    return allowed - taken + (int(found[1]) if found else 0)


def _machine_memory(meminfo: Path) -> int | None:
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _read_hyperparameters(file: Path) -> dict[str, str]:
    found = _read_object(file)
    wrong = sorted(name for name, value in found.items() if not isinstance(value, str))
    if wrong:
        raise ConfigurationError(
            f"{file}: the value of {wrong[0]!r} is {found[wrong[0]]!r}, but SageMaker writes every hyperparameter as a "
            f"string; quote it"
        )
    return {name: str(value) for name, value in found.items()}


def _read_channels(paths: Paths) -> dict[str, Channel]:
    """Channels named in inputdataconfig.json; without that file, every folder below input/data."""
    file = paths.config / "inputdataconfig.json"
    config = _read_object(file)
    if not config and paths.data.is_dir():
        config = {folder.name: {} for folder in sorted(paths.data.iterdir()) if folder.is_dir()}
    channels = {}
    for name, settings in config.items():
        if name in _SIDE_CHANNELS:
            continue
        if not isinstance(settings, dict):
            raise ConfigurationError(f"{file}: channel {name!r} holds {settings!r} instead of a JSON object")
        channels[name] = Channel(
            name,
            paths.data / name,
            sharded=settings.get("S3DistributionType") == "ShardedByS3Key",
            piped=settings.get("TrainingInputMode") == "Pipe",
            wrapped=settings.get("RecordWrapperType") == "RecordIO",
        )
    return channels


def _read_profiling(environ: Mapping[str, str], paths: Paths) -> Profiling:
    """The profiler's configuration, at its default place or where smdebug's variable points.

    Names are matched without case, and values may be texts, as smdebug 1.0.34 has it (profiler_config_parser.py).
    """
    file = Path(environ.get("SMPROFILER_CONFIG_PATH") or paths.config / "profilerconfig.json")
    config = {name.lower(): value for name, value in _read_object(file).items()}
    parameters = _lowered(file, "ProfilingParameters", config.get("profilingparameters"))
    detailed = _lowered(file, "DetailedProfilingConfig", parameters.get("detailedprofilingconfig"))
    milliseconds = _positive(file, config, "ProfilingIntervalInMilliseconds")
    return Profiling(
        folder=Path(str(parameters.get("localpath") or paths.profile)),
        interval_s=milliseconds / 1000 if milliseconds else None,
        start_step=_positive(file, detailed, "StartStep"),
        steps=_positive(file, detailed, "NumSteps"),
    )


def _lowered(file: Path, name: str, value: object) -> dict[str, object]:
    """An object inside a file, which the API passes as text of JSON; its names in lower case."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{file}: {name} is not JSON: {error}") from error
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: {name} holds {value!r} instead of a JSON object")
    return {str(key).lower(): one for key, one in value.items()}


def _positive(file: Path, values: Mapping[str, object], name: str) -> int | None:
    """A whole number from 1 on, or text of one; None where it is not given or 0."""
    value = values.get(name.lower())
    if value is None:
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0:
        raise ConfigurationError(f"{file}: {name}={value!r} is not a whole number")
    return number or None


def _read_tensorboard(paths: Paths) -> Path | None:
    """The folder of `TensorBoardOutputConfig`, whose LocalPath has a default (API reference)."""
    config = _read_object(paths.config / "tensorboardoutputconfig.json")
    return Path(str(config.get("LocalPath") or paths.tensorboard)) if config else None


def _read_hosts(file: Path) -> Hosts:
    config = _read_object(file)
    current = config.get("current_host", "localhost")
    hosts = config.get("hosts", [current])
    if not isinstance(current, str) or not isinstance(hosts, list) or current not in hosts:
        raise ConfigurationError(f"{file}: current_host={current!r} is not among hosts={hosts!r}")
    interface = config.get("network_interface_name")
    exists = isinstance(interface, str) and Path("/sys/class/net", interface).exists()
    instance_type = config.get("current_instance_type")
    return Hosts(
        current,
        tuple(sorted(str(host) for host in hosts)),
        str(interface) if exists else None,
        instance_type if isinstance(instance_type, str) else None,
        _read_groups(config.get("instance_groups")),
    )


def _read_groups(described: object) -> dict[str, tuple[str, ...]]:
    """Instance group -> hosts; what is not described as the platform does is left out, because nothing hangs on it."""
    return {
        str(group["instance_group_name"]): tuple(str(host) for host in group["hosts"])
        for group in (described if isinstance(described, list) else [])
        if isinstance(group, dict) and "instance_group_name" in group and isinstance(group.get("hosts"), list)
    }


def _read_tracking(environ: Mapping[str, str]) -> Tracking | None:
    uri, experiment, run_id, name = (
        environ.get(name, "").strip() or None
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_RUN_NAME")
    )
    return Tracking(uri, experiment, run_id, name) if uri else None


def shorten_mlflow_requests(environ: MutableMapping[str, str] = os.environ) -> None:
    """Tells MLflow's client, which reads the environment itself, to give a server up after a minute.

    Its own 7 retries of up to 120 s would outlast many a job. What the user has set stays.
    """
    environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def quiet_profiler(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keeps torch's profiler, which reads the environment itself, from calling a machine without a GPU an error.

    Its levels go to 4; what the user has set stays.
    """
    environ.setdefault("KINETO_LOG_LEVEL", "5")


def _read_worker(environ: Mapping[str, str]) -> Worker | None:
    """The four variables that torchrun's launcher sets; a partly set environment is that of something else."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in environ or not all(environ.get(name, "").isdecimal() for name in names):
        return None
    return Worker(*(int(environ[name]) for name in names))


def show_gpu(name: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Shows this process one GPU alone; for before CUDA wakes.

    Args:
        name: as CUDA_VISIBLE_DEVICES wants it.
        environ: environment variables.
    """
    environ[_CUDA_DEVICES] = name


def name_network_interface(interface: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Tells gloo and NCCL, which read the environment themselves, how the other hosts are reached.

    What the user has set stays.
    """
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        environ.setdefault(name, interface)


def _read_object(file: Path) -> dict[str, object]:
    """The JSON object in a file; empty when there is no file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file} holds {type(value).__name__} instead of a JSON object")
    return value


def _read_variable(environ: Mapping[str, str], name: str, convert: Callable[[str], T], allowed: str, default: T) -> T:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        return convert(text)
    except ValueError:
        raise ConfigurationError(f"{name}={text!r} is not allowed; give {allowed}") from None


def _whole(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return convert


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(text)
        return text.lower()

    return convert


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _log_format(text: str) -> bool:
    try:
        return {"text": False, "json": True}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _namespace(text: str) -> str:
    # PutMetricData's pattern for a namespace; spaces, which it also allows, are refused for the sake of the shell.
    if not re.fullmatch(r"[A-Za-z0-9._/#-][A-Za-z0-9._/#:-]{0,254}", text):
        raise ValueError(text)
    return text


def _log_level(environ: Mapping[str, str]) -> str:
    """SM_LOG_LEVEL as the toolkits give it, a number or a name; INFO when it is neither."""
    text = environ.get("SM_LOG_LEVEL", "INFO").upper()
    names = {"10": "DEBUG", "20": "INFO", "30": "WARNING", "40": "ERROR", "50": "CRITICAL"}
    level = names.get(text, text)
    return level if re.fullmatch("DEBUG|INFO|WARNING|ERROR|CRITICAL", level) else "INFO"
