"""A real JupyterLab on loopback and a headless Chromium in front of it, for tests and for looking at the notebooks."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError

import nbformat
import psutil
import pytest
from conftest import free_port

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
            "/Applications/Chromium.app/Contents/MacOS/Chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
# messages of the browser that are about JupyterLab itself, not about what a notebook shows
NOT_OURS = re.compile(r"favicon|ERR_NAME_NOT_RESOLVED|ERR_INTERNET_DISCONNECTED|api/kernels/.* 404|/lsp/")


def find_browser() -> str | None:
    """FER_BROWSER, or a Chromium or Chrome where they usually are."""
    named = os.environ.get("FER_BROWSER")
    return named or next((found for name in BROWSERS if (found := shutil.which(name))), None)


needs_browser = [pytest.mark.browser, pytest.mark.skipif(
    find_browser() is None and not os.environ.get("CI"), reason="no Chromium or Chrome here: install one, or name it "
    "in FER_BROWSER")]


def make_project(folder: Path) -> Path:
    """A project folder with copies of the notebooks, on this checkout's library; the notebooks have no outputs."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", dirs_exist_ok=True)
    if not (folder / "fer_lib").exists():
        (folder / "fer_lib").symlink_to(ROOT / "fer_lib")
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    return folder


def set_parameters(notebook: Path, /, **values: object) -> None:
    """Change lines of a notebook's parameters cell."""
    content = nbformat.read(notebook, 4)
    cell = next(c for c in content.cells if "parameters" in c.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for name, value in values.items():
        at, = (k for k, line in enumerate(lines) if line.startswith(f"{name}: "))
        head, _, comment = lines[at].partition("  #")
        lines[at] = f"{head.partition(' = ')[0]} = {value!r}  #{comment}"
    cell.source = "\n".join(lines)
    nbformat.write(content, notebook)


REST = "    __import__('time').sleep(.25)"


def let_rest(notebook: Path, rest: str = REST) -> None:
    """04_train rests after each block: pages have a core, and a run lasts. Commands wait for that at most."""
    text = notebook.read_text()
    assert text.count("    pass") == 1
    notebook.write_text(text.replace("    pass", rest))


class Lab:
    """A running JupyterLab. kernel_path: folders that its kernels import from first, such as another ipykernel."""

    def __init__(self, project: Path, runs: Path, kernel_path: str = ""):
        self.project, self.port, self.token = project, free_port(), "0123456789abcdef"
        home = project.parent / "home"
        settings = home / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True, exist_ok=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
        env = {**os.environ, "HOME": str(home), "FER_RUNS": str(runs), "OMP_NUM_THREADS": "1",
               "FER_PACKED": os.environ.get("FER_PACKED") or str(ROOT / "packed"), "JUPYTER_PREFER_ENV_PATH": "1",
               "JUPYTER_CONFIG_DIR": str(home / ".jupyter"), "JUPYTERLAB_SETTINGS_DIR":
               str(home / ".jupyter" / "lab" / "user-settings"),
               "PYTHONPATH": os.pathsep.join(filter(None, (kernel_path, str(ROOT))))}
        self.log = open(project.parent / "lab.log", "w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--ServerApp.port={self.port}",
             "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={project}",
             "--ServerApp.port_retries=0"], env=env, cwd=project, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError((project.parent / "lab.log").read_text())
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(.2)
        raise RuntimeError("JupyterLab did not start in 60 s")

    def ask(self, path: str, method: str = "GET", body: object = None) -> bytes:
        """Of the server's REST API: the answer. HTTPError: it is none."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}", method=method,
                                         data=None if body is None else json.dumps(body).encode(),
                                         headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def kernels(self) -> list[psutil.Process]:
        """Those that live. The server has other children too, that end by themselves, such as npm."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "ipykernel_launcher" in child.cmdline():
                    found.append(child)
        return found

    def end_sessions(self) -> None:
        """Kill all kernels. A server that starts a dead one anew just then answers 500, and is asked again
        (jupyter_client pull request 967).
        """
        deadline = time.monotonic() + 30
        while sessions := json.loads(self.ask("sessions")):
            if time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab keeps the sessions {sessions}")
            for kernel in self.kernels():
                with suppress(psutil.NoSuchProcess):
                    kernel.kill()                       # asked to go, one takes two seconds
            for session in sessions:
                try:
                    self.ask(f"sessions/{session['id']}", "DELETE")
                except HTTPError as error:
                    if error.code not in (500, 404):    # 404: it is gone by now
                        raise

    def url(self, notebook: str) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/notebooks/{notebook}?token={self.token}"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Page:
    """A page with one notebook, and what its console said at level error."""

    def __init__(self, context, lab: Lab, notebook: str):
        self.lab, self.notebook, self.errors = lab, notebook, []
        self.page = context.new_page()
        self.page.on("console", lambda m: self._hear(m.text, m.location.get("url", "")) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self._hear(str(e)))
        self.open()

    def _hear(self, text: str, url: str = "") -> None:
        if not NOT_OURS.search(text + " " + url):
            self.errors.append(f"{text[:300]} {url[-80:]}".strip())

    def open(self) -> None:
        self.page.goto(self.lab.url(self.notebook))
        self.ready()

    def ready(self) -> None:
        """Wait for the notebook and an idle kernel."""
        self.page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell", timeout=60_000)
        self.page.wait_for_function("document.querySelector('#jp-main-statusbar')?.textContent.includes('| Idle')",
                                    timeout=60_000)

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell", timeout=60_000)

    def menu(self, *names: str) -> None:
        for k, name in enumerate(names):
            place = ".lm-MenuBar-item" if k == 0 else ".lm-Menu-item"
            self.page.locator(place, has_text=re.compile(f"^{name}")).first.click()

    def run_all(self) -> None:
        self.menu("Run", "Run All Cells")

    def save(self) -> None:
        self.menu("File", "Save Notebook")
        self.page.wait_for_function("!document.querySelector('.jp-mod-dirty.lm-mod-current')", timeout=20_000)
        time.sleep(.5)

    def saved(self):
        return nbformat.read(self.lab.project / "notebooks" / self.notebook, 4)

    def look_at(self, selector: str):
        """The element, scrolled to: JupyterLab detaches what is far from sight."""
        element = self.page.locator(selector).first
        for attempt in range(5):
            element.wait_for(state="attached", timeout=60_000)
            try:
                element.scroll_into_view_if_needed()
                return element
            except Exception as error:                  # detached in this moment, because cells above it grew
                if "not attached" not in str(error) or attempt == 4:
                    raise

    def chart(self, steps: int = 1, timeout: float = 60.) -> dict:
        """The live chart's facts, once it has drawn a picture of at least so many steps."""
        self.look_at(".fer .plot")
        self.page.wait_for_function(f"Number(document.querySelector('.fer .plot')?.dataset.steps) >= {steps}",
                                    timeout=timeout * 1000)
        return self.page.locator(".fer .plot").first.evaluate("e => ({...e.dataset})")

    def command(self, selector: str, act=lambda element: element.click()) -> tuple[float, str]:
        """Use a control: (seconds until it had acted, what the view said)."""
        control = self.page.locator(selector).first
        place = control.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' fer ')][1]")
        count = "e => JSON.parse(e.dataset.delays ?? '[]')"
        before = len(place.evaluate(count))
        act(control)
        deadline = time.monotonic() + 20
        while len(found := place.evaluate(count)) <= before:
            if time.monotonic() > deadline:
                raise AssertionError(f"{selector} was not answered: {place.locator('.said').first.inner_text()}")
            time.sleep(.01)
        return found[-1][1] / 1000, place.locator(".said").first.inner_text()


class Place:
    """A JupyterLab with a project folder of its own."""

    def __init__(self, folder: Path, kernel_path: str = ""):
        self.runs = folder / "runs"
        self.project = make_project(folder / "project")
        self.lab = Lab(self.project, self.runs, kernel_path)

    def fresh(self) -> "Place":
        """Without a run, with the notebooks as they come, and none of them open from before."""
        for folder in (self.runs, self.project.parent / "home" / ".jupyter" / "lab" / "workspaces"):
            shutil.rmtree(folder, ignore_errors=True)
        make_project(self.project)
        return self

    def notebook(self, name: str) -> Path:
        return self.project / "notebooks" / name

    def result(self, study: str = "scratch") -> tuple[Path, dict]:
        """The one run of a study, and its result.json."""
        path, = (p.parent for p in (self.runs / study).glob("*/result.json"))
        return path, json.loads((path / "result.json").read_text())

    def wait_for_status(self, status: str, seconds: float = 30.) -> tuple[Path, dict]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            path, result = self.result()
            if result["status"] == status:
                return path, result
            time.sleep(.1)
        raise AssertionError(f"the run is {result['status']}, not {status}, after {seconds} s")


@contextmanager
def open_browser() -> Iterator[object]:
    """A headless browser: find_browser's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
