"""Another ladder for a bundle. It calibrates nothing and needs no torch."""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import NoneType

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_engine import has_graphs
from dynamic.bundle.bundle_reader import read
from dynamic.bundle.bundle_writer import write
from dynamic.bundle.canaries.canary_set import CANARIES, Canaries
from dynamic.bundle.canaries.check import run_canaries
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.offline.onnx_export.whole_graph import write_graphs
from dynamic.policies.certification.certificates import certify, shortage
from dynamic.policies.certification.ladders.settings import ScoreChoice
from dynamic.policies.errors import CalibrationError, InputError
from dynamic.policies.ladder import Ladder, RiskName
from dynamic.policies.records import Records
from dynamic.profiling.engine_choice import CHOICES
from dynamic.storage.atomic_write import disk_errors
from dynamic.storage.json_files import parse_json
from dynamic.storage.temporary_files import TemporaryFolder

logger = logging.getLogger("dynamic")


def recertify(
    bundle: Bundle,
    max_drops: Sequence[float] | None = None,
    *,
    delta: float | None = None,
    records: Records | None = None,
    risk: RiskName | None = None,
    score: ScoreChoice | None = None,
    strict: bool = False,
    floor: float | None = None,
) -> Bundle:
    """Make another ladder for a bundle: other targets, delta, risk or score, or newer records.

    Nothing is exported or calibrated again, and costs that were measured on this machine remain. To compare ladders of
    the same records and keep the best spends the guarantee, so decide first.

    Args:
        bundle: As `build` or `load` returns it.
        max_drops: Targets. None: 0, 0.005, 0.01, 0.02 and 0.05, without 0 unless the risk is "drop".
        delta: Chance that a bound is wrong. None: as before.
        records: Of the same cascade, from `calibrate` where the networks are, or from `bundle.calibrate` on the
            device. Records of another machine have to be certified there, and the canaries are measured again. None:
            the bundle's own.
        risk: What is bounded. None: as before.
        score: Confidence that is compared with thresholds. None: as before.
        strict: Whether an error is raised where nothing can be certified.
        floor: Least accuracy of a point, as for `certify`.

    Returns:
        The bundle with the new ladder, in a temporary folder until `save` is called.

    Raises:
        CalibrationError: The records are of another cascade, preprocessing, engine or precision, or were made on
            another machine, or nothing can be certified and `strict` is set.
        InputError: An argument is no bundle, or no records.
        SettingError: A number is out of range, or a word is unknown.

    Example:
        >>> other = dynamic.recertify(bundle, (0.1,), delta=0.2)
        >>> other.ladder.certificate.delta
        0.2
    """
    if not isinstance(bundle, Bundle) or not isinstance(records, (Records, NoneType)):
        raise InputError(
            f"recertify takes a bundle (dynamic.load) and records (dynamic.calibrate, or None for the bundle's own). "
            f"It was given {type(bundle).__name__} and {type(records).__name__}"
        )
    if bundle.slim is not None and not bundle.slim.has_reference:
        raise CalibrationError(
            f"{bundle.folder} was made by slim without the reference, against which drops are measured. Recertify the "
            "whole bundle, and make it slim again"
        )
    source = bundle.records if records is None else records
    if source.fingerprint != bundle.ladder.fingerprint:
        raise CalibrationError(
            f"the records are of other networks, another preprocessing, engine or precision than the bundle: their "
            f"fingerprint is {source.fingerprint[:12]}, and the bundle's {bundle.ladder.fingerprint[:12]}. Calibrate "
            f"this cascade on engine {bundle.engine!r} ({bundle.precision})"
        )
    if source.finite:
        raise CalibrationError(
            f"the records are one batch of {len(source)} inputs, and a bundle runs on future ones: calibrate without "
            "batch="
        )
    old = bundle.ladder
    before = old.certificate
    delta = delta if delta is not None else 0.1 if before is None else before.delta
    measure = risk if risk is not None else "drop" if before is None else before.risk
    elsewhere = source.made_on is not None and source.made_on != bundle.records.made_on
    canaries, identity = _measured_here(bundle, source) if elsewhere else (None, bundle.calibrated_on)
    ladder = certify(
        source,
        max_drops,
        delta=delta,
        risk=measure,
        combine=old.combine,
        score=score or old.score,
        strict=strict,
        floor=floor,
    )
    warn_uncertified(ladder)
    owner = TemporaryBundle()
    folder = owner.path
    # costs of other machines are removed: each is stored with the frontier of the old ladder
    with disk_errors("the bundle", folder):
        bundle.copy_to(folder, rooms=(CHOICES,))
    if canaries is not None:
        canaries.save(folder / CANARIES)
    if has_graphs(folder, bundle.spec):
        write_graphs(folder, bundle.spec, ladder, bundle.engine, bundle.precision)
    write(
        folder,
        bundle.spec,
        ladder,
        source,
        bundle.engine,
        bundle.precision,
        bundle.cascade,
        bundle.classes,
        bundle.preprocess,
        identity,
        bundle.slim,
    )
    fresh = read(folder, verify=False)
    return replace(
        bundle,
        folder=folder,
        ladder=ladder,
        hashes=fresh.hashes,
        calibrated_on=identity,
        _owner=owner,
        _held=fresh._held,
    )


def _measured_here(bundle: Bundle, records: Records) -> tuple[Canaries | None, EngineIdentity]:
    """The canaries as this machine answers them. Raises CalibrationError where the records were not made on it."""
    old = bundle.canaries
    opened = bundle.open_unchecked(bundle.engine, bundle.precision)
    try:
        identity = EngineIdentity.of(opened)
        if identity.text != records.made_on:
            raise CalibrationError(
                f"the records were made on {_place(records)}, this is {identity}. Call recertify where the records "
                "were made"
            )
        return (None if old is None else Canaries(old.inputs, run_canaries(opened, old.inputs), old.source)), identity
    finally:
        opened.close()


def _place(records: Records) -> str:
    """The engine and machine of records, in words."""
    try:
        return str(EngineIdentity.from_json(parse_json(records.made_on or "{}")))
    except ValueError:
        return "an unknown machine"


def warn_uncertified(ladder: Ladder) -> None:
    """Log it where nothing on a ladder could be certified, and what fell below its floor."""
    if not ladder.certified and ladder.certificate is not None:
        logger.warning("nothing could be certified, the bundle runs uncertified: %s", shortage(ladder.certificate))
    for line in ladder.left_out:
        logger.warning("%s", line)


class TemporaryBundle:
    """A temporary folder that goes with the last bundle that refers to it."""

    def __init__(self) -> None:
        folder = TemporaryFolder("build")
        self.path = folder.path
        weakref.finalize(self, folder.remove)
