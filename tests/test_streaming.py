"""Images that stream from the disk: the same bits as images that lie on the device, wherever parts begin and end."""

import pytest
import torch
from conftest import CPU, Trained, assert_same_bits, make_data, make_experiment
from test_capture import exact, saved, trained

from fer_lib import engine, streaming
from fer_lib.data import DeviceSplit
from fer_lib.engine import train

pytestmark = pytest.mark.usefixtures("short_resnet")


def gpu(function):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(function))


def halves_of(steps: int, monkeypatch) -> None:
    """Half a ring holds this many steps of 8 images of 16 x 16."""
    monkeypatch.setattr(streaming, "HALF_BYTES", steps * 8 * 256)


def test_on_a_cpu_images_lie_where_they_are_wherever_they_are_wanted():
    data = make_data()
    for place in ("auto", "device", "disk"):
        split = DeviceSplit(data.splits["train"], data.manifest, make_experiment(image_place=place), CPU, torch.float32)
        assert split.resident and split.images.data_ptr() == data.splits["train"].images.ctypes.data


@gpu
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("capture", [True, False])
def test_streamed_images_give_the_bits_of_resident_ones(steps, capture, monkeypatch):
    halves_of(steps, monkeypatch)
    data, settings = make_data(), dict(method="dropout+dynamic", augment="flip+affine+crop", epochs=4)
    streamed, = trained([exact(image_place="disk", **settings)], data, capture)
    resident, = trained([exact(image_place="device", **settings)], data, capture)
    ring = streamed.blocks[-1].network.ring
    assert ring.half == min(steps, 8) and resident.blocks[-1].network.ring is None
    assert {b.eager for b in streamed.blocks} == {"" if capture else "capture is switched off"}
    assert_same_bits(streamed, resident)


@gpu
def test_streamed_runs_side_by_side_have_a_ring_each(monkeypatch):
    halves_of(3, monkeypatch)
    data = make_data()
    experiments = [exact(seed=k, image_place="disk", image_size=24) for k in range(3)]
    for e, beside in zip(experiments, trained(experiments, data), strict=True):
        assert_same_bits(beside, trained([exact(seed=e.seed, image_size=24)], data)[0])


@gpu
@pytest.mark.parametrize("at", [6, 9, 14])
def test_a_streamed_run_is_taken_up_in_mid_part(at, monkeypatch):
    halves_of(4, monkeypatch)
    monkeypatch.setattr(engine, "REPLAYED_STEPS", 1)
    e, data = exact(image_place="disk"), make_data()
    whole, = trained([e], data)
    begun = []
    for block in train([(e, data)], torch.device("cuda")):
        begun.append(block)
        if block.last_step == at:
            kept = torch.load(saved(block.state()), weights_only=False)
            break
    rest, = trained([e], data, states=[kept])
    assert_same_bits(whole, Trained([*begun, *rest.blocks]))


@gpu
def test_images_that_fill_half_of_the_free_memory_stream(monkeypatch):
    data = make_data()
    size = data.splits["train"].images.nbytes
    for free, resident in ((2 * size, False), (2 * size + 2, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None, free=free: (free, 2 * free))
        split = DeviceSplit(data.splits["train"], data.manifest, exact(), torch.device("cuda"), torch.float32)
        assert split.resident == resident


@gpu
def test_a_disk_that_fails_is_an_error_and_no_hang(monkeypatch):
    halves_of(2, monkeypatch)

    def broken(*args, **more):
        raise OSError("Input/output error")

    monkeypatch.setattr(torch, "index_select", broken)
    with pytest.raises(OSError, match="Input/output error"):
        trained([exact(image_place="disk")], make_data())
