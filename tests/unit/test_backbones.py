"""Networks by name, what learns in them, and where pretrained weights come from. Nothing here uses the network."""

import pickle
import socket
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torchvision.models import VisionTransformer

from dogbreed import backbones
from dogbreed.backbones import Classifier, HeadSpec
from dogbreed.errors import HyperparameterError, WeightsError

SIZE_PX = 64


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test reaches torchvision's hub: asking for weights fails as it does in a closed network."""

    def refuse(_name):
        raise URLError("closed")

    monkeypatch.setattr(torchvision.models, "get_model_weights", refuse)


@pytest.fixture
def tiny() -> Classifier:
    torch.manual_seed(0)
    return backbones.build("tiny", HeadSpec(3), image_size_px=SIZE_PX)


def images(count=2, size_px=SIZE_PX):
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def moving(model):
    """The BatchNorm layers whose statistics change in a forward pass in training mode."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    model.train()
    model(images() * 3 + 1)
    return {name for name, norm in norms.items() if not torch.equal(norm.running_mean, before[name])}


def save(tensors, file: Path) -> Path:
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


def refusal(name, *, channel, baked=Path("/nowhere")):
    with pytest.raises(WeightsError) as error:
        backbones.load_weights(name, channel=channel, baked=baked)
    return str(error.value)


# Names and networks


def test_names_are_torchvisions_classifiers_and_ours():
    names = backbones.names()
    assert list(names) == sorted(names)
    assert {"tiny", "mobilenet_v2", "resnet18", "resnet152", "densenet121", "vit_b_16", "convnext_tiny"} <= set(names)
    assert not {name for name in names if "rcnn" in name or "segmentation" in name or name.startswith("raft")}


@pytest.mark.parametrize(("name", "near"), [("resnet81", "resnet18"), ("densnet121", "densenet121"), ("tini", "tiny")])
def test_an_unknown_model_is_refused_with_the_nearest_names(name, near):
    with pytest.raises(HyperparameterError) as error:
        backbones.build(name, HeadSpec(3))
    message = str(error.value)
    assert message.startswith(f"model={name!r} is unknown; did you mean ")
    assert near in message.partition("?")[0]
    assert "allowed are tiny and torchvision's classification models (families: alexnet, convnext, " in message


def test_a_model_like_no_other_is_refused_too():
    with pytest.raises(HyperparameterError, match="model='' is unknown; allowed are tiny and torchvision's"):
        backbones.build("", HeadSpec(3))


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("tiny", 128),
        ("resnet18", 512),
        ("squeezenet1_1", 512),
        ("mobilenet_v3_small", 1024),
        ("shufflenet_v2_x0_5", 1024),
        ("mnasnet0_5", 1280),
        ("densenet121", 1024),
        ("efficientnet_b0", 1280),
        ("googlenet", 1024),
    ],
)
def test_families_give_features_and_logits(name, features):
    model = backbones.build(name, HeadSpec(5), image_size_px=SIZE_PX).eval()
    with torch.no_grad():
        assert tuple(model.backbone(images()).shape) == (2, features)
        assert tuple(model(images()).shape) == (2, 5)
    assert model.features == features


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "efficientnet_b0", "googlenet"])
def test_no_dropout_is_left_right_before_the_head(name):
    left = [
        module for module in backbones.build(name, HeadSpec(2)).backbone.modules() if isinstance(module, nn.Dropout)
    ]
    assert left == []


@pytest.mark.parametrize(("name", "size_px"), [("vit_b_32", 100), ("maxvit_t", 100)])
def test_a_size_that_a_transformer_cannot_take_is_refused(name, size_px):
    with pytest.raises(HyperparameterError, match=f"model={name} cannot be built for image-size={size_px}: "):
        backbones.build(name, HeadSpec(2), image_size_px=size_px)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        (HeadSpec(3), ["dropout", "linear"]),
        (HeadSpec(3, hidden_units=7, dropout=0.5), ["hidden", "relu", "dropout", "linear"]),
    ],
)
def test_the_head_is_as_specified(spec, layers):
    head = backbones.build("tiny", spec).head
    assert [name for name, _ in head.named_children()] == layers
    assert head.dropout.p == spec.dropout
    assert head.linear.in_features == (spec.hidden_units or 128)
    assert head.linear.out_features == 3


def test_the_same_seed_builds_the_same_network():
    def weights():
        torch.manual_seed(3)
        return backbones.build("tiny", HeadSpec(3)).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


# What learns


def test_with_the_head_alone_the_backbone_is_fixed(tiny):
    tiny.freeze("head", SIZE_PX)
    assert learning(tiny) == {"head.linear.weight", "head.linear.bias"}
    assert moving(tiny) == set()
    assert tiny.head.training
    assert not any(module.training for module in tiny.backbone.modules())


def test_with_the_last_stage_what_is_before_it_is_fixed(tiny):
    tiny.freeze("last_stage", SIZE_PX)
    assert learning(tiny) == {
        "head.linear.weight",
        "head.linear.bias",
        "backbone.stages.3.0.weight",
        "backbone.stages.3.1.weight",
        "backbone.stages.3.1.bias",
    }
    assert moving(tiny) == {"backbone.stages.3.1"}


def test_with_all_nothing_is_fixed(tiny):
    tiny.freeze("all", SIZE_PX)
    assert learning(tiny) == {name for name, _ in tiny.named_parameters()}
    assert moving(tiny) == {f"backbone.stages.{stage}.1" for stage in range(4)}


def test_freezing_can_be_taken_back(tiny):
    tiny.freeze("head", SIZE_PX)
    tiny.freeze("all", SIZE_PX)
    assert len(moving(tiny)) == 4
    assert len(learning(tiny)) == len(list(tiny.parameters()))


@pytest.mark.parametrize("mode", [True, False])
def test_freezing_keeps_the_mode_of_what_learns(tiny, mode):
    tiny.train(mode)
    tiny.freeze("last_stage", SIZE_PX)
    assert tiny.training is mode
    assert tiny.head.training is mode
    assert tiny.backbone.stages[3][1].training is mode
    assert not tiny.backbone.stages[0][1].training


def test_finding_the_last_stage_changes_no_statistics(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    tiny.train()
    tiny.freeze("last_stage", SIZE_PX)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())
    assert not any(module._forward_hooks for module in tiny.modules())


@pytest.mark.parametrize(
    ("name", "first", "last_frozen"),
    [
        ("resnet18", "backbone.layer4.", "backbone.layer3."),
        ("mobilenet_v3_small", "backbone.features.9.", "backbone.features.8."),
        ("densenet121", "backbone.features.denseblock4.", "backbone.features.transition3."),
    ],
)
def test_the_last_stage_of_a_pyramid_starts_where_the_resolution_changes_last(name, first, last_frozen):
    model = backbones.build(name, HeadSpec(2), image_size_px=SIZE_PX)
    model.freeze("last_stage", SIZE_PX)
    backbone = sorted(name for name in learning(model) if name.startswith("backbone."))
    assert any(name.startswith(first) for name in backbone)
    assert not any(name.startswith(last_frozen) for name in backbone)
    assert "backbone.conv1.weight" not in backbone


def test_the_last_stage_of_a_vision_transformer_is_its_last_quarter(monkeypatch):
    small = VisionTransformer(
        image_size=32, patch_size=4, num_layers=8, num_heads=2, hidden_dim=64, mlp_dim=128, num_classes=10
    )
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_args, **_options: small)
    model = backbones.build("vit_b_32", HeadSpec(2), image_size_px=32)
    model.freeze("last_stage", 32)
    learns = learning(model)
    assert any(name.startswith("backbone.encoder.layers.encoder_layer_7.") for name in learns)
    assert not any("encoder_layer_0" in name or "class_token" in name or "pos_embedding" in name for name in learns)
    assert not any("conv_proj" in name for name in learns)
    assert tuple(model(images(size_px=32)).shape) == (2, 2)


# A network whose weights are known


# RegNet cannot be built without memory; Swin has buffers that are computed, GoogLeNet options of its own.
@pytest.mark.parametrize("name", ["tiny", "mobilenet_v3_small", "regnet_y_400mf", "swin_v2_t", "googlenet"])
def test_a_rebuilt_network_computes_what_it_did(name):
    torch.manual_seed(3)
    model = backbones.build(name, HeadSpec(3, hidden_units=5)).eval()

    rebuilt = backbones.rebuild(name, HeadSpec(3, hidden_units=5), model.state_dict()).eval()

    with torch.no_grad():
        assert torch.equal(rebuilt(images()), model(images()))


def test_rebuilding_draws_nothing_and_copies_nothing(tiny):
    weights = tiny.state_dict()
    before = torch.get_rng_state()

    rebuilt = backbones.rebuild("tiny", HeadSpec(3), weights, image_size_px=SIZE_PX)

    assert torch.equal(torch.get_rng_state(), before)
    assert {name: tensor.data_ptr() for name, tensor in rebuilt.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in weights.items()
    }


def test_weights_of_another_precision_become_the_networks(tiny):
    weights = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tiny.state_dict().items()
    }

    rebuilt = backbones.rebuild("tiny", HeadSpec(3), weights, image_size_px=SIZE_PX)

    assert {parameter.dtype for parameter in rebuilt.parameters()} == {torch.float32}


# Pretrained weights: into the network


def test_weights_fill_the_backbone_and_leave_the_head_new():
    torch.manual_seed(5)
    whole = torchvision.models.mobilenet_v3_small(weights=None, num_classes=11)
    model = backbones.build("mobilenet_v3_small", HeadSpec(4), weights=whole.state_dict())
    filled = model.backbone.state_dict()
    assert filled
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in filled.items())
    assert not any(name.startswith("classifier.3") for name in filled)
    assert model.head.linear.out_features == 4


def test_auxiliary_classifiers_in_a_file_are_left_out():
    whole = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    model = backbones.build("googlenet", HeadSpec(2), weights=whole.state_dict())
    assert torch.equal(model.backbone.conv1.conv.weight, whole.conv1.conv.weight)


def test_weights_of_another_network_are_refused():
    others = torchvision.models.squeezenet1_1(weights=None).state_dict()
    with pytest.raises(WeightsError) as error:
        backbones.build("tiny", HeadSpec(2), weights=others)
    message = str(error.value)
    assert message.startswith("the weights are not those of model=tiny: ")
    assert "tensors are missing, first stages.0.0.weight" in message
    assert "52 tensors are unknown, first classifier.1.bias" in message
    assert "change `model`" in message


def test_weights_of_another_width_are_refused(tiny):
    weights = tiny.backbone.state_dict()
    weights["stages.0.0.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(WeightsError, match=r"1 tensors have another shape, first stages\.0\.0\.weight"):
        backbones.build("tiny", HeadSpec(2), weights=weights)


# Pretrained weights: from a file


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_of_the_channel_is_read(tmp_path, tiny, suffix):
    weights = tiny.backbone.state_dict()
    save(weights, tmp_path / f"whatever{suffix}")
    found, source = backbones.load_weights("tiny", channel=tmp_path, baked=Path("/nowhere"))
    assert source == f"pretrained channel, whatever{suffix}"
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    rebuilt = backbones.build("tiny", HeadSpec(2), weights=found)
    assert torch.equal(rebuilt.backbone(images()), tiny.backbone(images()))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": tensors},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    ],
    ids=["state_dict", "model", "module.", "state_dict of module."],
)
def test_what_training_scripts_wrap_around_weights_is_taken_off(tmp_path, wrap):
    save(wrap({"fc.weight": torch.ones(2), "modules.0": torch.zeros(1)}), tmp_path / "a.pth")
    found, _ = backbones.load_weights("resnet18", channel=tmp_path, baked=Path("/nowhere"))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"fc.weight": [1.0, 1.0], "modules.0": [0.0]}


def test_keys_of_old_densenet_files_are_brought_up_to_date(tmp_path):
    names = torchvision.models.densenet121(weights=None).state_dict().keys()
    old = {}
    for name in names:
        layer = name
        if "denselayer" in name:
            for part in ("norm", "conv"):
                layer = layer.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
        old[layer] = torch.zeros(1)
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save(old, tmp_path / "densenet121-a639ec97.pth")
    found, _ = backbones.load_weights("densenet121", channel=tmp_path, baked=Path("/nowhere"))
    assert found.keys() == names


GIVE = "give a state dict saved by torch.save(model.state_dict(), FILE), or a safetensors file"


@pytest.mark.parametrize(
    ("suffix", "content", "why"),
    [
        (".pth", b"hello", "it is no file that torch.save has written"),
        (".pt", b"", "it is empty"),
        (".safetensors", b"not weights at all", "it is no whole safetensors file (Error while deserializing header: "),
        (".safetensors", b"", "it is empty"),
        (".pth", pickle.dumps({"a": 1}, protocol=4), "it is a pickle of more than tensors, and reading that can run"),
    ],
)
def test_a_file_that_is_none_of_weights_is_refused(tmp_path, suffix, content, why):
    (tmp_path / f"broken{suffix}").write_bytes(content)
    message = refusal("tiny", channel=tmp_path)  # without a warning, which would be an error here
    assert message.startswith(f"broken{suffix} cannot be read as weights: {why}")
    assert message.endswith(GIVE)
    assert "\n" not in message


def test_a_truncated_file_is_refused(tmp_path, tiny):
    file = tmp_path / "a.pth"
    for now in (True, False):
        torch.save(tiny.state_dict(), file, _use_new_zipfile_serialization=now)
        whole = file.read_bytes()
        for kept in (len(whole) - 200, len(whole) // 2, 1000):
            file.write_bytes(whole[:kept])
            message = refusal("tiny", channel=tmp_path)
            assert message == "a.pth cannot be read as weights: it is cut off or damaged; copy it again, in whole"


def test_numbers_that_are_not_finite_are_refused(tmp_path, tiny):
    weights = tiny.state_dict()
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save(weights, tmp_path / "a.pth")
    assert refusal("tiny", channel=tmp_path) == (
        f"a.pth holds numbers that are not finite, in 1 of {len(weights)} tensors, first {name}: they are of a "
        f"training that diverged, or damaged; give other weights"
    )


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_that_carries_code_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"
    channel = tmp_path / "channel"
    save({"fc.weight": Touch(ran)}, channel / "evil.pth")
    torch.load(channel / "evil.pth", weights_only=False)
    assert ran.exists(), "the trap works"
    ran.unlink()
    message = refusal("tiny", channel=channel)
    assert message.startswith("evil.pth cannot be read as weights: it is a pickle of more than tensors (")
    assert "weights_only" not in message
    assert not ran.exists()


@pytest.mark.parametrize(
    ("content", "kind"), [([1, 2], "list"), ({"epoch": 3}, "dict of int"), (torch.zeros(2), "Tensor")]
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, kind):
    save(content, tmp_path / "a.pth")
    message = refusal("tiny", channel=tmp_path)
    assert message == f"a.pth holds {kind} instead of a state dict (name -> tensor); {GIVE}"


def test_of_two_files_the_one_named_like_the_model_counts(tmp_path):
    save({"a": torch.zeros(1)}, tmp_path / "resnet18.pth")
    save({"b": torch.zeros(1)}, tmp_path / "other.pth")
    found, source = backbones.load_weights("resnet18", channel=tmp_path, baked=Path("/nowhere"))
    assert (list(found), source) == (["a"], "pretrained channel, resnet18.pth")
    assert refusal("resnet34", channel=tmp_path) == (
        "the pretrained channel holds other.pth, resnet18.pth; put one .pth, .pt or .safetensors file there, or name "
        "it resnet34.pth"
    )


def test_a_channel_without_weights_is_refused(tmp_path):
    assert "the pretrained channel holds nothing; put one" in refusal("tiny", channel=tmp_path)
    (tmp_path / "readme.txt").write_text("")
    assert "the pretrained channel holds readme.txt; put one" in refusal("tiny", channel=tmp_path)
    assert "absent is not a folder" in refusal("tiny", channel=tmp_path / "absent")


# Pretrained weights: the order of the sources


@pytest.fixture
def default_timeout_s():
    """A default timeout of sockets that no other code would set, so that a leak is seen."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(123.0)
    yield 123.0
    socket.setdefaulttimeout(before)


