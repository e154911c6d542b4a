"""Memory and file handles stay flat over long training and many runs. make stress: 100,000 steps, 200 runs."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import test_live
from conftest import make_data, make_experiment, sampled

from fer_lib.live import watch
from fer_lib.runs import Run, record

pytestmark = pytest.mark.usefixtures("short_resnet")
shown, fake = test_live.shown, test_live.fake
STEPS = int(os.environ.get("FER_STEPS", 384))
RUNS = int(os.environ.get("FER_LEAK_RUNS", 6))
TINY = dict(sizes={"train": 512, "val": 8, "test": 8})
PROCESS = psutil.Process()


def in_a_process_of_its_own(test: Callable) -> Callable:
    """Where no other test's threads end, and no memory is given back that one of them took."""
    @functools.wraps(test)
    def alone(*args: object, **kwargs: object) -> None:
        name, _, _ = os.environ["PYTEST_CURRENT_TEST"].partition(" (")
        if os.environ.get("FER_ALONE") == name:
            test(*args, **kwargs)
            return
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", name]
        # some plugins take a process in which a worker's variables stand for a worker
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST_")}
        done = subprocess.run(command, cwd=Path(__file__).parents[1], env={**env, "FER_ALONE": name}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(done.stdout)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
    return alone


@pytest.mark.parametrize("live", sampled(["off", "on"], "on".__eq__))
@in_a_process_of_its_own
def test_memory_is_flat_over_the_steps_of_a_run(live, tmp_path, monkeypatch, fake):
    """In its last third it grows by less than 3 MB. What a step's images or gradients take would be more in this short
    run, a kilobyte kept of each step in the long one."""
    monkeypatch.setattr(fake, "send", lambda self, content, buffers=None: None)             # it keeps what it is sent
    run = Run(make_experiment(method="dynamic", w_gradient="exact", epochs=max(3, STEPS // 64), live=live,
                              refresh_seconds=.05, checkpoint_seconds=.5), make_data(**TINY), tmp_path)
    sizes = []
    for block in watch(run, lambda line: None):
        if len(block.loss) and not block.last:
            sizes.append(PROCESS.memory_info().rss / 2 ** 20)
    warm = len(sizes) // 3
    growth = max(sizes[-warm:]) - max(sizes[:2 * warm])
    print(f"live {live}: {block.last_step} steps, {sizes[0]:.0f} MB at first, {sizes[warm]:.0f} warm, {sizes[-1]:.0f} "
          f"at the end")
    assert growth < 3, sizes


@in_a_process_of_its_own
def test_file_handles_and_threads_are_flat_over_many_runs(tmp_path):
    """Finished, left in the middle, and refused."""
    data, counts = make_data(sizes={"train": 16, "val": 8, "test": 8}), []
    for k in range(RUNS):
        run = Run(make_experiment(seed=k, epochs=2), data, tmp_path)
        for _ in record([run]):
            if k % 3 == 1:
                break
        counts.append((PROCESS.num_fds(), PROCESS.num_threads()))
    print(f"{RUNS} runs: (files, threads) {counts[1]} after two, {counts[-1]} at the end")
    assert counts[-1] == counts[1]
