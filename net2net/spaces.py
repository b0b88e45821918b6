"""Remapping inference: one forward pass on the meta device finds the channel spaces of a model (sec 2.3).

The paper asks for "a remapping inference algorithm that makes a forward pass through the graph, querying each operation
in the graph about how to make the remapping functions consistent". This is it, in three notions:

space     an unknown map g from new channels to old ones. Everything that must be remapped alike shares one space.
axis      one dimension of one tensor, written as a sequence of blocks (space, repeat): the space's channels in order,
          each repeated `repeat` times in a row. A convolution's output is [(s, 1)], a concatenation [(s, 1), (t, 1)],
          its flattening over H x W positions [(s, HW), (t, HW)]. `None` stands for a dimension that is never remapped.
tie       two axes that must be remapped alike, solved as a term unification: spaces are merged, and split where the
          blocks of the two axes end at different places.

What an operation does to axes is written in `net2net.rules`, and `net2net.trace` asks it; nothing here knows about
operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise


class Space:
    """An unknown map over `width` channels; `alias`: the axis that it turned out to be; `fixed`: why it cannot grow."""

    __slots__ = ("alias", "fixed", "width")

    def __init__(self, width: int, fixed: str | None = None):
        self.width = width
        self.alias: Axis | None = None
        self.fixed = fixed


Block = tuple[Space, int]
Axis = tuple[Block, ...]


def resolve(axis: Axis) -> Axis:
    """The axis in terms of spaces that are not aliases."""
    for space, _ in axis:
        if space.alias is not None:
            break
    else:
        return axis
    blocks: list[Block] = []
    for space, repeat in axis:
        if space.alias is None:
            blocks.append((space, repeat))
        else:
            blocks.extend((s, r * repeat) for s, r in _flat(space))
    return tuple(blocks)


def _flat(space: Space) -> Axis:
    """An alias' spaces; it is shortened to them, because chains of aliases grow long where spaces are split often."""
    blocks: list[Block] = []
    stack = [(space, 1)]
    while stack:
        each, repeat = stack.pop()
        if each.alias is None:
            blocks.append((each, repeat))
        else:
            stack.extend((s, r * repeat) for s, r in reversed(each.alias))
    space.alias = tuple(blocks)
    return space.alias


def length(axis: Axis) -> int:
    return sum(space.width * repeat for space, repeat in axis)


def fix(axis: Axis | None, reason: str) -> None:
    """Forbid the axis to grow; the first reason given is kept."""
    for space, _ in resolve(axis or ()):
        space.fixed = space.fixed or reason


def split(space: Space, *at: int) -> None:
    """Divide an unaliased space at the given channels."""
    ends = [0, *at, space.width]
    space.alias = tuple((Space(end - start, space.fixed), 1) for start, end in pairwise(ends))


def cut(axis: Axis, sizes: Iterable[int], reason: str) -> list[Axis]:
    """The axis in consecutive parts; `reason` is given where a part would end inside a repeated channel."""
    sizes = list(sizes)
    ends = list(accumulate(sizes))
    divided = True
    while divided:  # a space that comes several times can be divided again by a later part
        divided, offset = False, 0
        for space, repeat in resolve(axis):
            inside = [end - offset for end in ends if offset < end < offset + space.width * repeat]
            if any(end % repeat for end in inside):
                fix(axis, reason)
                return [((Space(size, reason), 1),) if size else () for size in sizes]
            if inside:
                split(space, *(end // repeat for end in inside))
                divided = True
                break
            offset += space.width * repeat
    parts: list[Axis] = []
    blocks = list(reversed(resolve(axis)))
    for size in sizes:
        part: list[Block] = []
        while size > 0:
            part.append(blocks.pop())
            size -= part[-1][0].width * part[-1][1]
        parts.append(tuple(part))
    return parts


def _alias(space: Space, axis: Axis) -> None:
    if space.fixed:
        fix(axis, space.fixed)
    space.alias = axis


def tie(a: Axis | None, b: Axis | None, reason: str) -> None:
    """Make two axes of equal length share their maps; `reason` is given where this forbids them to grow."""
    if a is None or b is None:
        fix(a or b, reason)
        return
    a, b = resolve(a), resolve(b)
    for one, other in ((a, b), (b, a)):  # a weight that was not seen before is all of the other axis at once
        if len(one) == 1 and one[0][1] == 1 and all(space is not one[0][0] for space, _ in other):
            _alias(one[0][0], other)
            return
    while a and b:
        (s, rs), (t, rt) = a[0], b[0]
        if s is t and rs == rt:
            a, b = a[1:], b[1:]
            continue
        m, n = s.width * rs, t.width * rt
        if m == n and (rs == rt or rs == 1 or rt == 1):
            # Of two spaces with different repeats the unrepeated one is the other, each channel repeated.
            if rs == 1 or rs == rt:
                _alias(s, ((t, rt // rs),))
            else:
                _alias(t, ((s, rs),))
        elif m > n and n % rs == 0:
            split(s, n // rs)
        elif n > m and m % rt == 0:
            split(t, m // rt)
        else:
            fix((a[0], b[0]), reason)
            if s is not t and m == n:
                a, b = a[1:], b[1:]
            else:  # the blocks end inside each other's channels: nothing of either axis can move
                fix(a, reason)
                fix(b, reason)
                return
        # A space may occur again further on in either axis: look again with what is known now.
        a, b = resolve(a), resolve(b)
