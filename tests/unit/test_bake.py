"""Weights that are baked into the image: what a job then finds there, and what is refused while it is built."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision

from dogbreed import backbones, bake
from dogbreed.errors import HyperparameterError, WeightsError


@pytest.fixture(scope="module")
def states():
    """Random weights of two networks, as torchvision saves them."""
    torch.manual_seed(0)
    names = ("mobilenet_v2", "shufflenet_v2_x0_5")
    return {name: torchvision.models.get_model(name).state_dict() for name in names}


@pytest.fixture
def hub(monkeypatch, tmp_path, states):
    """torchvision's hub as a folder that is read by torch.hub itself; files are named after their own digests."""
    served = tmp_path / "served"
    served.mkdir()
    files = {}
    for name, state in states.items():
        torch.save(state, served / name)
        digest = hashlib.sha256((served / name).read_bytes()).hexdigest()[:8]
        files[name] = (served / name).rename(served / f"{name}-{digest}.pth")

    def get_model_weights(name):
        def get_state_dict(**options):
            return torch.hub.load_state_dict_from_url(files[name].as_uri(), **options)

        return SimpleNamespace(DEFAULT=SimpleNamespace(get_state_dict=get_state_dict))

    monkeypatch.setattr(torchvision.models, "get_model_weights", get_model_weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return files


def found(folder, name):
    """What a job finds in the baked folder; the hub is not asked."""
    return backbones.load_weights(name, channel=None, baked=folder)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_job_finds_what_was_baked_from_the_hub(tmp_path, hub, states):
    baked = bake.bake(["mobilenet_v2", "shufflenet_v2_x0_5"], to=tmp_path / "baked")
    assert [file.name for file in baked] == ["mobilenet_v2.safetensors", "shufflenet_v2_x0_5.safetensors"]
    for name, state in states.items():
        weights, origin = found(tmp_path / "baked", name)
        assert origin == f"image, {name}.safetensors"
        assert same(weights, state)


def test_a_file_that_is_given_comes_before_the_hub(tmp_path, hub, states):
    given = tmp_path / "given"
    given.mkdir()
    changed = {key: value + 1 for key, value in states["mobilenet_v2"].items()}
    torch.save(changed, given / "mobilenet_v2.pth")
    bake.bake(["mobilenet_v2", "shufflenet_v2_x0_5"], to=tmp_path / "baked", given=given)
    assert same(found(tmp_path / "baked", "mobilenet_v2")[0], changed)
    assert same(found(tmp_path / "baked", "shufflenet_v2_x0_5")[0], states["shufflenet_v2_x0_5"])


def test_a_file_of_the_hub_that_is_damaged_is_refused(tmp_path, hub, states):
    torch.save({key: value + 1 for key, value in states["mobilenet_v2"].items()}, hub["mobilenet_v2"])
    with pytest.raises(WeightsError, match=r"model=mobilenet_v2 .*invalid hash value"):
        bake.bake(["mobilenet_v2"], to=tmp_path / "baked")
    assert list((tmp_path / "baked").iterdir()) == []


def test_weights_of_another_network_are_refused(tmp_path, hub, states):
    torch.save(states["shufflenet_v2_x0_5"], tmp_path / "mobilenet_v2.pth")
    with pytest.raises(WeightsError, match="the weights are not those of model=mobilenet_v2"):
        bake.bake(["mobilenet_v2"], to=tmp_path / "baked", given=tmp_path)
    assert list((tmp_path / "baked").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("resnt50", HyperparameterError, "model='resnt50' is unknown; did you mean resnet50"),
        ("tiny", WeightsError, "no pretrained weights exist for tiny: leave it out"),
    ],
)
def test_every_name_is_checked_before_anything_is_fetched(tmp_path, hub, name, error, said):
    with pytest.raises(error, match=re.escape(said)):
        bake.bake(["mobilenet_v2", name], to=tmp_path / "baked")
    assert not (tmp_path / "baked").exists()
    assert not (tmp_path / "cache").exists()


def test_a_hub_out_of_reach_is_one_sentence_with_the_way_out(tmp_path, hub, capsys):
    hub["mobilenet_v2"].unlink()
    assert bake.main(["mobilenet_v2", "--to", str(tmp_path / "baked")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bake: no pretrained weights for model=mobilenet_v2 and the hub is out of reach (")
    assert line.endswith("give a file mobilenet_v2.pth, or build where the hub can be reached")


def test_the_command_that_the_dockerfile_runs(tmp_path, states):
    torch.save(states["mobilenet_v2"], tmp_path / "mobilenet_v2.pth")
    command = ["--given", str(tmp_path), "--to", str(tmp_path / "baked"), "--", "mobilenet_v2"]
    package = Path(bake.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "dogbreed.bake", *command], cwd=package, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"baked .*/mobilenet_v2\.safetensors \(\d+\.\d MB\)\n", done.stdout)
    assert (tmp_path / "baked" / "mobilenet_v2.safetensors").stat().st_mode & 0o777 == 0o644
