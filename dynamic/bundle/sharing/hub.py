"""Bundles on the Hugging Face Hub, through `huggingface_hub` (extra "hub"). Whatever comes from there is checked."""

import re
from pathlib import Path
from typing import Any

from dynamic.extras import with_remedy
from dynamic.policies.errors import BundleError
from dynamic.storage.atomic_write import copy_file
from dynamic.storage.cache_folder import cache_folder

PREFIX = "hf://"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_OWN_FILES = ("backbones/*", "weights/*", "*.onnx", "*.npz", "*.json")  # of a bundle that was there before


def _library(what: str) -> Any:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise with_remedy(error, what) from error
    return huggingface_hub


def hub_name(path: Any) -> str | None:
    """A path that names a repository, `hf://owner/name`. None: it is one of this machine.

    Args:
        path: A string, or a `Path` as a command line makes of it, which has one slash less.

    Returns:
        The name with its prefix.
    """
    text = path.as_posix() if isinstance(path, Path) else path
    if not isinstance(text, str) or not text.startswith(PREFIX[:-1]):
        return None
    return PREFIX + text.removeprefix(PREFIX[:-1]).lstrip("/")


def check_name(name: str) -> tuple[str, str | None]:
    """Repository and revision of `owner/name` or `owner/name@revision`, also with `hf://` before it.

    Args:
        name: The name.

    Returns:
        Both. The revision is None where none is given.

    Raises:
        BundleError: The name is of another form.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise BundleError(
            f"{name!r:.120} names no repository: give owner/name, or hf://owner/name@revision with a branch, tag or "
            "commit"
        )
    return match[1], match[2]


def download(name: str) -> tuple[Path, Path]:
    """Download a repository into the cache of huggingface_hub, or take it from there.

    Args:
        name: `hf://owner/name`, or with `@revision`.

    Returns:
        The folder of the snapshot, whose files may be links, and where a copy without links belongs.

    Raises:
        BundleError: There is no such repository or revision, or it cannot be reached and is not in the cache.
        ModuleNotFoundError: huggingface_hub is missing.
    """
    library = _library(f"dynamic.load({name!r:.120})")
    repository, revision = check_name(name)
    try:
        snapshot = Path(library.snapshot_download(repository, revision=revision, **_who()))
    except (OSError, ValueError) as error:  # the library's errors are one of both
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"{name} cannot be downloaded ({reason}). Check name, revision and network. A private repository needs "
            "`hf auth login` or HF_TOKEN"
        ) from error
    cache = cache_folder() or snapshot.parents[2] / "dynamic-inference"  # in the library's own, for who has no home
    return snapshot, cache / "hub" / repository.replace("/", "--") / snapshot.name


def copy_without_links(snapshot: Path, target: Path) -> None:
    """Copy the files of a snapshot. Its links lead into the library's cache of this repository.

    Args:
        snapshot: The folder of the snapshot.
        target: The folder to copy into. It exists.

    Raises:
        BundleError: A link leads elsewhere.
        OSError: A file cannot be read or written.
    """
    repository = snapshot.parents[1].resolve()
    for path in sorted(snapshot.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        place = path.resolve()
        if not place.is_relative_to(repository):
            raise BundleError(f"{path} leads out of the cache of its repository, to {place}. Remove it, and load again")
        copy = target / path.relative_to(snapshot)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_file(place, copy)


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as a repository of models, which is made where there is none.

    Args:
        folder: The folder. It holds a bundle and its card.
        name: `owner/name`, or with `@branch`.
        private: Whether a new repository is private. One that exists remains as it is.

    Returns:
        The address of the repository.

    Raises:
        BundleError: The Hub refuses, or cannot be reached.
        ModuleNotFoundError: huggingface_hub is missing.
    """
    library = _library("push_to_hub")
    repository, revision = check_name(name)
    api = library.HfApi(**_who())
    try:
        place = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message="Bundle of dynamic-inference",
            delete_patterns=list(_OWN_FILES),  # what a larger bundle left there
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"{name} cannot be uploaded ({reason}). Log in with `hf auth login` or HF_TOKEN, as one who may write there"
        ) from error
    return str(place)


def _who() -> dict[str, str]:
    from dynamic import __version__

    return {"library_name": "dynamic-inference", "library_version": __version__}
