"""Exercises of lesson 8: per group quantization."""

import torch

from course.exercises.exercise import Case, Exercise, Mistake, Words
from qlib.affine import expand_groups, split_groups

pad = torch.nn.functional.pad

COUNT = torch.arange(1.0, 19.0).reshape(3, 6)
RAGGED = torch.arange(1.0, 21.0).reshape(2, 10)
LAYERS = torch.arange(1.0, 31.0).reshape(2, 3, 5)


# ---------------------------------------------------------------- 08.1 split_groups


def filled_up(tensor, group_size, **how):
    return pad(tensor, (0, -tensor.shape[-1] % group_size), **how)


def leaves_no_room(tensor, group_size):
    return tensor.unflatten(-1, (-1, group_size))


def reshapes_as_it_is(tensor, group_size):
    return tensor.reshape(*tensor.shape[:-1], -1, group_size)


def counts_whole_groups_only(tensor, group_size):
    return tensor.reshape(*tensor.shape[:-1], tensor.shape[-1] // group_size, group_size)


def asserts_that_it_divides(tensor, group_size):
    assert tensor.shape[-1] % group_size == 0
    return leaves_no_room(tensor, group_size)


def drops_the_rest(tensor, group_size):
    whole = tensor.shape[-1] // group_size * group_size
    return leaves_no_room(tensor[..., :whole], group_size)


def pads_on_the_left(tensor, group_size):
    return leaves_no_room(pad(tensor, (-tensor.shape[-1] % group_size, 0)), group_size)


def pads_with_ones(tensor, group_size):
    return leaves_no_room(filled_up(tensor, group_size, value=1), group_size)


def pads_with_the_last_value(tensor, group_size):
    filler = tensor[..., -1:].expand(*tensor.shape[:-1], -tensor.shape[-1] % group_size)
    return leaves_no_room(torch.cat([tensor, filler], dim=-1), group_size)


def starts_the_row_again(tensor, group_size):
    columns = torch.arange(tensor.shape[-1] + -tensor.shape[-1] % group_size) % tensor.shape[-1]
    return leaves_no_room(tensor[..., columns], group_size)


def always_pads(tensor, group_size):
    return leaves_no_room(pad(tensor, (0, group_size - tensor.shape[-1] % group_size)), group_size)


def pads_with_float32(tensor, group_size):
    filler = torch.zeros(*tensor.shape[:-1], -tensor.shape[-1] % group_size)
    return leaves_no_room(torch.cat([tensor, filler], dim=-1), group_size)


def deals_like_cards(tensor, group_size):
    return filled_up(tensor, group_size).unflatten(-1, (group_size, -1)).transpose(-1, -2)


def takes_the_size_for_the_count(tensor, group_size):
    return filled_up(tensor, group_size).unflatten(-1, (group_size, -1))


def lays_groups_in_columns(tensor, group_size):
    return split_groups(tensor, group_size).transpose(-1, -2)


def puts_the_groups_first(tensor, group_size):
    return torch.stack(filled_up(tensor, group_size).split(group_size, dim=-1))


def stacks_all_groups(tensor, group_size):
    return filled_up(tensor, group_size).reshape(-1, group_size)


def joins_the_rows_first(tensor, group_size):
    groups = -(-tensor.shape[-1] // group_size)
    rows = tensor.shape[:-1].numel()
    filler = rows * groups * group_size - tensor.numel()
    return pad(tensor.flatten(), (0, filler)).reshape(*tensor.shape[:-1], groups, group_size)


def groups_down_the_columns(tensor, group_size):
    return split_groups(tensor.mT.contiguous(), group_size)


def returns_the_pieces(tensor, group_size):
    return tensor.split(group_size, dim=-1)


def forgets_to_group(tensor, group_size):
    return filled_up(tensor, group_size)


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
        Mistake(
            leaves_no_room, "with no filler: 10 columns do not make whole groups of 4, and unflatten will not guess"
        ),
        Mistake(
            reshapes_as_it_is, "with no filler: 10 columns do not make whole groups of 4, and reshape will not guess"
        ),
        Mistake(
            counts_whole_groups_only, "with the groups counted by a division that rounds down: 10 // 4 forgets the rest"
        ),
        Mistake(
            asserts_that_it_divides,
            "with an assert that the groups come out even, as in the video course; fill them up",
        ),
        Mistake(drops_the_rest, "with the columns after the last whole group left out"),
        Mistake(pads_on_the_left, "with the filler on the left, which moves every weight to another place"),
        Mistake(
            pads_with_ones,
            "with ones as filler; a one may be the largest number of its group, and a zero changes nothing",
        ),
        Mistake(pads_with_the_last_value, "with the last value as filler; the filler is zeros"),
        Mistake(starts_the_row_again, "with the start of the row as filler; the filler is zeros"),
        Mistake(
            always_pads, "with a whole group of filler where none is needed; take the remainder once more, % group_size"
        ),
        Mistake(pads_with_float32, "with a filler of float32, which pulls other dtypes along; the dtype stays"),
        Mistake(
            deals_like_cards,
            "with the columns dealt out to the groups in turn, like cards; a group is a run of neighbours",
        ),
        Mistake(takes_the_size_for_the_count, "with group_size taken for the number of groups"),
        Mistake(lays_groups_in_columns, "with the last two dimensions the wrong way round: (..., groups, group_size)"),
        Mistake(puts_the_groups_first, "with the groups in front of the rows: (..., groups, group_size)"),
        Mistake(stacks_all_groups, "with the groups of all rows in one stack; the rows keep a dimension of their own"),
        Mistake(
            joins_the_rows_first, "with the rows joined before they are cut, so that a group runs on into the next row"
        ),
        Mistake(groups_down_the_columns, "with groups that run down the columns; they run along a row"),
        Mistake(returns_the_pieces, "with the pieces still apart, and the last one shorter"),
        Mistake(forgets_to_group, "with the filler in place but the row not cut yet"),
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


def is_one_a_group(qparam, tensor):
    """Whether a scale needs spreading at all, as the key tells it."""
    return (
        isinstance(qparam, torch.Tensor)
        and qparam.ndim == tensor.ndim
        and qparam.shape[-1] not in (1, tensor.shape[-1])
    )


def checked_size(qparam, tensor, group_size):
    """The group size, or the key's own ValueError."""
    expand_groups(qparam, tensor, group_size)
    return group_size or tensor.shape[-1] // qparam.shape[-1]


def lays_the_scales_end_to_end(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    size = checked_size(qparam, tensor, group_size)
    return qparam.repeat(1, size)[..., : tensor.shape[-1]]


def repeats_rows(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    return qparam.repeat_interleave(checked_size(qparam, tensor, group_size), dim=0)


def repeats_without_a_dimension(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    return qparam.repeat_interleave(checked_size(qparam, tensor, group_size))


def forgets_to_cut(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    return qparam.repeat_interleave(checked_size(qparam, tensor, group_size), dim=-1)


def cuts_on_the_left(qparam, tensor, group_size=None):
    return (
        forgets_to_cut(qparam, tensor, group_size)[..., -tensor.shape[-1] :]
        if is_one_a_group(qparam, tensor)
        else qparam
    )


def ignores_the_group_size(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    checked_size(qparam, tensor, group_size)
    size = -(-tensor.shape[-1] // qparam.shape[-1])
    return qparam.repeat_interleave(size, dim=-1)[..., : tensor.shape[-1]]


def rounds_the_size_down(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    size = group_size or tensor.shape[-1] // qparam.shape[-1]
    return qparam.repeat_interleave(size, dim=-1)[..., : tensor.shape[-1]]


def guesses_the_size(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    size = group_size or -(-tensor.shape[-1] // qparam.shape[-1])
    return qparam.repeat_interleave(size, dim=-1)[..., : tensor.shape[-1]]


def only_checks_without_a_size(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    size = group_size or checked_size(qparam, tensor, None)
    return qparam.repeat_interleave(size, dim=-1)[..., : tensor.shape[-1]]


def expands_everything(qparam, tensor, group_size=None):
    if is_one_a_group(qparam, tensor):
        return expand_groups(qparam, tensor, group_size)
    return torch.as_tensor(qparam).expand(tensor.shape)


def expands_a_scale_per_row(qparam, tensor, group_size=None):
    if isinstance(qparam, torch.Tensor) and qparam.shape == (tensor.shape[0], 1):
        return qparam.expand(tensor.shape)
    return expand_groups(qparam, tensor, group_size)


def expects_a_tensor(qparam, tensor, group_size=None):
    if qparam.ndim < tensor.ndim:
        return qparam
    return expand_groups(qparam, tensor, group_size)


def expects_two_dimensions(qparam, tensor, group_size=None):
    rows, groups = qparam.shape
    return expand_groups(qparam, tensor, group_size)


def expects_groups(qparam, tensor, group_size=None):
    if not isinstance(qparam, torch.Tensor) or qparam.ndim < 2:
        return qparam
    size = group_size or tensor.shape[-1] // qparam.shape[-1]
    return qparam.repeat_interleave(size, dim=-1)[..., : tensor.shape[-1]]


def takes_a_single_row_for_a_scale_per_column(qparam, tensor, group_size=None):
    if isinstance(qparam, torch.Tensor) and qparam.ndim == 2 and qparam.shape[0] == 1:
        return qparam
    return expand_groups(qparam, tensor, group_size)


def changes_nothing(qparam, tensor, group_size=None):
    return qparam


def makes_a_float(qparam, tensor, group_size=None):
    spread = expand_groups(qparam, tensor, group_size)
    return spread.float() if is_one_a_group(qparam, tensor) else spread


def multiplies(qparam, tensor, group_size=None):
    spread = expand_groups(qparam, tensor, group_size)
    return spread * tensor if is_one_a_group(qparam, tensor) else spread


def adds_a_dimension(qparam, tensor, group_size=None):
    return qparam.unsqueeze(-1) if is_one_a_group(qparam, tensor) else qparam


def interpolates(qparam, tensor, group_size=None):
    if not is_one_a_group(qparam, tensor):
        return qparam
    checked_size(qparam, tensor, group_size)
    stretched = torch.nn.functional.interpolate(qparam.float().unsqueeze(0), tensor.shape[-1], mode="nearest")
    return stretched.squeeze(0).to(qparam.dtype)


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
        Case("three scales a row and ten columns in groups of 4", (RAGGED_SCALES, RAGGED, 4)),
        Case("three scales a row and nine columns in groups of 4", (RAGGED_SCALES, NINE, 4)),
        Case("int8 zero points and ten columns in groups of 4", (ZERO_POINTS, RAGGED, 4)),
        Case("one scale a row, as per row", (SCALES[:, :1], COUNT)),
        Case("one scale a column, as per column", (COUNT[:1] / 10, COUNT)),
        Case("a single scale, a tensor of shape ()", (torch.tensor(0.5), COUNT)),
        Case("a scale that is a plain number", (0.5, COUNT)),
        Case("one group of 8, longer than the row", (SCALES[:, :1], COUNT, 8)),
        Case("three scales a row, ten columns and no group_size", (RAGGED_SCALES, RAGGED), use=refuses),
        Case(
            "three scales a row and ten columns in groups of 2, which need five",
            (RAGGED_SCALES, RAGGED, 2),
            use=refuses,
        ),
        Case(
            "three scales a row and ten columns in groups of 5, which need two", (RAGGED_SCALES, RAGGED, 5), use=refuses
        ),
    ],
    mistakes=[
        Mistake(
            lays_the_scales_end_to_end,
            "with repeat, which lays the scales end to end; repeat_interleave keeps copies together",
        ),
        Mistake(repeats_rows, "with the copies along the rows; a group covers columns, dim=-1"),
        Mistake(repeats_without_a_dimension, "without dim: repeat_interleave then makes one long vector of everything"),
        Mistake(forgets_to_cut, "with no cut at the right end: the last group covers fewer columns than the others"),
        Mistake(cuts_on_the_left, "with the cut at the left end; it is the last group that is shorter"),
        Mistake(
            ignores_the_group_size, "with the group size calculated from the number of scales although it was given"
        ),
        Mistake(
            rounds_the_size_down,
            "with a group size that is rounded down where the scales do not cover the columns evenly",
        ),
        Mistake(
            guesses_the_size,
            "with a guess at the group size: three groups of ten may be 4 + 4 + 2 or 5 + 4 + 1, so raise ValueError",
        ),
        Mistake(
            only_checks_without_a_size, "with no look at whether the groups of the given size need that many scales"
        ),
        Mistake(expands_everything, "with every scale spread out; what broadcasts already comes back as it is"),
        Mistake(expands_a_scale_per_row, "with a scale per row spread out too; it broadcasts as it is"),
        Mistake(expects_a_tensor, "with a scale that is a plain number treated as a tensor; it comes back as it is"),
        Mistake(expects_two_dimensions, "with two dimensions taken for granted; a single scale has none"),
        Mistake(
            expects_groups,
            "with every matrix of scales taken for a scale per group; one per row or column has a 1 in its shape",
        ),
        Mistake(
            takes_a_single_row_for_a_scale_per_column,
            "when one row of scales is taken for a scale per column; a matrix of one row may have groups, too",
        ),
        Mistake(changes_nothing, "with the scales as they came: two scales a row do not broadcast against six columns"),
        Mistake(makes_a_float, "with a result in float; zero points stay int8"),
        Mistake(multiplies, "with the tensor multiplied in; only its shape matters here"),
        Mistake(adds_a_dimension, "with a dimension added, which fits the groups and not the columns"),
        Mistake(
            interpolates,
            "with the scales stretched evenly over the columns; each covers group_size of them, the last one the rest",
        ),
    ],
    hints=[
        "Column c belongs to group c // group_size. Each scale has to stand group_size times side by side, in its row.",
        "Three steps: give back what broadcasts already (no tensor, too few dimensions, 1 or all columns in the last one); "
        "find the group size, and raise ValueError if ceil(columns / group_size) is not the number of scales; spread and cut.",
        "`qparam.repeat_interleave(n, dim=...)` repeats each element n times in place. The last group may be shorter: "
        "slice the result to the number of columns.",
    ],
    explain=which_group,
)

EXERCISES = [SPLIT_GROUPS, EXPAND_GROUPS]
