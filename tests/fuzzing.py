"""The fuzz tests of data_prep: cases, damaged files, and what must hold whatever a file was damaged into.

    @fuzz(150, damage=damages)
    def test_...(tree, damage):
        tree.list.write_bytes(damage(original_bytes))
        plan = planned(rafdb, tree.root)                  # None after a DataError, which is one sentence
        check_plan(plan, {"list.txt:1", ...})             # or, the whole way, slower:
        out = packed_or_refused("rafdb", tree.root, tmp)

The suite runs 1,000 cases, the same each time. FER_FUZZ_CASES=50000 runs so many new ones, each test its share, and
cuts every test into PARTS, so that they spread over cores: FER_FUZZ_CASES=50000 pytest -m fuzz -n 24
"""

import contextlib
import io
import json
import os
import shutil
from argparse import ArgumentParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_trees import dropped

from data_prep.__main__ import main
from data_prep.check import check
from data_prep.packed import DataError, Plan, Rejected

SHARES = 2000
CASES = int(os.environ.get("FER_FUZZ_CASES", 1000))
PARTS = 16 if CASES > SHARES else 1


def fuzz(share: int, **strategies: st.SearchStrategy):
    """Decorates a test that takes the given strategies beside fixtures: `share` of each 2,000 cases, cut into PARTS."""

    def decorate(test):
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        count = -(-share * CASES // (SHARES * PARTS))
        limits = settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None)
        return pytest.mark.fuzz(parts=PARTS)(limits(given(**strategies)(test)))

    return decorate


# --- damage ---------------------------------------------------------------------------------------------------------

ODD = [
    "", " ", "\0", "\ufeff", "\u202e", "\u0130", "\U0001f600", "e\u0301", "\u0663", "\u00b2", "../", "/", "\\",
    "C:", "NULL", "nan", "inf", "-inf", "1e999", "1e308", "-1e308", "9" * 400, "-1", "99", "3.0", "1.5", "0x1",
    "1_0", "None", "True", "[]", "=1+1", "{{7*7}}", "x" * 300, '"', '""', "'", ",", ";", "\t", "\r", "\n", "\r\n",
    "\n\n", "../../etc/passwd", "999",
]  # fmt: skip


def _replace(content: bytes, at: float, size: int, new: bytes) -> bytes:
    start = int(at * len(content))
    return content[:start] + new + content[start + size :]


def _flip(content: bytes, at: float, bit: int) -> bytes:
    if not content:
        return content
    place = int(at * (len(content) - 1))
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def _edit_field(content: bytes, line: int, field: int, new: str) -> bytes:
    """Another value in one field of one line, at commas or else at spaces."""
    lines = content.split(b"\n")
    line %= len(lines)
    comma = b"," if b"," in lines[line] else b" "
    fields = lines[line].split(comma)
    fields[field % len(fields)] = new.encode("utf-8", "surrogatepass")
    lines[line] = comma.join(fields)
    return b"\n".join(lines)


def _move_line(content: bytes, source: int, target: int, keep: bool) -> bytes:
    """A line again, or elsewhere: names listed twice, another order."""
    lines = content.split(b"\n")
    line = lines[source % len(lines)] if keep else lines.pop(source % len(lines))
    lines.insert(target % (len(lines) + 1), line)
    return b"\n".join(lines)


def _recode(content: bytes, encoding: str) -> bytes:
    return content.decode("latin-1").encode(encoding, "replace")


_places = st.floats(0, 1, exclude_max=True)
_small = st.integers(0, 40)
_steps = st.one_of(
    st.tuples(st.just(_flip), _places, st.integers(0, 7)),
    st.tuples(st.just(_replace), _places, st.integers(0, 12), st.binary(max_size=12)),
    st.tuples(st.just(_replace), _places, st.integers(0, 4), st.sampled_from(ODD).map(lambda text: text.encode())),
    st.tuples(st.just(_edit_field), _small, _small, st.sampled_from(ODD) | st.text(max_size=8)),
    st.tuples(st.just(_edit_field), _small, _small, st.integers(-3, 14).map(str)),
    st.tuples(st.just(_move_line), _small, _small, st.booleans()),
    st.tuples(st.just(_replace), _places, st.just(10**9), st.just(b"")),  # truncated
    st.tuples(st.just(_replace), _places, st.just(64), st.just(bytes(64))),
)
_whole = st.one_of(
    st.just(lambda content: content.replace(b"\n", b"\r\n")),
    st.just(lambda content: b"\xef\xbb\xbf" + content),
    st.just(lambda content: content.rstrip(b"\n")),
    st.just(lambda content: content.replace(b"\n", b"\r")),
    st.just(lambda content: b""),
    st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8", "cp1252"]).map(lambda name: lambda c: _recode(c, name)),
    st.binary(max_size=200).map(lambda garbage: lambda content: garbage),
)


