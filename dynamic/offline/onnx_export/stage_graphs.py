"""A cascade as ONNX graphs, one a stage, every weight stored once.

Each stage becomes `backbones/<b>_<s>.onnx` (body and head) and, where its exit can be switched off,
`backbones/<b>_<s>_body.onnx` (body alone). Both refer to `backbones/<b>.weights`, which holds the weights of
the whole backbone as ONNX external data. Backbones that share parameters, such as one network at several resolutions,
refer to the file of the first.
"""

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from dynamic.engines.contract import CascadeSpec, InputSpec, StageSpec
from dynamic.offline.batches import Batch, named_tensors, taken_by
from dynamic.offline.build_steps.weight_file import WeightFile
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.float_types import check_float32
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.row_independence import check_rows
from dynamic.offline.onnx_export.batch_norm_folding import fold_norms
from dynamic.offline.onnx_export.node_names import check_names, keep_needed
from dynamic.offline.onnx_export.onnxruntime_forms import separate_roundings
from dynamic.offline.onnx_export.operators.adaptive_pooling import translations
from dynamic.offline.onnx_export.operators.attention import attention_of_any_rank
from dynamic.offline.onnx_export.padded_shortcuts import convolve_shortcuts
from dynamic.offline.onnx_export.stage_carry import Carry
from dynamic.offline.onnx_files.stages.onnx_network import OnnxNetwork
from dynamic.offline.onnx_files.stages.operator_versions import LEAST, TORCH, at_versions, common_versions
from dynamic.offline.staged_network import Stage
from dynamic.offline.tracing.multiply_adds import cost_macs
from dynamic.offline.tracing.sizes.dynamic_shapes import numbers_of, trial_inputs
from dynamic.policies.errors import EngineError, InputError
from dynamic.progress import track
from dynamic.storage.atomic_write import disk_errors

_OBSERVED = 3  # sizes besides the example's that show which dimensions of a carry are dynamic


def describe(cascade: Cascade, example_inputs: Batch) -> CascadeSpec:
    """Inputs, stages, classes and multiply-adds of a cascade, from one pass of `example_inputs` in eval mode.

    Raises InputError where the networks disagree on the classes, or one gives no `[B, C]`.
    """
    spec, _ = _walk(cascade, example_inputs, lambda *_: None)
    return spec


def export_stages(cascade: Cascade, folder: Path, example_inputs: Batch, progress: bool | None = None) -> CascadeSpec:
    """Write the graphs of every stage under `folder/backbones` and describe them.

    The batch dimension is dynamic, and so are those that the cascade declares (`Cascade.ranges`). All others are those
    of `example_inputs`. Raises EngineError naming the
    stage where torch cannot export it, InputError on an input whose name the graphs use themselves.
    """
    check_names(named_tensors(cascade.networks[0], example_inputs))
    (folder / "backbones").mkdir(parents=True, exist_ok=True)
    weights: dict[int, WeightFile] = {}
    owner = weight_owners(cascade)
    versions = _versions(cascade, named_tensors(cascade.networks[0], example_inputs))

    def write(stage: Stage, spec: StageSpec, carry: Carry, names: list[str]) -> None:
        last = spec.body_graph is None
        if stage.file is not None:
            model = stage.file.stage(dict(zip(names, carry.tensors, strict=True))).graph(carry.inputs, versions)
        else:
            model = _to_onnx(_LogitsOnly(stage) if last else stage, carry, names, spec)
            fold_norms(model.graph)
            convolve_shortcuts(model.graph)
            separate_roundings(model.graph)
            if versions:
                model = at_versions(model, versions, Path(spec.name))
        with disk_errors("the graph", folder):
            file = owner[spec.backbone]
            if file not in weights:  # made once: it starts with an empty file
                weights[file] = WeightFile(folder / "backbones" / f"{file}.weights")
            weights[file].move(model)
            onnx.save(model, folder / spec.graph)
            if spec.body_graph is not None:
                onnx.save(_without_logits(model), folder / spec.body_graph)

    spec, _ = _walk(cascade, example_inputs, write, "exporting", progress)
    return spec


def weight_owners(cascade: Cascade) -> tuple[int, ...]:
    """For each backbone the first one that has a parameter in common with it, or that shares with such a one."""
    owners: list[int] = []
    places: dict[int, int] = {}  # of a parameter in memory -> the backbone that owns its file
    for number, network in enumerate(cascade.networks):
        own = [parameter.data_ptr() for parameter in network.parameters() if parameter.numel()]
        owner = next((places[place] for place in own if place in places), number)
        places |= dict.fromkeys((place for place in own if place not in places), owner)
        owners.append(owner)
    return tuple(owners)


