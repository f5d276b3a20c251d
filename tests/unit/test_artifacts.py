"""The bundle: what is saved is what is loaded, bit for bit, and anything less is refused."""

import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from dogbreed import artifacts, backbones
from dogbreed.artifacts import Bundle
from dogbreed.backbones import HeadSpec
from dogbreed.calibration import Calibration, Familiarity
from dogbreed.engines.agreement import Agreement
from dogbreed.errors import BundleError, OutputError
from dogbreed.labels import Labels
from dogbreed.preprocessing import PreprocessSpec


def make_bundle(seed=0, **changes) -> Bundle:
    head = HeadSpec(3, hidden_units=8, dropout=0.25)
    torch.manual_seed(seed)
    model = backbones.build("tiny", head, image_size_px=32)
    return replace(
        Bundle(
            backbone="tiny",
            head=head,
            labels=Labels.from_folders(["001.Circle", "002.Square", "003.Étoile"]),
            preprocessing=PreprocessSpec.for_size(32),
            weights=artifacts.clone_weights(model),
            hyperparameters={"lr": 0.001, "model": "tiny", "pretrained": False},
            metrics={"test_accuracy": 0.91666, "validation_loss": 0.25},
            data_fingerprint="0123abcd",
            facts={"best_epoch": 7, "weights_from": "random"},
            versions={"torch": "2.11.0"},
        ),
        **changes,
    )


@pytest.fixture
def saved(tmp_path):
    artifacts.save(make_bundle(), tmp_path)
    return tmp_path


def edit(folder, **changes):
    """Changes entries of bundle.json; None removes one."""
    file = folder / artifacts.BUNDLE_FILE
    document = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def refusal(folder):
    with pytest.raises(BundleError) as error:
        artifacts.load(folder)
    return str(error.value)


# What is saved is what is loaded


def test_what_was_found_of_engines_is_kept(tmp_path):
    found = {
        "torch-bf16": Agreement(
            images=240, changed=1, accuracy_reference=0.9, accuracy=0.8995, max_probability_change=0.12
        ),
        "openvino-bf16": "the openvino package is not installed",
    }
    artifacts.save(make_bundle(agreements=found), tmp_path)
    assert artifacts.load(tmp_path).agreements == found


def test_a_bundle_of_before_engines_were_compared_is_read(saved):
    edit(saved, agreements=None)
    assert artifacts.load(saved).agreements == {}


@pytest.mark.parametrize("agreements", [[], {"torch-bf16": {}}, {"torch-bf16": {"images": "many"}}, {"torch-bf16": 1}])
def test_a_damaged_record_of_engines_is_refused(saved, agreements):
    edit(saved, agreements=agreements)
    assert "bundle.json is damaged" in refusal(saved)


def test_a_temperature_comes_back_and_none_is_one(saved, tmp_path):
    fitted = Calibration(1.7, 300, 0.6, 0.4, 0.28, 0.05)
    artifacts.save(make_bundle(calibration=fitted), tmp_path / "fitted")
    loaded = artifacts.load(tmp_path / "fitted")
    assert (loaded.calibration, loaded.temperature) == (fitted, 1.7)
    assert (artifacts.load(saved).calibration, artifacts.load(saved).temperature) == (None, 1.0)
    edit(saved, calibration=None)  # a bundle of before there were temperatures
    assert artifacts.load(saved).temperature == 1.0


def test_what_is_familiar_comes_back_and_stands_in_the_card(saved, tmp_path):
    fitted = Familiarity(0.412, 300, 0.953)
    artifacts.save(make_bundle(familiarity=fitted), tmp_path / "fitted")
    assert artifacts.load(tmp_path / "fitted").familiarity == fitted
    assert "below 0.412: 95.3% of 300" in (tmp_path / "fitted" / artifacts.CARD_FILE).read_text()
    assert artifacts.load(saved).familiarity is None
    assert "familiarity" not in (saved / artifacts.CARD_FILE).read_text()
    document = json.loads((saved / artifacts.BUNDLE_FILE).read_text())
    del document["familiarity"]  # a bundle of before
    (saved / artifacts.BUNDLE_FILE).write_text(json.dumps(document))
    assert artifacts.load(saved).familiarity is None


@pytest.mark.parametrize("familiarity", [[], {}, {"threshold": 2, "images": 60, "kept": 1}, "well"])
def test_a_damaged_familiarity_is_refused(saved, familiarity):
    edit(saved, familiarity=familiarity)
    assert "bundle.json is damaged" in refusal(saved)


