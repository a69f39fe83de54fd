"""Every torchvision classification network below 120 M parameters: wraps, stops, exports.

    python -m benchmarks.wrapping.wrap_torchvision [NAME ...]

For each network, at its usual image size, with 3 exits and random weights: the last logits are bit-equal to the
network's own; the first stage runs a part of its modules (counted as they run); each stage exports with
`torch.export` under a dynamic batch and answers a batch of another size as torch does. Takes about half an hour on
two cores; what is done is kept in the results file, and a second run goes on from there (`--again` starts anew).
"""

import argparse
import gc
import json
import time
import warnings
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import dynamic
from benchmarks.harness.common import RESULTS, save

MOST = 120e6
SIZES = {"inception_v3": 299}
QUIET = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def names() -> list[str]:
    """Networks below 120 M parameters, by torchvision's own count."""
    return [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if next(iter(torchvision.models.get_model_weights(name))).meta["num_params"] < MOST
    ]


def check(name: str) -> dict[str, Any]:
    """What holds for one network; raises nothing."""
    torch.manual_seed(0)
    size = SIZES.get(name, 224)
    backbone = torchvision.models.get_model(name, weights=None, **QUIET.get(name, {})).eval()
    x = torch.randn(2, 3, size, size)
    row: dict[str, Any] = {"network": name, "parameters": sum(p.numel() for p in backbone.parameters())}
    try:
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dynamic.DynamicWarning)
            net = dynamic.wrap(backbone, x[:1], exits=3).eval()
        row |= {
            "seconds to wrap": round(time.perf_counter() - began, 2),
            "tracer": net.tracer,
            "trainable": net.trainable_backbone,
            "exits": [{"name": e.name, "share": round(e.share, 4), "carry": e.carry} for e in net.exits],
        }
        ran, hooks = _counted(backbone)
        with torch.no_grad():
            own = backbone(x)
            whole = ran.pop("modules")
            row["bit-equal"] = bool(torch.equal(net(x)[-1], own))
            ran.clear()
            net.exit_stages[0].body(x)
            row["modules in the first stage"] = f"{ran['modules']} of {whole}"
            row["skips"] = 0 < ran["modules"] < whole
        for hook in hooks:
            hook.remove()
        row["exports"] = _exports(net, x)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["passes"] = row.get("bit-equal") is True and row.get("skips") is True and row.get("exports") == 4
    del backbone
    gc.collect()
    return row


def _counted(network: nn.Module) -> tuple[dict[str, int], list[Any]]:
    ran = {"modules": 0}

    def count(module: nn.Module, args: Any, output: Any) -> None:
        ran["modules"] = ran.get("modules", 0) + 1

    leaves = [m for m in network.modules() if type(m).__module__.startswith("torch.nn.modules")]
    leaves = [m for m in leaves if not isinstance(m, (nn.Sequential, nn.ModuleList))]
    return ran, [m.register_forward_hook(count) for m in leaves]


def _exports(net: Any, x: Tensor) -> int:
    """How many of the stages export and then answer three rows as torch does."""
    done = 0
    carry: tuple[Tensor, ...] = (x,)
    for stage in net.exit_stages:
        batch = torch.export.Dim("batch")
        program = torch.export.export(stage, carry, dynamic_shapes=(tuple({0: batch} for _ in carry),))
        three = tuple(torch.cat([t, t])[:3] for t in carry)
        with torch.no_grad():
            pairs = zip(program.module()(*three), stage(*three), strict=True)
            done += all(torch.allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max()))) for a, b in pairs)
            carry = stage.body(*carry)
    return done


def main() -> None:
    """Check the networks asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names; all below 120 M parameters by default")
    parser.add_argument("--again", action="store_true", help="forget what was done before")
    options = parser.parse_args()
    wanted = options.networks or names()
    rows: dict[str, dict[str, Any]] = {}
    kept = RESULTS / "wrapping" / "wrap_torchvision.json"
    if kept.is_file() and not options.again:
        rows = {row["network"]: row for row in json.loads(kept.read_text())["networks"]}
    for number, name in enumerate(wanted):
        if name not in rows or not rows[name]["passes"]:
            rows[name] = check(name)
            listed = [rows[n] for n in sorted(rows)]
            save("wrapping/wrap_torchvision", {"passing": sum(r["passes"] for r in listed), "networks": listed})
        row = rows[name]
        places = ", ".join(f"{e['share']:.2f}" for e in row.get("exits", []))
        print(
            f"{number + 1:3}/{len(wanted)} {name:22} {row['parameters'] / 1e6:6.1f} M  "
            f"{'passes' if row['passes'] else 'FAILS '}  {row.get('tracer', '-')}  exits at {places}  "
            f"first stage {row.get('modules in the first stage', '-')}  {row.get('error', '')[:200]}",
            flush=True,
        )
    print(f"{sum(rows[n]['passes'] for n in wanted)} of {len(wanted)} pass")


if __name__ == "__main__":
    main()
