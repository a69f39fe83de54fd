"""Methods that choose by data note their batches on what they return, and the others pass on what was noted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dynamic
from dynamic.models import CifarResNet, compress
from dynamic.offline.networks.used_data import batch_hash, hashes_of, remember

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
CHOOSE = [(X[:4], LABELS[:4]), (X[4:], LABELS[4:])]
OTHERS = [(X + 1, LABELS)]
CHOSE = {batch_hash(X[:4]), batch_hash(X[4:])}
QUIET: dict[str, Any] = {"latency": False}


def network() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, 3, in_channels=1, width=8).eval()


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_channels(importance: Any) -> None:
    options = {"selection_loader": CHOOSE, "eval_loader": OTHERS, **QUIET}
    small = compress.prune_channels(network(), X, amount=0.5, round_to=1, importance=importance, **options)
    assert hashes_of(small.network) == CHOSE


@pytest.mark.parametrize("importance", ["loss", "norm"])
def test_blocks(importance: Any) -> None:
    options = {"selection_loader": CHOOSE, "eval_loader": OTHERS, **QUIET}
    small = compress.prune_blocks(network(), X, count=1, importance=importance, **options)
    assert hashes_of(small.network) == CHOSE


def test_what_no_data_chose_has_no_note() -> None:
    given, evaluation = network(), {"eval_loader": CHOOSE, **QUIET}
    for small in (
        compress.prune_channels(given, X, amount=0.5, selection_loader=CHOOSE, **evaluation),  # by the norm of weights
        compress.prune_blocks(given, X, count=["layer1.0"], selection_loader=CHOOSE, **evaluation),  # named
        compress.prune_weights(given, X, amount=0.5, **evaluation),
        compress.quantize(given, X, calibration_loader=CHOOSE, **evaluation),
    ):
        assert hashes_of(small.network) == set()


def test_when_to_stop_is_a_choice(tmp_path: Path) -> None:
    def run(checkpoint: Path | None) -> nn.Module:
        return compress.prune_until(
            network(), X, train_loader=OTHERS, target=compress.Target(drop=0.9), how="blocks", steps=1, epochs=1,
            method_options={"selection_loader": [(X + 2, LABELS)]}, selection_loader=CHOOSE, checkpoint=checkpoint,
            progress=False, **QUIET,
        ).network  # fmt: skip

    expected = CHOSE | {batch_hash(X + 2)}
    assert hashes_of(run(None)) >= expected
    assert hashes_of(run(tmp_path)) >= expected
    assert hashes_of(run(tmp_path)) >= expected  # read from the checkpoint


@pytest.mark.parametrize(
    "method",
    [
        lambda n: compress.prune_weights(n, X, amount=0.5, **QUIET),
        lambda n: compress.prune_channels(n, X, amount=0.5, round_to=1, **QUIET),
        lambda n: compress.prune_blocks(n, X, count=1, **QUIET),
        lambda n: compress.low_rank(n, X, rank=2, **QUIET),
        lambda n: compress.separate(n, X, **QUIET),
        lambda n: compress.cluster(n, X, clusters=4, **QUIET),
        lambda n: compress.quantize_weights(n, X, **QUIET),
        lambda n: compress.quantize(n, X, calibration_loader=[X], **QUIET),
        lambda n: compress.quantize(dynamic.wrap(n, X[:2], exits=1), X, calibration_loader=[X], **QUIET),
        lambda n: compress.distill(n, X, teacher=network(), train_loader=OTHERS, epochs=1, progress=False, **QUIET),
        lambda n: compress.deep_compress(n, X, train_loader=OTHERS, steps=((0.5, 0),), cluster_epochs=0, **QUIET),
    ],
)
def test_what_is_made_of_a_chosen_network_was_chosen_too(method: Callable[[nn.Module], compress.Compressed]) -> None:
    given = network()
    remember(given, ["a"])
    assert "a" in hashes_of(method(given).network)


def test_widths() -> None:
    given = network()
    remember(given, ["a"])
    slim = compress.slimmable(given, X, widths=(0.5, 1.0))
    assert hashes_of(slim) == hashes_of(slim.extract(0.5)) == {"a"}


def test_a_family() -> None:
    given, other = network(), CifarResNet(8, 3, in_channels=1, width=4).eval()
    attributes = set(vars(given)), set(vars(other))
    family = dynamic.family(
        given, CHOOSE, targets=(), methods=["quantize"], others={"narrow": other}, engine="torch", memory=False,
        train_loader=OTHERS, progress=False,
    )  # fmt: skip
    noted = {member.name: hashes_of(member.network) for member in family.members}
    assert noted == {"quantize": CHOSE, "narrow": CHOSE, "CifarResNet": set()}
    assert (set(vars(given)), set(vars(other))) == attributes
