"""The limits of a budget, one function each, in the names of `Budget.priority`.

Each function narrows a `CandidateFilter`. None depends on the others, nor on the order in which they are applied.
"""

from dynamic.policies.control.limits.memory import RESERVE_MB, backbones_in_memory
from dynamic.policies.control.limits.registry import LIMITS, SLOW, active

__all__ = ["LIMITS", "RESERVE_MB", "SLOW", "active", "backbones_in_memory"]
