"""What was grown in a student, and what stayed and why: its record as a table."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from net2net.errors import GrowthError
from net2net.history import GROWN_AS_FAR, history
from net2net.names import naming
from net2net.outside import left_alone
from net2net.record import entries_of, growth_of, inserted, misfit
from net2net.recording import as_arguments, first_line, on_meta, seeded, tensors, uncompiled, unwrapped

SHOWN = 12  # rows of a list that can be long


class Summary(NamedTuple):
    """What a record says of a student. Printed, it is a table.

    parameters  before and after
    macs        multiply-accumulates of one example before and after; None where they are not known
    grew        {"made_by": modules, "from", "to"} for channels that were widened, as the first of these modules has
                them; with a "note" where it is not the width that was asked for
    inserted    {"after": site, "layers"} for each site that was deepened
    heads       {"module", "from", "to"} for each new classifier
    stayed      {"made_by", "width", "reason"} for each channel space that the last widening left as it was
    numbers     integers that modules keep of their widths and that follow, by module and attribute
    unclear     integers that may have to follow, where it is not clear: they are as in the teacher
    """

    parameters: tuple[int, int]
    macs: tuple[int | None, int | None]
    grew: list[dict[str, Any]]
    inserted: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    stayed: list[dict[str, Any]]
    numbers: dict[str, dict[str, Any]]
    unclear: dict[str, list[str]]

    def __str__(self) -> str:
        return self.table()

    def table(self, every: bool = False) -> str:
        """The table; `every`: all rows, however many."""
        return "\n".join([*costs(self.parameters, self.macs), *self.growth(every)]).rstrip()

    def growth(self, every: bool = False, hint: str = "") -> list[str]:
        """Its lines on what grew and what did not; `hint` says how to see all rows."""
        most, names = (sys.maxsize, sys.maxsize) if every else (SHOWN, 3)
        lines: list[str] = []
        if self.grew:
            lines += ["", f"{plural(len(self.grew), 'channel space')} grew:"]
            notes = [f" ({r['note']})" if r.get("note") else "" for r in self.grew]
            cells = [
                (f"{r['from']} -> {r['to']}", few(r["made_by"], names) + note)
                for r, note in zip(self.grew, notes, strict=True)
            ]
            wide = max(len(cell) for cell, _ in cells[:most])
            lines += _rows([f"{cell.rjust(wide)}  {makers}" for cell, makers in cells], most, hint)
        if self.inserted:
            lines += ["", f"{plural(sum(len(row['layers']) for row in self.inserted), 'layer')} inserted:"]
            places = [r["after"] if r["after"].startswith("before ") else f"after {r['after']}" for r in self.inserted]
            wide = max(map(len, places[:most]))
            layers = [", ".join(map(_layer, r["layers"])) for r in self.inserted]
            lines += _rows([f"{p.ljust(wide)}  {its}" for p, its in zip(places, layers, strict=True)], most, hint)
        for row in self.heads:
            lines += ["", f"new head: {row['module']}, {row['from']} -> {row['to']} outputs, initialised anew"]
        if self.stayed:
            lines += ["", f"{plural(len(self.stayed), 'channel space')} did not:"]
            by_reason: dict[str, list[str]] = {}
            for row in self.stayed:  # the same reason in every block of a network is one
                reason = row["reason"] if every else re.sub(r" in module '[^']*'", "", row["reason"])
                by_reason.setdefault(reason, []).append(few(row["made_by"], names))
            lines += [f"  {len(makers):>3}  {reason}: {few(makers, names)}" for reason, makers in by_reason.items()]
        kept = [_at(module, key) for module, values in self.numbers.items() for key in values]
        if kept:
            lines += ["", f"{plural(len(kept), 'number')} of modules follow: {few(kept, names)}"]
        unclear = [_at(module, key) for module, keys in self.unclear.items() for key in keys]
        if unclear:
            lines += ["", f"as before, because it is not clear what they follow: {few(unclear, names)}"]
        return lines


def summary(student: nn.Module, example_inputs: Any = None, teacher: nn.Module | None = None) -> Summary:
    """What was grown in a student, what stayed and why, and what it costs. Printed, it is a table.

        print(net2net.summary(student, images, teacher))

    student         from `widen`, `random_pad`, `deepen`, `replay`, or several of them in a row
    example_inputs  for the multiply-accumulates of one example; without, they are left out
    teacher         for its own multiply-accumulates; where it was grown itself, only what came after counts

    Raises `GrowthError` for a model that was not grown.
    """
    student, teacher = unwrapped(student), teacher if teacher is None else unwrapped(teacher)
    entries = entries_of(history(student))
    done = history(teacher) if teacher is not None else []
    if not entries or entries[: len(done)] != done or len(entries) == len(done):
        if entries and entries == done:
            raise GrowthError(f"teacher= {GROWN_AS_FAR}: pass the model that it was grown from")
        whose = "the student has no growth on record" if not entries else "the student's history is not the teacher's"
        raise GrowthError(f"{whose}: pass a model that net2net returned" + (", and its teacher" if done else ""))
    new = entries[len(done) :]
    if teacher is not None:
        _check_teacher(teacher, new[0])
    after = {name: tuple(p.shape) for name, p in student.named_parameters()}
    models = {"teacher": teacher, "student": student}
    cost: list[int | None] = []
    for who, model in models.items():
        cost.append(None if example_inputs is None or model is None else macs(model, example_inputs, who))
    widened = [entry for entry in new if "spaces" in entry]
    stayed = _stayed(widened[-1], student) if widened else []
    return Summary(
        (_size(before(new, after)), _size(after)),
        (cost[0], cost[1]),
        [row for entry in widened for row in _grew(entry, student)],
        [{"after": site, "layers": layers} for e in new for site, layers in e.get("sites", {}).items()],
        [{"module": name, **head} for e in new for name, head in e.get("heads", {}).items()],
        stayed,
        _merged(new, "attributes"),
        _merged(new, "unclear"),
    )


def _check_teacher(teacher: nn.Module, entry: Mapping[str, Any]) -> None:
    """Refuse a model that a record does not begin with."""
    grown = growth_of(entry) if "spaces" in entry else None
    known = {name: tuple(tensor.shape) for name, tensor in tensors(teacher)}
    for name in grown.tensors if grown is not None else ():
        if name not in known or (wanted := misfit(grown, name, known[name])):
            has = f"has it with {known[name]}, not {wanted}" if name in known else "does not have it"
            raise GrowthError(
                f"the student was grown from a model with {name!r}, and teacher= {has}: pass the model that it was "
                "grown from"
            )


def _grew(entry: Mapping[str, Any], student: nn.Module) -> list[dict[str, Any]]:
    """The widths of the layers that make channels: a space comes several times in them where it holds groups or heads,
    and several spaces are parts of one layer."""
    growth = growth_of(entry)
    rows: list[dict[str, Any]] = []
    called = _naming(entry, student)
    for k, space in enumerate(growth.spaces):
        makes = [how for name in space.made_by[:1] for how in growth.tensors[name].values() if how.role == "makes"]
        blocks = [b for how in makes[:1] for b in how.blocks if not isinstance(b, int)]
        step = sum(repeat for number, repeat in blocks if number == k) or 1
        row = {
            "made_by": list(dict.fromkeys(map(called, space.made_by))),
            "from": space.width * step,
            "to": len(space.g) * step,
        }
        row |= {"note": space.note} if space.note else {}
        if rows and len(blocks) > 1 and rows[-1]["made_by"] == row["made_by"]:
            row |= {key: rows[-1][key] + row[key] for key in ("from", "to")}
            rows.pop()
        rows.append(row)
    return rows


def _stayed(entry: Mapping[str, Any], student: nn.Module) -> list[dict[str, Any]]:
    called = _naming(entry, student)
    return [{**row, "made_by": list(dict.fromkeys(map(called, row["made_by"])))} for row in entry.get("stayed", ())]


def _naming(entry: Mapping[str, Any], student: nn.Module) -> Callable[[str], str]:
    return naming(student, [row["made_by"] for row in (*entry["spaces"], *entry.get("stayed", ()))])


def _merged(entries: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        for module, values in entry.get(key, {}).items():
            known = found.get(module)
            found[module] = values if known is None else {**known, **values} if isinstance(values, dict) else values
    return found


def before(entries: Sequence[Mapping[str, Any]], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a teacher's parameters, from those of its student and the record between them."""
    found = {name: list(shape) for name, shape in shapes.items()}
    for entry in reversed(entries):
        if entry["op"] == "deepen":
            for site in reversed(list(inserted(entry))):
                own = {f"{site.name}.{k}." for k in range(site.length) if k != site.place}
                found = {name: shape for name, shape in found.items() if not name.startswith(tuple(own))}
                inner = f"{site.name}.{site.place}."
                found = {
                    f"{site.name}.{n.removeprefix(inner)}" if n.startswith(inner) else n: s for n, s in found.items()
                }
        elif entry["op"] == "new_head":
            for module, head in entry["heads"].items():
                for name in (f"{module}.weight", f"{module}.bias"):
                    if name in found:
                        found[name][0] = head["from"]
        else:
            growth = growth_of(entry)
            for name, dims in growth.tensors.items():
                for dim, how in dims.items() if name in found else ():
                    found[name][dim] = sum(
                        b if isinstance(b, int) else growth.spaces[b[0]].width * b[1] for b in how.blocks
                    )
    return {name: tuple(shape) for name, shape in found.items()}


