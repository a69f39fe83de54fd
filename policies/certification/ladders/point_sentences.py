"""What each operating point of a ladder is, in one sentence or two."""

from collections.abc import Mapping

from dynamic.policies.ladder import Ladder, OperatingPoint, RiskName

_RISKS: Mapping[RiskName, str] = {
    "drop": "accuracy lost to the reference",
    "harm": "inputs that the reference answers rightly and this point wrongly",
    "disagreement": "answers that differ from the reference",
    "error": "wrong answers",
}


def point_sentences(ladder: Ladder) -> dict[str, str]:
    """What each point is, by its name.

    Args:
        ladder: The ladder.

    Returns:
        One or two sentences for each point, in the order of the ladder.
    """
    return {point.name: _sentence(point) for point in ladder.points}


def _sentence(point: OperatingPoint) -> str:
    risk = _RISKS[point.kind]
    if point.name == "reference":
        what = "The last network alone, which drops are measured against."
    elif point.name == "best":
        what = "The most accurate thresholds of the search."
        if point.bound is not None:
            what += f" The bound says how much they may lose after all: {risk}, at most {point.bound:.4g}."
    elif point.name == "cheapest":
        what = "The cheapest thresholds that keep the floor of accuracy."
    elif point.bound is not None:
        what = f"The cheapest thresholds that are certified for {risk}: at most {point.bound:.4g}."
    else:
        what = f"The cheapest thresholds with an estimate of at most {point.target or 0:.4g} for {risk}. Not certified."
    if point.name != "reference" and point.drop is not None and point.drop < 0:
        what += " Its measured drop is negative: on the certifying inputs it is more accurate than the reference."
    return what
