"""The notebooks: what they hold, what papermill makes of them, and that nbval compares."""

import ast
import base64
import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import started
from papermill.parameterize import parameterize_notebook
from test_audit import clean_set, pack

from fer_lib.experiment import Experiment, parameters_cell
from fer_lib.kernels import run_notebook
from fer_lib.workspace import find_workspace

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAIN = ROOT / "notebooks" / "04_train.ipynb"
TABLE = ROOT / "notebooks" / "09_table1.ipynb"
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(path: Path) -> list:
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def is_parameters(cell) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


# --- what they hold ---


@each
def test_a_notebook_is_small_valid_and_holds_no_widget_and_no_path(path):
    text = path.read_text()
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    assert len(text) <= 300_000
    assert "widgets" not in notebook.metadata and "widget-view" not in text
    assert "papermill" not in notebook.metadata, "papermill's metadata hold paths and times"
    for private in (str(ROOT), str(Path.home()), "/home/", "/Users/", "/tmp/", "C:\\\\"):
        assert private not in text
    for cell in notebook.cells:
        assert not cell.attachments if "attachments" in cell else True
        assert not re.search(r"<img|!\[", cell.source)


@each
def test_pictures_are_the_figures_png_only(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", output.get("evalue")
            kinds = set(output.get("data", {}))
            assert kinds <= {"text/plain", "text/html", "image/png"}
            assert "<img" not in str(output.get("data", {}).get("text/html", ""))
            if "image/png" in kinds:
                assert re.search(r"figures\.png\(|\bpicture\(|\.show\(live|watch\(run\)|monitor\(", cell.source)
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")


@each
def test_a_checked_cell_has_a_stored_output(path):
    checked = [c for c in code_cells(path) if c.source.startswith("# NBVAL_CHECK_OUTPUT")]
    assert checked
    for cell in checked:
        assert any(o.get("text") or o.get("data") for o in cell.outputs), f"nothing to compare: {cell.source[:200]}"
        assert cell.execution_count


@each
def test_cells_are_short_and_the_notebook_opens_with_a_title_and_a_promise(path):
    first = nbformat.read(path, 4).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S.*\n\n\*\*", first.source)
    for cell in code_cells(path):
        assert is_parameters(cell) or len(cell.source.splitlines()) <= 30


@each
def test_links_lead_to_files_that_exist(path):
    for cell in nbformat.read(path, 4).cells:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", cell.source):
            assert (path.parent / target).exists(), target


@each
def test_papermill_understands_each_parameter(path, caplog):
    cell, = filter(is_parameters, code_cells(path))
    with caplog.at_level("WARNING"):
        found = papermill.inspect_notebook(path)
    assert "Unable to parse" not in caplog.text
    lines = [node for node in ast.parse(cell.source).body]
    assert all(isinstance(node, ast.AnnAssign) for node in lines)
    assert list(found) == [node.target.id for node in lines]
    for facts in found.values():
        assert facts["inferred_type_name"] in ("str", "int", "float", "bool") and facts["help"]


def test_the_parameters_of_training_are_exactly_the_fields_of_an_experiment():
    cell, = filter(is_parameters, code_cells(TRAIN))
    fields = {f.name: f for f in dataclasses.fields(Experiment)}
    found = papermill.inspect_notebook(TRAIN)
    assert list(found) == list(fields)
    for name, facts in found.items():
        kind = fields[name].type
        assert facts["inferred_type_name"] == (kind if isinstance(kind, str) else kind.__name__)
        assert facts["help"] == fields[name].metadata["help"]
    values = {name: eval(facts["default"], {"float": float}) for name, facts in found.items()}
    assert cell.source == parameters_cell(Experiment(**values))


# --- papermill's own command ---


def papermill_command(out: Path, runs: Path, *parameters: str, attempts: int = 3) -> tuple[int, str]:
    """The exit code and what it showed; more than one attempt as in conftest.started."""
    env = {**os.environ, "FER_RUNS": str(runs), "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1",
           "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "papermill", "notebooks/04_train.ipynb", str(out), *parameters]
    for _ in range(attempts):
        ended = subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               timeout=300)
        if "Kernel died before replying to kernel_info" not in ended.stdout:
            break
    return ended.returncode, ended.stdout


def execute(out: Path, runs: Path, notebook: str = "04_train", **parameters: object) -> None:
    """What the command does, without its process: papermill, and a kernel of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FER_RUNS": str(runs), "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1",
                            "PYTHONPATH": str(ROOT)}.items():
            patch.setenv(name, value)
        run_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", out, parameters, ROOT)


def error_of(cells: list) -> dict:
    """The one error that these cells show: a sentence alone."""
    error, = (o for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error")
    assert error.traceback == [f"{error.ename}: {error.evalue}"]
    return error


WRONG = {("lr", "fast"): "ParameterError: lr is a number, not 'fast' (learning rate)",
         ("method", "bogus"): "ParameterError: unknown method 'bogus'",
         ("data", "nowhere"): "DataError: no packed data at 'nowhere': make it with 'python -m data_prep",
         # last: the name stays in the kernel
         ("sede", 1): "ParameterError: unknown parameter 'sede': did you mean 'seed'?"}


@pytest.mark.long
def test_papermill_ends_with_a_sentence_where_a_parameter_is_wrong(tmp_path):
    code, shown = papermill_command(tmp_path / "out.ipynb", tmp_path / "runs", "-p", "sede", "1")
    sentence = WRONG["sede", 1]
    assert code != 0 and sentence in shown
    assert error_of(nbformat.read(tmp_path / "out.ipynb", 4).cells).traceback == [sentence]
    assert not (tmp_path / "runs").exists()


def test_each_wrong_parameter_is_a_sentence(tmp_path):
    """The notebook as papermill parameterizes it, down to the cell that fails; all in one kernel."""
    train, cells = papermill.iorw.load_notebook_node(str(TRAIN)), []
    for name, value in WRONG:
        own = [c for c in parameterize_notebook(train, {name: value}).cells if c.cell_type == "code"][:3]
        assert [c.metadata.tags for c in own[:2]] == [["parameters"], ["injected-parameters"]]
        own[2].metadata.tags = ["raises-exception"]
        cells += [nbformat.v4.new_code_cell(c.source, metadata=c.metadata) for c in own]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": train.metadata.kernelspec}),
                   tmp_path / "wrong.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="did you mean 'seed'"):
        execute(tmp_path / "out.ipynb", tmp_path / "runs", str(tmp_path / "wrong"))
    found = [c for c in code_cells(tmp_path / "out.ipynb") if c.execution_count]
    for k, sentence in enumerate(WRONG.values()):
        assert sentence in error_of(found[3 * k:3 * k + 3]).traceback[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_papermill_runs_the_other_notebooks_with_the_view_in_them(tmp_path):
    """Forced on, the view runs too, with nobody there to look; what is saved is small and holds no widget's data."""
    for name, values in (("00_start_here", {"live": "on", "epochs": 2}), ("monitor", {"live": "off"})):
        execute(tmp_path / f"{name}.ipynb", tmp_path / "runs", name, **values)
        assert (tmp_path / f"{name}.ipynb").stat().st_size <= 400_000
        notebook = nbformat.read(tmp_path / f"{name}.ipynb", 4)
        assert any("image/png" in o.get("data", {}) for c in code_cells(tmp_path / f"{name}.ipynb") for o in c.outputs)
        assert not any("widget-view" in str(o) for c in notebook.cells if c.cell_type == "code" for o in c.outputs)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
def test_pictures_of_faces_that_are_not_drawn_stay_out_of_a_notebook(tmp_path, whole):
    """01_faces on a colour set with soft labels: its four pictures are counts, soft labels and two of drawn faces,
    where it leaves this set.
    """
    data, source = pack(tmp_path / "mine", *clean_set()), nbformat.read(ROOT / "notebooks" / "01_faces.ipynb", 4)
    leaves, = (k for k, c in enumerate(source.cells) if "data_prep.flaws" in c.source and c.cell_type == "code")
    source.cells = source.cells if whole else source.cells[:leaves]
    nbformat.write(source, tmp_path / "in.ipynb")
    execute(tmp_path / "out.ipynb", tmp_path / "runs", str(tmp_path / "in"), data=str(data), seeds=1)
    cells = code_cells(tmp_path / "out.ipynb")
    text = "".join(o.get("text", "") for c in cells for o in c.outputs)
    assert text.count("No picture here: these faces are research images") == 2
    assert sum("image/png" in o.get("data", {}) for c in cells for o in c.outputs) == (4 if whole else 2)
    assert "of the faces have no majority" in text and ("n = 1 seeds" in text) == whole
    assert str(tmp_path) not in text


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """(executed notebook, run directory) of eight epochs of AutoReLU on drawn faces."""
    assert (find_workspace().packed / "synthetic-quick" / "manifest.json").exists(), "'make test' packs the drawn faces"
    folder = tmp_path_factory.mktemp("train")
    code, shown = papermill_command(folder / "out.ipynb", folder / "runs", "-p", "epochs", "8", "-p", "seed", "3")
    assert code == 0, shown
    path, = (folder / "runs" / "scratch").iterdir()
    return folder / "out.ipynb", path


def test_a_run_by_papermill_learns_and_flips(run):
    """Seeds 0 to 6 gave .326 to .454 after 8 epochs of 25 steps; guessing one class gives .04, at random about .13."""
    result = json.loads((run[1] / "result.json").read_text())
    assert result["status"] == "finished" and result["seed"] == 3 and result["steps"] == 200
    assert .22 < result["chosen"]["val_macro_f1"] < .65
    assert .18 < result["chosen"]["test_macro_f1"] < .65
    found = pd.read_parquet(run[1] / "flips.parquet")
    assert len(found) and 20 <= found["step"].min() <= 40 and (found["sign"].iloc[0] == -1)
    assert found["site"].nunique() == 8


def test_an_executed_notebook_shows_the_run_in_one_small_file(run):
    path, record = run
    notebook = nbformat.read(path, 4)
    assert path.stat().st_size <= 300_000 and "widgets" not in notebook.metadata
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code)
    pictures = [o.data["image/png"] for c in code for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1 and base64.b64decode(pictures[0]) == (record / "curve.png").read_bytes()
    text = "".join(o.get("text", "") for c in code for o in c.outputs)
    flips = pd.read_parquet(record / "flips.parquet")["step"].unique()
    assert f"{len(flips)} steps with a flip: {', '.join(map(str, flips[:20]))}" in text
    assert "step 200/200 · epoch 8/8" in text
    assert "epochs = 8   (paper's setting: 30)" in text


# --- nbval ---


@pytest.fixture(scope="module")
def nbval(tmp_path_factory) -> subprocess.CompletedProcess:
    """nbval on 09_table1 up to its table, and that cell once more with one digit changed, in a folder of their own."""
    folder = tmp_path_factory.mktemp("nbval")
    (folder / "fer_lib").symlink_to(ROOT / "fer_lib")
    (folder / "notebooks").mkdir()
    for name in ("results", "studies"):
        (folder / "notebooks" / name).symlink_to(ROOT / "notebooks" / name)
    notebook = nbformat.read(TABLE, 4)
    at, = (k for k, c in enumerate(notebook.cells) if "compare_arms(runs, measure)" in c.source)
    cell = nbformat.from_dict({**copy.deepcopy(notebook.cells[at]), "id": "falsified"})
    stored = cell.outputs[0]["text"]
    digit = re.search(r"0\.\d\d(\d) \[", stored)
    falsified = stored[:digit.start(1)] + str((int(digit[1]) + 1) % 10) + stored[digit.end(1):]
    cell.outputs[0]["text"] = falsified
    notebook.cells = [*notebook.cells[:at + 1], cell]
    nbformat.write(notebook, folder / "notebooks" / "table.ipynb")
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1",
           "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--nbval-lax", "--nbval-current-env",
         "--rootdir", str(folder), "notebooks"], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_a_kernel_that_dies_at_its_start_is_started_again_and_not_for_ever():
    calls: list[dict] = []

    def start(**kwargs: object) -> tuple:
        calls.append(kwargs)
        if len(calls) != 3:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return "manager", "client"

    assert started(start)(cwd="here") == ("manager", "client") and calls == [{"cwd": "here"}] * 3
    with pytest.raises(RuntimeError, match="Kernel died"):
        started(start)()
    assert len(calls) == 6


def test_nbval_passes_the_stored_table_and_fails_one_wrong_digit(nbval):
    """A guard against a comparison that compares nothing."""
    assert nbval.returncode == 1, nbval.stdout + nbval.stderr
    outcomes = re.findall(r"notebooks/table(?:\.ipynb)?::.*?Cell \d+ ([A-Z]+)", nbval.stdout)
    assert set(outcomes[:-1]) == {"PASSED"} and outcomes[-1] == "FAILED"
    cells = [c.source for c in code_cells(TABLE)]
    table, = (k for k, source in enumerate(cells) if "compare_arms(runs, measure)" in source)
    assert len(outcomes) == table + 2 >= 6
