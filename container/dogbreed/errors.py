"""Every error of the project, and who is at fault.

    DogbreedError
    ├── JobError                 the job's input is wrong: exit code 1 and one sentence in the failure file
    │   ├── ConfigurationError   a file or variable of the platform's contract is malformed
    │   ├── HyperparameterError  a name or a value is not allowed
    │   ├── DataError            a channel, a class folder or an image
    │   ├── WeightsError         pretrained weights are missing, unreadable or of another network
    │   ├── BundleError          the model directory does not hold a bundle that this version reads
    │   └── OutputError          a folder for results cannot be written, or its disk is full
    └── RequestError             the client's request is wrong, or cannot be taken now; owns its HTTP status

Knows no other module. An exception outside this tree is a fault of ours: a job keeps its traceback in the log, a
request is answered with a fixed text and an id.
"""

from __future__ import annotations


class DogbreedError(Exception):
    """Base of everything below; never raised itself."""


class JobError(DogbreedError):
    """The job cannot run as asked. The message names what was found and what to do."""


class ConfigurationError(JobError):
    """A file or variable of the platform's contract is malformed."""


class HyperparameterError(JobError):
    """A hyperparameter has an unknown name or a value that is not allowed."""


class DataError(JobError):
    """A channel, a class folder or an image is missing or unusable."""


class WeightsError(JobError):
    """Pretrained weights are missing, unreadable or belong to another network."""


class BundleError(JobError):
    """The model directory does not hold a bundle that this version can read."""


class OutputError(JobError):
    """A folder for results cannot be written to, or its disk is full."""


class RequestError(DogbreedError):
    """A request that is answered with ``status`` and one JSON line naming ``code``.

    Attributes:
        status: HTTP status, 4xx when the client must change something, 503 and 504 when it may try again.
        code: a stable word for programs; the message is for people.
        retry_after_s: seconds for the Retry-After header, or None.
    """

    status = 400
    code = "bad_request"
    retry_after_s: int | None = None


class UnreadableImageError(RequestError):
    """The bytes are not an image that can be decoded."""

    code = "unreadable_image"


class SlowClientError(RequestError):
    """The body did not arrive in time."""

    status = 408
    code = "too_slow"


class PayloadTooLargeError(RequestError):
    """The body, or the number of images in it, is over the limit."""

    status = 413
    code = "payload_too_large"


class NotAcceptableError(RequestError):
    """No type in the Accept header can be produced."""

    status = 406
    code = "not_acceptable"


class UnsupportedMediaTypeError(RequestError):
    """The Content-Type is not one that carries images here."""

    status = 415
    code = "unsupported_media_type"


class ServerBusyError(RequestError):
    """As many requests are waiting as the server is willing to hold."""

    status = 503
    code = "busy"
    retry_after_s = 1


class NoHeatMapError(RequestError):
    """Where the network looked cannot be shown here; the message says why."""

    status = 501
    code = "no_heat_map"


class WaitedTooLongError(RequestError):
    """The request's turn came too late for an answer that anybody waits for."""

    status = 504
    code = "waited_too_long"
    retry_after_s = 1


class TookTooLongError(RequestError):
    """Computing the request took longer than anybody waits for its answer; the same again would too."""

    status = 504
    code = "took_too_long"


class ClientGoneError(RequestError):
    """The client has closed its connection; nobody reads this answer, and the log shows its status."""

    status = 499  # nginx's word for it; the standard has none
    code = "client_gone"


class NotReadyError(RequestError):
    """The model is not loaded, or has failed; the message is the reason that /ping gives."""

    status = 503
    code = "not_ready"
    retry_after_s = 5


class ModelNotFoundError(RequestError):
    """A multi-model endpoint holds no model of that name."""

    status = 404
    code = "model_not_found"


class ModelConflictError(RequestError):
    """A model of that name is loaded already, or is on its way."""

    status = 409
    code = "model_conflict"


class OutOfMemoryError(RequestError):
    """There is not enough memory for a model or a prediction; the platform unloads other models and tries again."""

    status = 507
    code = "out_of_memory"
