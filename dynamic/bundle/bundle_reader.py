"""Reading a bundle: one version of its folder, each file checked against the manifest."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.manifest import (
    LADDER,
    MANIFEST,
    Facts,
    check_ladder,
    holds_bundle,
    read_facts,
    read_manifest,
    version_of,
)
from dynamic.bundle.measurements.stored_costs import newest_costs
from dynamic.bundle.requirements import check_needs
from dynamic.bundle.sharing.hub import copy_without_links, download, hub_name
from dynamic.engines.model_files.external_data import external_files
from dynamic.policies.errors import (
    BundleError,
    CorruptError,
    DynamicError,
)
from dynamic.policies.ladder import Ladder
from dynamic.storage.json_files import read_json
from dynamic.storage.open_files import HeldFiles
from dynamic.storage.regular_files import check_hash
from dynamic.storage.temporary_files import TemporaryFolder
from dynamic.storage.versioned_folder import standing

_MOST_TRIES = 1000  # to read a folder that is replaced again and again meanwhile

logger = logging.getLogger("dynamic")


def load(path: str | Path, modules: Any = None, *, preload: bool = True) -> Bundle:
    """Load a bundle, check every file against the manifest, and check that what any input may need is installed.

    A missing engine is logged as a warning. Costs that were measured on this machine earlier are read too.

    Args:
        path: The folder of the bundle, or `hf://owner/name` on the Hugging Face Hub, with `@revision` for a branch, tag
            or commit. It is downloaded once, and works without a network from then on (extra "hub").
        modules: The cascade to run on engine "torch", or its stages, which are never certified. None: no torch.
        preload: False for a server that forks after loading. A runtime of this bundle then starts no thread, opens no
            sensor, imports no engine and runs no canaries before its first request, which comes in the child.

    Returns:
        The bundle.

    Raises:
        BundleError: There is no bundle, or it cannot be read.
        CorruptError: A file is missing, cut short or altered.
        SchemaError: A newer version wrote it.
        DynamicError: Its preprocessing resizes, and Pillow is not installed.
        ModuleNotFoundError: The path begins with `hf://`, and huggingface_hub is not installed.

    Example:
        >>> dynamic.load("shelf").spec.classes
        4
    """
    if (name := hub_name(path)) is not None:
        path = _from_hub(name)
    try:
        bundle = replace(read(Path(path), verify=True, modules=modules), preload=preload)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}). Grant the right to read it") from error
    except ValueError as error:  # a path that no system takes
        if isinstance(error, DynamicError):
            raise
        raise BundleError(f"{path!r:.80} is no folder ({error}). Give the folder of a bundle") from error
    check_needs(bundle)
    return bundle


def _from_hub(name: str) -> Path:
    """The folder of a bundle of the Hub: a copy without links, in which costs of this machine may be stored."""
    snapshot, own = download(name)
    if not holds_bundle(own):
        with TemporaryFolder("hub") as folder:
            copy_without_links(snapshot, folder)
            read(folder, verify=False).save(own)  # which compares every file with its hash
    return own


def read(folder: Path, verify: bool, modules: Any = None) -> Bundle:
    """`load`, with the check of every file's hash left to the caller. All that is read is of one version."""
    for tries in range(1, _MOST_TRIES + 1):
        base = standing(folder, MANIFEST)
        version = version_of(base)
        try:
            bundle = _read(base, verify, modules)
            held = HeldFiles.of(folder, base, MANIFEST, bundle.hashes)
        except Exception:  # of any kind: files of two versions do not fit
            if tries == _MOST_TRIES or (standing(folder, MANIFEST) == base and version_of(base) == version):
                raise
        else:
            if standing(folder, MANIFEST) == base and version_of(base) == version:
                return replace(bundle, folder=folder, _held=held)
    raise BundleError(f"{folder} was replaced {_MOST_TRIES} times while it was read. Load it again")


def _read(folder: Path, verify: bool, modules: Any = None) -> Bundle:
    facts = read_facts(read_manifest(folder), folder)
    if verify:
        verify_files(folder, facts)
    try:
        check_hash(folder, LADDER, facts.files[LADDER][1] if verify else None)
        ladder = Ladder.from_json(read_json(folder / LADDER, folder))
    except (ValueError, OSError) as error:
        if isinstance(error, DynamicError):
            raise
        raise CorruptError(f"{folder}: {LADDER} does not read ({error}). Build or copy the bundle again") from error
    check_ladder(facts, ladder, folder)
    bundle = Bundle(
        folder=folder,
        spec=facts.spec,
        ladder=ladder,
        engine=facts.engine,
        precision=facts.precision,
        cascade=facts.cascade,
        classes=facts.classes,
        preprocess=facts.preprocess,
        modules=_stages(modules, [i.name for i in facts.spec.inputs]),
        hashes={name: sha256 for name, (_, sha256) in facts.files.items()},
        modules_cascade=modules.fingerprint() if hasattr(modules, "fingerprint") else None,
        calibrated_on=facts.calibrated_on,
        slim=facts.slim,
    )
    return replace(bundle, costs=newest_costs(bundle))


def _stages(modules: Any, names: Sequence[str]) -> tuple[Any, ...] | None:
    if modules is None:
        return None
    if hasattr(modules, "stages_for"):
        return tuple(modules.stages_for(names))
    return tuple(getattr(modules, "stages", modules))


def verify_files(folder: Path, facts: Facts) -> None:
    for name, (size, sha256) in facts.files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptError(f"{folder}: {name} is missing. Copy the bundle again")
        if path.stat().st_size != size:
            raise CorruptError(
                f"{folder}: {name} has {path.stat().st_size} bytes, {size} were written. Copy the bundle again"
            )
        check_hash(folder, name, sha256)
        if name.endswith(".onnx"):
            _check_weights(folder, name, facts)
    links = [name for name in facts.files if name.endswith(".weights") and (folder / name).is_symlink()]
    if links:
        logger.warning(
            "%s: %s is a link. Engines load a temporary copy of it, each time: copy the bundle with its links "
            "followed, cp -rL",
            folder,
            ", ".join(links),
        )


def _check_weights(folder: Path, name: str, facts: Facts) -> None:
    """Raises CorruptError where a graph names weights that are not in the manifest: engines follow any path."""
    try:
        unlisted = [weights for weights in external_files(folder / name, name) if weights not in facts.files]
        if unlisted:
            raise ValueError(f"it names {unlisted[0]!r:.80} for its weights, which the manifest does not list")
    except ValueError as error:
        raise CorruptError(f"{folder}: {name} does not read ({error}). Build or copy the bundle again") from error
