"""Exercises of lesson 15: packing 2-bit weights."""

import sys

import torch

from course.exercises.exercise import Case, Exercise, Property
from course.exercises.mistakes import Mistake, edit
from qlib.packing import pack, pack_loop

FOUR = torch.tensor([1, 0, 3, 2], dtype=torch.uint8)
EIGHT = torch.tensor([1, 0, 3, 2, 3, 3, 3, 3], dtype=torch.uint8)
FIVE = torch.tensor([1, 0, 3, 2, 3], dtype=torch.uint8)
LAST_BYTE_0 = torch.tensor([1, 0, 3, 2, 1, 0, 3, 2, 0], dtype=torch.uint8)
NIBBLES = torch.tensor([5, 14, 9, 3, 12, 7, 1], dtype=torch.uint8)
ONES = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1], dtype=torch.uint8)
UP_TO_255 = torch.tensor([200, 3, 129])
# 5 is 101 and -1 is all ones: at 2 bits 1 and 3 are left of them.
TOO_WIDE = torch.tensor([0, 5, 2, -1, 4, 3], dtype=torch.int64)


# ---------------------------------------------------------------- 15.1 pack_loop

MASK, SIZE = " & (2**bits - 1)", "math.ceil(len(values) * bits / 8)"


def how_packed(args, index):
    """The byte's bits, as the answer should have them."""
    octet = pack(*args)[index].item()
    return f"this byte should be {octet:08b}"


