"""All golden cases of a ladder, and their text."""

import json
from itertools import islice
from random import Random
from typing import Any

from dynamic.bundle.golden_vectors.cases import sequence
from dynamic.bundle.golden_vectors.devices import frontiers
from dynamic.bundle.golden_vectors.figures import figures
from dynamic.bundle.golden_vectors.kinds import SEEDS
from dynamic.policies.ladder import Ladder

SCHEMA = 2


def golden(ladder: Ladder, seed: int = 0) -> dict[str, Any]:
    """A thousand cases for a ladder and a synthetic one.

    Args:
        ladder: The ladder of a bundle.
        seed: Of the cases. The same ladder and seed give the same cases.

    Returns:
        The content of `golden.json`.
    """
    devices = frontiers(ladder)
    sequences = [
        {"device": name, "cases": list(islice(sequence(devices[name], Random(f"{seed} {own}"), kind), kind.cases))}
        for name, kinds in SEEDS.items()
        for kind, owns in kinds
        for own in owns
    ]
    return {"schema": SCHEMA, "devices": {name: figures(f) for name, f in devices.items()}, "sequences": sequences}


def to_text(data: dict[str, Any]) -> str:
    """JSON with one device or case a line. Numbers read back unchanged."""

    def dump(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    devices = ",\n".join(f"{dump(name)}:{dump(device)}" for name, device in data["devices"].items())
    sequences = ",\n".join(
        f'{{"device":{dump(s["device"])},"cases":[\n' + ",\n".join(map(dump, s["cases"])) + "\n]}"
        for s in data["sequences"]
    )
    return f'{{"schema":{data["schema"]},"devices":{{\n{devices}\n}},"sequences":[\n{sequences}\n]}}\n'
