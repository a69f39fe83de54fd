"""Golden vectors: requests with the decisions that a policy must give, to test a port of it to another language.

The file `golden.json` holds

- `devices`: the figures (see `figures`) of synthetic devices, by name. Two run the bundle's own ladder. Two run a
  synthetic ladder, with and without energies. Every limit can bind there, while a bundle may have one point alone.
- `sequences`: requests on one `device`, from `BudgetPolicy.initial` on. Each has `cases`, one a line.

A case has `snapshot` and `decision`. It has `budget` where that is another than before. A field that is absent has its
default. Often there is `feedback`, which the policy observes before the next case: the `stage` of the request, its
`latency_ms`, and whether the test for `drift` has raised its alarm.

The number of rows is one of the batch sizes of the figures, and the percentile is 0.95 or None. So the figures suffice,
and a port needs 64-bit floats and no statistics. Of equals the first counts, as in Python's min and max. On a device
the port reads figures from `costs/` and the thresholds of the point from `ladder.json`. `examples/policy_port.py` is
such a port. The cases are not in `ladder.json`, because every start of a runtime reads that file.
"""

from dynamic.bundle.golden_vectors.figures import figures
from dynamic.bundle.golden_vectors.writer import golden, to_text

__all__ = ["figures", "golden", "to_text"]
