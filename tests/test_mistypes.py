"""Whatever is mistyped in a command, a study file, a parameters cell: no traceback, but a sentence that names it.

Commands run in this process, up to where they would begin to work. FER_FUZZ_CASES draws more.
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml
from conftest import CPU, make_data, make_experiment, short, write_packed
from fuzzing import fuzz
from hypothesis import strategies as st
from PIL import Image

from data_prep import __main__ as preparation
from fer_lib import benchmark_speed, calibrate, claims, distributed, predict, records, studies
from fer_lib.experiment import Experiment, ParameterError, shown
from fer_lib.runs import Run, record
from fer_lib.studies import read_study

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "notebooks" / "studies" / "claims.yml"
TEXTS = ["", " ", "-1", "0", "00", "1.5", "1e9", "1e400", "nan", "inf", "9" * 400, "9" * 5000, "0x10", "\u0661\u0662",
         "1,2", ",", "1,,2", "a=b", "=", "none", "None", "../..", "\udce9", "\u00e9", "x" * 300, "[", "{}", "!!x", "--",
         "-", "%s", "{0}", "true", "2020-01-01", "2020-99-99", "a\nb"]
VALUES = [None, True, -1, 0, 2, 10 ** 400, -10 ** 400, 10 ** 5000, 1.5, -0., math.nan, math.inf, -math.inf, 1e308,
          5e-324, *TEXTS[:24], "a\0b", b"x", [], [1], {}, {"a": 1}, (), object, ...]


@dataclass(frozen=True)
class Place:
    """A project with packed data, a finished run and a picture."""

    folder: Path
    run: Path
    picture: Path
    study: Path

    def words(self) -> list[str]:
        return [str(self.folder), str(self.study), str(self.picture), str(self.folder / "nothing"), str(self.run),
                str(self.run / "history.parquet")]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    """Where no command trains, packs or measures: what would be done next returns at once."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("fer_lib", "notebooks", "runs", "packed"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        data = write_packed(folder / "packed" / "synthetic-quick", made := make_data(soft=True))
        run = Run(make_experiment(method="dynamic", epochs=1, data=str(data), study="tiny"), made,
                  folder / "runs")
        list(record([run], CPU))
        Image.new("L", (16, 16)).save(folder / "face.png")
        study = folder / "study.yml"
        study.write_text("study: s\nsettings: {data: synthetic-quick, device: cpu, width: 0.05, batch_size: 8}\n"
                         "arms: {baseline: {}}\nseeds: 1\n")
        patch.chdir(folder)
        for name, value in (("FER_RUNS", folder / "runs"), ("FER_PACKED", folder / "packed")):
            patch.setenv(name, str(value))
        measured = calibrate.noise_scale
        patch.setattr(calibrate, "noise_scale", lambda *arguments: measured(*arguments[:3], min(arguments[3], 1)))
        patch.setattr(studies, "start_here", interrupted)
        patch.setattr(distributed, "launch", lambda *arguments: 0)
        figure = benchmark_speed.Row("steps", "one run", 9., "plain loop")
        patch.setattr(benchmark_speed, "measure", lambda *arguments: iter([figure]))
        patch.setattr(benchmark_speed, "profiles", lambda *arguments: {})
        patch.setattr(preparation, "write", interrupted)
        yield Place(folder, run.path, folder / "face.png", study)


def interrupted(*arguments, **keywords) -> None:
    """In place of the work itself: the command ends with 130."""
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Command:
    """A command that would work; each of its words can be mistyped."""

    main: Callable[[list[str]], int]
    words: Callable[[Place], list[str]]
    options: tuple[str, ...]


COMMANDS = {
    "batch": Command(studies.main, lambda p: [str(p.study)],
                     ("--workers", "--together", "--device", "--name", "--arms", "--seeds", "--size", "--set")),
    "records": Command(records.main, lambda p: ["export", str(p.run.parent), "--out", str(p.folder / "small")],
                       ("--out", "--every", "--most-flips")),
    "records join": Command(records.main, lambda p: ["join", str(p.run.parent), str(p.folder / "runs"), "--out",
                                                     str(p.folder / "small")], ("--out", "--every", "--most-flips")),
    "predict": Command(predict.main, lambda p: [str(p.run), str(p.picture)], ()),
    "calibrate": Command(calibrate.main, lambda p: [str(p.run), "--batches", "1"], ("--data", "--batches")),
    "distributed": Command(distributed.main, lambda p: ["--processes", "1", "--set", "data=synthetic-quick", "--set",
                                                        "batch_size=8"], ("--processes", "--set")),
    "benchmark_speed": Command(benchmark_speed.main, lambda p: ["--device", "cpu"],
                               ("--device", "--runs", "--stretches", "--parts", "--packed", "--out")),
    "claims": Command(claims.main, lambda p: ["--records", str(p.folder), "--claims", str(CLAIMS)],
                      ("--records", "--claims", "--size")),
    "data_prep synthetic": Command(preparation.main, lambda p: ["synthetic", "--preset", "quick", "--out",
                                                                str(p.folder / "out")],
                                   ("--out", "--workers", "--classes", "--n-train", "--size", "--preset")),
    "data_prep fer2013": Command(preparation.main, lambda p: ["fer2013", "--source", str(p.study), "--out",
                                                              str(p.folder / "out")], ("--source", "--size")),
    "data_prep image_folder": Command(
        preparation.main, lambda p: ["image_folder", "--source", str(p.folder), "--out", str(p.folder / "out")],
        ("--source", "--size", "--val-share", "--test-share", "--split-by-subject", "--class-names")),
    "data_prep table": Command(
        preparation.main, lambda p: ["table", "--source", str(p.run / "history.parquet"), "--out",
                                     str(p.folder / "out"), "--image-column", "step", "--label-column", "epoch"],
        ("--source", "--root", "--image-column", "--label-column", "--soft-columns", "--box-columns", "--margin",
         "--valence-column", "--au-columns", "--delimiter")),
    "data_prep check": Command(preparation.main, lambda p: ["check", str(p.folder / "packed/synthetic-quick")], ()),
    "data_prep audit": Command(preparation.main, lambda p: ["audit", str(p.folder / "packed/synthetic-quick"), "--out",
                                                            str(p.folder / "audit")], ("--out", "--workers")),
    "data_prep detect": Command(preparation.main, lambda p: ["detect", str(p.folder)], ()),
}


