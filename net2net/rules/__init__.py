"""One small rule per operation: how channels pass through it.

A rule is called as `rule(trace, call)` after the operation ran on the meta device; it ties, fixes or contracts axes of
the arguments and returns the axes of the result, one per dimension (a list of these for several results). Rules are
found by the operation's name, so that `torch.relu`, `Tensor.relu_` and `torch.nn.functional.relu` are one. What an
operation without a rule reads and makes stays as it is, and is named.
"""

import difflib
from collections.abc import Callable
from typing import Any

from net2net.errors import GrowthError
from net2net.rules import contraction, elementwise, normalization, opaque, pooling, shape

Rule = Callable[..., list]

RULES: dict[str, Rule] = {
    **contraction.RULES,
    **elementwise.RULES,
    **normalization.RULES,
    **opaque.RULES,
    **pooling.RULES,
    **shape.RULES,
}


def register_rule(operation: Callable[..., Any] | str, rule: Rule | str) -> None:
    """Say how channels pass through an operation that has no rule, or has another one.

    operation   a torch function, e.g. `torch.fft.fft`, or its name
    rule        a function of (trace, call) that returns the axes of the result, or the name of an operation that treats
                channels in the same way, e.g. `net2net.register_rule(torch.special.i0, "relu")` for one that looks at
                every element by itself, `"layer_norm"` for one that needs all channels as they are
    """
    from net2net.recording import function_name

    if not callable(operation) and not isinstance(operation, str):
        raise GrowthError(f"register_rule: {operation!r} is no operation: expected a torch function, or its name")
    name = operation if isinstance(operation, str) else function_name(operation)
    if isinstance(rule, str):
        if rule not in RULES:
            near = ", ".join(difflib.get_close_matches(rule, RULES, 5) or ["relu", "layer_norm", "matmul"])
            raise GrowthError(f"register_rule: there is no rule called {rule!r}; there are {len(RULES)}, e.g. {near}")
        rule = RULES[rule]
    if not callable(rule):
        raise GrowthError(f"register_rule: {rule!r} is no rule: expected a function of (trace, call), or a name")
    RULES[name] = rule
