"""One small rule per operation: how channels pass through it.

A rule is called as `rule(trace, call)` after the operation ran on the meta device; it ties, fixes or contracts axes of
the arguments and returns the axes of the result, one per dimension. Rules are found by the operation's name, so that
`torch.relu`, `Tensor.relu_` and `torch.nn.functional.relu` are one. An operation without a rule is an error.
"""

from net2net.rules import contraction, elementwise, normalization, pooling, shape

RULES = {
    **contraction.RULES,
    **elementwise.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **shape.RULES,
}
