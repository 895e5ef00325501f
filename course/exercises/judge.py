"""Decides whether an answer is right, and if not, names the first thing that is wrong with it."""

import dataclasses
import dis
import functools
import inspect
import numbers
import time

import numpy as np
import torch

from course.exercises import sandbox
from course.exercises.exercise import Value
from qlib.report import as_text

PATIENCE = 5  # seconds for comparing an answer with pairs of mistakes

CORRECT, INCORRECT, NOT_ATTEMPTED = "correct", "incorrect", "not attempted"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An outcome and, where it is INCORRECT or was scored, the sentences that say why; of a score, a picture too."""

    outcome: str
    message: str = ""
    picture: object = None


def judge(exercise, answer):
    """The Verdict on an answer, in the order: signature, each case's type, dtype, shape and values, the properties."""
    if is_blank(answer):
        return Verdict(NOT_ATTEMPTED)
    if exercise.trial is not None:
        return judge_trial(exercise, answer)
    check = judge_value if isinstance(exercise.key, Value) else judge_code
    message = check(exercise, answer)
    return Verdict(INCORRECT, message) if message else Verdict(CORRECT)


def is_blank(answer):
    """Whether an answer is still the stub: `...`, a function with a body of `...`, or a class of such functions."""
    if inspect.isclass(answer):
        methods = [f for f in vars(answer).values() if inspect.isfunction(f)]
        return all(map(is_blank, methods))
    if inspect.isfunction(answer):
        return instructions(answer) == instructions(blank)
    return answer is ...


def blank(): ...


def instructions(function):
    """What a function does, as the interpreter sees it: of a blank one, to return None."""
    return [(instruction.opname, instruction.argval) for instruction in dis.get_instructions(function)]


# ---------------------------------------------------------------- values


def judge_value(exercise, answer):
    """A sentence that says what is wrong with a value, or None. A number, a tensor of it or an array will all do."""
    expected, got = plain(exercise.answer), plain(answer)
    if got is None:
        holds = answer if isinstance(answer, (list, tuple)) else [answer]
        odd = next(item for item in holds if plain(item) is None)
        return f"{exercise.name} {'holds' if holds is answer else 'is'} {kind(odd)}, where a number is asked for."
    if agree(expected, got):
        return None
    message = f"{exercise.name} is {as_text(got)}; {wrong_item(expected, got)}"
    for mistake in exercise.mistakes:
        if agree(plain(mistake.answer), got):
            return join(message, what_you_get(mistake.diagnosis))
    return message


def wrong_item(expected, got):
    """What is wrong with a plain value, in words: how many things it holds, or which of them is wrong first."""
    if isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return f"it should hold {len(expected)} things, not {len(got)}."
        index = next(i for i, pair in enumerate(zip(expected, got, strict=True)) if not agree(*pair))
        return f"[{index}], {as_text(got[index])}, is not right."
    return "that is not it."


