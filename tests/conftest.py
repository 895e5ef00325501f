"""What all tests run under: one thread, the same examples each time, no window, and no network; and what they took."""

import collections
import os

# Before anything imports huggingface_hub, which reads this once.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import matplotlib
import pytest
import torch

from tests.loopback import guarded_functions

torch.set_num_threads(1)
# Not through MPLBACKEND: notebooks that are tested from this process would inherit it and draw nothing inline.
matplotlib.use("Agg")

hypothesis.settings.register_profile("course", derandomize=True, deadline=None, max_examples=100, database=None)
hypothesis.settings.load_profile("course")


# ---------------------------------------------------------------- no network


def fail(host):
    """pytest.fail raises a BaseException, so that no library's "except Exception: try the cache" hides the attempt."""
    pytest.fail(f"a test reached for the network: {host!r}")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Nothing in a test connects to another machine or asks a name server."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, guarded in guarded_functions(fail):
            patch.setattr(owner, name, guarded)
        yield


# ---------------------------------------------------------------- where the time goes


def part_of(test):
    """The part of `make test` that a test, given by its id, belongs to."""
    file, _, name = test.partition("::")
    if file.endswith(".ipynb"):
        return "notebooks"
    if name.startswith("test_solved_"):
        return "solved notebooks"
    return "exercises" if file.endswith("test_exercises.py") else "unit tests"


def seconds_by_part(reports):
    seconds = collections.Counter()
    for report in reports:
        seconds[part_of(report.nodeid)] += report.duration
    return seconds


def pytest_terminal_summary(terminalreporter):
    """One line of the seconds by part, with those of all processes added up."""
    reports = [report for group in terminalreporter.stats.values() for report in group if hasattr(report, "duration")]
    parts = [f"{part} {seconds:.0f}" for part, seconds in seconds_by_part(reports).most_common()]
    if parts:
        terminalreporter.write_line(f"Seconds by part, all processes together: {', '.join(parts)}")
