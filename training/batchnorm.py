"""Batch normalisation where a mini-batch is more than one chunk: in a pass, over the passes, and over the ranks.

What an experiment computes is defined by the images that batch norm takes its statistics over, a chunk of
`training.bn_batch_size`: 32 of them in configs/imagenet/. A GPU wants hundreds in a forward pass: with 32 it waits for
the launches of a thousand small kernels. So a pass takes several chunks, and each is normalised as if it had been a
pass of its own. How many of them is a matter of the machine (`training.images_per_pass`) and changes the result by no
more than rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from training.session import Session

IMAGES_PER_PASS = 256  # on a GPU, where `training.images_per_pass` is null; on a CPU one chunk is as good


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that in training takes its statistics over each `group_size` images of the batch [N, C, H, W].

    The running statistics move once, by the mean over the groups of what each of them alone would have moved them by.
    Evaluation, a batch of one group and one that is smaller than a group are `nn.BatchNorm2d`'s own, to the bit.
    Parameters, buffers and their names are, too: a state dict fits both.
    """

    group_size: int

    def __init__(self, num_features: int, group_size: int, **options):
        super().__init__(num_features, **options)
        self.group_size = group_size

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = x.shape[0]
        own = self.training or self.running_mean is None  # statistics of the batch, not the running ones
        if not own or images <= self.group_size:
            return super().forward(x)
        self._check_input_dim(x)
        if images % self.group_size:
            raise ValueError(
                f"batch norm over groups of {self.group_size} images was given {images} in training mode: expected a "
                f"multiple of {self.group_size}, or fewer than that"
            )
        groups, per_channel = images // self.group_size, (-1, 1, 1)
        grouped = x.view(groups, self.group_size, *x.shape[1:])  # a view in any memory format
        if x.dtype in (torch.bfloat16, torch.float16):  # as the kernels of `nn.BatchNorm2d` do it
            grouped = grouped.float()
        var, mean = torch.var_mean(grouped, (1, 3, 4), correction=0, keepdim=True)  # [groups, 1, C, 1, 1]
        if self.training and self.running_mean is not None:
            self._move(mean.detach(), var.detach(), groups, self.group_size * x.shape[2] * x.shape[3])
        # One multiplication and addition for each pixel, which keeps one tensor for the backward pass.
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.view(per_channel)
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias.view(per_channel)
        return torch.addcmul(shift, grouped, scale).to(x.dtype).view(x.shape)

    @torch.no_grad()
    def _move(self, mean: torch.Tensor, var: torch.Tensor, groups: int, pixels: int) -> None:
        """The running statistics, whose variance is the unbiased one, by the mean over the groups."""
        self.num_batches_tracked.add_(groups)
        unbiased = var.mean((0, 1, 3, 4)) * (pixels / (pixels - 1))
        self.running_mean.lerp_(mean.mean((0, 1, 3, 4)).to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


def group_batch_norms(model: nn.Module, group_size: int) -> nn.Module:
    """Let every `nn.BatchNorm2d` of `model` take its statistics over groups of so many images, in place.

    The modules stay the same objects: their parameters, buffers, hooks and names are untouched.
    """
    for name, module in model.named_modules():
        if type(module) in (nn.BatchNorm2d, GroupedBatchNorm2d):
            if module.momentum is None:
                raise ValueError(
                    f"{name}: batch norm with momentum=None, a cumulative average, cannot be grouped: give a momentum"
                )
            module.__class__ = GroupedBatchNorm2d
            module.group_size = group_size
    return model


def passes(chunks: int, chunk: int, images: int) -> list[int]:
    """How many chunks of `chunk` images each forward pass takes, for `chunks` of them in all.

    As few passes as `images` in each allow (at least one chunk), as equal as can be: a compiled pass is made for each
    size.
    """
    fit = max(1, images // chunk)
    number = -(-chunks // fit)
    return [chunks // number + (k < chunks % number) for k in range(number)]


class Statistics:
    """The running statistics of a model: of each step, the mean over its chunks.

    Each chunk's statistics s move the running ones r to (1 - m) r + m s. One after the other, as plain gradient
    accumulation does it, the last chunk would count most, and their number on a rank would change the result. Here
    each starts from the statistics of the step before, and the step's are the mean over its chunks. As this is linear
    in r, the ranks need not agree each step: averaged when somebody looks (`sync`), with the weight of the chunks that
    each had, they are what they would have been. The same holds for the averages of the weights' EMA.
    """

    def __init__(self, model: nn.Module, session: Session, passes: list[int], chunks: int):
        """`passes`: how many of the mini-batch's `chunks` each forward pass of this rank takes."""
        self.session, self.weight, self.passes = session, sum(passes) / chunks, passes
        self.buffers = _statistics_of(model)
        self.before, self.sums = ([torch.empty_like(b) for b in self.buffers if len(passes) > 1] for _ in range(2))

    @torch.no_grad()
    def begin_step(self) -> None:
        """Before the first forward pass of a step."""
        if len(self.passes) > 1:
            torch._foreach_copy_(self.before, self.buffers)

    @torch.no_grad()
    def after_pass(self, number: int) -> None:
        """After this rank's forward pass of that number in this step."""
        if len(self.passes) == 1:
            return
        weight = self.passes[number] / self.passes[0]  # of its chunks: mostly 1
        if number == 0:
            torch._foreach_copy_(self.sums, self.buffers)
        else:
            torch._foreach_add_(self.sums, self.buffers, alpha=weight)
        if number == len(self.passes) - 1:
            torch._foreach_div_(self.sums, sum(self.passes) / self.passes[0])
            torch._foreach_copy_(self.buffers, self.sums)
        else:
            torch._foreach_copy_(self.buffers, self.before)

    @contextlib.contextmanager
    def synced(self, models: list[nn.Module]) -> Iterator[None]:
        """`sync` for a moment: each rank goes on with its own, which rounding would else have changed."""
        buffers = [buffer for model in models for buffer in _statistics_of(model)]
        before = [buffer.clone() for buffer in buffers] if self.session.world > 1 else []
        self.sync(models)
        yield
        if before:
            torch._foreach_copy_(buffers, before)

    @torch.no_grad()
    def sync(self, models: Iterable[nn.Module]) -> None:
        """Give every rank the mean of all over the running statistics of `models`."""
        if self.session.world == 1:
            return
        for model in models:
            buffers = _statistics_of(model)
            if not buffers:
                continue
            flat = torch.cat([buffer.flatten() for buffer in buffers]).double()
            self.session.all_reduce(flat.mul_(self.weight))
            for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))


def _statistics_of(model: nn.Module) -> list[torch.Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]
