"""A folded network computes what it computed."""

import torch
from torch import nn

from dogbreed import backbones, folding
from dogbreed.backbones import HeadSpec
from dogbreed.folding import accelerated


def network_with_statistics(name):
    torch.manual_seed(0)
    network = backbones.build(name, HeadSpec(3)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return network


def test_a_batchnorm_is_folded_without_changing_the_function():
    network = network_with_statistics("resnet18")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        fast = accelerated(network, torch.float32, images[:1])
        torch.testing.assert_close(fast(images), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(network(images), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Untraceable(nn.Module):
    """Its path depends on its input, which torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, images):
        return self.norm(self.convolution(images)) if images.sum() > 0 else images


def test_a_network_that_cannot_be_traced_stays_as_it_is():
    network = Untraceable().eval()
    images = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(accelerated(network, torch.float32, images)(images), network(images))


def test_the_copy_has_the_precision_that_was_asked_for():
    network = network_with_statistics("resnet18")
    fast = accelerated(network, torch.bfloat16, torch.randn(1, 3, 64, 64))
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_folded_network_that_answers_otherwise_is_not_taken(monkeypatch):
    network = network_with_statistics("tiny")
    images = torch.randn(1, 3, 64, 64)

    def broken(copied, **_):
        copied.backbone.stages[0][0].weight.data.mul_(2)
        return copied

    monkeypatch.setattr(folding, "fuse", broken)

    with torch.no_grad():
        torch.testing.assert_close(accelerated(network, torch.float32, images)(images), network(images))
