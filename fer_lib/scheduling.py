"""A study's runs, given out to workers and taken back: what dies is tried again, and nothing is lost or done twice.

    worker died           Dask gives its work to another; work that goes on killing workers is tried once more at the
                          end, when nothing else can be the cause, and then given up; a group goes on in halves
    kernel died           tried again, ATTEMPTS times in all
    no memory, even alone tried again by a new process, where another group had used that worker's
    worker was told to go the run is checkpointed and goes on elsewhere
    another batch has it  looked at again later, and trained here if that one leaves it unfinished
    scheduler is gone     waited for, then everything that is unfinished is given out again
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field, replace

import torch
from distributed import Future
from distributed.scheduler import KilledWorker

from fer_lib.cluster import Cluster, ClusterError, Unfit
from fer_lib.files import RecordError
from fer_lib.groups import OUT_OF_MEMORY, Fit, kind, plan_groups
from fer_lib.kernels import BUSY, DIED, INTERRUPTED, execute
from fer_lib.runs import Run
from fer_lib.sharing import Crowded, fit_on_worker, train_on_worker

ATTEMPTS = 3
TICK_SECONDS = .2
TOLD_SECONDS = 60.      # between two lines on how far it is
LOOK_SECONDS = (3., 60.)        # first and longest pause between two looks at a run that another process trains
RESULT_SECONDS = 60.


@dataclass(frozen=True)
class Outcome:
    """How one run ended: `status` as in result.json, or "failed" with the sentence that says why."""

    run: Run
    status: str
    seconds: float = 0.
    sentence: str = ""
    result: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A piece of work: one run's notebook, which trains it; or a group of runs on a GPU, whose notebooks come after.

    last: it is tried with nothing else at work. renewals: workers started anew for it. pause: seconds before it is
    looked at, where another process trains it.
    """

    runs: list[Run]
    group: bool = False
    deaths: int = 0
    last: bool = False
    renewals: int = 0
    pause: float = 0.

    @property
    def resource(self) -> str:
        return "GPU" if self.group else "KERNEL"


