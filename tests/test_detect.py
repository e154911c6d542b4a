"""`detect`: the layout of a path, and a command that runs as it is printed."""

import shlex

import pytest
from source_trees import photo, save, write_csv
from test_affectnet import write_tree as write_affectnet
from test_affectnet8 import write_tree as write_affectnet8
from test_expw import write_tree as write_expw
from test_fer2013 import rows_of, write_tree
from test_fer2013 import write_csv as write_fer_csv
from test_rafdb import write_ce, write_copy
from test_rafdb import write_tree as write_rafdb
from test_sfew import write_tree as write_sfew

from data_prep.__main__ import main


def detected(capsys, path) -> dict[str, list[str]]:
    """Source -> the words of its command."""
    assert main(["detect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split(":")[0]: shlex.split(command) for line, command in zip(lines[::2], lines[1::2], strict=True)}


def make_fer_csv(folder):
    write_fer_csv(folder, rows_of())


def make_classes(folder):
    for number in range(20):
        save(folder / ["Angry", "Sad"][number % 2] / f"{number}.png", photo(number))


def make_table(folder):
    make_classes(folder / "i")
    rows = [f"i/{['Angry', 'Sad'][number % 2]}/{number}.png,{['Angry', 'Sad'][number % 2]}" for number in range(20)]
    write_csv(folder / "list.csv", "image,label", *rows)


LAYOUTS = {
    "fer2013 csv": (make_fer_csv, {"fer2013"}),
    "fer2013 folders": (write_tree, {"fer2013"}),
    "affectnet": (write_affectnet, {"affectnet"}),
    "affectnet8": (write_affectnet8, {"affectnet8"}),
    "rafdb": (write_rafdb, {"rafdb"}),
    "rafdb copy": (write_copy, {"rafdb"}),
    "rafdb compound": (lambda folder: write_rafdb(folder, "compound", 11), {"rafdb-compound"}),
    "rafce": (write_ce, {"rafce"}),
    "expw": (write_expw, {"expw"}),
    "sfew": (write_sfew, {"sfew"}),
    "classes": (make_classes, {"image_folder"}),
    "table": (make_table, {"image_folder", "table"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_told_and_its_command_runs(tmp_path, capsys, monkeypatch, layout):
    make, expected = LAYOUTS[layout]
    folder = tmp_path / "my data"
    folder.mkdir()
    make(folder)
    found = detected(capsys, folder)
    assert set(found) == expected
    monkeypatch.chdir(tmp_path)
    for name, command in found.items():
        assert command[:4] == ["python", "-m", "data_prep", name]
        assert main([*command[3:], "--workers", "1", "--overwrite"]) == 0


def test_an_unknown_layout_is_one_sentence(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt"):
        assert main(["detect", str(path)]) == 2
        assert "has no layout known here" in capsys.readouterr().err
    assert main(["detect", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err == f"data_prep: {tmp_path / 'gone'} does not exist\n"
