"""The routes of a multi-model endpoint, with models that are a few lines long."""

import json
import math

import pytest

from dogbreed.errors import BundleError, UnreadableImageError
from dogbreed.serving.admission import Gate
from dogbreed.serving.app import Settings, create_app
from dogbreed.serving.models import ModelRegistry
from dogbreed.serving.payload import Scores

PHOTO = b"photo"


class Model:
    def __init__(self, folder):
        self.label = folder.parent.name
        self.reason = None

    def status(self):
        return self.reason

    def predict(self, images, check=None):
        if b"bad" in images:
            raise UnreadableImageError("bad")
        return Scores((self.label,), [[math.log(1)] for _ in images])


def open_model(folder):
    if not (folder / "bundle.json").exists():
        raise BundleError(f"{folder} holds no bundle.json")
    return Model(folder)


@pytest.fixture
def models(tmp_path):
    for name in ("pugs", "boxers", "empty"):
        (tmp_path / name / "model").mkdir(parents=True)
        if name != "empty":
            (tmp_path / name / "model" / "bundle.json").write_text("{}" + " " * 98)
    return ModelRegistry(
        open_model, root=tmp_path, release=lambda: None, available_bytes=lambda: None, budget_bytes=150
    )


@pytest.fixture
def client(models):
    return create_app(models, Gate(slots=2, waiting=2), Settings(max_payload_bytes=1000)).test_client()


@pytest.fixture
def load(client, tmp_path):
    return lambda name, folder=None: client.post(
        "/models", json={"model_name": name, "url": str(tmp_path / (folder or name) / "model")}
    )


def error_of(response):
    assert response.content_type == "application/json"
    assert response.data.count(b"\n") == 1
    return response.json["error"]


def test_ping_is_200_with_and_without_models(client, load):
    assert client.get("/ping").status_code == 200
    load("pugs")
    assert client.get("/ping").status_code == 200


def test_a_model_goes_through_its_life(client, load, tmp_path):
    url = str(tmp_path / "pugs" / "model")
    assert load("pugs").status_code == 200
    assert client.get("/models").json == {"models": [{"modelName": "pugs", "modelUrl": url}]}
    assert client.get("/models/pugs").json == {"modelName": "pugs", "modelUrl": url}
    answer = client.post("/models/pugs/invoke", data=PHOTO, headers={"X-Amzn-SageMaker-Target-Model": "pugs.tar.gz"})
    assert answer.status_code == 200
    assert answer.json["predictions"][0]["label"] == "pugs"
    assert "dogbreed_loaded_models 1.0" in client.get("/metrics").text
    assert client.delete("/models/pugs").status_code == 200
    assert client.get("/models").json == {"models": []}
    assert "dogbreed_loaded_models 0.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/models/x"), ("DELETE", "/models/x"), ("POST", "/models/x/invoke")]
)
def test_an_absent_model_is_a_404(client, method, path):
    response = client.open(path, method=method, data=PHOTO)
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_loading_twice_is_a_409(client, load):
    load("pugs")
    assert error_of(load("pugs"))["code"] == "model_conflict"
    assert load("pugs").status_code == 409


def test_a_model_that_does_not_fit_is_a_507(client, load):
    load("pugs")
    response = load("boxers")
    assert response.status_code == 507
    assert error_of(response)["code"] == "out_of_memory"
    client.delete("/models/pugs")
    assert load("boxers").status_code == 200


def test_a_bundle_that_is_none_is_a_400_with_the_reason(load):
    response = load("empty")
    assert response.status_code == 400
    assert "holds no bundle.json" in error_of(response)["message"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"model_name": "a"}', b'{"model_name": 1, "url": "/"}', b"[" * 900]
)
def test_a_body_that_names_no_model_is_a_400(client, body):
    response = client.post("/models", data=body, content_type="application/json")
    assert response.status_code == 400


def test_a_name_with_half_a_character_is_a_400_and_nothing_is_loaded(client, tmp_path):
    body = json.dumps({"model_name": "a\ud800b", "url": str(tmp_path / "pugs" / "model")})
    response = client.post("/models", data=body, content_type="application/json")
    assert response.status_code == 400
    assert "'a\\ud800b' is no text" in error_of(response)["message"]
    assert client.get("/models?limit=1").json == {"models": []}


def test_names_are_opaque_and_may_hold_anything_that_a_path_can_quote(client, load):
    load("a/b c", "pugs")
    assert client.post("/models/a%2Fb%20c/invoke", data=PHOTO).json["predictions"][0]["label"] == "pugs"
    assert client.delete("/models/a%2Fb%20c").status_code == 200


def test_models_are_listed_in_pages(client, tmp_path, models):
    models._budget_bytes = None
    for name in ("a", "b", "c"):
        models.load(name, str(tmp_path / "pugs" / "model"))
    first = client.get("/models?limit=2").json
    assert [model["modelName"] for model in first["models"]] == ["a", "b"]
    rest = client.get("/models", query_string={"limit": 2, "next_page_token": first["nextPageToken"]}).json
    assert ([model["modelName"] for model in rest["models"]], "nextPageToken" in rest) == (["c"], False)
    for query in ("limit=0", "limit=x", "limit=1001", "next_page_token=?"):
        assert client.get(f"/models?{query}").status_code == 400


def test_the_route_without_a_name_says_where_to_ask(client):
    response = client.post("/invocations", data=PHOTO)
    assert response.status_code == 404
    assert "/models/NAME/invoke" in error_of(response)["message"]


def test_requests_are_those_of_an_endpoint_with_one_model(client, load):
    load("pugs")
    assert client.post("/models/pugs/invoke", data=b"bad").status_code == 400
    assert client.post("/models/pugs/invoke", data=PHOTO, content_type="text/html").status_code == 415
    assert client.post("/models/pugs/invoke", data=PHOTO * 300).status_code == 413
    lines = b'"cGhvdG8="\n"YmFk"\n'
    answer = client.post("/models/pugs/invoke", data=lines, content_type="application/jsonlines")
    assert [b"label" in line for line in answer.data.splitlines()] == [True, False]


def test_a_stream_of_a_model_that_is_deleted_meanwhile_ends_in_errors(client, load):
    load("pugs")
    answer = client.post(
        "/models/pugs/invoke", data=b'"cGhvdG8="\n' * 9, content_type="application/jsonlines", buffered=False
    )
    lines = answer.iter_encoded()
    assert next(lines).count(b"label") > 0
    assert client.delete("/models/pugs").status_code == 200
    assert b"model_not_found" in next(lines)


def test_there_are_no_such_routes_on_an_endpoint_with_one_model(tmp_path):
    client = create_app(Model(tmp_path / "model"), Gate(slots=1, waiting=0), Settings(1000)).test_client()
    assert client.get("/models").status_code == 404
