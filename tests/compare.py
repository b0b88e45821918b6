"""Whether two nets compute the same, two things are the same to the bit, and what a test asks of any student."""

import copy

import torch

from net2net import random_pad, verify, widen


def certify(teacher, student, inputs, *, evaluation=1e-10, training=1e-9, dtype=torch.float64, single=False):
    """The same function in evaluation and in training mode, up to a relative error; `single`: in float32, too.

    In training mode each new batch norm normalises by statistics that rounding has touched before. With training=None
    that mode is left out.
    """
    for train, limit in ((False, evaluation), (True, training)):
        if limit is not None:
            certificate = verify(teacher, student, inputs, train=train, dtype=dtype)
            assert certificate.relative <= limit or certificate.max_abs <= 1e-15, certificate
    if single:
        assert verify(teacher, student, inputs, dtype=torch.float32).relative <= 1e-5


def same(a, b):
    """Equal to the bit, whatever is nested in whatever; modules are compared by their state dicts."""
    if isinstance(a, torch.nn.Module):
        a, b = dict(a.state_dict()), dict(b.state_dict())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def weights(model):
    """A copy of all of a model's tensors, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def distinct(teacher, x, share=1e-3):
    """A teacher whose outputs differ from one example to the next: of another every student would pass for its own."""
    outputs = teacher.eval()(x)
    assert (outputs[0] - outputs[1]).abs().max() > share * outputs.abs().max()


def learns(student, x):
    """A step of training changes the parameters, and none becomes NaN."""
    before = weights(student.train())
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    student(x).square().mean().backward()
    optimizer.step()
    assert not any(p.isnan().any() for p in student.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in student.named_parameters())


def grown(net, x, factor=2, pad=False, **options):
    """A student that computes the same in both modes, of a teacher and inputs that stay as they are."""
    given, before = copy.deepcopy(x), weights(net)
    student = widen(net, x, factor, **options)
    certify(net, student, x, evaluation=1e-9)
    assert same(weights(net), before)
    assert same(x, given)
    if pad:
        assert shapes(random_pad(net, x, factor)) == shapes(student)
    return student
