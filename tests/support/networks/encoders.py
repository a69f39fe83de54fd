"""Small encoders of `transformers` with random weights, and token ids with padding."""

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

WORDS, CLASSES, LENGTH, LIMIT = 60, 5, 12, 24


def bert(layers: int = 2) -> BertForSequenceClassification:
    """A BERT in evaluation mode, with weights large enough that its answers differ."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LIMIT,
        num_labels=CLASSES,
        initializer_range=0.3,
    )
    return BertForSequenceClassification(config).eval()


def tokens(rows: int, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
    """Ids and mask `[B, N]`, each text of another length from 3, one of them without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (rows, length), generator=generator)
    lengths = torch.randint(3, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
