"""The benchmark's parts on a CPU, at a size at which its figures mean nothing."""

import json

import pytest
import torch
from conftest import CPU, SMALL, make_data, write_packed

from fer_lib import activations, benchmark_speed, engine
from fer_lib.benchmark_speed import (
    Pictures,
    Row,
    activation,
    handed_out,
    line,
    linear,
    main,
    plain_loop,
    random_faces,
    steps,
    streaming,
)
from fer_lib.experiment import Experiment
from fer_lib.time_profile import kind_of, profile_steps

pytestmark = pytest.mark.usefixtures("short_resnet")
E = Experiment(**{**SMALL, "epochs": 100_000})


@pytest.fixture
def data():
    return random_faces(16, 16, 8)


def test_the_plain_loop_sees_what_the_engine_sees(data):
    split = data.splits["train"]
    (x, label), (tensor, _) = (Pictures(split, pil)[3] for pil in (True, False))
    assert torch.equal(x, tensor) and label == split.samples["label"][3]
    assert torch.allclose(x, (torch.from_numpy(split.images[3]) / 255 - .5) / .29, atol=1e-6)
    assert plain_loop(E, data, CPU, 2) > 0


def test_figures_are_ratios_to_what_stands_beside_them(data, monkeypatch):
    monkeypatch.setattr(benchmark_speed, "plain_loop", lambda *_, pil=True: .5 if pil else .25)
    monkeypatch.setattr(benchmark_speed, "timm_loop", lambda *_: .125)
    found = {row.figure: row for row in steps(E, data, CPU, [2], 1, False)}
    assert found["plain loop"].seconds == .5 and found["plain loop"].images_per_second == 16.
    assert found["plain loop, tensor transforms"].ratio == 2. and found["timm's recipe"].ratio == 4.
    assert found["eager"].ratio == pytest.approx(.5 / found["eager"].seconds) and len(found) == 4
    found = {row.figure: row for row in activation(E, data, CPU, 1, False)}
    assert found["ReLU"].ratio == 1. and set(found) == {
        "ReLU", "ReLU again", "exact", "exact, whole method", "literal", "literal, whole method"}
    assert found["literal"].target == 1.3 and not found["literal"].floor
    assert activations.FUSED, "put back after the unfused version's turn"


def test_a_target_is_a_floor_or_a_ceiling():
    verdicts = [Row("s", "f", ratio, "x", 2., floor).verdict for ratio in (1., 2., 3.) for floor in (True, False)]
    assert verdicts == ["missed", "met", "met", "met", "met", "missed"]
    assert Row("s", "f", 1., "x").verdict == ""
    shown = line(Row("s", "one run", 9.5, "plain loop", 8., True, .001, 64000.))
    assert shown.split() == "one run 1.000 ms 64,000 images/s 9.500 x plain loop target >= 8: met".split()


def test_the_command_keeps_each_figure_and_no_other_file_is_overwritten(tmp_path, monkeypatch, capsys):
    out, lost = tmp_path / "speed.json", tmp_path / "study.yml"
    lost.write_text("study: s")

    def figures(*_):
        assert json.loads(out.read_text())["rows"] == [], "what can't be written is known before anything is measured"
        yield Row("steps", "one run", 9., "plain loop", 8.)
        assert len(json.loads(out.read_text())["rows"]) == 1
        yield Row("steps", "24 runs", 19., "plain loop", 25.)

    monkeypatch.setattr(benchmark_speed, "measure", figures)
    assert main(["--device", "cpu", "--out", str(out)]) == 0 and "1 of 2 targets met" in capsys.readouterr().out
    assert main(["--device", "cpu", "--out", str(out)]) == 0, "its own file is written anew"
    for words, said in ((["--out", str(lost)], f"'{lost}' is there and holds something else"),
                        (["--out", str(lost / "x.json")], "can't write 'study.yml/x.json'"),
                        (["--stretches", "0"], "--stretches takes a whole number from 1 to 1000, not 0"),
                        (["--runs", "1,0"], "--runs takes whole numbers from 1 to 1000 joined by commas, not '1,0'")):
        assert main(["--device", "cpu", *words]) == 2 and said in capsys.readouterr().err
    assert lost.read_text() == "study: s"


def test_images_handed_out_are_counted_from_the_second_epoch(data):
    row, = handed_out(E, data, CPU, 2)
    assert row.figure == "2 runs" and row.images_per_second > 0


def test_streamed_and_resident_images_take_turns(data, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK_SECONDS", .05)
    asked = []
    monkeypatch.setattr(benchmark_speed, "_rate", lambda e, *_: asked.append(e.image_place) or
                        {"device": 100., "disk": 80.}[e.image_place])
    first, second = streaming(E, data, CPU, .1, 2)
    assert asked == ["device", "disk"] * 2
    assert first.ratio == 1. and second.ratio == .8 and second.verdict == "missed"


def test_time_an_image_is_compared_over_sizes(monkeypatch):
    monkeypatch.setattr(benchmark_speed, "random_faces", lambda n, side: random_faces(n, 16, 8))
    rows = list(linear(E, CPU, [16, 32], 64))
    assert [row.figure for row in rows] == ["16 images", "32 images"] and rows[0].ratio == 1.
    assert rows[1].ratio == pytest.approx(rows[1].seconds / rows[0].seconds) and rows[1].target == 1.1


def test_kernels_are_told_apart_by_their_names():
    names = {
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizer>": "optimiser",
        "void at::native::batch_norm_collect_statistics_channels_last_kernel<float>": "batch norm",
        "triton_red_fused__native_batch_norm_legit_functional_13": "batch norm",
        "sm90_xmma_wgrad_indexed_implicit_gemm_bf16bf16": "convolution",
        "cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16>": "convolution",
        "_literal_backward": "AutoReLU", "Memcpy HtoD (Pinned -> Device)": "copies to the GPU",
        "void at::native::vectorized_elementwise_kernel<4>": "other"}
    assert {name: kind_of(name) for name in names} == names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_profile_counts_kernels_and_their_time():
    """The least of ten: what else the GPU does can only add to a time."""
    x = torch.randn(2048, 2048, device="cuda")
    found = [profile_steps(lambda: x @ x, 5) for _ in range(10)]
    assert all(one["kernels"] == 1 and one["by_kind"].keys() == {"convolution"} for one in found)
    busy, step = (min(one[name] for one in found) for name in ("busy_us", "step_us"))
    assert busy == pytest.approx(step, rel=.5)


def test_the_command_writes_json_and_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    rows = [Row("steps", "recorded", 9., "plain loop", 8.), Row("steps", "compiled", 7., "plain loop", 8.)]
    monkeypatch.setattr(benchmark_speed, "measure", lambda *_: iter(rows))
    assert benchmark_speed.main(["--device", "cpu", "--out", str(tmp_path / "speed.json")]) == 0
    written = json.loads((tmp_path / "speed.json").read_text())
    assert [(row["ratio"], row["verdict"]) for row in written["rows"]] == [(9., "met"), (7., "missed")]
    assert written["environment"]["torch"] == torch.__version__
    assert "1 of 2 targets met" in capsys.readouterr().out
    packed = write_packed(tmp_path / "packed", make_data())
    assert benchmark_speed.main(["--device", "cpu", "--packed", str(packed)]) == 0
    for wrong in (["--packed", str(tmp_path / "none")], ["--runs", "8,x"], ["--device", "cuda:77"]):
        capsys.readouterr()
        assert benchmark_speed.main(wrong) == 2
        assert capsys.readouterr().err.count("\n") == 1