@pytest.fixture
def hub(monkeypatch):
    """A hub that has weights, and notes how it was asked."""
    asked = SimpleNamespace(names=[], options=[], timeouts=[])

    def get_state_dict(**options):
        asked.options.append(options)
        asked.timeouts.append(socket.getdefaulttimeout())
        return {"hub": torch.zeros(1), "features.denseblock1.denselayer1.norm.1.bias": torch.zeros(1)}

    def get_model_weights(name):
        asked.names.append(name)
        return SimpleNamespace(DEFAULT=SimpleNamespace(get_state_dict=get_state_dict))

    monkeypatch.setattr(torchvision.models, "get_model_weights", get_model_weights)
    return asked


def test_the_channel_comes_first_then_the_image_then_the_hub(tmp_path, hub):
    channel, baked = tmp_path / "channel", tmp_path / "baked"
    save({"channel": torch.zeros(1)}, channel / "a.pth")
    save({"baked": torch.zeros(1)}, baked / "resnet18.safetensors")
    save({"wrong": torch.zeros(1)}, baked / "resnet34.pth")

    found, source = backbones.load_weights("resnet18", channel=channel, baked=baked)
    assert (list(found), source) == (["channel"], "pretrained channel, a.pth")
    found, source = backbones.load_weights("resnet18", channel=None, baked=baked)
    assert (list(found), source) == (["baked"], "image, resnet18.safetensors")
    assert hub.names == []
    found, source = backbones.load_weights("resnet50", channel=None, baked=baked)
    # The hub's DenseNet files still have the old names.
    assert list(found) == ["hub", "features.denseblock1.denselayer1.norm1.bias"]
    assert source == "torchvision hub, default weights"
    assert hub.names == ["resnet50"]


