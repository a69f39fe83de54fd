"""Small encoders of `transformers` with random weights, and token ids with padding."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

WORDS, CLASSES, LENGTH, LIMIT = 60, 5, 12, 24
LAYERS = {  # where the encoder layers of each family stand
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "roberta": "roberta.encoder.layer",
    "modernbert": "model.layers",
}


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


def encoder(family: str, layers: int = 2) -> Any:
    """A network of a family in `LAYERS` in evaluation mode, with dropout in all places that have it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS,
        "num_labels": CLASSES,
        "max_position_embeddings": LIMIT + 2,
        "pad_token_id": 0,
    }
    names: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if family == "distilbert":
        config = DistilBertConfig(**sizes, dim=32, n_layers=layers, n_heads=4, hidden_dim=64)
        return DistilBertForSequenceClassification(config).eval()
    if family == "modernbert":
        dropout: dict[str, Any] = {
            "embedding_dropout": 0.1,
            "mlp_dropout": 0.1,
            "attention_dropout": 0.1,
            "classifier_dropout": 0.1,
        }
        ids: dict[str, Any] = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
        config = ModernBertConfig(**sizes, **names, **dropout, **ids, local_attention=8)
        return ModernBertForSequenceClassification(config).eval()
    if family == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**sizes, **names)).eval()
    return BertForSequenceClassification(BertConfig(**sizes, **names)).eval()


def tokens(rows: int, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
    """Ids and mask `[B, N]`, each text of another length from 3, one of them without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (rows, length), generator=generator)
    lengths = torch.randint(3, length + 1, (rows, 1), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
