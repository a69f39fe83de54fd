"""Files read without trust: JSON, arrays, graphs and names, each against what was written by hand."""

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dynamic.bundle.canaries.canary_set import Canaries
from dynamic.engines.contract import CascadeSpec, InputSpec, StageSpec
from dynamic.engines.model_files.external_data import external_files
from dynamic.engines.model_files.graph_files import BundleFiles
from dynamic.errors import CorruptError, EngineError
from dynamic.monitoring.traces import read_trace
from dynamic.policies.records import Records
from dynamic.policies.validation import fields
from dynamic.policies.validation.array_files import read_arrays
from dynamic.storage.inner_paths import check_inside, file_name
from dynamic.storage.json_files import MEASURED_BYTES, parse_json, read_json, seal, unseal

# values


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, 1e15, -1e15, 2**40])
def test_numbers(value: float) -> None:
    assert fields.number(value, "x") == value
    assert isinstance(fields.number(value, "x"), float)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 1e16, 10**400, -(10**400), True, None, "1", [1], {}, "inf"]
)
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^x=.* must be a number from -1e\+15 to 1e\+15$"):
        fields.number(value, "x")


def test_infinite_numbers_only_where_they_may_be() -> None:
    inf = float("inf")
    assert fields.number("-inf", "x", -inf, inf) == -inf
    assert fields.number(inf, "x", -inf, inf) == inf
    for value in ("nan", float("nan"), 10**400, "infinity"):
        with pytest.raises(ValueError, match=r"^x="):
            fields.number(value, "x", -inf, inf)


@pytest.mark.parametrize("value", [1.0, True, "1", None, -1, 2**53 + 1, float("nan")])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 0"):
        fields.whole(value, "x")


def test_lists_and_mappings() -> None:
    assert fields.items([1, 2], "x", fields.whole, 2) == (1, 2)
    for value in ([1], [1, 2, 3], "ab", {"a": 1}, None, [1, 2.0]):
        with pytest.raises(ValueError, match=r"^x"):
            fields.items(value, "x", fields.whole, 2)
    assert fields.mapping({"a": 1, "b": 2}, "x", ["a"], ["b"]) == {"a": 1, "b": 2}
    for data in ({}, {"a": 1, "c": 1}, [], {1: 2}, None):
        with pytest.raises(ValueError, match=r"^x"):
            fields.mapping(data, "x", ["a"], ["b"])
    with pytest.raises(ValueError, match=r"x\[1\]='b' must be true or false"):
        fields.items([True, "b"], "x", fields.flag)


# JSON


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[" * 30 + "]" * 30, "9" * 10_000, "\ufeff{}", "{1:2}"])
def test_json_that_is_refused(content: str) -> None:
    with pytest.raises(ValueError):
        parse_json(content)


def test_json_that_is_read() -> None:
    data = {"a": [1, 2.5, None, True, "ä"], "b": {"c": []}}
    assert parse_json(json.dumps(data).encode()) == data
    assert parse_json("[" * 24 + "]" * 24)
    with pytest.raises(ValueError, match="UTF-8"):
        parse_json(b"\xff{}")


def test_files_that_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    (tmp_path / "x.json").write_text("{}")
    (folder / "own.json").write_text("{}")
    (folder / "out.json").symlink_to(tmp_path / "x.json")
    (folder / "in.json").symlink_to("own.json")
    (folder / "zero.json").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.json")
    (folder / "large.json").write_text(" " * 100 + "{}")
    assert read_json(folder / "own.json", folder) == read_json(folder / "in.json", folder) == {}
    for name, words in {"out": "leads out", "zero": "no file", "pipe": "no file"}.items():
        with pytest.raises(ValueError, match=words):
            read_json(folder / f"{name}.json", folder)
    with pytest.raises(ValueError, match="102 bytes, the limit is 50"):
        read_json(folder / "large.json", folder, most_bytes=50)
    with pytest.raises(FileNotFoundError):
        read_json(folder / "none.json", folder)
    with pytest.raises(IsADirectoryError):
        read_json(folder, folder)


