"""The tests at full length, stage by stage: python tests/stress.py [--only NAME] [--at-once N] [-x] [--list]

stress.json in the project's folder says of each stage when and where it ended, how long it took and how. Started again,
finished stages are left out, as long as the sources are the same; failed ones are run again, and what failed before is
kept, the end of its output as well. Exit code 1 where a stage failed, 130 after Ctrl-C.

--at-once N: so many stages side by side, each on its share of the cores (on Linux). Two cores a stage are right for
those in a browser.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "stress.json"
PROCESSES = ["test_locks", "test_runs", "test_kill_training", "test_groups", "test_batch", "test_distributed"]


@dataclass(frozen=True)
class Stage:
    name: str
    pytest: list[str]                                   # its words; none: `make test`, notebooks and all
    environment: Mapping[str, str] = field(default_factory=dict)


def files(names: list[str]) -> list[str]:
    return [f"tests/{name}.py" for name in names]


def stages() -> list[Stage]:
    alone = ["-m", "not browser and not gpu"]
    found = [
        Stage("50 kills of a training process", files(["test_kill_training"]), {"FER_KILLS": "50"}),
        Stage("20 kills of a packing process", files(["test_kill"]), {"FER_KILLS": "20"}),
        Stage("300 races for a run", [*files(["test_locks"]), "-k", "one_moment"], {"FER_RACES": "300"}),
        Stage("100,000 steps, watched and not", [*files(["test_leaks"]), "-k", "memory"], {"FER_STEPS": "100000"}),
        Stage("40 writes that fail", [*files(["test_disks"]), "-k", "whichever"], {"FER_DISK_POINTS": "40"}),
        Stage("200 runs in one process", [*files(["test_leaks"]), "-k", "handles"], {"FER_LEAK_RUNS": "200"}),
        Stage("50,000 cases of the fuzz tests", ["tests", "-m", "fuzz"], {"FER_FUZZ_CASES": "50000"}),
        Stage("what make test has a sample of", ["tests", "-m", "long and not gpu"]),
        Stage("every mistyped word", files(["test_mistypes"]), {"FER_FUZZ_CASES": "2000"})]
    for k in range(1, 51):
        found.append(Stage(f"tests of processes, {k} of 50", [*files(PROCESSES), *alone]))
        found.append(Stage(f"tests in a browser, {k} of 50", ["tests", "-m", "browser"]))
    return found + [Stage(f"whole suite, {k} of 10", []) for k in range(1, 11)]


def sources() -> str:
    """A hash over code, studies and notebooks. Without their outputs, which grow with the records."""
    digest = hashlib.sha256()
    for folder in ("fer_lib", "data_prep", "tests", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".js", ".yml", ".ipynb"):
                content = path.read_bytes()
                if path.suffix == ".ipynb":
                    content = json.dumps([cell["source"] for cell in json.loads(content)["cells"]]).encode()
                digest.update(f"{path.relative_to(ROOT)}".encode() + content)
    return digest.hexdigest()[:12]


def read_record() -> dict:
    try:
        return json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return {}


def write_record(record: dict) -> None:
    half = RECORD.with_suffix(".tmp")
    half.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(half, RECORD)


def shares(at_once: int) -> list[set[int]]:
    """The cores of each of so many stages at once; empty where a process can't be kept on some of them."""
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(at_once)]
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[k * len(cores) // at_once:(k + 1) * len(cores) // at_once]) or {cores[k * len(cores) // at_once]}
            for k in range(at_once)]


def run(stage: Stage, cores: set[int]) -> dict:
    """In a process that is kept on these cores, with as many workers."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", *stage.pytest] if stage.pytest else ["make", "test"]
    workers = str(len(cores) or os.cpu_count())
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={"WORKERS": workers, **os.environ, **stage.environment})
    if cores:                                           # before it has started a process or a thread of its own
        os.sched_setaffinity(process.pid, cores)
    out, err = process.communicate()
    lines = out.strip().splitlines() or err.strip().splitlines() or [""]
    kept = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    passed = process.returncode == 0
    return {"passed": passed, "output": [] if passed else lines[-400:], "seconds": round(time.monotonic() - begin, 1),
            "ended": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "where": f"{platform.system()} {platform.machine()}, {workers} cores, Python {platform.python_version()}, "
                     f"torch {version('torch')}", "said": [*kept[:20], lines[-1]]}


class Stages:
    """Runs stages and keeps how they ended."""

    def __init__(self, record: dict, exit_first: bool):
        self.record, self.exit_first = record, exit_first
        self.lock, self.enough, self.interrupted = threading.Lock(), False, False

    def run(self, stage: Stage, free: SimpleQueue) -> None:
        cores = free.get()
        try:
            if self.enough:
                return
            print(f"{stage.name} ...", flush=True)
            ended = run(stage, cores)
            with self.lock:
                if self.interrupted:                    # it was cut off
                    return
                before = self.record["stages"].get(stage.name)
                failed = [*before["failed_before"], [*before["said"], *before["output"]]] if before else []
                self.record["stages"][stage.name] = {**ended, "failed_before": failed}
                write_record(self.record)
                print(told(stage, self.record), flush=True)
                self.enough |= self.exit_first and not ended["passed"]
        finally:
            free.put(cores)


def told(stage: Stage, record: dict) -> str:
    ended = record["stages"].get(stage.name)
    state = "not run" if ended is None else "passed" if ended["passed"] else "FAILED"
    how = f" in {ended['seconds']} s: {ended['said'][-1]}" if ended else ""
    how += f" (failed {len(ended['failed_before'])} times before)" if ended and ended["failed_before"] else ""
    return f"{stage.name}: {state}{how}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="stages whose name holds this text; can be given again")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="stages side by side (default 1)")
    parser.add_argument("-x", "--exit-first", action="store_true", help="begin no stage after one that failed")
    parser.add_argument("--restart", action="store_true", help="forget what was run before")
    parser.add_argument("--list", action="store_true", help="the stages, and how they ended")
    args = parser.parse_args(argv)
    chosen = [stage for stage in stages() if any(text in stage.name for text in args.only or [""])]
    if not chosen:
        parser.error(f"no stage's name holds '{args.only[0]}' (see --list)")
    if args.at_once < 1:
        parser.error(f"--at-once is at least 1, not {args.at_once}")
    now = sources()
    record = {} if args.restart else read_record()
    if record.get("sources") != now:
        record = {"sources": now, "stages": {}}
    to_run = [] if args.list else [s for s in chosen if not record["stages"].get(s.name, {}).get("passed")]
    for stage in chosen:
        if stage not in to_run:
            print(told(stage, record), flush=True)
    going, free = Stages(record, args.exit_first), SimpleQueue()
    for cores in shares(args.at_once):
        free.put(cores)
    with ThreadPoolExecutor(args.at_once) as pool:
        try:
            for done in [pool.submit(going.run, stage, free) for stage in to_run]:
                done.result()
        except KeyboardInterrupt:                       # the stages that run got it as well
            going.enough = going.interrupted = True
            print("stopped; the same command goes on", flush=True)
            return 130
    return int(any(not ended["passed"] for ended in record["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
