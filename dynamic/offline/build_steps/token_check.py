"""Tables of embeddings: whether they have a row for every id of a tokenizer, and which ids they have."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.data.text.text_inputs import input_kinds
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.engines.contract import CascadeSpec, InputSpec
from dynamic.offline.batches import Batch, named_tensors, run_on, taken_by
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.module_modes import evaluating
from dynamic.policies.errors import InputError

_WHOLE = (torch.int32, torch.int64)


def check_tokens(preprocess: Any, cascade: Cascade, example: Batch) -> None:
    """Raises InputError on a tokenizer whose ids, or inputs, a network does not take."""
    if not isinstance(preprocess, TextPreprocess):
        return
    for network, name in zip(cascade.networks, cascade.names, strict=True):
        named = named_tensors(network, example)
        kinds = input_kinds([InputSpec(own, tuple(t.shape[1:]), str(t.dtype)) for own, t in named.items()])
        ids = next(tensor for own, tensor in named.items() if kinds[own] == "input_ids")
        rows = _rows_of_tables(network, named, ids)
        if rows is not None and rows < preprocess.vocabulary:
            raise InputError(
                f"the tokenizer has ids up to {preprocess.vocabulary - 1}, and the table of embeddings of {name} has "
                f"{rows} rows: give the tokenizer that the network was trained with"
            )


def with_ids(spec: CascadeSpec, cascade: Cascade, example: Batch) -> CascadeSpec:
    """The cascade with the limits of those inputs that tables of embeddings read. Engines fail beyond them."""
    inputs = []
    for number, one in enumerate(spec.inputs):
        rows: list[int] = []
        for network in cascade.networks:
            named = named_tensors(network, example)
            others = list(named.values())
            tensor = others.pop(number)
            if tensor.dtype in _WHOLE and not any(torch.equal(tensor, other) for other in others):
                own = _rows_of_tables(network, named, tensor)
                rows += [] if own is None else [own]
        inputs.append(replace(one, ids=min(rows, default=None)))
    return replace(spec, inputs=tuple(inputs))


def _rows_of_tables(network: nn.Module, named: Mapping[str, Tensor], ids: Tensor) -> int | None:
    """The rows of the smallest table of embeddings that is read at these ids. None where there is none."""
    rows: list[int] = []
    network = getattr(network, "backbone", network)

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