def test_the_hub_is_asked_with_a_timeout_and_its_answer_is_checked(tmp_path, hub, default_timeout_s):
    backbones.load_weights("resnet18", channel=None, baked=tmp_path)
    assert hub.options == [{"map_location": "cpu", "progress": False, "check_hash": True, "weights_only": True}]
    assert hub.timeouts[0] < default_timeout_s
    assert socket.getdefaulttimeout() == default_timeout_s


@pytest.mark.parametrize(
    "fault", [URLError("no route"), TimeoutError("timed out"), RuntimeError("invalid hash value"), OSError("disk full")]
)
def test_without_any_source_the_error_lists_the_ways(tmp_path, monkeypatch, fault, default_timeout_s):
    def fail(_name):
        raise fault

    monkeypatch.setattr(torchvision.models, "get_model_weights", fail)
    message = refusal("resnet18", channel=None, baked=tmp_path / "baked")
    assert message.startswith("no pretrained weights for model=resnet18 and the hub is out of reach (")
    assert str(fault) in message
    for way in (
        "give a `pretrained` channel with resnet18.pth",
        f"build the image with the weights in {tmp_path / 'baked'}",
        "allow network access to torchvision's hub",
        "set pretrained=false",
    ):
        assert way in message
    assert socket.getdefaulttimeout() == default_timeout_s


def test_the_tiny_network_has_no_weights_to_download(tmp_path, hub):
    message = refusal("tiny", channel=None, baked=tmp_path)
    assert message == "no pretrained weights exist for model=tiny; set pretrained=false"
    assert hub.names == []
