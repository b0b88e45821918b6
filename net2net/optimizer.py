"""An optimizer grown along with its model: what it remembers of the gradients, for the student's parameters.

Let a channel have n equal copies in a student without noise. Student and teacher compute the same function whatever the
teacher's weights are, so that by the chain rule the gradient of a teacher's entry is the sum of its copies' gradients,
each times what became of the entry's share: 1, or 1/n where a layer sums over the channel (sec 2.3). The copies' own
gradients are equal, because exchanging the copies changes nothing. Hence each of them has

    1/n   of its teacher's gradient along a dimension that makes the channels or follows them (filters, batch norm), and
    1     times its teacher's gradient along a dimension that is summed over: n copies, each with a share of 1/n.

What is linear in the gradients (momentum) goes by n, what is quadratic (second moments) by n²; for a tensor with
several such dimensions n is the product.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from net2net.errors import GrowthError
from net2net.growth import Growth
from net2net.history import GROWN_AS_FAR, history
from net2net.record import Inserted, entries_of, growth_of, inserted, misfit
from net2net.recording import PREFIXES, copied_value, unwrapped
from net2net.tensors import along

# How often the gradient is a factor of what an optimizer remembers.
_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
_RMSPROP = {"square_avg": 2, "grad_avg": 1, "momentum_buffer": 0}
DEGREES: dict[tuple[str, str], dict[str, int]] = {
    ("torch", "SGD"): {"momentum_buffer": 1},
    ("torch", "Adam"): _ADAM,
    ("torch", "NAdam"): _ADAM,
    ("torch", "RAdam"): _ADAM,
    ("torch", "Adamax"): {"exp_avg": 1, "exp_inf": 1},
    ("torch", "Adagrad"): {"sum": 2},
    ("torch", "Adadelta"): {"square_avg": 2, "acc_delta": 0},
    ("torch", "RMSprop"): _RMSPROP,
    ("torch", "Rprop"): {"prev": 1, "step_size": 0},
    ("torch", "Muon"): {"momentum_buffer": 1},
    ("timm", "RMSpropTF"): _RMSPROP,
    ("timm", "SGDW"): {"momentum_buffer": 1},
    ("timm", "AdamWLegacy"): _ADAM,
    ("timm", "NAdamW"): _ADAM,
    ("timm", "Lion"): {"exp_avg": 1},
    ("timm", "Lamb"): _ADAM,
    ("timm", "AdamP"): _ADAM,
    ("timm", "NAdamLegacy"): _ADAM,
    ("timm", "RAdamLegacy"): _ADAM,
    ("timm", "AdaBelief"): {"exp_avg": 1, "exp_avg_var": 2, "max_exp_avg_var": 2},
    ("timm", "Adan"): {"exp_avg": 1, "exp_avg_diff": 1, "exp_avg_sq": 2, "neg_pre_grad": 1},
    # These keep a mean of gradients that are normalised already.
    ("timm", "Adopt"): {"exp_avg": 0, "exp_avg_sq": 2},
    ("timm", "LaProp"): {"exp_avg": 0, "exp_avg_sq": 2},
    ("timm", "SGDP"): {"momentum": 1},
    ("timm", "Muon"): {"momentum_buffer": 1, **_ADAM},  # Adam's for what is no matrix
}
# Weights that are copied from the parameters where they are not there.
COPIES = ("lookahead_slow_buff",)
# Updates, i.e. gradients over the root of their own second moment: what is kept of them, to which power.
UPDATES = {"momentum_buffer": 1, "acc_delta": 2}
# What divides an update, or is a step size: it must not be zero where there is no history.
SIZES = (
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_avg_var",
    "max_exp_avg_var",
    "square_avg",
    "sum",
    "exp_inf",
    "step_size",
    "acc_delta",
)


@torch.no_grad()
def grow_optimizer(
    optimizer: torch.optim.Optimizer,
    student: nn.Module,
    growth: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    teacher: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """An optimizer for the student that goes on where its teacher's is.

        student = net2net.widen(teacher, x, 1.5)
        optimizer = net2net.grow_optimizer(optimizer, student, teacher=teacher)

    optimizer  of the teacher; it is left untouched
    student    from `widen`, `random_pad`, `deepen`, `replay`, or several of them in a row
    growth     entries of `history(student)`, oldest first, that lead from the optimizer's parameters to the student's;
               by default those that follow the teacher's history, or without `teacher` the last
    teacher    the model whose parameters the optimizer has. Not needed if it was built from `named_parameters()`

    Returns a new optimizer of the same class with the same groups and options. What it remembers of a widened
    parameter follows the same maps; along a dimension whose channels have n copies, unless the parameter sums over it,
    momentum (SGD, Adam, centred RMSProp) is divided by n and second moments (Adam, RMSProp, Adagrad) by n². RMSProp's
    momentum is of gradients that are normalised already: it is scaled by how their denominators changed, which is by
    nothing unless `eps` matters. For copies without noise this is the state that the student would have, had it been
    trained in its teacher's place; with noise it is close. Two things do not scale: the decay of weights that is part
    of the gradient (Adam's and SGD's `weight_decay`, not AdamW's) is carried over as if it did, and clipping by the
    gradients' norm meets smaller ones.

    In a student from `random_pad` old entries keep their state; new ones have momentum 0, and for a second moment the
    mean of the old ones': zero would make their first step a leap, with a bias correction that is over. Parameters of
    new layers start without state. They join the group of the nearest parameter before them with as many dimensions
    (after them, if there is none before). What the optimizer did not train stays out.

    Hooks and learning-rate schedulers stay with the old optimizer, and so does the `initial_lr` that a scheduler
    leaves in the groups: build a scheduler for the new one, after its `lr` is set. Raises `GrowthError` if the
    record does not lead from the optimizer's parameters to the student's, or if the optimizer keeps something that
    has no known rule; what only deepens needs none. These have rules: torch's SGD, Adam, AdamW, NAdam, RAdam,
    Adamax, Adagrad, Adadelta, RMSprop, Rprop and Muon; timm's SGDW, SGDP, RMSpropTF, AdamWLegacy, NAdamW,
    NAdamLegacy, RAdamLegacy, AdamP, AdaBelief, Adan, Adopt, LaProp, Lamb, Lion and Muon, and Lookahead around any
    of these, whose slow weights begin again at the student's. Of other wrappers pass what they wrap.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        wraps = next((k for k in ("optimizer", "_optimizer", "optim") if hasattr(optimizer, k)), None)
        cure = f": pass its {wraps!r}, and wrap the result again" if wraps else ""
        raise GrowthError(f"grow_optimizer takes a torch.optim.Optimizer, got a {type(optimizer).__name__}{cure}")
    for key, inner in vars(optimizer).items():
        if isinstance(inner, torch.optim.Optimizer):
            return _wrapped(optimizer, key, grow_optimizer(inner, student, growth, teacher=teacher))
    student, teacher = unwrapped(student), teacher if teacher is None else unwrapped(teacher)
    steps = [_Step(entry) for entry in _entries(student, growth, teacher)]
    degrees, new = _degrees(optimizer), dict(student.named_parameters())
    names = _names(optimizer, teacher)
    if teacher is None:
        names = _unprefixed(names, new)
    anew: list[nn.Parameter] = []
    memo: dict[int, Any] = {}  # old tensors by identity, and what copying the optimizer is to put in their place
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            old = name = names[parameter]
            shape, state = list(parameter.shape), dict(optimizer.state.get(parameter, {}))
            for step in steps:
                if step.growth is not None and (wanted := misfit(step.growth, name, shape)):
                    raise GrowthError(
                        f"the growth starts from {name!r} of shape {wanted}, and the optimizer's is {tuple(shape)}: "
                        "pass teacher= or growth=, so that it begins with the optimizer's model"
                    )
                state = step.grown(name, state, shape, degrees, group, optimizer)
                name, shape = step.renamed(name), step.shape(name, shape)
            if name not in new or list(new[name].shape) != shape:
                found = f"has it with {tuple(new[name].shape)}" if name in new else "does not have it"
                raise GrowthError(
                    f"the growth makes {name!r} of shape {tuple(shape)} of {old!r}, and the student {found}: "
                    "pass teacher= or growth=history(student), so that nothing is left out"
                )
            memo[id(parameter)] = new[name]
            if not state:
                anew.append(new[name])
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and key in state:
                    memo[id(value)] = _placed(state[key], value, parameter, new[name])
    grown = copy.deepcopy(optimizer, memo)
    _attributes(optimizer, grown, memo)
    for group in grown.param_groups:
        group.pop("initial_lr", None)  # of the old schedule: a new one would begin with it, whatever lr is set to
    for parameter in anew:
        grown.state.pop(parameter, None)
        _begin(grown, parameter)
    called = {parameter: name for name, parameter in new.items()}
    for group in grown.param_groups:
        if "param_names" in group:
            group["param_names"] = [called[parameter] for parameter in group["params"]]
    _add(grown, new, steps)
    return grown


def _attributes(optimizer: torch.optim.Optimizer, grown: torch.optim.Optimizer, memo: dict[int, Any]) -> None:
    """Give a copied optimizer what its class keeps in attributes, which PyTorch leaves out of a copy."""
    for key, value in vars(optimizer).items():
        if key in vars(grown) or key == "step":  # a schedule puts its own step there
            continue
        if any(isinstance(leaf, nn.Parameter) for leaf in pytree.tree_leaves(value)):
            kind = type(optimizer).__name__
            raise GrowthError(f"{kind} keeps parameters of its own in {key!r}: build a new optimizer for the student")
        vars(grown)[key] = copied_value(value, memo)


def _wrapped(optimizer: torch.optim.Optimizer, key: str, inner: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """timm's Lookahead around a grown optimizer."""
    kind = type(optimizer)
    if kind.__module__.partition(".")[0] != "timm" or kind.__name__ != "Lookahead":
        raise GrowthError(f"{kind.__name__} wraps another optimizer: pass its {key!r}, and wrap the result again")
    group = optimizer.param_groups[0]
    wrapped = kind(inner, alpha=group["lookahead_alpha"], k=group["lookahead_k"])
    for state in inner.state.values():
        for copied in COPIES:
            state.pop(copied, None)
    return wrapped


class _Step:
    """One entry of the record: what becomes of a parameter's name, its shape and its state."""

    def __init__(self, entry: Mapping[str, Any]):
        self.inserted = list(inserted(entry)) if entry["op"] == "deepen" else []
        self.growth: Growth | None = growth_of(entry) if "spaces" in entry else None
        # The outputs of layers that start anew, by parameter.
        heads = {name: head["to"] for name, head in entry.get("heads", {}).items()}
        self.renewed = {f"{name}.{own}": n for name, n in heads.items() for own in ("weight", "bias")}
        self.padded = entry["op"] == "random_pad"
        scales = {} if self.growth is None or self.padded else self.growth.scales
        self.renormed = {name for g, (v, _) in scales.items() if self.growth.renormed(g) for name in (g, v)}
        if self.growth is not None and not self.padded:
            self.renormed.update(self.growth.standardised)

    def renamed(self, name: str) -> str:
        return _renamed(name, self.inserted)

    def added(self) -> list[str]:
        """The beginnings of the names of new parameters."""
        return [
            _renamed(f"{site.name}.{entry}.", self.inserted[k + 1 :])
            for k, site in enumerate(self.inserted)
            for entry in range(site.length)
            if entry != site.place
        ]

    def shape(self, name: str, shape: list[int]) -> list[int]:
        if name in self.renewed:
            return [self.renewed[name], *shape[1:]]
        return shape if self.growth is None else self.growth.shape(name, tuple(shape))

    def grown(
        self,
        name: str,
        state: dict[str, Any],
        shape: list[int],
        degrees: Mapping[str, int],
        group: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, Any]:
        """The state of a parameter with this name and shape, after the growth: empty for one that starts anew."""
        if name in self.renewed:
            return {}
        kept = [
            key
            for key, value in state.items()
            if value is not None and key not in (*COPIES, "step") and not _is_number(value, shape)
        ]
        if kept and name in self.renormed:
            raise GrowthError(
                f"{type(optimizer).__name__} keeps {kept[0]!r} of {name!r}, and where a weight is normalised its "
                "student's gradient does not follow from it: start a new optimizer for the student"
            )
        if self.growth is None or name not in self.growth.tensors:
            return state
        n, fresh = torch.ones((), dtype=torch.int64, device="cpu"), torch.zeros((), dtype=torch.bool, device="cpu")
        axes = self.growth.axes(name)
        for dim, axis in axes.items():
            fresh = fresh | axis.fresh.view(along(dim, len(shape)))
            if self.growth.tensors[name][dim].role != "sums":
                n = n * axis.copies.view(along(dim, len(shape)))
        copied = dict(state)
        if state.get("use_muon") and "exp_avg_sq" in kept:  # AdaMuon's, of what it has made orthogonal
            degrees = {}
        for key in kept:
            value = state[key]
            if isinstance(value, torch.Tensor) and list(value.shape) != shape:
                raise GrowthError(
                    f"{type(optimizer).__name__} keeps {key!r} of {name!r} as {tuple(value.shape)}, not entry by entry "
                    f"(the parameter is {tuple(shape)}): start a new optimizer for the student"
                )
            if key not in degrees or not isinstance(value, torch.Tensor):
                raise GrowthError(
                    f"{type(optimizer).__name__} keeps {key!r} of {name!r}, and how it grows is not known: "
                    "start a new optimizer for the student"
                )
            for dim, axis in axes.items():
                value = value.index_select(dim, axis.index.to(value.device))
            copied[key] = value
        done = dict(copied)
        for key in kept:
            value = copied[key]
            if self.padded:
                empty = state[key].mean() if key in SIZES else state[key].new_zeros(())
                done[key] = torch.where(fresh.to(value.device), empty, value)
            elif degrees[key]:
                power = n.to(value) ** degrees[key]
                # What the state began with was never a gradient. For s = start + gradients: start + gradients / power.
                start = _start(optimizer, group, state) if key in ("square_avg", "sum") else 0.0
                done[key] = value / power + start * (1 - 1 / power)
        if not self.padded and "square_avg" in kept:
            for key in (key for key in UPDATES if key in kept):
                before, after = (_denominator(optimizer, group, each) for each in (copied, done))
                ratio = torch.where(after > 0, before / (after * n.to(after)), 1.0)
                done[key] = copied[key] * ratio ** UPDATES[key]
        return done


def _renamed(name: str, inserted: list[Inserted]) -> str:
    for site in inserted:
        if name.startswith(f"{site.name}."):
            name = f"{site.name}.{site.place}{name.removeprefix(site.name)}"
    return name


def _start(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    """How much of a second moment is what it was begun with."""
    if "initial_accumulator_value" in group:  # Adagrad
        return float(group["initial_accumulator_value"])
    if _kind(optimizer) == ("timm", "RMSpropTF"):  # begins with ones, as TensorFlow's
        return float(group["alpha"]) ** float(state["step"])
    return 0.0


def _denominator(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> torch.Tensor:
    """What RMSProp and Adadelta divide a gradient by."""
    square = state["square_avg"]
    if state.get("grad_avg") is not None:
        square = (square - state["grad_avg"].square()).clamp_min(0)
    if _kind(optimizer) == ("torch", "RMSprop"):
        return square.sqrt() + group["eps"]
    return (square + group["eps"]).sqrt()


def _kind(optimizer: torch.optim.Optimizer) -> tuple[str, str] | None:
    """The library and name of the class, or of the nearest it derives from, that is in `DEGREES`."""
    kinds = ((cls.__module__.partition(".")[0], cls.__name__) for cls in type(optimizer).__mro__)
    return next((kind for kind in kinds if kind in DEGREES), None)


def _degrees(optimizer: torch.optim.Optimizer) -> Mapping[str, int]:
    kind = _kind(optimizer)
    return DEGREES[kind] if kind else {}


def _is_number(value: Any, shape: list[int]) -> bool:
    """Whether it is the same for all entries of the parameter, e.g. the number of steps."""
    return isinstance(value, (bool, int, float)) or (
        isinstance(value, torch.Tensor) and value.ndim == 0 and shape != []
    )


def _placed(value: torch.Tensor, old: torch.Tensor, parameter: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """A tensor of the state where the student's parameter is, in the same memory layout: fused kernels count on it."""
    device = new.device if old.device == parameter.device else old.device
    if value.shape != new.shape:
        return value.to(device, copy=True)
    return torch.empty_like(new, dtype=value.dtype, device=device, requires_grad=False).copy_(value)


def _entries(student: nn.Module, growth: Any, teacher: nn.Module | None) -> list[Mapping[str, Any]]:
    if growth is not None:
        return entries_of(growth)
    entries, done = history(student), history(teacher) if teacher is not None else history(student)[:-1]
    if entries[: len(done)] != done:
        raise GrowthError(
            "the student's history does not begin with the teacher's: pass growth=, the entries between them"
        )
    if len(entries) == len(done):
        if entries:
            raise GrowthError(f"teacher= {GROWN_AS_FAR}: pass the model that the optimizer was built for")
        raise GrowthError("the student has no growth on record: pass one that net2net returned, or growth=")
    return entries_of(entries[len(done) :])


def _names(optimizer: torch.optim.Optimizer, teacher: nn.Module | None) -> dict[torch.Tensor, str]:
    """The optimizer's parameters, and what the teacher calls them."""
    names: dict[torch.Tensor, str] = {}
    known = {} if teacher is None else {parameter: name for name, parameter in teacher.named_parameters()}
    for k, group in enumerate(optimizer.param_groups):
        if teacher is None and "param_names" not in group:
            raise GrowthError(
                "the optimizer does not know its parameters' names: pass teacher=, the model that they belong to"
            )
        for at, parameter in enumerate(group["params"]):
            if teacher is not None and parameter not in known:
                raise GrowthError(
                    f"parameter {at} of the optimizer's group {k}, of shape {tuple(parameter.shape)}, is none of the "
                    "teacher's: pass the model that the optimizer was built for"
                )
            names[parameter] = group["param_names"][at] if teacher is None else known[parameter]
    return names


def _unprefixed(names: dict[torch.Tensor, str], known: Iterable[str]) -> dict[torch.Tensor, str]:
    """The names without what a wrapper of the teacher put before all of them."""
    while prefix := next((p for p in PREFIXES if names and all(name.startswith(p) for name in names.values())), None):
        if any(name.startswith(prefix) for name in known):  # the model has such a module itself
            break
        names = {parameter: name.removeprefix(prefix) for parameter, name in names.items()}
    return names


def _add(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], steps: list[_Step]) -> None:
    """Put the parameters of new layers into the groups: in the student's order where the groups are in it."""
    beginnings: list[str] = []
    for step in steps:
        beginnings = [step.renamed(beginning) for beginning in beginnings] + step.added()
    number = {parameter: k for k, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
    order = [(name, p, name.startswith(tuple(beginnings))) for name, p in parameters.items()]
    for at, (name, new, is_new) in enumerate(order):
        if not is_new or not new.requires_grad or new in number:
            continue
        others = [p for _, p, its_new in (*reversed(order[:at]), *order[at:]) if not its_new]
        around = [p for p in others if p.requires_grad or p in number]
        nearest = next((p for p in around if p.ndim == new.ndim), around[0])
        if nearest not in number:  # another optimizer's, or nobody's
            continue
        if _kind(optimizer) == ("torch", "Muon") and new.ndim != 2:
            warnings.warn(
                f"{name!r} is no matrix, which is all that Muon takes: give it another optimizer", stacklevel=3
            )
            continue
        number[new] = number[nearest]
        group = optimizer.param_groups[number[new]]
        earlier = {p for _, p, _ in order[:at]}
        place = max((k + 1 for k, p in enumerate(group["params"]) if p in earlier), default=0)
        group["params"].insert(place, new)
        if "param_names" in group:
            group["param_names"].insert(place, name)
        _begin(optimizer, new)


def _begin(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """The state of a new parameter, of optimizers that do not wait for its first gradient."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    if isinstance(optimizer, torch.optim.Adagrad):
        start = torch.full_like(parameter, group["initial_accumulator_value"], memory_format=torch.preserve_format)
        optimizer.state[parameter] = {"step": torch.tensor(0.0, device="cpu"), "sum": start}
    begun = any("momentum_buffer" in optimizer.state.get(p, {}) for p in group["params"])
    if isinstance(optimizer, torch.optim.SGD) and group.get("fused") and begun:  # its kernel takes all momenta or none
        empty = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        optimizer.state[parameter] = {"momentum_buffer": empty}
    if type(optimizer).__name__ == "Adahessian":  # timm's notes these when it is made
        parameter.hess = 0.0
        optimizer.state[parameter]["hessian step"] = 0
