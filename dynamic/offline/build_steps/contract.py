"""What `build` does with networks, whatever they are."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.records import Records
from dynamic.policies.scores import Combination


class BuildSteps(Protocol):
    """The steps of `build` that depend on what the networks are.

    `modules`: what `load` takes to run them on engine "torch", None where nothing does.
    """

    names: tuple[str, ...]
    combine: Combination
    modules: Any

    def fingerprint(self) -> str:
        """Hash of everything that a calibration is valid for."""

    def check_engine(self, engine: str) -> None:
        """Raises EngineError on an engine that does not run such networks."""

    def watch(self, batches: Iterable[Any], example: Any, allow_reuse: bool) -> Iterable[Any]:
        """The same batches. Raises CalibrationError on one that trained or chose a network, unless that is allowed."""

    def arrays(self, batch: Any) -> Mapping[str, Array]:
        """The arrays of a batch by the names of the inputs. Raises InputError where it is none."""

    def describe(self, preprocess: Any, example: Any, labels: NDArray[np.int64] | None) -> CascadeSpec:
        """Inputs, stages and classes. Raises InputError where networks, preprocessing and a batch do not fit."""

    def class_names(self, classes: Sequence[str] | None) -> Sequence[str] | None:
        """The names of the classes, those of the networks where None are set. Raises InputError where they differ."""

    def running(self) -> AbstractContextManager[None]:
        """Around everything that runs the networks."""

    def export(self, folder: Path, example: Any, engine: str, progress: bool | None) -> tuple[CascadeSpec, bool]:
        """The description, and whether the graphs lie in `folder`. Raises EngineError where they cannot."""

    def with_limits(self, spec: CascadeSpec, preprocess: Any, example: Any) -> CascadeSpec:
        """The description with the ids that inputs may hold, where the networks tell and the preprocessing does not."""

    def stages(self, spec: CascadeSpec) -> Sequence[Any] | None:
        """The stages as torch modules. None: they are none."""

    def check_parity(self, engine: CascadeEngine, spec: CascadeSpec, example: Any) -> None:
        """Raises EngineError where an engine gives other logits than the networks themselves."""

    def check_records(self, records: Records) -> None:
        """Raises InputError where logits of a stage are not what they were taken for."""

    def save_weights(self, folder: Path) -> None:
        """Write the weights of networks that have some of their own into a new folder."""
