"""The first step of the oracle: a point for each slot of time, at a price of energy that bisection determines."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.simulate.requests.slots import Floats, Heat, Service, Slots

_HALVINGS = 40
_DEAREST = 1e9  # wrong answers for a millijoule


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan: a point for each slot.

    Args:
        points: Index of the point in each slot `[N]`.
        wrong: Expected number of wrong answers.
        energy_mj: Limited energy that the plan uses.
    """

    points: tuple[int, ...]
    wrong: float
    energy_mj: float


def plan_slots(service: Service, slots: Slots, most_mj: float, heat: Heat | None) -> Planned:
    """The points with the fewest wrong answers within an energy limit. Where none are within it, those of least energy.

    Lagrangian relaxation (Everett 1963): each slot takes the point of the fewest wrong answers plus a price times its
    energy. The price is the lowest at which the energy suffices, by bisection. The plan just below that price applies
    for as long as the energy allows, then the plan just above it. The loss against the best plan is at most that of a
    single slot. Points that would make the device too warm, even if the coolest points followed, are excluded slot by
    slot. With `heat` the plan is therefore no optimum.

    Args:
        service: Times, energies and accuracies of the points.
        slots: The slots of time.
        most_mj: Energy limit in millijoules.
        heat: Thermal model. None: no limit on the temperature.

    Returns:
        The plan.
    """

    def at(price: float) -> Planned:
        return walk(price, service, slots, heat)

    free = at(0.0)
    if free.energy_mj <= most_mj:
        return free
    low, high = 0.0, 1e-9
    while (enough := at(high)).energy_mj > most_mj and high < _DEAREST:
        low, high = high, high * 10
    if enough.energy_mj > most_mj:
        return enough
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        plan = at(price)
        if plan.energy_mj <= most_mj:
            high, enough = price, plan
        else:
            low = price
    return _spliced(enough, low, high, service, slots, most_mj, heat)


def walk(price: float | Floats, service: Service, slots: Slots, heat: Heat | None = None) -> Planned:
    """The plan at a price of energy.

    Args:
        price: Price in wrong answers for a millijoule, one for all slots or one for each `[N]`.
        service: Times, energies and accuracies of the points.
        slots: The slots of time.
        heat: Thermal model. None: no limit on the temperature.

    Returns:
        The plan.
    """
    wrong = slots.arrivals[:, None] * (1 - service.accuracy)  # [N, P]
    used_mj = slots.arrivals[:, None] * service.energy_mj
    total = np.where(slots.allowed, wrong + used_mj * (price * slots.counted)[:, None], np.inf)
    points = total.argmin(axis=1) if heat is None else _cool(total, used_mj / slots.slot_s, slots, heat)
    rows = np.arange(len(points))
    energy_mj = float((used_mj[rows, points] * slots.counted).sum())
    return Planned(tuple(points.tolist()), float(wrong[rows, points].sum()), energy_mj)


def _cool(total: Floats, power_mw: Floats, slots: Slots, heat: Heat) -> NDArray[np.int64]:
    """The point of the least `total [N, P]` in each slot among those that are cool enough."""
    keep, ends_c = _warmth(power_mw, slots, heat)
    caps = np.empty(len(total))  # temperature after each slot from which the coolest points still keep the limit
    cap = heat.limit_c
    for i in range(len(total) - 1, -1, -1):
        caps[i] = cap = min(cap, heat.limit_c)
        cap = (cap - (1 - keep) * ends_c[i][slots.allowed[i]].min()) / keep
    points, now_c = np.empty(len(total), np.int64), heat.start_c
    for i in range(len(total)):
        after_c = keep * now_c + (1 - keep) * ends_c[i]
        cool = slots.allowed[i] & (after_c <= caps[i])
        points[i] = (
            np.where(cool, total[i], np.inf).argmin()
            if cool.any()
            else (np.where(slots.allowed[i], after_c, np.inf).argmin())
        )
        now_c = float(after_c[points[i]])
    return points


def _warmth(power_mw: Floats, slots: Slots, heat: Heat) -> tuple[float, Floats]:
    """Two values: the share of a temperature difference that a slot leaves, and the final temperature `[N, P]`."""
    keep = float(np.exp(-slots.slot_s / (heat.resistance_c_per_w * heat.capacity_j_per_c)))
    return keep, slots.ambient_c[:, None] + heat.resistance_c_per_w * (heat.base_mw + power_mw) / 1e3


def _spliced(
    enough: Planned, low: float, high: float, service: Service, slots: Slots, most_mj: float, heat: Heat | None
) -> Planned:
    """The plan of the low price for as long as the energy allows, then that of the high price, which is `enough`."""
    count = len(slots.arrivals)
    fits, over = 0, count
    while over - fits > 1:
        middle = (fits + over) // 2
        plan = walk(np.where(np.arange(count) < middle, low, high), service, slots, heat)
        if plan.energy_mj <= most_mj:
            fits, enough = middle, plan
        else:
            over = middle
    return enough
