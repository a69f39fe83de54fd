"""The checks of `compatibility.py` for one network, in a process of its own."""

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dynamic
from benchmarks.wrapping.compatibility_networks import made, other_size
from dynamic.models.compress import quantize
from dynamic.offline.staged_network import primary_logits
from dynamic.offline.tracing.equality_check import CLOSE
from dynamic.policies.scores import TINY

PARITY, CORRELATION = 1e-3, 0.9


def main(name: str, sender: Connection, *, int8: bool = False) -> None:
    """Send the result of each check as it comes, and the reason of the first that fails."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    reason = ""
    try:
        for facts in results(name, int8):
            sender.send(facts | {"cpu_s": round(time.process_time(), 1)})
    except Exception as error:  # any network, any fault: the reason is the result
        reason = worded(error)
    sender.send({"reason": reason, "cpu_s": round(time.process_time(), 1)})
    sender.close()


def worded(error: Exception) -> str:
    """The error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]


def results(name: str, int8: bool) -> Iterator[dict[str, Any]]:
    """What each check finds, in order.

    Most of the time goes into graphs. So there is one alone: with one exit, named, and of any size where the network
    takes another. Else it has the three exits and the size of the example.
    """
    network, batch = made(name)
    x = batch(2)
    yield {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    with torch.no_grad():
        own = primary_logits(called(network, x))
    net = dynamic.wrap(network, x, exits=3).eval()
    yield {"number": True, "tracer": net.tracer, "exits": [place.name for place in net.exits]}
    with torch.no_grad():
        logits = called(net, x)[-1]
    yield {"exact": bool(torch.equal(logits, own)) if net.tracer == "fx" else close(logits, own, CLOSE)}
    yield attempt("heads", lambda: heads_learn(net, x))
    graph = Graph()
    yield from of_any_size(name, network, x, named_place(network, [exit.name for exit in net.exits]), graph)
    if graph.net is None:
        yield graph.write(net, x)
    if graph.path is not None:
        yield attempt("parity", lambda: graph.agrees(batch(3)))
    graph.remove()
    if int8:
        yield attempt("int8", lambda: int8_agrees(network, x))


def attempt(check: str, passes: Callable[[], bool]) -> dict[str, Any]:
    """Whether a check passes, or why it could not be made."""
    try:
        return {check: passes()}
    except Exception as error:  # any network, any fault: the reason is the result
        return {check: worded(error)}


def named_place(network: nn.Module, names: list[str]) -> str:
    """The first of these exits that is a module, else the first module below the top that has parts.

    Between shared layers, exits have names of operations, which `wrap` does not take.
    """
    modules = dict(network.named_modules())
    parts = (name for name, module in modules.items() if "." in name and next(module.children(), None) is not None)
    return next((name for name in names if name in modules), None) or next(parts)


def of_any_size(name: str, network: nn.Module, x: Any, place: str, graph: "Graph") -> Iterator[dict[str, Any]]:
    """Whether `place` is an exit by its name, and whether `graph`, of any size, gives the logits at another."""
    other, shapes = other_size(x)
    own: Tensor | None = None
    try:
        with torch.no_grad():
            own = primary_logits(called(network, other))
    except Exception as error:  # any network: many have one size alone
        yield {"size": True, "own size alone": worded(error)[:200]}
    nets: list[Any] = []

    def is_named(**options: Any) -> bool:
        nets.append(dynamic.wrap(network, x, exits=[place], **options).eval())
        return [exit.name for exit in nets[0].exits] == [place]

    if own is None:
        yield attempt("name", is_named)
        return
    named = attempt("name", lambda: is_named(dynamic_shapes=shapes))
    if not nets and isinstance(x, Tensor) and x.ndim == 4:  # in larger steps, perhaps
        other, shapes = other_size(x, multiple=2)
        with torch.no_grad():
            own = primary_logits(called(network, other))
        larger = attempt("name", lambda: is_named(dynamic_shapes=shapes))
        named = larger if nets else named
    if not nets:
        yield {"size": named["name"]}
        yield attempt("name", is_named)
        return
    yield named
    written = graph.write(nets[0], x)
    if graph.path is None:
        yield {"size": written["export"]}
        graph.net = None  # the graph of one size may be written
        return
    with torch.no_grad():
        exact = close(called(nets[0], other)[-1], own, PARITY)
    yield written | attempt("size", lambda: exact and graph.agrees(other))


class Graph:
    """One graph of a network, and whether it gives the logits of the first exit and of the last."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.net: Any = None
        self.path: Path | None = None
        self._session: Any = None

    def write(self, net: Any, x: Any) -> dict[str, Any]:
        """Whether `dynamic.export` writes it and ONNX Runtime loads it."""
        self.net = net
        return attempt("export", lambda: self._written(x))

    def _written(self, x: Any) -> bool:
        path = Path(self._folder.name) / "whole.onnx"
        dynamic.export(dynamic.Cascade([self.net]), path, example_inputs=x, progress=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options)
        self.path = path
        return True

    def agrees(self, x: Any) -> bool:
        """Whether its logits are torch's."""
        with torch.no_grad():
            logits = called(self.net, x)
        feeds = {one.name: numbers for one, numbers in zip(self._session.get_inputs(), arrays(x), strict=False)}
        exits = len(self.net.exits)
        least, most = (exited(self._session, feeds, threshold, exits) for threshold in (-np.inf, np.inf))
        return same(least, logits[0]) and same(most, logits[-1])

    def remove(self) -> None:
        """Remove the file."""
        self._folder.cleanup()


def close(logits: Tensor, expected: Tensor, share: float) -> bool:
    """Whether logits are within this share of the largest."""
    return torch.allclose(logits, expected, rtol=0, atol=share * max(1.0, float(expected.abs().max())))


def called(network: nn.Module, x: Any) -> Any:
    """The outputs for a tensor, or for tensors by name."""
    return network(**x) if isinstance(x, dict) else network(x)


def arrays(x: Any) -> list[np.ndarray[Any, Any]]:
    """The inputs in numpy."""
    return [tensor.numpy() for tensor in (x.values() if isinstance(x, dict) else (x,))]


def exited(session: Any, feeds: dict[str, Any], threshold: float, exits: int) -> Tensor:
    """Log-probabilities `[B, C]` of the graph where every exit has this threshold."""
    thresholds = {"thresholds": np.full(exits, threshold, np.float32)}
    return torch.from_numpy(session.run(["logits"], feeds | thresholds)[0])


def same(log_probabilities: Tensor, logits: Tensor) -> bool:
    """Whether both say the same, within `PARITY` of the spread of the logits. A probability of 0 counts as `TINY`."""
    expected = torch.log(torch.softmax(logits, dim=1) + float(TINY))
    spread = float(expected.max() - expected.min()) or 1.0
    return bool((log_probabilities - expected).abs().max() <= PARITY * max(spread, 1.0))


def heads_learn(net: Any, x: Any) -> bool:
    """Whether every parameter of every head gets a gradient that is finite, and one of each head is not zero."""
    logits = called(net, x)
    label = torch.arange(len(logits[-1])) % logits[-1].shape[1]
    sum(cross_entropy(some, label) for some in logits[:-1]).backward()  # type: ignore[union-attr]
    heads = [list(stage.head.parameters()) for stage in net.exit_stages[:-1]]
    finite = all(one.grad is not None and bool(one.grad.isfinite().all()) for head in heads for one in head)
    return finite and all(any(bool(one.grad.any()) for one in head) for head in heads)


def int8_agrees(network: nn.Module, x: Any) -> bool:
    """Whether logits in int8 correlate with those in float32."""
    int8 = quantize(network, x, calibration_loader=[x], latency=False).network
    with torch.no_grad():
        pair = [primary_logits(called(one, x)).double().flatten() for one in (network, int8)]
    return float(torch.corrcoef(torch.stack(pair))[0, 1]) >= CORRELATION
