"""What goes wrong is one sentence that says what to do; what passes is tried again."""

import http.server
import json
import threading

import pytest
from botocore import exceptions as botocore
from tests.launch.scripted import Scripted, refusal

from scripts.launcher.aws import Aws, configured_region, connect, explain
from scripts.launcher.errors import ServiceError
from scripts.launcher.plan import Call

CREATE = Call("sagemaker", "CreateTrainingJob", {"TrainingJobName": "dogs-1"})
DESCRIBE = Call("sagemaker", "DescribeTrainingJob", {"TrainingJobName": "dogs-1"})


@pytest.mark.parametrize(
    ("code", "message", "says"),
    [
        ("AccessDeniedException", "User x is not authorized", "lack sagemaker:CreateTrainingJob;"),
        ("AccessDeniedException", "not authorized to perform: iam:PassRole on y", "lack iam:PassRole;"),
        ("UnrecognizedClientException", "The security token is invalid", "does not accept the credentials"),
        ("ExpiredToken", "expired", "log in again"),
        ("ThrottlingException", "Rate exceeded", "throttles CreateTrainingJob"),
        ("ResourceLimitExceeded", "limit for 'ml.g5.xlarge' is 0", "quota"),
        ("ResourceInUse", "Training job names must be unique", "that name exists already; give another by --name"),
        ("ValidationException", "Could not assume role arn:x", "give another by --role or DOGBREED_ROLE"),
        ("ValidationException", "Input mode is wrong", "was refused, ValidationException: Input mode is wrong"),
        ("ValidationException", "Requested resource not found.", "dogs-1 does not exist in this region and account"),
    ],
)
def test_a_refusal_is_one_sentence_with_a_way_out(code, message, says):
    error = explain(refusal(code, message), CREATE)
    assert says in str(error)
    assert message in str(error)
    assert "\n" not in str(error)
    assert error.code == code


@pytest.mark.parametrize(
    ("code", "message", "property"),
    [
        ("ResourceInUse", "exists", "name_taken"),
        ("RepositoryAlreadyExistsException", "exists", "name_taken"),
        ("ValidationException", "Cannot create already existing endpoint: it already exists", "name_taken"),
        ("ValidationException", "Could not find training job 'arn'.", "not_found"),
        ("NoSuchKey", "The specified key does not exist.", "not_found"),
        ("404", "Not Found", "not_found"),
        ("ThrottlingException", "Rate exceeded", "passing"),
    ],
)
def test_what_a_program_must_know_is_a_property(code, message, property):
    error = explain(refusal(code, message), DESCRIBE)
    assert [name for name in ("name_taken", "not_found", "passing") if getattr(error, name)] == [property]


def test_a_server_error_may_pass():
    assert explain(refusal("InternalFailure", "?", status=500), DESCRIBE).passing


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (botocore.NoCredentialsError(), "no AWS credentials for sagemaker:CreateTrainingJob: set AWS_PROFILE"),
        (botocore.PartialCredentialsError(provider="env", cred_var="x"), "no AWS credentials"),
        (botocore.CredentialRetrievalError(provider="x", error_msg="y"), "no AWS credentials"),
        (botocore.ProfileNotFound(profile="dogs"), "AWS_PROFILE"),
        (botocore.UnauthorizedSSOTokenError(), "aws sso login"),
        (botocore.NoRegionError(), "give --region or AWS_REGION"),
        (botocore.EndpointConnectionError(endpoint_url="https://x"), "cannot be reached"),
        (botocore.ConnectTimeoutError(endpoint_url="https://x"), "cannot be reached"),
        (botocore.ParamValidationError(report="Missing\nparameter"), "CreateTrainingJob would be refused"),
    ],
)
def test_what_botocore_reports_is_one_sentence(error, says):
    found = str(explain(error, CREATE))
    assert says in found
    assert "\n" not in found


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        Aws(lambda service: None).explained(CREATE, lambda: 1 // 0)


def test_pages_report_errors_like_calls():
    aws = Scripted(ListTrainingJobs=refusal("AccessDeniedException", "no"))
    with pytest.raises(ServiceError, match="sagemaker:ListTrainingJobs"):
        list(aws.pages(Call("sagemaker", "ListTrainingJobs", {})))


def test_without_credentials_the_sentence_says_so(environ, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ServiceError, match="no AWS credentials"):
        connect("eu-west-1").call(DESCRIBE)


def test_a_profile_that_does_not_exist_is_named(environ, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ServiceError, match="nobody"):
        connect("eu-west-1").call(DESCRIBE)


def test_an_endpoint_that_does_not_answer_is_named(environ):
    with pytest.raises(ServiceError, match=r"cannot be reached.*127\.0\.0\.1:9") as raised:
        connect("eu-west-1").call(DESCRIBE)
    assert raised.value.passing


class Throttling(http.server.BaseHTTPRequestHandler):
    """Refuses the first request of two as SageMaker does."""

    requests = 0

    def do_POST(self):
        type(self).requests += 1
        throttled = self.requests == 1
        body = json.dumps(
            {"__type": "ThrottlingException", "message": "Rate exceeded"}
            if throttled
            else {"TrainingJobName": "dogs-1", "TrainingJobStatus": "Completed"}
        ).encode()
        self.send_response(400 if throttled else 200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_throttled_call_is_tried_again_by_itself(environ, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Throttling)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.delenv("AWS_MAX_ATTEMPTS")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        # botocore's own back-off; at most a second, and none here.
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
        assert connect("eu-west-1", {}).call(DESCRIBE)["TrainingJobStatus"] == "Completed"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert Throttling.requests == 2


def test_the_region_of_a_profile_is_found(environ, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_REGION")
    assert configured_region() is None
    config = tmp_path / "config"
    config.write_text("[default]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert configured_region() == "eu-north-1"
