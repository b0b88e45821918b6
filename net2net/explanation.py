"""What can grow in a model, and what cannot and why: how a user finds out what to ask for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from torch import nn

from net2net.errors import GrowthError
from net2net.names import naming, owner
from net2net.plan import plan_growth
from net2net.recording import place, undisturbed, unwrapped
from net2net.residual import works
from net2net.sites import BEFORE, Site
from net2net.spaces import resolve
from net2net.trace import Trace, traced


class SpaceRow(NamedTuple):
    """Channels that grow together: how many their first layer has; `fixed` says why they cannot grow, None if they can;
    `whole`: by whole-number factors only; `step`: so many at a time, e.g. whole groups or heads."""

    width: int
    made_by: list[str]
    read_by: list[str]
    fixed: str | None
    whole: bool
    step: int = 1

    @property
    def how(self) -> str:
        """By which factors they grow, or why they do not, in words."""
        if self.fixed or self.whole:
            return self.fixed or "by whole factors: 2, 3, …"
        return "by any factor" if self.step == 1 else f"in steps of {self.step}"


class Explanation(NamedTuple):
    """The channel spaces of a model in the order of its forward pass, the sites that `deepen` takes, and the operations
    that no rule covers, by name with the modules that call them: what these read and make stays as it is."""

    spaces: list[SpaceRow]
    sites: dict[str, str]
    unknown: dict[str, list[str]] = {}  # noqa: RUF012  a named tuple's defaults are shared, and nobody changes it

    def __str__(self) -> str:
        rows = [("width", "made by", "read by", "widen")]
        rows += [(str(r.width), _few(r.made_by), _few(r.read_by), r.how) for r in self.spaces]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        if self.unknown:
            lines += [
                "",
                "no rule covers:",
                *(f"  {name}  in {_few(map(place, at))}" for name, at in self.unknown.items()),
            ]
        lines += ["", "deepen after:", *(f"  {name}  {what}" for name, what in self.sites.items())]
        return "\n".join(
            lines
            if self.sites
            else [
                *lines[:-1],
                "deepen after: nowhere, no site ends in ReLU, ReLU6, hardtanh or maxout, or is a residual block",
            ]
        )


@undisturbed()
def explain(model: nn.Module, example_inputs: Any, *, strict: bool = False) -> Explanation:
    """What can grow in a model. Printed, it is a table.

    The channel spaces (who makes them, who reads them, how wide, whether they can grow or why not), and the sites at
    which it can be deepened. Whether code counts on a width, as `view(n, 64)` does, is tried out at twice the widths.

    model           any `nn.Module`; it is left untouched
    example_inputs  a tensor, a tuple of arguments or a dict of keyword arguments that `model` accepts

    strict          raise `UnsupportedOperation` for an operation that no rule covers, as `widen` does
    """
    model = unwrapped(model)
    trace = traced(model, example_inputs, strict=strict)
    with suppress(GrowthError):  # nothing can grow: the reasons are in the trace all the same
        plan_growth(trace, example_inputs, 2)
    producers, readers = trace.producers(), {}
    called = naming(trace.skeleton, producers.values())
    for name, axes in trace.axes.items():
        for dim, axis in enumerate(axes):
            if (name, dim) in trace.contracted:
                for space in dict.fromkeys(space for space, _ in resolve(axis or ())):
                    readers.setdefault(space, []).append(called(name))
    spaces: list[SpaceRow] = []
    steps, last = trace.steps(), None
    for space, weights in producers.items():
        group, step = trace.uniform.get(space), steps.get(space, 1)
        made = list(dict.fromkeys(map(called, weights)))
        row = SpaceRow(space.width * step, made, readers.get(space, []), space.fixed, group is not None, step)
        # The parts of a layer that grow by the same factor are one for the reader.
        if group is not None and last is not None and last in group and spaces[-1][1:4] == row[1:4]:
            row = row._replace(width=row.width + spaces.pop().width)
        spaces.append(row)
        last = space
    return Explanation(spaces, deepenable(trace), trace.unknown)


def deepenable(trace: Trace) -> dict[str, str]:
    """What `deepen` can be asked for, by site: after a module, or before one whose input no module of its own makes."""
    sites, made = {}, set()
    for name in trace.returned:
        site = _site(trace, name) if name else None
        if site is not None:
            made.add(id(site.value))
        block = name and works(trace, name)
        if site is not None or block:
            sites[name] = ", or ".join([*([str(site)] if site else []), *(["a 'block'"] if block else [])])
    for name, values in trace.given.items():
        # What the first module inside another reads is what that one reads: the outer of the two is enough.
        if name and values[0] is not None and id(values[0]) not in made and values[0].call is not None:
            outer = trace.given.get(owner(name), [None])[0]
            site = None if outer is values[0] and owner(name) else _site(trace, BEFORE + name)
            if site is not None and site.call is values[0].call:
                sites[BEFORE + name] = str(site)
    return sites


def _site(trace: Trace, key: str) -> Site | None:
    try:
        return Site(trace, key, [1])
    except GrowthError:
        return None


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
