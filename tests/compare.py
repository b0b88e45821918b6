"""Whether two nets compute the same, and whether two things are the same to the bit."""

import torch

from net2net import verify


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
