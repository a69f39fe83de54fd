"""Another ladder for a bundle. It calibrates nothing and needs no torch."""

import json
import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import NoneType

from dynamic.bundle.bundle import Bundle, has_graphs, read, write
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
    delta: float | None = None,
    *,
    records: Records | None = None,
    risk: RiskName | None = None,
    score: ScoreChoice | None = None,
    strict: bool = False,
    floor: float | None = None,
) -> Bundle:
    """The bundle with another ladder: other targets, delta, risk or score, or newer `records` of the same cascade.

    Delta, risk and score are those of before unless given; `records` come from `calibrate`, where the networks are, or
    from `bundle.calibrate` on the device. Then this has to be called there, and the canaries are measured again.
    Nothing is exported or calibrated again; costs that were measured here stay. Looking at the same records under one
    choice of targets and then another, and keeping what looks best, spends the guarantee: decide first. Saved it
    is, like what `build` gives, with `save`. The remaining arguments are those of `certify`, whose errors it raises;
    CalibrationError too where `records` are of another cascade, preprocessing, engine or precision than the bundle's.
    """
    if not isinstance(bundle, Bundle) or not isinstance(records, (Records, NoneType)):
        raise InputError(
            f"recertify takes a bundle (dynamic.load) and records (dynamic.calibrate, or None for the bundle's own); "
            f"it was given {type(bundle).__name__} and {type(records).__name__}"
        )
    given = bundle.records if records is None else records
    if given.fingerprint != bundle.ladder.fingerprint:
        raise CalibrationError(
            f"records have the fingerprint {given.fingerprint[:12]}, the bundle {bundle.ladder.fingerprint[:12]}: "
            f"they are of another cascade, preprocessing, engine or precision; calibrate this cascade on engine "
            f"{bundle.engine!r} ({bundle.precision})"
        )
    old = bundle.ladder
    known = old.certificate
    delta = delta if delta is not None else 0.1 if known is None else known.delta
    risk = risk if risk is not None else "drop" if known is None else known.risk
    elsewhere = given.made_on is not None and given.made_on != bundle.records.made_on
    canaries, identity = _measured_here(bundle, given) if elsewhere else (None, bundle.calibrated_on)
    ladder = certify(
        given,
        max_drops,
        delta=delta,
        risk=risk,
        combine=old.combine,
        score=score or old.score,
        strict=strict,
        floor=floor,
    )
    warn_uncertified(ladder)
    owner = TemporaryBundle()
    folder = owner.path
    # costs of other machines go: each lies there with the frontier of the old ladder
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
        given,
        bundle.engine,
        bundle.precision,
        bundle.cascade,
        bundle.classes,
        bundle.preprocess,
        identity,
    )
    made = read(folder, verify=False)
    return replace(
        bundle,
        folder=folder,
        ladder=ladder,
        hashes=made.hashes,
        calibrated_on=identity,
        _owner=owner,
        _held=made._held,
    )


def _measured_here(bundle: Bundle, records: Records) -> tuple[Canaries | None, EngineIdentity]:
    """The canaries as this machine answers them. Raises CalibrationError where the records were not made on it."""
    old = bundle.canaries
    opened = bundle.open_unchecked(bundle.engine, bundle.precision)
    try:
        identity = EngineIdentity.of(opened)
        if json.dumps(identity.to_json(), sort_keys=True) != records.made_on:
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
