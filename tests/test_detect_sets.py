"""`detect` tells each research set's layout from all others, and prints a command that runs."""

import pytest
from test_action_units import write_bp4d, write_disfa, write_emotionet
from test_affwild2 import write_films
from test_cifar10 import write_batches
from test_ckplus import write_ck48, write_ckplus
from test_detect import detected
from test_stanford_cars import write_cars

from data_prep.__main__ import main

FEW_PEOPLE = ["--split-by-subject", "3"]
SETS = {
    "cifar10": (write_batches, []),
    "stanford_cars": (write_cars, []),
    "ckplus": (write_ckplus, FEW_PEOPLE),
    "ck48": (write_ck48, FEW_PEOPLE),
    "affwild2": (write_films, []),
    "disfa": (write_disfa, FEW_PEOPLE),
    "bp4d": (write_bp4d, FEW_PEOPLE),
    "emotionet": (write_emotionet, []),
}


@pytest.mark.parametrize("name", SETS)
def test_only_its_own_source_knows_a_set(tmp_path, capsys, monkeypatch, name):
    write, more = SETS[name]
    write(tmp_path / "my data")
    found = detected(capsys, tmp_path / "my data")
    assert set(found) == {name}
    monkeypatch.chdir(tmp_path)
    assert main([*found[name][3:], "--workers", "1", *more]) == 0


def test_files_of_other_kinds_are_known_by_no_set(tmp_path, capsys):
    for name, content in {
        "a.txt": b"x",
        "b.jpg": b"\xff\xd8",
        "c.csv": "ü,".encode("utf-16"),
        "d": b"\0" * 500,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert main(["detect", str(tmp_path / name)]) == 2
        assert "has no layout known here" in capsys.readouterr().err
