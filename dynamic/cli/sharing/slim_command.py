"""`python -m dynamic slim`: a bundle that holds only what one device will use. It needs onnx and no torch."""

import json
from pathlib import Path
from typing import Annotated

import typer

import dynamic
from dynamic.cli.options import Shelf
from dynamic.cli.project.commands import add


def slim(
    shelf: Shelf,
    out: Annotated[Path, typer.Argument(help="Folder to write. A bundle there is replaced.", show_default=False)],
    memory_mb: Annotated[
        float | None, typer.Option(help="Megabytes (10^6 bytes) that the process may hold resident.")
    ] = None,
    disk_mb: Annotated[float | None, typer.Option(help="Megabytes that the folder may take.")] = None,
    device: Annotated[
        str | None, typer.Option(help="A simulated device, such as laptop, whose free memory is the limit too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a bundle that holds only what one device will use: its points, their networks, no torch weights."""
    whole = dynamic.load(shelf)
    small = dynamic.slim(whole, out, memory_mb=memory_mb, disk_mb=disk_mb, device=device)
    before_mb, after_mb = (sum(b.size_of(name) for name in b.hashes) / 1e6 for b in (whole, small))
    assert small.slim is not None
    if as_json:
        points = [point.name for point in small.ladder.points]
        facts = {"folder": str(small.folder), "mb": after_mb, "before_mb": before_mb, "points": points}
        print(json.dumps(facts | {"left_out": list(small.slim.left_out)}))
        return
    print(f"{small.folder}: {after_mb:.3f} MB of {before_mb:.3f} MB")
    print(f"{len(small.ladder.points)} of {len(whole.ladder.points)} operating points remain:")
    for point in small.ladder.points:
        print(f"  {', '.join(point.words())}")
    for line in small.slim.left_out:
        print(line)
    if memory_mb is not None:
        print(f"run it under the same limit: dynamic run {out} SOURCE --memory-mb {memory_mb:g}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, slim, example="dynamic slim shelf slim --memory-mb 512 --disk-mb 40")
