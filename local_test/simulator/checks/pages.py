"""The pages of AWS's documentation that checks stand on."""

from __future__ import annotations

from local_test.simulator.checks.check import Page

_GUIDE = "https://docs.aws.amazon.com/sagemaker/latest/dg"
_API = "https://docs.aws.amazon.com/sagemaker/latest/APIReference"


def _guide(name: str) -> Page:
    return Page(name, f"{_GUIDE}/{name}.html")


TRAIN_DOCKERFILE = _guide("your-algorithms-training-algo-dockerfile")
TRAIN_INPUT = _guide("your-algorithms-training-algo-running-container")
TRAIN_OUTPUT = _guide("your-algorithms-training-algo-output")
TRAIN_EXIT = _guide("your-algorithms-training-signal-success-failure")
TRAIN_STORAGE = _guide("model-train-storage")
CHECKPOINTS = _guide("model-checkpoints")
SPOT = _guide("model-managed-spot-training")
TUNING_METRICS = _guide("automatic-model-tuning-define-metrics-variables")
EARLY_STOPPING = _guide("automatic-model-tuning-early-stopping")
TRAINING_METRICS = _guide("training-metrics")
ISOLATION = _guide("mkt-algo-model-internet-free")
DISTRIBUTION = Page("API: S3DataSource", f"{_API}/API_S3DataSource.html")
SERVE = _guide("your-algorithms-inference-code")
PIPELINE = _guide("inference-pipeline-real-time")
HOSTING_LIMITS = _guide("hosting-faqs")
BATCH = _guide("your-algorithms-batch-code")
MULTI_MODEL = _guide("mms-container-apis")
MULTI_MODEL_LABEL = _guide("build-multi-model-build-container")
INVOKE = Page("API: InvokeEndpoint", f"{_API}/API_runtime_InvokeEndpoint.html")
MODEL_ERROR = Page("API: ModelError", f"{_API}/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors")