def test_files_that_machines_add_are_small(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(f"[{' ' * 2**20}]")
    with pytest.raises(ValueError, match="the limit is 1048576"):
        read_json(tmp_path / "costs.json", tmp_path, most_bytes=MEASURED_BYTES)
    assert read_json(tmp_path / "costs.json", tmp_path) == []


@pytest.mark.parametrize("item", ["[],", "{},", "1,", '"",'])
def test_json_of_very_many_values_is_refused(item: str) -> None:
    with pytest.raises(ValueError, match="values, the limit is"):
        parse_json(f"[{item * 2**20}0]")


def test_seals() -> None:
    data = {"a": (1, 2), "b": float("inf"), "c": {"d": 0.1}}
    sealed = parse_json(json.dumps(seal(data, "costs/x")))
    assert unseal(sealed, "costs/x") == {"a": [1, 2], "b": float("inf"), "c": {"d": 0.1}}
    for other, subject in (
        (sealed | {"c": {"d": 0.2}}, "costs/x"),
        (sealed, "costs/y"),
        (sealed | {"e": 1}, "costs/x"),
    ):
        with pytest.raises(ValueError, match="altered after it was written, or belongs to another"):
            unseal(other, subject)
    assert unseal({"a": 1}, "costs/x") == {"a": 1}, "as earlier versions wrote it"
    with pytest.raises(ValueError, match="holds a list"):
        unseal([], "costs/x")


# arrays


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def test_arrays_are_those_that_numpy_wrote(tmp_path: Path) -> None:
    wanted = {
        "floats": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "words": np.array(["a", "längst"]),
        "word": np.array("x"),
        "nothing": np.zeros((0, 3), np.int64),
        "flags": np.array([True, False]),
    }
    np.savez_compressed(tmp_path / "a.npz", **wanted)  # type: ignore[arg-type]
    found = read_arrays(tmp_path / "a.npz", "arrays", "get them again")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        found[name][...] = array  # may be written to


@pytest.mark.parametrize(
    "member",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"1234"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"12345678"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"12345678"),
        npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", b"12345678"),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"1234"),
        npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }", b""),
        npy("{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,), }", b""),
        npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1,), }", b""),
        npy("{'shape': (1,)}", b"1234"),
        npy("(" * 100, b"1234"),
        b"",
        b"\x93NUMPY\x09\x00",
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, member: bytes) -> None:
    path = npz(tmp_path / "a.npz", x=member)
    with pytest.raises(CorruptError, match=r"a\.npz does not read as arrays .*get them again"):
        read_arrays(path, "arrays", "get them again")


def test_arrays_that_unpack_to_too_much(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**6, np.uint8))
    with pytest.raises(CorruptError, match="the limit is 0 MB"):
        read_arrays(tmp_path / "a.npz", "arrays", "get them again", 10**5)


def test_a_small_file_of_arrays_holds_no_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.policies.validation.array_files._SMALL", 10**6)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**6 + 1, np.uint8))  # a thousand times what it weighs
    with pytest.raises(CorruptError, match="the limit is 1 MB"):
        read_arrays(tmp_path / "a.npz", "arrays", "get them again")
    noise = np.random.default_rng(0).integers(0, 256, 10**6, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**6, np.uint8), y=noise)
    assert read_arrays(tmp_path / "a.npz", "arrays", "get them again")["x"].shape == (10**6,)


def test_arrays_in_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(CorruptError, match="it is no file"):
        read_arrays(tmp_path / "a.npz", "arrays", "get them again")


