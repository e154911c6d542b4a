"""make stress: what it keeps of its stages, and what it leaves out when it is started again."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import stress
from stress import Stage


@pytest.fixture
def ends(tmp_path, monkeypatch) -> dict:
    """How each stage is going to end: whether it passes, or something to call. All pass but those in here."""
    found = {}

    def run(stage: Stage, cores: set[int]) -> dict:
        passed = found.get(stage.name, True)
        passed = passed(cores) if callable(passed) else passed
        said = ["1 passed" if passed else "FAILED x"]
        return {"passed": passed, "output": [] if passed else ["why"], "seconds": 1., "ended": "", "where": "",
                "said": said}
    monkeypatch.setattr(stress, "run", run)
    monkeypatch.setattr(stress, "RECORD", tmp_path / "stress.json")
    monkeypatch.setattr(stress, "stages", lambda: [Stage(name, []) for name in ("kills 1", "kills 2", "browser 1")])
    return found


def recorded() -> dict:
    return json.loads(stress.RECORD.read_text())["stages"]


def test_a_failed_stage_is_run_again_and_its_failure_is_kept(ends, capsys):
    ends["kills 2"] = False
    assert stress.main([]) == 1
    assert "kills 2: FAILED in 1.0 s: FAILED x" in capsys.readouterr().out
    assert [s["passed"] for s in recorded().values()] == [True, False, True]
    ends |= {"kills 1": False, "kills 2": True}
    assert stress.main(["--list"]) == 1 and not recorded()["kills 2"]["passed"]
    assert stress.main([]) == 0, "what has passed is left out"
    assert "kills 2: passed in 1.0 s: 1 passed (failed 1 times before)" in capsys.readouterr().out
    assert recorded()["kills 2"]["failed_before"] == [["FAILED x", "why"]]


def test_other_sources_begin_anew(ends, monkeypatch, capsys):
    assert stress.main(["--only", "kills"]) == 0
    assert list(recorded()) == ["kills 1", "kills 2"]
    monkeypatch.setattr(stress, "sources", lambda: "others")
    assert stress.main(["--only", "browser"]) == 0
    assert list(recorded()) == ["browser 1"]
    assert stress.main(["--only", "kills 2", "--only", "browser", "--list"]) == 0
    assert capsys.readouterr().out.endswith("kills 2: not run\nbrowser 1: passed in 1.0 s: 1 passed\n")


def test_stages_side_by_side_have_cores_of_their_own(ends, monkeypatch):
    both, given = threading.Barrier(2, timeout=30), []

    def passes(cores: set[int]) -> bool:
        given.append(cores)
        return both.wait() < 2
    ends |= {"kills 1": passes, "kills 2": passes}
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 3, 4, 5, 8}, raising=False)
    assert stress.main(["--at-once", "2", "--only", "kills"]) == 0
    assert sorted(given, key=min) == [{2, 3}, {4, 5, 8}]
    assert stress.shares(7) == [{2}, {2}, {3}, {4}, {4}, {5}, {8}]


def test_no_stage_is_begun_after_a_failure_where_that_was_asked_for(ends):
    """One that was at work beside it ends, and is recorded."""
    begun = threading.Event()

    def later(cores: set[int]) -> bool:
        begun.set()
        while not (stress.RECORD.exists() and "kills 1" in recorded()):
            time.sleep(.01)
        return True

    def fails(cores: set[int]) -> bool:
        return not begun.wait(30)
    ends |= {"kills 1": fails, "kills 2": later}
    assert stress.main(["-x", "--at-once", "2"]) == 1
    assert {name: s["passed"] for name, s in recorded().items()} == {"kills 1": False, "kills 2": True}


def test_ctrl_c_keeps_what_ended_and_records_nothing_half(ends, monkeypatch):
    """It comes while the main thread waits for the second stage."""
    begun, stopped, said = threading.Event(), threading.Event(), []

    def say(text: str, flush: bool = False) -> None:
        said.append(text)
        if text.startswith("stopped"):
            stopped.set()

    class Interrupted(ThreadPoolExecutor):
        def submit(self, call, stage, free):
            future = super().submit(call, stage, free)
            if stage.name == "kills 2":
                future.result = interrupt
            return future

    def interrupt() -> None:
        begun.wait(30)
        raise KeyboardInterrupt

    def until_ctrl_c(cores: set[int]) -> bool:
        begun.set()
        return not stopped.wait(30)
    ends["kills 2"] = until_ctrl_c
    monkeypatch.setattr(stress, "ThreadPoolExecutor", Interrupted)
    monkeypatch.setattr(stress, "print", say, raising=False)
    assert stress.main([]) == 130
    assert said == ["kills 1 ...", "kills 1: passed in 1.0 s: 1 passed", "kills 2 ...",
                    "stopped; the same command goes on"]
    assert list(recorded()) == ["kills 1"]


@pytest.mark.parametrize(("words", "reason"), [(["--only", "none"], "no stage's name holds 'none'"),
                                               (["--at-once", "0"], "--at-once is at least 1, not 0")])
def test_wrong_words_are_one_sentence(ends, capsys, words, reason):
    with pytest.raises(SystemExit) as ended:
        stress.main(words)
    assert ended.value.code == 2 and reason in capsys.readouterr().err


def test_a_stage_is_a_process_on_its_cores_and_says_how_it_ended(tmp_path, monkeypatch):
    (tmp_path / "test_x.py").write_text("import os\ndef test_y():\n    assert os.environ['WORKERS'] == '1'\n"
                                        "def test_z():\n    assert False\n")
    monkeypatch.setattr(stress, "ROOT", tmp_path)
    monkeypatch.delenv("WORKERS", raising=False)
    cores = stress.shares(1)[0]
    ended = stress.run(Stage("one", ["-p", "no:cacheprovider", "test_x.py"]), {min(cores)} if cores else cores)
    assert not ended["passed"] and ended["said"][-1].startswith("1 failed, 1 passed")
    assert ended["said"][0].startswith("FAILED test_x.py::test_z") and "1 cores, Python" in ended["where"]
    assert ">       assert False" in ended["output"], "why it failed"
