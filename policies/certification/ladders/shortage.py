"""What targets without a certified point would need, in words."""

from dynamic.policies.ladder import Certificate


def shortage(certificate: Certificate) -> str:
    """How many records the missing targets of a certificate need, in words."""
    unit = "records" if certificate.groups is None else "groups"
    count = certificate.images if certificate.groups is None else certificate.groups
    targets: dict[str, list[str]] = {}  # by their message
    for entry in certificate.missing:
        if entry.needed is not None:
            message = f"measured {entry.risk:.4f}, about {entry.needed} certifying {unit} would do"
        elif entry.risk is not None:
            message = f"measured {entry.risk:.4f}, and no thresholds on the path lost less. More {unit} may find better"
        else:
            message = "nothing cheaper to try" if count else "nothing to measure on"
        targets.setdefault(message, []).append(f"{entry.target:g}")
    needs = (f"{certificate.risk} {', '.join(some)}: {message}" for message, some in targets.items())
    return f"{count} {unit} certify. " + ". ".join(needs)
