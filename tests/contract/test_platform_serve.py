"""The local platform's endpoints, asked by boto3's own client: this project's server, and one that misbehaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from botocore.exceptions import ClientError
from local_test.simulator.choosing import OWN_PROGRAMS
from local_test.simulator.hosting.endpoint import Several
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import NotInServiceError
from local_test.simulator.hosting.rules import Health, Invocations
from local_test.simulator.hosting.service import EVENTS, Asynchronous, Plan, PortError, Service
from local_test.simulator.processes import ProcessSubject
from PIL import Image
from tests.contract.local_platform import HEALTH, PATIENCE_S, Endpoint, client, little, model, serving
from tests.contract.serving import save_bundle

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


def refused(call: Callable[[], object]) -> dict[str, Any]:
    """The error of a call, as boto3 read it."""
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.response


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What the little subject says of a request."""
    return json.loads(answer["Body"].read())


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.tar.gz of the tiny network."""
    root = tmp_path_factory.mktemp("bundle")
    save_bundle(root)
    with tarfile.open(root / "model.tar.gz", "w:gz") as archive:
        archive.add(root / "model", ".")
    return root / "model.tar.gz"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Endpoint]:
    """This project's server, twice."""
    folder = tmp_path_factory.mktemp("own") / "dogs"
    plan = Plan(
        "dogs",
        ProcessSubject(OWN_PROGRAMS),
        folder,
        model=bundle,
        instances=2,
        environment={"DOGBREED_PAGE": "true"},
        health=HEALTH,
        direct_port=0,
    )
    with serving(plan, attempts=4) as endpoint:
        yield endpoint
    assert "Traceback" not in "".join(log.read_text() for log in (folder / "logs").iterdir())


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The little subject, once."""
    return Plan("dogs", little(tmp_path), tmp_path / "dogs", model=model(tmp_path), health=HEALTH)


@pytest.fixture
def endpoint(plan: Plan) -> Iterator[Endpoint]:
    with serving(plan) as running:
        yield running


@pytest.fixture(scope="module")
def photo() -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def test_an_image_gets_a_prediction(own: Endpoint, photo: bytes) -> None:
    answer = own.invoke(photo, "top_k=2", ContentType="image/jpeg", Accept="application/json")
    assert answer["ContentType"] == "application/json"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    [prediction] = json.loads(answer["Body"].read())["predictions"]
    assert len(prediction["top_k"]) == 2


def test_a_users_mistake_is_a_model_error(own: Endpoint) -> None:
    error = refused(lambda: own.invoke(b"no image", ContentType="image/jpeg"))
    assert error["Error"]["Code"] == "ModelError"
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert error["OriginalStatusCode"] == 400
    assert json.loads(error["OriginalMessage"])["error"]["code"] == "unreadable_image"
    assert "log-group:/aws/sagemaker/Endpoints/dogs:log-stream:AllTraffic/i-" in error["LogStreamArn"]


def test_predict_of_the_launcher_finds_it(own: Endpoint, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photo)
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": own.service.address,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "scripts/launch.py", "predict", "dogs", str(tmp_path / "photo.jpg"), "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 1


def test_an_instance_that_is_killed_is_replaced_and_clients_notice_nothing(own: Endpoint, photo: bytes) -> None:
    victim = own.service.fleet.in_service()[0]
    stop = threading.Event()

    def ask() -> int:
        count = 0
        while not stop.is_set():
            assert own.invoke(photo, ContentType="image/jpeg")["ResponseMetadata"]["HTTPStatusCode"] == 200
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            os.kill(int(victim.launched.running.name), signal.SIGKILL)
            eventually(lambda: victim.name not in {one.name for one in own.service.fleet.in_service()})
            eventually(lambda: len(own.service.fleet.in_service()) == 2)
        finally:
            stop.set()
        assert all(future.result() > 0 for future in asking)
    assert f"{victim.name} failed: it ended by itself with exit code 137" in own.events


def test_only_the_interfaces_headers_cross(endpoint: Endpoint) -> None:
    answer = endpoint.invoke(b"abc", "a=b", ContentType="text/csv", InferenceId="one")
    assert answer["CustomAttributes"] == "seen=1"
    assert "x-secret" not in answer["ResponseMetadata"]["HTTPHeaders"]
    seen = told(answer)
    assert seen["path"] == "/invocations"
    assert set(seen["headers"]) - {"Host", "Connection", "Content-Length"} == {
        "Content-Type",
        "X-Amzn-SageMaker-Custom-Attributes",
        "X-Amzn-SageMaker-Inference-Id",
    }
    assert seen["headers"]["Content-Type"] == "text/csv"


def test_errors_of_the_container_are_cut(endpoint: Endpoint) -> None:
    error = refused(lambda: endpoint.invoke(attributes="status=503"))
    assert (error["Error"]["Code"], error["OriginalStatusCode"]) == ("ModelError", 503)
    assert len(error["OriginalMessage"]) == 2048


def test_a_payload_over_the_limit_never_reaches_the_container(plan: Plan) -> None:
    with serving(replace(plan, rules=Invocations(payload_bytes=MIB))) as endpoint:
        assert told(endpoint.invoke(bytes(MIB)))["bytes"] == MIB
        error = refused(lambda: endpoint.invoke(bytes(MIB + 1)))
        assert error["ResponseMetadata"]["HTTPStatusCode"] == 413
        assert error["Error"]["Message"] == "HTTP content length exceeded 1048576 bytes."
        # The connection is as good as new.
        assert told(endpoint.invoke(b"ab"))["bytes"] == 2


def test_an_answer_that_takes_too_long(plan: Plan) -> None:
    with serving(replace(plan, rules=Invocations(answer_s=1))) as endpoint:
        began = time.monotonic()
        error = refused(lambda: endpoint.invoke(attributes="sleep=100"))
        assert time.monotonic() - began < 50
        assert (error["Error"]["Code"], error["OriginalStatusCode"]) == ("ModelError", 0)
        assert error["OriginalMessage"].startswith("Your invocation timed out")
        # Others are answered, and the instance is not to blame.
        assert told(endpoint.invoke())["bytes"] == 1


def test_what_the_platform_itself_refuses(endpoint: Endpoint) -> None:
    def code(**more: str) -> tuple[str, int]:
        error = refused(lambda: endpoint.client.invoke_endpoint(**{"EndpointName": "dogs", "Body": b"x"} | more))
        return error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]

    assert code(EndpointName="cats") == ("ValidationError", 400)
    assert code(TargetModel="a.tar.gz") == ("ValidationError", 400)
    assert code(TargetVariant="other") == ("ValidationError", 400)
    assert code(InferenceComponentName="part") == ("ValidationError", 400)
    assert code(CustomAttributes="a" * 1025) == ("ValidationError", 400)
    asynchronous = refused(
        lambda: endpoint.client.invoke_endpoint_async(EndpointName="dogs", InputLocation="s3://bucket/key")
    )
    assert asynchronous["Error"]["Code"] == "ValidationError"


def test_a_container_that_ends_in_a_request(plan: Plan) -> None:
    with serving(plan) as endpoint:
        error = refused(lambda: endpoint.invoke(attributes="exit=3"))
        assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == ("InternalFailure", 500)
        # None is left until another has started.
        error = refused(endpoint.invoke)
        assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == ("ServiceUnavailable", 503)
        eventually(endpoint.service.fleet.in_service)
        assert told(endpoint.invoke())["bytes"] == 1
        assert "exit code 3" in endpoint.events


def test_an_instance_whose_pings_fail_is_replaced(plan: Plan) -> None:
    health = replace(HEALTH, grace_s=1)
    with serving(replace(plan, health=health, environment={"STUBBORN": "1"})) as endpoint:
        endpoint.invoke(attributes="ill=1")
        eventually(lambda: [one.name for one in endpoint.service.fleet.in_service()] == ["i-0002"])
        assert "2 pings in a row failed; the last: 503" in endpoint.events
    # It does not hear SIGTERM.
    assert "i-0001 still ran 1 s after SIGTERM and got SIGKILL" in endpoint.events
    assert "i-0001 ended with exit code 137" in endpoint.events


def test_a_request_goes_where_the_fewest_are(plan: Plan) -> None:
    with serving(replace(plan, instances=2)) as endpoint, ThreadPoolExecutor(4) as pool:
        slow = pool.submit(lambda: told(endpoint.invoke(attributes="sleep=3"))["pid"])
        eventually(lambda: any(one.outstanding for one in endpoint.service.fleet.in_service()))
        quick = {told(endpoint.invoke())["pid"] for _ in range(4)}
        assert len(quick) == 1
        assert slow.result() not in quick


def test_a_session_stays_at_its_instance(plan: Plan) -> None:
    with serving(replace(plan, instances=2)) as endpoint:
        begun = endpoint.invoke(attributes="session=new", SessionId="NEW_SESSION")
        assert begun["NewSessionId"].startswith("s1; ")
        pids = {told(endpoint.invoke(SessionId="s1"))["pid"] for _ in range(4)}
        assert len(pids) == 1
        assert len({told(endpoint.invoke())["pid"] for _ in range(4)}) == 2


def test_a_stream_comes_as_it_is_made(endpoint: Endpoint) -> None:
    answer = endpoint.client.invoke_endpoint_with_response_stream(
        EndpointName="dogs", Body=b"x", CustomAttributes="parts=3"
    )
    assert answer["ContentType"] == "text/plain"
    with contextlib.closing(answer["Body"]) as body:
        arrived = [(part["PayloadPart"]["Bytes"], time.monotonic()) for part in body]
    assert b"".join(part for part, _ in arrived) == b"part 0part 1part 2"
    assert arrived[-1][1] - arrived[0][1] > 0.2


def test_a_stream_that_breaks_off(endpoint: Endpoint) -> None:
    answer = endpoint.client.invoke_endpoint_with_response_stream(
        EndpointName="dogs", Body=b"x", CustomAttributes="parts=-2"
    )
    with contextlib.closing(answer["Body"]) as body, pytest.raises(ClientError, match="ModelStreamError"):
        list(body)
    # It is noted when all of the answer is there, or as here its error, which the client has had by then.
    eventually(lambda: "ModelStreamError(STREAM_BROKEN)" in endpoint.events)


def test_a_server_that_never_is_healthy_fails_with_its_log(plan: Plan) -> None:
    program = "#!/usr/bin/env python3\nprint('no port here', flush=True)\nimport time\ntime.sleep(600)\n"
    (plan.folder.parent / "programs" / "serve").write_text(program)
    hopeless = replace(plan, health=replace(HEALTH, start_s=3, grace_s=0.1))
    with pytest.raises(NotInServiceError, match="no 200 of /ping within 3 s") as caught, serving(hopeless):
        pass
    assert "  | no port here" in str(caught.value)


def test_the_model_is_read_only(plan: Plan) -> None:
    with serving(plan) as endpoint:
        assert told(endpoint.invoke(attributes="write=model/cache"))
    assert "wrote into /opt/ml/model, which is read only on the platform" in endpoint.events


def test_serverless_takes_one_request_at_an_instance_and_4_mb(plan: Plan) -> None:
    rules = Invocations(payload_bytes=4 * MIB, at_once=1)
    with serving(replace(plan, rules=rules, read_only_disk=True)) as endpoint, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(lambda: endpoint.invoke(attributes="sleep=2"))
        eventually(lambda: any(one.outstanding for one in endpoint.service.fleet.in_service()))
        assert refused(endpoint.invoke)["Error"]["Code"] == "ThrottlingException"
        busy.result()
        endpoint.invoke(attributes="write=cache")
    assert "wrote /opt/ml/cache, which serverless may refuse" in endpoint.events


def archives(folder: Path, names: list[str]) -> Path:
    made = folder / "archives"
    made.mkdir()
    for name in names:
        with tarfile.open(made / f"{name}.tar.gz", "w:gz") as archive:
            info = tarfile.TarInfo("weights")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return made


def test_many_models_are_loaded_when_asked_for_and_unloaded_when_memory_is_short(plan: Plan, tmp_path: Path) -> None:
    several = Several(archives(tmp_path, ["a", "b", "c"]))
    full_at_two = replace(plan, model=None, several=several, environment={"CAPACITY": "2"})

    def ask(name: str) -> str:
        return endpoint.invoke(TargetModel=f"{name}.tar.gz")["Body"].read().decode()

    with serving(full_at_two) as endpoint:
        assert [ask(name) for name in "abac"] == ["a", "b", "a", "c"]
        text = endpoint.events
        # The third made a 507, and b was used least recently.
        assert text.count('"event": "loaded"') == 3
        assert text.count("unloaded b.tar.gz") == text.count('"event": "unloaded"') == 1
        assert ask("b") == "b"
        assert "unloaded a.tar.gz" in endpoint.events
        for bad in ("absent.tar.gz", "../programs", None):
            more = {} if bad is None else {"TargetModel": bad}
            assert refused(lambda more=more: endpoint.invoke(**more))["Error"]["Code"] == "ValidationError"


def test_models_go_when_the_instance_holds_too_much_memory(plan: Plan, tmp_path: Path) -> None:
    several = Several(archives(tmp_path, ["a", "b"]), limit_bytes=1)
    with serving(replace(plan, model=None, several=several)) as endpoint:
        for name in "ab":
            endpoint.invoke(TargetModel=f"{name}.tar.gz")
        assert "unloaded a.tar.gz" in endpoint.events


def test_a_model_that_loads_slowly_is_not_ready_and_loads_on(plan: Plan, tmp_path: Path) -> None:
    several = Several(archives(tmp_path, ["a"]))
    slow = replace(plan, model=None, several=several, environment={"LOADING_S": "3"}, rules=Invocations(answer_s=1))
    with serving(slow) as endpoint:
        error = refused(lambda: endpoint.invoke(TargetModel="a.tar.gz"))
        assert error["Error"]["Code"] == "ModelNotReadyException"
        assert error["ResponseMetadata"]["HTTPStatusCode"] == 429
        eventually(lambda: '"event": "loaded"' in endpoint.events)
        assert endpoint.invoke(TargetModel="a.tar.gz")["Body"].read() == b"a"


def test_this_projects_server_listens_on_this_machine_only(own: Endpoint) -> None:
    for instance in own.service.fleet.in_service():
        listening = [
            connection.laddr.ip
            for process in instance.launched.running.processes()
            for connection in psutil.Process(process).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}


def test_the_direct_port_leads_to_an_instance_and_its_page(own: Endpoint, photo: bytes) -> None:
    address = own.service.direct_address
    assert address is not None
    with urllib.request.urlopen(f"{address}/ping", timeout=PATIENCE_S) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{address}/", timeout=PATIENCE_S) as answer:
        assert "<!doctype html>" in answer.read().decode()
    request = urllib.request.Request(f"{address}/invocations", photo, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        assert json.loads(answer.read())["predictions"]


def test_a_port_that_is_taken_is_named(plan: Plan) -> None:
    with serving(plan) as endpoint:
        taken = int(endpoint.service.address.rpartition(":")[2])
        for ports in ({"port": taken}, {"direct_port": taken}):
            with pytest.raises(PortError, match=f"port {taken} cannot be used"):
                Service(replace(plan, **ports), Events(plan.folder / EVENTS))


def test_this_projects_server_with_many_models(bundle: Path, tmp_path: Path, photo: bytes) -> None:
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / "one.tar.gz").write_bytes(bundle.read_bytes())
    (folder / "two.tar.gz").write_bytes(bundle.read_bytes())
    plan = Plan(
        "dogs",
        ProcessSubject(OWN_PROGRAMS),
        tmp_path / "dogs",
        several=Several(folder),
        health=HEALTH,
    )
    with serving(plan) as endpoint:
        for name in ("one", "two", "one"):
            answer = endpoint.invoke(photo, ContentType="image/jpeg", TargetModel=f"{name}.tar.gz")
            assert json.loads(answer["Body"].read())["predictions"]
        assert endpoint.events.count('"event": "loaded"') == 2


def test_asynchronous_requests_are_files(plan: Plan, tmp_path: Path) -> None:
    store = tmp_path / "s3"
    (store / "bucket" / "in").mkdir(parents=True)
    (store / "bucket" / "in" / "photo").write_bytes(bytes(1000))
    options = Asynchronous(store, "s3://bucket/out", at_once=2, answer_s=PATIENCE_S)
    rules = Invocations(payload_bytes=1024 * MIB, answer_s=PATIENCE_S, at_once=2)

    def file(location: str) -> Path:
        return store / location.removeprefix("s3://")

    with serving(replace(plan, asynchronous=options, rules=rules)) as endpoint:
        ask = endpoint.client.invoke_endpoint_async
        answer = ask(
            EndpointName="dogs", InputLocation="s3://bucket/in/photo", ContentType="image/jpeg", InferenceId="one"
        )
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
        assert answer["InferenceId"] == "one"
        eventually(file(answer["OutputLocation"]).exists)
        seen = json.loads(file(answer["OutputLocation"]).read_text())
        assert (seen["bytes"], seen["headers"]["Content-Type"]) == (1000, "image/jpeg")

        failed = ask(EndpointName="dogs", InputLocation="s3://bucket/in/photo", CustomAttributes="status=400")
        eventually(file(failed["FailureLocation"]).exists)
        assert json.loads(file(failed["FailureLocation"]).read_text())["OriginalStatusCode"] == 400
        assert not file(failed["OutputLocation"]).exists()

        inline = ask(EndpointName="dogs", Body=b"abc")
        eventually(file(inline["OutputLocation"]).exists)
        assert json.loads(file(inline["OutputLocation"]).read_text())["bytes"] == 3

        def code(**more: object) -> str:
            return refused(lambda: ask(EndpointName="dogs", **more))["Error"]["Code"]

        assert code(InputLocation="s3://bucket/in/absent") == "ValidationError"
        assert code(InputLocation="s3://bucket/../../etc/passwd") == "ValidationError"
        assert code(InputLocation="s3://bucket/in/photo", Body=b"x") == "ValidationError"
        assert code(Body=b"x", S3OutputPathExtension="../../../..") == "ValidationError"
        assert code(Body=b"x", RequestTTLSeconds=30_000) == "ValidationError"
        assert code(Body=bytes(128_001)) == "413"
        named = ask(EndpointName="dogs", Body=b"abc", S3OutputPathExtension="today", Filename="answer.json")
        assert named["OutputLocation"] == "s3://bucket/out/today/answer.json"
        assert refused(endpoint.invoke)["Error"]["Code"] == "ValidationError"


def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    little(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "local_test", "serve", "dogs", "--process", str(tmp_path / "programs")]
    command += ["--model", str(model(tmp_path)), "--port", str(port), "--instance-type", "ml.m5.large"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    state = tmp_path / "build" / "platform" / "endpoints" / "dogs" / "state.json"
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            eventually(lambda: process.poll() is not None or (state.exists() and "InService" in state.read_text()))
            with contextlib.closing(client(f"http://127.0.0.1:{port}")) as runtime:
                assert told(runtime.invoke_endpoint(EndpointName="dogs", Body=b"x"))["bytes"] == 1
            again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert again.returncode == 2
            assert "the endpoint dogs runs already" in again.stderr
            os.kill(json.loads(state.read_text())["pid"], signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "1 requests: 1 x 200" in out
    assert out.startswith("instance      state  under way  requests  p50 ms  p99 ms  memory MB\ni-0001    InService ")
    assert "\033[" not in err
    assert json.loads(state.read_text())["status"] == "Deleted"


def test_on_a_terminal_the_endpoint_is_a_live_table(tmp_path: Path) -> None:
    little(tmp_path)
    command = [sys.executable, "-m", "local_test", "serve", "dogs", "--process", str(tmp_path / "programs")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "120"}
    environment.pop("NO_COLOR", None)
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*command, "--model", str(model(tmp_path)), "--port", "0"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=slave,
    ) as process:
        os.close(slave)
        seen = ""
        try:
            while "\033[32mInService\033[0m" not in seen:
                seen += os.read(master, 65536).decode(errors="replace")
            process.terminate()
            with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
                while part := os.read(master, 65536):
                    seen += part.decode(errors="replace")
        finally:
            process.kill()
            os.close(master)
    assert "dogs at http://127.0.0.1:" in seen
    assert "p99 ms" in seen
    assert "1 of 1" in seen


def test_health_is_asked_with_the_platforms_own_patience() -> None:
    assert (Health().ping_s, Health().accept_s, Health().start_s, Health().grace_s) == (2.0, 0.25, 480.0, 30.0)
