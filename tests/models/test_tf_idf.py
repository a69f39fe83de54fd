"""TF-IDF and a linear layer: scikit-learn's answers, in torch and in a bundle."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.svm import LinearSVC
from support.networks.texts import CLASSES, sentences, tokenizer
from torch import Tensor, nn

import dynamic
from dynamic.models import BagOfTokens, TfIdf
from dynamic.policies.errors import InputError, SettingError

VOCABULARY = 40


def documents(count: int = 120, seed: int = 0) -> list[list[int]]:
    """Texts of 1 to 29 ids, of which many repeat."""
    draw = np.random.default_rng(seed)
    return [(draw.zipf(1.3, draw.integers(1, 30)) % VOCABULARY).tolist() for _ in range(count)]


def batch(texts: Sequence[Sequence[int]], padding: int = 3) -> tuple[Tensor, Tensor]:
    """Ids and mask `[B, 32]`. Padding has the id of a token that texts have too."""
    ids, mask = torch.full((len(texts), 32), padding), torch.zeros(len(texts), 32, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
    return ids, mask


def fitted(classes: int = 4, classifier: Any = None, **options: Any) -> tuple[Any, Any]:
    """Both on 120 texts whose class is that of their commonest id."""
    vectorizer = TfidfVectorizer(analyzer=list, **options)
    features = vectorizer.fit_transform(documents())
    labels = [max(set(text), key=text.count) % classes for text in documents()]
    return vectorizer, (classifier or LogisticRegression(C=10)).fit(features, labels)


def decisions(vectorizer: Any, classifier: Any, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """scikit-learn's own."""
    return np.asarray(classifier.decision_function(vectorizer.transform(texts)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sublinear_tf": True},
        {"binary": True},
        {"binary": True, "sublinear_tf": True},
        {"norm": "l1"},
        {"norm": None},
        {"use_idf": False},
        {"smooth_idf": False},
        {"min_df": 30},  # some tokens have no feature, some texts none at all
    ],
)
def test_decisions_are_those_of_scikit_learn(options: dict[str, Any]) -> None:
    vectorizer, classifier = fitted(**options)
    network = TfIdf.of(vectorizer, classifier, vocabulary=VOCABULARY)
    texts = documents(80, seed=1)
    logits = network(*batch(texts)).detach().numpy()
    np.testing.assert_allclose(logits, decisions(vectorizer, classifier, texts), atol=1e-5)
    probabilities = classifier.predict_proba(vectorizer.transform(texts))
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1).numpy(), probabilities, atol=1e-5)
    if "min_df" in options:
        assert len(vectorizer.vocabulary_) < len({token for text in documents() for token in text})
        assert (vectorizer.transform(texts).sum(1) == 0).any()


@pytest.mark.parametrize("classifier", [LinearSVC(random_state=0), SGDClassifier(random_state=0)])
def test_other_linear_classifiers(classifier: Any) -> None:
    vectorizer, classifier = fitted(classifier=classifier)
    logits = TfIdf.of(vectorizer, classifier, vocabulary=VOCABULARY)(*batch(documents()))
    np.testing.assert_allclose(logits.detach().numpy(), decisions(vectorizer, classifier, documents()), atol=1e-4)


