"""Where exits go: by share of compute, by fraction, or by the name of a module."""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from dynamic.offline.tracing.channel_layout import LAYOUTS, Layouts
from dynamic.offline.tracing.dry_run import Observed, Shape
from dynamic.offline.tracing.graph_cut import Cutter
from dynamic.offline.tracing.trace import Captured
from dynamic.policies.errors import ExitError, LayoutError
from dynamic.policies.validation.numbers import plain_items
from dynamic.policies.words.short_repr import short_repr

Exits = int | Sequence[float] | Sequence[str]

_LEAST_SHARE = 0.02  # of compute before the first exit, between exits and after the last
# what is given away, of the distance between exits, for
_TENSORS = 0.4  # one tensor less in the carry: each is bound, compacted and passed by itself
_WIDTH = 0.05  # half as many numbers in the carry
_BLOCK = 0.15  # the end of a block, whose features are richer than those inside


def check_asked(exits: Exits, backbone: nn.Module) -> None:
    """Raises ExitError where `exits` is neither a number, nor rising fractions, nor names of modules of `backbone`."""
    exits = plain_items(exits)
    if isinstance(exits, int) and not isinstance(exits, bool):
        if exits < 1:
            raise ExitError(f"exits={exits}: at least 1")
        return
    if isinstance(exits, (bool, str)) or not isinstance(exits, Sequence) or not exits:
        raise ExitError(f"exits={exits!r}: give a number, fractions of compute, or a list of module names")
    if all(isinstance(e, str) for e in exits):
        modules = [name for name, _ in backbone.named_modules() if name]
        for name in exits:
            if name not in modules:
                near = difflib.get_close_matches(str(name), modules, n=3, cutoff=0.4) or modules[:3]
                raise ExitError(
                    f"there is no exit {name!r}: {type(backbone).__name__} has no such module. Near it: {near}"
                )
        return
    for e in exits:
        if isinstance(e, bool) or not isinstance(e, (int, float)) or not 0 < e < 1:
            raise ExitError(f"exits holds {e!r}. Fractions of compute lie between 0 and 1, names are strings")
    if any(a >= b for a, b in itertools.pairwise(exits)):  # type: ignore[operator]
        raise ExitError(f"exits={list(exits)}: fractions of compute have to rise")


@dataclass(frozen=True)
class PlacedExit:
    """The place of an exit.

    Args:
        name: Of the exit.
        share: Of the backbone's multiply-adds, 0 to 1, that come before it.
        shape: Of the feature that its head reads, without the batch.
        channel: The feature's dimension that holds the channels.
        carry: How many tensors cross there.
        masked: Whether the head reads the mean over positions under a mask.
    """

    name: str
    share: float
    shape: tuple[int, ...]
    channel: int
    carry: int
    masked: bool = False

    def __repr__(self) -> str:
        feature = " x ".join(map(str, self.shape))
        return short_repr("PlacedExit", [repr(self.name), f"at {self.share:.0%} of the compute", f"reads {feature}"])


@dataclass(frozen=True)
class Placed:
    """Exits in order, with the nodes they read."""

    exits: tuple[PlacedExit, ...]
    nodes: tuple[fx.Node, ...]


