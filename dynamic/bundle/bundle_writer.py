"""Writing bundles: the files of a new one beside its graphs, and a copy of one into a folder."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from dynamic.bundle.canaries.check import CHECKS
from dynamic.bundle.contract import Preprocessing
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.bundle.golden_vectors import golden, to_text
from dynamic.bundle.manifest import MANIFEST, holds_bundle, manifest_hash, preprocess_json, schema_of, spec_json
from dynamic.bundle.measurements.stored_costs import COSTS
from dynamic.bundle.sharing.slim_facts import SlimFacts
from dynamic.bundle.version_files import VersionFiles
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import check_engine
from dynamic.policies.errors import BundleError, InputError
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records
from dynamic.profiling.engine_choice import CHOICES
from dynamic.storage.atomic_write import disk_errors, explain_disk_errors
from dynamic.storage.open_files import HeldFiles
from dynamic.storage.regular_files import file_hash
from dynamic.storage.versioned_folder import is_empty, put_folder

MACHINE_FOLDERS = (CHOICES, CHECKS, COSTS)  # what each machine adds or measures again, outside of the manifest

logger = logging.getLogger("dynamic")


@explain_disk_errors("the bundle")
def write(
    folder: Path,
    spec: CascadeSpec,
    ladder: Ladder,
    records: Records,
    engine: str,
    precision: str,
    cascade: str,
    classes: Sequence[str] | None,
    preprocess: Preprocessing | None,
    calibrated_on: EngineIdentity | None = None,
    slim: SlimFacts | None = None,
) -> None:
    """Write ladder, records and manifest beside the graphs that already lie in `folder`.

    A `slim` bundle has no golden vectors: they are for who writes a policy, not for a device.
    """
    check_engine(engine, precision)
    if classes is not None and len(classes) != spec.classes:
        raise InputError(f"{len(classes)} class names for {spec.classes} classes: give one for each, in order")
    (folder / "ladder.json").write_text(json.dumps(ladder.to_json(), indent=1), encoding="utf-8")
    if slim is None:
        (folder / "golden.json").write_text(to_text(golden(ladder)), encoding="utf-8")
    for name, content in preprocess.files.items() if preprocess is not None else ():
        (folder / name).write_bytes(content)
    records.save(folder / "records.npz")
    vouched = (p for p in folder.rglob("*") if p.relative_to(folder).parts[0] not in MACHINE_FOLDERS)
    files = sorted(p for p in vouched if p.is_file() and p.name != MANIFEST)
    manifest = {
        "schema": schema_of(spec),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": engine,
        "precision": precision,
        "cascade": cascade,
        "fingerprint": ladder.fingerprint,
        "calibrated_on": None if calibrated_on is None else calibrated_on.to_json(),
        "classes": list(classes) if classes is not None else None,
        "preprocess": preprocess_json(preprocess),
        "spec": spec_json(spec),
        "files": {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_hash(p)} for p in files},
    }
    if slim is not None:
        manifest["slim"] = slim.to_json()
    text = json.dumps(manifest | {"sha256": manifest_hash(manifest)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_target(target: Path) -> None:
    """Raise BundleError where a folder holds something that is no bundle, which saving would replace."""
    if target.exists() and not holds_bundle(target) and (not target.is_dir() or not is_empty(target)):
        raise BundleError(f"{target} exists and is not a bundle. Choose another folder, or remove it")


def save_copy(files: VersionFiles, target: Path, add: Callable[[Path], None]) -> VersionFiles:
    """Put a copy of a bundle into a folder. The folder appears whole or not at all.

    Args:
        files: The files of the bundle.
        target: The folder. A bundle that lies there is replaced.
        add: Writes more files into the copy before it takes its place.

    Returns:
        The files of the copy.

    Raises:
        BundleError: Something else lies at `target`.
        CorruptError: A file is missing or was altered.
        DiskError: The disk refuses.
    """
    check_target(target)
    copies: list[HeldFiles] = []

    def fill(fresh: Path) -> None:
        files.copy_to(fresh, MACHINE_FOLDERS)
        add(fresh)
        copies.append(HeldFiles.of(target, fresh, MANIFEST, files.hashes))  # later, another writer's may lie there

    with disk_errors("the bundle", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        put_folder(target, fill, last=MANIFEST)
    return replace(files, folder=target, open_files=copies[0])
