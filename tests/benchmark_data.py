"""How fast and in how much memory image files are packed: python tests/benchmark_data.py [--out FILE.json]

Drawn faces as JPEG files of 224 x 224, packed at 96 x 96 by the `image_folder` converter, compared with this machine's
own rate of decoding and resizing: on one core, and on as many as there are workers, whose clock is lower and whose
halves may share a core. And compared with torchvision's ImageFolder and DataLoader reading the same files.

A rate is (n2 - n1) / (t2 - t1) of two sets of different size, whatever comes after the start included: listing the
files, joining, hashing, writing, and waiting for the disk. CPU time says the same where other programs share the
machine. Figures come with their targets. Files go to a temporary directory, elsewhere with TMPDIR=...; the largest set
needs 30 KB an image there.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from multiprocessing import forkserver
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
ROOT = Path(__file__).parents[1]
DRAWN, SIDE, SIZE = 100, 224, 96  # different files, their side, the packed side
SHARE = 0.9  # of cores x the rate of one core
GROWTH = 3.0  # KB of memory an image, at most: its row, not its 27 KB of pixels


# --- measured in processes of their own -----------------------------------------------------------------------------


def plan_of(source: Path):
    from data_prep import image_folder

    parser = ArgumentParser()
    image_folder.add_arguments(parser)
    return image_folder.plan(parser.parse_args(["--source", str(source), "--size", str(SIZE)]))


def decode_alone(source: Path) -> dict:
    """Files decoded and resized in this process, nothing written: the rate of one core."""
    plan = plan_of(source)
    rows = plan.samples["train"][:4000]
    plan.decode(rows[:50], "train")
    seconds, cpu = time.perf_counter(), time.process_time()
    plan.decode(rows, "train")
    return {"n": len(rows), "seconds": time.perf_counter() - seconds, "cpu": time.process_time() - cpu}


def decode_together(source: Path, workers: int) -> dict:
    """The same in several processes at once: what all cores can do together. `seconds` is an image's, of all."""
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(workers), context.SimpleQueue()
    started = [context.Process(target=decode_after, args=(source, barrier, found)) for _ in range(workers)]
    for process in started:
        process.start()
    rate = sum(found.get() for _ in started)
    for process in started:
        process.join()
    return {"n": 1, "seconds": 1 / rate}


def decode_after(source: Path, barrier, found) -> None:
    plan = plan_of(source)
    rows = plan.samples["train"][:1500]
    plan.decode(rows[:50], "train")
    barrier.wait()
    seconds = time.perf_counter()
    plan.decode(rows, "train")
    found.put(len(rows) / (time.perf_counter() - seconds))


def converter(source: Path, out: Path, workers: int) -> dict:
    """The whole of packing, and the most memory that this process and its largest worker ever held."""
    from data_prep.writer import write

    begin, most, done = time.perf_counter(), [0.0], threading.Event()
    watch = threading.Thread(target=watch_workers, args=(most, done))
    watch.start()
    plan = plan_of(source)
    listed = time.perf_counter() - begin
    manifest = write(plan, out, workers=workers)
    seconds = time.perf_counter() - begin
    done.set()
    watch.join()
    return {"n": manifest["kept"], "seconds": seconds, "listed": listed, "cpu": cpu_seconds(),
            "parent_mb": peak_mb("self"), "worker_mb": most[0]}  # fmt: skip


def cpu_seconds() -> float:
    """CPU time of this process, of its children that have ended, and of those of the process that started workers."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    starter = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if starter:
        fields = Path(f"/proc/{starter}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def peak_mb(process: int | str) -> float:
    """The most memory a process ever held, 0 if it has ended; the figure of getrusage survives fork and exec."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def watch_workers(most: list[float], done: threading.Event) -> None:
    while not done.wait(0.1):
        most[0] = max([*most, *(peak_mb(child.pid) for child in multiprocessing.active_children())])


def auditor(out: Path, workers: int) -> dict:
    from data_prep.audit import audit_packed

    begin = time.perf_counter()
    n = len(audit_packed(out, workers).images)
    use = resource.getrusage(resource.RUSAGE_SELF)
    return {"n": n, "seconds": time.perf_counter() - begin, "cpu": use.ru_utime + use.ru_stime,
            "parent_mb": peak_mb("self")}  # fmt: skip


