from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dogbreed.errors import HyperparameterError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.training.mixing import SmoothedCrossEntropyLoss, cutmix, make_mixing, mixup

K = 5


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    images = torch.randint(0, 256, shape, generator=generator)
    return images.to(dtype), torch.arange(shape[0]) % K


def test_without_alphas_the_batch_stays_as_it_is() -> None:
    inputs, indices = batch(4, 3, 8, 8)
    mixed, targets = make_mixing(Hyperparameters(), K)(inputs, indices)
    assert mixed is inputs
    assert targets is indices


@given(
    kind=st.sampled_from(["both", "cutmix", "mixup"]),
    alpha=st.floats(1e-3, 10.0),
    n=st.integers(1, 9),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32]),
)
def test_whatever_is_mixed_keeps_its_form_and_targets_sum_to_one(
    kind: str, alpha: float, n: int, seed: int, dtype: torch.dtype
) -> None:
    alphas = {"mixup": alpha * (kind != "cutmix"), "cutmix": alpha * (kind != "mixup")}
    inputs, indices = batch(n, 3, 7, 7, dtype=dtype)
    before = inputs.clone()
    torch.manual_seed(seed)
    mixed, targets = make_mixing(Hyperparameters(**alphas), K)(inputs, indices)
    assert (mixed.shape, mixed.dtype) == (inputs.shape, inputs.dtype)
    assert torch.isfinite(mixed.float()).all()
    assert mixed.float().min() >= before.float().min()
    assert mixed.float().max() <= before.float().max()
    assert torch.equal(inputs, before), "the batch itself is not written to: it may be the store"
    assert (targets.shape, targets.dtype) == ((n, K), torch.float32)
    assert targets.min() >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(n))
    torch.manual_seed(seed)
    again = make_mixing(Hyperparameters(**alphas), K)(inputs, indices)
    assert torch.equal(again[0], mixed)
    assert torch.equal(again[1], targets)


@pytest.mark.parametrize("shape", [(6, 10), (6, 4, 3, 3), (6, 7, 4)])
def test_mixup_blends_inputs_as_it_blends_targets(shape: tuple[int, ...]) -> None:
    inputs, indices = batch(*shape)
    torch.manual_seed(0)
    mixed, targets = mixup(inputs, indices, alpha=1.0, classes=K)
    share = float(targets[1, indices[1]])
    assert 0.01 < share < 0.99
    torch.testing.assert_close(mixed, share * inputs + (1 - share) * inputs.roll(1, 0))
    assert float(targets[1, indices[0]]) == pytest.approx(1 - share)


def test_mixup_commutes_with_normalisation() -> None:
    inputs, indices = batch(4, 3, 8, 8)
    torch.manual_seed(0)
    before, _ = mixup((inputs - 100) / 50, indices, alpha=1.0, classes=K)
    torch.manual_seed(0)
    after, _ = mixup(inputs, indices, alpha=1.0, classes=K)
    torch.testing.assert_close(before, (after - 100) / 50)


def test_mixup_rounds_whole_numbers() -> None:
    inputs = torch.tensor([[0, 10], [255, 11]], dtype=torch.uint8)
    torch.manual_seed(0)
    mixed, targets = mixup(inputs, torch.tensor([0, 1]), alpha=1.0, classes=2)
    expected = targets[0, 0] * inputs.float() + targets[0, 1] * inputs.float().roll(1, 0)
    assert torch.equal(mixed, expected.round().to(torch.uint8))


@pytest.mark.parametrize(("shape", "channel"), [((6, 4, 9, 7), 1), ((6, 8, 8, 3), 3)], ids=["NCHW", "NHWC"])
def test_cutmix_pastes_one_box_and_weighs_targets_by_its_area(shape: tuple[int, ...], channel: int) -> None:
    inputs = torch.arange(6.0).view(6, 1, 1, 1).expand(shape).contiguous()
    indices = torch.arange(6) % K
    pasted_shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, targets = cutmix(inputs, indices, alpha=1.0, classes=K)
        assert torch.equal(mixed, mixed.select(channel, 0).unsqueeze(channel).expand(shape)), "a box, not a channel"
        pasted = (mixed != inputs)[2].select(channel - 1, 0).float()
        assert set(mixed[2].unique().tolist()) <= {1.0, 2.0}
        rows = pasted.amax(1)
        columns = pasted.amax(0)
        assert torch.equal(pasted, rows[:, None] * columns[None, :]), "the pasted pixels are a box"
        pasted_shares.append(float(pasted.mean()))
        assert float(targets[2, indices[2]]) == pytest.approx(1 - pasted_shares[-1], abs=1e-6)
        assert float(targets[2, indices[1]]) == pytest.approx(pasted_shares[-1], abs=1e-6)
    assert max(pasted_shares) > 0.1
    assert len(set(pasted_shares)) > 5


def test_cutmix_of_vectors_is_refused() -> None:
    with pytest.raises(HyperparameterError, match=r"cutmix=1 needs images or feature maps, but .* given 1 dim"):
        cutmix(*batch(4, 10), alpha=1.0, classes=K)


def test_either_is_drawn_where_both_are_asked_for() -> None:
    inputs = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 16, 16).contiguous()
    mixing = make_mixing(Hyperparameters(mixup=1.0, cutmix=1.0), K)
    torch.manual_seed(0)
    # A blend is one number all over; a paste keeps whole numbers.
    blends = [len(mixing(inputs, torch.arange(6) % K)[0][2].unique()) == 1 for _ in range(40)]
    assert 10 < sum(blends) < 30


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_the_memory_format_is_kept(name: str) -> None:
    inputs, indices = batch(4, 3, 8, 8)
    laid_out = inputs.to(memory_format=torch.channels_last)
    mixing = make_mixing(Hyperparameters(**{name: 1.0}), K)
    torch.manual_seed(0)
    plain, _ = mixing(inputs, indices)
    torch.manual_seed(0)
    mixed, _ = mixing(laid_out, indices)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed, plain)


def test_labels_are_smoothed_for_indices_and_for_mixed_targets() -> None:
    logits = torch.randn(6, K, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(6) % K
    criterion = SmoothedCrossEntropyLoss(label_smoothing=0.1)
    smooth = 0.9 * nn.functional.one_hot(indices, K) + 0.1 / K
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(criterion(logits, indices), expected)
    torch.testing.assert_close(criterion(logits, nn.functional.one_hot(indices, K).float()), expected)
    criterion.eval()
    torch.testing.assert_close(criterion(logits, indices), nn.CrossEntropyLoss()(logits, indices))
