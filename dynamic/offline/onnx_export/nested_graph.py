"""The whole cascade as one ONNX graph, of the stages' own graphs with `If` between them.

Inputs are the cascade's own and `thresholds [S-1]`. Outputs are `logits [B, C]`, `stage [B]` (int64), `score [B]`. What
comes after an exit is in the branch of an `If` that runs only where inputs continue. Weights are in the branch that
uses them: engines fuse and lay out only constants of the same graph.

The stages of a backbone lie inside each other. Backbones follow each other, so that one can be entered from any exit of
the one before it without being written twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess
from dynamic.engines.contract import THRESHOLDS, CascadeSpec, InputSpec
from dynamic.offline.onnx_export.graph_inlining import StageGraph, fold_factor, inline, load_stage
from dynamic.offline.onnx_export.if_nodes import Body, Branch
from dynamic.policies.scores import PATIENCE, TINY, Combination, groups

_NOT_YET = -1  # the stage of a row that has not left
_NO_ANSWER = -1.0  # its `same` before the first answer: one more is 0
_KINDS = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT)  # of an ending
_EXIT_KINDS = (TensorProto.FLOAT, TensorProto.BOOL, TensorProto.FLOAT)  # of a backbone with one exit


@dataclass(frozen=True)
class _State:
    """The results of the stages before, by name (see `policies.scores.Running`).

    `total`: sum of probabilities `[B, C]` of all groups of stages so far. `before`: without the current group.
    `same [B]`: with score "patience", the score of the latest answer. None: nothing yet, or not needed.
    """

    total: str | None = None
    before: str | None = None
    same: str | None = None

    def enter(self, new_group: bool) -> "_State":
        """The same at a stage of another group than the one before, or of the same."""
        return replace(self, before=self.total) if new_group else self

    @property
    def names(self) -> list[str]:
        return [name for name in (self.total, self.before, self.same) if name is not None]

    def renamed(self, name_of: Mapping[str, str]) -> "_State":
        """The same under other names."""
        return _State(*(None if name is None else name_of[name] for name in (self.total, self.before, self.same)))


@dataclass(frozen=True)
class _Ending:
    """What a nest yields, by name: `total [B, C]`, `stage [B]`, `score [B]`.

    In the end `total` is the answer's probabilities. A backbone passes on a sum of probabilities, as in `_State`. Where
    it has one exit, its `stage` is whether the row exits there: 2 operations less between backbones.
    For rows that continue it is not always guarded (`_guards_later`). With "patience" their `score` is `same` there.
    """

    total: str
    stage: str
    score: str

    @property
    def names(self) -> tuple[str, str, str]:
        return self.total, self.stage, self.score


@dataclass
class Nest:
    """Builds the graph of a cascade whose stages' graphs lie in `folder`.

    `temperature [S]`, `score` and `combine` are those of a ladder. `batch`: "single" for one row, "dynamic" for any
    number of rows, those that are done leaving it. `preprocess`: the graph then takes images as bytes `[B, H, W, C]`,
    resized and cropped, and scales and normalizes them. `only [S-1]`: thresholds of a point. Exits that it
    switches off, and everything after a stage where every input exits, are not in the graph. `blocks`: carried images
    are laid out for ONNX Runtime (`block_images`).
    """

    folder: Path
    spec: CascadeSpec
    temperature: Sequence[float]
    score: str
    combine: Combination
    batch: str
    preprocess: Preprocess | None = None
    only: Sequence[float] | None = None
    blocks: bool = True
    _versions: dict[str, int] = field(default_factory=dict, init=False)
    _limits: list[str] = field(default_factory=list, init=False)
    _group: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._group = groups(self.combine, self.spec.backbone, len(self.spec.stages))

    @property
    def _last(self) -> int:
        """The stage at which every input has exited."""
        leaves = (s for s, limit in enumerate(self.only or ()) if limit == -np.inf)
        return next(leaves, len(self.spec.stages) - 1)

    @property
    def _present(self) -> list[int]:
        """The stages that are in the graph with their exits."""
        return [s for s in range(self._last + 1) if self.only is None or s == self._last or self.only[s] < np.inf]

    @property
    def _tests_exits(self) -> bool:
        """Whether the graph tests which exits are on. For one point that is fixed."""
        return self.only is None

    @property
    def _averages(self) -> bool:
        return len({self._group[s] for s in self._present}) > 1

    @property
    def _patient(self) -> bool:
        return self.score == PATIENCE

    def model(self) -> onnx.ModelProto:
        """The graph. Large weights are in the backbones' files (external data, relative to `folder`)."""
        spec, top = self.spec, Body()
        count = len(spec.stages)
        rows: Any = "batch" if self.batch == "dynamic" else 1
        inputs = [helper.make_tensor_value_info(i.name, _kind(i), [rows, *_sides(i)]) for i in spec.inputs]
        names = [i.name for i in spec.inputs]
        if self.preprocess is not None:
            channels, *size = _sides(spec.inputs[0])
            inputs[0] = helper.make_tensor_value_info(names[0], TensorProto.UINT8, [rows, *size, channels])
            names[0] = _numbers(top, names[0], self.preprocess)
        if count > 1:
            inputs.append(helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, [count - 1]))
            self._limits = [f"threshold_{s}" for s in range(count - 1)]
            node = helper.make_node("Split", [THRESHOLDS], self._limits, "split", axis=0, num_outputs=count - 1)
            top.nodes.append(node)
        ending = self._backbone(top, 0, names, _State())
        # the logarithm of a probability stays finite. Add, since OpenVINO's Max makes a number of NaN
        top.add("Log", top.add("Add", ending.total, top.constant(TINY)), output="logits")
        top.add("Identity", ending.stage, output="stage")
        top.add("Identity", ending.score, output="score")
        shapes = {"logits": [rows, spec.classes], "stage": [rows], "score": [rows]}
        outputs = [
            helper.make_tensor_value_info(name, kind, shape)
            for (name, shape), kind in zip(shapes.items(), _KINDS, strict=True)
        ]
        versions = [helper.make_opsetid(domain, version) for domain, version in sorted(self._versions.items())]
        graph = helper.make_graph(top.nodes, "cascade", inputs, outputs, top.initializers)
        return helper.make_model(graph, opset_imports=versions, ir_version=10)

    # ---- the order of things

    def _backbone(self, body: Body, first: int, inputs: list[str], state: _State) -> _Ending:
        """The backbone that starts with stage `first`, and all behind it."""
        own = [s for s, b in enumerate(self.spec.backbone) if b == self.spec.backbone[first]]
        exits = [s for s in own if s in self._present]
        if self._last in own:
            return self._stage(body, first, inputs, state)
        if not exits:
            return self._backbone(body, own[-1] + 1, inputs, state)
        (only, *more), kinds = exits, _KINDS if len(exits) > 1 else _EXIT_KINDS
        if self._tests_exits:
            run, skip = body.inside("run"), body.inside("skip")
            ran = self._stage(run, first, inputs, state)
            total = state.total or self._filled(skip, inputs[0], self._nothing, self.spec.classes)
            stage = self._filled(skip, total, _NOT_YET if more else False)
            unsaid = _NO_ANSWER if self._patient else np.nan
            skipped = (total, stage, state.same or self._filled(skip, total, unsaid))
            branches = Branch(run, ran.names, kinds), Branch(skip, skipped, kinds)
            ending = _Ending(*body.branch(self._any_on(body, own), *branches))
        else:
            ending = self._stage(body, first, inputs, state)
        several = state.total is not None or len({self._group[s] for s in exits}) > 1  # answers in a total

        def after(inner: Body) -> _State:
            total, score = ending.total, ending.score
            if self._guards_later(exits):
                total = self._guarded(inner, total, score, state.total)
            # between backbones a group begins, or there is but one
            return _State(total, same=score if self._patient else None)

        def here(inner: Body) -> _Ending:
            stage = ending.stage if more else self._filled(inner, ending.score, only)
            return _Ending(self._answered(inner, ending.total, several), stage, ending.score)

        return self._onward(
            body,
            body.add("Less", body.constant(_NOT_YET, np.int64), ending.stage) if more else ending.stage,  # [B]
            None,
            here=here,
            carry=inputs,
            after=after,
            rest=lambda inner, inner_inputs, inner_state: self._backbone(
                inner, own[-1] + 1, self._cut(inner, inner_inputs), inner_state
            ),
        )

    def _cut(self, body: Body, inputs: list[str]) -> list[str]:
        """The inputs without positions that are padding in every row that is left, at the end (see `Padding`)."""
        padding, names = self.spec.padding, [i.name for i in self.spec.inputs]
        if padding is None or self.batch == "single":
            return inputs
        mask = inputs[names.index(padding.mask)]
        one = body.constant(1, np.int64)
        whole = body.add("Cast", mask, to=TensorProto.INT64)
        used = body.add("ReduceMax", whole, body.constant([0], np.int64), keepdims=0)  # [N]
        count = body.add("Size", used)
        positions = body.add("Range", one, body.add("Add", count, one), one)  # 1 to N
        last = body.add("ReduceMax", body.add("Mul", used, positions), keepdims=1)  # [1], 0 without any token
        nothing = body.add("Equal", last, body.constant([0], np.int64))
        length = body.add("Where", nothing, count, body.add("Max", last, body.constant([padding.least], np.int64)))
        start, axis = body.constant([0], np.int64), body.constant([1], np.int64)
        return [
            body.add("Slice", own, start, length, axis) if name in padding.inputs else own
            for name, own in zip(names, inputs, strict=True)
        ]

    def _stage(self, body: Body, s: int, carry: list[str], state: _State) -> _Ending:
        """Stage `s` and those of the same backbone behind it (for the last backbone: to the end)."""
        spec, of = self.spec, self.spec.backbone
        state = state.enter(s > 0 and self._group[s] != self._group[s - 1])
        total = state.total
        carried = s > 0 and of[s] == of[s - 1]
        path = self.folder / spec.stages[s].graph
        stage = load_stage(path, f"{body.prefix}s{s}/", carry, blocks=self.blocks and carried)
        self._versions |= {d: max(v, self._versions.get(d, 0)) for d, v in stage.versions.items()}
        inline(body, stage.body, stage.initializers)
        if s not in self._present:
            return self._stage(body, s + 1, stage.carry, state)
        later = [k for k in self._present if k > s and of[k] == of[s]]
        ends = not later  # of its backbone: never gets here with its exit off
        if ends or not self._tests_exits:
            raw, score = self._answer(body, stage, s, state)
        else:
            on, off = body.inside("on"), body.inside("off")
            answered = self._answer(on, stage, s, state)
            nothing = total or self._filled(off, stage.carry[0], self._nothing, spec.classes)
            passed = (nothing, self._filled(off, nothing, np.nan))
            kinds = (TensorProto.FLOAT, TensorProto.FLOAT)
            raw, score = body.branch(self._any_on(body, [s]), Branch(on, answered, kinds), Branch(off, passed, kinds))
        if s == self._last:
            answer = self._answered(body, self._guarded(body, raw, score, total), total is not None)
            return _Ending(answer, self._filled(body, score, s), score)
        leaves = body.add("Less", self._limits[s], score)  # [B], False for NaN
        to_the_end = of[s] == of[self._last]

        def here(inner: Body) -> _Ending:
            if to_the_end:  # inputs that do not exit continue
                answer = self._answered(inner, raw, state.before is not None)
                return _Ending(answer, self._filled(inner, score, s), score)
            exits = [k for k in self._present if of[k] == of[s]]
            at = leaves
            if len(exits) > 1:
                not_yet = inner.constant([_NOT_YET], np.int64)
                at = inner.add("Where", leaves, inner.constant([s], np.int64), not_yet)
            bare = self._guards_later(exits)
            own_total = raw if bare else self._guarded(inner, raw, score, total)
            return _Ending(own_total, at, self._same(inner, score, state) or score)

        if ends:
            return here(body)
        return self._onward(
            body,
            leaves,
            None if to_the_end or not self._tests_exits else self._any_on(body, later),
            here=here,
            carry=stage.carry,
            after=lambda inner: _State(
                self._guarded(inner, raw, score, total), state.before, self._same(inner, score, state)
            ),
            rest=lambda inner, inner_carry, inner_state: self._stage(inner, s + 1, inner_carry, inner_state),
        )

    def _guards_later(self, exits: Sequence[int]) -> bool:
        """Whether what a backbone with these exits gives is guarded only where an input continues.

        An input that exits has a finite answer, and operations between the layers are what an exit costs. Behind a
        single exit the answer from before the backbone holds. Of a batch some rows may exit and others not.
        """
        return self.batch == "single" and len(exits) == 1 and not self._patient

    def _onward(
        self,
        body: Body,
        leaves: str,
        on: str | None,
        here: Callable[[Body], _Ending],
        carry: list[str],
        after: Callable[[Body], _State],
        rest: Callable[[Body, list[str], _State], _Ending],
    ) -> _Ending:
        """`here` for the rows that leave, `rest` for the others (where `on`, too), in the state `after`."""
        deeper, done = body.inside("deeper"), body.inside("done")
        if self.batch == "single":
            none_goes = leaves
            result = rest(deeper, carry, after(deeper))
        else:
            state = after(body)
            rows = body.add("NonZero", body.add("Not", leaves))  # [1, B']
            none_goes = body.add("Less", body.add("Size", rows), body.constant(1, np.int64))
            at = deeper.add("Transpose", rows, perm=[1, 0])  # [B', 1]
            index = deeper.add("Squeeze", at, deeper.constant([1], np.int64))  # [B']
            gathered = {
                name: deeper.add("Gather", name, index, axis=0) for name in dict.fromkeys((*carry, *state.names))
            }
            inner = rest(deeper, [gathered[name] for name in carry], state.renamed(gathered))
            whole = here(deeper)
            scattered = [
                deeper.add("ScatterND", old, at, new) for old, new in zip(whole.names, inner.names, strict=True)
            ]
            result = _Ending(*scattered)
        if on is not None:
            none_goes = body.add("Or", none_goes, body.add("Not", on))
        branches = Branch(done, here(done).names, _KINDS), Branch(deeper, result.names, _KINDS)
        return _Ending(*body.branch(none_goes, *branches))

    # ---- answers

    def _answer(self, body: Body, stage: StageGraph, s: int, state: _State) -> tuple[str, str]:
        """(sum of probabilities with this stage's `[B, C]`, score `[B]`). Both are NaN unless the logits are finite."""
        logits = stage.logits
        scale = 1 / self.temperature[s]
        folded = fold_factor(stage.head, stage.initializers, logits, scale)
        inline(body, stage.head, stage.initializers)
        if not folded:
            logits = body.add("Mul", logits, body.constant(scale))
        raw = body.add("Softmax", logits, axis=-1)
        if state.before is not None:
            raw = body.add("Add", raw, state.before)
        return raw, self._score(body, raw, state)

    def _score(self, body: Body, raw: str, state: _State) -> str:
        if self._patient:
            return self._patience(body, raw, state)
        answer = raw
        if self.score == "negative_entropy":
            answer = self._normalized(body, raw) if state.before is not None else raw
            log = body.add("Log", body.add("Max", answer, body.constant(TINY)))
            return _sum(body, body.add("Mul", answer, log))
        if self.score == "margin":
            two, where = body.name("TopK"), body.name("TopK")
            body.nodes.append(
                helper.make_node("TopK", [raw, body.constant([2], np.int64)], [two, where], body.name("node"), axis=-1)
            )
            top = _sum(body, body.add("Mul", two, body.constant([1, -1])))  # MatMul: OpenVINO rounds it in bf16
        else:
            top = body.add("ReduceMax", raw, body.constant([1], np.int64), keepdims=0)
        # probabilities of each stage sum to 1: the sum over classes counts the stages, and is NaN where one of them is,
        # as the largest are not on OpenVINO, whose softmax may be NaN for one class alone
        return body.add("Div", top, _sum(body, raw))

    def _patience(self, body: Body, raw: str, state: _State) -> str:
        same = body.constant([0])
        if state.total is not None and state.same is not None:
            # who has no answer yet gets 0 either way, whatever the likeliest class of nothing is
            labels = (body.add("ArgMax", total, axis=1, keepdims=0) for total in (raw, state.total))
            more = body.add("Add", state.same, body.constant([1]))
            same = body.add("Where", body.add("Equal", *labels), more, same)
        nothing = body.add("IsNaN", _sum(body, raw))
        return body.add("Where", nothing, body.constant([np.nan]), same)

    def _same(self, body: Body, score: str, state: _State) -> str | None:
        """With "patience", its score `[B]`, or that of the answer before where this stage gave nothing finite."""
        if not self._patient:
            return None
        before = state.same or body.constant([_NO_ANSWER])
        return body.add("Where", body.add("IsNaN", score), before, score)

    def _answered(self, body: Body, total: str, several: bool) -> str:
        """Probabilities of a total. `several`: it may hold those of more than one stage."""
        return self._normalized(body, total) if several and self._averages else total

    def _normalized(self, body: Body, total: str) -> str:
        return body.add("Div", total, body.add("ReduceSum", total, body.constant([1], np.int64), keepdims=1))

    @property
    def _nothing(self) -> float:
        """The total before any stage: the answer's total where no stage is finite."""
        return 0.0 if self._averages else np.nan

    def _guarded(self, body: Body, raw: str, score: str, total: str | None) -> str:
        """`raw`, or the total of the stages before where this one gave nothing finite: its score is NaN then."""
        bad = body.add("IsNaN", score)  # [B]
        if self.batch == "dynamic":
            bad = body.add("Unsqueeze", bad, body.constant([1], np.int64))
        return body.add("Where", bad, total or body.constant(self._nothing), raw)

    def _any_on(self, body: Body, stages: Sequence[int]) -> str:
        """Whether one of these exits is on: one value."""
        limit = self._limits[stages[0]]
        if len(stages) > 1:
            limit = body.add("Min", *(self._limits[s] for s in stages))
        return body.add("Less", limit, body.constant([np.inf]))

    def _filled(self, body: Body, like: str, value: float, width: int = 0) -> str:
        """As many rows as `like` has of a value: `[B]`, or `[B, width]`."""
        kind = np.bool_ if isinstance(value, bool) else np.int64 if isinstance(value, int) else np.float32
        if self.batch == "single":
            return body.add("Identity", body.constant(np.full((1, width) if width else 1, value, kind), kind))
        shape = body.add("Shape", like, start=0, end=1)
        if width:
            shape = body.add("Concat", shape, body.constant([width], np.int64), axis=0)
        return body.add("Expand", body.constant(value, kind), shape)


