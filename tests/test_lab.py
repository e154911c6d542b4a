"""The JupyterLab that the tests in a browser share."""

import json
import time

from jupyterlab import Place


def test_sessions_end_though_the_server_looks_for_dead_kernels_just_then(tmp_path):
    settings = tmp_path / "home" / ".jupyter"
    settings.mkdir(parents=True)
    looks = .02                                         # seconds; 3 where nothing is set
    (settings / "jupyter_server_config.json").write_text(json.dumps({"KernelRestarter": {"time_to_dead": looks}}))
    lab = Place(tmp_path).lab
    try:
        for name in ("00_start_here", "04_train"):
            lab.ask("sessions", "POST", {"path": f"notebooks/{name}.ipynb", "name": "", "type": "notebook",
                                         "kernel": {"name": "python3"}})
        assert len(lab.kernels()) == 2
        for kernel in lab.kernels():
            kernel.kill()
        time.sleep(20 * looks)
        assert lab.kernels() == [], "a killed kernel was started anew"
        lab.end_sessions()
        assert json.loads(lab.ask("sessions")) == [] and lab.kernels() == []
    finally:
        lab.stop()
