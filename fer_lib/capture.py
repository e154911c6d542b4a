"""CUDA graphs: a training step, hundreds of small kernels, recorded once and launched again as a whole.

At batch 64 a GPU is done with a kernel before the next one has been launched; a replayed graph leaves no such gaps. A
lane is the CUDA stream of one run: several runs' lanes fill the GPU together.
"""

import contextlib
import gc
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch

WARM_UP = 2         # ordinary passes first: they make the optimiser's state and choose cuDNN's algorithms
IN_FLIGHT = 2       # replays queued ahead: the GPU never waits for the next, and stops within two steps

# Whose recording failed: before PyTorch 2.12 the host's allocator goes on asking them, so none may come in their place
_failed: list[torch.cuda.CUDAGraph] = []


class Captured:
    """Device work, recorded once. `result` is what the work returned: each replay writes the same tensors anew.

    All that it reads must stay where it is. generators: the random streams that it draws from; a replay takes them on
    as the work itself would.
    """

    def __init__(self, work: Callable[[], object], stream: torch.cuda.Stream, key: Hashable,
                 generators: Sequence[torch.Generator]):
        self.key, self.graph = key, torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)
        pool = torch.cuda.graph_pool_handle()
        try:
            with _no_garbage_collection(), torch.cuda.graph(self.graph, pool, stream, "thread_local"):
                self.result = work()
        except BaseException:
            _end_recording(self.graph, stream.device_index, pool)
            raise


def _end_recording(graph: torch.cuda.CUDAGraph, device: int, pool: tuple[int, int]) -> None:
    """PyTorch before 2.12 leaves its allocator recording where the end of a recording fails (pytorch#180395): it would
    give no memory back to the GPU from then on, and what the failed step took never.
    """
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:                                # it was ended, and its graph gives back what it took
        return
    torch._C._cuda_releasePool(device, pool)
    _failed.append(graph)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A graph that is collected while another is recorded would spoil that one."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _leave_recording(generators: Sequence[torch.Generator]) -> None:
    """A recording that failed leaves its random streams waiting for its end: go on from a copy of each."""
    for generator in generators:
        generator.graphsafe_set_state(generator.clone_state())


class Lane:
    """Where one run's work goes: on CUDA a stream of its own with recorded graphs, on a CPU simply done.

    eager: why nothing is recorded, on CUDA; empty where it is, and on a CPU. note: what else keeps it slow.
    """

    def __init__(self, device: torch.device, eager: str = ""):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.eager, self.note = eager if self.stream else "", ""
        self.graphs: dict[str, Captured] = {}
        self.passes: Counter[str] = Counter()
        self.queued: deque[torch.cuda.Event] = deque()

    @property
    def captures(self) -> bool:
        return self.stream is not None and not self.eager

    def entered(self) -> contextlib.AbstractContextManager:
        """Within, work goes to this lane."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def follow(self) -> None:
        """What comes next runs after everything that the device was asked for outside of this lane."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def wait(self) -> None:
        """Return when all work is done."""
        if self.stream is not None:
            self.stream.synchronize()

    def run(self, name: str, work: Callable[[], object], key: Hashable = (),
            generators: Sequence[torch.Generator] = ()) -> object:
        """What `work()` returns: done, or replayed. A changed `key` (settings that the work fixes) records it anew."""
        if not self.captures or self.passes[name] < WARM_UP:
            self.passes[name] += 1
            return work()
        if name not in self.graphs or self.graphs[name].key != key:
            self.graphs.pop(name, None)                 # its memory goes before the new one's comes
            try:
                self.graphs[name] = Captured(work, self.stream, key, generators)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if isinstance(error.__context__, torch.OutOfMemoryError):       # then the recording's end fails too
                    raise error.__context__ from None
                self.eager = f"recording failed: {str(error).splitlines()[0]}"
                _leave_recording([*generators, torch.cuda.default_generators[self.stream.device_index]])
                return work()
        return self._replay(self.graphs[name])

    def _replay(self, captured: Captured) -> object:
        if len(self.queued) == IN_FLIGHT:
            self.queued.popleft().synchronize()
        captured.graph.replay()
        self.queued.append(torch.cuda.Event())
        self.queued[-1].record(self.stream)
        return captured.result
