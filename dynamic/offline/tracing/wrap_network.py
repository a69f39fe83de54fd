"""Exits on any classification network, without rewriting it."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynamic.engines.inputs.dimensions import Ranges
from dynamic.offline.batches import Batch, named_tensors, run_on, taken_by
from dynamic.offline.networks.float_types import check_halves
from dynamic.offline.networks.module_modes import TrainingFlags, bare, in_mode, training_flags, untouched, view
from dynamic.offline.networks.row_independence import check_rows
from dynamic.offline.staged_network import Stage, StagedNetwork, primary_logits
from dynamic.offline.tracing.channel_layout import Layouts
from dynamic.offline.tracing.dry_run import Observed, observe, rows
from dynamic.offline.tracing.equality_check import CLOSE, changed_in_place, check_evaluation, check_training
from dynamic.offline.tracing.exit_heads import Classifier, ExitHead, Head, Room
from dynamic.offline.tracing.exit_placement import Exits, Placed, PlacedExit, Placer, check_asked
from dynamic.offline.tracing.graph_cut import Cutter, put_holders
from dynamic.offline.tracing.input_sizes import Run, Sizes, checked
from dynamic.offline.tracing.masked_pooling import MASK, mask_of, pooled, why_unread
from dynamic.offline.tracing.sizes.declared_sizes import OBSERVED, Trial, check_declared, check_trials, ranges_of
from dynamic.offline.tracing.sizes.dynamic_shapes import DynamicShapes, traceable, trial_inputs
from dynamic.offline.tracing.sizes.size_decisions import other_decisions
from dynamic.offline.tracing.trace import Captured, Tracer, capture_export, capture_fx, input_names
from dynamic.policies.errors import DynamicError, DynamicWarning, ExitError, InputError, TraceError, WrapError

_RETRACED = 2  # further sizes at which torch.fx traces, where the graph of the example's is not right at all
_FIX = (
    "Mark the function that holds the line with torch.fx.wrap, write the branch as torch.where, decide it by a setting "
    "of the module, or give a network of several exits as a dynamic.offline.staged_network.StagedNetwork"
)


def wrap(
    backbone: nn.Module,
    example_inputs: Batch,
    *,
    exits: Exits = 3,
    layout: str | Mapping[str, str] | None = None,
    classifier: Classifier | None = None,
    head: Head | None = None,
    dynamic_shapes: DynamicShapes | None = None,
) -> "ExitNetwork":
    """Cut a network into stages and put an exit head on each. `dynamic.fit` trains the heads.

    The network is traced with torch.fx, or with torch.export where that fails or where only that has the named
    modules. Branches that sizes decide are those of the example, or with `dynamic_shapes` those that are right at every
    size. A second trace, in train mode, is what modes "joint" and "distill" of `dynamic.fit` train. Where there is
    none, heads alone can be trained.

    An input `attention_mask [B, N]` is the mask of a sequence. Heads then read the mean of a feature `[B, N, D]` over
    the positions where it is not 0, so that padding changes no answer.

    The backbone is neither copied nor changed. Heads start at random, on the device of its first parameter. Warns with
    DynamicWarning where outputs beside the logits are dropped, where torch.export captures the network for evaluation
    alone, and where heads read features of a sequence whose mask they cannot read.

    Args:
        backbone: The trained network.
        example_inputs: A tensor `[B, ...]`, a tuple (`*args`) or a dict (`**kwargs`). A dict may omit arguments that
            have defaults, and its labels are ignored.
        exits: How many, at about equal shares of compute and where the carry is small. Or fractions of compute,
            rising, or names of modules whose results the heads read.
        layout: Which dimension of a feature holds the channels, where the graph does not show it: "BCHW", "BHWC",
            "BND" or "BCN", for all exits or by exit name.
        classifier: A function `(width, classes)` that makes what classifies a pooled feature `[B, width]`. None: batch
            norm, a hidden layer where there is room, and a linear layer.
        head: A function `(shape, channel, classes)` that makes the whole head, instead of a classifier. It gets the
            feature's shape without the batch and the dimension of its channels, from 1. `dynamic.models.ConvHead` is
            for exits that are trained together with the backbone.
        dynamic_shapes: The dimensions that have no fixed size, as `torch.export` takes them: a dict by argument name or
            a tuple, with `{1: torch.export.Dim("length", min=1, max=512)}`, `Dim.AUTO` or `Dim.DYNAMIC` for each. The
            batch is always dynamic. Network and stages are compared at the least, the largest and other sizes. Every
            size then runs in the bundle too. None: all sizes are those of the example.

    Returns:
        A module whose forward gives the logits of every exit, the backbone's own last.

    Raises:
        TraceError: Neither tracer captures the network, or not at all sizes. The message names the module and the line.
        ExitError: An exit does not exist or carries no tensor.
        LayoutError: A layout has to be given.
        InputError: The inputs do not fit.

    Example:
        >>> net = dynamic.wrap(large, torch.zeros(1, 12), exits=["1"])
        >>> [tuple(logits.shape) for logits in net(torch.zeros(2, 12))]
        [(2, 4), (2, 4)]

        A text of 1 to 64 tokens, where the example has 12:

        >>> class Text(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.hidden = torch.nn.Embedding(100, 16), torch.nn.Linear(16, 16)
        ...         self.classes = torch.nn.Linear(16, 4)
        ...
        ...     def forward(self, tokens, mask):
        ...         features = torch.relu(self.hidden(self.words(tokens))) * mask[..., None]
        ...         return self.classes(features.sum(1) / mask.sum(1, keepdim=True))
        >>> length = torch.export.Dim("length", min=1, max=64)
        >>> text = (torch.zeros(1, 12, dtype=torch.long), torch.ones(1, 12))
        >>> net = dynamic.wrap(Text(), text, exits=["hidden"], dynamic_shapes=({1: length}, {1: length}))
        >>> [tuple(logits.shape) for logits in net(torch.zeros(2, 50, dtype=torch.long), torch.ones(2, 50))]
        [(2, 4), (2, 4)]
    """

    def ranges(network: nn.Module, example: Mapping[str, Tensor]) -> Mapping[str, Ranges]:
        return {} if dynamic_shapes is None else ranges_of(network, example, dynamic_shapes)

    return wrap_at(backbone, example_inputs, ranges, exits=exits, layout=layout, classifier=classifier, head=head)


def wrap_at(
    backbone: nn.Module,
    example_inputs: Batch,
    ranges_at: Callable[[nn.Module, Mapping[str, Tensor]], Mapping[str, Ranges]],
    *,
    exits: Exits = 3,
    layout: str | Mapping[str, str] | None = None,
    classifier: Classifier | None = None,
    head: Head | None = None,
) -> "ExitNetwork":
    """`wrap` with the ranges of dynamic dimensions, which `ranges_at` gives for the network and its example."""
    if not isinstance(backbone, nn.Module):
        raise InputError(f"wrap takes a torch.nn.Module. This is a {type(backbone).__name__}")
    backbone = bare(backbone)
    if classifier is not None and head is not None:
        raise ExitError("both classifier and head were given: a head has its own classifier")
    if isinstance(backbone, StagedNetwork):
        raise ExitError(f"this {type(backbone).__name__} has exits already. Give the plain network")
    check_asked(exits, backbone)
    check_halves(backbone)
    named = named_tensors(backbone, example_inputs)
    if any(t.ndim == 0 or len(t) == 0 for t in named.values()):
        raise InputError(
            f"example inputs have shapes {[list(t.shape) for t in named.values()]}, expected [B, ...], B > 0"
        )
    example = rows(named, 2)
    with torch.no_grad(), untouched(backbone), in_mode(backbone, training=False), taken_by(backbone, example):
        run_on(backbone, example)
    ranges = ranges_at(backbone, example)
    sizes = Sizes.of(type(backbone).__name__, example, ranges)
    example = traceable(ranges, example)
    trials = check_declared(backbone, example, ranges)
    problems: dict[str, DynamicError] = {}
    others = iter([trial.inputs for trial in trials[:_RETRACED]])
    attempts = _attempts(example, ranges)
    while attempts:
        attempt = attempts.pop(0)
        try:
            captured = attempt.captured(backbone, ranges)
        except TraceError as error:
            problems.setdefault(attempt.tracer, error)
            continue
        if captured.tracer == "fx" and not attempt.from_outside:
            attempts = [other for other in attempts if not other.from_outside]
        network = ExitNetwork(backbone, captured, sizes)
        try:
            with untouched(backbone), in_mode(backbone, training=False):
                nodes = network._put_exits(captured, example, trials, exits, layout, classifier, head)
        except DynamicError as error:
            if attempt.inputs is example:  # else the graph is wrong already at the size of the example, mostly
                problems[attempt.tracer] = error
            if captured.decisions is not None:
                # where a network resizes its input to the size of the example, the graph of another size is right
                attempts = [*(replace(attempt, inputs=other) for other in islice(others, 1)), *attempts]
            elif not attempt.from_outside and not isinstance(error, (ExitError, TraceError)):
                raise
            continue  # torch.export looks inside modules that torch.fx takes as one
        training = network._put_training(captured, nodes, example, attempt, ranges)
        if captured.tracer == "export" and network.why_not_trainable is not None:
            warnings.warn(
                f"captured with torch.export: only exit heads can be trained, since {network.why_not_trainable}. "
                f"torch.fx would not do: {problems['fx']}",
                DynamicWarning,
                stacklevel=3,
            )
        if network._why_unread is not None:
            warnings.warn(
                f"the example's {MASK} {network._why_unread}. So heads pool all positions, padding too: "
                "give the network an input of that name that is 1 at real positions and 0 at padding",
                DynamicWarning,
                stacklevel=3,
            )
        network.dropped = training.dropped
        if training.dropped:
            warnings.warn(
                f"{type(backbone).__name__} gives more than logits, {', '.join(training.dropped)}: that is dropped",
                DynamicWarning,
                stacklevel=3,
            )
        return network
    first, second = problems["fx"], problems["export"]
    if isinstance(first, TraceError) and isinstance(second, TraceError):
        raise TraceError(
            f"neither torch.fx nor torch.export captures {type(backbone).__name__}. torch.fx stops {first}. "
            f"torch.export stops {second}. {_FIX}"
        ) from first
    raise second if isinstance(first, TraceError) else first


@dataclass(frozen=True, eq=False)
class Attempt:
    """To trace a network by one tracer at the size of `inputs`. `from_outside`: see `capture_fx`."""

    tracer: Tracer
    inputs: Mapping[str, Tensor]
    from_outside: bool = False

    def captured(self, backbone: nn.Module, ranges: Mapping[str, Ranges], training: bool = False) -> Captured:
        """The network as this attempt captures it. Raises TraceError."""
        if self.tracer == "export":
            return capture_export(backbone, self.inputs, ranges, training)
        return capture_fx(backbone, self.inputs, training, at_this_size=True, from_outside=self.from_outside)


def _attempts(example: Mapping[str, Tensor], ranges: Mapping[str, Ranges]) -> list[Attempt]:
    """Attempts in their order.

    torch.export takes minutes where a network cuts windows out of pictures whose height and width are both dynamic.
    There, a trace from outside goes first.
    """
    outside = Attempt("fx", example, from_outside=True)
    export = Attempt("export", example)
    names = {span.name for spans in ranges.values() for span in spans if span is not None}
    return [Attempt("fx", example), *([outside, export] if len(names) > 1 else [export, outside])]


class ExitNetwork(StagedNetwork):
    """A backbone with exit heads, as `wrap` returns it.

    `forward` takes the backbone's inputs and returns the logits `[B, C]` of each exit in order, the backbone's own
    last. Inputs have the sizes of the example, or those of `dynamic_shapes`. Without these, a dimension may have any
    size where network and backbone agreed at three other sizes too. Raises InputError on other sizes.

    In evaluation mode the last logits are bit-equal to the backbone's, and within 1e-5 where `tracer` is "export".
    While the backbone is in train mode its own training graph runs, so that dropout, stochastic depth and batch norm
    behave as in it. Where `tracer` is "export", modes of single modules and dropout rates are those of the trace.
    Others raise WrapError.

    Attributes:
        backbone: The user's module. In the `state_dict` its names begin with `backbone.`, those of heads with `heads.`.
        heads: One for each exit.
        exits: Their places.
        tracer: "fx" or "export".
        trainable_backbone: Whether modes "joint" and "distill" can train it.
        why_not_trainable: The reason, None where they can.
        dropped: Auxiliary outputs that are not returned.
        traced_sizes: Of the inputs.
    """

    def __init__(self, backbone: nn.Module, captured: Captured, sizes: Sizes) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList()
        self.constants = nn.Module()
        self._put_constants(captured)
        self.exits: tuple[PlacedExit, ...] = ()
        self.tracer = captured.tracer
        self.dropped: tuple[str, ...] = ()
        self.input_names = sizes.names
        self.traced_sizes: Sizes = sizes
        self._stage_graphs = _Graphs(())
        self._evaluate: Callable[..., list[Tensor]] | None = None
        self._train: Callable[..., list[Tensor]] | None = None
        self.why_not_trainable: str | None = "it has no graph in train mode"
        self._training_flags: Mapping[str, TrainingFlags] | None = None
        self._why_unread: str | None = None  # the mask of a sequence

    @property
    def trainable_backbone(self) -> bool:
        """Whether modes "joint" and "distill" can train it."""
        return self.why_not_trainable is None

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Logits `[B, C]` of every exit, the backbone's own last."""
        self.traced_sizes.check(self.traced_sizes.bound(args, kwargs))
        if self.backbone.training:
            if self._train is None:
                raise WrapError(
                    f"this {type(self.backbone).__name__} cannot run in train mode ({self.why_not_trainable}): train "
                    "its heads alone, dynamic.fit(net, loader, mode='heads'), or call net.backbone.eval()"
                )
            self._check_flags()
            return self._train(self, *args, **kwargs)
        assert self._evaluate is not None
        return self._evaluate(self, *args, **kwargs)

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        """One stage for each exit and one for the rest, in evaluation mode, sharing the parameters."""
        shared: dict[str, Any] = {}
        bodies = [_module(graph, self, shared) for graph in self._stage_graphs]
        names = [*(e.name for e in self.exits), "last"]
        heads = [*(view(head) for head in self.heads), nn.Identity()]
        stages = (Stage(n, b, h) for n, b, h in zip(names, bodies, heads, strict=True))
        return tuple(stage.eval() for stage in stages)

    def extra_repr(self) -> str:
        """Where the exits are."""
        places = ", ".join(f"{e.name} at {e.share:.0%}" for e in self.exits)
        return f"exits: {places}, traced by torch.{self.tracer}"

    def _put_exits(
        self,
        captured: Captured,
        example: Mapping[str, Tensor],
        trials: Sequence[Trial],
        exits: Exits,
        layout: str | Mapping[str, str] | None,
        classifier: Classifier | None,
        head: Head | None,
    ) -> tuple[fx.Node, ...]:
        """Place exits, make heads and stages, and check that stages give the backbone's logits. Returns the nodes."""
        ranges = self.traced_sizes.by_name
        others = [trial.inputs for trial in trials[:OBSERVED]]
        observed = observe(self, captured.graph, example, others)
        cutter = Cutter(captured.graph, observed)
        placed: Placed = Placer(self.backbone, captured, observed, cutter, Layouts(self, observed)).place(exits, layout)
        own_nodes = placed.nodes
        means, self._why_unread = _means(captured.graph, observed, placed, example)
        if means:
            observed = observe(self, captured.graph, example, others)
            cutter = Cutter(captured.graph, observed)
            placed = _with_means(placed, means, observed, cutter)
        classes = observed.two[cutter.nodes[-1]]
        if not len(getattr(classes, "size", ())) == 2 or classes.size[0] != 2:
            raise InputError(
                f"{type(self.backbone).__name__} gives {list(getattr(classes, 'size', ()))} for 2 inputs. "
                "Expected logits [2, C]"
            )
        check_rows(self.backbone, example)
        self.exits = placed.exits
        first = next(self.backbone.parameters(), torch.empty(0))
        room = Room(sum(p.numel() for p in self.backbone.parameters()), sum(observed.macs.values()))
        for place, node in zip(placed.exits, placed.nodes, strict=True):
            if head is None:
                own, any_size = (place.shape, place.channel, classes.size[1]), bool(self.traced_sizes.ranges)
                module: nn.Module = ExitHead(*own, classifier, room, any_size=any_size)
            else:
                module = head(place.shape, place.channel, classes.size[1])
            self.heads.append(module.to(first.device, observed.two[node].dtype))
        try:
            self._stage_graphs = _Graphs(cutter.stages(placed.nodes, {}))
        except ExitError:
            holders = put_holders(captured.graph, self.traced_sizes.ranges) if ranges else []
            if not holders:
                raise
            observed = observe(self, captured.graph, example, others)
            cutter = Cutter(captured.graph, observed, holders)
            self._stage_graphs = _Graphs(cutter.stages(placed.nodes, {}))
            carries = [len(cutter.carry(node)) for node in placed.nodes]
            self.exits = tuple(replace(place, carry=n) for place, n in zip(placed.exits, carries, strict=True))
        changed = changed_in_place(self.exit_stages, example)
        self._stage_graphs = _Graphs(cutter.stages(placed.nodes, changed.stages))
        self._evaluate = _function(_with_heads(captured.graph, placed.nodes, changed.heads))
        stages = self.exit_stages
        check_evaluation(self.backbone, self._own_logits, self._last_logits, stages, example, self.tracer == "fx")
        if ranges:
            with torch.no_grad(), untouched(self.backbone), in_mode(self.backbone, training=False):
                self._check_trials(captured, trials, example, stages)
        elif captured.tracer == "fx" and captured.decisions is None:  # else sizes went into the graph
            self.traced_sizes = self._checked_sizes(stages, example)
        return own_nodes

    def _check_trials(
        self, captured: Captured, trials: Sequence[Trial], example: Mapping[str, Tensor], stages: Sequence[Stage]
    ) -> None:
        """Compare logits at declared sizes, those among them at which the code decides otherwise than in the graph."""
        ranges = self.traced_sizes.by_name
        whole, staged = self._runs(stages)
        if captured.decisions is not None:
            for inputs, place in other_decisions(self, captured.decisions, ranges, example):
                trial = Trial(inputs, self._own_logits([t.clone() for t in inputs.values()]))
                check_trials([trial], ranges, (staged,), place)
        check_trials(trials[:1], ranges, (whole,))  # the operations of all stages in one
        check_trials(trials, ranges, (staged,))

    def _checked_sizes(self, stages: Sequence[Stage], example: Mapping[str, Tensor]) -> Sizes:
        """The sizes at which graph and stages are right."""
        with torch.no_grad(), untouched(self.backbone), in_mode(self.backbone, training=False):
            return checked(self.traced_sizes, example, self._own_logits, self._runs(stages), CLOSE)

    def _runs(self, stages: Sequence[Stage]) -> tuple[Run, Run]:
        """What gives the last logits by the graph, and stage by stage."""

        def whole(inputs: Sequence[Tensor]) -> Tensor:
            assert self._evaluate is not None
            with in_mode(self.heads, training=False):
                return self._evaluate(self, *inputs)[-1]

        def staged(inputs: Sequence[Tensor]) -> Tensor:
            carry = tuple(inputs)
            for stage in stages:
                carry = stage.body(*carry)
            return carry[0]

        return whole, staged

    def _put_training(
        self,
        captured: Captured,
        nodes: Sequence[fx.Node],
        example: Mapping[str, Tensor],
        attempt: Attempt,
        ranges: Mapping[str, Ranges],
    ) -> Captured:
        """Trace the backbone in train mode and find the exits again. Without it heads alone can be trained."""
        try:
            training = attempt.captured(self.backbone, ranges, training=True)
        except TraceError as error:
            self.why_not_trainable = f"torch.{captured.tracer} cannot trace it in train mode: {error}"
            return captured
        training_nodes = _matching_nodes(captured, training, nodes)
        if len(training_nodes) < len(nodes):
            self.why_not_trainable = "its graph in train mode does not hold the places of the exits"
            return captured
        self._put_constants(training)
        training_nodes = pooled(training.graph, training_nodes, [place.masked for place in self.exits])
        # all: this graph changes more in place than that of eval mode, which has no dropout and may be decomposed
        self._train = _function(_with_heads(training.graph, training_nodes, frozenset(range(len(nodes)))))
        why = None
        for inputs in (example, *islice(trial_inputs(ranges, example), 1)):
            # without its auxiliary branches a network draws its random numbers in another order
            one_seed = bool(training.dropped)
            why = why or check_training(self.backbone, self._own_logits, self._all_logits, inputs, one_seed=one_seed)
        if why is not None:
            self._train, self.why_not_trainable = None, why
            return captured
        if training.tracer == "export":
            with untouched(self.backbone), in_mode(self.backbone, training=True):
                self._training_flags = training_flags(self.backbone)
        self.why_not_trainable = None
        return training

    def _check_flags(self) -> None:
        """Raises WrapError where a module trains otherwise than in the trace of torch.export, which is fixed."""
        if self._training_flags is None:
            return
        flags = training_flags(self.backbone)
        if changed := sorted(self._training_flags.keys() ^ flags.keys()):
            how = "was removed" if changed[0] in self._training_flags else "was added"
            raise WrapError(f"module {changed[0]!r} {how} since torch.export captured the network: wrap it again")
        for name, flag in flags.items():
            if flag != self._training_flags[name]:
                raise WrapError(
                    f"module {name!r} has {flag}, and had {self._training_flags[name]} when torch.export captured it. "
                    "Set the rates before wrap, override `train` of a module that remains in eval mode, and call "
                    "net.train() or net.eval() on the whole"
                )

    def _put_constants(self, captured: Captured) -> None:
        for name, tensor in captured.constants.items():
            self.constants.register_buffer(name, tensor, persistent=False)

    def _own_logits(self, inputs: Sequence[Tensor]) -> Tensor:
        """The backbone's own logits `[B, C]`."""
        names = self.input_names
        if names == ("input",) and names != input_names(self.backbone, {"input": inputs[0]}):
            return primary_logits(self.backbone(*inputs))
        return primary_logits(self.backbone(**dict(zip(names, inputs, strict=True))))

    def _all_logits(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Those of each exit through the traced graph, the backbone's last. Heads do not change."""
        with in_mode(self.heads, training=False):
            logits: list[Tensor] = self(*inputs)
        return logits

    def _last_logits(self, inputs: Sequence[Tensor]) -> Tensor:
        """The backbone's own through the traced graph."""
        return self._all_logits(inputs)[-1]


def _means(
    graph: fx.Graph, observed: Observed, placed: Placed, example: Mapping[str, Tensor]
) -> tuple[list[fx.Node], str | None]:
    """What heads read, where some read means under a mask, which are put into the graph. Else nothing.

    They do where a feature is `[B, N, D]` and has the positions of the mask. Second: why none can read the mask.
    """
    mask = mask_of(graph)
    if mask is None:
        return [], None
    why = why_unread(example[MASK])
    if why is not None:
        sequences = any(place.channel == 2 and len(place.shape) == 2 for place in placed.exits)
        return [], why if sequences else None
    masked = []
    for place, node in zip(placed.exits, placed.nodes, strict=True):
        sizes = zip(observed.runs(node), observed.runs(mask), strict=True)
        alike = all(len(own.size) == 3 and own.size[:2] == other.size for own, other in sizes)
        masked.append(alike and place.channel == 2)
    return (pooled(graph, placed.nodes, masked) if any(masked) else []), None


def _with_means(placed: Placed, means: Sequence[fx.Node], observed: Observed, cutter: Cutter) -> Placed:
    """The exits, which read means under the mask."""
    exits = []
    for place, node, mean in zip(placed.exits, placed.nodes, means, strict=True):
        if mean is not node:
            place = replace(place, shape=observed.two[mean].size[1:], channel=1, masked=True)
        exits.append(replace(place, carry=len(cutter.carry(mean))))
    return Placed(tuple(exits), tuple(means))


class _Graphs(tuple[fx.Graph, ...]):
    """Graphs that a deep copy shares: nothing in them changes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Graphs":
        return self


def _with_heads(graph: fx.Graph, nodes: Any, cloned: frozenset[int]) -> fx.Graph:
    """The whole graph with each head called right after the node it reads, and all logits as output."""
    whole = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    logits: dict[int, fx.Node] = {}
    at = {node: i for i, node in enumerate(nodes)}
    for node in graph.nodes:
        if node.op == "output":
            whole.output([*(logits[i] for i in range(len(nodes))), env[node.args[0]]])
            continue
        env[node] = whole.node_copy(node, lambda n: env[n])
        if node in at:
            # what is changed in place later must not be what the head keeps for its gradient
            feature = whole.call_method("clone", (env[node],)) if at[node] in cloned else env[node]
            logits[at[node]] = whole.call_module(f"heads.{at[node]}", (feature,))
    return whole


def _function(graph: fx.Graph) -> Callable[..., list[Tensor]]:
    """The graph as a function of (network, *inputs): names are looked up on the network when it runs."""
    code = graph.python_code(root_module="self")
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<wrapped network>", "exec"), scope)  # what torch.fx does for its own modules
    forward: Callable[..., list[Tensor]] = scope["forward"]
    return forward


def _module(graph: fx.Graph, network: nn.Module, shared: dict[str, Any]) -> fx.GraphModule:
    """A piece of the graph as a module that shares the network's parameters, with flags of its own."""
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in shared:
            path, _, name = str(node.target).rpartition(".")
            value = getattr(network.get_submodule(path), name)
            shared[node.target] = view(value) if isinstance(value, nn.Module) else value
    needed = {n.target: shared[n.target] for n in graph.nodes if n.op in ("call_module", "get_attr")}
    return fx.GraphModule(needed, graph)


def _matching_nodes(ours: Captured, theirs: Captured, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes of one trace in another: by the module that returned them, else as the k-th of as many of a kind."""
    mine, other = _identities(ours.graph), _identities(theirs.graph)
    names = {node: key for key, node in mine.items()}
    sizes = [Counter(key[:-1] for key in keys) for keys in (mine, other)]
    matches = []
    for node in nodes:
        paths = [path for path, returned in ours.returned.items() if returned is node]
        again = next((n for path in paths if (n := theirs.returned.get(path)) is not None), None)
        kind = names[node][:-1]
        if again is None and sizes[0][kind] == sizes[1][kind]:
            again = other.get(names[node])
        if again is not None:
            matches.append(again)
    return matches


def _identities(graph: fx.Graph) -> dict[Any, fx.Node]:
    """Nodes by what they are, whatever else was traced: module, operation, and which of the like it is."""
    identities: dict[Any, fx.Node] = {}
    counts: Counter[Any] = Counter()
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        key = (next(reversed(stack), ""), node.op, str(node.target))
        counts[key] += 1
        identities[(*key, counts[key])] = node
    return identities
