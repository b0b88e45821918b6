"""A recorded pass makes no numbers: what it says of shapes, and of the order in memory, is what a real pass makes."""

import pytest
import torch
import torch.nn.functional as F
from nets import Net, conv, images
from timm.layers import DropPath
from torch import nn
from torchvision.ops import StochasticDepth

from net2net import GrowthError
from net2net.recording import Recording, on_meta
from net2net.trace import Trace

PARTS = {
    "conv": conv(4, 6),
    "linear": nn.Linear(5, 7),
    "norm": nn.LayerNorm(5),
    "area": nn.LayerNorm((6, 5), bias=False),
    "bn": nn.BatchNorm2d(4),
    "attention": nn.MultiheadAttention(4, 2, batch_first=True),
    "row": nn.Parameter(torch.rand(5)),
    "channel": nn.Parameter(torch.rand(4, 1, 1)),
    "image": nn.Parameter(torch.rand(4, 6, 5)),
}
SAME = {
    "convolution": lambda m, x: m.conv(x),
    "batch norm": lambda m, x: m.bn(x),
    "linear": lambda m, x: m.linear(x),
    "linear, of what lies crosswise": lambda m, x: m.linear(x.mT.contiguous().mT),
    "layer norm": lambda m, x: m.norm(x),
    "layer norm over two dimensions": lambda m, x: m.area(x),
    "pooled to one": lambda m, x: F.adaptive_avg_pool2d(x, 1) * x,
    "pooled to several": lambda m, x: F.adaptive_avg_pool2d(x, (2, 3)),
    "pooled along one dimension": lambda m, x: F.adaptive_avg_pool2d(x, (None, 2)),
    "a factor for each column": lambda m, x: x * m.row,
    "a factor for each channel, first": lambda m, x: m.channel * x,
    "an image for all": lambda m, x: m.image + x,
    "both spread": lambda m, x: x[:, :1] * m.channel,
    "in place": lambda m, x: x.sin().add_(m.image),
    "in place, with itself": lambda m, x: x.mul_(x),
    "in place, by a function": lambda m, x: F.silu(x.sin(), inplace=True),
    "of two layouts": lambda m, x: x + x.sin().contiguous(memory_format=torch.channels_last),
    "a number": lambda m, x: 1 - x / 2,
    "another type": lambda m, x: x + torch.ones(5, dtype=torch.float64, device=x.device),
    "softmax": lambda m, x: F.softmax(x, dim=1),
    "softmax in another type": lambda m, x: F.softmax(x, -1, dtype=torch.float64),
    "rolled": lambda m, x: x.roll(1, 2),
    "concatenated": lambda m, x: torch.cat([x, x.sin()], 1),
    "attention": lambda m, x: m.attention(*[x.flatten(2).mT] * 3)[0],
    "attention without weights": lambda m, x: m.attention(*[x.flatten(2).mT] * 3, need_weights=False)[0],
    "attention of each head": lambda m, x: m.attention(*[x.flatten(2).mT] * 3, average_attn_weights=False)[1],
    "attention across": lambda m, x: m.attention(x[:, :, 0].mT, *[x.flatten(2).mT] * 2)[0],
    "attention with a mask": lambda m, x: m.attention(
        *[x.flatten(2).mT] * 3, attn_mask=torch.zeros(30, 30, device=x.device)
    )[0],
}
FORGET = ("convolution", "rolled")  # of which torch's meta device says that they lay out their results anew
WRONG = {
    "convolution": lambda m, x: m.conv(x[:, :3]),
    "linear": lambda m, x: m.linear(x.mT),
    "layer norm": lambda m, x: m.norm(x.mT),
    "batch norm": lambda m, x: m.bn(x[:, :3]),
    "product": lambda m, x: x * m.row[:4],
    "in place": lambda m, x: x[:, :1].clone().mul_(m.channel),
    "concatenation": lambda m, x: torch.cat([x, x[:, :, 1:]], 1),
    "pooling": lambda m, x: F.adaptive_avg_pool2d(x, -1),
    "attention": lambda m, x: m.attention(*[x] * 3)[0],
    "attention of another width": lambda m, x: m.attention(*[x.flatten(2)] * 3)[0],
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", SAME)
def test_a_pass_without_numbers_makes_what_a_real_one_makes(name, layout):
    net, x = Net(SAME[name], **PARTS).eval(), images(4, 6, 5, dtype=torch.float32).contiguous(memory_format=layout)
    real = net(x.clone(memory_format=torch.preserve_format))  # with gradients: else attention is another operation
    (made,) = Recording(on_meta(net)).run(x)[-1].args
    assert (made.shape, made.dtype) == (real.shape, real.dtype)
    if layout is torch.contiguous_format or name not in FORGET:
        assert made.stride() == real.stride()


@pytest.mark.parametrize("name", WRONG)
def test_what_fails_for_real_fails_without_numbers(name):
    net, x = Net(WRONG[name], **PARTS).eval(), images(4, 6, 5, dtype=torch.float32)
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        net(x)
    with pytest.raises(GrowthError, match="the forward pass on the meta device failed"):
        Recording(on_meta(net)).run(x)


@pytest.mark.parametrize("layer", [StochasticDepth(0.3, "row"), DropPath(0.3), nn.Dropout(0.3)])
def test_layers_that_drop_at_random_do_not_make_training_another_pass(layer):
    def forward(m, x):
        return m.fc(F.relu(x + m.drop(m.conv(x))).mean((2, 3)))

    def by_hand(m, x):
        return forward(m, x) if m.training else forward(m, x.sin())

    parts = {"conv": conv(3, 3), "drop": layer, "fc": nn.Linear(3, 2)}
    for run, one in ((forward, True), (by_hand, False)):
        trace = Trace(Net(run, **parts), images(3, 4, 4, dtype=torch.float32))
        assert (trace.training_calls is trace.calls) == one
