"""What files and neighbours have to agree on: the names of the classes, and numbers that are probabilities."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynamic.offline.onnx_files.onnx_file import OnnxModel
from dynamic.policies.errors import InputError
from dynamic.policies.records import Records

SUM_LIMIT = 1e-3  # of the sum of a row's probabilities from 1


def class_names(models: Sequence[OnnxModel], classes: Sequence[str] | None) -> Sequence[str] | None:
    """The names of the classes: those that are set, or those of files that have some.

    Raises InputError where a file has other names, or the same in another order.
    """
    source, names = "classes=", classes
    for model in models:
        own = model.answer.labels
        if own is None:
            continue
        if names is not None and list(own) != list(names):
            ours, theirs = list(own), list(names)
            how = "in another order" if sorted(ours) == sorted(theirs) else "others"
            raise InputError(
                f"{model.path} has the classes {ours!r:.200}, and {source} has {how}: {theirs!r:.200}. All have to "
                "give the same classes in the same order, and labels count them from 0"
            )
        if names is None:
            source, names = str(model.path), own
    return names


def check_probabilities(numbers: NDArray[np.floating], model: OnnxModel) -> None:
    """Raises InputError where rows of what should be probabilities `[B, C]` are none."""
    finite = numbers[np.isfinite(numbers).all(axis=1)]
    if not len(finite):
        return
    sums, least = finite.sum(axis=1), float(finite.min())
    worst = float(sums[np.abs(sums - 1).argmax()])
    if abs(worst - 1) > SUM_LIMIT or least < -SUM_LIMIT:
        low = f", and the least of them is {least:.4g}" if least < -SUM_LIMIT else ""
        raise InputError(
            f"{model.path}: output {model.answer.output!r} is taken as probabilities, and those of a calibration input "
            f"sum to {worst:.4g}{low} (limit 1 +- {SUM_LIMIT:g}). Say dynamic.onnx_model(path, kind='logits') where "
            "they are logits, or export the model with probabilities of classes that exclude each other"
        )


def check_sums(records: Records, stage: int, model: OnnxModel) -> None:
    """The same for all inputs of a calibration, from the logarithms that a stage gave."""
    check_probabilities(np.exp(records.logits[:, stage].astype(np.float64)), model)
