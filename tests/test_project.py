"""The project as a whole: one list of dependencies, imports that go one way, nothing that runs foreign code."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import data_prep.packed
import fer_lib
import fer_lib.data
from fer_lib.methods import METHODS
from fer_lib.records import ORDER

ROOT = Path(__file__).parents[1]
LIBRARY, PREPARATION = (sorted((ROOT / name).rglob("*.py")) for name in ("fer_lib", "data_prep"))
SOURCES = [*LIBRARY, *PREPARATION]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# where it isn't the import's name; Triton comes with torch's CUDA builds, dask with distributed
DISTRIBUTIONS = {"dask": "distributed", "yaml": "pyyaml", "PIL": "pillow", "IPython": "ipython", "triton": "torch",
                 "nbformat": "nbclient", "pygments": "nbconvert"}     # these two come with it


def imports(path: Path) -> set[str]:
    """Full names of all imported modules, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def third_party(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"fer_lib", "data_prep"}


def declared(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in requirements}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_each_import_is_a_declared_dependency(path):
    """The live view's widget is made only where the lab extra is; it says so elsewhere."""
    used = {DISTRIBUTIONS.get(name, name).lower() for name in third_party(path)}
    lab = PROJECT["optional-dependencies"]["lab"] if path.name in ("chart.py", "panel.py", "site.py") else []
    assert used <= declared([*PROJECT["dependencies"], *lab])


def test_the_tests_imports_are_declared():
    """psutil comes with distributed, nbformat and jupyter_client with nbclient, packaging with pytest."""
    every = declared([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
    every |= {"psutil", "nbformat", "jupyter_client", "packaging"}
    ours = {p.stem for p in (ROOT / "tests").glob("*.py")} | {p.stem for p in (ROOT / "tests").iterdir() if p.is_dir()}
    for path in (ROOT / "tests").glob("*.py"):
        used = {DISTRIBUTIONS.get(name, name).lower() for name in third_party(path) - ours}
        assert used <= every, path.name


def test_the_installed_versions_are_those_declared():
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True), line


def test_environment_yml_installs_the_project_and_lists_no_package_itself():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in content["dependencies"] if isinstance(d, str)]
    nested, = (d for d in content["dependencies"] if isinstance(d, dict))
    assert {re.split("[=<>]", d)[0] for d in plain} == {"python", "pip", "make"}
    install, = nested["pip"]
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", install)[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"])
    assert not list(ROOT.glob("requirements*.txt")) and not (ROOT / "setup.py").exists()


def test_all_packages_are_installed():
    """A package without its line in pyproject would be missing after `pip install`."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in SOURCES}


def test_imports_go_one_way():
    for path in LIBRARY:
        assert not {name for name in imports(path) if name.split(".")[0] in ("data_prep", "notebooks", "tests")}, path
    for path in PREPARATION:
        assert not {name for name in imports(path) if name.split(".")[0] in ("fer_lib", "notebooks", "tests")}, path


def test_importing_the_library_loads_no_data_preparation_and_no_notebook_tools():
    code = ("import sys, fer_lib.runs, fer_lib.statistics, fer_lib.workspace; "
            "print([m for m in ('data_prep', 'papermill', 'IPython', 'matplotlib') if m in sys.modules])")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "socket", "requests", "urllib", "http",
                     "ftplib", "smtplib", "aiohttp", "httpx", "urllib3", "telnetlib", "code", "codeop"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load",
                   "yaml.full_load", "os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle", "torch.hub.load",
                   "pd.eval"}


def dangers(tree: ast.AST) -> list[str]:
    """What can run foreign code or reach the network."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
            found += [f"{node.module}.{a.name}" for a in node.names if isinstance(node, ast.ImportFrom)
                      and f"{node.module}.{a.name}" in FORBIDDEN_CALLS]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in FORBIDDEN_CALLS else []
            for keyword in node.keywords:
                said = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                found += [f"{keyword.arg}="] if keyword.arg in ("shell", "allow_pickle") and not said else []
            if name in ("np.load", "numpy.load") and "allow_pickle" not in {k.arg for k in node.keywords}:
                found.append("np.load without allow_pickle=False")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_nothing_runs_foreign_code_or_reaches_the_network(path):
    assert dangers(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("line", [
    "import pickle", "from pickle import load", "import urllib.request", "from torch import load", "torch.load(p)",
    "yaml.load(t)", "eval(t)", "exec(t)", "subprocess.run(c, shell=True)", "np.load(p)",
    "np.load(p, allow_pickle=True)", "import socket", "from requests import get", "os.system(c)"])
def test_the_check_itself_sees(line):
    assert dangers(ast.parse(line))


def test_both_sides_mean_the_same_packed_format():
    assert fer_lib.data.FORMAT == data_prep.packed.FORMAT
    assert set(fer_lib.data.SPLITS) == set(data_prep.packed.SPLITS)


def test_licence_and_citation_agree_with_the_project():
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "AS IS" in licence and PROJECT["license"] == "MIT"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"title", "message", "authors"} <= set(citation)
    assert citation["version"] == fer_lib.__version__ and citation["license"] == "MIT"
    assert citation["references"][0]["doi"] == "10.1109/CVPRW59228.2023.00605"


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "--dry-run", f"PYTHON={sys.executable}", *arguments], cwd=ROOT, capture_output=True,
                          text=True)


