"""A first stage for texts that is no transformer."""

import torch
from torch import Tensor, nn

from dynamic.offline.tracing.masked_pooling import mean_under_mask
from dynamic.policies.errors import SettingError


class BagOfTokens(nn.Module):
    """The mean of the embeddings of a text's tokens, and a linear layer (Joulin et al. 2016, "Bag of Tricks").

    It looks up a row a token and does `width * classes` multiply-adds, whatever the length of the text. The order of
    the tokens does not count. Train it with a loop of a few lines: `docs/guides/text.md` has one.

    Args:
        vocabulary: Rows of the table of embeddings: `TextPreprocess.vocabulary`.
        classes: How many.
        width: Numbers of an embedding.
        embeddings: `[vocabulary, D]`, the table of a trained encoder to start from, or a part of it. It is copied.
            Where D is larger than `width`, its first principal components are taken. None: small random numbers.
        dropout: Share of the mean that is left out in training.

    Raises:
        SettingError: A number is out of range, or `embeddings` has another shape.

    Example:
        >>> network = dynamic.models.BagOfTokens(100, 4, width=8)
        >>> network(torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        *,
        width: int = 128,
        embeddings: Tensor | None = None,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        for name, value in (("vocabulary", vocabulary), ("classes", classes), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}={value!r} must be a whole number from 1")
        if not 0 <= dropout < 1:
            raise SettingError(f"dropout={dropout!r} must be at least 0 and below 1")
        self.embeddings = nn.Embedding(vocabulary, width)
        with torch.no_grad():
            self.embeddings.weight.copy_(
                torch.randn(vocabulary, width) / 10 if embeddings is None else _table(embeddings, vocabulary, width)
            )
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.classifier = nn.Linear(width, classes)

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
            >>> network = dynamic.models.BagOfTokens(100, 4).eval()
            >>> ids, mask = torch.tensor([[7, 9, 0]]), torch.tensor([[1, 1, 0]])
            >>> torch.allclose(network(ids, mask), network(ids[:, :2], mask[:, :2]))
            True
        """
        mean = mean_under_mask(self.embeddings(input_ids), attention_mask)
        logits: Tensor = self.classifier(self.dropout(self.norm(mean)))
        return logits


def _table(embeddings: Tensor, vocabulary: int, width: int) -> Tensor:
    """The first rows of a table `[V, D]` and its first principal components `[vocabulary, width]`."""
    if embeddings.ndim != 2 or len(embeddings) < vocabulary or embeddings.shape[1] < width:
        raise SettingError(
            f"embeddings have shape {list(embeddings.shape)}, expected at least [{vocabulary}, {width}]: give the "
            "table of an encoder that reads the same tokens, or a smaller width"
        )
    table = embeddings.detach()[:vocabulary].float()
    if table.shape[1] == width:
        return table
    centred = table - table.mean(0)
    _, components = torch.linalg.eigh(centred.T @ centred)  # in rising order
    first: Tensor = centred @ components[:, -width:].flip(1)
    return first
