"""The JupyterLab that the tests in a browser share."""

import json
import time
from urllib.error import HTTPError

import pytest
from jupyterlab import Lab, Place


@pytest.fixture
def lab(tmp_path):
    """One that looks for dead kernels every 20 ms, in place of every 3 s, to start them anew."""
    settings = tmp_path / "home" / ".jupyter"
    settings.mkdir(parents=True)
    (settings / "jupyter_server_config.json").write_text(json.dumps({"KernelRestarter": {"time_to_dead": .02}}))
    found = Place(tmp_path).lab
    yield found
    found.stop()


def begin_two_sessions(lab: Lab) -> None:
    for name in ("00_start_here", "04_train"):
        lab.ask("sessions", "POST", {"path": f"notebooks/{name}.ipynb", "name": "", "type": "notebook",
                                     "kernel": {"name": "python3"}})
    assert len(lab.kernels()) >= 2


def test_sessions_end_also_while_the_server_starts_a_kernel_anew(lab, monkeypatch):
    answers, true_ask = [], lab.ask

    def ask(path, method="GET", body=None):
        answers.append(200)
        try:
            return true_ask(path, method, body)
        except HTTPError as error:
            answers[-1] = error.code
            raise

    monkeypatch.setattr(lab, "ask", ask)
    for k in range(40):
        begin_two_sessions(lab)
        for kernel in lab.kernels():
            kernel.kill()
        time.sleep(.005 * (k % 8))
        lab.end_sessions()
        assert json.loads(lab.ask("sessions")) == []
        if 500 in answers:
            return
    pytest.fail("it never came to pass")
