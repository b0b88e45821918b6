"""What a growth in width is: maps from new channels to old ones, and which tensors follow them along which dimensions.

It is found by `net2net.plan` from a trace of the model and kept with the student as plain data (`Growth.record`). It
holds all that is needed to do the same to another copy of the teacher (`Growth.of`), its optimizer, or random pad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from net2net.errors import GrowthError
from net2net.names import owner
from net2net.recording import local, rebuilt, warn_of_hooks
from net2net.seeds import generator_for
from net2net.tensors import along, blocks_of, empty_like, get_tensor, normal
from net2net.widths import note_widths, recompute, set_number

# Along one dimension of a tensor: (k, repeat) for the channels of the k-th space in order, each repeated `repeat` times
# in a row, or a number of positions that stay as they are.
Blocks = tuple[tuple[int, int] | int, ...]


class AxisMap(NamedTuple):
    """How one axis of a parameter grows, for its n' new positions.

    index   [n'] the old position each new one copies
    copies  [n'] the replication factor |{x : g(x) = g(j)}| of the channel at each new position
    fresh   [n'] whether the position is a copy, i.e. not the first of its channel
    """

    index: torch.Tensor
    copies: torch.Tensor
    fresh: torch.Tensor


class Channels(NamedTuple):
    """One channel space that grows: `g` [n'] is its map to `width` old channels, the identity for the first of them.

    note  for the reader, where it does not grow just as was asked
    """

    made_by: list[str]
    width: int
    g: torch.Tensor
    note: str = ""


class Along(NamedTuple):
    """How a tensor takes part in a dimension that grows.

    role    "makes": its rows make the channels; "sums": it sums over them, so that copies share their weight;
            "follows": it has an entry for each, e.g. of a batch norm
    """

    role: str
    blocks: Blocks


ROLES = ("makes", "sums", "follows")
# What data of the wrong kind makes of the code that reads it.
WRONG_DATA = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError)


class Growth:
    """Which channel spaces grow by which maps, and what follows them.

    spaces      the maps
    tensors     by name of a parameter or buffer and dimension, how it follows
    attributes  numbers that modules keep beside their tensors and that grow, by module name and attribute, e.g. a
                number of groups; inside lists, dicts and objects by a path, e.g. "feature_info.0.num_chs"
    stayed      the channel spaces that did not grow, and why: {"made_by", "width", "reason"}; for the reader alone
    unclear     likewise those that may have to grow: channels of that width there grow differently; they stay
    held        how many channel spaces could not grow, by reason; for the reader alone
    unknown     operations that no rule covers, with the modules that call them; for the reader alone
    scales      weights under weight normalisation, g * v / |v|: the name of g -> the name of v, and the dimension with
                a norm for each position (-1: one norm for all)
    standardised  weights that are standardised, filter by filter, and whose layers grow in what they read, with the
                correction of the variance
    """

    def __init__(
        self,
        spaces: list[Channels],
        tensors: dict[str, dict[int, Along]],
        attributes: dict[str, dict[str, Any]],
        held: dict[str, int] | None = None,
        unclear: dict[str, list[str]] | None = None,
        unknown: dict[str, list[str]] | None = None,
        scales: dict[str, tuple[str, int]] | None = None,
        standardised: dict[str, int] | None = None,
    ):
        self.spaces = spaces
        self.tensors = tensors
        self.attributes = attributes
        self.held = held or {}
        self.unclear = unclear or {}
        self.stayed: list[dict[str, Any]] = []
        self.unknown = unknown or {}
        self.scales = scales or {}
        self.standardised = standardised or {}
        self._axes: dict[Blocks, AxisMap] = {}
        self._pieces: dict[tuple[int, int] | int, AxisMap] = {}

    def axes(self, name: str) -> dict[int, AxisMap]:
        """The maps of a tensor, by dimension; empty for one that does not grow."""
        return {dim: self.axis(along.blocks) for dim, along in self.tensors.get(name, {}).items()}

    def axis(self, blocks: Blocks) -> AxisMap:
        """The maps of an axis' blocks one after the other, shifted by the old widths before them (sec 2.3)."""
        if blocks not in self._axes:
            parts, index, offset = [self._piece(block) for block in blocks], [], 0
            for block, part in zip(blocks, parts, strict=True):
                index.append(part.index + offset)
                offset += block if isinstance(block, int) else self.spaces[block[0]].width * block[1]
            rest = (torch.cat([part[k] for part in parts]) for k in (1, 2))
            self._axes[blocks] = AxisMap(torch.cat(index), *rest)
        return self._axes[blocks]

    def _piece(self, block: tuple[int, int] | int) -> AxisMap:
        if block not in self._pieces:
            if isinstance(block, int):
                every = torch.arange(block, device="cpu")
                piece = AxisMap(every, torch.ones_like(every), torch.zeros(block, dtype=torch.bool, device="cpu"))
            else:
                space, repeat = self.spaces[block[0]], block[1]
                index = (space.g[:, None] * repeat + torch.arange(repeat, device="cpu")).flatten()
                counts = torch.bincount(space.g, minlength=space.width)[space.g]
                fresh = torch.arange(len(space.g), device="cpu") >= space.width
                piece = AxisMap(index, counts.repeat_interleave(repeat), fresh.repeat_interleave(repeat))
            self._pieces[block] = piece
        return self._pieces[block]

    def shape(self, name: str, shape: tuple[int, ...]) -> list[int]:
        """The new shape of a tensor."""
        new = list(shape)
        for dim, axis in self.tensors.get(name, {}).items():
            new[dim] = sum(b if isinstance(b, int) else len(self.spaces[b[0]].g) * b[1] for b in axis.blocks)
        return new

    def copied(self, model: nn.Module, divided: bool = True, seed: int = 0) -> nn.Module:
        """A wider copy of the model, each parameter and buffer indexed by its maps.

        What a layer sums over is `divided` by the replica counts, the first copy's share too. `seed`: of how weights
        that are standardised differ over the copies.
        """

        def make(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if divided and name in self.standardised and not tensor.is_meta:
                return self._levelled(name, tensor.detach(), seed)
            return _copied(tensor.detach(), self.axes(name), self._shared(name) if divided else ())

        warn_of_hooks(model)
        student = rebuilt(model, make)
        with torch.no_grad():
            self.rescale(student, {g: norm for g, norm in self.norms(model, True).items() if self.renormed(g)})
            return self._noted(student)

    def _levelled(self, name: str, weight: torch.Tensor, seed: int) -> torch.Tensor:
        """A weight that is standardised, filter by filter, with the mean and variance that its filters had.

        Divided shares have a smaller variance. Amounts that cancel over the copies of each channel change nothing of
        what is summed, nor the mean, and make up for it.
        """
        axes, taps, correction = self.axes(name), tuple(range(1, weight.ndim)), self.standardised[name]
        mean = weight.mean(taps, keepdim=True)
        centred = weight - mean
        new = _copied(centred, axes, self._shared(name))
        squares = centred.square().sum(taps, keepdim=True) / (weight[0].numel() - correction)
        if 0 in axes:
            mean, squares = (t.index_select(0, axes[0].index.to(t.device)) for t in (mean, squares))
        dim = self._shared(name)[0]
        # Copies of a filter are the same to the bit: what rounding made of a difference would grow from layer to layer.
        draw = normal(new[: len(weight)], generator_for(seed, "standardised", name))
        draw = balance(draw.movedim(dim, 0), axes[dim]).movedim(0, dim)
        if 0 in axes:
            draw = draw.index_select(0, axes[0].index.to(draw.device))
        lacking = squares * (new[0].numel() - correction) - new.square().sum(taps, keepdim=True)
        amount = (lacking / draw.square().sum(taps, keepdim=True)).clamp_min(0).sqrt()
        return new.addcmul_(draw, amount).add_(mean)

    def renormed(self, g: str) -> bool:
        """Whether the norms that g makes up for change."""
        v, dim = self.scales[g]
        return any(d != dim or how.role == "sums" for d, how in self.tensors[v].items())

    def norms(self, model: nn.Module, mapped: bool = False) -> dict[str, torch.Tensor]:
        """By the name of each g the norms of its weight in a model; of a teacher `mapped` to its student's places."""
        found = {}
        for g, (v, dim) in self.scales.items():
            found[g] = torch.norm_except_dim(get_tensor(model, v).detach(), 2, dim)
            for d, axis in self.axes(g).items() if mapped else ():
                found[g] = found[g].index_select(d, axis.index.to(found[g].device))
        return found

    def rescale(self, student: nn.Module, before: Mapping[str, torch.Tensor], old: bool = False) -> None:
        """Let each g make up for how a norm has changed, so that g * v / |v| has the same scale as v; with `old` only
        at the positions that its teacher had."""
        after = self.norms(student)
        for g, norm in before.items():
            ratio = torch.where(norm > 0, after[g] / norm, 1.0)
            for dim, axis in self.axes(g).items() if old else ():
                ratio = torch.where(axis.fresh.to(ratio.device).view(along(dim, ratio.ndim)), 1.0, ratio)
            get_tensor(student, g).mul_(ratio)
            recompute(student.get_submodule(owner(g)))

    def emptied(self, model: nn.Module) -> nn.Module:
        """The same on the meta device, without data."""

        def make(name: str, tensor: torch.Tensor) -> torch.Tensor:
            return empty_like(tensor, self.shape(name, tuple(tensor.shape)), "meta")

        return local(self._noted(rebuilt(model, make)))

    def noting(self, numbers: dict[str, dict[str, Any]], unclear: dict[str, list[str]]) -> Growth:
        """The same with more attributes."""
        attributes = {
            name: {**self.attributes.get(name, {}), **numbers.get(name, {})}
            for name in dict.fromkeys([*self.attributes, *numbers])
        }
        return Growth(
            self.spaces,
            self.tensors,
            attributes,
            self.held,
            dict(unclear),
            self.unknown,
            self.scales,
            self.standardised,
        )

    def _noted(self, student: nn.Module) -> nn.Module:
        for module in student.modules():
            note_widths(module)
        for name, values in self.attributes.items():
            module = student.get_submodule(name)
            for key, value in values.items():
                set_number(module, key, value)
        return student

    def _shared(self, name: str) -> list[int]:
        """The dimensions along which a tensor is summed over."""
        return [dim for dim, how in self.tensors.get(name, {}).items() if how.role == "sums"]

    def each(self, student: nn.Module, role: str) -> list[tuple[str, int, AxisMap]]:
        """The (name, dimension, map) of all that grows in a role, in the order of the student's tensors."""
        names = [*(n for n, _ in student.named_parameters()), *(n for n, _ in student.named_buffers())]
        return [
            (name, dim, self.axis(how.blocks))
            for name in names
            for dim, how in self.tensors.get(name, {}).items()
            if how.role == role
        ]

    def record(self) -> dict[str, Any]:
        """All of it as plain data that JSON can hold."""
        return {
            "spaces": [
                {"made_by": s.made_by, "from": s.width, "to": len(s.g), "copies_of": s.g[s.width :].tolist()}
                for s in self.spaces
            ],
            "tensors": {
                name: [
                    [dim, how.role, [b if isinstance(b, int) else list(b) for b in how.blocks]]
                    for dim, how in dims.items()
                ]
                for name, dims in self.tensors.items()
            },
            "attributes": self.attributes,
            "held": self.held,
            "stayed": self.stayed,
            **({"notes": notes} if (notes := {str(k): s.note for k, s in enumerate(self.spaces) if s.note}) else {}),
            **({"unclear": self.unclear} if self.unclear else {}),
            **({"unknown": self.unknown} if self.unknown else {}),
            **({"scales": {g: list(of) for g, of in self.scales.items()}} if self.scales else {}),
            **({"standardised": self.standardised} if self.standardised else {}),
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> Growth:
        """The growth that a record describes."""
        try:
            spaces = [
                Channels(
                    list(s["made_by"]),
                    s["from"],
                    torch.tensor([*range(s["from"]), *s["copies_of"]], dtype=torch.int64, device="cpu"),
                    str(dict(record.get("notes", {})).get(str(k), "")),
                )
                for k, s in enumerate(record["spaces"])
            ]
            tensors = {
                name: {
                    dim: Along(role, tuple(b if isinstance(b, int) else (b[0], b[1]) for b in blocks))
                    for dim, role, blocks in dims
                }
                for name, dims in record["tensors"].items()
            }
            attributes = {name: dict(values) for name, values in record["attributes"].items()}
            scales = {g: (v, dim) for g, (v, dim) in record.get("scales", {}).items()}
            standardised = dict(record.get("standardised", {}))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise GrowthError(
                f"this is not a record of net2net.widen or random_pad ({type(error).__name__}: {error})"
            ) from error
        notes = (dict(record.get(key, {})) for key in ("held", "unclear", "unknown"))
        return cls(spaces, tensors, attributes, *notes, scales, standardised)


def growth_of(entry: Mapping[str, Any], widest: int | None = None) -> Growth:
    """The growth that an entry of `widen` or `random_pad` describes, with all its numbers in range.

    A width is expected not to exceed `widest`: it can come from a file, and a list of that length will be made.
    """
    try:
        if widest is not None and any(not 0 < space["from"] <= widest for space in entry["spaces"]):
            raise GrowthError(
                f"the record widens from {[space['from'] for space in entry['spaces']]} channels, and the model's "
                f"longest dimension has {widest}: is it the model that was grown?"
            )
        growth = Growth.of(dict(entry))
        for space, said in zip(growth.spaces, entry["spaces"], strict=True):
            if len(space.g) and not 0 <= int(space.g.min()) <= int(space.g.max()) < space.width:
                raise ValueError(f"a copy of a channel that is none of {space.width}")
            if said["to"] != len(space.g):
                raise ValueError(f"{len(space.g)} channels where it says {said['to']!r}")
        for name, dims in growth.tensors.items():
            for dim, how in dims.items():
                numbers = [n for b in how.blocks for n in ([b] if isinstance(b, int) else b)]
                if type(dim) is not int or dim < 0 or how.role not in ROLES or any(type(n) is not int for n in numbers):
                    raise ValueError(f"{name} along {dim!r} as {how.role!r}")
                for block in how.blocks:
                    if not (
                        block > 0 if isinstance(block, int) else 0 <= block[0] < len(growth.spaces) and block[1] > 0
                    ):
                        raise ValueError(f"{name} along {dim} by {block}")
        for g, (v, dim) in growth.scales.items():
            if v not in growth.tensors or type(dim) is not int or dim < -1:
                raise ValueError(f"{g} as the scale of {v!r} along {dim!r}")
        for name, correction in growth.standardised.items():
            if correction not in (0, 1) or all(how.role != "sums" for how in growth.tensors.get(name, {}).values()):
                raise ValueError(f"{name} as standardised with {correction!r}")
    except GrowthError:
        raise
    except WRONG_DATA as error:
        raise GrowthError(
            f"this is not a record of net2net.widen or random_pad ({type(error).__name__}: {error})"
        ) from error
    return growth


def _copied(tensor: torch.Tensor, axes: dict[int, AxisMap], shared: Sequence[int]) -> torch.Tensor:
    """A new tensor, indexed along the given dimensions and divided by the number of copies along those that are shared.

        U[..., j] = W[..., g(j)] / |{x : g(x) = g(j)}|      (sec 2.3)

    Where the copies come after all that is old, as they do but for concatenations, the old ones are written in one
    piece and the copies beside them."""
    if not axes:
        return empty_like(tensor, tensor.shape).copy_(tensor)
    if tensor.ndim == 1 and not shared:
        return tensor.index_select(0, axes[0].index.to(tensor.device))
    shape = [len(axes[dim].index) if dim in axes else n for dim, n in enumerate(tensor.shape)]
    new, last, rest = empty_like(tensor, shape), max(axes), dict(axes)
    rows = new[tuple(slice(shape[d] if d >= last else n) for d, n in enumerate(tensor.shape))]
    among = [dim for dim, axis in axes.items() if axis.fresh[: tensor.shape[dim]].any()]
    for dim in among:
        if dim != last or not rows.is_contiguous():
            del new, rows
            done = torch.div(tensor, _counts(axes[dim], dim, tensor)) if dim in shared else tensor
            taken = [shape[d] if d == dim else n for d, n in enumerate(tensor.shape)]
            indexed = empty_like(tensor, taken).copy_(done.index_select(dim, rest.pop(dim).index.to(tensor.device)))
            return _copied(indexed, rest, shared) if rest else indexed
    # Kernels of several taps are long enough to be picked one by one.
    whole = rows.is_contiguous() and (bool(among) or (last > 0 and tensor.shape[last + 1 :].numel() > 1))
    filled = None if whole else new[tuple(map(slice, tensor.shape))]
    done = tensor
    for dim in (d for d in shared if d in axes):
        done = torch.div(done, _counts(axes[dim], dim, tensor), out=filled)
    if whole:
        torch.index_select(done, last, rest.pop(last).index.to(tensor.device), out=rows)
        filled = rows
    elif done is tensor:
        filled.copy_(tensor)
    for dim, axis in sorted(rest.items(), reverse=True):  # rows last: they are long, and in one piece by then
        old, before = tensor.shape[dim], filled
        filled = new[tuple(slice(shape[d] if d >= dim else n) for d, n in enumerate(tensor.shape))]
        target, index = filled.narrow(dim, old, len(axis.index) - old), axis.index[old:].to(tensor.device)
        if target.is_contiguous():
            torch.index_select(before, dim, index, out=target)
        else:
            target.copy_(before.index_select(dim, index))
    return new


def _counts(axis: AxisMap, dim: int, tensor: torch.Tensor) -> torch.Tensor:
    """How many copies there are of what a tensor has along a dimension, in a shape that divides it."""
    counts = axis.copies.new_empty(tensor.shape[dim]).index_copy_(0, axis.index, axis.copies)
    return counts.to(tensor).view(along(dim, tensor.ndim))


def balance(draw: torch.Tensor, axis: AxisMap) -> torch.Tensor:
    """Takes the mean over the copies of each channel from [n', …], in place."""
    copies = torch.bincount(axis.index)
    index = axis.index.to(draw.device)
    means = torch.zeros_like(draw[: len(copies)]).index_add_(0, index, draw)
    means /= copies.clamp(min=1).to(draw).view(along(0, draw.ndim))
    for rows in blocks_of(draw):
        draw[rows] -= means[index[rows]]
    return draw
