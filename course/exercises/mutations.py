"""Generic mutations of an answer key: what a check that compares too little would let through.

Each changes one thing that a typing error or a wrong thought changes: an operator, a constant, a dtype, an axis, an end
of a range, or a call or a statement that is left out.
"""

import ast
import copy

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
    tree = ast.parse(source_of(key))
    found = {}
    for index, node in enumerate(ast.walk(tree)):
        for number in range(len(changes_of(node))):
            changed = copy.deepcopy(tree)
            twin = next(other for place, other in enumerate(ast.walk(changed)) if place == index)
            words = changes_of(twin)[number]()
            try:
                mutant = built(key, ast.unparse(ast.fix_missing_locations(changed)))
            except (SyntaxError, NameError, TypeError):
                continue
            while words in found:
                words += " (again)"
            found[words] = mutant
    return found


def changes_of(node):
    """What can be done to a node of the tree: functions that do it, in place, and say it in words."""
    changes = []
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        changes += [spelt(node, lambda n, op=op: setattr(n, "op", op())) for op in OPERATORS.get(type(node.op), [])]
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        changes += [
            spelt(node, lambda n, op=op: setattr(n, "ops", [op()])) for op in OPERATORS.get(type(node.ops[0]), [])
        ]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        changes += [spelt(node, lambda n, step=step: setattr(n, "value", n.value + step)) for step in (1, -1)]
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        changes.append(spelt(node, lambda n: setattr(n, "value", not n.value)))
    if isinstance(node, ast.Attribute):
        changes += [spelt(node, lambda n, name=name: setattr(n, "attr", name)) for name in NAMES.get(node.attr, [])]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        changes.append(spelt(node, lambda n: become(n, n.operand)))
    if isinstance(node, ast.Call):
        inner = node.func.value if isinstance(node.func, ast.Attribute) else None
        on_module = isinstance(inner, ast.Name) and inner.id in ("torch", "math", "np", "functools", "itertools")
        if inner is not None and not on_module:
            changes.append(spelt(node, lambda n: become(n, n.func.value)))
        elif len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
            changes.append(spelt(node, lambda n: become(n, n.args[0])))
        changes += [
            spelt(node, lambda n, i=i: n.keywords.pop(i)) for i, keyword in enumerate(node.keywords) if keyword.arg
        ]
    if isinstance(node, (ast.FunctionDef, ast.For, ast.If, ast.While, ast.With)):
        changes += [
            lambda i=i: left_out(node, i)
            for i, statement in enumerate(node.body)
            if isinstance(statement, (ast.Expr, ast.Assign, ast.AugAssign, ast.If, ast.For))
            and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        ]
    return changes


def spelt(node, change):
    """A function that changes the node and says how: "a + b -> a - b"."""

    def change_it():
        before = ast.unparse(node)
        change(node)
        return f"{before} -> {ast.unparse(node)}"

    return change_it


def become(node, other):
    """Turn a node into another, in place."""
    node.__class__ = other.__class__
    fields = dict(vars(other))
    node.__dict__.clear()
    node.__dict__.update(fields)


def left_out(node, index):
    """Leave a statement out of a body, and say which."""
    words = ast.unparse(node.body[index]).split("\n")[0]
    node.body[index] = ast.Pass()
    return f"without: {words}"
