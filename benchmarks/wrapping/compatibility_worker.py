"""The checks of `compatibility.py` for one network, in a process of its own."""

import tempfile
import warnings
from collections.abc import Iterator
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

THREADS = 2
PARITY, CORRELATION = 1e-3, 0.9


def main(name: str, sender: Connection) -> None:
    """Send the result of each check as it comes, and the reason of the first that fails."""
    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    try:
        for facts in results(name):
            sender.send(facts)
    except Exception as error:  # any network, any fault: the reason is the result
        sender.send({"reason": f"{type(error).__name__}: {error}"[:600]})
    else:
        sender.send({"reason": ""})
    sender.close()


def results(name: str) -> Iterator[dict[str, Any]]:
    """What each check finds, in order. int8 comes first in time, since it needs none of the others."""
    network, batch = made(name)
    x = batch(2)
    yield {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    try:
        yield {"int8": int8_agrees(network, x)}
    except dynamic.DynamicError as error:
        yield {"int8": f"{type(error).__name__}: {error}"[:600]}
    net = dynamic.wrap(network, x, exits=3).eval()
    yield {"number": True, "tracer": net.tracer, "exits": [place.name for place in net.exits]}
    named = dynamic.wrap(network, x, exits=[net.exits[0].name])
    yield {"name": [place.name for place in named.exits] == [net.exits[0].name]}
    with torch.no_grad():
        own = primary_logits(called(network, x))
        yield {"exact": bool(torch.equal(called(net, x)[-1], own))}
    yield {"heads": heads_learn(net, x)}
    same = exported_alike(net, x, batch(3))
    yield {"export": True, "parity": same}
    yield same_at_another_size(name, network, x)


def exported_alike(net: Any, x: Any, other: Any) -> bool:
    """Whether the graph gives the logits of the first exit and of the last for `other`, on ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = dynamic.export(dynamic.Cascade([net]), Path(folder) / "whole.onnx", example_inputs=x, progress=False)
        session = onnxruntime.InferenceSession(path)
        with torch.no_grad():
            logits = called(net, other)
        feeds = {one.name: numbers for one, numbers in zip(session.get_inputs(), arrays(other), strict=False)}
        least, most = (exited(session, feeds, threshold, len(net.exits)) for threshold in (-np.inf, np.inf))
    return bool(same(least, logits[0]) and same(most, logits[-1]))


def same_at_another_size(name: str, network: nn.Module, x: Any) -> dict[str, Any]:
    """Whether a graph of any size gives the network's logits at another one."""
    other, shapes = other_size(name, x)
    try:
        with torch.no_grad():
            own = primary_logits(called(network, other))
    except Exception as error:  # any network: many have one size alone
        return {"size": True, "own size alone": f"{type(error).__name__}: {error}"[:200]}
    try:
        net = dynamic.wrap(network, x, exits=1, dynamic_shapes=shapes).eval()
        with torch.no_grad():
            exact = torch.allclose(called(net, other)[-1], own, rtol=0, atol=PARITY * max(1.0, float(own.abs().max())))
        return {"size": exact and exported_alike(net, x, other)}
    except dynamic.DynamicError as error:
        return {"size": f"{type(error).__name__}: {error}"[:600]}


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
    """Whether both say the same, within `PARITY` of the spread of the logits."""
    expected = torch.log_softmax(logits, dim=1)
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
