"""What `build` can check of its arguments before the long work: the order of networks, classes, labels, groups."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_inputs import input_kinds
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.engines.contract import CascadeSpec, InputSpec
from dynamic.offline.batches import Batch, named_tensors, run_on, taken_by
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.module_modes import evaluating
from dynamic.policies.certification.risks import RISKS, Risk
from dynamic.policies.errors import CalibrationError, InputError, SettingError
from dynamic.policies.validation.numbers import plain

logger = logging.getLogger("dynamic")

_WHOLE = (torch.int64, torch.int32)  # what tables of embeddings read


def check_split(groups: Any, search_share: float, seed: int) -> None:
    """Raises SettingError on a share or seed out of range, InputError on groups that are no numbers or strings [N]."""
    search_share = plain(search_share)
    if isinstance(search_share, bool) or not isinstance(search_share, (int, float)) or not 0 < search_share <= 1:
        raise SettingError(f"search_share={search_share!r} must lie in (0, 1]: the share of records that choose")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise SettingError(f"seed={seed!r} must be a whole number from 0")
    if groups is None:
        return
    array = np.asarray(groups)
    if array.ndim != 1 or array.dtype == object:
        raise InputError(
            f"groups are {array.dtype} of shape {array.shape}: give a number or a string for each input, [N]"
        )


def check_classes(classes: Sequence[str] | None, spec: CascadeSpec) -> None:
    """Raises InputError on class names that are not one for each class."""
    if classes is None:
        return
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"classes={classes!r:.80} must be a list of names, one for each class")
    if len(classes) != spec.classes:
        raise InputError(f"{len(classes)} class names for {spec.classes} classes: give one for each, in order")


def check_preprocess(preprocess: Any, spec: CascadeSpec) -> None:
    """Raises InputError on preprocessing of sounds that makes no input of the network. Images may have many sizes."""
    if not isinstance(preprocess, SoundPreprocess):
        return
    if len(spec.inputs) != 1:
        raise InputError(
            f"preprocessing makes one input of a sound, and the network takes {len(spec.inputs)}: build "
            "with preprocess=None"
        )
    preprocess.check_shape(spec.inputs[0].sides)


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


def check_labels_for(risk: Risk, labels: NDArray[np.int64] | None) -> None:
    """Raises CalibrationError where a risk needs labels and the first batch has none."""
    if labels is None and risk.needs_labels:
        without = next(name for name, other in RISKS.items() if not other.needs_labels)
        raise CalibrationError(
            f"risk={risk.name!r} needs labels and the loader gives none: give (inputs, labels), or use "
            f"risk={without!r}, which compares with the last network's answers"
        )


def warn_order(spec: CascadeSpec, names: Sequence[str]) -> None:
    """Log a warning where a larger network stands before a smaller one: the last is what drops are measured against."""
    macs = [sum(s.macs + s.head_macs for s in spec.stages if s.backbone == b) for b in range(len(names))]
    for place, (own, after) in enumerate(pairwise(macs)):
        if own > after:
            right = [names[b] for b in np.argsort(macs, kind="stable")]
            logger.warning(
                "networks are not smallest first: %r (%.3g million multiply-adds) stands before %r (%.3g million), and "
                "the last network is the reference that drops are measured against. The usual order is %s",
                names[place],
                own / 1e6,
                names[place + 1],
                after / 1e6,
                right,
            )
            return