def test_canaries_are_no_larger_than_the_cascade_says(tmp_path: Path) -> None:
    stage = StageSpec("a", 0, 0, "a.onnx", None, 1.0, 1.0)
    spec = CascadeSpec((InputSpec("x", (3, 8, 8), "float32"),), (stage,), 4)
    inputs = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    canaries = Canaries(inputs, np.zeros((64, 1, 4), np.float32), "calibration")
    canaries.save(tmp_path / "canaries.npz")
    assert len(Canaries.load(tmp_path / "canaries.npz", spec)) == 64
    large = {"x": np.zeros((64, 3, 64, 64), np.float32)}
    Canaries(large, canaries.logits, "calibration").save(tmp_path / "canaries.npz")
    with pytest.raises(CorruptError, match="the limit is 0 MB"):
        Canaries.load(tmp_path / "canaries.npz", spec)
    np.savez_compressed(
        tmp_path / "canaries.npz",
        **{"x/codes": np.zeros((16, 3, 16, 16), np.uint8), "x/levels": np.zeros((3, 256), np.float32)},
        logits=np.zeros((16, 1, 4), np.float32),
        source=np.array("calibration"),
    )
    with pytest.raises(CorruptError, match=r"has shape \[16, 3, 16, 16\], expected \[B, 3, 8, 8\]"):
        Canaries.load(tmp_path / "canaries.npz", spec)


def test_records_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, part = np.zeros((4, 1, 2), np.float32), np.zeros(4, np.int8)
    records = Records(logits, None, None, part, (0,), (1.0,), (1.0,), ("a",), "f")
    path, target = tmp_path / "records.npz", tmp_path / "target"
    records.save(path)
    before = path.read_bytes()

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match="No space"):
            records.save(path)
    assert path.read_bytes() == before
    target.write_text("mine")
    path.unlink()
    path.symlink_to(target)
    records.save(path)
    assert target.read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["records.npz", "target"]
    assert len(Records.load(path)) == 4


def test_an_encrypted_and_a_foreign_zip_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=b"1")
    content = path.read_bytes()
    for at in (content.index(b"PK\x01\x02") + 8, content.index(b"PK\x03\x04") + 6):  # the flag "encrypted"
        content = content[:at] + b"\x01" + content[at + 1 :]
    path.write_bytes(content)
    with pytest.raises(CorruptError):
        read_arrays(path, "arrays", "get them again")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CorruptError):
        read_arrays(path, "arrays", "get them again")


# names


@pytest.mark.parametrize("name", ["a", "backbones/0_0.onnx", "weights/räder-1_2.safetensors", "...", "a..b"])
def test_names_in_a_bundle(name: str) -> None:
    assert file_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/a", "//a", "a/../b", "../a", "a/..", "./a", "a//b", "a/", "a\\b", "C:a", "a\0b", "a\nb",
     "x" * 1001, None, 1, ["a"], "a\u202eb"],
)  # fmt: skip
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(ValueError):
        file_name(name)


def test_places(tmp_path: Path) -> None:
    (tmp_path / "shelf" / "in").mkdir(parents=True)
    (tmp_path / "shelf-2").mkdir()
    (tmp_path / "shelf" / "out").symlink_to(tmp_path / "shelf-2")
    (tmp_path / "link").symlink_to(tmp_path / "shelf")
    for folder in (tmp_path / "shelf", tmp_path / "link"):
        check_inside(folder / "in" / "x", folder)
        for place in (folder / "out", folder / "out" / "x", folder / "..", tmp_path / "shelf-2"):
            with pytest.raises(ValueError, match="leads out"):
                check_inside(place, folder)


# graphs


def external(name: str, location: str) -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(name: str, tensors: list[Any], nodes: list[Any]) -> Any:
    return helper.make_graph(nodes, name, [], [], initializer=tensors)


def test_files_of_a_graph_wherever_they_are_named(tmp_path: Path) -> None:
    """In initializers, constants, branches of branches, sparse tensors, functions: onnx itself writes the file."""
    inner = graph("inner", [external("c", "3.weights")], [])
    branch = graph("branch", [external("b", "2.weights")], [helper.make_node("If", ["x"], [], then_branch=inner)])
    constant = helper.make_node("Constant", [], ["y"], value=external("d", "4.weights"))
    several = helper.make_node("Odd", [], ["y"])
    several.attribute.append(helper.make_attribute("many", [external("e", "sub/5.weights")]))
    main = graph("main", [external("a", "1.weights"), external("a2", "1.weights")], [
        helper.make_node("If", ["x"], [], then_branch=branch, else_branch=graph("other", [], [])), constant, several
    ])  # fmt: skip
    sparse = onnx.SparseTensorProto(values=external("f", "6.weights"), indices=external("g", "7.weights"), dims=[1])
    main.sparse_initializer.append(sparse)
    function = helper.make_function(
        "own", "F", [], [], [helper.make_node("Constant", [], ["z"], value=external("h", "8.weights"))], []
    )
    model = helper.make_model(main, functions=[function], doc_string="location of 9.weights " * 100)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    names = [*(f"{number}.weights" for number in (1, 2, 3, 4, 6, 7, 8)), "sub/5.weights"]
    wanted = {f"backbones/{name}" for name in names}
    assert set(external_files(path, "backbones/x.onnx")) == wanted
    assert set(external_files(path, "x.onnx")) == set(names)