def _sum(body: Body, rows: str) -> str:
    """`[B]` of `[B, C]`."""
    return body.add("ReduceSum", rows, body.constant([1], np.int64), keepdims=0)


def _numbers(body: Body, images: str, preprocess: Preprocess) -> str:
    """float32 `[B, C, H, W]` of bytes `[B, H, W, C]`: the arithmetic of `Preprocess`, in its order."""
    moved = body.add("Transpose", images, perm=[0, 3, 1, 2])
    numbers = body.add("Cast", moved, to=TensorProto.FLOAT)
    for step in preprocess.steps:
        if isinstance(step, Scale) and step.reciprocal:
            numbers = body.add("Mul", numbers, body.constant(1 / step.divisor))
        elif isinstance(step, Scale):
            numbers = body.add("Div", numbers, body.constant(step.divisor))
        elif isinstance(step, Normalize):
            numbers = body.add("Sub", numbers, body.constant(np.reshape(step.mean, (-1, 1, 1))))
            numbers = body.add("Div", numbers, body.constant(np.reshape(step.std, (-1, 1, 1))))
    return numbers


def _sides(spec: InputSpec) -> list[int | str]:
    """The size of each dimension without the batch, the name of a dynamic one."""
    return [side if isinstance(side, int) else side.name for side in spec.sides]


def _kind(spec: InputSpec) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)))
