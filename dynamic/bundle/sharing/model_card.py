"""The model card of a bundle: `README.md` beside its files, with the metadata that the Hugging Face Hub reads.

Metadata: https://huggingface.co/docs/hub/model-cards. Results: https://github.com/huggingface/hub-docs, modelcard.md.
The card is for people. It is not in the manifest, so it may be edited.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from dynamic.bundle.contract import DescribedBundle
from dynamic.bundle.tables import certificate_text, machine_text
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.policies.certification.ladders.point_sentences import point_sentences

CARD = "README.md"
_MOST_CLASSES = 20  # that are listed by name
_TAGS = ("adaptive-inference", "early-exit", "cascade", "onnx", "edge")


def model_card(bundle: DescribedBundle, name: str) -> str:
    """The card of a bundle.

    Args:
        bundle: The bundle.
        name: Its name, for the title.

    Returns:
        Markdown, with YAML before it.
    """
    parts = [
        f"# {name}",
        _about(bundle),
        *_points(bundle),
        *_certificate(bundle),
        *_costs(bundle),
        *_how_to_load(bundle, name),
        *_content(),
    ]
    return f"---\n{_metadata(bundle, name)}---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(bundle: DescribedBundle, name: str) -> str:
    """YAML. A string of JSON is one of YAML, so names with colons and quotes are safe."""
    task = _task(bundle)
    lines = ["library_name: dynamic-inference", "tags:", *(f"- {tag}" for tag in _TAGS)]
    if task is not None:
        lines.insert(1, f"pipeline_tag: {task}")
    lines += ["model-index:", f"- name: {_text(name)}", "  results:"]
    for point in bundle.ladder.points:
        word = "accuracy" if point.drop is not None else "agreement with the reference"
        lines += [
            "  - task:",
            f"      type: {task or 'classification'}",
            "    dataset:",
            "      type: calibration",
            f"      name: {_text(f'{point.n} held-out inputs that certified')}",
            "    metrics:",
            f"    - type: {'accuracy' if point.drop is not None else 'agreement'}",
            f"      name: {_text(f'{word} at point {point.name}')}",
            f"      value: {point.accuracy.mid:.6g}",
        ]
    return "\n".join(lines) + "\n"


def _task(bundle: DescribedBundle) -> str | None:
    """The Hub's word for the task. None: the inputs arrive ready, so it is not known."""
    if bundle.preprocess is None:
        return None
    if isinstance(bundle.preprocess, TextPreprocess):
        return "text-classification"
    return "audio-classification" if isinstance(bundle.preprocess, SoundPreprocess) else "image-classification"


def _about(bundle: DescribedBundle) -> str:
    stages = ", ".join(f"`{stage.name}`" for stage in bundle.spec.stages)
    inputs = ", ".join(
        f"`{i.name}` [{', '.join(str(s) if isinstance(s, int) else s.words for s in i.sides)}] {i.dtype}"
        for i in bundle.spec.inputs
    )
    classes = f"{bundle.spec.classes} classes"
    if bundle.classes is not None:
        shown = ", ".join(bundle.classes[:_MOST_CLASSES])
        more = len(bundle.classes) - _MOST_CLASSES
        classes += f": {shown}" + (f" and {more} more" if more > 0 else "")
    slim = ""
    if bundle.slim is not None:
        slim = "\n".join([f"\n\nIt is slim, {bundle.slim}:\n", *(f"- {line}" for line in bundle.slim.left_out)])
    return (
        "A cascade of classifiers for [dynamic-inference](https://pypi.org/project/dynamic-inference/). It spends on "
        "each input what the input needs: an input exits at the first stage that is confident enough.\n\n"
        f"- Stages: {stages}\n- Engine: {bundle.engine}, {bundle.precision}\n- Inputs: "
        f"{inputs}, without the batch\n- {classes}{slim}"
    )


def _points(bundle: DescribedBundle) -> Iterable[str]:
    ladder = bundle.ladder
    risk = ladder.points[0].kind if ladder.certificate is None else ladder.certificate.risk
    word = "accuracy" if all(point.drop is not None for point in ladder.points) else "agreement"
    yield "## Operating points"
    yield _table(
        ("point", f"{risk} at most", f"measured {risk}", word, "95% interval", "exits by stage"),
        (
            (
                point.name,
                "not certified" if point.bound is None else f"{point.bound:.4g}",
                f"{point.risk:.4f}",
                f"{point.accuracy.mid:.4f}",
                f"{point.accuracy.low:.4f} to {point.accuracy.high:.4f}",
                " ".join(f"{share:.0%}" for share in point.shares),
            )
            for point in ladder.points
        ),
    )
    yield "\n".join(f"- **{_cell(name)}**: {words}" for name, words in point_sentences(ladder).items())


def _certificate(bundle: DescribedBundle) -> Iterable[str]:
    yield "## Certificate"
    yield "```\n" + certificate_text(bundle.ladder) + "\n```"
    yield (
        "It is void for:\n\n"
        "- other kinds of inputs than those of the calibration, such as another camera, site or season. The runtime "
        "watches for that and stops certifying\n"
        "- inputs that depend on each other, where the calibration's did not\n"
        f"- another engine or precision than {bundle.engine} {bundle.precision}, and processors on which the canaries "
        "differ\n"
        "- other weights, thresholds or preprocessing\n"
        "- answers that a deadline cut short\n\n"
        "It says nothing about single classes or groups of people: the bounds are averages over all inputs."
    )


def _costs(bundle: DescribedBundle) -> Iterable[str]:
    if bundle.costs is None:
        return
    frontier = bundle.frontier
    yield "## Costs"
    yield f"Measured on one machine: {machine_text(bundle.costs)}. `bundle.profile()` measures yours."
    yield _table(
        ("point", "mean ms", "p95 ms", "CPU-ms", "MB"),
        (
            (p.name, f"{p.mean_ms[0]:.3f}", f"{p.p95_ms[0]:.3f}", f"{p.cpu_ms[0]:.3f}", f"{p.memory_mb:.1f}")
            for p in frontier.points
        ),
    )


def _how_to_load(bundle: DescribedBundle, name: str) -> Iterable[str]:
    extra = "" if bundle.engine == "onnxruntime" else f"[{'build' if bundle.engine == 'torch' else bundle.engine}]"
    yield "## How to run it"
    yield f'```bash\npip install "dynamic-inference{extra}"\n```'
    yield (
        "```python\n"
        "import dynamic\n\n"
        f"bundle = dynamic.load({name!r})  # this folder, or hf://owner/name\n"
        "with bundle.runtime(dynamic.Budget(max_drop=0.01)) as run:\n"
        "    answer = run(x)\n"
        "    print(answer.label, answer.name, answer.probability, answer.certified)\n"
        "```"
    )


def _content() -> Iterable[str]:
    yield "## What the files hold of your data"
    yield (
        "`records.npz` holds logits and labels of the calibration inputs. `canaries.npz`, where it is there, holds "
        "some of these inputs themselves, or those that `build(canaries=...)` named. Nothing in the folder is pickle "
        "or code, and `bundle.json` lists the SHA-256 of every file but this one."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _text(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)
