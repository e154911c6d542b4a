"""Table 1 at the paper's size, from AffectNet's tree as it is handed out to the report."""

from pathlib import Path

import nbformat
import pytest
from source_trees import pack
from test_affectnet import row, write_tree

from fer_lib import studies
from fer_lib.records import export, read_records

ROOT = Path(__file__).parents[1]
SHORT = ["epochs=1", "batch_size=8", "width=0.05", "image_size=32", "device=cpu"]


@pytest.mark.long
def test_the_papers_size_runs_from_the_tree_to_the_report(tmp_path, monkeypatch, capsys):
    """A few steps of two arms; everything else is the command of the README."""
    more = [row(f"{n % 3}/{n}.jpg", n % 7) for n in range(33)]
    manifest = pack("affectnet", write_tree(tmp_path / "tree", train=more), tmp_path / "packed" / "affectnet", "--size",
                    "64", "--val-share", "0.2")
    assert manifest["name"] == "affectnet" and len(manifest["classes"]) == 7
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FER_PACKED", str(tmp_path / "packed"))
    monkeypatch.setenv("FER_RUNS", str(tmp_path / "runs"))
    words = ["notebooks/studies/table1.yml", "--size", "paper", "--arms", "baseline,periodic", "--seeds", "0",
             "--workers", "1"]
    assert studies.main([*words, *(w for setting in SHORT for w in ("--set", setting))]) == 0, capsys.readouterr().err
    study = tmp_path / "runs" / "table1-paper"
    runs = read_records(study).runs
    assert set(runs["name"]) == {"baseline", "periodic"} and set(runs["data"]) == {"affectnet"}
    assert not runs["drawn"].any() and (runs["setting_lr"] == 1e-4).all() and (runs["n_test"] == 7).all()
    report = nbformat.read(study / "09_table1.ipynb", 4)
    printed = "".join(o.get("text", "") for c in report.cells if c.cell_type == "code" for o in c.outputs)
    assert "data: affectnet | photographs" in printed and "at size paper" in printed
    assert "the records that came with the kit" not in printed
    assert "table1.yml --size paper" in printed         # what would judge the claims is of this size, too
    assert len(export(study, tmp_path / "small").runs) == 2