@pytest.mark.parametrize(
    "location",
    [
        "../x", "/etc/passwd", "a/../../x", "a\\x", "C:x", "", "*/_ORT_MEM_ADDR_/*", "*/_ORT_MEM_ADDR_/x.weights",
        "../0.weights", "./0.weights", "/0.weights", "a/../0.weights", "a//0.weights", ".weights", "bundle.json",
        "0.weights\n", "0.weights/", "file:///0.weights", "ä.weights",
    ],
)  # fmt: skip
def test_graphs_that_name_files_outside(tmp_path: Path, location: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(helper.make_model(graph("main", [external("a", location)], [])).SerializeToString())
    with pytest.raises(ValueError, match="no file of weights in its folder"):
        external_files(path, "backbones/x.onnx")


def test_graphs_that_are_damaged_end_in_words(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    content = helper.make_model(graph("main", [external("a", "1.weights")], [])).SerializeToString()
    for at in range(len(content)):
        for altered in (content[:at], content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :]):
            path.write_bytes(altered)
            try:
                external_files(path, "x.onnx")
            except ValueError:
                continue
    path.write_bytes(b"location" + b"\x3b" * 1000)
    with pytest.raises(ValueError, match="no ONNX file"):
        external_files(path, "x.onnx")
    nested = b"\x12\x08location"
    for _ in range(40):  # attribute, node, graph
        for key in (b"\x32", b"\x2a", b"\x0a"):
            nested = key + length(nested) + nested
    path.write_bytes(b"\x3a" + length(nested) + nested)
    with pytest.raises(ValueError, match="nests deeper than 64"):
        external_files(path, "x.onnx")


def length(content: bytes) -> bytes:
    """As a protocol buffer has it: seven bits a byte, the lowest first."""
    size, found = len(content), bytearray()
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*found, size])


def in_file(path: Path, content: bytes) -> tuple[str, ...]:
    path.write_bytes(content)
    return external_files(path, "x.onnx")


def field(key: bytes, content: bytes) -> bytes:
    return key + length(content) + content


ENTRY = field(b"\x0a", b"location") + field(b"\x12", b"0.weights")


def model_of(key: bytes) -> bytes:
    """A model, a graph, a tensor, and in it a field that holds where its weights are."""
    return field(b"\x3a", field(b"\x2a", field(key, ENTRY)))


def test_the_field_of_weights_is_read_by_its_number(tmp_path: Path) -> None:
    assert in_file(tmp_path / "x.onnx", model_of(b"\x6a")) == ("0.weights",)
    assert in_file(tmp_path / "x.onnx", model_of(b"\xea\x00")) == ("0.weights",), "the same number in two bytes"


