"""SageMaker's contract for multi-model endpoints (section 2.5), row by row. The real server, and real memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.contract.serving import save_bundle
from tests.server_process import Answer, Server, is_ready, start, stop_hard

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
HIDDEN_UNITS, CLASSES = 8192, 1500
LARGE_BYTES = 4 * HIDDEN_UNITS * CLASSES
"""Of the large models' heads: 47 MiB."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as the platform lays them out: models/NAME/model."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("small", "other", "broken"):
        save_bundle(folder / "models" / name)
    (folder / "models" / "broken" / "model" / "bundle.json").write_text("{}")
    for name in ("large-1", "large-2", "large-3"):
        save_bundle(folder / "models" / name, hidden_units=HIDDEN_UNITS, classes=CLASSES)
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    """No model is loaded before it is asked for, and none is in /opt/ml/model."""
    # One allocator arena, so that memory tells of models and not of threads.
    started = start(
        root,
        SAGEMAKER_MULTI_MODEL="true",
        SAGEMAKER_MODEL_SERVER_WORKERS="2",
        DOGBREED_MODELS_MEMORY_MB=str(3 * LARGE_BYTES // MIB),
        DOGBREED_MAX_WAITING="32",
        MALLOC_ARENA_MAX="1",
    )
    try:
        started.wait(is_ready)
        yield started
        assert "Traceback" not in started.log
        assert started.stop() == 0
    finally:
        stop_hard(started)


@pytest.fixture
def empty(server: Server) -> Iterator[Server]:
    """The server, without a model before and after."""
    yield server
    for model in json.loads(server.send("GET", "/models").body)["models"]:
        assert server.send("DELETE", f"/models/{model['modelName']}").status == 200


def load(server: Server, root: Path, folder: str, name: str | None = None) -> Answer:
    body = {"model_name": name or folder, "url": str(root / "models" / folder / "model")}
    return server.send("POST", "/models", json.dumps(body), Content_Type="application/json")


def invoke(server: Server, name: str, image: bytes) -> Answer:
    return server.send("POST", f"/models/{name}/invoke", image, Content_Type="image/jpeg")


def memory_bytes(server: Server) -> int:
    return sum(child.memory_info().rss for child in psutil.Process(server.process.pid).children(recursive=True))


def test_opt_in_by_label_and_variable(empty: Server) -> None:
    """2.5 Opt-in: the image's label, SAGEMAKER_MULTI_MODEL=true; healthy before any model is loaded, in one process."""
    label = "com.amazonaws.sagemaker.capabilities.multi-models=true"
    assert label in (REPOSITORY / "container" / "Dockerfile").read_text()
    assert empty.send("GET", "/ping").status == 200
    assert json.loads(empty.send("GET", "/models").body) == {"models": []}
    assert len(psutil.Process(empty.process.pid).children()) == 1


def test_post_models(empty: Server, root: Path) -> None:
    """2.5 POST /models: 200; 409 if loaded; 507 where memory is short; and 400 for what is no model."""
    assert load(empty, root, "small").status == 200
    assert load(empty, root, "small").error["code"] == "model_conflict"
    broken = load(empty, root, "broken")
    assert broken.status == 400
    assert "schema version None" in broken.error["message"]
    for folder in ("..", "../../../../etc", "absent"):
        assert load(empty, root, folder).status == 400
    assert load(empty, root, "large-1").status == 200
    assert load(empty, root, "large-2").status == 200
    refused = load(empty, root, "large-3")
    assert (refused.status, refused.error["code"]) == (507, "out_of_memory")
    assert empty.send("DELETE", "/models/large-1").status == 200
    assert load(empty, root, "large-3").status == 200


def test_get_models(empty: Server, root: Path) -> None:
    """2.5 GET /models: all of them, by pages."""
    names = [f"model-{number}" for number in range(3)]
    for name in names:
        assert load(empty, root, "small", name).status == 200
    first = json.loads(empty.send("GET", "/models?limit=2").body)
    rest = json.loads(empty.send("GET", f"/models?limit=2&next_page_token={first['nextPageToken']}").body)
    found = [*first["models"], *rest["models"]]
    assert found == [{"modelName": name, "modelUrl": str(root / "models" / "small" / "model")} for name in names]
    assert "nextPageToken" not in rest


def test_get_and_delete_one_model(empty: Server, root: Path) -> None:
    """2.5 GET /models/N, DELETE /models/N: 404 if absent."""
    for method in ("GET", "DELETE"):
        assert empty.send(method, "/models/small").error["code"] == "model_not_found"
    load(empty, root, "small")
    assert json.loads(empty.send("GET", "/models/small").body)["modelName"] == "small"
    assert empty.send("DELETE", "/models/small").status == 200
    assert empty.send("GET", "/models/small").status == 404


def test_memory_is_free_when_a_delete_returns(empty: Server, root: Path, jpeg: bytes) -> None:
    """2.5 DELETE /models/N: memory must be free when it returns. Ten times, so that leaks add up."""
    for _ in range(2):
        load(empty, root, "large-1")
        invoke(empty, "large-1", jpeg)
        empty.send("DELETE", "/models/large-1")
    before = memory_bytes(empty)
    for _ in range(10):
        assert load(empty, root, "large-1").status == 200
        assert invoke(empty, "large-1", jpeg).status == 200
        held = memory_bytes(empty)
        assert empty.send("DELETE", "/models/large-1").status == 200
        assert held - memory_bytes(empty) > 0.8 * LARGE_BYTES
    grown = memory_bytes(empty) - before
    print(f"memory: {before / MIB:.0f} MiB, {grown / MIB:+.1f} MiB after ten loads of {LARGE_BYTES / MIB:.0f} MiB")
    assert grown < 0.5 * LARGE_BYTES


def test_invoke(empty: Server, root: Path, jpeg: bytes) -> None:
    """2.5 POST /models/N/invoke: 404 if absent; the target model's header is for logs only."""
    assert invoke(empty, "small", jpeg).error["code"] == "model_not_found"
    load(empty, root, "small")
    answer = empty.send(
        "POST", "/models/small/invoke", jpeg, Content_Type="image/jpeg", X_Amzn_SageMaker_Target_Model="large-1.tar.gz"
    )
    assert answer.status == 200
    assert json.loads(answer.body)["predictions"][0]["label"].startswith("Breed")
    assert invoke(empty, "small", b"no image").status == 400
    assert empty.send("POST", "/invocations", jpeg).status == 404


def test_load_delete_and_invoke_at_the_same_time(empty: Server, root: Path, jpeg: bytes) -> None:
    """2.5, all of it at once: every answer is one that the contract has."""

    def churn(number: int) -> set[int]:
        found = set()
        for turn in range(6):
            name = ("small", "other")[(number + turn) % 2]
            found.add(load(empty, root, name).status)
            found.add(invoke(empty, name, jpeg).status)
            found.add(empty.send("DELETE", f"/models/{name}").status)
        return found

    with ThreadPoolExecutor(6) as pool:
        statuses = set().union(*pool.map(churn, range(6)))
    assert statuses <= {200, 404, 409, 503}
    assert 200 in statuses
    assert empty.send("GET", "/ping").status == 200
