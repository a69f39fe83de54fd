"""Weights for networks that are made by name: of a file, the network's own, or random ones."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from dynamic.offline.networks.checkpoints import put_weights, read_weights
from dynamic.policies.errors import CorruptError

RANDOM = "random"  # in place of a file


def with_weights(make: Callable[[int | None], nn.Module], path: str) -> tuple[nn.Module, int | None]:
    """A network with the weights of a file, and as many classes as the file has.

    Args:
        make: Makes the network for a number of classes, or for its usual number (None).
        path: The file.

    Returns:
        The network, and its number of classes where it is not the usual one.

    Raises:
        CorruptError: The file is missing or damaged.
        InputError: It belongs to another network.
    """
    if not Path(path).is_file():
        raise CorruptError(f"--weights {path} does not exist: give a .safetensors or .pt file, or 'random'")
    network = make(None)
    tensors = read_weights(network, path)
    outputs = _outputs(network.state_dict(), tensors)
    if outputs is not None:
        network = make(outputs)
    put_weights(network, tensors, path)
    return network, outputs


def with_classes(make: Callable[[int | None], nn.Module], pretrained: nn.Module, outputs: int) -> nn.Module:
    """The same network for another number of classes. Only its last layer has new random weights."""
    own = pretrained.state_dict()
    if _last(pretrained) == outputs:
        return pretrained
    network = make(outputs)
    target = network.state_dict()
    network.load_state_dict({n: t for n, t in own.items() if target[n].shape == t.shape}, strict=False)
    return network


def _last(network: nn.Module) -> int | None:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return layers[-1].out_features if layers else None


def _outputs(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a file that differs from the network in nothing else. None: it is the network's."""
    others = [(own[name].shape, t.shape) for name, t in tensors.items() if name in own and own[name].shape != t.shape]
    if not others or any(mine[1:] != theirs[1:] or not theirs for mine, theirs in others):
        return None
    counts = {(mine[0], theirs[0]) for mine, theirs in others}
    return next(iter(counts))[1] if len(counts) == 1 else None
