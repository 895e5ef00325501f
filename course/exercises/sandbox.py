"""Runs a learner's code so that it cannot harm the notebook: on copies, in silence, and for a limited time."""

import contextlib
import copy
import ctypes
import dataclasses
import io
import linecache
import threading
import time
import traceback
import warnings

import numpy as np
import torch

TIME_LIMIT = 10  # seconds; every case takes milliseconds


class TooSlow(BaseException):
    """Raised inside code that has run past the limit. Not an Exception, so that `except Exception` lets it through."""


@dataclasses.dataclass
class Outcome:
    """What a call did: it returned `value`, or raised `error`; `mutated` says whether it changed what it was given."""

    value: object = None
    error: BaseException | None = None
    mutated: bool = False


def run(call, *args, **kwargs):
    """Call `call` on copies of the arguments. Returns an Outcome; never raises, save for the user's own interrupt."""
    given_args, given_kwargs = copy.deepcopy((args, kwargs))
    outcome = Outcome()

    def work():
        try:
            outcome.value = call(*given_args, **given_kwargs)
        except BaseException as error:
            outcome.error = error

    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        in_time = finish(threading.Thread(target=work, daemon=True))
    if not in_time:
        outcome = Outcome(error=TooSlow())
    outcome.mutated = not same((args, kwargs), (given_args, given_kwargs))
    return outcome


@contextlib.contextmanager
def patience(seconds):
    """Let what runs inside take longer than usual."""
    global TIME_LIMIT
    usual, TIME_LIMIT = TIME_LIMIT, seconds
    try:
        yield
    finally:
        TIME_LIMIT = usual


def finish(thread):
    """Run a thread to its end, or stop it at the time limit. Returns whether it came to its own end.

    A thread, because a signal would need the main one and is missing on Windows. Code that cannot be stopped (it
    swallows the exception, or sits in a C call) is left behind as a daemon, and the kernel lives on.
    """
    start, used = time.monotonic(), time.process_time()
    thread.start()
    try:
        # Of the processor's time, for on a busy machine a right answer may have to wait for its turn.
        while time.process_time() - used < TIME_LIMIT and time.monotonic() - start < 3 * TIME_LIMIT:
            thread.join(0.05)
            if not thread.is_alive():
                return True
        return False
    finally:
        for _ in range(20):
            if not thread.is_alive():
                break
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TooSlow))
            thread.join(0.05)


def same(a, b):
    """Whether two arguments are equal to the last bit, tensors and arrays inside containers included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        same_kind = a.shape == b.shape and a.dtype == b.dtype
        return same_kind and (torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.nn.Module):
        return same(dict(a.state_dict()), dict(b.state_dict()))
    # An object with no equality of its own never equals its copy; that says nothing about a change.
    return type(a).__eq__ is object.__eq__ or a == b


def where_it_failed(error, answer):
    """The line of the learner's own cell that an error came from: "line 4: `q = tensor / scal`", or ""."""
    codes = (
        [getattr(f, "__code__", None) for f in [answer, *vars(answer).values()]] if hasattr(answer, "__dict__") else []
    )
    own_files = {code.co_filename for code in codes if code}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in own_files:
            line = linecache.getline(frame.filename, frame.lineno).strip()
            return f"line {frame.lineno}" + (f": `{line}`" if line else "")
    return ""