@pytest.mark.parametrize(
    "key",
    [
        b"\xea\x80\x80\x80\x10",  # field 13 once what is above 32 bits is cut off
        b"\xea\x80\x80\x80\x80\x20",
        b"\xea\x80\x80\x80\x80\x00",  # field 13 in six bytes
        b"\xea\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"\x02",  # field 0
    ],
)
def test_numbers_of_fields_that_others_cut_off_are_refused(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(ValueError, match="a number that protocol buffers do not have"):
        in_file(tmp_path / "x.onnx", model_of(key))


@pytest.mark.parametrize("key", [b"\xf2\x01", b"\x12", b"\xfa\x7f"])
def test_the_word_in_a_field_that_onnx_does_not_have_is_refused(tmp_path: Path, key: bytes) -> None:
    """What nobody here reads, another version of an engine may."""
    with pytest.raises(ValueError, match="the word 'location' where ONNX has no text"):
        in_file(tmp_path / "x.onnx", model_of(key))
    both = field(b"\x3a", field(b"\x2a", field(b"\x6a", ENTRY) + field(key, ENTRY)))
    with pytest.raises(ValueError, match="the word 'location' where ONNX has no text"):
        in_file(tmp_path / "x.onnx", both)


@pytest.mark.parametrize("wire", [3, 4, 6, 7])
def test_groups_are_refused(tmp_path: Path, wire: int) -> None:
    with pytest.raises(ValueError, match="no ONNX file"):
        in_file(tmp_path / "x.onnx", field(b"\x3a", bytes([5 << 3 | wire]) + ENTRY))


def test_names_that_a_user_gives_may_hold_the_word(tmp_path: Path) -> None:
    """An input of sensor data is called like that, and so is a layer."""
    node = helper.make_node("Identity", ["location"], ["y"], name="location_head", doc_string="location")
    node.attribute.append(helper.make_attribute("text", "a location"))
    made = helper.make_graph(
        [node],
        "location",
        [helper.make_tensor_value_info("location", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        initializer=[helper.make_tensor("location", TensorProto.UINT8, [8], b"location", raw=True)],
    )
    model = helper.make_model(made, producer_name="location")
    helper.set_model_props(model, {"location": "location"})
    assert in_file(tmp_path / "x.onnx", model.SerializeToString()) == ()


def test_of_a_field_that_comes_twice_the_last_counts(tmp_path: Path) -> None:
    """As `onnx` reads it."""
    twice = field(b"\x0a", b"offset") + ENTRY + field(b"\x12", b"1.weights")
    content = field(b"\x3a", field(b"\x2a", field(b"\x6a", twice)))
    (tensor,) = onnx.ModelProto.FromString(content).graph.initializer
    assert [(entry.key, entry.value) for entry in tensor.external_data] == [("location", "1.weights")]
    assert in_file(tmp_path / "x.onnx", content) == ("1.weights",)


def test_a_graph_that_is_a_pipe_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ValueError, match="it is no file"):
        external_files(tmp_path / "pipe.onnx", "pipe.onnx")
    monkeypatch.setattr("dynamic.engines.model_files.external_data._MOST_BYTES", 10)
    with pytest.raises(ValueError, match="the limit is 10"):
        in_file(tmp_path / "x.onnx", bytes(11))


def test_a_graph_that_is_not_listed_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    with (
        pytest.raises(EngineError, match=r"x\.onnx .* is not in the bundle's manifest"),
        BundleFiles(tmp_path, {}).verify("x.onnx"),
    ):
        pass
    with BundleFiles(tmp_path).verify("x.onnx") as path:  # while it is built there is no manifest
        assert path == tmp_path / "x.onnx"


# traces


@pytest.mark.parametrize(
    "line",
    ['{"time_s": NaN}', '{"time_s": 1, "battery": 1e9}', '{"time_s": 1, "cpu_load": -1}', '{"time_s": 1, "rows": 1.5}',
     '{"time_s": 1, "power_mw": Infinity}', '{"time_s": 1' + "0" * 400 + "}", "[" * 100_000,
     '{"time_s": 1, "missing": [[]]}', '{"time_s": 1, "plugged": 1}', '{"time_s": 1, "x": 1}'],
)  # fmt: skip
def test_traces_out_of_range_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    header = {"kind": "dynamic trace", "schema": 1, "machine": "m", "date": "d", "sources": {"cpu": "/proc"}}
    path.write_text(f'{json.dumps(header)}\n{{"time_s": 0}}\n{line}\n{{"time_s": 2}}\n')
    with pytest.raises(CorruptError, match="line 3 is no snapshot"):
        read_trace(path)
    for changed in ({"schema": 1.5}, {"schema": True}, {"sources": []}, {"sources": {"a": 1}}, {"machine": 7}):
        path.write_text(f'{json.dumps(header | changed)}\n{{"time_s": 0}}\n')
        with pytest.raises(CorruptError, match="no recorded trace"):
            read_trace(path)
