"""Whether networks have an embedding for every id of a tokenizer."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.data.text.text_inputs import input_kinds
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.engines.contract import InputSpec
from dynamic.offline.batches import Batch, named_tensors, run_on, taken_by
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.module_modes import evaluating
from dynamic.policies.errors import InputError


def check_tokens(preprocess: Any, cascade: Cascade, example: Batch) -> None:
    """Raises InputError on a tokenizer whose ids, or inputs, a network does not take."""
    if not isinstance(preprocess, TextPreprocess):
        return
    for network, name in zip(cascade.networks, cascade.names, strict=True):
        named = named_tensors(network, example)
        kinds = input_kinds([InputSpec(own, tuple(t.shape[1:]), str(t.dtype)) for own, t in named.items()])
        ids = next(tensor for own, tensor in named.items() if kinds[own] == "input_ids")
        rows = _rows_of_tables(getattr(network, "backbone", network), named, ids)
        if rows is not None and rows < preprocess.vocabulary:
            raise InputError(
                f"the tokenizer has ids up to {preprocess.vocabulary - 1}, and the table of embeddings of {name} has "
                f"{rows} rows: give the tokenizer that the network was trained with"
            )


def _rows_of_tables(network: nn.Module, named: Mapping[str, Tensor], ids: Tensor) -> int | None:
    """The rows of the smallest table of embeddings that is read at these ids. None where there is none."""
    rows: list[int] = []

    def note(table: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and torch.equal(args[0], ids):
            rows.append(int(table.num_embeddings))  # type: ignore[arg-type]

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                hooks.callback(module.register_forward_pre_hook(note).remove)
        hooks.enter_context(evaluating(network))
        with torch.no_grad(), suppress(InputError), taken_by(network, named):  # an id beyond the table fails inside
            run_on(network, named)
    return min(rows, default=None)
