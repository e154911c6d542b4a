"""Training images that don't fit on the device: brought there ahead of the steps, through pinned buffers.

The device holds a ring of two halves, each some steps' images. While the steps of one half run, threads gather the
images of the next from the packed file into pinned memory, and a stream of its own copies them to the other half. A
step finds its images at (its number in the epoch) mod (steps in the ring), so that it can be recorded. Neither the
host nor the device waits as long as the disk delivers.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

HALF_BYTES = 64 * 2 ** 20       # of images in half a ring, about: at batch 64 and 48 px, 455 steps
THREADS = min(16, os.cpu_count() or 1)


class ImageRing:
    """The batches of an epoch, on their way to the device.

    images: uint8 (N, C, H, W), in the host's memory or a memory map. Before each step `ready`, then `batch` on the
    device. lane: the CUDA stream of the steps. The threads end with the ring.
    """

    def __init__(self, images: Tensor, batch_size: int, steps_per_epoch: int, device: torch.device,
                 lane: torch.cuda.Stream):
        self.images, self.device, self.lane = images, device, lane
        one = (batch_size, *images.shape[1:])
        self.half = max(1, min(steps_per_epoch, HALF_BYTES // (batch_size * images[0].numel())))    # steps
        self.ring = torch.empty(2, self.half, *one, dtype=torch.uint8, device=device)
        self.steps = self.ring.view(2 * self.half, *one)
        self.pinned = torch.empty(2, self.half, *one, dtype=torch.uint8, pin_memory=True)
        self.copies = torch.cuda.Stream(device)
        self.copied = [torch.cuda.Event() for _ in range(2)]                        # to each half
        self.sequence = ThreadPoolExecutor(1, "image ring")                         # one part after the other
        self.gather = ThreadPoolExecutor(THREADS, "image gather")
        self.order = torch.empty(0, batch_size, dtype=torch.long)
        self.coming: Future | None = None               # the part that is fetched
        self.entered: int | None = None                 # the part that steps are in

    def start(self, order: Tensor, step: int) -> None:
        """An epoch's order (steps, batch), on the CPU, taken up before `step`, which counts from 0 within the epoch."""
        if self.coming is not None:
            self.coming.result()
        self.order = order
        self._fetch(step // self.half)
        self.entered = None

    def ready(self, step: int) -> None:
        """Queue on the lane the wait for the step's images; where a half begins, fetch the part after it."""
        part = step // self.half
        if part == self.entered:
            return
        self.coming.result()                                                        # the copy is queued
        self.lane.wait_event(self.copied[part % 2])
        self.entered = part
        if (part + 1) * self.half < len(self.order):
            self._fetch(part + 1)

    def batch(self, position: Tensor) -> Tensor:
        """Images uint8 (B, C, H, W) of the step whose number in the epoch is in `position` (1,), on the device."""
        return self.steps.index_select(0, position % (2 * self.half))[0]

    def _fetch(self, part: int) -> None:
        done = torch.cuda.Event()
        done.record(self.lane)                          # steps queued so far: those that read this half before are done
        self.coming = self.sequence.submit(self._copy, part, done)

    def _copy(self, part: int, done: torch.cuda.Event) -> None:
        rows = self.order[part * self.half:(part + 1) * self.half]
        self.copied[part % 2].synchronize()             # the pinned half has been read
        pinned = self.pinned[part % 2, :len(rows)].flatten(0, 1)
        index = rows.flatten()
        cuts = torch.linspace(0, len(index), THREADS + 1).long().tolist()
        list(self.gather.map(lambda a, b: torch.index_select(self.images, 0, index[a:b], out=pinned[a:b]),
                             cuts[:-1], cuts[1:]))
        with torch.cuda.stream(self.copies):
            self.copies.wait_event(done)
            self.ring[part % 2, :len(rows)].copy_(self.pinned[part % 2, :len(rows)], non_blocking=True)
            self.copied[part % 2].record(self.copies)
