"""What targets without a certified point would need, in words."""

import math
from collections.abc import Sequence

from dynamic.policies.ladder import Certificate, Missing
from dynamic.policies.words.tables import table


def shortage(certificate: Certificate) -> str:
    """What the missing targets of a certificate need, in a few sentences, as errors and warnings say it.

    Where labels are missing, risks are not measured: each missing label counts as the largest loss that it may give.
    """
    few = []
    for same in _alike([one for one in certificate.missing if one.needed is not None]):
        needed, *likely = _amounts(certificate, same[0])
        safe = "".join(f", {amount.partition(' ')[0]} for nine in ten" for amount in likely)
        few.append(
            f"{certificate.risk} {_targets(same)}: {_measured(certificate)} {same[0].risk or 0:.4f}, about {needed} "
            f"give an even chance{safe}"
        )
    return ". ".join([_count(certificate), *few, *_other_sentences(certificate)])


def shortage_lines(certificate: Certificate) -> list[str]:
    """The same as lines: a table of the numbers that would do, what lacks more than inputs, and what to do."""
    few = [one for one in certificate.missing if one.needed is not None]
    lines = [f"not certified: {certificate.risk} {_targets(certificate.missing)}. {_count(certificate)}"]
    if few:
        head = (f"    {certificate.risk} <=", _measured(certificate), "needed: even chance", "9 in 10")
        rows = [(f"    {one.target:g}", f"{one.risk or 0:.4f}", *(*_amounts(certificate, one), "")[:2]) for one in few]
        lines += table(head, rows).splitlines()
    lines += _other_sentences(certificate)
    if any(one.risk is not None for one in certificate.missing):
        unit = "inputs" if certificate.groups is None else "groups"
        lines.append(f"to certify them: give more held-out {unit}, or allow a larger {certificate.risk}")
    return lines


def _count(certificate: Certificate) -> str:
    if certificate.groups is not None:
        return f"{certificate.groups} groups certify"
    if certificate.labels is None or certificate.labels == certificate.images:
        total = certificate.images + certificate.search_images
        return f"{total} inputs were given, {certificate.images} of them certify"
    return (
        f"{certificate.images} inputs certify, {certificate.labels} of them with a label. A missing label counts as "
        "the largest loss that it may give, so a larger budget of labels may do"
    )


def _measured(certificate: Certificate) -> str:
    """How a risk is known."""
    return "measured" if certificate.labels in (None, certificate.images) else "at most"


def _other_sentences(certificate: Certificate) -> list[str]:
    """The targets for which no number of inputs is known, each with the reason."""
    measured = _measured(certificate)
    sentences: list[str] = []
    for same in _alike([one for one in certificate.missing if one.needed is None]):
        name, risk = f"{certificate.risk} {_targets(same)}", same[0].risk
        if risk is None:
            is_empty = not (certificate.images if certificate.groups is None else certificate.groups)
            why = (
                "no inputs are left to measure on"
                if is_empty
                else "there is nothing cheaper to try. Add exits or a smaller network"
            )
        elif risk < same[0].target:
            why = f"{measured} {risk:.4f}, and no thresholds that pass are cheaper than the last network"
        else:
            why = f"no thresholds lost less than {risk:.4f}. More inputs, or better exits, may find some that do"
        sentences.append(f"{name}: {why}")
    return sentences


def _alike(missing: Sequence[Missing]) -> list[list[Missing]]:
    """Targets with the same figures, and the same reason, together."""
    groups: dict[tuple[float | None, int | None, int | None, bool], list[Missing]] = {}
    for one in missing:
        within = one.risk is not None and one.risk < one.target
        groups.setdefault((one.risk, one.needed, one.likely, within), []).append(one)
    return list(groups.values())


def _targets(missing: Sequence[Missing]) -> str:
    return ", ".join(f"{one.target:g}" for one in missing)


def _amounts(certificate: Certificate, one: Missing) -> list[str]:
    """The inputs for an even chance, and for nine in ten if that is known.

    They are inputs in all, of which some choose thresholds. Groups are counted as they certify.
    """
    certifying = [count for count in (one.needed, one.likely) if count is not None]
    if certificate.groups is not None or not certificate.images:
        return [f"{count} certifying groups" for count in certifying]
    share = (certificate.images + certificate.search_images) / certificate.images
    return [f"{math.ceil(count * share)} inputs" for count in certifying]
