"""What grew before grows the same: records and weights of five nets, kept in tests/golden/growth.json.

`PYTHONPATH=tests python tests/net2net/test_golden_growth.py` writes it anew, for a change that means to grow otherwise.
"""

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from nets import Net, conv
from places import GOLDEN
from torch import nn

from net2net import deepen, history, random_pad, widen
from net2net.inception_bn import inception_bn

pytestmark = pytest.mark.quick

GROWTH = GOLDEN / "growth.json"


def residual():
    def run(m, x):
        h = F.relu(m.stem(x))
        for block in (m.one, m.two):
            h = F.relu(h + block(h) * m.gate(h.mean((2, 3)))[:, :, None, None].sigmoid())
        return m.fc(h.mean((2, 3)))

    def block():
        return nn.Sequential(conv(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 12, groups=4),
                             nn.BatchNorm2d(12), nn.ReLU(), conv(12, 8, 1), nn.BatchNorm2d(8))  # fmt: skip

    return Net(run, stem=conv(3, 8), one=block(), two=block(), gate=nn.Linear(8, 8), fc=nn.Linear(8, 4))


def dense():
    def run(m, x):
        h = m.stem(x)
        for layer in m.layers:
            h = torch.cat((h, layer(h)), 1)
        return m.fc(F.adaptive_avg_pool2d(F.relu(h), 2).flatten(1))

    layers = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), conv(n, 4)) for n in (6, 10, 14))
    return Net(run, stem=conv(3, 6), layers=layers, fc=nn.Linear(72, 4))


def separable():
    def run(m, x):
        h = F.relu6(m.dw(F.relu6(m.make(x))))
        h = h.view(h.shape[0], 2, 5, *h.shape[2:]).transpose(1, 2).flatten(1, 2)
        return m.fc(F.relu(m.norm(m.read(h))).mean((2, 3)))

    return Net(run, make=conv(3, 10), dw=conv(10, 10, groups=10), read=conv(10, 8), norm=nn.GroupNorm(4, 8),
               fc=nn.Linear(8, 4))  # fmt: skip


def attention():
    def run(m, x):
        h = m.embed(x).flatten(2).transpose(1, 2)
        q, k, v = m.qkv(m.norm(h)).reshape(h.shape[0], -1, 3, m.num_heads, 4).permute(2, 0, 3, 1, 4)
        h = h + m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return m.fc(F.relu(m.mlp(h)).mean(1))

    net = Net(run, embed=nn.Conv2d(3, 8, 4, 4), norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24), out=nn.Linear(8, 8),
              mlp=nn.Linear(8, 12), fc=nn.Linear(12, 4))  # fmt: skip
    net.num_heads = 2
    return net


def inception():
    return inception_bn(num_classes=4, width=0.125)


NETS = {"residual": (residual, 8), "dense": (dense, 8), "separable": (separable, 8), "attention": (attention, 8),
        "inception": (inception, 64)}  # fmt: skip
SITES = {"residual": {"one.2": [3]}, "dense": {"layers.1.1": [3, 1]}}


def built(name):
    """A net in double precision, with parameters and statistics away from their defaults, and images for it."""
    build, size = NETS[name]
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        net = build().double()
    with torch.no_grad():
        for key, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point():
                draw = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(draw + 0.5 if key.endswith("running_var") or tensor.ndim == 1 else draw - 0.5)
    return net.eval(), torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64)


def digest(model):
    """Hashes of a model's record and of its tensors, these to 8 digits after the point: sums depend on the machine."""
    weights = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        weights.update(f"{key} {tuple(tensor.shape)}".encode())
        weights.update((tensor.double() * 1e8).round().to(torch.int64).numpy().tobytes())
    # Not all of a record says how to grow: what is beside these is for the reader, or follows from the class.
    how = ("op", "spaces", "tensors", "sites")
    kept = [{key: entry[key] for key in how if key in entry} for entry in history(model)]
    record = json.dumps(kept, sort_keys=True)
    return [hashlib.sha256(record.encode()).hexdigest()[:16], weights.hexdigest()[:16]]


def grown(name):
    net, x = built(name)
    found = {
        "widen 1.5": widen(net, x, 1.5, noise=0, seed=3),
        "widen 2 with noise": widen(net, x, 2, noise=0.1, exact=True, seed=3),
        "widen 1.5 with noise": widen(net, x, 1.5, noise=0.1, exact=False, seed=3),
        "random_pad 1.5": random_pad(net, x, 1.5, seed=3),
    }
    if name in SITES:
        found["deepen"] = deepen(net, x, SITES[name], [x], seed=3)
        found["deepen, widen"] = widen(found["deepen"], x, 1.5, noise=0, seed=4)
    return {key: digest(student) for key, student in found.items()}


@pytest.mark.parametrize("name", NETS)
def test_it_grows_as_before(name):
    assert grown(name) == json.loads(GROWTH.read_text())[name]


if __name__ == "__main__":
    GROWTH.write_text(json.dumps({name: grown(name) for name in NETS}, indent=1) + "\n")
