"""A network as a graph of its operations: torch.fx first, torch.export where fx cannot.

Both give the same kind of graph: `placeholder` nodes for the inputs, operations whose modules, parameters and buffers
are looked up under `backbone.` (and `constants.` for tensors that exist in the code alone), one `output`: the logits.
"""

import inspect
import io
import linecache
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from dynamic.engines.inputs.dimensions import Ranges
from dynamic.offline.networks.module_modes import in_mode, shallow, untouched
from dynamic.offline.tracing.sizes.dynamic_shapes import BATCH, torch_shapes
from dynamic.offline.tracing.sizes.size_decisions import Decisions, SizedProxy, SizeReader
from dynamic.policies.errors import InputError, TraceError

Tracer = Literal["fx", "export"]

# they make tensors from sizes alone, so that torch.fx does not see them
_OF_SIZES = (torch.arange, torch.zeros, torch.ones, torch.empty, torch.full, torch.linspace, torch.eye, torch.tensor)


@dataclass(frozen=True, eq=False)
class Captured:
    """A traced network.

    `graph`: see above. `returned`: module path -> the node of what that module returned at its first call (None
    where that is no single value). `constants`: tensors of the code by name. `dropped`: outputs besides the logits.
    `decisions`: those that sizes made while torch.fx traced, at the traced size. None: there were none.
    """

    tracer: str
    graph: fx.Graph
    returned: Mapping[str, fx.Node | None]
    constants: Mapping[str, Tensor]
    dropped: tuple[str, ...]
    decisions: Decisions | None = None


def capture_fx(
    backbone: nn.Module,
    inputs: Mapping[str, Tensor],
    training: bool,
    *,
    at_this_size: bool = False,
    from_outside: bool = False,
) -> Captured:
    """Trace with torch.fx, in train or eval mode. Raises TraceError naming the module and line that stopped it.

    `at_this_size`: branches on sizes are taken as at the size of `inputs`. Else they stop the trace. `from_outside`:
    trace a module that calls the network. torch.fx itself calls no forward with decorators and `**kwargs`. Of what a
    module returns, the first tensor counts then: networks of this kind return tuples.
    """
    # fx hangs constants on the root: not on the user's module
    root = _caller(backbone, tuple(inputs)) if from_outside else shallow(backbone)
    sizes = SizeReader(root, inputs, training) if at_this_size else None
    tracer = _Tracer(sizes)
    defaults = {} if from_outside else _not_given(backbone, inputs)
    try:
        with untouched(backbone), in_mode(backbone, training):
            root.training = backbone.training
            traced = tracer.trace(root, concrete_args=defaults or None)
    except Exception as error:  # user code runs here, on proxies: anything may come
        entered = tracer.entered[-1] if tracer.entered else ""
        raise TraceError(_where(error, backbone, _own(entered) if from_outside else entered)) from error
    _remove_placeholders(traced, set(defaults))
    decisions = None if sizes is None else sizes.of_graph(traced)
    constants = {
        name: value for name, value in vars(root).items() if isinstance(value, Tensor) and name not in vars(backbone)
    }
    mode = "train" if training else "eval"  # each trace has constants of its own, under the same names
    for node in (*traced.nodes, *(decisions.graph.nodes if decisions is not None else ())):
        if node.target in _OF_SIZES:
            node.meta.pop("is_wrapped", None)  # else the code of the graph calls torch.fx.wrap("torch.arange")
        if node.op == "get_attr" and node.target in constants:
            node.target = f"constants.{mode}{node.target}"
        elif node.op in ("call_module", "get_attr"):
            node.target = f"backbone.{_own(str(node.target)) if from_outside else node.target}"
    output = _output(traced)
    returns = output.args[0]
    logits, dropped = _primary(returns)
    if not isinstance(logits, fx.Node):
        raise TraceError(f"{type(backbone).__name__} gives no tensor that depends on its inputs")
    output.args = (logits,)
    if isinstance(returns, fx.Node) and returns is not logits:
        traced.erase_node(returns)  # only put the outputs together
    _remove_only_for(traced, dropped.values())
    left = set(traced.nodes)
    returned = {
        _own(path) if from_outside else path: node
        for path, value in tracer.returned.items()
        if (node := _returned_node(value, from_outside)) is None or node in left
    }
    named = {f"{mode}{name}": value for name, value in constants.items()}
    return Captured("fx", traced, returned, named, tuple(dropped), decisions)