PACK_LOOP = Exercise(
    id="15.1",
    name="pack_loop",
    key=pack_loop,
    cases=[
        Case("[1, 0, 3, 2] and 2 bits", (FOUR, 2)),
        Case("[1, 0, 3, 2, 3, 3, 3, 3] and 2 bits", (EIGHT, 2)),
        Case("[1, 0, 3, 2, 3], which does not fill two bytes, and 2 bits", (FIVE, 2)),
        Case("[0, 5, 2, -1, 4, 3], of which 2 bits are kept", (TOO_WIDE, 2)),
        Case("seven values of 4 bits", (NIBBLES, 4)),
        Case("eleven values of 1 bit", (ONES, 1)),
        Case("three values of 8 bits", (UP_TO_255, 8)),
        Case("[1, 0, 3, 2, 1, 0, 3, 2, 0], of which the last byte is 0, and 2 bits", (LAST_BYTE_0, 2)),
        Case("no values at all", (FOUR[:0], 2)),
    ],
    mistakes=[
        Mistake(edit("<< offset", "<< 8 - bits - offset"), "with the first value in the highest bits; begin with the lowest"),
        Mistake(edit("<< offset", "<< offset // bits"), "with a shift by the index; each value takes `bits` places"),
        Mistake(edit("<< offset", "<< offset // bits * 8"), "with a shift by 8 times the index, past the byte's end"),
        Mistake(edit("code << offset", "code"), "with no shift: the values of a byte lie one over the other"),
        Mistake(edit("<< offset", "<< i * bits"), "with all shifts counted from the first byte; after eight bits the next one begins, at shift 0 again"),
        Mistake(edit(MASK, ""), "with no mask: the upper bits of a value that is too wide spill into its neighbour"),
        Mistake(edit(MASK, "", "|= (", "+= ("), "with no mask, and a sum: the upper bits are added to its neighbour"),
        Mistake(edit("|= (", "= ("), "with = in place of |=: each value wipes out those that are in the byte already"),
        Mistake(edit("torch.tensor(packed", "torch.tensor(packed[: len(values) * bits // 8]"), "when the last values are dropped where they do not fill a byte; round up"),
        Mistake(edit(SIZE, "(len(values) * bits // 8)"), "with an index out of range where the last byte is not full; round the bytes up"),
        Mistake(edit(SIZE, "(len(values) * bits // 8 + 1)"), "with count * bits // 8 + 1 bytes, one too many where the last is full"),
        Mistake(edit("    return", "    packed = packed[:-1] if packed[-1:] == [0] else packed\n    return"), "with a last byte of 0 left out; its values are zeros, and count like any others"),
        Mistake(edit("value & (2**bits - 1)", "min(max(value, 0), 2**bits - 1)"), "with a clamp; a value that is too wide keeps its lowest bits, so take & with a mask"),
        Mistake(edit("i * bits", "(i + -len(values) % (8 // bits)) * bits"), "with the filling before the first value; it comes after the last"),
        Mistake(edit("values.tolist()", "values.tolist() + [-1] * (-len(values) % (8 // bits))"), "with ones in the bits that are left over; they should be zeros"),
        Mistake(edit("tolist()", "tolist()[::-1]"), "with the values in reversed order"),
        Mistake(edit("(packed,", "(packed[::-1],"), "with the bytes in reversed order; the first values are in byte 0"),
        Mistake(edit("bits / 8", "bits / bits", "i * bits, 8", "i, 1"), "with one value a byte, not packed at all"),
        Mistake(edit("packed = [", "bits = 2; packed = ["), "with 2 bits, whatever `bits` says"),
        Mistake(edit("(packed, dtype=torch.uint8)", "(sum(octet << 8 * place for place, octet in enumerate(packed)))"), "with one long number; cut it into bytes"),
        Mistake(edit("uint8)", "uint8).view(torch.int8)"), "with a result in int8, where a highest bit of 1 makes the number negative; return uint8"),
        Mistake(edit(", dtype=torch.uint8", ""), "with a result that takes 8 bytes for each byte; return uint8"),
        Mistake(edit("= value", "= value + 2 ** (bits - 1)"), "with an offset added; the values are counted from 0 already"),
        Mistake(edit("divmod(i * bits, 8)", "i % len(packed), i // len(packed) * bits"), "with neighbours dealt out to different bytes; fill byte 0 first"),
        Mistake(edit("packed = [", "assert len(values) * bits % 8 == 0; packed = ["), "with an error where the last byte is not full; fill it with zeros"),
        Mistake(edit("packed = [", "values.reshape(-1, 8 // bits); packed = ["), "with a reshape before the last byte is filled up; add the zeros that are missing first"),
        Mistake(edit("packed = [", "values &= 2**bits - 1; packed = ["), "with &= on the values, in place"),
        Mistake(
            edit("packed = [", "torch.zeros(len(values) * bits // 8)[(len(values) * bits - 1) // 8]; packed = ["), "with count * bits // 8 bytes, one too few where the last is not full; round up"
        ),
        Mistake(edit("packed = [", f"[values[i] for i in range({SIZE} * 8 // bits)]; packed = ["), "with a look beyond the last value, where it does not fill its byte"),
        Mistake(edit("|= (code << offset) & 255", "= packed[place] << bits | code"), "with the byte pushed up for each new value, so that the first ends highest; it is lowest"),
        Mistake(edit("(2**bits - 1)", "3"), "with the mask 3, whatever `bits` says"),
        Mistake(edit("torch.uint8", "torch.float32"), "with a result in float32, as torch.zeros makes it; return uint8"),
        Mistake(edit(SIZE, "len(values)"), "with as many bytes as values; ceil(count * bits / 8) are enough"),
    ],
    equivalent={"values.tolist() -> values": "the loop runs over tensors of one element then, which take & and << as well"}
    | dict.fromkeys(
        [
            "without: if offset + bits > 8:",
            "without: packed[place + 1] |= code >> 8 - offset",
            "offset + bits -> offset - bits",
            "offset + bits > 8 -> offset + bits > 9",
            "packed[place + 1] |= code >> 8 - offset -> packed[place + 1] &= code >> 8 - offset",
            "place + 1 -> place - 1",
            "place + 1 -> place + 2",
            "place + 1 -> place + 0",
            "code >> 8 - offset -> code << 8 - offset",
            "8 - offset -> 8 + offset",
            "8 - offset -> 9 - offset",
            "8 - offset -> 7 - offset",
        ],
        "at 1, 2, 4 and 8 bits no value goes on in the next byte, and no other width is asked for",
    ),
    hints=[
        "Value i begins at bit i * bits of the row. Which byte is that, and how many bits of it lie below?",
        "Byte (i * bits) // 8, offset (i * bits) % 8. Begin with bytes of 0, and or each value into its byte.",
        "`divmod(i * bits, 8)` gives both. Mask the value, shift it up by the offset, and use |= on a list of zeros; the list becomes a tensor of torch.uint8 at the end.",
    ],
    explain=how_packed,
)


# ---------------------------------------------------------------- 15.2 pack

FILL, CUT = "torch.nn.functional.pad(values, (0, -count % 8))", "[..., : (count * bits + 7) // 8]"


def python_steps(answer, shape):
    """How many lines of Python run while `answer` packs zeros of `shape`, those of all that it calls included."""
    steps = 0

    def count(frame, event, argument):
        nonlocal steps
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        answer(torch.zeros(shape, dtype=torch.uint8), 3)
    finally:
        sys.settrace(before)
    return steps


