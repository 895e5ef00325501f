"""What an exercise is: the answer key, cases to try it on, the mistakes people make, and hints.

A lesson's exercises are in lesson_NN.py, each an `Exercise` under the id its notebook uses, such as "03.1".
"""

import ast
import collections
import dataclasses
import dis
import functools
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable

import torch

from course.exercises.mistakes import pairs_of, plain_source


@dataclasses.dataclass(frozen=True)
class Case:
    """One call to try an answer with.

    Args:
        label: what is tried, in words that fit after "With": "the course's matrix, scale 3.5, zero point -70".
        args, kwargs: what the answer is called with. They are copied for each call.
        use: for a class, or where calling once is not enough: use(answer, *args, **kwargs) gives the result.
    """

    label: str
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)
    use: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Property:
    """Something that holds of every right answer, whatever it was written like.

    Args:
        holds: holds(answer) is None, or a sentence that says what does not hold and where.
    """

    holds: Callable


class Words(str):
    """A description that is shown without quotation marks."""

    __repr__ = str.__str__


@dataclasses.dataclass(frozen=True)
class Value:
    """The key of an exercise that asks for a value: a short expression, over `torch` and plain Python."""

    expression: str

    @functools.cached_property
    def value(self):
        return eval(self.expression, {"torch": torch})


@dataclasses.dataclass(frozen=True, eq=False)
class Exercise:
    """An exercise.

    Args:
        id: "03.1": the lesson and the number in it.
        name: what the learner writes: a function, a class or a variable of this name.
        key: qlib's own function or class of that name, or a Value.
        mistakes: the known mistakes; the tests prove that each is rejected and named.
        hints: from the idea to the formula to nearly the code.
        cases: calls to compare with the key's, the small worked example first. A Value needs none.
        properties: what must hold beyond the cases.
        parts: names of what the key returns, where it returns several things.
        any_integer: parts (or "result") for which every integer dtype will do.
        equivalent: {a mutation of the key, as mutations.py words it: why it changes nothing that is asked}.
        explain: explain(args, index) tells how the right element at `index` comes about: "728.6 / 3.5 - 70 = 138.17".
        trial: for an exercise without one right answer, how answers are scored: a course.capstone.Trial. It
            recognises the mistakes by itself.
    """

    id: str
    name: str
    key: object
    mistakes: list
    hints: list
    cases: list = dataclasses.field(default_factory=list)
    properties: list = dataclasses.field(default_factory=list)
    parts: tuple = ()
    any_integer: tuple = ()
    equivalent: dict = dataclasses.field(default_factory=dict)
    explain: Callable | None = None
    trial: object = None

    @property
    def answer(self):
        """What `check` hands back where the learner has no right answer yet."""
        return self.key.value if isinstance(self.key, Value) else self.key

    @functools.cached_property
    def pairs(self):
        """The Mistakes of those who make two of the known ones at once."""
        return [] if isinstance(self.key, Value) else pairs_of(self.mistakes, self.key)

    def solution(self):
        """The key as code that runs when pasted into a lesson: the imports it needs, then qlib's own source.

        Of a docstring the first paragraph is shown; the rest is there to read in qlib.
        """
        if isinstance(self.key, Value):
            return f"{self.name} = {self.key.expression}\n"
        imports = imports_of(self.key)
        return imports + ("\n\n\n" if imports else "") + with_short_docstrings(plain_source(self.key))


@functools.cache
def all_exercises():
    """{id: Exercise} of every lesson, in order."""
    from course import exercises

    found = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(exercises.__path__) if m.name.startswith("lesson_")):
        for exercise in importlib.import_module(f"course.exercises.{module}").EXERCISES:
            found[exercise.id] = exercise
    return found


def find_exercise(exercise_id):
    """The exercise of an id; ValueError naming the ids there are."""
    if exercise_id not in all_exercises():
        raise ValueError(f"there is no exercise {exercise_id!r}; there are {', '.join(all_exercises())}")
    return all_exercises()[exercise_id]


def asked_for():
    """{module or package of qlib: {lesson number: names of what its exercises ask for}}, such as {"affine": {3: …}}."""
    rooms = {}
    for exercise in all_exercises().values():
        if not isinstance(exercise.key, Value):
            room = exercise.key.__module__.split(".")[1]
            rooms.setdefault(room, {}).setdefault(int(exercise.id[:2]), []).append(exercise.name)
    return rooms


def imports_of(key):
    """Import lines for the global names that a function or class uses, one a module, sorted."""
    key = inspect.unwrap(key)
    functions = [key] if inspect.isfunction(key) else [f for f in vars(key).values() if inspect.isfunction(f)]
    modules, names = set(), collections.defaultdict(set)
    for function in functions:
        for name in names_in(function.__code__) & function.__globals__.keys() - {key.__name__}:
            used = function.__globals__[name]
            if isinstance(used, types.ModuleType):
                modules.add(f"import {used.__name__}" + ("" if used.__name__ == name else f" as {name}"))
            else:
                names[getattr(used, "__module__", key.__module__)].add(name)
    return "\n".join(
        [*sorted(modules), *(f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names))]
    )


def with_short_docstrings(source):
    """A piece of source whose docstrings end after their first paragraph."""
    lines = source.splitlines(keepends=True)
    for node in reversed(list(ast.walk(ast.parse(source)))):
        docstring = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node)
        if docstring and "\n\n" in docstring:
            first, last = node.body[0].lineno, node.body[0].end_lineno
            blank = next(i for i in range(first, last) if not lines[i].strip())
            lines[blank - 1 : last] = [lines[blank - 1].rstrip() + '"""\n']
    return "".join(lines)


def names_in(code):
    """The names that a code object, and those nested in it, look up among the globals."""
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    looked_up = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return looked_up.union(*(names_in(inner) for inner in nested))
