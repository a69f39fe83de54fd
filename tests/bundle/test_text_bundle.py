"""A bundle that takes texts: from building to answers, in Python and in the shell."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.networks.texts import CLASSES, WORDS, MaskedMean, networks, sentences, tokenizer
from typer.testing import CliRunner

import dynamic
from dynamic.bundle.bundle_reader import load
from dynamic.cli.app import app
from dynamic.policies.errors import CorruptError, InputError

LENGTH = 9


def built(truncate: bool = False, **options: object) -> dynamic.Bundle:
    texts = dynamic.TextPreprocess.of(tokenizer(), truncate=truncate)
    words, labels = sentences(300)
    return dynamic.build(
        networks(),
        texts.batches(words, labels, length=LENGTH),
        preprocess=texts,
        classes=CLASSES,
        max_drops=(0.05,),
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "shelf"
    built().save(folder)
    return folder


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_one_text_and_a_list(shelf: Path, engine: str) -> None:
    with load(shelf).runtime(engine=engine) as run:
        one = run("Turn the LIGHTS off")
        assert isinstance(one, dynamic.Prediction)
        assert one.name == "lights"
        assert run("some loud music").name == "music"
        many = run(["lights on", "please play some music"])
        assert [answer.name for answer in many] == ["lights", "music"]
        assert len(run(["lights"])) == 1
        assert run.submit("music").result().name == "music"
        assert [answer.name for answer in run.map(["lights", "music"])] == ["lights", "music"]


def test_the_answer_is_the_networks_own(shelf: Path) -> None:
    bundle = load(shelf)
    words, _ = sentences(40)
    ids = np.zeros((40, LENGTH), np.int64)
    for row, sentence in enumerate(words):
        tokens = [2, *(4 + WORDS.index(word) for word in sentence.split()), 3]
        ids[row, : len(tokens)] = tokens
    mask = (ids != 0).astype(np.int64)
    small, large = networks()
    with torch.no_grad():
        logits = [n(torch.from_numpy(ids), torch.from_numpy(mask)).numpy() for n in (small, large)]
    opened = bundle.open()
    try:
        arrays = bundle.preprocess.arrays(words, bundle.spec.inputs)
        np.testing.assert_array_equal(arrays["input_ids"], ids)
        found = opened.all_logits(arrays)
    finally:
        opened.close()
    np.testing.assert_allclose(found, np.stack(logits, axis=1), atol=1e-4)


def test_token_ids_by_name_are_taken_as_they_are(shelf: Path) -> None:
    ids = np.array([[2, 6, 3, *[0] * 6]])
    with load(shelf).runtime() as run:
        assert run({"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}).name == ("lights",)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([2, 5000], [1, 1], r"the token id 5000, and the ids of this tokenizer are 0 to \d+: give texts"),
        ([2, -100], [1, 1], "the token id -100"),
        ([2, 1], [0, 0], "a row of input 'attention_mask' has no token"),
        ([2, 1], [1, 7], "holds 7, and a mask is 1 at tokens and 0 at padding"),
        ([2, 1], [1, -3], "holds -3"),
    ],
)
def test_ids_and_masks_that_no_tokenizer_makes(shelf: Path, ids: list[int], mask: list[int], message: str) -> None:
    """One of them made every engine fail, and the requests of others went without a certificate for 30 s."""
    named = {"input_ids": np.zeros((1, LENGTH), np.int64), "attention_mask": np.zeros((1, LENGTH), np.int64)}
    named["input_ids"][0, :2], named["attention_mask"][0, :2] = ids, mask
    with load(shelf).runtime() as run:
        for _ in range(3):  # the plan of good requests is no way around
            good = run("lights on")
            with pytest.raises(InputError, match=message):
                run(named)
        assert run.stats().engine_failures == 0
        assert run("lights on").certified == good.certified


class Tokens(torch.nn.Module):
    """The mean of embeddings, of ids alone."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.words, self.classifier = torch.nn.Embedding(rows, 4), torch.nn.Linear(4, len(CLASSES))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.words(tokens).mean(1))
        return logits


def test_ids_beyond_the_table_of_a_bundle_without_a_tokenizer(tmp_path: Path) -> None:
    """One made the engine fail, and the requests of others went without a certificate for 30 s."""
    texts = dynamic.TextPreprocess.of(tokenizer())
    words, labels = sentences(40)
    batches = texts.batches(words, labels, length=LENGTH)
    masked = dynamic.build([*networks(), MaskedMean(20, 4).eval()], batches, progress=False)
    limits = {one.name: one.ids for one in masked.spec.inputs}
    assert limits == {"input_ids": 14, "attention_mask": None}, "of the smallest table"
    torch.manual_seed(0)
    ids = [(inputs["input_ids"], targets) for inputs, targets in batches]
    alone = dynamic.build([Tokens(14).eval(), Tokens(14).eval()], ids, progress=False)
    for number, bundle in enumerate((masked, alone)):
        bundle.save(tmp_path / str(number))
        loaded = load(tmp_path / str(number))
        assert loaded.spec == bundle.spec
        good = {name: array[:1] for name, array in batches[0][0].items()}
        with loaded.runtime() as run:
            for wrong in (14, -1):
                for _ in range(4):  # the plan of good requests is no way around
                    bad = {name: array.copy() for name, array in good.items()}
                    bad["input_ids"][0, 1] = wrong
                    run(good if bundle is masked else good["input_ids"])
                    with pytest.raises(InputError, match=rf"holds the id {wrong}, and the table .* 14 rows, 0 to 13"):
                        run(bad if bundle is masked else bad["input_ids"])
            assert run.stats().engine_failures == 0
    manifest = json.loads((tmp_path / "0" / "bundle.json").read_text())
    assert manifest["schema"] == 3, "earlier versions do not read the limit"
    assert [one.get("ids") for one in manifest["spec"]["inputs"]] == [14, None]


