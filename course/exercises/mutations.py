"""Generic mutations of an answer key: what a check that compares too little would let through.

Each changes one thing that a typing error or a wrong thought changes: an operator, a constant, a dtype, an axis, an end
of a range, or a call or a statement that is left out.
"""

import ast

from course.exercises.mistakes import built, source_of

OPERATORS = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Div],
    ast.Mod: [ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.LShift: [ast.RShift],
    ast.RShift: [ast.LShift],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.GtE],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}
NAMES = {
    "amax": ["amin"],
    "amin": ["amax"],
    "max": ["min"],
    "min": ["max"],
    "maximum": ["minimum"],
    "minimum": ["maximum"],
    "round": ["floor", "ceil", "trunc"],
    "floor": ["ceil"],
    "any": ["all"],
    "all": ["any"],
    "sum": ["mean"],
    "mean": ["sum"],
    "int8": ["int16", "uint8"],
    "uint8": ["int8", "int16"],
    "int16": ["int8"],
    "int32": ["int64", "int8"],
    "int64": ["int32"],
    "float32": ["float64", "float16"],
    "float64": ["float32"],
    "float": ["double", "half"],
    "double": ["float"],
}


def mutants_of(key):
    """{what was changed, in words: the changed function or class} of a key."""
    source, found = source_of(key), {}
    for place, (node, parents) in enumerate(with_parents(ast.parse(source))):
        for number in range(len(changes_of(node, parents))):
            changed = ast.parse(source)
            twin, outer = list(with_parents(changed))[place]
            statement = next(n for n in (twin, *reversed(outer)) if isinstance(n, ast.stmt))
            before = first_line(statement)
            words = changes_of(twin, outer)[number]()
            try:
                mutant = built(key, ast.unparse(ast.fix_missing_locations(changed)))
            except (SyntaxError, NameError, TypeError):
                continue
            if words in found:
                words = f"{before} -> {first_line(statement)}"
            while words in found:
                words += " (again)"
            found[words] = mutant
    return found


def first_line(node):
    """The first line of a node's code."""
    return ast.unparse(node).split("\n")[0]


def with_parents(node, parents=()):
    """The (node, the nodes around it, from the outside in) of a tree."""
    yield node, parents
    for child in ast.iter_child_nodes(node):
        yield from with_parents(child, (*parents, node))


def changes_of(node, parents):
    """What can be done to a node of the tree: functions that do it, in place, and say it in words."""
    if any(isinstance(outer, ast.Raise) for outer in parents):
        return []  # what an error says is not judged
    makers = (other_operators, other_numbers, other_names, no_sign, fewer_calls, fewer_arguments, fewer_statements)
    return [change for maker in makers for change in maker(node, parents)]


def other_operators(node, _):
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        for operator in OPERATORS.get(type(node.op), []):
            yield spelt(node, lambda operator=operator: setattr(node, "op", operator()))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for operator in OPERATORS.get(type(node.ops[0]), []):
            yield spelt(node, lambda operator=operator: setattr(node, "ops", [operator()]))


def other_numbers(node, parents):
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        others = [not node.value] if type(node.value) is bool else [node.value + 1, node.value - 1]
        for value in others:
            yield spelt(around(parents), lambda value=value: setattr(node, "value", value))


def other_names(node, _):
    if isinstance(node, ast.Attribute):
        for name in NAMES.get(node.attr, []):
            yield spelt(node, lambda name=name: setattr(node, "attr", name))


def no_sign(node, parents):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        shown = around(parents) if isinstance(node.operand, ast.Constant) else node
        yield spelt(shown, lambda: become(node, node.operand))


def fewer_calls(node, _):
    if isinstance(node, ast.Call):
        inner = node.func.value if isinstance(node.func, ast.Attribute) else None
        on_module = isinstance(inner, ast.Name) and inner.id in ("torch", "math", "np", "functools", "itertools")
        if inner is not None and not on_module:
            yield spelt(node, lambda: become(node, node.func.value))
        elif len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
            yield spelt(node, lambda: become(node, node.args[0]))


def fewer_arguments(node, _):
    if isinstance(node, ast.Call):
        for place, keyword in enumerate(node.keywords):
            if keyword.arg and keyword.arg != "device":  # which changes nothing where there is one processor
                yield spelt(node, lambda place=place: node.keywords.pop(place))


def fewer_statements(node, _):
    if isinstance(node, (ast.FunctionDef, ast.For, ast.If, ast.While, ast.With)):
        for place, statement in enumerate(node.body):
            if isinstance(statement, (ast.Expr, ast.Assign, ast.AugAssign, ast.If, ast.For)):
                yield lambda place=place: left_out(node, place)


def around(parents):
    """The node in which a constant is recognised: `x.amax(-1)` for the -1 in it."""
    return next(node for node in reversed(parents) if not isinstance(node, (ast.UnaryOp, ast.Slice, ast.keyword)))


def spelt(shown, change):
    """A function that makes a change and says how it is seen in a node: "a + b -> a - b"."""

    def change_it():
        before = ast.unparse(shown)
        change()
        return f"{before} -> {ast.unparse(shown)}"

    return change_it


def become(node, other):
    """Turn a node into another, in place."""
    node.__class__ = other.__class__
    fields = dict(vars(other))
    node.__dict__.clear()
    node.__dict__.update(fields)


def left_out(node, index):
    """Leave a statement out of a body, and say which."""
    words = first_line(node.body[index])
    node.body[index] = ast.Pass()
    return f"without: {words}"
