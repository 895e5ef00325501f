"""Exercises of lesson 8: per group quantization."""

import torch

from course.exercises.exercise import Case, Exercise, Words
from course.exercises.mistakes import Mistake, edit
from qlib.affine import expand_groups, split_groups

COUNT = torch.arange(1.0, 19.0).reshape(3, 6)
RAGGED = torch.arange(1.0, 21.0).reshape(2, 10)
LAYERS = torch.arange(1.0, 31.0).reshape(2, 3, 5)


# ---------------------------------------------------------------- 08.1 split_groups

PAD = "torch.nn.functional.pad(tensor, (0, -tensor.shape[-1] % group_size))"


def which_column(args, index):
    tensor, group_size = args
    *_, group, place = index
    column = group * group_size + place
    where = f"place {place} of group {group}"
    return f"{where} is column {column}" if column < tensor.shape[-1] else f"{where} is beyond the last column"


SPLIT_GROUPS = Exercise(
    id="08.1",
    name="split_groups",
    key=split_groups,
    cases=[
        Case("a 3x6 matrix in groups of 3", (COUNT, 3)),
        Case("a 2x10 matrix in groups of 4", (RAGGED, 4)),
        Case("a 3x6 matrix in groups of 2", (COUNT, 2)),
        Case("a 3x6 matrix in groups of 5", (COUNT, 5)),
        Case("a row of 7 in groups of 3", (torch.arange(1.0, 8.0), 3)),
        Case("a tensor of three dimensions in groups of 2", (LAYERS, 2)),
        Case("groups of 8, longer than the row of 6", (COUNT, 8)),
        Case("groups of 1", (COUNT, 1)),
        Case("a 2x10 matrix of int8 in groups of 4", (RAGGED.to(torch.int8), 4)),
    ],
    mistakes=[
        Mistake(edit(PAD, "tensor"), "with no filler: 10 columns are not whole groups of 4; unflatten does not guess"),
        Mistake(edit(PAD, "tensor", "unflatten(-1, (", "reshape((*tensor.shape[:-1], "), "with no filler: 10 columns are not whole groups of 4; reshape does not guess"),
        Mistake(
            edit(PAD, "tensor", "unflatten(-1, (-1", "reshape((*tensor.shape[:-1], tensor.shape[-1] // group_size"), "with the groups counted by a division that rounds down: 10 // 4 forgets the rest"
        ),
        Mistake(edit("    filled", "    assert tensor.shape[-1] % group_size == 0\n    filled"), "with an assert that the groups come out even, as in the video course; fill them up"),
        Mistake(edit(PAD, "tensor[..., : tensor.shape[-1] // group_size * group_size]"), "with what lies after the last whole group left out"),
        Mistake(edit("(0, ", "(", "% group_size)", "% group_size, 0)"), "with the filler on the left, which moves every weight to another place"),
        Mistake(edit("(0, -", "(0, 0, 0, -"), "with the filler below the last row; it belongs at the end of each row"),
        Mistake(edit("-tensor", "tensor"), "with columns % group_size zeros: that is how many columns are left over, not how many are missing"),
        Mistake(edit("% group_size)", "% group_size), value=1"), "with ones as filler; a one may be the largest number of its group, and a zero changes nothing"),
        Mistake(edit("    return", "    filled[..., tensor.shape[-1] :] = tensor[..., -1:]\n    return"), "with the last value as filler; the filler is zeros"),
        Mistake(edit(PAD, "tensor[..., torch.arange(tensor.shape[-1] + -tensor.shape[-1] % group_size) % tensor.shape[-1]]"), "with the start of the row as filler; the filler is zeros"),
        Mistake(edit("-tensor", "group_size - tensor"), "with a whole group of filler where none is needed; take the remainder once more, % group_size"),
        Mistake(edit("pad(tensor", "pad(tensor.float()"), "with a filler of float32, which pulls other dtypes along"),
        Mistake(edit("(-1, group_size))", "(group_size, -1)).mT"), "with the columns dealt out to the groups in turn, like cards; a group is a run of neighbours"),
        Mistake(edit("(-1, group_size)", "(group_size, -1)"), "with group_size taken for the number of groups"),
        Mistake(edit("(-1, group_size))", "(-1, group_size)).mT"), "with the last two dimensions the wrong way round: (..., groups, group_size)"),
        Mistake(edit("(-1, group_size))", "(-1, group_size)).movedim(-2, 0)"), "with the groups in front of the rows: (..., groups, group_size)"),
        Mistake(edit("unflatten(-1, (", "reshape(("), "with the groups of all rows in one stack; the rows keep a dimension"),
        Mistake(
            edit("    return", "    long = torch.nn.functional.pad(tensor.flatten(), (0, filled.numel() - tensor.numel()))\n    filled = long.reshape(filled.shape)\n    return"),
            "with the rows joined before they are cut, so that a group runs on into the next row",
        ),
        Mistake(edit("    filled", "    tensor = tensor.T\n    filled"), "with groups down the columns; they run along a row"),
        Mistake(edit("    filled", "    rows, columns = tensor.shape\n    filled"), "with two dimensions taken for granted; a row has one, and there may be three"),
        Mistake(edit("filled.unflatten(-1, (-1, group_size))", "tensor.split(group_size, dim=-1)"), "with the pieces still apart, and the last one shorter"),
        Mistake(edit(".unflatten(-1, (-1, group_size))", ""), "with the filler in place but the row not cut yet"),
        Mistake(
            edit("filled.unflatten(-1, (-1, group_size))", "torch.stack(filled.split(group_size, dim=-1), dim=1)"), "with the groups stacked along dimension 1; they belong in the last but one, -2"
        ),
        Mistake(edit("filled.unflatten(-1, (-1, group_size))", "torch.stack(tensor.split(group_size, dim=-1), dim=-2)"), "with pieces of unequal length, which stack refuses; fill the row up first"),
        Mistake(edit("-tensor.shape[-1] % group_size", "group_size - tensor.shape[-1]"), "with group_size - columns zeros, which is right for a single group alone"),
    ],
    hints=[
        "First make each row as long as a whole number of groups, with zeros at its right end. Then cut.",
        r"The zeros that are missing: the smallest number that makes columns + filler a multiple of group_size. In Python "
        "`-columns % group_size` is just that, and it is 0 where the groups come out even.",
        "`torch.nn.functional.pad(tensor, (left, right))` pads the last dimension with zeros and keeps the dtype; "
        "`.unflatten(-1, (-1, n))` cuts the last dimension into runs of n and works for any number of dimensions.",
    ],
    explain=which_column,
)


