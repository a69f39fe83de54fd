"""Calibration records: the logits of every stage for every held-out input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import CalibrationError, CorruptError, InputError, SettingError
from dynamic.policies.validation.array_files import read_arrays, write_arrays
from dynamic.policies.validation.fields import flag, items, number, text, whole
from dynamic.policies.words.short_repr import short_repr

SEARCH, CERTIFY = 0, 1
UNKNOWN = -1  # the label of an input that nobody was asked about
# of a calibration set. It gives about the cheapest certified point (benchmarks/statistics/certified.py)
SEARCH_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Records:
    """The logits of N calibration inputs at S stages of C classes, and what certificates need beside them.

    Args:
        logits: Raw logits of each stage alone `[N, S, C]`, float32.
        label: Labels `[N]`, -1 for inputs that nobody was asked about. None: there are none.
        group: Inputs with the same value belong together `[N]`, such as frames of one video. None: all are independent.
        part: 0 for records that choose thresholds, 1 for records that certify `[N]`.
        backbone: Number of the backbone of each stage `[S]`.
        macs: Multiply-adds of the body of each stage for one input `[S]`. Those of int8 count half.
        head_macs: The same of the heads `[S]`.
        stage_names: Names of the stages `[S]`.
        fingerprint: Of cascade, preprocessing, engine and precision.
        made_on: Engine and machine that computed the logits, as JSON. None: unknown.
        on_demand: Whether labels were asked for as a certificate needed them. Part 1 was then drawn at random.
        batch: Inputs of the one finite batch that certificates are for. None: they are for future inputs.

    Raises:
        InputError: when shapes, types or labels do not fit.

    Example:
        >>> records.stages, records.logits.shape[1:]
        (2, (2, 4))
    """

    logits: NDArray[np.float32]
    label: NDArray[np.int64] | None
    group: NDArray[Any] | None
    part: NDArray[np.int8]
    backbone: tuple[int, ...]
    macs: tuple[float, ...]
    head_macs: tuple[float, ...]
    stage_names: tuple[str, ...]
    fingerprint: str
    made_on: str | None = None
    on_demand: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.logits.ndim != 3 or self.logits.dtype != np.float32:
            raise InputError(
                f"logits are {self.logits.dtype} {list(self.logits.shape)}: they must be float32 [N, S, C]"
            )
        count, stages, classes = self.logits.shape
        for name in ("label", "group", "part"):
            array = getattr(self, name)
            if array is not None and array.shape != (count,):
                raise InputError(f"{name} has shape {list(array.shape)}: {count} inputs need [{count}]")
        for name in ("backbone", "macs", "head_macs", "stage_names"):
            if len(getattr(self, name)) != stages:
                raise InputError(f"{name} has {len(getattr(self, name))} entries for {stages} stages")
        if self.label is not None and count and not (self.label.min() >= UNKNOWN and self.label.max() < classes):
            low, high = self.label.min(), self.label.max()
            raise InputError(
                f"labels run from {low} to {high}: {classes} classes have labels from 0 to {classes - 1}, and "
                f"{UNKNOWN} is an input that nobody was asked about"
            )

    def __len__(self) -> int:
        return len(self.logits)

    def __repr__(self) -> str:
        count, stages, classes = self.logits.shape
        labels = self.label_count
        words = {count: "all labelled", 0: "no labels"}.get(labels, f"{labels} labelled")
        part = f"{int((self.part == CERTIFY).sum())} certify"
        return short_repr("Records", [f"{count} inputs", f"{stages} stages", f"{classes} classes", words, part])

    @property
    def stages(self) -> int:
        """Number of stages."""
        return int(self.logits.shape[1])

    def select(self, which: NDArray[Any]) -> "Records":
        """Return some of the records.

        Args:
            which: An index, a mask or a slice over N.

        Returns:
            New records of these inputs.

        Raises:
            IndexError: when an index is out of range.

        Example:
            >>> certifying = records.select(records.part == 1)
            >>> len(certifying) < len(records)
            True
        """
        return Records(
            self.logits[which],
            None if self.label is None else self.label[which],
            None if self.group is None else self.group[which],
            self.part[which],
            self.backbone,
            self.macs,
            self.head_macs,
            self.stage_names,
            self.fingerprint,
            self.made_on,
            self.on_demand,
            self.batch,
        )

    @property
    def finite(self) -> bool:
        """Whether certificates are for one finite batch, and not for future inputs."""
        return self.batch is not None

    @property
    def label_count(self) -> int:
        """How many inputs have a label."""
        return 0 if self.label is None else int(np.count_nonzero(self.label != UNKNOWN))

    @property
    def is_labelled(self) -> bool:
        """Whether every input has a label."""
        return self.label is not None and not bool(np.any(self.label == UNKNOWN))

    def save(self, path: str | Path) -> None:
        """Write the records as `.npz`, without pickle. The file appears whole or not at all.

        Args:
            path: The file. It is replaced.

        Raises:
            OSError: when the file cannot be written.

        Example:
            >>> records.save("records.npz")
            >>> len(dynamic.Records.load("records.npz")) == len(records)
            True
        """
        arrays: dict[str, Any] = {
            "logits": self.logits,
            "part": self.part,
            "backbone": np.array(self.backbone),
            "macs": np.array(self.macs, np.float64),
            "head_macs": np.array(self.head_macs, np.float64),
            "stage_names": np.array(self.stage_names, dtype=np.str_),
            "fingerprint": np.array(self.fingerprint),
        }
        if self.label is not None:
            arrays["label"] = self.label
        if self.group is not None:
            arrays["group"] = self.group
        if self.on_demand:
            arrays["on_demand"] = np.array(True)
        if self.batch is not None:
            arrays["batch"] = np.array(self.batch)
        if self.made_on is not None:
            arrays["made_on"] = np.array(self.made_on)
        write_arrays(Path(path), arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Records":
        """Read the records that `save` wrote.

        Args:
            path: The file.

        Returns:
            The records.

        Raises:
            CorruptError: when something is missing or damaged.

        Example:
            >>> records.save("again.npz")
            >>> dynamic.Records.load("again.npz").stage_names == records.stage_names
            True
        """
        arrays = read_arrays(Path(path), "records", "calibrate again")
        try:
            if unknown := sorted(set(arrays) - set(cls.__dataclass_fields__)):
                raise ValueError(f"it holds {unknown[0]!r:.80}, which is no part of records")
            logits, part = arrays["logits"], arrays["part"]
            label, group = arrays.get("label"), arrays.get("group")
            stages = logits.shape[1] if logits.ndim == 3 else 0
            for name, array, kinds in (("part", part, "i"), ("label", label, "i"), ("group", group, "biufU")):
                if array is not None and array.dtype.kind not in kinds:
                    raise ValueError(f"{name} is of {array.dtype}")
            if not np.isin(part, (SEARCH, CERTIFY)).all():
                raise ValueError(f"part must be {SEARCH} or {CERTIFY}")
            made_on = arrays.get("made_on")
            return cls(
                logits=logits,
                label=label,
                group=group,
                part=part.astype(np.int8),
                backbone=items(arrays["backbone"].tolist(), "backbone", whole, stages),
                macs=items(arrays["macs"].tolist(), "macs", _macs, stages),
                head_macs=items(arrays["head_macs"].tolist(), "head_macs", _macs, stages),
                stage_names=items(arrays["stage_names"].tolist(), "stage_names", text, stages),
                fingerprint=text(arrays["fingerprint"].item(), "fingerprint"),
                made_on=None if made_on is None else text(made_on.item(), "made_on"),
                on_demand="on_demand" in arrays and flag(arrays["on_demand"].item(), "on_demand"),
                batch=whole(arrays["batch"].item(), "batch") if "batch" in arrays else None,
            )
        except KeyError as error:
            raise CorruptError(f"{path} lacks {error}, so it holds no records: calibrate again") from error
        except ValueError as error:
            raise CorruptError(f"{path} does not read as records ({error}): calibrate again") from error


def _macs(value: Any, name: str) -> float:
    return number(value, name, 0.0, 1e30)


def split(
    group: NDArray[Any] | None, count: int, *, search_share: float = SEARCH_SHARE, seed: int = 0
) -> NDArray[np.int8]:
    """Draw the part of each record: 0 for search, 1 for certification. A group is never split.

    The draw ignores classes. A class that is too frequent in a sample would otherwise be too frequent in both parts,
    and the part that certifies must be independent of the part that chose.

    Args:
        group: Group of each record `[N]`, or None.
        count: N.
        search_share: Share of records, or of groups, that choose.
        seed: Of the draw.

    Returns:
        The parts `[N]`.

    Raises:
        SettingError: when `search_share` is not in (0, 1].
    """
    if not 0 < search_share <= 1:
        raise SettingError(f"search_share={search_share} must lie in (0, 1], 0.25 for a quarter")
    units = np.arange(count) if group is None else np.unique(group)
    chosen = np.random.default_rng(seed).permutation(units)[: max(1, round(len(units) * search_share))]
    part = np.full(count, CERTIFY, np.int8)
    part[np.isin(units if group is None else group, chosen)] = SEARCH
    return part


def check_usable(records: Records) -> None:
    """Raise CalibrationError where a ladder cannot be built on these records.

    Single answers that are not finite do no harm: these inputs do not exit there.

    Args:
        records: All records of a calibration.

    Raises:
        CalibrationError: when there are no records, one class alone, groups that cannot be split or lie in both parts,
            or a stage without any finite answer.
    """
    if len(records) == 0:
        raise CalibrationError("the calibration set is empty: give held-out inputs with labels")
    if records.logits.shape[2] < 2:
        raise CalibrationError(
            f"the logits have {records.logits.shape[2]} class, and a score compares at least 2: give networks with a "
            "logit for each class"
        )
    if records.is_labelled and records.label is not None and len(np.unique(records.label)) < 2:
        raise CalibrationError(
            f"all {len(records)} calibration labels are class {records.label[0]}: give held-out inputs of every class"
        )
    search = records.part == SEARCH
    if not np.isin(records.part, (SEARCH, CERTIFY)).all():
        parts = sorted(set(records.part.tolist()))
        raise CalibrationError(f"part holds {parts}: it must be {SEARCH} (search) or {CERTIFY} (certify)")
    if records.is_labelled and records.label is not None and search.any() and len(np.unique(records.label[search])) < 2:
        remedy = "more groups, or groups that do not follow the classes"
        raise CalibrationError(
            f"the {int(search.sum())} records that choose thresholds are of one class, all {len(records)} are not: "
            f"give {'more inputs, or a larger search_share' if records.group is None else remedy}"
        )
    if records.group is not None and search.all():
        raise CalibrationError(
            f"{len(np.unique(records.group))} groups cannot be split: all of them choose thresholds, and none can "
            "certify. Give more groups"
        )
    if records.group is not None:
        both = np.intersect1d(records.group[search], records.group[~search])
        if len(both):
            raise CalibrationError(
                f"group {both[0]} lies in both parts of the records ({len(both)} groups do): records that certify must "
                "be independent of those that choose. Draw parts with dynamic.policies.records.split"
            )
    for stage, name in enumerate(records.stage_names):
        if np.isfinite(records.logits[:, stage]).all(axis=1).any():
            continue
        if stage == records.stages - 1:
            raise CalibrationError(
                f"the last stage, {name!r}, gives NaN or infinity for all {len(records)} records, so there is no "
                "reference to measure drops against: check its weights and the preprocessing"
            )
        raise CalibrationError(
            f"stage {name!r} gives NaN or infinity for all {len(records)} records, so no input would exit there: "
            "check its weights, the preprocessing and the precision, or remove the exit from the cascade"
        )
