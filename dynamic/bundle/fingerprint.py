"""What a calibration is valid for: this cascade, this preprocessing, this engine, this precision."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from dynamic.engines.engine_factory import engine_version
from dynamic.policies.validation.fields import items, mapping, text, texts, whole
from dynamic.profiling.machine import instruction_sets, machine_name

# variables by which engines and their libraries are given other kernels than the processor allows
KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)


class _Named(Protocol):
    name: str
    precision: str
    threads: int
    options: Mapping[str, str]


@dataclass(frozen=True)
class EngineIdentity:
    """Everything that an engine's arithmetic is known to depend on.

    Args:
        engine: name of the engine.
        version: of its library.
        precision: "f32" or "bf16".
        threads: of each operator. Sums are split among them.
        machine: processor, cores and system.
        instruction_sets: of the processor, by which engines choose kernels.
        variables: those of `KERNEL_VARIABLES` that are set.
        options: of the engine, where they change arithmetic, such as `device` of engine "torch".
    """

    engine: str
    version: str
    precision: str
    threads: int
    machine: str
    instruction_sets: tuple[str, ...]
    variables: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, engine: _Named) -> "EngineIdentity":
        """The identity of an engine that is open in this process."""
        variables = {name: os.environ[name] for name in KERNEL_VARIABLES if os.environ.get(name)}
        version = engine_version(engine.name)
        how = (engine.precision, engine.threads, machine_name(), instruction_sets())
        return cls(engine.name, version, *how, variables, dict(engine.options))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EngineIdentity":
        """What `to_json` gave. Raises ValueError on anything else."""
        fields = mapping(data, "engine", [name for name in cls.__dataclass_fields__ if name != "options"], ["options"])
        return cls(
            engine=text(fields["engine"], "engine"),
            version=text(fields["version"], "version"),
            precision=text(fields["precision"], "precision"),
            threads=whole(fields["threads"], "threads", 1, 2**20),
            machine=text(fields["machine"], "machine"),
            instruction_sets=items(fields["instruction_sets"], "instruction_sets", text),
            variables=texts(fields["variables"], "variables"),
            options=texts(fields.get("options", {}), "options"),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @property
    def text(self) -> str:
        """As records have it: JSON, whose order is fixed."""
        return json.dumps(self.to_json(), sort_keys=True)

    @property
    def key(self) -> str:
        """A short name for files."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        variables = "".join(f", {name}={value}" for name, value in {**self.options, **self.variables}.items())
        return f"{self.engine} {self.version} {self.precision}, {self.threads} threads, {self.machine}{variables}"


def fingerprint(cascade: str, preprocess: Any, engine: str, precision: str) -> str:
    """One hash of all four. A change of any makes calibration, thresholds and certificates void."""
    text = json.dumps([cascade, preprocess, engine, precision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
