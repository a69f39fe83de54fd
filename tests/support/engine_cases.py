"""The ways a cascade runs, and what torch says of it row by row: shared by the tests of engines and graphs."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.engines.contract import CascadeSpec, Output
from dynamic.engines.engine_factory import open_engine
from dynamic.engines.route_choice import CascadeEngine
from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import write_graphs
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.policies.ladder import Ladder
from dynamic.policies.scores import Combiner

INF = float("inf")
CLASSES = 4
WAYS = ("torch/stages", "onnxruntime/stages", "onnxruntime/graph", "openvino/stages", "openvino/graph")


class First(nn.Module):
    """Two tensors in the carry: a feature, and a skip connection that crosses the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.conv(x)), x * 2


class Second(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 1, 3, padding=1)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, feature: Tensor, skip: Tensor) -> tuple[Tensor]:
        return (self.linear((self.conv(feature) + skip).flatten(1)),)


class TwoExits(StagedNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = First(), Second()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        return (Stage("early", self.first, self.head), Stage("last", self.second, nn.Identity()))

    def forward(self, x: Tensor) -> list[Tensor]:
        feature, skip = self.first(x)
        return [self.head(feature), self.second(feature, skip)[0]]


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))


@dataclass(frozen=True)
class Truth:
    """Of each row: where it leaves, its answer `[C]`, its score; `near`: rounding may decide where it leaves."""

    stage: NDArray[np.int64]
    probability: NDArray[np.float64]
    score: NDArray[np.float64]
    near: NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A cascade exported to `folder`, whose graphs hold these temperatures, score and combination."""

    cascade: Cascade
    folder: Path
    spec: CascadeSpec
    inputs: Mapping[str, NDArray[Any]]
    logits: NDArray[np.float32]  # [N, S, C], torch's
    temperature: tuple[float, ...]
    score: str = "max_probability"
    combine: str = "mean"
    _shared: dict[str, CascadeEngine] = field(default_factory=dict, init=False, repr=False)
    _ruled: "dict[tuple[str, str], Case]" = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        cascade: Cascade,
        folder: Path,
        inputs: Tensor | Mapping[str, Tensor],
        temperature: Sequence[float] = (),
        score: str = "max_probability",
        combine: str = "mean",
    ) -> "Case":
        """Export it, with the first row as example, and ask torch."""
        named = {"input": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        example = {name: t[:1] for name, t in named.items()}
        spec = export_stages(cascade, folder, example["input"] if isinstance(inputs, Tensor) else example)
        with torch.no_grad():
            logits = torch.stack(cascade.eval()(*named.values()), 1).numpy()
        case = cls(
            cascade,
            folder,
            spec,
            {name: t.numpy() for name, t in named.items()},
            logits,
            tuple(temperature) or (1.0,) * len(spec.stages),
            score,
            combine,
        )
        write_graphs(folder, spec, case.ladder)
        return case

    def ruled(self, score: str, combine: str) -> "Case":
        """The same stages under another score and combination, in a folder beside; made once."""
        if (score, combine) not in self._ruled:
            folder = self.folder.with_name(f"{self.folder.name}-{score}-{combine}")
            shutil.copytree(self.folder, folder)
            other = replace(self, folder=folder, score=score, combine=combine)
            write_graphs(folder, self.spec, other.ladder)
            self._ruled[score, combine] = other
        return self._ruled[score, combine]

    @property
    def ladder(self) -> Ladder:
        """Of no points."""
        names = tuple(stage.name for stage in self.spec.stages)
        return Ladder(self.temperature, self.score, self.combine, self.spec.backbone, names, (), "", False)

    @property
    def combiner(self) -> Combiner:
        return Combiner(self.temperature, self.score, combine=self.combine, backbone=self.spec.backbone)

    def open(self, way: str, **options: Any) -> CascadeEngine:
        """One of WAYS."""
        name, route = way.split("/")
        return open_engine(name, self.folder, self.spec, self.combiner, self.cascade.stages, route=route, **options)

    def shared(self, way: str) -> CascadeEngine:
        """The same, opened once for all tests of this case, on one thread."""
        if way not in self._shared:
            self._shared[way] = self.open(way) if way.startswith("torch") else self.open(way, threads=1)
        return self._shared[way]

    def rows(self, at: Any) -> dict[str, NDArray[Any]]:
        """The inputs of these rows."""
        return {name: array[at] for name, array in self.inputs.items()}

    def scores(self) -> NDArray[np.float64]:
        """Of every row at every stage, all exits on `[N, S]`."""
        found = [_walk(row, (INF,) * (len(row) - 1), self, every=True) for row in self.logits.astype(np.float64)]
        return np.array([scores for _, _, scores, _ in found])

    def truth(self, thresholds: Sequence[float]) -> Truth:
        """By a plain loop over torch's own logits, in double precision; no code of the engines."""
        limits = tuple(float(np.float32(t)) for t in thresholds)
        found = [_walk(row, limits, self) for row in self.logits.astype(np.float64)]
        stage, answer, score, near = zip(*found, strict=True)
        return Truth(np.array(stage), np.array(answer), np.array([s[-1] for s in score]), np.array(near))

    def quantiles(self, share: float) -> tuple[float, ...]:
        """Thresholds under which about so large a share leaves at each stage, midway between neighbouring scores."""
        scores = np.sort(self.scores(), axis=0)[:, :-1]
        at = min(max(round((1 - share) * len(scores)), 1), len(scores) - 1)
        return tuple(float(t) for t in (scores[at - 1] + scores[at]) / 2)


