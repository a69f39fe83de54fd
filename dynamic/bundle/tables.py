"""Bundles, ladders and costs as text."""

from collections.abc import Iterable, Sequence

from dynamic.bundle.contract import DeployedBundle
from dynamic.policies.certification.certificates import shortage
from dynamic.policies.costs import Costs
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder, OperatingPoint


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns in line: the first to the left, the others to the right."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def bundle_text(bundle: DeployedBundle) -> str:
    """The ladder, which of its points are one network alone, and, once profiled, what they cost here."""
    alone = [p.name for p in bundle.ladder.points[1:] if max(p.shares) == 1]
    static = f"\none network alone, so that it can be shipped as it is: {', '.join(alone)}" if alone else ""
    here = "no costs for this machine yet: bundle.profile() measures them"
    if bundle.costs is not None:
        missing = ", ".join(bundle.costs.not_measured) or "nothing is left out"
        here = f"{machine_text(bundle.costs)}. Not measured: {missing}\n{points_text(bundle.frontier)}"
    about = f"bundle in {bundle.folder}, for {bundle.engine} {bundle.precision}"
    return f"{about}\n{ladder_text(bundle.ladder)}{static}\n\n{here}"


def ladder_text(ladder: Ladder) -> str:
    """Every point with its target, its measured figures and its exits, and what the bounds rest on."""
    certificate = ladder.certificate
    risk = "drop" if certificate is None else certificate.risk
    labelled = all(point.drop is not None for point in ladder.points)
    head = (
        "point",
        "certified",
        f"measured {risk}",
        "accuracy" if labelled else "agreement",
        "95% interval",
        "leaving at each stage",
    )
    rows = (
        (
            point.name,
            certified_text(point),
            f"{point.risk:.4f}",
            f"{point.accuracy.mid:.4f}",
            f"{point.accuracy.low:.4f}-{point.accuracy.high:.4f}",
            " ".join(f"{share:4.0%}" for share in point.shares),
        )
        for point in ladder.points
    )
    floor = [] if ladder.floor is None else [f"floor of accuracy {ladder.floor:.4f}: no point is below it"]
    lines = [f"stages: {', '.join(ladder.stage_names)}", table(head, rows), *floor, *ladder.left_out]
    return "\n".join([*lines, certificate_text(ladder)])


def certified_text(point: OperatingPoint) -> str:
    """What is certified of a point."""
    return "no" if point.bound is None else f"{point.kind} <= {point.bound:g}"


def certificate_text(ladder: Ladder) -> str:
    """What the bounds of a ladder rest on, and what could not be certified."""
    certificate = ladder.certificate
    if certificate is None:
        return "NOT CERTIFIED: nobody tried"
    groups = "" if certificate.groups is None else f" in {certificate.groups} groups"
    drawn = "inputs" if certificate.groups is None else "groups"
    on = (
        f"{certificate.images} inputs{groups} ({certificate.search_images} others chose), {certificate.date}, "
        f"fingerprint {ladder.fingerprint[:12]}"
    )
    if ladder.certified:
        lines = [
            f"certified: all bounds hold at once with probability {1 - certificate.delta:g} over the draw of {drawn}",
            f"on {on}, {certificate.test}, score {ladder.score}",
            "void if cascade, preprocessing, engine, precision or the kind of inputs changes",
        ]
    else:
        lines = [f"NOT CERTIFIED: points were chosen and measured, and no bound stands behind them. On {on}"]
    if certificate.missing:
        lines.append(f"not certified: {shortage(certificate)}")
    return "\n".join(lines)


def costs_text(bundle: DeployedBundle, costs: Costs) -> str:
    """What every stage costs at every batch size, the memory of every backbone, and what that makes of the points."""
    stages = bundle.spec.stages
    figures = (costs.latency_ms, costs.latency_p95_ms, costs.head_ms, costs.cpu_ms)
    rows = (
        (stage.name, str(size), *(f"{figure[s][k]:.3f}" for figure in figures))
        for s, stage in enumerate(stages)
        for k, size in enumerate(costs.batch)
    )
    last = {stage.backbone: stage.name for stage in stages}  # a backbone is named like its last stage
    return "\n".join(
        [
            machine_text(costs),
            "",
            table(("stage", "batch", "median ms", "p95 ms", "head ms", "CPU-ms"), rows),
            "",
            "overhead of a request: "
            + ", ".join(f"{ms:.3f} ms at {k}" for ms, k in zip(costs.call_ms, costs.batch, strict=True)),
            "resident memory: " + ", ".join(f"{last[b]} {mb:.1f} MB" for b, mb in enumerate(costs.memory_mb)),
            *sizes_text(costs, [stage.name for stage in stages]),
            f"not measured: {', '.join(costs.not_measured) or 'nothing is left out'}",
            "",
            points_text(bundle.frontier),
            certificate_text(bundle.ladder),
        ]
    )


def sizes_text(costs: Costs, names: Sequence[str]) -> list[str]:
    """What every stage costs at every measured size of input, at the smallest batch. Empty: there is one size."""
    if not costs.sizes:
        return []
    rows = (
        (name, str(at.size), *(f"{figure[s][0]:.3f}" for figure in (at.latency_ms, at.latency_p95_ms, at.cpu_ms)))
        for s, name in enumerate(names)
        for at in costs.measured_sizes
    )
    return [
        "",
        f"by size of input, at batch {costs.batch[0]}. The example has size {costs.size}, all other figures are of it.",
        "Between measured sizes, and beyond the largest, times are taken as linear:",
        table(("stage", "size", "median ms", "p95 ms", "CPU-ms"), rows),
        "",
    ]


def machine_text(costs: Costs) -> str:
    """What was measured, and how the engine ran."""
    return f"{costs.machine}, engine {costs.engine}, {costs.precision}, {costs.threads} threads"


def points_text(frontier: Frontier) -> str:
    """What the points cost that are worth it on this machine, at the smallest batch, and what makes that doubtful."""
    points = (
        (
            p.name,
            certified_text(p.operating_point),
            f"{p.accuracy.mid:.4f}",
            *(f"{ms:.3f}" for ms in (p.mean_ms[0], p.p95_ms[0], p.cpu_ms[0])),
            f"{p.memory_mb:.1f}",
        )
        for p in frontier.points
    )
    head = ("point", "certified", "accuracy", "mean ms", "p95 ms", "CPU-ms", "MB")
    doubts = "".join(f"DOUBTFUL: {doubt}\n" for doubt in frontier.costs.doubts)
    words = f"the reference, and points that no other beats here, at batch {frontier.costs.batch[0]}"
    return f"{doubts}{words}:\n{table(head, points)}"
