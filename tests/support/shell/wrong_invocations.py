"""Wrong invocations of the shell: the command, the exit code, and what the one line of the message says.

`shelf` is a bundle of digits, `data` has images in test/<digit> and report/<digit>, `digit_factories.py` has networks.
"""

from pathlib import Path

FILES = {
    "notes.txt": "words\n",
    "empty.csv": "",
    "texts.csv": "text,label\nlights off,lights\nplay it,music\n",
    "no_label.csv": "id,words,size\n1,a,2\n",
    "broken.jsonl": '{"text": "a", "label": "b"}\n{"text"\n',
    "broken.toml": "exits = = 3\n",
    "unknown.toml": "exit = 3\n",
    "unknown_table.toml": "[biuld]\nexits = 3\n",
    "unknown_key.toml": "[build]\nresise = 3\n",
    "nested.toml": "[build]\nexits = [1, 2]\n",
    "broken_code.py": "def network(:\n",
    "raises.py": "def network():\n    return 1 / 0\n",
    "broken.onnx": "no graph",
    "broken.pt": "no weights",
    "broken.zip": "no archive",
}

COMMANDS = {
    # networks
    "no such network of torchvision": ("build torchvision:resnet19 data", 1, "did you mean resnet1[08]"),
    "no such network of timm": ("build timm:resnet19x data", 1, "timm has no classifier 'resnet19x'|pip install timm"),
    "no such folder of transformers": ("build hf:./nowhere data", 1, "nowhere does not exist"),
    "no such onnx file": ("build nowhere.onnx data", 1, "'nowhere.onnx' does not exist"),
    "broken onnx file": ("build broken.onnx data --split test", 1, "broken.onnx is no ONNX file"),
    "no such saved network": ("build nowhere.safetensors data", 1, "'nowhere.safetensors' does not exist"),
    "weights alone": ("build small.safetensors data", 1, "holds weights and not what they belong to"),
    "no form of a name": ("build resnet18 data", 2, "'resnet18' is no name that is known"),
    "factory without colon": ("build --network digit_factories --data data", 2, "is no name that is known"),
    "no such module": ("build nowhere:small data", 1, "No module named 'nowhere'"),
    "no such factory": ("build digit_factories:huge data", 1, "no attribute 'huge'"),
    "factory of a number": ("build digit_factories:number data", 1, "gave a int"),
    "no such file": ("build nowhere.py:small data", 1, "nowhere.py does not exist"),
    "file that does not run": ("build broken_code.py:network data", 1, "does not run .SyntaxError"),
    "function that fails": ("build raises.py:network data", 1, "raised ZeroDivisionError.*raises.py, line 2"),
    "too many weights": ("build a:b data --weights a --weights b", 2, "2 --weights for 1"),
    "no such weights": ("build digit_factories:small data --weights nowhere.pt", 1, "nowhere.pt does not exist"),
    "broken weights": ("build digit_factories:small data --weights broken.pt", 1, "is not a whole safetensors file"),
    "weights of another": (
        "build digit_factories:small data --weights large.safetensors", 1, "has shape .*Make the network as it was"
    ),
    "weights of an onnx file": ("build a.onnx data --weights b.pt", 2, "an ONNX file holds its weights"),
    "exits of an onnx file": ("wrap broken.onnx --shape 3x8x8", 1, "is not cut into stages"),
    # data
    "no data": ("build", 2, "no data were named: give networks, then the data"),
    "no network": ("build data", 2, "no network was named beside the data data"),
    "data that do not exist": ("build digit_factories:small photos", 1, "'photos' do not exist: give a folder"),
    "data that are none": ("build digit_factories:small notes.txt", 1, "no data set that is known"),
    "empty folder": ("build digit_factories:small empty", 1, "no images in class folders"),
    "one class": ("build digit_factories:small one", 1, "the one class"),
    "broken zip": ("build digit_factories:small broken.zip", 1, "no data set that is known"),
    "empty table": ("build digit_factories:small empty.csv", 1, "holds no rows"),
    "table without labels": ("build digit_factories:small no_label.csv", 1, "none called 'text'"),
    "broken line": ("build digit_factories:small broken.jsonl", 1, "broken.jsonl:2 is no JSON"),
    "texts without a tokenizer": ("build digit_factories:small texts.csv", 1, "give --tokenizer"),
    "no such tokenizer": ("build digit_factories:small texts.csv --tokenizer nowhere.json", 1, "nowhere.json"),
    "no root": ("build digit_factories:small torchvision:CIFAR10", 1, "give --root"),
    "no such data set": ("build digit_factories:small torchvision:CIFAR --root .", 1, "did you mean CIFAR10"),
    "not downloaded": ("build digit_factories:small torchvision:MNIST --root .", 1, "download=True"),
    "no such split": ("build digit_factories:small data --split val", 1, r"no split 'val': it has"),
    "trains on what is held out": (
        "fit digit_factories:small data --split test --train-split test", 2, "is what is held out too"
    ),
    # numbers and words
    "mean": ("build a:b data --mean half", 2, "--mean 'half'"),
    "std that is not finite": ("build a:b data --std nan", 2, "--std 'nan' is not finite"),
    "crop": ("build a:b data --crop 0x3", 2, "--crop '0x3'"),
    "resize": ("build a:b data --resize 1x2x3", 2, "--resize '1x2x3'"),
    "limit": ("build a:b data --limit 0", 2, "--limit 0 must be at least 1"),
    "no exits": ("build a:b data --exits -1", 2, "--exits -1 must be at least 0"),
    "shape": ("wrap digit_factories:small --shape 8,8", 2, "--shape '8,8'"),
    "no shape": ("wrap digit_factories:small", 1, "give --shape 3x224x224"),
    "ending of a network": ("wrap digit_factories:small --shape 1x8x8 -o a.pt", 1, "must end in .safetensors"),
    "mode": ("fit a:b data --mode head", 2, "--mode 'head'"),
    "teacher of heads": ("fit a:b data --teacher a:c", 2, "--teacher a:c is for --mode joint"),
    "epochs": ("fit a:b data --epochs 0", 2, "--epochs 0 must be at least 1"),
    "method": ("compress a:b data --method shrink", 2, "--method 'shrink' is not known: use one of quantize"),
    "amount of int8": ("compress a:b data --amount 0.5", 2, "quantize has no amount"),
    "ending of a smaller network": ("compress a:b data -o small.pt", 1, "must end in .onnx"),
    "risk": ("build a:b data --risk loss", 2, "'loss'"),
    "score": ("build a:b data --score entropy", 2, "'entropy'"),
    "combine": ("build a:b data --combine all", 2, "'all'"),
    "target": ("build digit_factories:small data --split test --limit 60 --max-drop 2", 2, "--max-drop holds 2.0"),
    "engine of a build": ("build digit_factories:small data --split test --limit 9 --engine steam", 1, "'steam'"),
    "occupied": ("build -o data digit_factories:small data --split test --limit 9", 1, "not a bundle"),
    # settings
    "no settings": ("build -c nowhere.toml", 1, "nowhere.toml does not exist: write it with dynamic init"),
    "broken settings": ("build -c broken.toml", 1, "broken.toml does not read"),
    "unknown key": ("build -c unknown.toml", 2, "'exit' is no option of any command, did you mean 'exits'"),
    "unknown table": ("build -c unknown_table.toml", 2, r"table \[biuld\] is no command, did you mean 'build'"),
    "unknown key of a table": ("build -c unknown_key.toml", 2, r"'resise' in \[build\].*did you mean 'resize'"),
    "list for one value": ("build -c nested.toml", 2, r"exits in \[build\] is a list"),
    "settings that are there": ("init data/test -o notes.txt --yes", 1, "notes.txt exists: give --force"),
    "nothing to start from": ("init nowhere --yes", 1, "'nowhere' do not exist"),
    "drop of settings": ("init data/test -o new.toml --yes --max-drop 3", 2, "--max-drop 3 must lie from 0 to 1"),
    # bundles on a device
    "no shelf": ("run nowhere data", 1, "nowhere is no bundle"),
    "corrupt shelf": ("run corrupt data", 1, "weights.* was written|bytes"),
    "unknown engine": ("profile shelf --engine steam", 1, "'steam' is not known: use one of"),
    "engine without modules": ("run shelf data --engine torch", 1, "holds no torch modules"),
    "no images to run": ("run shelf empty", 1, "empty holds no images"),
    "no such images": ("run shelf missing.png", 1, "missing.png does not exist"),
    "no image": ("run shelf digit_factories.py", 1, "does not read as an image"),
    "no such split to run": ("run shelf data --split train", 1, r"no images of split 'train': it has"),
    "latency": ("run shelf data --latency-ms -1", 2, "--latency-ms -1.0 must be a positive number"),
    "last": ("run shelf data --last-s 0", 2, "--last-s 0.0 must be a positive number"),
    "energy": ("run shelf data --energy-mj 0", 2, "--energy-mj 0.0 must be a positive number"),
    "drop": ("run shelf data --max-drop 5", 2, "--max-drop 5.0"),
    "on drift": ("run shelf data --on-drift stop", 2, r"--on-drift 'stop' must be one of \('safest', 'report'\)"),
    "batch": ("profile shelf --batch 8 --batch 1", 2, "rising sizes"),
    "thorough and batch": ("profile shelf --thorough --batch 8", 2, "--thorough has its own batch sizes"),
    "view and json": ("run shelf data --watch --json", 2, "leave out --json"),
    "export of no point": ("export shelf model.onnx --point none", 1, "'none'"),
    "no memory at all": ("slim shelf small --memory-mb 0", 2, "--memory-mb 0.0 must be a positive number of megabytes"),
    "less than any network": ("slim shelf small --disk-mb 0.001", 2, r"--disk-mb 0.001 is too little: point .* Give"),
    "asking without a file": ("certify shelf again --budget 5", 2, "give --ask labels.csv"),
    "labels that are there": ("certify shelf again --ask labels.csv", 1, "leave --ask out"),
    "unknown device": ("simulate shelf --device abacus", 2, "no device 'abacus': there are"),
    "percentile": ("simulate shelf --device mid-range-phone --percentile most", 2, "--percentile 'most'"),
    "scenario": ("simulate shelf --device cloud-vm --scenario battery", 2, "lacks what it needs"),
    "scenario and rate": ("simulate shelf --device laptop --scenario heat --rate-hz 1", 2, "omit --rate-hz"),
    "rate": ("simulate shelf --device mid-range-phone --rate-hz 0", 2, "--rate-hz 0"),
    "page of no classes": ("report shelf --images empty", 1, "empty holds no images"),
    "port": ("serve shelf --port 99999", 2, "99999"),
    "no sensors": ("doctor --root nowhere", 1, "--root nowhere is no folder"),
    "seconds of a record": ("record trace.jsonl --seconds 0", 2, "--seconds 0.0 must be a positive number"),
}  # fmt: skip

# these are found by the library of the command line, which prints how to get help
UNREAD = {
    "no input": "run",
    "no device": "simulate shelf",
    "no number": "profile shelf --seconds long",
    "unknown option": "build a:b data --exit 3",
    "unknown command": "biuld a:b data",
    "option without its value": "run shelf data --latency-ms",
}


def write_files(folder: Path) -> None:
    """Write the files of these invocations."""
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "empty").mkdir(exist_ok=True)
