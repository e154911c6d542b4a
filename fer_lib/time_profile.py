"""Where a training step's time goes on a GPU: its kernels, sorted by what they do, and how long the GPU is busy."""

import re
import time
from collections import defaultdict
from collections.abc import Callable

import torch

# what kernels are for, by their names; the first that fits counts
KINDS = {
    "optimiser": r"multi_tensor|FusedOpti|foreach",
    "batch norm": r"batch_norm|bn_fw|bn_bw|batchnorm",
    "convolution": r"conv|wgrad|dgrad|fprop|implicit_gemm|nchwToNhwc|nhwcToNchw|gemm|cutlass|cudnn|splitK",
    "AutoReLU": r"_forward_kernel|_signed_backward|_literal_backward|^_finish",
    "copies to the GPU": r"Memcpy HtoD",
    "other": r"",
}


def profile_steps(step: Callable[[], object], steps: int) -> dict:
    """{"step_us", "busy_us", "kernels", "by_kind": {kind: us}, "largest": [[kernel, calls, us], ...]} of one step.

    step_us is the time without the profiler, which slows the host down; busy_us the sum over kernels: with several
    streams it can be more than the step.
    """
    def timed() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps

    for _ in range(2):
        seconds = timed()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profiler:
        timed()
    kernels = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
    by_kind: dict[str, float] = defaultdict(float)
    for e in kernels:
        by_kind[kind_of(e.key)] += e.self_device_time_total / steps
    largest = sorted(kernels, key=lambda e: -e.self_device_time_total)[:12]
    return {"step_us": 1e6 * seconds, "busy_us": sum(by_kind.values()),
            "kernels": sum(e.count for e in kernels) / steps,
            "by_kind": {kind: by_kind[kind] for kind in KINDS if kind in by_kind},
            "largest": [[e.key[:90], e.count / steps, e.self_device_time_total / steps] for e in largest]}


def kind_of(kernel: str) -> str:
    """What a kernel is for. A fused kernel of torch.compile counts as its heaviest part: batch norm before the rest."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel))