def plain(value):
    """Numbers, tensors and arrays, alone or in lists, as plain Python numbers and lists; None for anything else."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (bool, numbers.Number, str)):
        return value
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        items = [plain(item) for item in value]
        return None if any(item is None for item in items) else items
    return None


def agree(expected, got):
    """Whether plain values are equal: whole numbers to the last digit, floats to one part in a million."""
    if isinstance(expected, list) or isinstance(got, list):
        both = isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got)
        return both and all(map(agree, expected, got))
    if isinstance(expected, str) or isinstance(got, str):
        return expected == got
    if isinstance(expected, int):
        return expected == got
    return abs(expected - got) <= 1e-6 * abs(expected)


# ---------------------------------------------------------------- functions and classes


def judge_code(exercise, answer):
    """Sentences that say what is wrong with a function or class, or None."""
    message = wrong_signature(exercise, answer)
    if message:
        return message
    behaviour = Behaviour(exercise, answer)
    number, message = behaviour.first_wrong
    if message:
        # An endless loop would be waited for once more on every case.
        endless = isinstance(behaviour.on(number).error, sandbox.TooSlow)
        named = None if endless else named_by_cases(exercise, behaviour, number)
        return join(f"With {exercise.cases[number].label}: {message}", what_you_get(named))
    named = named_by_properties(exercise, behaviour) if behaviour.broken else None
    return join(behaviour.broken, what_you_get(named))


class Behaviour:
    """What an answer does on each case, and which property it breaks: each is found out when it is first asked for."""

    def __init__(self, exercise, answer):
        self.exercise, self.answer, self.outcomes = exercise, answer, {}

    def on(self, number):
        """The sandbox.Outcome on a case."""
        if number not in self.outcomes:
            self.outcomes[number] = call(self.exercise.cases[number], self.answer)
        return self.outcomes[number]

    def wrong_on(self, number):
        """What is wrong with the result of a case, or None."""
        return wrong_result(self.exercise, number, self.answer, self.on(number))

    @functools.cached_property
    def first_wrong(self):
        """The number of the first case whose result is wrong, and what is wrong with it; (None, None) without one."""
        told = ((number, self.wrong_on(number)) for number in range(len(self.exercise.cases)))
        return next(((number, message) for number, message in told if message), (None, None))

    @functools.cached_property
    def broken(self):
        """What the first property that does not hold says of the answer, or None."""
        told = (what_does_not_hold(held, self.answer) for held in self.exercise.properties)
        return next(filter(None, told), None)

    def is_like(self, other, until=None):
        """Whether two answers do the same on every case, or on those before the case `until`."""
        return all(alike(self.on(n), other.on(n)) for n in range(len(self.exercise.cases))[:until])


@functools.cache
def known(exercise, mistake=None):
    """The Behaviour of a known mistake, or of the key; worked out once."""
    return Behaviour(exercise, mistake.answer_to(exercise.key) if mistake else exercise.key)


def named_by_cases(exercise, behaviour, failing):
    """The diagnosis of the mistake, or of the pair, that does what a wrong answer does on every case; None without one.

    Or of a single one that does the same as far as the failing case, if no other does the same so far.
    """
    alike_so_far = [m for m in exercise.mistakes if behaviour.is_like(known(exercise, m), failing + 1)]
    for mistake in alike_so_far:
        if behaviour.is_like(known(exercise, mistake)):
            return mistake.diagnosis
    deadline = time.monotonic() + PATIENCE
    for pair in exercise.pairs:
        if behaviour.is_like(known(exercise, pair)):
            return pair.diagnosis
        if time.monotonic() > deadline:
            break
    return alike_so_far[0].diagnosis if len(alike_so_far) == 1 else None


def named_by_properties(exercise, behaviour):
    """The diagnosis of the mistake that is right on every case as well and breaks the same property, or None."""
    for mistake in exercise.mistakes:
        other = known(exercise, mistake)
        if other.first_wrong[1] is None and other.broken == behaviour.broken:
            return mistake.diagnosis
    return None


def what_you_get(diagnosis):
    """The sentence that names a mistake, or None without one."""
    return diagnosis and f"That is what you get {diagnosis}."


def join(*sentences):
    """Sentences in a row, None left out; None if there is no sentence at all."""
    return " ".join(filter(None, sentences)) or None


def wrong_signature(exercise, answer):
    """A sentence if the answer cannot be called the way the lesson calls it."""
    wanted_kind = "class" if inspect.isclass(exercise.key) else "function"
    if not (inspect.isclass(answer) if wanted_kind == "class" else inspect.isroutine(answer)):
        return f"{exercise.name} should be a {wanted_kind}, but is {kind(answer)}."
    if wanted_kind == "class":
        return None
    wanted, given = called_with(exercise), inspect.signature(answer).parameters
    if list(given)[: len(wanted)] != wanted or any(
        given[name].default is inspect.Parameter.empty for name in list(given)[len(wanted) :]
    ):
        return f"{exercise.name} takes ({', '.join(given)}), but the lesson calls it with ({', '.join(wanted)})."
    return None


@functools.cache
def called_with(exercise):
    """The names of the parameters that an answer must take: those without a default, and those that a case gives."""
    signature = inspect.signature(exercise.key)
    given = [signature.bind(*case.args, **case.kwargs).arguments for case in exercise.cases if case.use is None]
    return [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty or any(name in arguments for arguments in given)
    ]


def call(case, answer):
    """What an answer does on a case: a sandbox.Outcome."""
    if case.use is None:
        return sandbox.run(answer, *case.args, **case.kwargs)
    return sandbox.run(lambda *args, **kwargs: case.use(answer, *args, **kwargs), *case.args, **case.kwargs)


def wrong_result(exercise, number, answer, outcome):
    """A sentence that names the first thing wrong with the outcome of an answer on a case, or None."""
    if outcome.error is not None:
        return failure(outcome.error, answer)
    message = difference(exercise, exercise.cases[number], known(exercise).on(number).value, outcome.value)
    if message is None and outcome.mutated:
        return f"the result is right, but {exercise.name} changes the tensor it is given; it should leave it alone."
    return message


def failure(error, answer):
    """A sentence for an exception."""
    place = sandbox.where_it_failed(error, answer)
    place = f" in your cell, {place}" if place else ""
    if isinstance(error, sandbox.TooSlow):
        return f"it was still running after {sandbox.TIME_LIMIT} seconds. Is there a loop that never ends?"
    if isinstance(error, RecursionError):
        return f"it calls itself without end{place}."
    words = str(error).strip().split("\n")[0].rstrip(".")
    return f"it raised {type(error).__name__}{place}" + (f": {words}." if words else ".")


def difference(exercise, case, expected, got, part="result"):
    """A sentence that names the first difference between two results: type, dtype, shape, then the first element."""
    what = "it returned" if part == "result" else f"{part} is"
    if got is None:
        return f"{what} None. Is there a `return` at the end?"
    if isinstance(expected, tuple):
        names = exercise.parts or tuple(f"item {i}" for i in range(len(expected)))
        if not isinstance(got, tuple) or len(got) != len(expected):
            return f"it should return a tuple of {len(expected)}, ({', '.join(names)}), but returned {kind(got)}."
        found = (difference(exercise, case, e, g, name) for name, e, g in zip(names, expected, got, strict=True))
        return next((message for message in found if message), None)
    if isinstance(expected, torch.Tensor):
        return tensor_difference(exercise, case, expected, got, part, what)
    if isinstance(expected, dict) and isinstance(got, dict):
        if list(got) != list(expected):
            return f"{part} holds {', '.join(got)}; expected {', '.join(expected)}."
        found = (difference(exercise, case, expected[key], got[key], key) for key in expected)
        return next((message for message in found if message), None)
    if isinstance(expected, bool) or not isinstance(expected, numbers.Number):
        return None if type(got) is type(expected) and got == expected else f"{what} {got!r}, expected {expected!r}."
    if isinstance(got, bool) or not isinstance(got, numbers.Number):
        return f"{what} {kind(got)}, expected {kind(expected)}."
    if isinstance(expected, int) and not isinstance(got, numbers.Integral):
        return f"{what} {got!r}, which is {kind(got)}; expected a whole number (an int), {expected}."
    return None if agree(expected, got) else f"{what} {as_text(got)}, expected {as_text(expected)}."


def tensor_difference(exercise, case, expected, got, part, what):
    """The first difference between a tensor and what came in its place."""
    if not isinstance(got, torch.Tensor):
        return f"{what} {kind(got)}, expected a torch tensor."
    integer_will_do = part in exercise.any_integer and not got.is_floating_point() and got.dtype is not torch.bool
    if got.dtype != expected.dtype and not integer_will_do:
        return f"{what} a tensor of {short(got.dtype)}, expected {short(expected.dtype)}."
    if got.shape != expected.shape:
        return f"{what} a tensor of shape {tuple(got.shape)}, expected {tuple(expected.shape)}."
    wrong = differs(expected, got)
    if not wrong.any():
        return None
    index = tuple(wrong.nonzero()[0].tolist())
    place = f"{list(index)}: " if index else ""
    place = place if part == "result" else f"{part} {place}".rstrip(": ") + ": "
    how = exercise.explain(case.args, index) if exercise.explain and part == "result" else ""
    how = f"{how}, " if how else ""
    return f"{place}{how}expected {number(expected[index].item())}, got {number(got[index].item())}."


def differs(expected, got):
    """Where two tensors differ: integers and infinities at all, other floats by more than one part in 100,000."""
    if not expected.is_floating_point():
        return expected.long() != got.long()
    expected, got = expected.double(), got.double()
    finite = expected.isfinite()
    largest = expected[finite].abs().max() if finite.any() else 0
    near = (expected - got).abs() <= 1e-5 * expected.abs() + 1e-6 * largest
    return ~torch.where(finite, near, expected == got)


def what_does_not_hold(held, answer):
    """What a property says of an answer: None if it holds, else a sentence."""
    outcome = sandbox.run(lambda: held.holds(answer))
    return failure(outcome.error, answer) if outcome.error is not None else outcome.value


def alike(a, b):
    """Whether two outcomes are the same: the same error, or the same result to within rounding."""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error) and str(a.error) == str(b.error)
    return a.mutated == b.mutated and alike_values(a.value, b.value)


def alike_values(a, b):
    if a is None or b is None:
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(alike_values, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and not differs(a, b).any()
    if isinstance(a, numbers.Number) and isinstance(b, numbers.Number):
        return type(a) is type(b) and agree(a, b)
    return type(a) is type(b) and plain(a) is not None and plain(a) == plain(b)


# ---------------------------------------------------------------- scores


def judge_trial(exercise, answer):
    """The Verdict on an answer that is scored; see course/capstone.py."""
    message = wrong_signature(exercise, answer)
    if message:
        return Verdict(INCORRECT, message)

    def run(answer, *arguments):
        with sandbox.patience(exercise.trial.limit):
            outcome = sandbox.run(answer, *arguments)
            return None if outcome.error is None else failure(outcome.error, answer), outcome.value

    result = exercise.trial.score(answer, run)
    picture = exercise.trial.picture(result)
    if result.wrong:
        return Verdict(INCORRECT, join(sentence(result.wrong), what_you_get(result.mistake)), picture)
    return Verdict(CORRECT, exercise.trial.words(result), picture)


# ---------------------------------------------------------------- words


def sentence(words):
    """Words with a capital letter at the beginning."""
    return words[:1].upper() + words[1:]


def kind(value):
    """What a value is, in words a beginner knows."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return "a NumPy array"
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, int):
        return "a whole number (an int)"
    if isinstance(value, float):
        return "a float"
    if isinstance(value, str):
        return "text (a str)"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    if inspect.isfunction(value):
        return "a function"
    return f"a {type(value).__name__}"


def number(value):
    """A number as a message shows it: a float with as many digits as float32 has, and no -0."""
    return f"{value + 0.0:.7g}" if isinstance(value, float) else as_text(value)


def short(dtype):
    return str(dtype).removeprefix("torch.")
