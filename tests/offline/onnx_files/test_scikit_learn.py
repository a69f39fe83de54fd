"""Classifiers of scikit-learn: as skl2onnx writes them, and given as they are."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from support.onnx_files.classifier_files import batches, data, linear, own_answers

import dynamic
from dynamic.engines.engine_factory import open_engine
from dynamic.errors import InputError
from dynamic.offline.build_steps.record_collection import plain_combiner

LIMIT = 1e-5
NAMES = np.array(["ant", "bee", "cat"])


def estimators() -> dict[str, Any]:
    return {
        "logistic": LogisticRegression(max_iter=300),
        "forest": RandomForestClassifier(12, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=5, random_state=0),
        "pipeline": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        "bayes": GaussianNB(),
        "support vectors": SVC(probability=True, random_state=0),
    }


def fitted(name: str, labels: Any = None) -> Any:
    x, y = data(240)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn announces changes of SVC
        return estimators()[name].fit(x, y if labels is None else labels[y])


def converted(estimator: Any, path: Path, zipmap: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from skl2onnx import to_onnx

        path.write_bytes(to_onnx(estimator, data(2)[0], options={"zipmap": zipmap}).SerializeToString())
    return path


def stage_probabilities(bundle: dynamic.Bundle, x: Any) -> Any:
    opened = open_engine("onnxruntime", bundle.folder, bundle.spec, plain_combiner(bundle.spec))
    try:
        return np.exp(opened.all_logits({"input": x})[:, 0])
    finally:
        opened.close()


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("name", list(estimators()))
def test_files_as_skl2onnx_writes_them(name: str, zipmap: bool, tmp_path: Path) -> None:
    path = converted(fitted(name), tmp_path / "skl.onnx", zipmap)
    bundle = dynamic.build([path, linear(tmp_path / "large.onnx")], batches(), max_drops=(0.1,), progress=False)
    x = data(30)[0]
    np.testing.assert_allclose(stage_probabilities(bundle, x), own_answers(path, x), rtol=0, atol=LIMIT)
    assert bundle.classes is None
    graph = onnxruntime.InferenceSession(bundle.folder / "graph_single.onnx")
    _, stage, _ = graph.run(None, {"input": x[:1], "thresholds": np.array([-np.inf], np.float32)})
    assert stage.tolist() == [0]
    assert bundle.spec.stages[0].macs > 0 or name == "bayes"


@pytest.mark.parametrize("zipmap", [True, False])
def test_names_of_classes_have_to_agree(zipmap: bool, tmp_path: Path) -> None:
    path = converted(fitted("logistic", NAMES), tmp_path / "skl.onnx", zipmap)
    large = linear(tmp_path / "large.onnx")
    assert dynamic.onnx_model(path).answer.labels == ("ant", "bee", "cat")
    assert dynamic.build([path, large], batches(), progress=False).classes == ("ant", "bee", "cat")
    among = dynamic.build(dynamic.Cascade([path, large]), batches(), classes=tuple(NAMES), progress=False)
    assert among.classes == ("ant", "bee", "cat")
    with pytest.raises(InputError, match=r"classes= has in another order.*labels count them from 0"):
        dynamic.build([path, large], batches(), classes=("bee", "ant", "cat"), progress=False)
    with pytest.raises(InputError, match=r"skl.onnx has the classes \['ant', 'bee', 'cat'\], and classes= has others"):
        dynamic.build([path, large], batches(), classes=("a", "b", "c"), progress=False)
    other = converted(fitted("forest", NAMES[::-1].copy()), tmp_path / "other.onnx", zipmap)
    assert dynamic.onnx_model(other).answer.labels == ("ant", "bee", "cat")  # scikit-learn sorts them
    numbers = converted(fitted("logistic", np.array([3, 5, 7])), tmp_path / "numbers.onnx", zipmap)
    with pytest.raises(InputError, match=r"numbers.onnx has the classes \['3', '5', '7'\], and .*skl.onnx has others"):
        dynamic.build([path, numbers], batches(), progress=False)


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("stack", [True, False])
def test_estimators_of_several_have_their_own_names(stack: bool, zipmap: bool, tmp_path: Path) -> None:
    """Those inside have the numbers from 0, or two classes."""
    inner = [("a", LogisticRegression(max_iter=300)), ("b", GaussianNB())]
    whole = StackingClassifier(inner) if stack else OneVsRestClassifier(inner[0][1])
    x, y = data(240)
    large = linear(tmp_path / "large.onnx")
    for labels in (NAMES, np.array([3, 5, 7])):
        estimator = whole.fit(x, labels[y])
        path = converted(estimator, tmp_path / "several.onnx", zipmap)
        names = tuple(str(label) for label in labels)
        assert dynamic.onnx_model(path).answer.labels == names
        for network in (path, estimator):
            with pytest.raises(InputError, match="classes= has in another order"):
                dynamic.build([network, large], batches(), classes=names[::-1], progress=False)
    numbers = whole.fit(x, y)
    assert dynamic.onnx_model(converted(numbers, tmp_path / "numbers.onnx", zipmap)).answer.labels is None


@pytest.mark.parametrize("name", list(estimators()))
def test_an_estimator_as_it_is(name: str, tmp_path: Path) -> None:
    estimator = fitted(name)
    bundle = dynamic.build([estimator, linear(tmp_path / "large.onnx")], batches(), max_drops=(0.1,), progress=False)
    assert bundle.spec.stages[0].name == type(estimator).__name__
    x = data(30)[0]
    limit = 1e-4 if name == "support vectors" else LIMIT  # float32 beside float64
    np.testing.assert_allclose(stage_probabilities(bundle, x), estimator.predict_proba(x), rtol=0, atol=limit)


def test_trees_of_two_classes_give_no_negative_probability(tmp_path: Path) -> None:
    """ONNX Runtime gives -1.2e-7, as 1 minus a sum, where all trees agree."""
    x, labels = data(240)
    y = (labels > 0).astype(np.int64)
    forest = RandomForestClassifier(50, random_state=0).fit(x, y)
    path = converted(forest, tmp_path / "forest.onnx", zipmap=False)
    assert own_answers(path, x).min() < 0
    large = linear(tmp_path / "large.onnx", classes=2)
    loader = [(x[i : i + 60], y[i : i + 60]) for i in range(0, 240, 60)]
    bundle = dynamic.build([path, large], loader, max_drops=(0.5,), progress=False)
    logits = bundle.records.logits[:, 0]
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(np.exp(logits), forest.predict_proba(x), rtol=0, atol=LIMIT)
    own = dynamic.Cascade([path])(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(own, logits, rtol=1e-5, atol=LIMIT)


def test_an_estimator_among_torch_networks() -> None:
    large = torch.nn.Linear(8, 3).eval()
    tensors = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches()]
    bundle = dynamic.build([fitted("logistic"), large], tensors, max_drops=(0.5,), progress=False)
    assert [stage.name for stage in bundle.spec.stages] == ["LogisticRegression", "Linear"]


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (
            LogisticRegression(),
            r"LogisticRegression is not fitted to features \[N, F\].*one that has predict_proba",
        ),
        (RidgeClassifier().fit(*data(60)), "RidgeClassifier has no predict_proba"),
        (
            make_pipeline(FunctionTransformer(np.sin), LogisticRegression()).fit(*data(60)),
            "skl2onnx does not convert Pipeline: .*Use one of its supported estimators",
        ),
    ],
)
def test_estimators_that_are_no_stage(estimator: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        dynamic.build([estimator, linear(tmp_path / "large.onnx")], batches(), progress=False)