# ---------------------------------------------------------------- 08.2 expand_groups

SCALES = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.05, 2.0]])
RAGGED_SCALES = torch.tensor([[0.9, 0.4, 0.8], [0.3, 0.5, 0.06]])
ZERO_POINTS = torch.tensor([[-8, 3, 7], [0, -1, 5]], dtype=torch.int8)
NINE = RAGGED[:, :9]

SPREAD = "qparam.repeat_interleave(group_size, dim=-1)[..., :columns]"
UNEQUAL, OTHER_COUNT = "if columns % groups", "if -(-columns // group_size) != groups"  # what is refused


def refuses(answer, qparam, tensor, group_size=None):
    """In words, what an answer does with scales that do not cover the columns."""
    try:
        result = answer(qparam, tensor, group_size)
    except ValueError:
        return Words("a ValueError")
    except Exception as error:
        return Words(f"nothing and raised {type(error).__name__}")
    return Words(f"a tensor of shape {tuple(result.shape)}")


def which_group(args, index):
    qparam, tensor, *group_size = args
    size = (group_size or [None])[0] or tensor.shape[-1] // qparam.shape[-1]
    return f"column {index[-1]} is in group {index[-1]} // {size} = {index[-1] // size}"


EXPAND_GROUPS = Exercise(
    id="08.2",
    name="expand_groups",
    key=expand_groups,
    cases=[
        Case("two scales a row and six columns", (SCALES, COUNT, 3)),
        Case("two scales and a single row of five columns in groups of 3", (SCALES[:1], COUNT[:1, :5], 3)),
        Case("two scales a row, six columns and no group_size", (SCALES, COUNT)),
        Case("two rows, two scales a row and six columns", (SCALES[:2], COUNT[:2], 3)),
        Case("three scales a row and ten columns in groups of 4", (RAGGED_SCALES, RAGGED, 4)),
        Case("three scales a row and nine columns in groups of 4", (RAGGED_SCALES, NINE, 4)),
        Case("int8 zero points and ten columns in groups of 4", (ZERO_POINTS, RAGGED, 4)),
        Case("one scale a row, as per row", (SCALES[:, :1], COUNT)),
        Case("one scale a column, as per column", (COUNT[:1] / 10, COUNT)),
        Case("a single scale, a tensor of shape ()", (torch.tensor(0.5), COUNT)),
        Case("a scale that is a plain number", (0.5, COUNT)),
        Case("one group of 8, longer than the row", (SCALES[:, :1], COUNT, 8)),
        Case("three scales a row, ten columns and no group_size", (RAGGED_SCALES, RAGGED), use=refuses),
        Case("three scales and ten columns in groups of 2, which need five", (RAGGED_SCALES, RAGGED, 2), use=refuses),
        Case("three scales and ten columns in groups of 5, which need two", (RAGGED_SCALES, RAGGED, 5), use=refuses),
    ],
    mistakes=[
        Mistake(edit("repeat_interleave(group_size, dim=-1)", "repeat(1, group_size)"), "with repeat, which lays the scales end to end; repeat_interleave keeps copies together"),
        Mistake(edit("dim=-1", "dim=0"), "with the copies along the rows; a group covers columns, dim=-1"),
        Mistake(edit(", dim=-1", ""), "without dim: repeat_interleave then makes one long vector of everything"),
        Mistake(edit("[..., :columns]", ""), "with no cut at the right end: the last group covers fewer columns"),
        Mistake(edit(":columns", "-columns:"), "with the cut at the left end; it is the last group that is shorter"),
        Mistake(edit("(group_size, dim", "(-(-columns // groups), dim"), "with the group size calculated from the number of scales although it was given"),
        Mistake(edit(UNEQUAL, "if False", OTHER_COUNT, "if False"), "with a group size that is rounded down where the scales do not cover the columns evenly"),
        Mistake(
            edit(UNEQUAL, "if False", OTHER_COUNT, "if False", "= columns // groups", "= -(-columns // groups)"),
            "with a guess at the group size: three groups of ten may be 4 + 4 + 2 or 5 + 4 + 1, so raise ValueError",
        ),
        Mistake(edit(OTHER_COUNT, "if False"), "with no check whether groups of the given size need that many scales"),
        Mistake(edit(UNEQUAL, "if False"), "with no check whether the groups can be equal where no size is given"),
        Mistake(edit("-(-columns // group_size) != groups", "columns % group_size"), "with an error where the last group is shorter; it may be"),
        Mistake(edit("-(-columns // group_size) != groups", "columns // group_size != groups"), "with columns // group_size groups; a shorter last group counts too, so round up"),
        Mistake(edit("ValueError(f", "AssertionError(f", "ValueError(\n", "AssertionError(\n"), "with an assert; the text asks for a ValueError"),
        Mistake(edit("if group_size is None", "if False", OTHER_COUNT, "if False"), "with a group size taken for granted; without it the groups are of equal size"),
        Mistake(
            edit(
                "ndim, 1):\n        return qparam",
                "ndim, 1):\n        return torch.as_tensor(qparam).expand(tensor.shape)",
                "[-1]):\n        return qparam",
                "[-1]):\n        return qparam.expand(tensor.shape)",
            ),
            "with every scale spread out; what broadcasts already comes back as it is",
        ),
        Mistake(edit("in (1, tensor.shape[-1])", "== tensor.shape[-1]"), "with a scale per row spread out; it broadcasts"),
        Mistake(edit("not isinstance(qparam, torch.Tensor) or ", ""), "with a scale that is a plain number treated as a tensor; it comes back as it is"),
        Mistake(edit("not isinstance(qparam, torch.Tensor) or qparam.ndim", "len(qparam.shape)"), "with the shape of a plain number, which has none; it comes back as it is"),
        Mistake(edit("    if not", "    rows, groups = qparam.shape\n    if not"), "with two dimensions taken for granted; a single scale has none"),
        Mistake(
            edit("qparam.shape[-1] in (1, tensor.shape[-1])", "False", UNEQUAL, "if False", OTHER_COUNT, "if False"),
            "with every matrix of scales taken for a scale per group; one per row or column has a 1 in its shape",
        ),
        Mistake(edit("(1, tensor.shape[-1])", "(1, tensor.shape[-1]) or qparam.shape[0] == 1"), "when one row of scales is taken for a scale per column; a matrix of one row may have groups, too"),
        Mistake(edit("    if not", "    return qparam\n    if not"), "with the scales as they came: two scales a row do not broadcast against six columns"),
        Mistake(edit("return qparam.rep", "return qparam.float().rep"), "with a float result; zero points stay int8"),
        Mistake(edit(":columns]", ":columns] * tensor"), "with the tensor multiplied in; only its shape matters here"),
        Mistake(edit(SPREAD, "qparam.unsqueeze(-1)"), "with a dimension added; it fits the groups and not the columns"),
        Mistake(edit(SPREAD, "qparam[:, torch.arange(columns) * groups // columns]"), "with the scales stretched evenly over the columns; each covers group_size of them, the last one the rest"),
        Mistake(
            edit(
                "not isinstance(qparam, torch.Tensor) or qparam.ndim < max(tensor.ndim, 1)", "False", "qparam.shape[-1] in (1, tensor.shape[-1])", "False", UNEQUAL, "if False", OTHER_COUNT, "if False"
            ),
            "with no look at what comes in; a number, a scale per row and one per column come back as they came",
        ),
        Mistake(edit("    if not", "    if group_size is None:\n        return qparam\n    if not"), "when nothing is spread out without a group_size; the groups are of equal size then"),
        Mistake(edit("!= groups", "> groups"), "with too few scales refused, and too many let through"),
        Mistake(edit("    if not", "    return qparam.expand(tensor.shape)\n    if not"), "with expand, which stretches dimensions of size 1 alone; repeat_interleave makes copies"),
    ],
    equivalent=dict.fromkeys(
        [
            "max(tensor.ndim, 1) -> max(tensor.ndim, 2)",
            "max(tensor.ndim, 1) -> max(tensor.ndim, 0)",
            "qparam.shape[-1] -> qparam.shape[1]",
            "tensor.shape[-1] -> tensor.shape[1]",
            "columns, groups = (tensor.shape[-1], qparam.shape[-1]) -> columns, groups = (tensor.shape[1], qparam.shape[-1])",
            "columns, groups = (tensor.shape[-1], qparam.shape[-1]) -> columns, groups = (tensor.shape[-1], qparam.shape[1])",
            "qparam.repeat_interleave(group_size, dim=-1) -> qparam.repeat_interleave(group_size, dim=1)",
        ],
        "the tensor has two dimensions, rows and columns, of which the last is number 1",
    ),
    hints=[
        "Column c belongs to group c // group_size. Each scale has to stand group_size times side by side, in its row.",
        "Three steps: give back what broadcasts already (no tensor, too few dimensions, 1 or all columns in the last one); "
        "find the group size, and raise ValueError if ceil(columns / group_size) is not the number of scales; spread and cut.",
        "`qparam.repeat_interleave(n, dim=...)` repeats each element n times in place. The last group may be shorter: slice the result to the number of columns.",
    ],
    explain=which_group,
)

EXERCISES = [SPLIT_GROUPS, EXPAND_GROUPS]
