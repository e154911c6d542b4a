"""When to update the view, so that it stays within its share of the training time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = .008            # of the time since the start that updates may take, all that they need in this process included
GRACE_SECONDS = .1      # that the first updates may take, whatever their share
AT_LEAST = 20           # refreshes, after which there is an update in any case


class Pushing:
    """Every `refresh` seconds, but not while updates have taken more than `share` of the time."""

    def __init__(self, refresh: float, share: float = SHARE):
        self.refresh, self.share = refresh, share
        self.begun = time.monotonic()
        self.spent, self.last = 0., -float("inf")

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What happens within counts as the view's cost."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - started

    def due(self) -> bool:
        """Whether it is time; call `done` then."""
        now = time.monotonic()
        affordable = self.spent <= GRACE_SECONDS + self.share * (now - self.begun)
        return now - self.last >= self.refresh * (1 if affordable else AT_LEAST)

    def done(self) -> None:
        self.last = time.monotonic()
