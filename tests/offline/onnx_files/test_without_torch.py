"""ONNX files become a bundle where torch is not installed: built, certified, saved, loaded, run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from support.onnx_files.classifier_files import batches, linear

import dynamic

HIDDEN = ("torch", "torchvision", "onnxscript", "safetensors", "skl2onnx", "sklearn")
CODE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
import json
import numpy as np
import dynamic
x, y = np.load("inputs.npy"), np.load("labels.npy")
loader = [(x[i:i + 50], y[i:i + 50]) for i in range(0, len(x), 50)]
bundle = dynamic.build(["small.onnx", "large.onnx"], loader, max_drops=(0.3,), progress=False, classes=("a", "b", "c"))
bundle.save("shelf")
with dynamic.load("shelf").runtime(dynamic.Budget(max_drop=0.5)) as run:
    answer = run(x[0])
print(json.dumps({
    "cascade": bundle.cascade, "points": [point.name for point in bundle.ladder.points], "name": answer.name,
    "certified": bundle.ladder.certified, "loaded": [name for name in sys.modules if name.partition(".")[0] in HIDDEN],
}))
try:
    dynamic.build(["small.onnx", print], loader)
except ModuleNotFoundError as error:
    print(error)
"""


def test_build_certify_save_load_and_run(tmp_path: Path) -> None:
    linear(tmp_path / "small.onnx", softmax=True, rows=1, bias=0.5)
    linear(tmp_path / "large.onnx", opset=12, ir=6, products=4)
    loader = batches(1200)
    np.save(tmp_path / "inputs.npy", np.concatenate([x for x, _ in loader]))
    np.save(tmp_path / "labels.npy", np.concatenate([y for _, y in loader]))
    code = f"HIDDEN = {HIDDEN!r}\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed, refused = done.stdout.splitlines()
    facts = json.loads(printed)
    here = dynamic.build([tmp_path / "small.onnx", tmp_path / "large.onnx"], loader, max_drops=(0.3,), progress=False)
    assert facts["loaded"] == []
    assert facts["certified"]
    assert facts["name"] in ("a", "b", "c")
    assert facts["cascade"] == here.cascade
    assert facts["points"] == [point.name for point in here.ladder.points]
    assert refused == (
        "dynamic.build of anything but ONNX files needs torch, which is not installed: "
        'pip install "dynamic-inference[build]"'
    )
    assert dynamic.load(tmp_path / "shelf").classes == ("a", "b", "c")
