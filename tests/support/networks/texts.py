"""A tokenizer of few words, networks that read its tokens, and texts in two classes."""

import random

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

WORDS = ["turn", "the", "lights", "off", "on", "play", "some", "music", "loud", "please"]
CLASSES = ("lights", "music")


def tokenizer(special: bool = True, unknown: bool = True) -> Tokenizer:
    """Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then `WORDS` from 4. With `special`, each text is [CLS] ... [SEP]."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    if not unknown:
        del vocabulary["[UNK]"]
    own = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    own.normalizer, own.pre_tokenizer = Lowercase(), Whitespace()
    own.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    if special:
        own.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        )
    return own


class MaskedMean(nn.Module):
    """The mean of embeddings under the mask, and a linear layer."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.words, self.classifier = nn.Embedding(rows, width), nn.Linear(width, len(CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(2).float()
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        logits: Tensor = self.classifier(mean)
        return logits


def networks(rows: int = 14) -> list[nn.Module]:
    """Two networks that know which word belongs to which class. The smaller has weaker answers."""
    torch.manual_seed(0)
    made = []
    for width, size in ((2, 3.0), (4, 9.0)):
        network = MaskedMean(rows, width)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            network.words.weight[6, 0] = network.words.weight[11, 1] = size  # lights, music
            network.classifier.weight[0, 0] = network.classifier.weight[1, 1] = size
        made.append(network.eval())
    return made


def sentences(count: int) -> tuple[list[str], list[int]]:
    """Texts of 3 to 7 words that hold "lights" or "music", and their classes."""
    draw = random.Random(0)
    fillers = [word for word in WORDS if word not in CLASSES]
    labels = [number % 2 for number in range(count)]
    texts = []
    for label in labels:
        words = [*draw.choices(fillers, k=draw.randint(2, 6)), CLASSES[label]]
        draw.shuffle(words)
        texts.append(" ".join(words))
    return texts, labels