def test_sparse_coefficients_and_two_classes() -> None:
    vectorizer, classifier = fitted(2)
    expected = decisions(vectorizer, classifier, documents())
    network = TfIdf.of(vectorizer, classifier.sparsify(), vocabulary=VOCABULARY)
    logits = network(*batch(documents())).detach().numpy()
    assert logits.shape == (120, 2)
    np.testing.assert_allclose(logits[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(logits[:, 1], expected, atol=1e-5)


def test_tokens_as_strings() -> None:
    words, labels = sentences(60)
    own = tokenizer(special=False)
    vectorizer = TfidfVectorizer(analyzer=lambda text: own.encode(text).tokens)
    classifier = LogisticRegression().fit(vectorizer.fit_transform(words), labels)
    texts = dynamic.TextPreprocess.of(own)
    network = TfIdf.of(vectorizer, classifier, vocabulary=texts.vocabulary, token_ids=own.get_vocab())
    inputs = {name: torch.from_numpy(array) for name, array in texts(words).items()}
    np.testing.assert_allclose(
        network(**inputs)[:, 1].detach().numpy(), classifier.decision_function(vectorizer.transform(words)), atol=1e-5
    )


def test_logits_by_hand() -> None:
    """Ids 1, 1, 2 with idf 2 and 3: the features are 4 and 3, their length 5."""
    network = TfIdf(4, 2)
    with torch.no_grad():
        network.idf.weight.copy_(torch.tensor([[9.0], [2.0], [3.0], [9.0]]))
        network.coefficients.weight.copy_(torch.tensor([[7.0, 7.0], [1.0, 0.0], [0.0, 1.0], [7.0, 7.0]]))
        network.bias.copy_(torch.tensor([0.5, 0.0]))
    logits = network(torch.tensor([[1, 2, 1, 3]]), torch.tensor([[1, 1, 1, 0]]))
    np.testing.assert_allclose(logits.detach().numpy(), [[4 / 5 + 0.5, 3 / 5]], rtol=1e-6)


def test_idf_is_counted_as_scikit_learn_does() -> None:
    texts = documents()
    vectorizer = TfidfVectorizer(analyzer=list).fit(texts)
    ids, mask = batch(texts)
    labels = torch.zeros(len(texts), dtype=torch.long)
    loader = [
        ({"input_ids": ids[rows], "attention_mask": mask[rows]}, labels[rows]) for rows in (slice(70), slice(70, 120))
    ]
    network = TfIdf(VOCABULARY, 3).count(loader)
    for token, column in vectorizer.vocabulary_.items():
        assert network.idf.weight[token].item() == pytest.approx(vectorizer.idf_[column], rel=1e-6)
    before = network.idf.weight.clone()
    report = dynamic.fit(network, loader, mode="joint", epochs=2, progress=False)
    assert report.loss[0] < report.history_loss[0][0]
    assert torch.equal(network.idf.weight, before)


def test_what_does_not_fit_is_refused() -> None:
    settings: dict[str, Any]
    for settings in ({"vocabulary": 0}, {"classes": True}, {"norm": "max"}, {"binary": 1}):
        with pytest.raises(SettingError, match=next(iter(settings))):
            TfIdf(**{"vocabulary": 5, "classes": 2, **settings})
    with pytest.raises(SettingError, match="exclude each other"):
        TfIdf(5, 2, binary=True, sublinear=True)
    vectorizer, classifier = fitted()
    with pytest.raises(InputError, match="give a fitted TfidfVectorizer"):
        TfIdf.of(TfidfVectorizer(), classifier, vocabulary=VOCABULARY)
    with pytest.raises(InputError, match="vocabulary=9: give that of the tokenizer"):
        TfIdf.of(vectorizer, classifier, vocabulary=9)
    with pytest.raises(InputError, match="coefficients"):
        TfIdf.of(TfidfVectorizer(analyzer=list).fit([[1, 2]]), classifier, vocabulary=VOCABULARY)
    pairs = TfidfVectorizer(ngram_range=(1, 2))
    with pytest.raises(InputError, match=r"feature .* is no token.*get_vocab"):
        TfIdf.of(pairs, LogisticRegression().fit(pairs.fit_transform(["a12 b34", "b34"]), [0, 1]), vocabulary=5)
    words = LogisticRegression().fit(vectorizer.transform(documents()), ["a", "b"] * 60)
    with pytest.raises(InputError, match=r"classes .*expected 0 to 1"):
        TfIdf.of(vectorizer, words, vocabulary=VOCABULARY)
    with pytest.raises(InputError, match="gave no text"):
        TfIdf(5, 2).count([])
    ids = torch.tensor([[7]])
    with pytest.raises(InputError, match="7 to 7, and the table has 5 rows"):
        TfIdf(5, 2).count([({"input_ids": ids, "attention_mask": ids}, ids[0])])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_first_in_a_bundle_at_any_length(engine: Any) -> None:
    own = tokenizer()
    texts = dynamic.TextPreprocess.of(own)
    words, labels = sentences(300)
    ids = [own.encode(text).ids for text in words]
    vectorizer = TfidfVectorizer(analyzer=list, sublinear_tf=True)
    classifier = LogisticRegression().fit(vectorizer.fit_transform(ids[:100]), labels[:100])
    first = TfIdf.of(vectorizer, classifier, vocabulary=texts.vocabulary)
    torch.manual_seed(0)
    second = BagOfTokens(texts.vocabulary, 2, width=8).eval()
    nn.init.normal_(second.classifier.weight, std=3.0)
    length = torch.export.Dim("length", min=1, max=64)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    cascade = dynamic.Cascade([first, second], dynamic_shapes=shapes)
    loader = texts.batches(words[100:], labels[100:], size=50, length=9)
    bundle = dynamic.build(
        cascade, loader, engine=engine, preprocess=texts, classes=CLASSES, max_drops=(0.5,), floor=0, progress=False
    )
    engine_of_bundle = bundle.open()
    try:
        for longer in (3, 40):
            text = [*words[:5], " ".join(["turn the lights"] * longer)[:200]]
            arrays = texts(text)
            logits = engine_of_bundle.all_logits(arrays)[:, 0]
            expected = decisions(vectorizer, classifier, [own.encode(one).ids for one in text])
            np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, atol=1e-5)
    finally:
        engine_of_bundle.close()
    with bundle.runtime() as run:
        assert run("please turn the lights on").name == "lights"


def test_counts_alone_and_two_features_of_one_id_are_refused() -> None:
    texts, labels = ["on off", "off", "on on", "of"], [0, 1, 0, 1]
    counter = CountVectorizer()
    classifier = LogisticRegression().fit(counter.fit_transform(texts), labels)
    ids = {"on": 4, "off": 5, "of": 6}
    with pytest.raises(InputError, match=r"CountVectorizer has no .*'use_idf'.*give a fitted TfidfVectorizer"):
        TfIdf.of(counter, classifier, vocabulary=10, token_ids=ids)
    vectorizer = TfidfVectorizer()
    classifier = LogisticRegression().fit(vectorizer.fit_transform(texts), labels)
    TfIdf.of(vectorizer, classifier, vocabulary=10, token_ids=ids)
    with pytest.raises(InputError, match=r"features \['on', 'off'\] have one id|features \['off', 'on'\] have one id"):
        TfIdf.of(vectorizer, classifier, vocabulary=10, token_ids=ids | {"on": 5})