@pytest.mark.parametrize("target, commands", [
    ("study", ["fer_lib.batch notebooks/studies/quick.yml"]),
    ("table1", ["fer_lib.batch notebooks/studies/table1"]),
    ("lab", ["jupyter lab", "notebooks/00_start_here.ipynb"]), ("site", ["fer_lib.site --out build/site"]),
    ("test", ["ruff check", "pytest", "--nbval-lax", "--dist loadfile"]),
    ("benchmark", ["tests/benchmark_live.py --browser", "tests/benchmark_data.py", "fer_lib.benchmark_speed"]),
    ("stress", ["tests/stress.py"]), ("clean", ["rm -rf"]), ("help", []),
    ("readme-results", ["fer_lib.readme_results"]),
    ("notebooks", ["jupyter-nbconvert --execute", "record_timing=False"])])
def test_make_has_its_targets(target, commands):
    shown = make(target)
    assert shown.returncode == 0, shown.stderr
    for command in commands:
        assert command in shown.stdout


@pytest.mark.parametrize("data, words", [
    ("", ["--size quick"]), ("fer2013", ["--size standard"]), ("affectnet", ["--size paper"]),
    ("mine/faces", ["--name table1_faces", "--set data=mine/faces"])])
def test_table1_runs_at_the_size_of_its_data(data, words):
    shown = make("table1", f"DATA={data}", "PACKED=nowhere").stdout
    line, = (line for line in shown.splitlines() if "fer_lib.batch" in line)
    assert all(word in line for word in words) and ("--name" in line) == ("/" in data)
    assert ("data_prep synthetic" in shown) == (data == "")


def test_files_named_by_the_makefile_exist_and_help_names_the_targets():
    text = (ROOT / "Makefile").read_text()
    for path in re.findall(r"notebooks/[\w/]+\.(?:yml|ipynb)", text):
        assert (ROOT / path).is_file(), path
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines() if line.startswith("make ")} == {
        "study", "test", "lab", "table1", "site", "stress", "benchmark"}


def test_no_text_holds_what_a_merge_left():
    folders = ("data_prep", "fer_lib", "notebooks", "tests")
    texts = [p for p in (*ROOT.iterdir(), *(p for f in folders for p in (ROOT / f).rglob("*")))
             if p.suffix in (".md", ".py", ".yml", ".toml", ".ipynb", ".js", ".css", ".cff") or p.name == "Makefile"]
    assert ROOT / "README.md" in texts and len(texts) > 100
    marks = re.compile(r'^[ "]*(<{7} |={7}(\\n)?"?,?$|>{7} )', re.MULTILINE)
    assert [p.name for p in texts if marks.search(p.read_text())] == []


def test_clean_leaves_records_and_data():
    removed, = re.findall(r"^clean:\n\trm -rf (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert not {"runs", "packed", "notebooks", "$(PACKED)"} & set(removed.split())


def test_what_make_makes_is_ignored_by_git():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    made = ["packed/x/manifest.json", "build/site/index.html", "runs/quick/x/result.json", ".venv/bin/python",
            "fer_lib/__pycache__/x.pyc"]
    shown = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True)
    assert set(shown.stdout.split()) == set(made)


def test_records_and_figures_are_read_without_torch():
    """A laptop opens 09_table1 without loading torch, and workers of a study don't either."""
    code = ("import sys, fer_lib.records, fer_lib.figures, fer_lib.statistics, fer_lib.kernels, fer_lib.batch; "
            "print('torch' in sys.modules)")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_tables_know_the_order_of_every_method():
    assert ORDER == tuple(METHODS)