class Batch:
    """Runs and the cluster that trains them."""

    def __init__(self, cluster: Cluster, say):
        self.cluster, self.say = cluster, say
        self.waiting: deque[Job] = deque()
        self.going: dict[Future, Job] = {}
        self.suspects: deque[Job] = deque()             # workers died with them, maybe because of others
        self.elsewhere: list[tuple[float, Job]] = []    # (when to look again, what)
        self.started = self.told = time.monotonic()
        self.ended = 0

    def outcomes(self, runs: Sequence[Run], groups: Sequence[Sequence[int]] | None = None) -> Iterator[Outcome]:
        """As they come. groups: runs that train together, by number; without, each is trained by its notebook.

        Left before its end (Ctrl-C among others), what is at work writes its checkpoints first.
        """
        self.waiting.extend([Job([runs[n] for n in group], group=True) for group in groups] if groups is not None else
                            [Job([run]) for run in runs])
        try:
            while self.waiting or self.going or self.suspects or self.elsewhere:
                self._give_out()
                ended = [future for future in self.going if future.done()]
                for future in ended:
                    for outcome in self._take(future, self.going.pop(future)):
                        self.ended += 1
                        yield outcome
                    future.release()                    # else Dask does it again where the worker that did it dies
                if self.cluster.lost:
                    self._find_again()
                self._tell(len(runs))
                if not ended:
                    time.sleep(TICK_SECONDS)
        except BaseException:
            self.cluster.leave(list(self.going))
            raise

    def _give_out(self) -> None:
        now = time.monotonic()
        for when, job in list(self.elsewhere):
            if now >= when:
                self.elsewhere.remove((when, job))
                self.waiting.append(job)
        if self.suspects and not self.waiting and not self.going:
            self.waiting.append(replace(self.suspects.popleft(), last=True))
        free = {name: self.cluster.slots(name) - sum(job.resource == name for job in self.going.values())
                for name in ("GPU", "KERNEL")}
        for job in list(self.waiting):
            if free[job.resource] > 0:
                free[job.resource] -= 1
                self.waiting.remove(job)
                self.going[self._submit(job)] = job

    def _submit(self, job: Job) -> Future:
        first, workspace = job.runs[0], self.cluster.workspace
        if job.group:
            return self.cluster.submit("GPU", f"{len(job.runs)} runs", train_on_worker,
                                       [run.experiment for run in job.runs], workspace)
        return self.cluster.submit("KERNEL", first.path.name, execute, asdict(first.experiment), workspace,
                                   first.path / "notebook.ipynb")

    def _take(self, future: Future, job: Job) -> Iterator[Outcome]:
        """What became of a piece of work that ended."""
        said: dict[int, str] = {}
        try:
            said = future.result(timeout=RESULT_SECONDS)
            said = said if job.group else {0: said}
        except (CancelledError, TimeoutError):          # its scheduler, or the worker with its result, is gone
            self.waiting.append(job)
            return
        except KilledWorker:
            yield from self._killed(job)
            return
        except Unfit as error:
            address, wrong = error.args
            self.say(f"worker {address} {wrong}; it is sent away")
            self.cluster.retire(address)
            self.waiting.append(job)
            return
        except Crowded as error:
            address, said = error.args
            small = [n for n, sentence in said.items() if sentence == OUT_OF_MEMORY]
            if job.renewals < ATTEMPTS and self.cluster.renew(address):
                self.say(f"no memory for {len(small)} runs, even alone, beside what their process keeps of earlier "
                         "work on the GPU: they go on in a new one")
                job, said = replace(job, renewals=job.renewals + 1), {**said, **dict.fromkeys(small, INTERRUPTED)}
        except ImportError as error:
            raise ClusterError(f"a worker can't run fer_lib ({error}): start all workers in the project's "
                               "environment") from None
        except Exception as error:                      # whatever it is: the other runs go on
            said = dict.fromkeys(range(len(job.runs)), " ".join(f"{type(error).__name__}: {error}".split()))
        again = [run for n, run in enumerate(job.runs) if said.get(n) == INTERRUPTED]
        if again:
            self.waiting.appendleft(replace(job, runs=again))
        for n, run in enumerate(job.runs):
            if said.get(n) != INTERRUPTED:
                yield from self._settle(replace(job, runs=[run]), said.get(n, ""))

    def _settle(self, job: Job, sentence: str) -> Iterator[Outcome]:
        """What became of one run."""
        run, = job.runs
        try:
            run.reload()
        except RecordError as error:
            sentence = sentence or str(error)
        if sentence == BUSY:
            if not job.pause:
                self.say(f"{run.path.name}: {BUSY}; looking again later")
            pause = min(max(2 * job.pause, LOOK_SECONDS[0]), LOOK_SECONDS[1])
            self.elsewhere.append((time.monotonic() + pause, replace(job, pause=pause)))
        elif sentence == DIED and job.deaths + 1 < ATTEMPTS:
            self.say(f"{run.path.name}: {DIED}; it goes on from its last checkpoint")
            self.waiting.append(replace(job, deaths=job.deaths + 1))
        elif sentence == DIED:
            yield self._failed(run, f"{DIED} {ATTEMPTS} times; start the study again to go on from the last checkpoint")
        elif sentence or not run.finished:
            yield self._failed(run, sentence or f"the work ended and the run is {run.status}")
        elif job.group:
            self.waiting.append(Job([run]))
        else:
            yield Outcome(run, "finished", time.monotonic() - self.started, result=run.result)

    def _failed(self, run: Run, sentence: str) -> Outcome:
        return Outcome(run, "failed", time.monotonic() - self.started, sentence)

    def _killed(self, job: Job) -> Iterator[Outcome]:
        """Workers died with this at work, as often as the scheduler allows."""
        if len(job.runs) > 1:
            half = (len(job.runs) + 1) // 2
            self.say(f"workers died training {len(job.runs)} runs together: {half} at a time now")
            self.waiting.extend(replace(job, runs=part) for part in (job.runs[:half], job.runs[half:]))
        elif not job.last:
            self.say(f"{job.runs[0].path.name}: its workers died; it is tried once more at the end, alone")
            self.suspects.append(job)
        else:
            yield self._failed(job.runs[0], "its worker died each time, also with nothing else at work: given up; "
                                            "start the study again to go on from the last checkpoint")

    def _find_again(self) -> None:
        self.say(f"the scheduler at {self.cluster.address} is gone: waiting for it; runs go on from their checkpoints")
        self.waiting.extendleft(reversed(self.going.values()))
        self.going.clear()
        self.cluster.reconnect()
        self.say(f"the scheduler at {self.cluster.address} is there again")

    def _tell(self, total: int) -> None:
        if time.monotonic() - self.told >= TOLD_SECONDS:
            self.told = time.monotonic()
            minutes = (self.told - self.started) / 60
            parts = [f"{self.ended} of {total} ended", f"{sum(len(j.runs) for j in self.going.values())} at work",
                     f"{len(self.elsewhere)} trained elsewhere" if self.elsewhere else "",
                     f"{len(self.cluster.workers())} workers", f"{minutes:.0f} min",
                     f"about {minutes * (total - self.ended) / self.ended:.0f} min left" if self.ended else ""]
            self.say("  " + " · ".join(filter(None, parts)))


def measured_groups(runs: Sequence[Run], cluster: Cluster, devices: int, together: int, say) -> list[list[int]]:
    """Which runs train together on a GPU. together: how many; 0: as many as still gain, measured by a worker."""
    kinds = [kind(run.experiment, run.data.hash) for run in runs]
    fits = {}
    for k in dict.fromkeys(kinds):
        one = runs[kinds.index(k)]
        fits[k] = Fit(together, 1., 0) if together else _measured(one, cluster, kinds.count(k), say)
        say(f"{kinds.count(k)} runs of one kind, {fits[k].size} at a time on a GPU"
            + (f" ({fits[k].bytes / 2 ** 20:,.0f} MiB and {1e3 * fits[k].step_seconds / fits[k].size:.2f} ms "
               "a step each)" if fits[k].bytes else ""))
    steps = [run.steps for run in runs]
    return plan_groups(list(zip(kinds, steps)), fits, devices)


def _measured(run: Run, cluster: Cluster, most: int, say) -> Fit:
    """One at a time where it can't be measured: what is wrong with these runs ends them, and not the study."""
    try:
        return cluster.submit("GPU", "fit", fit_on_worker, run.experiment, cluster.workspace, most).result()
    except Exception as error:
        reason = OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else f"{type(error).__name__}: {error}"
        say(f"{run.experiment.label}: how many train together could not be measured ({' '.join(reason.split())})")
        return Fit(1, 1., 0)
