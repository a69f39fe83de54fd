"""Hooks of mkdocs: what the site takes from outside of docs/.

Pages link to files of the repository, such as examples and results, as they are in a clone. The site gets a copy of
each under `repository/`. `benchmarks/README.md`, `CHANGELOG.md` and `CONTRIBUTING.md` become pages there.

`policies/` and `models/` are installed inside `dynamic`. mkdocstrings reads files without importing them, so it gets a
copy in which the package is whole. There the section `Example:` has the plural that its parser knows.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("benchmarks/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
EXAMPLE = re.compile(r"\bExample:$", re.MULTILINE)
_package: tempfile.TemporaryDirectory[str] | None = None


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: MkDocsConfig) -> None:
    """Put the whole package on the path of mkdocstrings."""
    global _package
    _package = _package or tempfile.TemporaryDirectory(prefix="dynamic-site-")
    folder = Path(_package.name)
    for source, place in ((ROOT / "dynamic", ""), (ROOT / "policies", "policies"), (ROOT / "models", "models")):
        for path in source.rglob("*.py*"):
            if path.suffix in (".py", ".pyi"):
                copy = folder / "dynamic" / place / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(EXAMPLE.sub("Examples:", path.read_text("utf-8")), "utf-8")
    plugin = config.plugins["mkdocstrings"]
    plugin.config.handlers = {"python": {**plugin.config.handlers["python"], "paths": [str(folder)]}}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what pages link to."""
    for name in PAGES:
        files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    for page in [file for file in files if file.is_documentation_page()]:
        for target in _outside(page):
            name = f"repository/{target}"
            if (ROOT / target).is_file() and name not in files.src_uris:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave docs/ lead to the copies."""

    def moved(match: re.Match[str]) -> str:
        target = _target(page.file, match[1])
        if target is None:
            return match[1]
        ups = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
        inside = target.removeprefix("docs/")
        return ups + (inside if inside != target else f"repository/{target}")

    return LINK.sub(moved, markdown)


def _outside(page: File) -> Iterator[str]:
    for link in LINK.findall(page.content_string):
        target = _target(page, link)
        if target is not None and not target.startswith("docs/"):
            yield target


def _target(page: File, link: str) -> str | None:
    """The file of the repository that a link of a page leads to, seen from the root. None for a link in docs/."""
    own = page.src_uri.startswith("repository/")
    place = ROOT / (page.src_uri.removeprefix("repository/") if own else f"docs/{page.src_uri}")
    path = (place.parent / link).resolve()
    if not path.is_relative_to(ROOT):
        return None
    target = path.relative_to(ROOT).as_posix()
    return target if own or not target.startswith("docs/") else None
