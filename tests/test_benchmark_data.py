"""The packing benchmark's arithmetic, and its tasks on a handful of files, where the figures mean nothing."""

import benchmark_data
import pytest
from benchmark_data import decode_alone, draw, image_folder_loader, report, slope

HARDWARE = {"processor": "P", "cores": 2, "packages": {"torch": "2"}, "date": "2026-01-01"}


def found(convert: float, parent_mb: float) -> dict:
    rate = {"decode": 0.001, "decode_cpu": 0.001, "convert": convert, "convert_cpu": 0.00105, "audit": 0.0001,
            "loader": 0.002, "together": 0.0005, "listing": 0.00002}  # fmt: skip
    small = {"n": 1000, "parent_mb": 100.0, "worker_mb": 300.0, "audit_mb": 100.0}
    memory = [small, {**small, "n": 11_000, "parent_mb": parent_mb}]
    return {"hardware": HARDWARE, "workers": 2, "load": (0.1, 0, 0), "rates": [rate] * 3, "memory": memory}


def line(text: str, start: str) -> str:
    (one,) = (line for line in text.splitlines() if line.strip().startswith(start))
    return one


def test_verdicts_follow_from_the_figures():
    good = report(found(convert=0.00055, parent_mb=120.0))
    assert line(good, "against 2 x").split()[-4:] == ["0.91", ">=", "0.9", "met"]
    assert line(good, "share of the CPU").endswith("met") and "+2.05 KB" in line(good, "growth of parent")
    assert "3.64 x" in line(good, "packing, once")
    bad = report(found(convert=0.00056, parent_mb=140.0))
    assert line(bad, "against 2 x").endswith("MISSED") and line(bad, "growth of parent").endswith("MISSED")


def test_a_rate_leaves_out_what_comes_before_the_first_image():
    assert slope({"n": 10, "seconds": 5.1}, {"n": 30, "seconds": 5.3}, "seconds") == pytest.approx(0.01)


def test_tasks_see_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_data, "DRAWN", 14)
    source = draw(tmp_path / "set", 80)
    assert len(list(source.rglob("*.jpg"))) == 80 and len({path.stat().st_ino for path in source.rglob("*.jpg")}) == 14
    assert 65 < decode_alone(source)["n"] < 75  # about a tenth is val
    assert benchmark_data.cpu_seconds() > 0
    assert image_folder_loader(source, 0)["n"] == 16  # without the first batch of 64
    packed = benchmark_data.converter(source, tmp_path / "out", 1)
    assert packed["n"] == 80 == benchmark_data.auditor(tmp_path / "out", 1)["n"] and packed["parent_mb"] > 10