def apply(content: bytes, steps: list[tuple]) -> bytes:
    for step, *how in steps:
        content = step(content, *how)
    return content


def broken() -> st.SearchStrategy:
    """Functions bytes -> bytes that break a file in up to four small ways, or now and then as a whole."""
    small = st.lists(_steps, min_size=1, max_size=4).map(lambda steps: lambda content: apply(content, steps))
    both = st.tuples(small, _whole).map(lambda pair: lambda content: pair[1](pair[0](content)))
    return st.one_of(small, small, small, small, _whole, both)


damages = broken()


# --- promises -------------------------------------------------------------------------------------------------------


def packed_or_refused(name: str, source: Path, out: Path, *options: str) -> Path | None:
    """Packs into `out`, anew; the directory, checked, with counts that add up, or None after one sentence."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(out.name + ".partial"), ignore_errors=True)
    command = [name, "--source", str(source), "--out", str(out), "--workers", "1", "--no-audit", *options]
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main(command)
    said = [line for line in err.getvalue().replace("\r", "\n").split("\n") if line.startswith("data_prep: ")]
    if code == 2:
        assert len(said) == 1 and len(said[0]) < 1_000 and not out.exists(), said
        return None
    assert code == 0 and check(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"] == manifest["kept"] + sum(manifest["dropped"].values())
    assert len(dropped(out)) == sum(manifest["dropped"].values())
    return out


def planned(module: ModuleType, source: Path, *options: str) -> Plan | None:
    """The source's plan; None after a DataError, whose text must be one sentence."""
    parser = ArgumentParser()
    parser.add_argument("--classes")
    module.add_arguments(parser)
    try:
        return module.plan(parser.parse_args(["--source", str(source), "--size", "16", *map(str, options)]))
    except DataError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return None


def check_plan(plan: Plan, inputs: set[str], header: str = "") -> None:
    """Every input ("file:line" or a file) is kept or dropped, once; `header` is the place of a line that may be a
    header or, broken, an input. Decoding gives an image or a reason, and the record can be written."""
    rows = {split: table for split, table in plan.samples.items() if len(table)}
    places = [source for table in rows.values() for source in table["source"]] + [drop.place for drop in plan.dropped]
    assert len(set(places)) == len(places) and set(places) | {header} == inputs | {header}
    for drop in plan.dropped:
        f"{drop.file} {drop.why.text}".encode()
        assert len(drop.why.text) < 600
    for split, table in rows.items():
        results = plan.decode(table, split)
        assert len(results) == len(table)
        images = [one.pixels for one in results if not isinstance(one, Rejected)]
        assert all((one.dtype, one.shape) == (np.uint8, plan.shape) for one in images)
        for column in ("valence", "arousal"):
            if column in table:
                values = table[column].to_numpy()
                assert (np.isnan(values) | (abs(values) <= 1)).all()
    assert len(plan.sha256) == 64


def lines_of(content: bytes) -> dict[int, str]:
    """Line number -> text of the lines that are not blank, as a reader of csv files sees them."""
    found = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = line.decode("latin-1")
        text = text.removeprefix("\ufeff").rstrip("\r\n")
        if text.strip():
            found[number] = text
    return found


def kept_lines(plan: Plan) -> dict[str, str]:
    """ "file:line" of every kept row -> the name of its class."""
    return {
        source: plan.classes[label]
        for table in plan.samples.values()
        for source, label in zip(table["source"], table["label"], strict=True)
    }
