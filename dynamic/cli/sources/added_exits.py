"""How many exits a command adds: a number of the command line is kept, one of a file of settings is the most."""

from dynamic.cli.sources.networks.named_networks import NamedNetwork
from dynamic.policies.errors import ExitError


def wanted_exits(network: NamedNetwork, exits: int | None, *, at_most: bool) -> tuple[int, str | None]:
    """How many exits to add before the data are read.

    Args:
        network: The network that gets them.
        exits: The number that was given. None: none.
        at_most: Whether fewer will do.

    Returns:
        The number, and a note where it is another one.
    """
    takes_none = network.has_exits or isinstance(network.network, str)
    if not exits or not at_most or not takes_none:
        return exits or 0, None
    why = "has exits already" if network.has_exits else "is an ONNX file, which is not cut into stages"
    return 0, f"exits = {exits} of the settings adds none: network {network.name} {why}"


def with_exits(
    network: NamedNetwork, exits: int, shape: tuple[int, ...] | None, *, at_most: bool
) -> tuple[NamedNetwork, str | None]:
    """The network with exits.

    Args:
        network: The network.
        exits: How many, from 1.
        shape: Of one input, without the batch.
        at_most: Whether fewer will do where the network has fewer places.

    Returns:
        The network, and a note where it has fewer exits.

    Raises:
        InputError: It takes no exits.
        ExitError: It has fewer places, and fewer will not do.
    """
    if not at_most:
        return network.wrapped(exits, shape), None
    for count in range(exits, 0, -1):
        try:
            wrapped = network.wrapped(count, shape)
        except ExitError:
            continue
        less = f"exits = {exits} of the settings adds {count}: network {network.name} has no place for more"
        return wrapped, None if count == exits else less
    return network, f"exits = {exits} of the settings adds none: network {network.name} has no place for any"