def image_folder_loader(source: Path, workers: int) -> dict:
    """One epoch of torchvision's ImageFolder, as people write it, from the first batch to the last."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    change = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor()])
    loader = iter(DataLoader(ImageFolder(str(source), change), batch_size=64, num_workers=workers, shuffle=True))
    next(loader)
    begin, n = time.perf_counter(), 0
    for images, _ in loader:
        n += len(images)
    return {"n": n, "seconds": time.perf_counter() - begin}


TASKS = {"decode": decode_alone, "together": decode_together, "convert": converter, "audit": auditor,
         "loader": image_folder_loader}  # fmt: skip


def measure(task: str, *arguments: object) -> dict:
    command = [sys.executable, __file__, "--task", task, *map(str, arguments)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    if shown.returncode:
        raise RuntimeError(f"{task} failed: {shown.stderr[-500:]}")
    return json.loads(shown.stdout.splitlines()[-1])


# --- the set and the figures ----------------------------------------------------------------------------------------


def draw(folder: Path, n: int) -> Path:
    """n files in seven class folders, links to DRAWN different ones."""
    from source_trees import photo, save

    for k in range(n):
        path = folder / f"class{k % 7}" / f"{k:06d}.jpg"
        if k < DRAWN:
            save(path, photo(k, SIDE), quality=90)
        else:
            path.parent.mkdir(exist_ok=True)
            first = k % DRAWN
            os.link(folder / f"class{first % 7}" / f"{first:06d}.jpg", path)
    return folder


def slope(small: dict, large: dict, what: str) -> float:
    """Seconds an image beyond the start."""
    return (large[what] - small[what]) / (large["n"] - small["n"])


def rates(sets: dict[int, Path], workers: int, repeats: int, folder: Path) -> list[dict]:
    """Seconds an image of every task, measured in turns, so that other load on the machine meets all of them."""
    small, large = sets.values()
    found = []
    for k in range(repeats):
        alone = measure("decode", small)
        together = measure("together", small, workers)
        outs = [folder / f"{k}-{source.name}" for source in (small, large)]
        packed = [measure("convert", source, out, workers) for source, out in zip((small, large), outs)]
        audited = [measure("audit", out, workers) for out in outs]
        loader = measure("loader", large, workers)
        for out in outs:
            shutil.rmtree(out)
        found.append({
            "decode": alone["seconds"] / alone["n"],
            "decode_cpu": alone["cpu"] / alone["n"],
            "together": together["seconds"],
            "listing": slope(*packed, "listed"),
            "convert": slope(*packed, "seconds"),
            "convert_cpu": slope(*packed, "cpu"),
            "audit": slope(*audited, "seconds"),
            "loader": loader["seconds"] / loader["n"],
        })
        print("  images/s: " + ", ".join(f"{name} {1 / value:,.0f}" for name, value in found[-1].items()), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, nargs=2, metavar="N",
                        help="sizes of the two sets (1,000 and 4,000 a worker)")  # fmt: skip
    parser.add_argument("--memory", type=int, nargs="+", default=(2000, 8000, 32000), metavar="N")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        name, *rest = args.task
        print(json.dumps(TASKS[name](*(int(word) if word.isdigit() else Path(word) for word in rest))))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    args.images = args.images or (1000 * args.workers, 4000 * args.workers)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sets = {n: draw(folder / f"set{n}", n) for n in {*args.images, *args.memory}}
        print("rates", flush=True)
        each = rates({n: sets[n] for n in args.images}, args.workers, args.repeats, folder)
        print("memory", flush=True)
        memory = []
        for n in args.memory:
            out = folder / f"memory{n}"
            packed, audited = measure("convert", sets[n], out, args.workers), measure("audit", out, args.workers)
            shutil.rmtree(out)
            memory.append({**packed, "audit_mb": audited["parent_mb"]})
    from benchmark_live import hardware

    found = {"hardware": hardware("cpu"), "workers": args.workers, "load": os.getloadavg(), "rates": each,
             "memory": memory}  # fmt: skip
    print(report(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def report(found: dict) -> str:
    lines, each, memory, workers = [], found["rates"], found["memory"], found["workers"]

    def tell(name: str, figure: str, target: str = "", kept: bool = True) -> None:
        lines.append(f"{name:<62}{figure:>20}   {target:<12}{('met' if kept else 'MISSED') if target else ''}".rstrip())

    def middle(change) -> float:
        return statistics.median(change(one) for one in each)

    share = middle(lambda one: one["decode"] / (workers * one["convert"]))
    cpu = middle(lambda one: one["decode_cpu"] / one["convert_cpu"])
    tell("one core decodes and resizes", f"{middle(lambda one: 1 / one['decode']):,.0f} images/s")
    tell(f"packing, {workers} workers (n = {len(each)})", f"{middle(lambda one: 1 / one['convert']):,.0f} images/s")
    tell(f"  against {workers} x the rate of one core", f"{share:.2f}", f">= {SHARE}", share >= SHARE)
    tell(f"  against {workers} cores that only decode and resize, at once",
         f"{middle(lambda one: one['together'] / one['convert']):.2f}")  # fmt: skip
    tell("  of which listing the files, in one process", f"{middle(lambda one: one['listing'] / one['convert']):.2f}")
    tell("  share of the CPU time that is decoding and resizing", f"{cpu:.2f}", f">= {SHARE}", cpu >= SHARE)
    loader = middle(lambda one: 1 / one["loader"])
    tell(f"ImageFolder + DataLoader, {workers} workers, each epoch", f"{loader:,.0f} images/s")
    tell("  packing, once, against it", f"{middle(lambda one: one['loader'] / one['convert']):.2f} x")
    tell("audit of the packed set", f"{middle(lambda one: 1 / one['audit']):,.0f} images/s")
    for one in memory:
        figures = f"{one['parent_mb']:.0f}, {one['worker_mb']:.0f}, {one['audit_mb']:.0f} MB"
        tell(f"peak memory of parent, worker, audit, {one['n']:,} images", figures)
    images = memory[-1]["n"] - memory[0]["n"]
    for name in ("parent_mb", "worker_mb", "audit_mb"):
        growth = 1024 * (memory[-1][name] - memory[0][name]) / max(images, 1)
        tell(f"  growth of {name.removesuffix('_mb')}", f"{growth:+.2f} KB an image", f"<= {GROWTH:g} KB",
             growth <= GROWTH)  # fmt: skip
    h = found["hardware"]
    head = f"{h['processor']}, {h['cores']} cores, load {found['load'][0]:.1f}, torch {h['packages']['torch']}"
    return "\n".join(["", f"{head}, {h['date']}", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