@pytest.mark.parametrize("calibration", [[], {}, {"temperature": 0}, "hot"])
def test_a_damaged_temperature_is_refused(saved, calibration):
    edit(saved, calibration=calibration)
    assert "bundle.json is damaged" in refusal(saved)


def test_everything_comes_back(saved):
    original, loaded = make_bundle(), artifacts.load(saved)
    assert replace(loaded, weights={}) == replace(original, weights={})
    assert loaded.weights.keys() == original.weights.keys()
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in original.weights.items())


def test_the_loaded_model_answers_bit_for_bit_like_the_saved_one(saved):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = artifacts.load(saved).build()
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(images), make_bundle().build()(images))


def test_half_precision_and_strided_weights_come_back(tmp_path):
    weights = {"half": torch.randn(4, 4).to(torch.bfloat16), "turned": torch.arange(6.0).view(2, 3).T}
    artifacts.save(make_bundle(weights=weights), tmp_path)
    loaded = artifacts.load(tmp_path).weights
    assert loaded["half"].dtype is torch.bfloat16
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_the_model_directory_is_made_and_holds_three_files(tmp_path):
    artifacts.save(make_bundle(), tmp_path / "deep" / "model")
    assert sorted(file.name for file in (tmp_path / "deep" / "model").iterdir()) == [
        "MODEL_CARD.md",
        "bundle.json",
        "model.safetensors",
    ]


def test_the_document_is_for_other_programs_too(saved):
    document = json.loads((saved / "bundle.json").read_text())
    assert document["schema_version"] == artifacts.SCHEMA_VERSION
    assert document["labels"][2] == {"index": 2, "name": "Étoile", "folder": "003.Étoile"}
    assert document["metrics"] == {"test_accuracy": 0.91666, "validation_loss": 0.25}
    assert document["preprocessing"] == {
        "size_px": 32,
        "resize_px": 37,
        "mean": list(PreprocessSpec.for_size(32).mean),
        "std": list(PreprocessSpec.for_size(32).std),
    }
    assert document["head"] == asdict(HeadSpec(3, hidden_units=8, dropout=0.25))


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        artifacts.save(make_bundle(), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_card_tells_people_the_same(saved):
    card = (saved / artifacts.CARD_FILE).read_text(encoding="utf-8")
    for expected in (
        "# Model card: tiny, 3 classes",
        "Circle, Square, Étoile",
        "| test_accuracy | 0.9167 |",
        "| validation_loss | 0.2500 |",
        "- best epoch: 7",
        "lr=0.001, model=tiny, pretrained=False",
        "data fingerprint: 0123abcd",
        "torch 2.11.0",
        "resized to 37 pixels",
    ):
        assert expected in card


def test_cloned_weights_do_not_follow_the_training():
    model = backbones.build("tiny", HeadSpec(2))
    before = artifacts.clone_weights(model)
    with torch.no_grad():
        model.head.linear.weight.add_(1)
    assert torch.equal(before["head.linear.weight"] + 1, model.head.linear.weight)
    assert not any(tensor.requires_grad for tensor in before.values())


def test_versions_are_those_of_what_decides_the_answers():
    versions = artifacts.current_versions()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "dogbreed", "torchvision", "pillow", "safetensors"} <= versions.keys()


# Replacing a bundle


def test_a_newer_bundle_replaces_the_older_one(saved):
    newer = make_bundle(seed=1, metrics={"test_accuracy": 1.0})
    artifacts.save(newer, saved)
    loaded = artifacts.load(saved)
    assert loaded.metrics == {"test_accuracy": 1.0}
    assert torch.equal(loaded.weights["head.linear.weight"], newer.weights["head.linear.weight"])
    assert not list(saved.glob("*.partial")) + list(saved.glob(".*.partial"))


def test_a_disk_that_fills_up_leaves_the_older_bundle(saved, monkeypatch):
    before = artifacts.load(saved)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1234))
    with pytest.raises(OutputError) as raised:
        artifacts.save(make_bundle(seed=1), saved)
    needed = sum(file.stat().st_size for file in saved.iterdir())
    (found,) = re.findall(
        f"^the disk of {saved} is full: the model needs ([0-9]+) bytes, 1234 are free; make room$", str(raised.value)
    )
    assert int(found) == pytest.approx(needed, rel=0.01)
    assert sorted(file.name for file in saved.iterdir()) == ["MODEL_CARD.md", "bundle.json", "model.safetensors"]
    after = artifacts.load(saved)
    assert all(torch.equal(after.weights[name], tensor) for name, tensor in before.weights.items())


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("-")
    with pytest.raises(OutputError, match=r"file/model: Not a directory; let this process write there$"):
        artifacts.save(make_bundle(), tmp_path / "file" / "model")


