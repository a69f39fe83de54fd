"""Pure decisions: budgets, snapshots, ladders, frontiers, threshold search and policies. It needs numpy only."""

from dynamic.policies.budget import Budget
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.replay import Replay, replay
from dynamic.policies.certification.threshold_search import Search
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.costs import Costs
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.policies.snapshot import Snapshot

__all__ = [
    "Budget",
    "BudgetPolicy",
    "Combiner",
    "CostedPoint",
    "Costs",
    "Decision",
    "Feedback",
    "FixedPolicy",
    "Frontier",
    "Interval",
    "Ladder",
    "OperatingPoint",
    "Policy",
    "Records",
    "Replay",
    "Search",
    "Snapshot",
    "certify",
    "replay",
]
