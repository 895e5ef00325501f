"""Wrong answers, written down as edits of the right one, so that they cannot drift from it and two can be combined.

A wrong answer that people give is the right one with a line changed. `edit("torch.round", "torch.floor")` says so; it
is applied to the source of the exercise's key. Where that is unnatural, a mistake is a function of its own.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import textwrap


@dataclasses.dataclass(frozen=True)
class Edit:
    """Changes of the key's source, one after the other: pairs (old, new), each `old` exactly once in the code."""

    changes: tuple

    def applied_to(self, source):
        """The changed source; ValueError where an `old` does not stand there exactly once."""
        for old, new in self.changes:
            if source.count(old) != 1:
                raise ValueError(f"{old!r} stands {source.count(old)} times, not once, in:\n{source}")
            source = source.replace(old, new)
        return source


def edit(*texts):
    """An Edit: edit(old, new), or edit(old, new, old, new, …) for several changes at once."""
    return Edit(tuple(zip(texts[::2], texts[1::2], strict=True)))


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrong answer that people really give, and what to tell them.

    Args:
        answer: an Edit of the key, or the wrong function, class or value itself.
        diagnosis: a phrase that fits after "That is what you get": "with no clamp before the cast".
    """

    answer: object
    diagnosis: str

    def answer_to(self, key):
        """The wrong function, class or value."""
        return edited(key, self.answer) if isinstance(self.answer, Edit) else self.answer


def combined(first, second):
    """The Mistake of someone who makes both, first the one and then the other."""
    return Mistake(
        Edit(first.answer.changes + second.answer.changes),
        f"{first.diagnosis}; and, at the same time, {second.diagnosis}",
    )


def pairs_of(mistakes, key):
    """The Mistakes of those who make two: all pairs whose edits change the key to the same in either order."""
    edits = [mistake for mistake in mistakes if isinstance(mistake.answer, Edit)]
    source, pairs = source_of(key) if edits else "", []
    for mistake in edits:
        mistake.answer.applied_to(source)  # an edit that does not match alone is not to be passed over
    for first, second in itertools.combinations(edits, 2):
        pair, turned = combined(first, second), combined(second, first)
        try:
            if pair.answer.applied_to(source) == turned.answer.applied_to(source):
                compiled(pair.answer.applied_to(source), key.__name__)
                pairs.append(pair)
        except (ValueError, SyntaxError):
            continue  # one of them has taken away what the other changes
    return pairs


def edited(key, change):
    """The key, a function or a class, with an Edit made to its source."""
    return built(key, change.applied_to(source_of(key)))


def built(key, source):
    """What `source` defines under the key's name, among the names of the key's own module."""
    namespace = dict(vars(sys.modules[key.__module__]))
    exec(compiled(source, key.__name__), namespace)
    return namespace[key.__name__]


@functools.lru_cache(4096)
def compiled(source, name):
    """The code object of edited source; SyntaxError where two edits make none."""
    return compile(source, f"<{name}, edited>", "exec")


def plain_source(key):
    """The source of a function or class, less the decorators in front of it: fast paths are no part of an answer."""
    source = textwrap.dedent(inspect.getsource(key))
    first = ast.parse(source).body[0].lineno
    return "\n".join(source.split("\n")[first - 1 :])


@functools.cache
def source_of(key):
    """The source of a function or class without its docstrings, so that an edit never hits words."""
    source = plain_source(key)
    lines = source.split("\n")
    for node in reversed(list(ast.walk(ast.parse(source)))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            words = node.body[0]
            alone = len(node.body) == 1  # a body of nothing but words must stay one
            lines[words.lineno - 1 : words.end_lineno] = [" " * words.col_offset + "pass"] if alone else []
    return "\n".join(lines)