def test_the_document_is_replaced_last(saved, monkeypatch):
    replaced = []
    original = artifacts._replace

    def note(file, data):
        replaced.append(file.name)
        original(file, data)

    monkeypatch.setattr(artifacts, "_replace", note)
    artifacts.save(make_bundle(seed=1), saved)
    assert replaced[-1] == "bundle.json"


# What is refused


def test_weights_of_another_save_are_refused(saved, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    artifacts.save(make_bundle(seed=1), other)
    (other / "model.safetensors").replace(saved / "model.safetensors")
    assert "model.safetensors is not the file that bundle.json was written with" in refusal(saved)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_weights_are_refused(saved, keep):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "it is truncated or of another job; copy both again" in refusal(saved)


def test_missing_weights_are_refused(saved):
    (saved / "model.safetensors").unlink()
    assert refusal(saved) == f"{saved / 'model.safetensors'} cannot be read: No such file or directory"


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_schema_version_is_refused(saved, version):
    edit(saved, schema_version=version)
    message = refusal(saved)
    assert f"has schema version {version!r}, but this version of dogbreed reads 1" in message
    assert "serve it with the image that trained it, or train again" in message


@pytest.mark.parametrize("text", ["[]", "3", '"bundle"', "null"])
def test_a_document_that_is_no_object_is_refused(saved, text):
    (saved / "bundle.json").write_text(text)
    assert "has schema version None" in refusal(saved)


def test_a_folder_without_a_bundle_is_refused(tmp_path):
    advice = "train a model first, or unpack model.tar.gz there"
    assert refusal(tmp_path) == f"{tmp_path} holds no bundle.json (found: nothing); {advice}"
    (tmp_path / "model.pth").write_text("")
    assert "(found: model.pth)" in refusal(tmp_path)
    assert "holds no bundle.json (found: nothing)" in refusal(tmp_path / "absent")


def test_a_file_in_the_place_of_a_bundle_is_refused(tmp_path):
    (tmp_path / "model.tar.gz").write_text("-")
    advice = "give the one that holds bundle.json, or unpack model.tar.gz into one"
    assert refusal(tmp_path / "model.tar.gz") == f"{tmp_path / 'model.tar.gz'} is no folder; {advice}"


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 1', b"\xff\xfe"])
def test_a_document_that_is_not_json_is_refused(saved, content):
    (saved / "bundle.json").write_bytes(content)
    assert refusal(saved).startswith(f"{saved / 'bundle.json'} cannot be read as JSON: ")


@pytest.mark.parametrize(
    "name",
    [
        "backbone",
        "head",
        "labels",
        "preprocessing",
        "metrics",
        "hyperparameters",
        "facts",
        "data_fingerprint",
        "versions",
    ],
)
def test_a_missing_entry_is_named(saved, name):
    edit(saved, **{name: None})
    assert refusal(saved) == f"{saved / 'bundle.json'} is damaged: KeyError '{name}'"


@pytest.mark.parametrize(
    "changes",
    [{"labels": "abc"}, {"labels": [{"index": 0}]}, {"head": {"classes": 3, "depth": 2}}, {"preprocessing": {}}],
    ids=str,
)
def test_a_damaged_entry_is_refused(saved, changes):
    edit(saved, **changes)
    assert "bundle.json is damaged: " in refusal(saved)


@pytest.mark.parametrize(
    "changes",
    [{"head": HeadSpec(4, hidden_units=8)}, {"head": HeadSpec(3)}, {"backbone": "squeezenet1_1"}, {"backbone": "lost"}],
    ids=str,
)
def test_weights_that_do_not_fit_the_network_are_refused(changes):
    bundle = make_bundle(**changes)
    with pytest.raises(BundleError, match=f"the bundle's weights do not fit {bundle.backbone}: "):
        bundle.build()


# Crafted files. Each has the digest that its bundle names, as whoever writes both would see to.


def craft(folder, weights=None, **changes):
    """Puts other weights, or other values by dotted path, into a saved bundle."""
    file = folder / artifacts.BUNDLE_FILE
    document = json.loads(file.read_text())
    if weights is not None:
        (folder / artifacts.WEIGHTS_FILE).write_bytes(weights)
        document["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = document
        for name in parents:
            inner = inner[name]
        inner[last] = value
    file.write_text(json.dumps(document))


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def header(document, data=b""):
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "weights",
    [
        pickle.dumps(Malicious()),
        b"",
        b"PK\x03\x04 zip",
        b"\xff" * 100,
        (2**62).to_bytes(8, "little") + b"{}",
        header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abc"),
    ],
    ids=["pickle", "empty", "zip", "noise", "endless header", "terabytes", "truncated"],
)
def test_weights_that_are_no_safetensors_are_refused_in_a_sentence(saved, weights):
    craft(saved, weights)
    with pytest.raises(BundleError, match=r"model.safetensors is not a safetensors file"):
        artifacts.load(saved)


def test_a_pickled_checkpoint_is_not_loaded(saved):
    stream = io.BytesIO()
    torch.save({"weights": Malicious()}, stream)
    craft(saved, stream.getvalue())
    with pytest.raises(BundleError, match="not a safetensors file"):
        artifacts.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "../../etc/passwd"}, "do not fit ../../etc/passwd"),
        ({"backbone": "os.system"}, "do not fit os.system"),
        ({"backbone": "resnet18"}, "do not fit resnet18"),
        ({"head__hidden_units": 10**12}, r"head.hidden_units=1000000000000 is not a whole number from 0 to 8192"),
        ({"head__hidden_units": True}, "head.hidden_units=True"),
        ({"head__classes": 10**9}, "head.classes=1000000000, but there are 3 labels"),
        ({"head__dropout": float("nan")}, "head.dropout=nan"),
        ({"head__path": "/etc/passwd"}, "TypeError"),
        ({"preprocessing__size_px": 10**6}, "size_px=1000000 is not"),
        ({"preprocessing__size_px": "32"}, "size_px='32' is not"),
        ({"preprocessing__resize_px": 10**9}, "resize_px=1000000000 is not"),
        ({"preprocessing__resize_px": 1}, "resize_px=1 is not a whole number from 32"),
        ({"preprocessing__std": [0.5, 0, 0.5]}, "no std may be 0"),
        ({"preprocessing__mean": [0.5]}, "must be three numbers each"),
        ({"preprocessing__mean": [float("inf")] * 3}, "mean=inf is not a number"),
        ({"labels": []}, "labels must be a list"),
        ({"labels": [{"folder": "a", "name": 7}] * 3}, "labels must be a list"),
        ({"labels": "abc"}, "damaged"),
    ],
)
def test_a_crafted_document_is_refused_with_what_is_wrong(saved, changes, message):
    craft(saved, **changes)
    with pytest.raises(BundleError, match=message):
        artifacts.load(saved).build()