class Placer:
    """Finds places for exits in one traced network."""

    def __init__(
        self, backbone: nn.Module, captured: Captured, observed: Observed, cutter: Cutter, layouts: Layouts
    ) -> None:
        self._backbone = backbone
        self._captured, self._observed, self._cutter, self._layouts = captured, observed, cutter, layouts
        work = [observed.macs.get(node, 0.0) for node in cutter.nodes]
        if not sum(work):  # a network without multiply-adds: operations stand in
            work = [float(cutter.is_data(node)) for node in cutter.nodes]
        total = sum(work)
        self._share = [done / total for done in itertools.accumulate(work)]

    def place(self, exits: Exits, layout: str | Mapping[str, str] | None) -> Placed:
        """Exits as the user set them (see `wrap`)."""
        exits = plain_items(exits)
        if isinstance(exits, int):
            return self._at_shares([(i + 1) / (exits + 1) for i in range(exits)], 1 / (exits + 1), layout)
        names = [e for e in exits if isinstance(e, str)]
        if names:
            return self._at_names(names, layout)
        shares = [float(e) for e in exits]
        gaps = [b - a for a, b in itertools.pairwise([0.0, *shares, 1.0])]
        return self._at_shares(shares, min(gaps), layout)

    def _at_names(self, names: Sequence[str], layout: str | Mapping[str, str] | None) -> Placed:
        places: list[tuple[str, fx.Node]] = []
        for name in names:
            node = self._node(name)
            two = self._observed.two[node]
            if not self._cutter.is_data(node) or not isinstance(two, Shape) or not _readable(node, two):
                raise ExitError(
                    f"exit {name!r} gives {_kind(two)}. A head reads one floating-point tensor of 2 to 5 dimensions "
                    "that the network has computed"
                )
            if self._cutter.index[node] >= self._cutter.index[self._output()]:
                raise ExitError(f"exit {name!r} is the network's own output, which is an exit already. Leave it out")
            places.append((name, node))
        places.sort(key=lambda entry: self._cutter.index[entry[1]])
        for (a, first), (b, second) in itertools.pairwise(places):
            if first is second:
                raise ExitError(f"exits {a!r} and {b!r} read the same tensor: nothing lies between them. Keep one")
        for name, node in places:
            self._check_cut(name, node)
        return self._described(places, layout)

    def _check_cut(self, name: str, node: fx.Node) -> None:
        two, three = self._observed.two[node], self._observed.three[node]
        if not self._observed.has_rows(two, three):
            raise ExitError(
                f"exit {name!r} reads {list(two.size)} at a batch of 2 and {list(three.size)} at 3: its first "
                f"dimension is not the batch. Choose {self._near(node)}"
            )
        obstacle = self._cutter.obstacle(node)
        if obstacle is not None:
            raise ExitError(
                f"exit {name!r} lies where {obstacle.name!r} has to be passed on, "
                f"{_kind(self._observed.two[obstacle])} without the batch as first dimension. Choose {self._near(node)}"
            )

    def _node(self, name: str) -> fx.Node:
        returned = self._captured.returned
        if name not in returned:
            near = difflib.get_close_matches(name, returned, n=3, cutoff=0.4) or list(returned)[:3]
            raise ExitError(
                f"module {name!r} does not run in eval mode, or lies inside one that torch.{self._captured.tracer} "
                f"takes as one operation. Near it: {near}"
            )
        node = returned[name]
        if node is None:
            raise ExitError(f"module {name!r} does not return one tensor. Name a module inside or after it")
        return node

    def _at_shares(self, shares: Sequence[float], spacing: float, layout: str | Mapping[str, str] | None) -> Placed:
        candidates = list(self._candidates(layout))
        chosen: list[fx.Node] = []
        after = 0.0
        for number, wanted in enumerate(shares):
            later = len(shares) - number - 1
            window = [
                n for n in candidates
                if self._at(n) >= after + _LEAST_SHARE and self._places_behind(candidates, n) >= later
            ]  # fmt: skip
            if not window:
                most = len({round(self._at(n) / _LEAST_SHARE) for n in candidates})
                if not candidates:
                    raise ExitError(
                        f"{len(shares)} exits do not fit: this network, as traced by {self._captured.tracer}, has no "
                        "place where it can be cut, since it has too few layers, or computes inside one module (as an "
                        "LSTM does). Put it whole into a cascade, dynamic.build([smaller, network], data)"
                    )
                raise ExitError(
                    f"{len(shares)} exits do not fit: this network, as traced by {self._captured.tracer}, has about "
                    f"{most} places where it can be cut. Ask for fewer, or name modules"
                )
            near = [n for n in window if abs(self._at(n) - wanted) <= spacing / 2] or window
            narrowest = min(map(self._numbers, near))
            best = min(near, key=lambda n: (self._price(n, wanted, spacing, narrowest), -self._cutter.index[n]))
            chosen.append(best)
            after = self._at(best)
        return self._described([(self._name(node), node) for node in chosen], layout)

    def _places_behind(self, candidates: Sequence[fx.Node], node: fx.Node) -> int:
        """How many further exits fit behind a node."""
        count, at = 0, self._at(node)
        for other in candidates:
            if self._at(other) >= at + _LEAST_SHARE:
                count, at = count + 1, self._at(other)
        return count

    def _candidates(self, layout: str | Mapping[str, str] | None) -> Iterator[fx.Node]:
        for node in self._cutter.nodes:
            two, three = self._observed.two.get(node), self._observed.three.get(node)
            if (
                isinstance(two, Shape)
                and _readable(node, two)
                and _LEAST_SHARE <= self._at(node) <= 1 - _LEAST_SHARE
                and self._observed.has_rows(two, three)
                and self._channel(self._name(node), node, layout) is not None
                and self._cutter.obstacle(node) is None
            ):
                yield node

    def _price(self, node: fx.Node, wanted: float, spacing: float, narrowest: int) -> float:
        width = math.log2(self._numbers(node) / narrowest)
        distance = abs(self._at(node) - wanted) / spacing
        inside = _BLOCK * (node not in self._block_ends)
        return round(distance + inside + _WIDTH * width + _TENSORS * (len(self._cutter.carry(node)) - 1), 9)

    def _numbers(self, node: fx.Node) -> int:
        """How many numbers cross a cut here, for one row."""
        total = 0
        for value, part in self._cutter.carry(node):
            shape = self._observed.two[value] if part is None else self._observed.two[value][part]
            total += math.prod(shape.size[1:])
        return max(total, 1)

    def _described(self, places: Sequence[tuple[str, fx.Node]], layout: str | Mapping[str, str] | None) -> Placed:
        exits = []
        unknown = set(layout or {}) - {name for name, _ in places} if isinstance(layout, Mapping) else set()
        if unknown:
            raise LayoutError(
                f"layout names {sorted(unknown)}, and the exits are {[name for name, _ in places]}: use their names"
            )
        for name, node in places:
            channel = self._channel(name, node, layout)
            if channel is None:
                raise self._layouts.explain(name, node)
            shape = self._observed.two[node].size[1:]
            exits.append(PlacedExit(name, self._at(node), shape, channel, len(self._cutter.carry(node))))
        return Placed(tuple(exits), tuple(node for _, node in places))

    def _channel(self, name: str, node: fx.Node, layout: str | Mapping[str, str] | None) -> int | None:
        rank = len(self._observed.two[node].size)
        word = layout if isinstance(layout, str) else (layout or {}).get(name)
        if word is None or rank == 2:
            return self._layouts.channel(node)
        if word not in LAYOUTS or len(word) != rank:
            fitting = [key for key in LAYOUTS if len(key) == rank]
            raise LayoutError(f"layout {word!r} of exit {name!r} does not fit {rank} dimensions. Use one of {fitting}")
        return LAYOUTS[word]

    def _name(self, node: fx.Node) -> str:
        """The shortest name of a module that returned this node's value, else the node's own."""
        paths = self._paths.get(node)
        return min(paths, key=len) if paths else node.name

    @cached_property
    def _paths(self) -> dict[fx.Node, list[str]]:
        paths: dict[fx.Node, list[str]] = {}
        for path, node in self._captured.returned.items():
            if node is not None and path:
                paths.setdefault(node, []).append(path)
        return paths

    @cached_property
    def _block_ends(self) -> set[fx.Node]:
        """Nodes that are what a module with modules inside returned."""
        return {
            node
            for node, paths in self._paths.items()
            if any(next(self._backbone.get_submodule(path).children(), None) is not None for path in paths)
        }

    def _near(self, node: fx.Node) -> list[str]:
        """Up to three named places near a node where the network can be cut."""
        at = self._cutter.index[node]
        able = [
            (abs(self._cutter.index[n] - at), path)
            for path, n in self._captured.returned.items()
            if n is not None
            and isinstance(self._observed.two.get(n), Shape)
            and self._observed.has_rows(self._observed.two[n], self._observed.three[n])
            and self._cutter.obstacle(n) is None
        ]
        return [path for _, path in sorted(able)[:3]]

    def _at(self, node: fx.Node) -> float:
        return self._share[self._cutter.index[node]]

    def _output(self) -> fx.Node:
        logits: fx.Node = self._cutter.nodes[-1].args[0]
        return logits


def _readable(node: fx.Node, shape: Shape) -> bool:
    """Whether a head can read what this node gives."""
    is_computed = node.op not in ("placeholder", "output", "get_attr")
    rounds = getattr(node.target, "namespace", None) == "quantized_decomposed"  # engines fuse it with what reads it
    return is_computed and not rounds and shape.dtype.is_floating_point and 2 <= len(shape.size) <= 5


def _kind(value: object) -> str:
    if isinstance(value, Shape):
        return f"a tensor {list(value.size)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"
