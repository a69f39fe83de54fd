"""What targets without a certified point would need, in words."""

import math

from dynamic.policies.ladder import Certificate


def shortage(certificate: Certificate) -> str:
    """How many records the missing targets of a certificate need, in words.

    Where labels are missing, risks are not measured: each missing label counts as the largest loss that it may give.
    """
    unit = "records" if certificate.groups is None else "groups"
    count = certificate.images if certificate.groups is None else certificate.groups
    unlabelled = 0 if certificate.labels is None else certificate.images - certificate.labels
    measured = "at most" if unlabelled else "measured"
    targets: dict[str, list[str]] = {}  # by their message
    for entry in certificate.missing:
        if entry.needed is not None:
            message = (
                f"{measured} {entry.risk:.4f}, about {_amount(certificate, entry.needed)} would do in half of the cases"
            )
            if entry.likely is not None:
                message += f", {_amount(certificate, entry.likely).partition(' ')[0]} in nine of ten"
        elif entry.risk is not None and entry.risk < entry.target:
            message = f"{measured} {entry.risk:.4f}, and no thresholds that pass cost less than the last network"
        elif entry.risk is not None:
            message = (
                f"{measured} {entry.risk:.4f}, and no thresholds on the path lost less. More {unit} may find better"
            )
        else:
            message = "nothing cheaper to try" if count else "nothing to measure on"
        targets.setdefault(message, []).append(f"{entry.target:g}")
    needs = (f"{certificate.risk} {', '.join(some)}: {message}" for message, some in targets.items())
    asked = ""
    if unlabelled:
        asked = (
            f", {certificate.labels} of them with a label. A label that is missing counts as the largest loss that it "
            "may give, so that a larger budget of labels may do"
        )
    return f"{count} {unit} certify{asked}. " + ". ".join(needs)


def _amount(certificate: Certificate, certifying: int) -> str:
    """So many certifying records as images in all, of which some choose. Groups are counted as they certify."""
    if certificate.groups is not None or not certificate.images:
        return f"{certifying} certifying groups"
    return f"{math.ceil(certifying * (certificate.images + certificate.search_images) / certificate.images)} inputs"