def _size(shapes: Mapping[str, Sequence[int]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def macs(model: nn.Module, inputs: Any, who: str = "model") -> int | None:
    """Multiply-accumulates of one example in evaluation mode; None for a model that does not run on the meta device,
    with a warning."""
    one = pytree.tree_map_only(torch.Tensor, lambda t: torch.empty_like(t[:1], device="meta"), inputs)
    args, kwargs = as_arguments(one)
    skeleton = on_meta(model).eval()
    try:
        with left_alone(skeleton), uncompiled(), seeded(()), FlopCounterMode(display=False) as counter:
            skeleton(*args, **kwargs)
    except Exception as error:
        warnings.warn(
            f"the multiply-accumulates of the {who} are not known: it does not run without data on one of the example "
            f"inputs ({type(error).__name__}: {first_line(error)})",
            stacklevel=3,
        )
        return None
    return counter.get_total_flops() // 2


def costs(parameters: Sequence[int], macs: Sequence[int | None]) -> list[str]:
    """Parameters and multiply-accumulates of teacher and student, as lines."""
    (old, new), (cost, costs) = parameters, macs
    rows = [("", "teacher", "student", ""), ("parameters", f"{old:,}", f"{new:,}", f"x {new / max(old, 1):.2f}")]
    if costs:
        known = (_in_units(cost), _in_units(costs), f"x {costs / cost:.2f}") if cost else ("", _in_units(costs), "")
        rows.append(("MACs per example", *known))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = []
    for name, *cells, ratio in rows:
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(f"{name.ljust(widths[0])}  {numbers}  {ratio}".rstrip())
    return lines


def few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _at(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def _rows(lines: list[str], most: int, hint: str) -> list[str]:
    rest = [f"  and {len(lines) - most} more{hint}"] if len(lines) > most else []
    return [f"  {line}" for line in lines[:most]] + rest


def _layer(layer: Any) -> str:
    """A new layer of the record: its kernel, with what is unusual about it."""
    if not isinstance(layer, dict):
        return "x".join(map(str, layer))
    if "block" in layer:
        return "block"
    words = ["x".join(map(str, layer["kernel"])) or "linear"]
    words += ["dilated"] if any(d > 1 for d in layer.get("dilation", ())) else []
    words += [word for word in ("depthwise", "maxout") if layer.get(word)]
    return " ".join(words)


def _in_units(macs: int) -> str:
    return f"{macs / 1e9:.3f} G" if macs >= 1e8 else f"{macs / 1e6:.3f} M" if macs >= 1e5 else f"{macs:,}"