def some(k: int) -> list[str]:
    """Of TEXTS a sixth for the k-th place; all in long runs."""
    return TEXTS if "FER_FUZZ_CASES" in os.environ else TEXTS[k % 6::6]


def ended(command: Command, argv: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr). Anything else than an exit code is the test's failure."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = command.main(argv)
        except SystemExit as stop:                      # argparse
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


def check(command: Command, argv: list[str], mistyped: str, before: str = "") -> None:
    """It works, or says in one sentence what is wrong, naming the value or the option that takes it. before: what the
    command says as it was.
    """
    try:
        code, out, err = ended(command, argv)
    except Exception as error:
        raise AssertionError(f"{argv} ended in {type(error).__name__}: {error}") from error
    assert "Traceback" not in err + out, argv
    if code in (0, 130) or err == before:
        return
    said = err if code == 2 else out                    # `data_prep check` prints what it found
    assert len(said.strip()) > 20, (argv, err, out)
    option = argv[-1 - argv[::-1].index(mistyped) - 1] if mistyped in argv[1:] else ""
    key, _, value = mistyped.partition("=")
    named = (mistyped, mistyped.strip(), repr(mistyped)[1:60], Path(mistyped).name, option, key, value,
             *mistyped.split(","), *(["''"] if mistyped.strip(",") == "" else []))
    number = str(int(mistyped)) if mistyped.isdigit() and len(mistyped) < 400 else ""
    assert any(text and text in said for text in (*named, number)) or not mistyped.strip("=- "), (argv, err)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_mistyped_word_of_a_command_is_a_traceback(name, place):
    """Each word and each option's value in turn, then unknown and unfinished options."""
    command = COMMANDS[name]
    good = command.words(place)
    code, _, err = ended(command, good)
    assert code in (0, 130) or name.startswith("data_prep"), err
    first = 1 if name.startswith(("data_prep", "records")) else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 2)
        for k in range(first, len(good)):
            for text in () if good[k].startswith("--") else [*some(k), *place.words()]:
                check(command, [*good[:k], text, *good[k + 1:]], text, err)
        for k, option in enumerate(command.options):
            for text in [*some(k), *place.words()[k % 2::2]]:
                check(command, [*good, option, text], text, err)
    for option in [*command.options, "--sed", "--"]:
        code, _, said = ended(command, [*good, option] if option != "--" else ["--no", *good])
        assert code == 2 and "Traceback" not in said
    assert ended(command, [])[0] == 2 or name == "benchmark_speed"


_FIELDS = [f.name for f in fields(Experiment)]


@pytest.mark.parametrize("field", _FIELDS)
def test_a_mistyped_parameter_is_named_with_what_it_may_be(field):
    """Of a notebook's cell, a study file or JSON: anything Python can hold."""
    for value in VALUES:
        try:
            Experiment.from_mapping({field: value})
        except ParameterError as error:
            sentence, = error._render_traceback_()
            assert field in sentence or shown(value) in sentence, (field, sentence)
        except Exception as error:
            raise AssertionError(f"{field}={shown(value)} ended in {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", ["batch", "distributed"])
@pytest.mark.filterwarnings("ignore:w0 =")
def test_settings_of_the_command_line_are_checked_like_a_notebooks(name, place):
    command = COMMANDS[name]
    for k, field in enumerate(_FIELDS):
        for text in some(k):
            check(command, [*command.words(place), "--set", f"{field}={text}"], f"{field}={text}")
    for text in ("lr", "=", "=1", "lr=", "lr=[", "LR=1", "sed=1"):
        check(command, [*command.words(place), "--set", text], text)


_plain = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(TEXTS) | st.dates()
_trees = st.recursive(_plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["lr", "method", "data", "seed", "", "a"]) | st.integers(0, 2), inner, max_size=3), max_leaves=6)


@fuzz(150, key=st.sampled_from(["study", "title", "note", "settings", "arms", "seeds", "report", "measure", "x"]),
      value=_trees, cut=st.none() | st.integers(0, 80))
@pytest.mark.filterwarnings("ignore:w0 =")
def test_a_broken_study_file_is_one_sentence(tmp_path, key, value, cut):
    good = {"study": "s", "settings": {"lr": 1e-3}, "arms": {"a": {}}, "seeds": 1}
    text = yaml.safe_dump(good | {key: value}, allow_unicode=True)[:cut]
    path = tmp_path / "study.yml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        read_study(path)
    except ParameterError as error:
        assert len(str(error)) > 20 and "\n" not in str(error).replace(str(value), "")


@fuzz(60, content=st.binary(max_size=40) | _trees.map(lambda v: json.dumps(v, default=str).encode("utf-8", "replace")))
def test_any_file_is_no_study_in_one_sentence(tmp_path, content):
    path = tmp_path / "study.yml"
    path.write_bytes(content)
    with pytest.raises(ParameterError, match="study.yml"):
        read_study(path)
