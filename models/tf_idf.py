"""A stage for texts that counts tokens: TF-IDF and a linear layer."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.offline.option_words import check_word
from dynamic.policies.errors import InputError, SettingError

Norm = Literal["l1", "l2", "none"]


class TfIdf(nn.Module):
    """A linear layer on the TF-IDF features of a text, as scikit-learn's `TfidfVectorizer` computes them.

    A token v that stands c times in a text has the feature `tf(c) * idf[v]`, and features are divided by their norm
    (Manning et al. 2008, "Introduction to Information Retrieval", section 6.2 and eq. 6.12). The table of all features
    is never made: a position whose token stands c times in the text adds `1 / c` of what the token gives. The counts
    are N * N comparisons of a text of N tokens, and a row of the table is looked up for each position. The comparisons
    take 5 * N * N bytes a text, 1.3 MB for 512 tokens.

    `TfIdf.of` copies what scikit-learn fitted. Without scikit-learn, `count` computes `idf` and
    `dynamic.fit(network, loader, mode="joint")` trains the rest.

    Args:
        vocabulary: Rows of the tables: `TextPreprocess.vocabulary`.
        classes: How many.
        sublinear: Whether `tf(c)` is `1 + ln(c)`, and not c.
        binary: Whether `tf(c)` is 1.
        norm: By what a text's features are divided: "l2", "l1", or "none".

    Raises:
        SettingError: A number is out of range, or both `sublinear` and `binary` are set.

    Example:
        >>> network = dynamic.models.TfIdf(100, 4)
        >>> network(torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, vocabulary: int, classes: int, *, sublinear: bool = False, binary: bool = False, norm: Norm = "l2"
    ) -> None:
        super().__init__()
        for name, value in (("vocabulary", vocabulary), ("classes", classes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}={value!r} must be a whole number from 1")
        for name, flag in (("sublinear", sublinear), ("binary", binary)):
            if not isinstance(flag, bool):
                raise SettingError(f"{name}={flag!r} must be True or False")
        if sublinear and binary:
            raise SettingError("sublinear=True and binary=True exclude each other: set one of them")
        check_word("norm", norm, Norm)
        self.sublinear, self.binary, self.norm = sublinear, binary, norm
        self.idf = nn.Embedding(vocabulary, 1)
        self.idf.weight.requires_grad_(False).fill_(1.0)
        self.coefficients = nn.Embedding(vocabulary, classes)
        nn.init.zeros_(self.coefficients.weight)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Classify texts.

        Args:
            input_ids: `[B, N]`, whole numbers.
            attention_mask: `[B, N]`, 0 at padding.

        Returns:
            Logits `[B, classes]`.

        Raises:
            IndexError: An id is not in the table.

        Example:
            >>> network = dynamic.models.TfIdf(100, 4).eval()
            >>> ids, mask = torch.tensor([[7, 9, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
            >>> torch.allclose(network(ids, mask), network(ids[:, :3], mask[:, :3]))
            True
        """
        idf = self.idf(input_ids).squeeze(-1)  # [B, N]
        real = (attention_mask != 0).to(idf.dtype)
        same = (input_ids.unsqueeze(2) == input_ids.unsqueeze(1)).to(idf.dtype)  # [B, N, N]
        counts = (same @ real.unsqueeze(2)).squeeze(2).clamp(min=1.0)  # padding may have a token that no position has
        share = real / counts  # of a token, at each of its positions
        frequency = 1.0 + counts.log() if self.sublinear else counts
        features = idf if self.binary else frequency * idf
        logits: Tensor = ((share * features).unsqueeze(1) @ self.coefficients(input_ids)).squeeze(1)  # [B, C]
        if self.norm == "l2":
            length = (share * features * features).sum(1, keepdim=True).sqrt()
            logits = logits / torch.where(length > 0, length, torch.ones_like(length))
        elif self.norm == "l1":
            length = (share * features.abs()).sum(1, keepdim=True)
            logits = logits / torch.where(length > 0, length, torch.ones_like(length))
        return logits.add(self.bias)

    @torch.no_grad()
    def count(self, loader: Iterable[Any]) -> Self:
        """Set `idf` to `ln((1 + texts) / (1 + texts with the token)) + 1`, as scikit-learn does with `smooth_idf`.

        Args:
            loader: Batches of `(inputs, labels)`. The inputs are a dict of `input_ids` and `attention_mask`,
                both `[B, N]`. These are training data.

        Returns:
            This network.

        Raises:
            InputError: There is no text, or an id is not in the table.

        Example:
            >>> inputs = {"input_ids": torch.tensor([[7, 7, 9]]), "attention_mask": torch.tensor([[1, 1, 1]])}
            >>> network = dynamic.models.TfIdf(10, 4).count([(inputs, torch.tensor([0]))])
            >>> network.idf.weight[6:8, 0]
            tensor([1.6931, 1.0000])
        """
        rows = self.idf.num_embeddings
        texts, holding = 0, torch.zeros(rows, dtype=torch.float64)
        for inputs, _ in loader:
            ids, mask = (torch.as_tensor(inputs[name]).cpu() for name in ("input_ids", "attention_mask"))
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
                raise InputError(f"ids go from {int(ids.min())} to {int(ids.max())}, and the table has {rows} rows")
            present = torch.zeros(len(ids), rows + 1, dtype=torch.bool)
            present.scatter_(1, torch.where(mask != 0, ids, rows).long(), True)
            holding += present[:, :rows].sum(0)
            texts += len(ids)
        if not texts:
            raise InputError("the loader gave no text. It is empty, or an iterator that was already used up")
        self.idf.weight.copy_((torch.log((1 + texts) / (1 + holding)) + 1).unsqueeze(1))
        return self

    @classmethod
    def of(
        cls, vectorizer: Any, classifier: Any, *, vocabulary: int, token_ids: Mapping[str, int] | None = None
    ) -> Self:
        """A network with the weights of scikit-learn. Its logits are what `classifier.decision_function` gives.

        A classifier of two classes has one column there, which is the logit of the second. The first has 0.

        Args:
            vectorizer: A fitted `TfidfVectorizer` whose features are tokens: ids, as `TfidfVectorizer(analyzer=list)`
                has them of texts that are lists of ids, or strings that `token_ids` has.
            classifier: A fitted linear one: `LogisticRegression`, `SGDClassifier`, `LinearSVC` or another that has
                `coef_`, `intercept_` and `classes_`.
            vocabulary: Rows of the tables: `TextPreprocess.vocabulary`. Tokens without a feature count nothing.
            token_ids: The id of each token, as `tokenizer.get_vocab()` of the tokenizers gives it.

        Returns:
            The network.

        Raises:
            InputError: They are not fitted, a feature is no token, or classes are not 0, 1 and so on.

        Example:
            >>> from sklearn.feature_extraction.text import TfidfVectorizer
            >>> from sklearn.linear_model import LogisticRegression
            >>> ids = [[4, 6], [5, 6], [4, 4], [5]]
            >>> vectorizer = TfidfVectorizer(analyzer=list)
            >>> classifier = LogisticRegression().fit(vectorizer.fit_transform(ids), [0, 1, 0, 1])
            >>> network = dynamic.models.TfIdf.of(vectorizer, classifier, vocabulary=10)
            >>> network(torch.tensor([[5, 6]]), torch.ones(1, 2)).argmax(1)
            tensor([1])
        """
        columns = getattr(vectorizer, "vocabulary_", None)
        coefficients, offsets = getattr(classifier, "coef_", None), getattr(classifier, "intercept_", None)
        if columns is None or coefficients is None or offsets is None:
            raise InputError(
                f"{type(vectorizer).__name__} and {type(classifier).__name__} have no vocabulary_, coef_ and "
                "intercept_: give a fitted TfidfVectorizer and a fitted linear classifier"
            )
        if missing := [n for n in ("sublinear_tf", "binary", "use_idf", "norm") if not hasattr(vectorizer, n)]:
            raise InputError(f"{type(vectorizer).__name__} has no {missing}: give a fitted TfidfVectorizer")
        table = np.asarray(coefficients.toarray() if hasattr(coefficients, "toarray") else coefficients, np.float64)
        offsets = np.broadcast_to(np.asarray(offsets, np.float64), len(table))
        names = list(classifier.classes_)
        if names != list(range(len(names))):
            raise InputError(
                f"the classifier has classes {names[:5]}, expected 0 to {len(names) - 1}: fit it on numbers"
            )
        if len(names) == 2 and len(table) == 1:
            table, offsets = np.concatenate([0 * table, table]), np.concatenate([0 * offsets, offsets])
        if table.shape != (len(names), len(columns)):
            raise InputError(
                f"the classifier has coefficients {list(table.shape)}, expected [{len(names)}, {len(columns)}], one "
                "for each feature of the vectorizer: fit it on what this vectorizer gives"
            )
        network = cls(
            vocabulary,
            len(names),
            sublinear=bool(vectorizer.sublinear_tf) and not vectorizer.binary,
            binary=bool(vectorizer.binary),
            norm=vectorizer.norm or "none",
        )
        rows = [_id(feature, vocabulary, token_ids) for feature in columns]
        uses = Counter(rows)
        if twice := [name for name, row in zip(columns, rows, strict=True) if uses[row] > 1][:2]:
            raise InputError(f"the vectorizer's features {twice} have one id: give each token an id of its own")
        at = list(columns.values())
        idf = np.asarray(vectorizer.idf_) if vectorizer.use_idf else np.ones(len(columns))
        with torch.no_grad():
            network.idf.weight.zero_()
            network.idf.weight[rows, 0] = torch.from_numpy(idf[at]).float()
            network.coefficients.weight[rows] = torch.from_numpy(table.T[at].copy()).float()
            network.bias.copy_(torch.from_numpy(offsets.copy()))
        return network


def _id(feature: Any, vocabulary: int, token_ids: Mapping[str, int] | None) -> int:
    """The row of a feature. Raises InputError where it is no token of the table."""
    number: Any = feature if token_ids is None else token_ids.get(feature)
    if isinstance(number, bool | str) or not hasattr(number, "__index__"):
        raise InputError(
            f"the vectorizer's feature {feature!r} is no token. Give it texts of ids, TfidfVectorizer(analyzer=list), "
            "or tokens of the tokenizer and token_ids=tokenizer.get_vocab()"
        )
    if not 0 <= int(number) < vocabulary:
        raise InputError(
            f"the token {feature!r} has id {number}, and vocabulary={vocabulary}: give that of the tokenizer"
        )
    return int(number)
