"""Malicious, damaged or wrong bundles: each is refused with a one-line error, and nothing is written anywhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from petransfer.errors import UserError
from petransfer.sharing.bundle import checked_bundle, open_bundle
from petransfer.sharing.file_checks import check
from petransfer.sharing.info import describe
from tests.sharing.conftest import Contents, call, contents, listed, refused, sealed, write

WEIGHTS, CONFIG, PROVENANCE = "adapter_model.safetensors", "adapter_config.json", "petransfer.json"
Make = Callable[[Contents], bytes]


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip file with the given members, whose names are not checked."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return sink.getvalue()


def with_member(name: str | zipfile.ZipInfo, content: bytes = b"x") -> Make:
    return lambda files: zipped(*files.items(), (name, content))


def linked(files: Contents) -> bytes:
    info = zipfile.ZipInfo(WEIGHTS)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return zipped(*((name, one) for name, one in files.items() if name != WEIGHTS), (info, b"/etc/passwd"))


def patched(old: bytes, new: bytes, count: int = -1) -> Make:
    return lambda files: zipped(*files.items()).replace(old, new, count)


def bomb(files: Contents) -> bytes:
    members = [(name, one) for name, one in files.items() if name != "README.md"]
    return zipped(*members, ("README.md", bytes(4_000_000)), compression=zipfile.ZIP_DEFLATED)


def lying_about_its_size(files: Contents) -> bytes:
    """Return a bundle whose zip directory gives the card a size of 1 byte."""
    whole = bytearray(zipped(*files.items()))
    at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"README.md"))
    whole[at + 24 : at + 28] = struct.pack("<I", 1)
    return bytes(whole)


def overlapping(files: Contents) -> bytes:
    """Return a bundle whose zip directory gives two members the same position."""
    whole = bytearray(zipped(*files.items()))
    first = whole.index(b"PK\x01\x02")
    second = whole.index(b"PK\x01\x02", first + 4)
    whole[second + 42 : second + 46] = whole[first + 42 : first + 46]
    return bytes(whole)


def changed(name: str, change: Callable[[dict[str, Any]], Any]) -> Make:
    """Return a function that makes a bundle with a changed JSON file and with fitting hashes."""

    def make(files: Contents) -> bytes:
        content = json.loads(files[name])
        given = change(content)
        return zipped(*sealed(files | {name: json.dumps(content if given is None else given).encode()}).items())

    return make


def config(**changes: Any) -> Make:
    return changed(CONFIG, lambda content: content.update(changes))


def raw(name: str, content: bytes) -> Make:
    """Return a function that makes a bundle with new content for one file and with a fitting manifest."""
    return lambda files: zipped(*listed(files | {name: content}).items())


def tensors(change: Callable[[dict[str, Any]], Any]) -> Make:
    """Return a function that makes a bundle with changed tensors and with fitting hashes."""

    def make(files: Contents) -> bytes:
        content = dict(load(files[WEIGHTS]))
        change(content)
        return zipped(*sealed(files | {WEIGHTS: save(content)}).items())

    return make


def header(text: bytes) -> Make:
    return raw(WEIGHTS, struct.pack("<Q", len(text)) + text)


def without(name: str) -> Make:
    return lambda files: zipped(*((one, content) for one, content in files.items() if one != name))


def rename(content: dict[str, Any], old: str, new: str) -> None:
    name = next(name for name in content if old in name)
    content[name.replace(old, new)] = content.pop(name)


def drop(content: dict[str, Any], part: str) -> None:
    del content[next(name for name in content if part in name)]


def reshape(content: dict[str, Any], part: str) -> None:
    name = next(name for name in content if part in name)
    content[name] = numpy.zeros((3, 3), dtype=numpy.float32)


def spec(path: str, value: Any) -> Make:
    """Return a function that makes a bundle with a changed value in petransfer.json. path: its keys, joined by dots."""

    def change(content: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for step in way:
            content = content[step]
        content[last] = value

    return changed(PROVENANCE, change)


evil = pickle.dumps(print)
deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000

# Nine lines of YAML whose aliases expand to a hundred million values.
BOMB = b"a0: &a0 [x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (at, at, b", ".join([b"*a%d" % (at - 1)] * 10)) for at in range(1, 9)
)

MALFORMED: dict[str, Make] = {
    # faults of the zip file
    "empty file": lambda files: b"",
    "no zip": lambda files: b"not a zip at all" * 50,
    "cut short": lambda files: zipped(*files.items())[:-200],
    "cut in the middle": lambda files: zipped(*files.items())[:300_000],
    "absolute path": with_member("/etc/cron.d/evil"),
    "drive": with_member("C:\\evil.json"),
    "parent": with_member("../evil.json"),
    "parent deeper": with_member("adapter/../../evil.json"),
    "parent in Windows' way": with_member("..\\..\\evil.json"),
    "subfolder": with_member("adapter/adapter_config.json"),
    "folder": with_member("adapter/"),
    "link": linked,
    "pickle beside": with_member("adapter_model.bin", evil),
    "pickle for numpy": with_member("weights.npy", evil),
    "code": with_member("modeling.py", b"print(1)"),
    "unknown name": with_member("notes.txt"),
    "name in capitals": with_member("ADAPTER_CONFIG.JSON", b"{}"),
    "name with a NUL": patched(b"README.md", b"READM\x00.py"),
    "name that is empty to zipfile": lambda files: zipped(*files.items(), ("nul?", b"x")).replace(b"nul?", b"\0ul?"),
    "duplicate": lambda files: zipped(*files.items(), ("README.md", b"another")),
    "many members": lambda files: zipped(*files.items(), *((f"{n}.json", b"{}") for n in range(2000))),
    "bomb": bomb,
    "something before": lambda files: b"#!/bin/sh\n" + zipped(*files.items()),
    "something behind": lambda files: zipped(*files.items())[:-2] + struct.pack("<H", 5) + b"evil!",
    "overlap": overlapping,
    "wrong size": lying_about_its_size,
    "wrong name in the local header": patched(b"README.md", b"README.py", 1),
    "encrypted": patched(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
    "wrong checksum": patched(b"library_name: peft", b"library_name: xxxx"),
    # changed and missing files
    "hash of another card": lambda files: zipped(*(files | {"README.md": files["README.md"] + b"\n"}).items()),
    "file that is not listed": lambda files: zipped(*listed(without_one(files)).items(), ("recipe.yaml", b"name: x\n")),
    "listed file that is missing": without("recipe.yaml"),
    "manifest of other names": lambda files: zipped(
        *(files | {"manifest.json": b'{"files": {"../x": "' + b"0" * 64 + b'"}}'}).items()
    ),
    "manifest without files": lambda files: zipped(*(files | {"manifest.json": b"{}"}).items()),
    "no configuration": without(CONFIG),
    "no weights": without(WEIGHTS),
    # adapter_config.json
    "configuration no JSON": raw(CONFIG, b"peft_type: LORA"),
    "configuration a list": raw(CONFIG, b"[]"),
    "configuration not UTF-8": raw(CONFIG, b'{"peft_type": "\xff"}'),
    "configuration nested deeply": raw(CONFIG, deep),
    "configuration with NaN": raw(CONFIG, b'{"peft_type": "LORA", "r": NaN}'),
    "configuration with a key twice": raw(CONFIG, b'{"peft_type": "LORA", "peft_type": "LORA"}'),
    "number of many digits": raw(CONFIG, b'{"r": ' + b"9" * 5000 + b"}"),
    "unknown method": config(peft_type="XLORA"),
    "method a list": config(peft_type=["LORA"]),
    "code imported": config(megatron_config={"a": 1}, megatron_core="os"),
    "mapping imported": config(auto_mapping={"parent_library": "evil", "base_model_class": "X"}),
    "layers copied": config(layer_replication=[[0, 9_999]]),
    "remote code": config(tokenizer_kwargs={"trust_remote_code": True}),
    "start from the base": config(init_lora_weights="pissa"),
    "rank of zero": config(r=0),
    "rank that is none": config(r="16"),
    "rank of a billion": config(r=10**9),
    "other rank": config(r=8),
    "alpha that is none": config(lora_alpha="x"),
    "no targets": config(target_modules=None),
    "targets of another model": config(target_modules=["q_proj", "v_proj"]),
    "one target too many": changed(CONFIG, lambda content: content["target_modules"].append("gate")),
    "one target too few": changed(CONFIG, lambda content: content["target_modules"].remove("q")),
    "pattern without end": config(target_modules="(a+)+b"),
    "pattern that is broken": config(target_modules="(q"),
    "pattern of ranks": config(rank_pattern={"(x*)*y": 4}),
    "base a number": config(base_model_name_or_path=7),
    "base of another": config(base_model_name_or_path="evil/base"),
    "task of another": config(task_type="EVIL"),
    "size of a billion": config(num_virtual_tokens=10**9),
    "rows below zero": changed(CONFIG, lambda content: content.update(trainable_token_indices={"shared": [-1]})),
    "row twice": changed(CONFIG, lambda content: content.update(trainable_token_indices={"shared": [5, 5]})),
    "magnitudes that are missing": config(use_dora=True),
    # adapter_model.safetensors
    "weights a pickle": raw(WEIGHTS, evil * 200),
    "weights empty": raw(WEIGHTS, b""),
    "header of a terabyte": raw(WEIGHTS, struct.pack("<Q", 1 << 40) + b"{}"),
    "header no JSON": header(b"{nonsense"),
    "tensor beyond the end": header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
    "tensors that overlap": header(
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}'
    ),
    "no tensors": header(b"{}"),
    "long notes": lambda files: zipped(
        *sealed(files | {WEIGHTS: save(load(files[WEIGHTS]), {"x": "y" * 9000})}).items()
    ),
    "tensor of whole numbers": tensors(
        lambda content: content.update({"base_model.model.x": numpy.ones(2, dtype=numpy.int64)})
    ),
    "tensor outside the base": tensors(lambda content: rename(content, "base_model.model.", "other.")),
    "tensor of a whole layer": tensors(lambda content: rename(content, ".q.lora_A.weight", ".q.weight")),
    "tensor that misses its partner": tensors(lambda content: drop(content, ".q.lora_B")),
    "tensor of another rank": tensors(lambda content: reshape(content, ".q.lora_A")),
    "rows that are not named": tensors(lambda content: reshape(content, "trainable_tokens_delta")),
    "tensors that are empty": tensors(
        lambda content: content.update({name: numpy.zeros((16, 0), dtype=numpy.float32) for name in content})
    ),
    # petransfer.json, result.json, the card and the recipe
    "provenance a list": raw(PROVENANCE, b"[1]"),
    "provenance without a spec": changed(PROVENANCE, lambda content: content.pop("spec") and None),
    "provenance of another run": changed(PROVENANCE, lambda content: content.update(run_id="000000000000")),
    "other training": spec("spec.train.learning_rate", 0.5),
    "other task": spec("spec.task.split", "simple"),
    "field that there is not": spec("spec.checkpoint.password", "x"),
    "claim that is none": spec("claims.test.exact_match", "high"),
    "claim below zero": spec("claims.test.exact_match", -1),
    "claims a list": spec("claims", [1]),
    "base that is null": spec("base", None),
    "base a list": spec("base", [1]),
    "hash that is none": lambda files: zipped(
        *listed(files | {PROVENANCE: files[PROVENANCE].replace(b'json": "', b'json": "x')}).items()
    ),
    "place on a machine": spec("spec.checkpoint.tokenizer_source", "/etc"),
    "claim of another part": spec("claims.all", {"exact_match": 1.0, "examples": 2}),
    "seed that is none": spec("spec.seed", "x"),
    "card that is long": raw("README.md", b"---\n" + b"a: b\n" * 60_000 + b"---\n"),
    "result of other types": changed("result.json", lambda content: content.update(test=[1])),
    "result no object": raw("result.json", b"7"),
    "card not UTF-8": raw("README.md", b"---\nlicense: \xff\n---\n"),
    "card with aliases": raw("README.md", b"---\n" + BOMB + b"---\n"),
    "card with a Python object": raw("README.md", b"---\na: !!python/object/apply:os.system [ls]\n---\n"),
    "recipe with aliases": raw("recipe.yaml", BOMB),
    "recipe nested deeply": raw("recipe.yaml", b"a: " + b"[" * 500 + b"]" * 500),
}  # fmt: skip

# A part of the error for each malformed bundle. It ensures that no bundle is refused for another fault than its own.
SAID = {
    "is not a bundle or is damaged": ("empty file", "no zip", "cut short", "cut in the middle"),
    "is an absolute path": ("absolute path", "drive"),
    "leads out of the folder": (
        "parent", "parent deeper", "parent in Windows' way", "manifest of other names",
    ),
    "is no file of a bundle": (
        "subfolder", "folder", "unknown name", "name in capitals", "many members", "name that is empty to zipfile",
    ),
    "is a link": ("link",),
    "may be a pickle, which runs code": ("pickle beside", "pickle for numpy"),
    "is code; adapters contain none": ("code", "name with a NUL"),
    "holds README.md twice": ("duplicate",),
    "like a decompression bomb": ("bomb",),
    "before its first member": ("something before",),
    "after its central directory": ("something behind",),
    "overlaps another member": ("overlap",),
    "has two different sizes": ("wrong size",),
    "and header b'README.py' differ": ("wrong name in the local header",),
    "is encrypted": ("encrypted",),
    "Bad CRC-32": ("wrong checksum",),
    "the card was swapped": ("hash of another card",),
    "is not in the list of files that were packed": ("file that is not listed",),
    "is missing, and is in the list": ("listed file that is missing",),
    "has no list of files": ("manifest without files",),
    "holds no finished adapter or model": ("no configuration",),
    "it has no adapter_model.safetensors": ("no weights",),
    "adapter_config.json is damaged": (
        "configuration no JSON", "configuration not UTF-8", "number of many digits",
    ),
    "holds no object": ("configuration a list", "provenance a list", "result no object"),
    "is nested too deeply": ("configuration nested deeply",),
    "recipe.yaml is nested more than": ("recipe nested deeply",),
    "NaN is not valid JSON": ("configuration with NaN",),
    "a key occurs twice": ("configuration with a key twice",),
    "is not supported (supported: ": ("unknown method", "method a list"),
    "petransfer does not allow this key": ("code imported", "layers copied", "remote code"),
    "auto_mapping would import 'evil'": ("mapping imported",),
    "when it is loaded; merge it with plain peft": ("start from the base",),
    "a rank is a whole number": ("rank of zero", "rank that is none", "rank of a billion"),
    "the rank is 8": ("other rank",),
    "lora_alpha is 'x'": ("alpha that is none",),
    "neither a list of layers' names": ("no targets",),
    "target_modules does not name": ("targets of another model", "one target too few"),
    "target_modules names 'gate'": ("one target too many",),
    "which can take hours to match": ("pattern without end", "pattern of ranks"),
    "is not a regular expression": ("pattern that is broken",),
    "base_model_name_or_path is 7": ("base a number",),
    "names the base 'evil/base', and petransfer.json names 'nano/english'": ("base of another",),
    "task_type is 'EVIL'": ("task of another",),
    "num_virtual_tokens is 1000000000": ("size of a billion",),
    "is not a list of rows": ("rows below zero",),
    "names a row twice": ("row twice",),
    "has no lora_magnitude_vector beside it": ("magnitudes that are missing",),
    "is not a safetensors file": (
        "weights a pickle", "weights empty", "header of a terabyte", "header no JSON", "tensor beyond the end",
        "tensors that overlap",
    ),
    "holds no tensor": ("no tensors",),
    "characters of metadata": ("long notes",),
    "is of I64": ("tensor of whole numbers",),
    "lies outside the base": ("tensor outside the base",),
    "is no part of the adapter": ("tensor of a whole layer",),
    "has no lora_B.weight beside it": ("tensor that misses its partner",),
    "[3, 3]; the rank is 16": ("tensor of another rank",),
    "the number of trained rows": ("rows that are not named",),
    "is empty": ("tensors that are empty",),
    "spec: this key is missing": ("provenance without a spec",),
    "not '000000000000'": ("provenance of another run",),
    "its description of the run gives the id": ("other training", "other task"),
    "the field checkpoint.password, which this version of petransfer does not know": ("field that there is not",),
    "claims.test.exact_match": ("claim that is none", "claim below zero"),
    "claims: Input should be": ("claims a list",),
    "base: Input should be": ("base a list",),
    "base is null": ("base that is null",),
    "files.adapter_config.json": ("hash that is none",),
    "names a place on a machine": ("place on a machine",),
    "Input should be 'dev' or 'test'": ("claim of another part",),
    "seed: Input should be": ("seed that is none",),
    "result.json is damaged (test:": ("result of other types",),
    "at most 200,000 are read": ("card that is long",),
    "cannot be read as UTF-8": ("card not UTF-8",),
    "after its aliases are expanded": ("card with aliases", "recipe with aliases"),
    "has the tag": ("card with a Python object",),
}  # fmt: skip
REASONS = {name: reason for reason, names in SAID.items() for name in names}


def without_one(files: Contents) -> Contents:
    return {name: content for name, content in files.items() if name != "recipe.yaml"}


def everything(folder: Path) -> dict[str, bytes | None]:
    """Return all paths below a folder with their contents. None for a path that is not a file."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_there_are_at_least_40_malformed_bundles_and_each_has_a_reason() -> None:
    assert len(MALFORMED) >= 40
    assert REASONS.keys() == MALFORMED.keys()


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_bundle_is_refused(name: str, packed: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused by `adapter pull`, which must leave no file beside or above the bundle."""
    inner = here / "in" / "ner"
    inner.mkdir(parents=True)
    bundle = inner / "x.petransfer.zip"
    bundle.write_bytes(MALFORMED[name](contents(packed)))
    before = everything(here)
    message = refused(capsys, "adapter", "pull", str(bundle), "--out", str(inner / "target"))
    assert everything(here) == before
    assert REASONS[name] in message
    assert all(sign.isprintable() or sign == "\n" for sign in message)


def test_the_bundle_from_which_the_malformed_ones_are_made_is_accepted(packed: Path, here: Path) -> None:
    whole = write(here / "x.petransfer.zip", sealed(contents(packed)))
    assert call("adapter", "pull", str(whole), "--out", "target") == 0


def outcome(data: bytes, folder: Path) -> str:
    """Return `sound` for a valid bundle, or the one-line error. Any other exception is not caught."""
    bundle = folder / "any.petransfer.zip"
    bundle.write_bytes(data)
    try:
        with open_bundle(str(bundle)) as found:
            json.dumps(describe(found))
            checked_bundle(found)
        message = "sound"
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    return message


ANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANY
@given(st.integers(0, 10**9), st.integers(1, 255))
def test_a_bundle_with_a_changed_byte_is_refused_or_has_the_same_contents(
    packed: Path, here: Path, at: int, by: int
) -> None:
    whole = bytearray(packed.read_bytes())
    # half of the positions are in the last 4,000 bytes, in or near the zip directory, where most faults are possible
    place = at % len(whole) if at % 2 else len(whole) - 1 - at // 2 % 4000
    whole[place] ^= by
    if outcome(bytes(whole), here) == "sound":
        with zipfile.ZipFile(io.BytesIO(bytes(whole))) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == contents(packed)


@ANY
@given(st.binary(max_size=4000))
def test_random_bytes_are_refused(here: Path, data: bytes) -> None:
    assert outcome(data, here) != "sound"


NAMES = st.one_of(
    st.text(max_size=20), st.sampled_from(["..", "/", "\\", "README.md", "a/b", "con", "~", "adapter_config.json "])
)


@ANY
@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_bundle_with_a_random_member_name_is_refused_and_writes_nothing(
    packed: Path, here: Path, parts: list[str]
) -> None:
    name = "/".join(parts).encode("utf-8", "ignore").decode()
    files = contents(packed)
    # zipfile cannot write a name that is empty before a NUL; MALFORMED has one
    if not name.split("\0")[0] or name in files:
        return
    assert outcome(zipped(*files.items(), (name, b"x")), here) != "sound"
    assert [path.name for path in here.iterdir() if path.name not in ("pairs.tsv", "any.petransfer.zip")] == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@ANY
@given(data=st.data(), value=JSON)
def test_a_random_value_in_a_json_file_is_accepted_or_refused_in_one_line(
    packed: Path, here: Path, data: st.DataObject, value: Any
) -> None:
    files = contents(packed)
    name = data.draw(st.sampled_from([CONFIG, PROVENANCE]))
    content = json.loads(files[name])
    place = content
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    outcome(zipped(*listed(files | {name: json.dumps(content).encode()}).items()), here)


def test_broken_links_special_files_and_pickles_in_a_folder_are_refused(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("adapter", "pull", str(packed), "--out", "good") == 0
    (here / "good" / WEIGHTS).rename(here / "secret")
    (here / "good" / WEIGHTS).symlink_to(here / "secret")
    assert call("adapter", "info", "good") == 0  # links are accepted, because the files in the hub's cache are links
    assert call("adapter", "pack", "good", "--out", "linked.petransfer.zip") == 0
    assert zipfile.ZipFile("linked.petransfer.zip").read(WEIGHTS) == (here / "secret").read_bytes()
    (here / "secret").unlink()
    assert "is a link to a file that is missing" in refused(capsys, "adapter", "info", "good")
    (here / "good" / WEIGHTS).unlink()
    os.mkfifo(here / "good" / WEIGHTS)
    assert "is a special file" in refused(capsys, "adapter", "info", "good")
    (here / "good" / WEIGHTS).unlink()
    (here / "good" / "adapter_model.bin").write_bytes(evil)
    assert "a pickle, which runs code when it is opened" in refused(capsys, "adapter", "info", "good")


def _widen(content: dict[str, Any]) -> None:
    name = next(name for name in content if ".q.lora_A" in name)
    content[name] = numpy.zeros((content[name].shape[0], 5), dtype=numpy.float32)


def _move(content: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in content if old in name]:
        content[name.replace(old, new)] = content.pop(name)


def _leave_out(content: dict[str, Any], part: str) -> None:
    for name in [name for name in content if part in name]:
        del content[name]


def _spoil(content: dict[str, Any]) -> None:
    name = next(name for name in content if ".q.lora_B" in name)
    content[name] = numpy.full_like(content[name], numpy.nan)


@pytest.mark.parametrize(
    ("what", "change", "expected"),
    [
        ("another shape", _widen, "but the base model needs"),
        (
            "a layer that there is not",
            lambda content: _move(content, ".block.1.", ".block.7."),
            "have no place, such as",
        ),
        ("a layer left out", lambda content: _leave_out(content, ".block.1."), "tensors are missing, such as"),
        ("numbers that are none", _spoil, "NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused(
    what: str, change: Callable[[dict[str, Any]], None], expected: str,
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (here / "x.petransfer.zip").write_bytes(tensors(change)(contents(packed)))
    assert expected in refused(capsys, "predict", "x.petransfer.zip", "to walk")


def test_a_trained_row_that_the_base_does_not_have_is_refused(
    packed: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def far(content: dict[str, Any]) -> None:
        rows = content["trainable_token_indices"]
        content["trainable_token_indices"] = {name: [*one[:-1], 10**9] for name, one in rows.items()}

    (here / "x.petransfer.zip").write_bytes(changed(CONFIG, far)(contents(packed)))
    assert "it trains row 1,000,000,000 of" in refused(capsys, "predict", "x.petransfer.zip", "to walk")


def test_two_names_in_the_configuration_can_match_the_same_layer() -> None:
    layer = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"
    tensors = {f"{layer}.lora_A.weight": ("F32", (2, 8)), f"{layer}.lora_B.weight": ("F32", (8, 2))}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q", "SelfAttention.q"]}
    check(config, tensors, method="lora")
    with pytest.raises(UserError, match="target_modules names 'v', for which there is no tensor"):
        check(config | {"target_modules": ["q", "v"]}, tensors, method="lora")


def test_the_error_for_an_unknown_method_says_to_install_its_package() -> None:
    config, tensors = {"peft_type": "LOHA", "r": 2}, {"base_model.model.q.hada_w1_a": ("F32", (2, 8))}
    with pytest.raises(UserError, match=r"'LOHA' is not supported .*; install the package with the method 'loha'"):
        check(config, tensors, method="loha")
    with pytest.raises(UserError, match=r"'LOHA' is not supported .*; merge it with plain peft"):
        check(config, tensors, method=None)
