"""Many heads as one: those that differ in learning rate and weight decay alone share every forward and backward pass.

The heads see the same batches, and the same features are dropped for all of them, so that the first layers of all are
one matrix product. The optimizer is elementwise: a head learns here what it learns alone, but for the order in which
floating point adds up. Knows no epochs and no objective.

Legend: T heads, N batch, F features, H hidden units, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, one_hot

from dogbreed.hyperparameters import Hyperparameters


class StackedHeads(nn.Module):
    """T copies of one head: float32 features [N, F] -> logits [N, T, K].

    Args:
        head: what `backbones.Classifier` calls so: dropout and a linear layer, or a hidden layer before them.
        count: T.
    """

    def __init__(self, head: nn.Module, count: int) -> None:
        super().__init__()
        self.names = [name for name, _ in head.named_parameters()]
        self.stacks = nn.ParameterList(
            parameter.detach().expand(count, *parameter.shape).clone() for parameter in head.parameters()
        )
        self._dropout = next(module.p for module in head.modules() if isinstance(module, nn.Dropout))

    def __len__(self) -> int:
        return len(self.stacks[0])

    def forward(self, features_NF: Tensor) -> Tensor:
        """Logits [N, T, K]; in training mode with what dropout draws for a head that learns alone."""
        *hidden, weight_TKX, bias_TK = self.stacks
        if not hidden:
            kept = dropout(features_NF, self._dropout, self.training)
            return linear(kept, weight_TKX.flatten(0, 1), bias_TK.flatten()).view(-1, *bias_TK.shape)
        weight_THF, bias_TH = hidden
        hidden_NTH = linear(features_NF, weight_THF.flatten(0, 1), bias_TH.flatten()).relu().view(-1, *bias_TH.shape)
        mask_NH = dropout(torch.ones_like(hidden_NTH[:, 0]), self._dropout, self.training)
        logits_NTK: Tensor = torch.einsum("nth,tkh->ntk", hidden_NTH * mask_NH[:, None], weight_TKX)
        return logits_NTK.add_(bias_TK)

    def weights(self, position: int) -> dict[str, Tensor]:
        """State dict of one head, on the CPU."""
        return {
            name: stack[position].detach().cpu().clone() for name, stack in zip(self.names, self.stacks, strict=True)
        }

    def keep(self, positions: Sequence[int]) -> None:
        """Leaves the heads at these positions alone in the stack."""
        self.stacks = nn.ParameterList(stack.detach()[list(positions)] for stack in self.stacks)


class StackedOptimizer:
    """SGD, Adam or AdamW with a rate and a weight decay per head: the arithmetic of torch.optim, a row per head.

    Args:
        heads: what learns.
        recipes: one per head; they agree in all but learning rate and weight decay.
    """

    def __init__(self, heads: StackedHeads, recipes: Sequence[Hyperparameters]) -> None:
        self._heads = heads
        self._recipe = recipes[0]
        device = heads.stacks[0].device
        self._decays_T = torch.tensor([recipe.weight_decay for recipe in recipes], device=device)
        self._steps = 0
        self._means = [torch.zeros_like(stack) for stack in heads.stacks]
        self._squares = [torch.zeros_like(stack) for stack in heads.stacks if self._recipe.optimizer != "sgd"]

    @torch.no_grad()
    def step(self, rates_T: Tensor) -> None:
        """One step on the gradients that the stack holds, which it forgets; rates float32 [T]."""
        self._steps += 1
        self._clip()
        for number, (name, stack) in enumerate(zip(self._heads.names, self._heads.stacks, strict=True)):
            gradient = cast(Tensor, stack.grad)
            spared = name.endswith("bias") and not self._recipe.decay_norm_and_bias
            decays = _per_head(torch.zeros_like(self._decays_T) if spared else self._decays_T, stack)
            rates = _per_head(rates_T, stack)
            if self._recipe.optimizer == "sgd":
                update = self._sgd(number, gradient + decays * stack)
            elif self._recipe.optimizer == "adam":
                update = self._adam(number, gradient + decays * stack)
            else:
                stack.mul_(1 - rates * decays)
                update = self._adam(number, gradient)
            stack.sub_(rates * update)
            stack.grad = None

    def keep(self, positions: Sequence[int]) -> None:
        """As `StackedHeads.keep`, and after it."""
        rows = list(positions)
        self._decays_T = self._decays_T[rows]
        self._means = [mean[rows] for mean in self._means]
        self._squares = [square[rows] for square in self._squares]

    def _clip(self) -> None:
        """Scales each head's gradient down to its largest norm (torch.nn.utils.clip_grad_norm_)."""
        if not self._recipe.clip_norm:
            return
        gradients = [stack.grad for stack in self._heads.stacks if stack.grad is not None]
        norms_T = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        shares_T = (self._recipe.clip_norm / (norms_T + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(_per_head(shares_T, gradient))

    def _sgd(self, number: int, gradient: Tensor) -> Tensor:
        """What a stack moves by, times its rates."""
        momentum = self._recipe.momentum
        if not momentum:
            return gradient
        # The first step's mean is its gradient: nothing is dampened.
        mean = self._means[number].mul_(momentum).add_(gradient)
        return gradient + momentum * mean if self._recipe.nesterov else mean

    def _adam(self, number: int, gradient: Tensor) -> Tensor:
        """What a stack moves by, times its rates (Kingma and Ba 2015, algorithm 1)."""
        beta1, beta2 = self._recipe.beta1, self._recipe.beta2
        mean = self._means[number].lerp_(gradient, 1 - beta1)
        square = self._squares[number].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2**self._steps)).sqrt_().add_(self._recipe.eps)
        return mean / root.mul_(1 - beta1**self._steps)


def losses(logits_NTK: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of each head, float32 [T].

    Args:
        logits_NTK: of the stack.
        targets: indices int64 [N], or shares float32 [N, K].
        smoothing: in [0, 1), as torch has it: that share of each target is spread over all classes.
    """
    classes = logits_NTK.shape[2]
    shares_NK = targets if targets.is_floating_point() else one_hot(targets, classes).to(logits_NTK.dtype)
    smooth_NK = shares_NK * (1 - smoothing) + smoothing / classes
    return -(logits_NTK.log_softmax(dim=2) * smooth_NK[:, None]).sum(dim=2).mean(dim=0)


def _per_head(values_T: Tensor, stack: Tensor) -> Tensor:
    return values_T.view(-1, *[1] * (stack.dim() - 1))