def _versions(cascade: Cascade, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The version of each operator set that all graphs get. Empty: all come from torch, which has one."""
    files = [network for network in cascade.networks if isinstance(network, OnnxNetwork)]
    if not files:
        return {}
    models = [file.stage(inputs).batch.model for file in files]
    return common_versions(models, LEAST if len(files) == len(cascade.networks) else TORCH)


def _walk(
    cascade: Cascade,
    example_inputs: Batch,
    visit: Callable[[Stage, StageSpec, Carry, list[str]], None],
    label: str = "",
    progress: bool | None = False,
) -> tuple[CascadeSpec, list[Tensor]]:
    """Run the stages one after another on the example and visit each with the carry it starts from."""
    named = named_tensors(cascade.networks[0], example_inputs)
    # two rows at least: torch.export takes a batch of one for a constant
    inputs = {name: torch.cat([t, t])[: max(2, len(t))][:2].detach() for name, t in named.items()}
    specs: list[StageSpec] = []
    stage_logits: list[Tensor] = []
    with evaluating(cascade):
        ranges = cascade.ranges(inputs)
        others = list(trial_inputs(ranges, inputs))[:_OBSERVED]
        numbers = [numbers_of(ranges, run) for run in (inputs, *others)]
        for network in cascade.networks:
            check_float32(network)
            with taken_by(network, inputs):
                check_rows(network, inputs)
        carry: tuple[Tensor, ...] = ()
        carries: list[tuple[Tensor, ...]] = []  # at other sizes
        stages, backbone = cascade.stages_for(list(inputs)), cascade.backbone
        described = tuple(
            InputSpec(name, tuple(t.shape[1:]), str(t.dtype).removeprefix("torch."), ranges.get(name, ()))
            for name, t in inputs.items()
        )
        for number, stage in enumerate(track(stages, label, len(stages), progress)):
            belongs = backbone[number]
            first = number == 0 or backbone[number - 1] != belongs
            last = number == len(stages) - 1 or backbone[number + 1] != belongs
            if first:
                carry = tuple(inputs.values())
                carries = [tuple(other.values()) for other in others]
            names = list(inputs) if first else [f"carry_{i}" for i in range(len(carry))]
            with torch.no_grad():
                after = tuple(stage.body(*carry))
                logits = stage.head(after[0])
            if logits.ndim != 2 or len(logits) != 2:
                raise InputError(f"stage {stage.name!r} gives {list(logits.shape)}, expected logits [2, C]")
            if stage_logits and logits.shape[1] != stage_logits[0].shape[1]:
                raise InputError(
                    f"stage {stage.name!r} has {logits.shape[1]} classes, the stages before it "
                    f"{stage_logits[0].shape[1]}: all networks of a cascade need the same classes"
                )
            stem = f"backbones/{belongs}_{number}"
            spec = StageSpec(
                name=stage.name,
                backbone=belongs,
                carry=0 if last else len(after),
                graph=f"{stem}.onnx",
                body_graph=None if last else f"{stem}_body.onnx",
                macs=cost_macs(stage.body, carry) if stage.file is None else stage.file.stage(inputs).macs,
                head_macs=cost_macs(stage.head, (after[0],)),
            )
            visit(stage, spec, Carry(carry, carries, ranges, numbers, first, described), names)
            specs.append(spec)
            stage_logits.append(logits)
            carry = after
            with torch.no_grad():
                carries = [tuple(stage.body(*other)) for other in carries]
    return CascadeSpec(described, tuple(specs), int(stage_logits[0].shape[1])), stage_logits


class _LogitsOnly(nn.Module):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *carry: Tensor) -> Tensor:
        return self.stage(*carry)[0]  # type: ignore[no-any-return]


def _to_onnx(module: nn.Module, carry: Carry, names: list[str], spec: StageSpec) -> onnx.ModelProto:
    outputs = ["logits", *(f"next_{i}" for i in range(spec.carry))]
    table = translations(any_size=any(carry.free))

    def export(shapes: tuple[dict[int, Any], ...], table: dict[Callable[..., Any], Callable[..., Any]]) -> Any:
        return torch.onnx.export(
            module.eval(),
            carry.tensors,
            dynamo=True,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(shapes,),  # forward(*carry)
            custom_translation_table=table,
            verbose=False,
        )

    quiet = logging.getLogger("torch.onnx")
    level, quiet.level = quiet.level, logging.ERROR
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations, nothing a user can act on
            *attempts, last = carry.shapes
            program = None
            for shapes in attempts:
                with suppress(Exception):  # whatever it is, the last attempt has its say
                    program = export(shapes, table)
            try:
                program = program or export(last, table)
            except Exception as error:
                if "4D" not in str(_cause(error)):
                    raise
                program = export(last, table | attention_of_any_rank())
    except Exception as error:  # the exporter wraps whatever went wrong in classes of its own
        cause = _cause(error)
        reason = str(cause).strip().splitlines()
        raise EngineError(
            f"torch cannot export stage {spec.name!r} to ONNX: {reason[0] if reason else type(cause).__name__}. "
            "Use engine='torch' for this cascade, or replace the operator"
        ) from error
    finally:
        quiet.level = level
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    fixed = [i.name for i in model.graph.input if i.type.tensor_type.shape.dim[0].dim_value]
    if fixed:
        raise EngineError(
            f"stage {spec.name!r} is exported for a batch of {len(carry.tensors[0])} alone (input {fixed[0]!r}): it "
            "takes the number of rows as a Python number, as len(x) does. Use x.shape[0]"
        )
    if (size := carry.fixed(model)) is not None:
        raise EngineError(
            f"stage {spec.name!r} is exported for {size} alone, which dynamic_shapes makes dynamic: it takes the size "
            "as a Python number, as int(x.shape[1]) and len(x[0]) do. Use x.shape[1], or leave the dimension fixed"
        )
    return model


def _cause(error: BaseException) -> BaseException:
    """The innermost cause of an error, which names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _without_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without the logits and whatever only they need."""
    lean = onnx.ModelProto()
    lean.CopyFrom(model)
    del lean.graph.output[0]
    keep_needed(lean.graph)
    return lean