def capture_export(
    backbone: nn.Module,
    inputs: Mapping[str, Tensor],
    ranges: Mapping[str, Ranges] | None = None,
    training: bool = False,
) -> Captured:
    """Trace with torch.export, in train or eval mode, with a dynamic batch. Raises TraceError naming what stopped it.

    `ranges`: of the dimensions besides the batch that are dynamic. Inputs then have two or more there. The graph of the
    train mode keeps what changes in place, as the counts of batch norm do, and the other one has none of it.
    """
    batch = torch.export.Dim(BATCH)
    shapes = torch_shapes(ranges or dict.fromkeys(inputs, ()), batch)
    program = _exported(backbone, inputs, shapes, training)
    if not training and any(_mutates(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # the same operations, none of which changes anything in place
    prefix, mode = "backbone.", "train" if training else "eval"  # constants of two traces have the same names
    graph, env, constants = fx.Graph(), dict[fx.Node, Any](), dict[str, Tensor]()
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
    names = iter(inputs)
    home = next(iter(inputs.values())).device
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind == InputKind.USER_INPUT:
                env[node] = graph.placeholder(next(names))
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                env[node] = graph.get_attr(prefix + str(spec.target).removeprefix("network."))
            else:
                constants[f"{mode}{node.name}"] = program.constants[str(spec.target)]
                env[node] = graph.get_attr(f"constants.{mode}{node.name}")
            env[node].meta = dict(node.meta)
        elif node.op == "output":
            continue
        elif node.op == "call_function" and node.target is torch.ops.aten.copy.default:
            target, source = (env[argument] for argument in node.args[:2] if isinstance(argument, fx.Node))
            env[node] = _copied(graph, target, source, node.meta)
        elif node.op == "call_function" and "_assert" not in str(node.target):
            env[node] = graph.node_copy(node, lambda n: env[n])
            _follow_inputs(graph, env[node], home)
        elif node.op != "call_function":
            raise TraceError(
                f"torch.export captures {type(backbone).__name__} with control flow inside ({node.target}), which "
                "cannot be cut. Write the branch as torch.where, or decide it by a setting of the module"
            )
    results = [
        env[node]
        for node, spec in zip(
            next(iter(reversed(program.graph.nodes))).args[0], program.graph_signature.output_specs, strict=True
        )
        if spec.kind == OutputKind.USER_OUTPUT
    ]
    logits, dropped = _primary(pytree.tree_unflatten(results, program.call_spec.out_spec))
    if not isinstance(logits, fx.Node):
        raise TraceError(f"{type(backbone).__name__} gives no tensor that depends on its inputs")
    graph.output(logits)
    _remove_only_for(graph, dropped.values())
    _remove_unused(graph)
    return Captured("export", graph, _returned_by_stack(graph, backbone), constants, tuple(dropped))


def infer_sizes(
    backbone: nn.Module, inputs: Mapping[str, Tensor], hints: Mapping[str, Mapping[int, Any]]
) -> dict[str, list[int | tuple[str, int, int | None]]]:
    """What torch.export makes of `Dim.AUTO` and `Dim.DYNAMIC`: for each input a size, or (name, min, max).

    Raises InputError where it does not capture the network, or cannot state the range of a size.
    """
    try:
        program = _exported(backbone, inputs, [{0: torch.export.Dim.AUTO, **hints.get(name, {})} for name in inputs])
    except TraceError as error:
        raise InputError(f"torch.export does not capture the network with these dynamic_shapes {error}") from error
    users = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    names: dict[str, str] = {}
    sizes: dict[str, list[int | tuple[str, int, int | None]]] = {}
    for name, value in zip(inputs, values, strict=True):
        sizes[name] = []
        for d, size in enumerate(value.shape):
            if not isinstance(size, torch.SymInt):
                sizes[name].append(int(size))
                continue
            symbol = size.node.expr
            if not symbol.is_Symbol and d in hints.get(name, {}):
                raise InputError(
                    f"torch.export takes dimension {d} of input {name!r} for {symbol}: say so with a Dim of your own, "
                    "such as 32 * torch.export.Dim('height', min=1, max=7)"
                )
            limits = program.range_constraints.get(symbol)
            most = None if limits is None or not limits.upper.is_Integer else int(limits.upper)
            least = 1 if limits is None or limits.lower <= 2 else int(limits.lower)  # torch.export assumes 2 or more
            sizes[name].append((names.setdefault(str(symbol), f"{name}_{d}"), least, most))
    return sizes


def _exported(
    backbone: nn.Module, inputs: Mapping[str, Tensor], shapes: Sequence[Mapping[int, Any]], training: bool = False
) -> torch.export.ExportedProgram:
    args = tuple(inputs.values())
    problem: Exception | None = None
    for strict in (False, True):  # the second understands len(x), the first more of Python
        try:
            with untouched(backbone), in_mode(backbone, training), torch.no_grad(), _quiet():
                return torch.export.export(
                    _Positional(backbone, tuple(inputs)),
                    args,
                    dynamic_shapes=(tuple(dict(shape) for shape in shapes),),
                    strict=strict,
                )
        except Exception as error:  # user code runs here: anything may come
            problem = problem or error
    assert problem is not None
    raise TraceError(_where(problem, backbone, "")) from problem


def _copied(graph: fx.Graph, target: fx.Node, source: fx.Node, meta: Mapping[str, Any]) -> fx.Node:
    """What `target` is after `target.copy_(source)`, in operators that have gradients. `aten.copy` has none."""
    wide = graph.call_function(torch.ops.aten.expand_as.default, (source, target))
    copied = graph.call_function(torch.ops.aten.type_as.default, (wide, target))
    wide.meta, copied.meta = dict(meta), dict(meta)
    return copied


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs whole graphs before it raises. The error holds what a user needs."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.fx", "torch._dynamo", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Tracer(fx.Tracer):
    """Notes what every module returned, and which modules were entered when tracing stops."""

    # buffers are looked up when the graph runs, as parameters are: their values may be loaded later
    proxy_buffer_attributes = True

    def __init__(self, sizes: SizeReader | None) -> None:
        super().__init__(autowrap_functions=() if sizes is None else _OF_SIZES)
        if sizes is not None:
            self._autowrap_search.append(torch)
        self.returned: dict[str, Any] = {}
        self.entered: list[str] = []
        self._sizes, self._reads = sizes, False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return super().proxy(node) if self._sizes is None else SizedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return super().to_bool(obj) if self._sizes is None else bool(self.number(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        if self._sizes is None:
            return super().iter(obj)
        entries: Any = obj
        return iter([entries[i] for i in range(self.length(obj))])

    def number(self, obj: fx.Proxy) -> Any:
        """The number that sizes give here, which becomes a part of the graph."""
        assert self._sizes is not None
        with self._reading():
            return self._sizes.number(obj.node)

    def length(self, obj: fx.Proxy) -> int:
        """How many entries a shape or tuple has."""
        assert self._sizes is not None
        with self._reading():
            return self._sizes.length(obj.node)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Modules run as they are meanwhile, and no operation is traced."""
        before, self._reads = self._reads, True
        try:
            yield
        finally:
            self._reads = before

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._reads else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._reads:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self.entered.append(path)
        value = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        self.returned.setdefault(path, value)
        return value


def _returned_node(value: Any, first: bool) -> fx.Node | None:
    """The node of what a module returned, the `first` of several. None: that is no single value."""
    if first and isinstance(value, Mapping):
        value = next(iter(value.values()), None)
    elif first and isinstance(value, (tuple, list)):
        value = next(iter(value), None)
    return value.node if isinstance(value, fx.Proxy) else None


def _caller(network: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A module whose forward takes inputs of these names and calls the network, its `network`."""
    scope: dict[str, Any] = {}
    arguments = "input" if names == ("input",) else ", ".join(f"{name}={name}" for name in names)
    exec(f"def forward(self, {', '.join(names)}): return self.network({arguments})", scope)  # fx reads the signature
    caller: nn.Module = type("Caller", (nn.Module,), {"forward": scope["forward"]})()
    caller.network = network
    return caller


def _own(path: str) -> str:
    """The path of a module inside the network that a caller holds."""
    return path.removeprefix("network").removeprefix(".")


class _Positional(nn.Module):
    """The network with its inputs in the order of `names`."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self._names = names

    def forward(self, *args: Tensor) -> Any:
        if self._names == ("input",):
            return self.network(*args)
        return self.network(**dict(zip(self._names, args, strict=True)))


def input_names(backbone: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the arguments that `inputs` fill, in order. A single tensor fills the first."""
    parameters = [
        p.name for p in inspect.signature(backbone.forward).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    if tuple(inputs) == ("input",) and parameters:
        return (parameters[0],)
    return tuple(inputs)


def _not_given(backbone: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Optional arguments of forward that the example does not give: traced at their defaults."""
    names = set(input_names(backbone, inputs))
    return {
        p.name: p.default
        for p in inspect.signature(backbone.forward).parameters.values()
        if p.name not in names and p.default is not p.empty
    }


def _remove_placeholders(graph: fx.Graph, names: set[str]) -> None:
    """Drop placeholders of arguments that were fixed while tracing, with the checks that fx adds for them."""
    for node in list(graph.nodes):
        if node.op == "placeholder" and str(node.target).removesuffix("_1") in names | {str(node.target)} & names:
            doomed, waiting = [node], list(node.users)
            while waiting:
                user = waiting.pop()
                doomed.append(user)
                waiting.extend(user.users)
            for victim in reversed(doomed):
                if victim in graph.nodes and not victim.users:
                    graph.erase_node(victim)


def _output(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(iter(reversed(graph.nodes)))
    return node


def _primary(output: Any) -> tuple[Any, dict[str, fx.Node]]:
    """(the logits, the other tensors by name) of what a network returned (see `primary_logits`)."""
    if isinstance(output, fx.Node) and output.op == "call_function" and isinstance(output.target, type):
        # a dataclass or named tuple, which fx builds again
        fields = getattr(output.target, "_fields", None) or getattr(output.target, "__dataclass_fields__", None) or ()
        output = dict(zip(fields, output.args, strict=False)) | dict(output.kwargs)
        if "logits" not in output:
            first, *others = output.items()
            return first[1], {k: v for k, v in others if isinstance(v, fx.Node)}
    if isinstance(output, fx.Node):
        return output, {}
    if isinstance(output, Mapping):
        named = dict(output)
        if "logits" not in named:
            raise InputError(f"the network gives a dict of {sorted(named)}. The classifier's output has to be 'logits'")
        key: Any = "logits"
    elif isinstance(output, Sequence) and not isinstance(output, str) and len(output):
        fields = getattr(type(output), "_fields", None)
        named = dict(zip(fields or [f"output {i}" for i in range(len(output))], output, strict=True))
        key = "logits" if "logits" in named else next(iter(named))
    else:
        raise InputError(f"the network gives a {type(output).__name__}, expected logits [B, C]")
    return named[key], {str(k): v for k, v in named.items() if k != key and isinstance(v, fx.Node)}


def _ancestors(nodes: Any) -> set[fx.Node]:
    ancestors: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in ancestors:
            ancestors.add(node)
            waiting.extend(node.all_input_nodes)
    return ancestors


def _remove_only_for(graph: fx.Graph, dropped: Any) -> None:
    """Erase what was computed for dropped outputs alone (auxiliary classifiers)."""
    alive = _ancestors(_output(graph).all_input_nodes)
    doomed = _ancestors(dropped) - alive
    for node in reversed(list(graph.nodes)):
        if node in doomed and not node.users and node.op != "placeholder":
            graph.erase_node(node)


def _follow_inputs(graph: fx.Graph, node: fx.Node, home: torch.device) -> None:
    """What is made on the device of the example is made where the first input is: the network may move later."""
    if not any(isinstance(value, torch.device) for value in (*node.args, *node.kwargs.values())):
        return
    with graph.inserting_before(node):
        first = graph.call_function(getattr, (graph.find_nodes(op="placeholder")[0], "device"))

    def read(value: Any) -> Any:
        return first if isinstance(value, torch.device) and value.type == home.type else value

    node.args = tuple(read(value) for value in node.args)
    node.kwargs = {name: read(value) for name, value in node.kwargs.items()}


def _remove_unused(graph: fx.Graph) -> None:
    """Erase what is neither used nor changes anything in place."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr") and not _mutates(node):
            graph.erase_node(node)


def _returned_by_stack(graph: fx.Graph, backbone: nn.Module) -> dict[str, fx.Node | None]:
    """Module path -> the last of its nodes, as torch.export recorded which module each came from."""
    paths = {name for name, _ in backbone.named_modules()}
    nodes: dict[str, fx.Node | None] = {}
    for node in graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            name = str(path).removeprefix("L['self'].").removeprefix("L__self__.").removeprefix("network")
            if name.strip(".") in paths:
                nodes[name.strip(".")] = node
    return nodes


def _where(error: BaseException, backbone: nn.Module, module: str) -> str:
    """What stopped a tracer, where, and what to do."""
    torch_folder = os.path.dirname(torch.__file__)
    place, trace = "", error.__traceback__
    while trace is not None:
        file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        if not file.startswith((torch_folder, os.path.dirname(os.path.dirname(__file__)), "<")):
            code = linecache.getline(file, line).strip()
            place = f", {os.path.basename(file)} line {line}: `{code}`" if code else place
        trace = trace.tb_next
    inside = f"in module {module!r} of {type(backbone).__name__}" if module else f"in {type(backbone).__name__}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{inside}{place}: {reason}"
