"""Classifiers of scikit-learn as ONNX files, through skl2onnx."""

import warnings
import weakref
from pathlib import Path
from typing import Any

from dynamic.extras import with_remedy
from dynamic.policies.errors import InputError
from dynamic.storage.temporary_files import TemporaryFolder


def written(estimator: Any) -> tuple[Path, TemporaryFolder]:
    """The file of an estimator, and the temporary folder that it lies in.

    Raises InputError where it is not fitted, has no probabilities, or is not converted.
    """
    name = type(estimator).__name__
    width = getattr(estimator, "n_features_in_", None)
    if width is None or not hasattr(estimator, "predict_proba"):
        lacks = "is not fitted to features [N, F]" if width is None else "has no predict_proba"
        raise InputError(f"{name} {lacks}, and a stage gives probabilities of classes: fit one that has predict_proba")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside of it, nothing a user can act on
            from skl2onnx import to_onnx
            from skl2onnx.common.data_types import FloatTensorType

            features = [("input", FloatTensorType([None, int(width)]))]
            model = to_onnx(estimator, initial_types=features, options={"zipmap": False})
    except ModuleNotFoundError as error:
        raise with_remedy(error, f"a {name} in a cascade") from error
    except Exception as error:  # of converters, each its own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"skl2onnx does not convert {name}: {reason}. Use one of its supported estimators, or write an ONNX file "
            "of it yourself"
        ) from error
    folder = TemporaryFolder("sklearn")
    path = folder.path / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path, folder


def remove_with(owner: object, folder: TemporaryFolder) -> None:
    """Remove a folder once the model that reads from it is gone."""
    weakref.finalize(owner, folder.remove)
