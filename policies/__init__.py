"""Pure decisions: budgets, snapshots, ladders, frontiers, threshold search and policies. numpy only."""

from dynamic.policies.budget import Budget
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.replay import Replay, replay
from dynamic.policies.certification.threshold_search import Search
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.costs import Costs
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.frontier import Frontier, FrontierPoint
from dynamic.policies.ladder import Ladder, Point
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.policies.snapshot import Snapshot

__all__ = [
    "Budget",
    "BudgetPolicy",
    "Combiner",
    "Costs",
    "Decision",
    "Feedback",
    "Frontier",
    "FrontierPoint",
    "Ladder",
    "Point",
    "Policy",
    "Records",
    "Replay",
    "Search",
    "Snapshot",
    "certify",
    "replay",
]