def test_a_bundle_of_texts_counts_inputs(shelf: Path) -> None:
    """It said how many images certified."""
    assert "inputs (" in str(load(shelf))
    assert "image" not in str(load(shelf))


def test_what_does_not_fit(shelf: Path) -> None:
    with load(shelf).runtime() as run:
        with pytest.raises(InputError, match="has 10 tokens, and the network takes up to 9"):
            run("please turn the lights off please please please")
        with pytest.raises(InputError, match="is no text"):
            run(np.zeros((1, LENGTH), np.int64))
        with pytest.raises(InputError, match="is no text"):
            run.submit(3).result()
        assert run("").name in CLASSES  # the special tokens are answered
    with built(truncate=True).runtime() as run:
        assert run("please turn the lights off please please please").name == "lights"


def test_a_tokenizer_with_more_words_than_the_network() -> None:
    texts = dynamic.TextPreprocess.of(tokenizer())
    words, labels = sentences(20)  # some hold the words that have no row, and "on" alone does not
    with pytest.raises(InputError, match="ids up to 13, and the table of embeddings of MaskedMean-1 has 12 rows"):
        dynamic.build(
            [networks()[0], MaskedMean(12, 4).eval()], texts.batches(words, labels, length=LENGTH), preprocess=texts
        )
    with pytest.raises(InputError, match="of MaskedMean has 12 rows"):
        dynamic.build([MaskedMean(12, 4).eval()], texts.batches(["on"] * 20, labels, length=LENGTH), preprocess=texts)


def test_a_tokenizer_itself_may_be_given() -> None:
    words, labels = sentences(40)
    held_out = dynamic.TextPreprocess.of(tokenizer()).batches(words, labels, length=LENGTH)
    bundle = dynamic.build(networks(), held_out, preprocess=tokenizer(), progress=False)
    assert bundle.preprocess == dynamic.TextPreprocess.of(tokenizer())


def test_another_tokenizer_has_another_fingerprint(shelf: Path) -> None:
    bundle = load(shelf)
    other = tokenizer()
    other.add_tokens(["kitchen"])
    from dataclasses import replace

    changed = replace(bundle, preprocess=dynamic.TextPreprocess.of(other))
    assert changed.fingerprint("onnxruntime", "f32") != bundle.fingerprint("onnxruntime", "f32")


def test_a_changed_or_missing_tokenizer_is_noticed(shelf: Path, tmp_path: Path) -> None:
    for number, change in enumerate((lambda f: f.write_text(f.read_text().replace("lights", "lamps")), Path.unlink)):
        copy = tmp_path / str(number)
        shutil.copytree(shelf, copy)
        change(copy / "tokenizer.json")
        with pytest.raises(CorruptError, match=r"tokenizer\.json"):
            load(copy)


def test_saved_again_and_swapped(shelf: Path, tmp_path: Path) -> None:
    load(shelf).save(tmp_path / "other")
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (shelf / "tokenizer.json").read_bytes()
    with load(shelf).runtime() as run:
        run.swap(load(tmp_path / "other"))
        assert run("music").name == "music"


def test_calibrated_on_the_device_with_texts(shelf: Path) -> None:
    words, labels = sentences(60)
    records = load(shelf).calibrate([(words[i : i + 20], labels[i : i + 20]) for i in range(0, 60, 20)], progress=False)
    assert records.logits.shape == (60, 2, 2)


def test_exported_as_one_graph_of_token_ids(shelf: Path, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(dynamic.export(load(shelf), tmp_path / "model.onnx")).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask", "thresholds"]


def test_the_shell_reads_files_and_the_standard_input(shelf: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("lights\tturn the lights off\n\nmusic\tplay some music\nlights\tplease " + "on " * 9 + "\nmusic\n")
    result = CliRunner().invoke(app, ["run", str(shelf), str(file), "--json"])
    assert result.exit_code == 0, result.output
    *rows, summary = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [(row["file"], row["class"], row["name"]) for row in rows] == [
        (f"{file}:1", "lights", "lights"),
        (f"{file}:3", "music", "music"),
        (f"{file}:5", None, "music"),
    ]
    assert summary["summary"]["accuracy"] == 1.0
    assert "has 12 tokens" in summary["summary"]["left_out"][0]["reason"]
    result = CliRunner().invoke(app, ["run", str(shelf), "-", "--json"], input="some loud music\n")
    assert json.loads(result.stdout.splitlines()[0])["name"] == "music"


def test_without_the_library_loading_says_what_to_install(shelf: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['tokenizers'] = None\n"
        "import dynamic\n"
        "try:\n"
        f"    dynamic.load({str(shelf)!r})\n"
        "except dynamic.DynamicError as error:\n"
        "    print(error)\n"
        "assert 'torch' not in sys.modules\n"
        "from pathlib import Path\n"
        "from dynamic.bundle.bundle_reader import read\n"
        "from dynamic.bundle.requirements import unmet_needs\n"
        f"print('doctor', unmet_needs(read(Path({str(shelf)!r}), verify=True)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    remedy = 'pip install "dynamic-inference[text]"'
    loading, doctor = out.splitlines()
    assert remedy in loading
    assert doctor.startswith("doctor (")
    assert remedy in doctor