def test_a_document_that_is_nested_without_end_is_refused(saved):
    (saved / artifacts.BUNDLE_FILE).write_text("[" * 100_000)
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        artifacts.load(saved)


@pytest.mark.parametrize(
    ("name", "size_bytes", "message"),
    [
        (artifacts.WEIGHTS_FILE, 2**40, "has 1099511627776 bytes; more than 8589934592 are not loaded"),
        (artifacts.WEIGHTS_FILE, 2**28, "is not the file that"),
        (artifacts.BUNDLE_FILE, 2**40, "has 1099511627776 bytes; more than 67108864 are not read"),
    ],
)
def test_files_that_claim_more_than_there_is_take_no_memory(saved, name, size_bytes, message):
    with (saved / name).open("r+b") as file:
        file.truncate(size_bytes)  # sparse: it takes no disk either
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=message):
        artifacts.load(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


@pytest.mark.parametrize("name", [artifacts.WEIGHTS_FILE, artifacts.BUNDLE_FILE])
def test_a_link_to_a_device_is_refused(saved, name):
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    # Without the refusal it is read until memory ends.
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (8 * 2**30, limits[1]))
    try:
        with pytest.raises(BundleError, match="is no plain file"):
            artifacts.load(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [artifacts.WEIGHTS_FILE, artifacts.BUNDLE_FILE])
def test_a_pipe_is_refused_and_not_waited_for(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(BundleError, match="is no plain file"):
        artifacts.load(saved)


def test_a_document_that_does_not_tell_its_size_is_read_no_further_than_any(saved, monkeypatch):
    monkeypatch.setattr(artifacts, "_MAX_DOCUMENT_BYTES", 10)
    (saved / artifacts.BUNDLE_FILE).unlink()
    (saved / artifacts.BUNDLE_FILE).symlink_to("/proc/self/limits")  # a plain file of 0 bytes, says stat
    with pytest.raises(BundleError, match="has more than the 10 bytes that are read"):
        artifacts.load(saved)
