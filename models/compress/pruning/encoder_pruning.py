"""Attention heads and hidden neurons of transformers removed, so that their linear layers are smaller."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.models.compress.argument_checks import check_inputs, check_share
from dynamic.models.compress.pruning.channel_pruning import round_width
from dynamic.models.compress.pruning.encoder_units import UnitFinder, Units
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch, named_tensors, run_on
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.used_data import RecordedLoader, remember
from dynamic.offline.option_words import check_word
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.offline.tracing.dry_run import rows
from dynamic.offline.tracing.trace import capture_export
from dynamic.policies.errors import InputError, SettingError, TraceError, WrapError

UnitImportance = Literal["norm", "taylor"]
_CLOSE = 1e-4  # of the largest logit: sums of fewer numbers are rounded otherwise


def prune_encoder(
    network: nn.Module,
    example_inputs: Batch,
    *,
    heads: float | None = None,
    neurons: float | None = None,
    importance: UnitImportance = "norm",
    selection_loader: Iterable[Any] | None = None,
    round_to: int | None = None,
    skip: Sequence[str] = (),
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """A copy of a transformer in which each layer has fewer attention heads and fewer hidden neurons.

    **Chooses by data** with "taylor": batches of `selection_loader` decide what is removed. They must not certify, and
    the network carries their hashes. Fine-tune afterwards (`dynamic.fit`).

    torch.export shows which rows and columns belong to a head or a neuron, so modules may have any names. BERT,
    DistilBERT, RoBERTa, ModernBERT and their kin can be pruned. Heads are those of
    `torch.nn.functional.scaled_dot_product_attention`. With `attn_implementation="eager"` neurons alone are pruned. The
    network gives the logits that it gives with
    zeros in place of what was removed, which is checked. The width between the layers remains. Its `config` has the
    numbers of heads and neurons from before.

    The importance of a head or neuron is one of these.

    - "norm": the norm of the weights that make and read it, each divided by the mean of its layer (Fang et al. 2023,
      "DepGraph", section 3.3).
    - "taylor": the change of the loss without it, to first order, of each text (Michel et al. 2019, "Are Sixteen Heads
      Really Better than One?", eq. 2).

    Args:
        network: The network. It does not change. Prune a network with exits before wrapping it.
        example_inputs: A batch as the network takes it.
        heads: Share in (0, 1) of the heads of each attention. At least one remains. None: all remain.
        neurons: Share in (0, 1) of the hidden neurons of each MLP. None: all remain.
        importance: "norm" or "taylor".
        selection_loader: `(inputs, labels [B])` for "taylor". Training data are right for this.
        round_to: Numbers of neurons are rounded to multiples of this. None: what suits engines.
        skip: Names of modules that keep their heads and neurons. A linear layer that makes or reads some keeps all, and
            so do the layers beside it.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network and a report. `report.facts["widths"]`: by attention or layer, heads or neurons before and
            after. An attention has the name of its module, or of its first layer where two lie in one module.

    Raises:
        SettingError: A setting is out of range, or data are missing.
        WrapError: Nothing can be pruned, or the network does not run with fewer heads.
        TraceError: torch.export does not capture the network.
        InputError: The data are wrong, or a name in `skip` is of no module, or of one without linear layers to prune.

    Example:
        >>> from dynamic.models import compress
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
        >>> bert = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
        >>> ids = torch.ones(2, 6, dtype=torch.long)
        >>> tokens = {"input_ids": ids, "attention_mask": ids}
        >>> small = compress.prune_encoder(bert, tokens, heads=0.5, neurons=0.5, latency=False)
        >>> small.report.facts["widths"]
        {'bert.encoder.layer.0.attention.self': [4, 2], 'bert.encoder.layer.0.intermediate.dense': [64, 32]}
    """
    if isinstance(network, StagedNetwork):
        raise WrapError(f"this {type(network).__name__} has exits that read it: prune its backbone, then wrap")
    _check_settings(network, heads, neurons, importance, selection_loader, round_to, skip)
    check_inputs(network, example_inputs)
    smaller, masked = copied(network, computed=False), copied(network, computed=False)
    named = named_tensors(smaller, example_inputs)
    try:
        graph = capture_export(smaller, rows(named, 2)).graph
    except TraceError as error:
        raise TraceError(f"torch.export has to capture the network, and stops {error}") from error
    finder = UnitFinder(smaller, graph)
    left_alone = dict(finder.left_alone)
    chosen: list[tuple[Units, int]] = []
    _check_skip(skip, finder)
    for units in finder.units:
        share = heads if units.kind == "heads" else neurons
        inside = any(units.lies_in(name) for name in skip)
        if inside or share is None:
            left_alone[units.name] = "in skip" if inside else f"{units.kind}=None"
            continue
        if importance == "taylor" and units.batch is None:
            left_alone[units.name] = (
                f"no dimension of what {units.reader.name} reads is the batch alone, which importance='taylor' needs: "
                "use importance='norm'"
            )
            continue
        remaining = units.width * (1 - share)
        keep = max(1, round(remaining)) if units.kind == "heads" else round_width(units.width, remaining, round_to)
        if keep >= units.width:
            left_alone[units.name] = f"{units.width} {units.kind} are too few for heads={heads}, neurons={neurons}"
        else:
            chosen.append((units, keep))
    if not chosen:
        raise WrapError(
            f"{type(network).__name__} has no heads and neurons that can be removed: {left_alone or 'no layers'}"
        )
    recorded = None if selection_loader is None else RecordedLoader(selection_loader)
    listed = [units for units, _ in chosen]
    if importance == "norm" or recorded is None:
        scores = [_norm(units) for units in listed]
    else:
        scores = _taylor(smaller, listed, recorded)
    widths = {}
    for (units, keep), score in zip(chosen, scores, strict=True):
        if not bool(score.isfinite().all()):
            raise InputError(f"the importance of {units.name} is not finite: look for NaN in weights or data")
        order = score.argsort(descending=True, stable=True)
        reader = masked.get_submodule(units.reader.name)
        assert isinstance(reader, nn.Linear)
        with torch.no_grad():
            reader.weight[:, units.reader.at[order[keep:]].flatten()] = 0.0
        widths[units.name] = [units.width, keep]
        units.keep(order[:keep].sort().values.tolist())
    _check_same(masked, smaller, named)
    remember(smaller, () if recorded is None else recorded.hashes)
    return Compressed(
        smaller,
        report(
            f"heads and neurons pruned by {importance}",
            network,
            smaller,
            example_inputs,
            eval_loader,
            latency=latency,
            left_alone=left_alone,
            facts={"widths": widths},
        ),
    )


def _check_settings(
    network: nn.Module,
    heads: float | None,
    neurons: float | None,
    importance: UnitImportance,
    selection_loader: Iterable[Any] | None,
    round_to: int | None,
    skip: Sequence[str],
) -> None:
    if heads is None and neurons is None:
        raise SettingError("heads=None and neurons=None remove nothing: give the share of one of them, such as 0.25")
    for name, share in (("heads", heads), ("neurons", neurons)):
        if share is not None:
            check_share(name, share, "0.25 removes a quarter")
    check_word("importance", importance, UnitImportance)
    if importance == "taylor" and selection_loader is None:
        raise SettingError("importance='taylor' is measured on data: give selection_loader=, inputs and labels")
    if round_to is not None and round_to < 1:
        raise SettingError(f"round_to={round_to}: give at least 1")
    names = {name for name, _ in network.named_modules()}
    if unknown := [name for name in skip if name not in names]:
        raise InputError(f"{unknown}: no such modules, see network.named_modules()")


def _check_skip(skip: Sequence[str], finder: UnitFinder) -> None:
    """Raises InputError where a name in `skip` holds nothing that could be pruned, or that is left alone anyway."""
    for name in skip:
        alone = any(f"{layer}.".startswith(f"{name}.") for layer in finder.left_alone)
        if not alone and not any(units.lies_in(name) for units in finder.units):
            raise InputError(
                f"skip has {name!r}, which holds no linear layer of heads or neurons: leave it out, or name one of "
                f"{[units.name for units in finder.units][:4]}"
            )


def _norm(units: Units) -> Tensor:
    """Norms of the rows that make a unit and the columns that read it, each by the mean of its layer `[units]`."""
    total = torch.zeros(units.width)
    for layer, dim in (*((maker, 1) for maker in units.makers), (units.reader, 0)):
        norms = layer.module.weight.detach().float().cpu().norm(dim=dim)
        each = norms[layer.at].square().sum(1).sqrt()
        total += each / each.mean().clamp_min(1e-12)
    return total


def _taylor(network: nn.Module, listed: Sequence[Units], loader: Iterable[Any]) -> list[Tensor]:
    """The mean over texts of |what a unit gives * its gradient|, summed over positions: Michel et al. 2019, eq. 2."""
    totals = [torch.zeros(units.width, dtype=torch.float64) for units in listed]
    values: dict[int, Tensor] = {}
    handles = []
    for number, units in enumerate(listed):

        def hook(module: nn.Module, inputs: tuple[Tensor], number: int = number) -> tuple[Tensor]:
            values[number] = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_(True)
            return (values[number],)

        handles.append(units.reader.module.register_forward_pre_hook(hook))
    count = 0
    try:
        with evaluating(network), torch.enable_grad():
            for inputs, labels in checked_batches(loader, None):
                logits = primary_logits(run_on(network, named_tensors(network, inputs)))
                loss = F.cross_entropy(logits.float(), torch.from_numpy(labels).to(logits.device), reduction="sum")
                gradients = torch.autograd.grad(loss, [values[number] for number in range(len(listed))])
                for number, (units, gradient) in enumerate(zip(listed, gradients, strict=True)):
                    assert units.batch is not None
                    products = (values[number] * gradient).detach().double().cpu().movedim(units.batch, 0)
                    summed = products.reshape(len(products), -1, products.shape[-1]).sum(1)  # [B, D]
                    each = summed[:, units.reader.at].sum(2)  # [B, units]
                    totals[number] += each.abs().sum(0)
                count += len(labels)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise InputError("selection_loader gave no batch: it is empty, or an iterator that was read before")
    return [(total / count).float() for total in totals]


def _check_same(masked: nn.Module, smaller: nn.Module, named: Mapping[str, Tensor]) -> None:
    """Raises WrapError where the smaller network is not the masked one."""
    with torch.no_grad(), evaluating(masked), evaluating(smaller):
        expected = primary_logits(run_on(masked, named))
        try:
            logits = primary_logits(run_on(smaller, named))
        except Exception as error:  # user code runs here, with widths it may not expect
            raise WrapError(
                f"{type(smaller).__name__} does not run with fewer heads or neurons, {error}: name the layers in skip="
            ) from error
    limit = _CLOSE * max(1.0, float(expected.abs().max()))
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=0, atol=limit, equal_nan=True):
        raise WrapError(
            f"{type(smaller).__name__} gives other logits without its heads or neurons than with zeros in their place: "
            "name the layers in skip="
        )
