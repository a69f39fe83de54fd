"""Reports of runs as text for a shell user."""

from collections.abc import Sequence

import numpy as np

from dynamic.runtime.result import FeedbackEstimate, Statistics

_DRIFT = {
    None: "inputs were not watched for drift",
    False: "no drift from the inputs of the calibration was noticed",
    True: "inputs have drifted from those of the calibration: since then answers are not certified",
}


def run_text(stats: Statistics, latency_ms: Sequence[float], right: Sequence[bool], stages: Sequence[str]) -> str:
    """The report of a run.

    Args:
        stats: Statistics of the runtime.
        latency_ms: Latency of each input.
        right: Correctness of each input whose class is given.
        stages: Names of the stages.

    Returns:
        The text.
    """
    accuracy = f"accuracy {np.mean(right):.4f} of {len(right)} whose class is given" if right else "no classes given"
    p50, p95 = np.percentile(latency_ms, [50, 95])
    left = ", ".join(f"{name} {share:.1%}" for name, share in zip(stages, stats.stage_shares, strict=True))
    points = ", ".join(f"{name!r} {share:.1%}" for name, share in stats.point_shares.items())
    return "\n".join(
        [
            f"{stats.inputs} inputs, {accuracy}",
            f"latency mean {stats.mean_latency_ms:.2f} ms, median {p50:.2f} ms, p95 {p95:.2f} ms, "
            f"the first took {latency_ms[0]:.2f} ms, loading included",
            f"exits at {left}",
            f"points {points}, {stats.decision_changes} changes of decision, "
            f"certified answers {stats.certified_share:.0%}",
            _DRIFT[stats.drift],
            *([] if stats.feedback is None else [feedback_text(stats.feedback)]),
            *stats.limits_without_sensor,
        ]
    )


def left_out_text(left_out: Sequence[tuple[str, str]], count: int) -> str:
    """The inputs that were not answered, with the reasons."""
    lines = (f"  {name}: {reason}" for name, reason in left_out)
    return "\n".join([f"{len(left_out)} of {count} inputs were skipped:", *lines])


def feedback_text(feedback: FeedbackEstimate) -> str:
    """Accuracy by the labels of feedback."""
    low, mid, high = feedback.accuracy
    expected = "unknown" if feedback.expected is None else f"{feedback.expected:.4f}"
    return f"accuracy {mid:.4f} ({low:.4f} to {high:.4f}) by {feedback.count} labels of feedback, expected {expected}"
