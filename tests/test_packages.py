"""What is installed: two packages, of which each imports only what it may, and from which alone every lesson runs."""

import ast
import functools
import importlib.metadata
import json
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import nbformat
import packaging.utils
import pytest

from course.exercises.exercise import all_exercises
from tests.lessons import LESSONS, OTHER_NOTEBOOKS, ROOT, code_cells

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def source_files(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(tree):
    """The full names of the modules that the code of a tree imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@functools.cache
def imported_packages(path):
    return {name.split(".")[0] for name in imports_of(ast.parse(path.read_text(encoding="utf-8")))}


# ---------------------------------------------------------------- arrows run one way

MAY_IMPORT = {
    "qlib": {"qlib"},
    "course": {"qlib", "course"},
    "scripts": {"qlib", "course", "scripts"},
    "bench": {"qlib", "course", "bench"},
    "tests": {"qlib", "course", "scripts", "bench", "tests"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_between_the_rooms_run_one_way(package):
    ours = set(MAY_IMPORT) - MAY_IMPORT[package]
    wrong = {str(path.relative_to(ROOT)): imported_packages(path) & ours for path in source_files(package)}
    assert not {path: names for path, names in wrong.items() if names}


# ---------------------------------------------------------------- what they need


def needed(*extras):
    """The distributions that the project and its extras name, and those extras' own."""
    names = {packaging.utils.canonicalize_name(re.match(r"[\w.-]+", line)[0]) for line in PROJECT["dependencies"]}
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra]:
            ours = re.fullmatch(r"qlib\[([\w,]+)\]", line)
            found = needed(*ours[1].split(",")) if ours else {packaging.utils.canonicalize_name(line.split(">")[0])}
            names |= found
    return names


def distributions_imported(paths):
    """The distributions that hold what these files import, but for ours and for what every notebook brings along."""
    at_hand = {"IPython", "ipywidgets", "llvmlite"}  # wherever a notebook runs, and where Numba does
    imported = set().union(*map(imported_packages, paths)) - set(sys.stdlib_module_names) - at_hand - set(MAY_IMPORT)
    known = importlib.metadata.packages_distributions()
    return {packaging.utils.canonicalize_name(known[name][0]) for name in imported}


@pytest.mark.parametrize(("package", "extras"), [("qlib", ["hf", "plot"]), ("course", ["lessons"])])
def test_all_that_a_package_imports_is_among_what_it_needs(package, extras):
    imported = distributions_imported(source_files(package))
    assert {"torch"} <= imported <= needed(*extras), imported - needed(*extras)


def test_import_qlib_is_light_and_takes_less_time_than_import_torch():
    """torch first, since everyone pays for it; then what qlib adds. The faster of two processes, in seconds."""
    code = """
import json, sys, time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
import qlib
print(json.dumps([middle - begin, time.perf_counter() - middle, list(sys.modules)]))
"""
    runs = [run_python(code, ROOT) for _ in range(2)]
    heavy = {"pandas", "matplotlib", "seaborn", "sklearn", "transformers", "accelerate", "huggingface_hub", "IPython"}
    for _, _, modules in runs:
        assert not (heavy | {"course", "tests", "scripts"}) & set(modules)
    assert min(qlib for _, qlib, _ in runs) < min(torch for torch, _, _ in runs)


# ---------------------------------------------------------------- an installed copy


def run_python(code, *places):
    """What a Python process prints as JSON, which finds packages in `places` and among the installed ones, not here.

    -I keeps PYTHONPATH and the working folder out, -S the .pth file that leads from the environment to a checkout.
    """
    found = [*map(str, places), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    code = f"import sys\nsys.path += {found!r}\n{code}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel brings, which is built without a network from a copy of its sources."""
    sources, installed = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for package in MAY_IMPORT:
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", sources / "dist"]
    done = subprocess.run([sys.executable, "-m", "pip", *build, sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (sources / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    return installed


def test_the_wheel_holds_both_packages_whole_and_nothing_else(installed):
    held = {path.relative_to(installed) for path in installed.rglob("*") if ".dist-info" not in str(path)}
    ours = {path.relative_to(ROOT) for package in ("qlib", "course") for path in source_files(package)}
    assert {path for path in held if path.suffix} == ours


IMPORT_ALL = """
import importlib, json
missing = []
for notebook, module, name in json.loads({wanted!r}):
    try:
        found = importlib.import_module(module)
        if name and not hasattr(found, name):
            importlib.import_module(f"{{module}}.{{name}}")
    except ImportError as error:
        missing.append([notebook, str(error)])
import course.exercises.exercise, course.models, qlib
exercises = len(course.exercises.exercise.all_exercises())
places = [qlib.__file__, course.__file__, str(course.models.DATA)]
print(json.dumps([missing, exercises, places, sorted({{"tests", "scripts", "bench"}} & set(sys.modules))]))
"""


def imports_in_lessons():
    """[notebook, module, name in it or None] for every import of every code cell."""
    for notebook in [*LESSONS, *OTHER_NOTEBOOKS]:
        for cell in code_cells(nbformat.read(ROOT / "notebooks" / notebook, as_version=4)):
            for node in ast.walk(ast.parse(re.sub(r"^([%!])", r"# \1", cell.source, flags=re.M))):
                if isinstance(node, ast.Import):
                    yield from ([notebook, alias.name, None] for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield from ([notebook, node.module, alias.name] for alias in node.names)


@pytest.fixture
def data_beside(installed):
    data = installed / "data"
    data.symlink_to(ROOT / "data")
    yield data
    data.unlink()


def test_what_the_lessons_import_and_load_is_all_in_an_installed_copy(installed, data_beside):
    wanted = list(imports_in_lessons())
    assert {notebook for notebook, _, _ in wanted} >= set(LESSONS)
    missing, exercises, places, strangers = run_python(IMPORT_ALL.format(wanted=json.dumps(wanted)), installed)
    assert missing == []
    assert exercises == len(all_exercises())
    assert places == [str(installed / "qlib/__init__.py"), str(installed / "course/__init__.py"), str(data_beside)]
    assert strangers == []


def test_an_installed_copy_finds_the_data_of_the_checkout_that_a_lesson_runs_in(installed, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    assert runpy.run_path(str(installed / "course/models/loading.py"))["DATA"] == ROOT / "data"
    monkeypatch.chdir(installed)
    assert not runpy.run_path(str(installed / "course/models/loading.py"))["DATA"].exists()


def test_the_folder_that_colab_clones_into_hides_no_package():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folder = re.search(r"!git clone --depth 1 \S+ (\S+)", readme)[1]
    assert folder not in MAY_IMPORT
    assert f'-e "{folder}[lessons]" -c {folder}/requirements.txt' in readme