_made: list[Case] = []


def four_stages(folders: pytest.TempPathFactory) -> Case:
    """A network, one of two exits, a network; exported once for all tests. Nobody changes it."""
    if not _made:
        torch.manual_seed(0)
        cascade = Cascade([Plain(), TwoExits(), Plain()]).eval()
        for parameter in cascade.parameters():
            parameter.data.mul_(3)  # scores that differ
        _made.append(
            Case.of(cascade, folders.mktemp("four") / "graphs", torch.randn(33, 1, 8, 8), (1.0, 1.7, 0.8, 1.2))
        )
        assert _made[0].spec.backbone == (0, 1, 1, 2)
        assert _made[0].spec.stages[1].carry == 2
    return _made[0]


def check(output: Output, truth: Truth, at: Any = slice(None), atol: float = 2e-5) -> None:
    """Stage, label, score and answer are torch's on all rows that rounding does not decide."""
    keep = ~truth.near[at]
    np.testing.assert_array_equal(output.stage[keep], truth.stage[at][keep])
    np.testing.assert_allclose(output.score[keep], truth.score[at][keep], rtol=1e-4, atol=atol)
    wanted = truth.probability[at][keep]
    np.testing.assert_allclose(np.exp(output.logits[keep]), wanted, rtol=1e-4, atol=atol)
    tied = np.diff(np.sort(wanted, axis=1)[:, -2:])[:, 0] < 1e-4
    np.testing.assert_array_equal(output.logits[keep].argmax(1)[~tied], wanted.argmax(1)[~tied])
    assert output.logits.dtype == output.score.dtype == np.float32
    assert output.stage.dtype == np.int64


def _walk(
    logits: NDArray[np.float64], limits: tuple[float, ...], case: Case, every: bool = False
) -> tuple[int, NDArray[np.float64], list[float], bool]:
    """(stage, answer, scores so far, near) of one row of logits `[S, C]`."""
    answers: dict[int, NDArray[np.float64]] = {}  # by what has one vote
    answer = np.full(logits.shape[1], np.nan)
    scores: list[float] = []
    near, last = False, len(logits) - 1
    patient = case.score == "patience"  # whole numbers: what rounding may decide is the answer
    label, same = -1, 0
    for s in range(last + 1):
        if not every and s < last and limits[s] == INF:
            continue
        own = torch.softmax(torch.from_numpy(logits[s]) / case.temperature[s], 0).numpy()
        good = bool(np.isfinite(own).all())
        if good:
            answers[{"mean": s, "last": 0, "backbones": case.spec.backbone[s]}[case.combine]] = own
            answer = np.mean(list(answers.values()), axis=0)
            near |= patient and _score(answer, "margin") < 1e-4
            same = same + 1 if answer.argmax() == label else 0
            label = int(answer.argmax())
        scores.append(np.nan if not good else same if patient else _score(answer, case.score))
        if s == last or limits[s] < scores[-1]:
            break
        near |= not patient and abs(scores[-1] - limits[s]) < 1e-4
    near |= s < last and not patient and abs(scores[-1] - limits[s]) < 1e-4
    return s, answer, scores, near


def _score(p: NDArray[np.float64], score: str) -> float:
    if score == "margin":
        second, first = np.sort(p)[-2:]
        return float(first - second)
    if score == "negative_entropy":
        return float(sum(x * np.log(x) for x in p if x > 0))
    return float(p.max())
