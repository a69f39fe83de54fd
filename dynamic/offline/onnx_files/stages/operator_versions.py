"""One version of each operator set for all graphs of a cascade: one file can hold only one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import defs, helper, version_converter

from dynamic.offline.onnx_files.model_reading import every_node
from dynamic.policies.errors import EngineError

LEAST = 18  # the single graph has ReduceSum, ReduceMax and Split in this version
TORCH = 20  # what torch exports


def declared(model: onnx.ModelProto) -> dict[str, int]:
    """The version of each operator set that a model names. The set of ONNX itself is called ""."""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = _domain(entry.domain)
        versions[domain] = max(entry.version, versions.get(domain, 0))
    return versions


def common_versions(models: Iterable[onnx.ModelProto], least: int = LEAST) -> dict[str, int]:
    """For each operator set the lowest version in which no operator of the models is older than it was written."""
    common = {"": least}
    for model in models:
        for domain, version in declared(model).items():
            common[domain] = max(common.get(domain, 1), _needed(model, domain, version))
    return common


def at_versions(model: onnx.ModelProto, versions: Mapping[str, int], path: Path) -> onnx.ModelProto:
    """The model with its operators in these versions.

    Raises EngineError where an operator cannot be converted.
    """
    before = declared(model)
    original, model = model, onnx.ModelProto()
    model.CopyFrom(original)
    for domain, version in before.items():
        if _changed(model, domain, version, versions.get(domain, version)) is None:
            continue
        if domain:
            changed = _changed(model, domain, version, versions[domain])
            raise EngineError(
                f"{path}: operator {changed!r} of {domain} is in version {version}, other files of the cascade need "
                f"{versions[domain]}, and it is another operator there: export both files with one version of {domain}"
            )
        model = _converted(model, version, versions[""], path)
    named = before | {domain: versions[domain] for domain in {"", *before} if domain in versions}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(named.items()))
    return model


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _since(node: onnx.NodeProto, version: int) -> int | None:
    """Since which version an operator is as in this one. None: its schema is not known."""
    try:
        return int(defs.get_schema(node.op_type, version, _domain(node.domain)).since_version)
    except defs.SchemaError:
        return None


def _nodes(model: onnx.ModelProto, domain: str) -> list[onnx.NodeProto]:
    return [node for node in every_node(model.graph) if _domain(node.domain) == domain]


def _needed(model: onnx.ModelProto, domain: str, version: int) -> int:
    since = [_since(node, version) for node in _nodes(model, domain)]
    return max((version if one is None else one for one in since), default=1)


def _changed(model: onnx.ModelProto, domain: str, version: int, other: int) -> str | None:
    """The first operator that is another in the other version."""
    if version == other:
        return None
    different = (n.op_type for n in _nodes(model, domain) if _since(n, version) != _since(n, other))
    return next(different, None)


def _converted(model: onnx.ModelProto, version: int, target: int, path: Path) -> onnx.ModelProto:
    """The model with operators of ONNX in a later version."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    others = [entry for entry in model.opset_import if _domain(entry.domain)]
    del single.opset_import[:]
    single.opset_import.extend([helper.make_opsetid("", version), *others])
    try:
        return version_converter.convert_version(single, target)
    except Exception as error:  # of the converter, in C++
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise EngineError(
            f"{path} has operators of version {version}, the cascade's graphs need {target}, and onnx does not convert "
            f"it: {reason}. Export the model with opset {target}"
        ) from error
