"""A study's matrix, each run a notebook executed by papermill in a kernel of its own:

    python -m fer_lib.batch notebooks/studies/quick.yml [--workers N] [--device cuda] [--seeds 0,1,2] [--set epochs=2]
    python -m fer_lib.batch notebooks/studies/quick.yml --scheduler tcp://10.0.0.1:8786

Everything is checked before the first run starts; finished runs are skipped; one run's failure doesn't stop the rest.
Exit code 0: all runs are finished; 1: some failed; 2: the study can't be run; 130: interrupted by Ctrl-C, 143: by
SIGTERM, as a cluster does before it takes a machine away; each run is checkpointed, start again to go on.
"""

import signal
import sys


def leave_signals_to_batch() -> None:
    """In a worker that batch started: Ctrl-C and SIGTERM are batch's alone, which then tells its workers to leave."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# The work is done in fer_lib.studies. This file stays small because each worker process imports it once more.
if __name__ == "__mp_main__":
    leave_signals_to_batch()
if __name__ == "__main__":
    asked = []

    def end(number: int, frame: object) -> None:        # SIGTERM: the same clean end as Ctrl-C
        asked.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    from fer_lib.studies import main

    code = main()
    sys.exit(128 + asked[0] if asked and code == 130 else code)
