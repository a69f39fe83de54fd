"""Bundles, ladders and costs as text."""

from collections.abc import Sequence

from dynamic.bundle.contract import DeployedBundle
from dynamic.policies.certification.certificates import shortage_lines
from dynamic.policies.certification.ladders.point_sentences import point_sentences
from dynamic.policies.costs import Costs
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder
from dynamic.policies.words.short_repr import wrapped
from dynamic.policies.words.tables import table


def bundle_text(bundle: DeployedBundle) -> str:
    """The ladder, which of its points are one network alone, and, once profiled, what they cost here."""
    alone = [p.name for p in bundle.ladder.points[1:] if max(p.shares) == 1]
    static = f"\none network alone, so that it can be shipped as it is: {', '.join(alone)}" if alone else ""
    here = "no costs for this machine yet: bundle.profile() measures them"
    if bundle.costs is not None:
        missing = ", ".join(bundle.costs.not_measured) or "nothing is left out"
        here = wrapped(f"{machine_text(bundle.costs)}. Not measured: {missing}", "    ")
        here += f"\n{points_text(bundle.frontier)}"
    about = f"bundle in {bundle.folder}, for {bundle.engine} {bundle.precision}"
    if bundle.slim is not None:
        about = wrapped("\n".join([f"{about}, slim: {bundle.slim}", *bundle.slim.left_out]), "    ")
    return f"{about}\n{ladder_text(bundle.ladder)}{wrapped(static, '    ')}\n\n{here}"


def ladder_text(ladder: Ladder) -> str:
    """Every point with its target, its measured figures, its exits and a sentence, and what the bounds rest on."""
    sentences = [wrapped(f"{name}: {words}", "    ") for name, words in point_sentences(ladder).items()]
    floor = [] if ladder.floor is None else [f"floor of accuracy {ladder.floor:.4f}: no point is below it"]
    about = [f"stages: {', '.join(ladder.stage_names)}", *floor, *ladder.left_out]
    return "\n".join([str(ladder), *sentences, wrapped("\n".join(about), "    "), certificate_text(ladder)])


def certificate_text(ladder: Ladder) -> str:
    """What the bounds of a ladder rest on, and what could not be certified."""
    certificate = ladder.certificate
    if certificate is None:
        return "NOT CERTIFIED: certify was not called"
    groups = "" if certificate.groups is None else f" in {certificate.groups} groups"
    drawn = "inputs" if certificate.groups is None else "groups"
    on = f"{certificate.images} inputs{groups} ({certificate.search_images} others chose), {certificate.date}"
    of = f"of the networks, preprocessing, engine and precision with fingerprint {ladder.fingerprint[:12]}"
    if ladder.certified:
        lines = [
            f"certified: all bounds hold at once with probability {1 - certificate.delta:g} over the draw of {drawn}",
            f"on {on}, {certificate.test}, score {ladder.score}",
            f"{of}: void if one of them changes, or the kind of inputs",
        ]
    else:
        lines = [f"NOT CERTIFIED: points were chosen and measured, and no bound stands behind them. On {on}", of]
    if certificate.missing:
        lines += shortage_lines(certificate)
    return wrapped("\n".join(lines), "    ")


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
    overheads = [f"{ms:.3f} ms at {k}" for ms, k in zip(costs.call_ms, costs.batch, strict=True)]
    memory = [f"{last[b]} {mb:.1f} MB" for b, mb in enumerate(costs.memory_mb)]
    return "\n".join(
        [
            machine_text(costs),
            "",
            table(("stage", "batch", "median ms", "p95 ms", "head ms", "CPU-ms"), rows),
            "",
            wrapped("overhead of a request: " + ", ".join(overheads), "    "),
            wrapped("resident memory: " + ", ".join(memory), "    "),
            *sizes_text(costs, [stage.name for stage in stages]),
            wrapped(f"not measured: {', '.join(costs.not_measured) or 'nothing is left out'}", "    "),
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
    doubts = "".join(f"DOUBTFUL: {doubt}\n" for doubt in frontier.costs.doubts)
    batch, (reference, *others) = frontier.costs.batch[0], frontier.points
    words = f"the reference, and points that no other beats here, at batch {batch}"
    slower = [point.name for point in others if point.mean_ms[0] >= reference.mean_ms[0]]
    why = (
        f"\nnot faster than the reference at batch {batch}: {', '.join(slower)}. Other figures are better "
        "(accuracy, CPU time, p95, larger batches), or the profile cannot distinguish them"
    )
    return f"{wrapped(f'{doubts}{words}:', '    ')}\n{frontier}{wrapped(why, '    ') if slower else ''}"
