"""The tests at full length, stage by stage: python tests/stress.py [--only NAME] [--restart] [--list]

stress.json in the project's folder says of each stage when it ended, how long it took and how. Started again, finished
stages are left out, as long as the sources are the same; failed ones are run again, and what failed before is kept.
Exit code 1 where a stage failed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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


def run(stage: Stage) -> dict:
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", *stage.pytest] if stage.pytest else ["make", "test"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env={**os.environ, **stage.environment})
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    kept = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"passed": done.returncode == 0, "seconds": round(time.monotonic() - begin, 1),
            "ended": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "said": [*kept[:20], lines[-1]]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="stages whose name holds this text")
    parser.add_argument("--restart", action="store_true", help="forget what was run before")
    parser.add_argument("--list", action="store_true", help="the stages, and how they ended")
    args = parser.parse_args(argv)
    chosen = [stage for stage in stages() if args.only in stage.name]
    if not chosen:
        parser.error(f"no stage's name holds '{args.only}' (see --list)")
    now = sources()
    record = {} if args.restart else read_record()
    if record.get("sources") != now:
        record = {"sources": now, "stages": {}}
    for stage in chosen:
        ended = record["stages"].get(stage.name)
        if not args.list and not (ended and ended["passed"]):
            print(f"{stage.name} ...", flush=True)
            failed = [*ended["failed_before"], ended["said"]] if ended else []
            ended = record["stages"][stage.name] = {**run(stage), "failed_before": failed}
            write_record(record)
        state = "not run" if ended is None else "passed" if ended["passed"] else "FAILED"
        how = f" in {ended['seconds']} s: {ended['said'][-1]}" if ended else ""
        how += f" (failed {len(ended['failed_before'])} times before)" if ended and ended["failed_before"] else ""
        print(f"{stage.name}: {state}{how}", flush=True)
    return int(any(not ended["passed"] for ended in record["stages"].values()))


if __name__ == "__main__":
    sys.exit(main())
