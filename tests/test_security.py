"""What a stranger's notebook, study file or records can do here, and what the notebooks and JupyterLab may.

test_project.py holds the same check over the sources: no pickle, eval, exec, shell or network.
"""

import ast
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import make_data, make_experiment
from fuzzing import fuzz
from hypothesis import strategies as st
from test_project import dangers

from fer_lib.experiment import ParameterError
from fer_lib.runs import Run
from fer_lib.studies import _check_ending, read_study
from fer_lib.workspace import Workspace

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATA = make_data()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_notebook_runs_foreign_code_or_reaches_the_network(path):
    """Nor a shell: a cell with a ! or % line isn't Python, and fails here."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            assert dangers(ast.parse(cell.source)) == [], cell.source


def test_ruffs_security_rules_hold_for_the_notebooks_too():
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in rules["select"] and {r for r in rules["ignore"] if r.startswith("S")} == {"S101"}
    assert set(rules["per-file-ignores"]) == {"tests/*"}
    shown = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "S", "--ignore", "S101",
                            "--config", "extend-exclude=[]", *NOTEBOOKS], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0, shown.stdout


# --- a stranger's parameters ---

_parts = st.sampled_from(["..", ".", "/", "\\", "~", "runs", "a", "-", " ", "\0", "\n", "C:", "%2e",
                          "\u2024\u2024", "é"])
paths = st.lists(_parts, min_size=1, max_size=6).map("".join) | st.text(max_size=12)


@fuzz(150, study=paths, name=paths)
def test_no_parameter_names_a_place_outside_the_runs_folder(study, name):
    try:
        e = make_experiment(study=study, name=name)
    except ParameterError as error:
        assert str(error).isprintable(), "one line"
        return
    folder = Path("/somewhere/runs")
    path = Path(os.path.normpath(Run(e, DATA, folder).path))
    assert path.parent.parent == folder and path.parent.name == study and "/" not in path.name


@pytest.mark.parametrize("place", ["../out", "/tmp/out", "a/b", "~", ".hidden", "..", "a\0b"])
def test_a_strangers_study_file_writes_into_its_folder_of_runs_only(place, tmp_path):
    text = json.dumps({"study": "s", "arms": {"x": {}}, "seeds": 1})                        # JSON is YAML
    path = tmp_path / "study.yml"
    for changed in ({"study": place}, {"arms": {place: {}}}):
        path.write_text(json.dumps(json.loads(text) | changed))
        with pytest.raises(ParameterError, match="becomes a folder's name"):
            read_study(path)
    path.write_text(text)
    with pytest.raises(ParameterError, match="becomes a folder's name"):
        read_study(path, name=place)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "elsewhere.ipynb").write_text("{}")
    path.write_text(json.dumps(json.loads(text) | {"report": "../elsewhere.ipynb"}))
    study, workspace = read_study(path), Workspace(tmp_path, tmp_path, tmp_path)
    with pytest.raises(ParameterError, match="no report notebook '../elsewhere.ipynb' in notebooks/"):
        _check_ending(study, [Run(e, DATA, tmp_path) for e in study.experiments], workspace)


def test_yaml_makes_plain_values_only(tmp_path):
    path, made = tmp_path / "study.yml", tmp_path / "made"
    path.write_text(f"study: s\narms: !!python/object/apply:os.mkdir [{made}]\nseeds: 1\n")
    with pytest.raises(ParameterError, match="'study.yml' is not YAML: could not determine a constructor"):
        read_study(path)
    assert not made.exists()


# --- JupyterLab ---


def test_make_lab_listens_on_loopback_and_wants_its_token(tmp_path):
    """The command of the Makefile, with a port of its own and no browser."""
    line, = re.findall(r"^\t\$\(PY\) -m (jupyter lab .*?) notebooks/", (ROOT / "Makefile").read_text(), re.M)
    assert "token" not in line and "password" not in line
    home = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path),
            "JUPYTER_DATA_DIR": str(tmp_path)}
    log = tmp_path / "log"
    with open(log, "w") as out:
        process = subprocess.Popen([sys.executable, "-m", *line.split(), "--no-browser", "--allow-root",
                                    "--ServerApp.port=0"], cwd=tmp_path, env=os.environ | home, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 50
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/lab\?token=([0-9a-f]{40,})", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(.1)
        server, heard = psutil.Process(process.pid), set()
        while not heard and time.monotonic() < deadline:   # the kernel may miss a line while others come
            heard = {c.laddr.ip for c in server.net_connections() if c.status == psutil.CONN_LISTEN}
        assert heard == {"127.0.0.1"}
        address = f"http://127.0.0.1:{found[1]}/api/contents"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address, timeout=20)
        with urllib.request.urlopen(f"{address}?token={found[2]}", timeout=20) as answer:
            assert answer.status == 200
    finally:
        process.kill()
        process.wait()


# --- what is installed ---


def test_the_audit_list_names_each_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lab = project["optional-dependencies"]["lab"]
    wanted = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in [*project["dependencies"], *lab]}
    text = (ROOT / "README.md").read_text().split("### Audit of the dependencies", 1)[1].split("\n#", 1)[0]
    named = {name for row in re.findall(r"^\| ([^|]+) \|", text, re.M)[1:] for name in row.split(", ")}
    assert named >= wanted