def runs_as_long_for_many_values_as_for_few(answer):
    """Nothing in Python may be done once for each value, each byte or each row."""
    few = python_steps(answer, (2, 64))
    for shape, things in (((2, 4096), "values in a row"), ((128, 64), "rows")):
        # A loop makes 30 times as many; a call more or less inside torch makes a few.
        if python_steps(answer, shape) > 2 * few + 100:
            return f"with 64 times as many {things}, many more lines of Python run: there is a loop over them."
    return None


def unpacks_to_what_was_packed(answer):
    """Each value survives beside each other, at each width."""
    for bits in range(1, 9):
        pairs = torch.cartesian_prod(torch.arange(2**bits), torch.arange(2**bits))[:: max(1, 4 ** (bits - 5))]
        wrong = (answer(pairs, bits).long() != pack(pairs, bits).long()).any(-1)
        if wrong.any():
            pair = pairs[wrong][0].tolist()
            return f"at {bits} bits the two values {pair} are not packed as {pack(torch.tensor(pair), bits).tolist()}."
    return None


THREES = torch.tensor([1, 0, 3, 2, 7, 5, 4, 6], dtype=torch.uint8)
# Multiples of 37: every residue occurs, in no order.
MIXED = torch.arange(60) * 37 % 101

PACK = Exercise(
    id="15.2",
    name="pack",
    key=pack,
    cases=[
        Case("[1, 0, 3, 2] and 2 bits", (FOUR, 2)),
        Case("[1, 0, 3, 2, 7, 5, 4, 6] and 3 bits", (THREES, 3)),
        Case("the first five of them and 3 bits", (THREES[:5], 3)),
        Case("the first three of them and 3 bits", (THREES[:3], 3)),
        Case("two rows of eight and 3 bits", (torch.stack([THREES, THREES.flip(0)]), 3)),
        Case("three rows of ten and 2 bits", ((MIXED[:30] % 4).reshape(3, 10).to(torch.uint8), 2)),
        Case("[0, 5, 2, -1, 4, 3], of which 2 bits are kept", (TOO_WIDE, 2)),
        Case("twenty values of 5 bits in two rows", ((MIXED[:20] % 32).reshape(2, 10).to(torch.uint8), 5)),
        Case("seven values of 4 bits", (NIBBLES, 4)),
        Case("eleven values of 1 bit", (ONES, 1)),
        Case("thirteen values of 7 bits", (MIXED[:13].to(torch.uint8), 7)),
        Case("three values of 8 bits", (UP_TO_255, 8)),
        Case("a tensor of three dimensions and 6 bits", ((MIXED % 64).reshape(2, 3, 10).to(torch.uint8), 6)),
    ],
    properties=[Property(unpacks_to_what_was_packed), Property(runs_as_long_for_many_values_as_for_few)],
    mistakes=[
        Mistake(
            edit(
                "    for i in range(8):\n        word |= (eights[..., i]",
                "    for group, i in ((n // 8, n % 8) for n in range(word.shape[-1] * 8)):\n        word[..., group] |= (eights[..., group, i]",
            ),
            "with a Python loop that grows with the matrix, over values, bytes or groups",
        ),
        Mistake(
            edit("    count", "    if values.ndim > 1:\n        return torch.stack([pack(row, bits) for row in values])\n    count"),
            "with a Python loop over the rows; the last dimension alone is packed, all rows at once",
        ),
        Mistake(edit("count =", "values = values.movedim(0, -1); count =", CUT, f"{CUT}.movedim(-1, 0)"), "with the values of a column packed together; pack along the last dimension"),
        Mistake(edit("as_tensor(values)", "as_tensor(values).flatten()"), "with all rows packed as one; each row begins with a byte of its own"),
        Mistake(
            edit("-count % 8)).unflatten(-1, (-1, 8))", "-count % (8 // bits))).unflatten(-1, (-1, 8 // bits))", "range(8)", "range(8 // bits)", "range(bits)", "range(1)", CUT, ""),
            "with 8 // bits values in each byte, which wastes the bits that are left over",
        ),
        Mistake(edit("(2**bits - 1)", "(2**bits - 1) & (255 >> i * bits % 8)"), "when a value that goes on in the next byte loses the bits that lie there"),
        Mistake(edit("(i * bits)", "((7 - i) * bits)", "(8 * i)", "(8 * (bits - 1 - i))"), "with the first value in the highest bits; ours begins with the lowest"),
        Mistake(
            edit("(word >> (8 * i)) & 255", "sum((word >> 8 * i + place & 1) << 7 - place for place in range(8))"), "with the first bit of the stream as the highest of its byte; it is the lowest"
        ),
        Mistake(
            edit("(eights[..., i].long() & (2**bits - 1))", "sum((eights[..., i].long() >> place & 1) << bits - 1 - place for place in range(bits))"),
            "with the bits of each value turned round, highest first",
        ),
        Mistake(edit("range(bits)", "reversed(range(bits))"), "with a word's bytes highest first; the first values are in byte 0"),
        Mistake(edit(MASK, ""), "with no mask: the upper bits of a value that is too wide spill into its neighbour"),
        Mistake(edit(MASK, "", "word |=", "word +="), "with no mask, and a sum: the upper bits are added to its neighbour"),
        Mistake(edit(MASK, ".clamp(0, 2**bits - 1)"), "with a clamp; a value that is too wide keeps its lowest bits, so take & with a mask"),
        Mistake(edit("int64", "uint8", "long()", "byte()"), "with shifts in uint8: what is shifted beyond bit 7 is gone; make the values int64"),
        Mistake(edit(".long()", ""), "with shifts in the values' own dtype: a uint8 has no bits beyond 7; make them int64"),
        Mistake(edit("(i * bits)", "(i * bits) & 0xFFFF_FFFF"), "with shifts in int32: eight values of 5 bits or more do not fit; make them int64"),
        Mistake(edit("as_tensor(values)", "as_tensor(values)[..., : values.shape[-1] // 8 * 8]"), "when the values after the last whole eight are dropped; fill them up"),
        Mistake(edit(FILL, "values"), "with no filling: five values do not make whole groups of eight; add zeros"),
        Mistake(edit(CUT, ""), "when the bytes of the filling stay; only ceil(count * bits / 8) are needed"),
        Mistake(edit("(count * bits + 7) // 8", "count * bits // 8"), "when a last byte is cut off if not full; round up"),
        Mistake(edit("(0, -count % 8)", "(-count % 8, 0)"), "with the filling before the first value; it comes after the last"),
        Mistake(edit("as_tensor(values)", "as_tensor(values).flip(-1)"), "with the values in reversed order"),
        Mistake(edit("count =", "return (values.long() & (2**bits - 1)).byte(); count ="), "with one value a byte, not packed at all"),
        Mistake(edit(".to(torch.uint8)", ""), "with a result that takes 8 bytes for each byte; return uint8"),
        Mistake(edit("uint8)", "uint8).view(torch.int8)"), "with a result in int8, where a highest bit of 1 makes the number negative; return uint8"),
        Mistake(edit("as_tensor(values)", "as_tensor(values).long() + 2 ** (bits - 1)"), "with an offset added; the values are counted from 0 already"),
        Mistake(edit("count =", "values &= 2**bits - 1; count ="), "with &= on the values, in place"),
        Mistake(edit(FILL, "values", ".unflatten(-1, (-1, 8))", ".reshape(*values.shape[:-1], -1, 8)"), "with no filling before the reshape: five values do not make whole groups of eight; add zeros"),
        Mistake(edit(".flatten(-2)", ""), "with the bytes of each eight in a dimension of their own; .flatten(-2) joins them"),
        Mistake(edit("dim=-1", "dim=0"), "with the bytes of a group stacked in front, dim=0; they come last"),
        Mistake(edit(".flatten(-2)[..., ", ".flatten()["), "with .flatten(), which joins the rows as well; .flatten(-2) keeps them"),
        Mistake(edit("count =", "return pack_loop(values, bits); count ="), "with pack_loop, which packs a single row"),
        Mistake(edit("int64", "int32", "long()", "int()"), "with an int32, which holds eight values of 4 bits and no wider ones"),
    ],
    equivalent=dict.fromkeys(["without: values = torch.as_tensor(values)", "torch.as_tensor(values) -> values"], "the values are a tensor already; the library takes a list as well"),
    hints=[
        "Eight values are always `bits` whole bytes. Put the values in groups of eight, in a dimension of their own, "
        "and work on all groups at once. A loop over the eight places is no loop over the values.",
        "Make one long int64 of each group: its value i, masked, goes to offset i * bits. Then take the long number "
        "apart again, eight bits at a time: byte j begins at bit 8 j. Or go by single bits: all bits of all values "
        "in one row, eight of them a byte.",
        "`torch.nn.functional.pad(values, (0, n))` adds n zeros at the end of each row and `.unflatten(-1, (-1, 8))` "
        "makes the groups. `torch.stack(…, dim=-1).flatten(-2)` lays the bytes of all groups out in a row again; cut "
        "it at ceil(count * bits / 8), and make it torch.uint8.",
    ],
    explain=how_packed,
)

EXERCISES = [PACK_LOOP, PACK]
