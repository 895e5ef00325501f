"""Exercises of lesson 14: weights packing."""

import torch

from course.exercises.exercise import Case, Exercise, Mistake
from qlib.packing import get_field, put_field

BYTES = torch.tensor([177, 255, 0, 90], dtype=torch.uint8)
# The highest bit of the first word is 1: as an int32 it is negative.
WORDS = torch.tensor([[-0x7654_3210, 0x0123_4567], [-1, 0x7FFF_FFFF]], dtype=torch.int32)


# ---------------------------------------------------------------- 14.1 get_field


def takes_all_above(word, offset, bits):
    return word >> offset


def takes_the_lowest(word, offset, bits):
    return word & (2**bits - 1)


def leaves_it_in_its_place(word, offset, bits):
    return word & ((2**bits - 1) << offset)


def masks_before_the_shift(word, offset, bits):
    return (word & (2**bits - 1)) >> offset


def shifts_to_the_left(word, offset, bits):
    return (word << offset) & (2**bits - 1)


def masks_with_a_power_of_two(word, offset, bits):
    return (word >> offset) & 2**bits


def forgets_the_brackets(word, offset, bits):
    return (word >> offset) & (1 << bits - 1)


def masks_in_place_alone(word, offset, bits):
    return (word & ((2**bits - 1) << offset)) >> offset


def takes_a_remainder_first(word, offset, bits):
    return word % 2 ** (offset + bits) // 2**offset


def reads_into_the_word(word, offset, bits):
    word >>= offset
    word &= 2**bits - 1
    return word


def masks_with_the_width(word, offset, bits):
    return (word >> offset) & bits


def counts_the_offset_in_fields(word, offset, bits):
    return (word >> (offset * bits)) & (2**bits - 1)


def counts_the_offset_from_the_top(word, offset, bits):
    return (word >> (8 - offset - bits)) & (2**bits - 1)


def ors_the_mask(word, offset, bits):
    return (word >> offset) | (2**bits - 1)


def divides_by_the_offset(word, offset, bits):
    return (word // max(offset, 1)) % 2**bits


def shifts_up_and_down_in_a_byte(word, offset, bits):
    return ((word << (8 - offset - bits)) & 255) >> (8 - bits)


def how_read(args, index):
    word, offset, bits = args
    word = word[index].item()
    width = 8 if args[0].dtype is torch.uint8 else 32
    return f"out of the bits {word & (2**width - 1):0{width}b}"


GET_FIELD = Exercise(
    id="14.1",
    name="get_field",
    key=get_field,
    cases=[
        # First the one on which no two mistakes give the same.
        Case("the byte 177, which is 10110001, offset 2 and 5 bits", (177, 2, 5)),
        Case("the byte 177, which is 10110001, offset 4 and 2 bits", (177, 4, 2)),
        Case("the byte 177, offset 0 and 8 bits", (177, 0, 8)),
        Case("a tensor of four bytes, offset 6 and 2 bits", (BYTES, 6, 2)),
        Case("a tensor of four bytes, offset 1 and 3 bits", (BYTES, 1, 3)),
        Case("a tensor of 32-bit words, offset 28 and 4 bits", (WORDS, 28, 4)),
        Case("a tensor of 32-bit words, offset 9 and 7 bits", (WORDS, 9, 7)),
    ],
    mistakes=[
        Mistake(takes_all_above, "with no mask after the shift: the bits above the field come along"),
        Mistake(takes_the_lowest, "with no shift: these are the lowest bits of the word, whatever the offset"),
        Mistake(leaves_it_in_its_place, "when the field is masked but not shifted down to the lowest bits"),
        Mistake(masks_before_the_shift, "with the mask before the shift; at first the field is not where the mask is"),
        Mistake(shifts_to_the_left, "with << in place of >>; the field has to come down to bit 0"),
        Mistake(
            masks_with_a_power_of_two, "with the mask 2**bits, which is a single 1; the ones below it are 2**bits - 1"
        ),
        Mistake(
            forgets_the_brackets, "with 1 << bits - 1: the - comes before the <<, so it needs brackets, (1 << bits) - 1"
        ),
        Mistake(
            masks_in_place_alone,
            "with the mask before the shift alone: in a negative int32 the shift then brings ones in from the left",
        ),
        Mistake(
            takes_a_remainder_first,
            "with a remainder by 2**(offset + bits): at the top of a byte that is 256, which a uint8 cannot hold; "
            "divide first",
        ),
        Mistake(reads_into_the_word, "with operations in place, such as >>= on a tensor"),
        Mistake(masks_with_the_width, "with the number of bits as the mask; 3 bits have the mask 0b111"),
        Mistake(counts_the_offset_in_fields, "with offset * bits; the offset counts bits, not fields"),
        Mistake(
            counts_the_offset_from_the_top, "with the offset counted from the top of a byte; it counts from the bottom"
        ),
        Mistake(ors_the_mask, "with | and the mask, which sets bits to 1; & keeps them as they are"),
        Mistake(divides_by_the_offset, "with a division by the offset; >> offset divides by 2**offset"),
        Mistake(
            shifts_up_and_down_in_a_byte,
            "with the upper bits pushed off the end of a byte; a word may be longer than 8 bits, so mask",
        ),
    ],
    hints=[
        "Two steps: bring the field down to the bottom, then take away what stands above it.",
        "A shift to the right by `offset` brings it down. A mask of `bits` ones, and nothing else, keeps it alone.",
        "The number with n ones at the bottom is one less than 2**n. `&` with it keeps the n lowest bits.",
    ],
    explain=how_read,
)


# ---------------------------------------------------------------- 14.2 put_field


def ors_without_clearing(word, value, offset, bits):
    return word | ((value & (2**bits - 1)) << offset)


def adds_without_clearing(word, value, offset, bits):
    return word + ((value & (2**bits - 1)) << offset)


def flips(word, value, offset, bits):
    return word ^ ((value & (2**bits - 1)) << offset)


def lets_the_value_spill(word, value, offset, bits):
    return word & ~((2**bits - 1) << offset) | (value << offset)


def forgets_the_rest(word, value, offset, bits):
    return (word & 0) | ((value & (2**bits - 1)) << offset)


def clears_the_others(word, value, offset, bits):
    mask = (2**bits - 1) << offset
    return (word & mask) | ((value << offset) & mask)


def clears_the_lowest(word, value, offset, bits):
    mask = 2**bits - 1
    return (word & ~mask) | ((value & mask) << offset)


def leaves_the_value_at_the_bottom(word, value, offset, bits):
    mask = (2**bits - 1) << offset
    return (word & ~mask) | (value & (2**bits - 1))


def clears_and_puts_nothing(word, value, offset, bits):
    return word & ~((2**bits - 1) << offset)


def counts_offsets_in_fields(word, value, offset, bits):
    return put_field(word, value, offset * bits, bits)


def counts_offsets_from_the_top(word, value, offset, bits):
    return put_field(word, value, max(8 - offset - bits, 0), bits)


def keeps_a_byte_only(word, value, offset, bits):
    mask = (2**bits - 1) << offset
    return (word & (255 ^ (mask & 255))) | ((value << offset) & mask)


def negates_the_mask_with_minus(word, value, offset, bits):
    mask = (2**bits - 1) << offset
    return (word & -mask) | ((value << offset) & mask)


def inverts_before_the_shift(word, value, offset, bits):
    return (word & (~(2**bits - 1) << offset)) | ((value & (2**bits - 1)) << offset)


def writes_into_the_word(word, value, offset, bits):
    mask = (2**bits - 1) << offset
    word &= ~mask
    word |= (value << offset) & mask
    return word


def how_written(args, index):
    word = args[0][index].item()
    value = args[1][index].item() if isinstance(args[1], torch.Tensor) else args[1]
    width = 8 if args[0].dtype is torch.uint8 else 32
    return f"the value {value} into the bits {word & (2**width - 1):0{width}b}"


def adds_before_the_and(word, value, offset, bits):
    return word & ~((2**bits - 1) << offset) + ((value & (2**bits - 1)) << offset)


def writes_into_the_value(word, value, offset, bits):
    value &= 2**bits - 1
    return put_field(word, value, offset, bits)


PUT_FIELD = Exercise(
    id="14.2",
    name="put_field",
    key=put_field,
    cases=[
        Case("the byte 177, which is 10110001, the value 5, offset 3 and 3 bits", (177, 5, 3, 3)),
        Case("the byte 177, which is 10110001, the value 2, offset 4 and 2 bits", (177, 2, 4, 2)),
        Case("the byte 0, the value 5, offset 3 and 3 bits", (0, 5, 3, 3)),
        Case("the byte 255, the value 0, offset 2 and 4 bits", (255, 0, 2, 4)),
        Case("the byte 177, the value 6, which has a bit too many, offset 0 and 2 bits", (177, 6, 0, 2)),
        Case("a tensor of four bytes, the value 1, offset 5 and 3 bits", (BYTES, 1, 5, 3)),
        Case(
            "four bytes and four values, offset 6 and 2 bits",
            (BYTES, torch.tensor([0, 5, 2, 7], dtype=torch.uint8), 6, 2),
        ),
        Case("a tensor of 32-bit words, the value 6, offset 20 and 4 bits", (WORDS, 6, 20, 4)),
    ],
    mistakes=[
        Mistake(ors_without_clearing, "with | alone: ones that were in the field before stay there; clear it first"),
        Mistake(adds_without_clearing, "with + and the field not cleared: what was in it is added to, and may carry"),
        Mistake(flips, "with ^: where the field held a 1, a 1 of the value turns it to 0; clear it first"),
        Mistake(lets_the_value_spill, "when the value is not masked: its upper bits spill into the next field"),
        Mistake(forgets_the_rest, "when the rest of the word is lost; only the field may change"),
        Mistake(clears_the_others, "with the mask the wrong way round: & ~mask clears the field, & mask all the rest"),
        Mistake(clears_the_lowest, "when the mask that clears is not shifted to the field"),
        Mistake(leaves_the_value_at_the_bottom, "when the value is not shifted to the field"),
        Mistake(clears_and_puts_nothing, "when the field is cleared and the value never put in"),
        Mistake(counts_offsets_in_fields, "with offset * bits; the offset counts bits, not fields"),
        Mistake(
            counts_offsets_from_the_top, "with the offset counted from the top of a byte; it counts from the bottom"
        ),
        Mistake(
            keeps_a_byte_only, "with a mask of 8 bits for the rest, which cuts longer words off; ~mask has them all"
        ),
        Mistake(negates_the_mask_with_minus, "with -mask in place of ~mask: they differ by one"),
        Mistake(inverts_before_the_shift, "with ~ before the shift: zeros come in below, and clear what lies there"),
        Mistake(adds_before_the_and, "with a + that Python does before the &: it needs brackets, or | in its place"),
        Mistake(writes_into_the_word, "with operations in place, such as &= on a tensor"),
        Mistake(writes_into_the_value, "with &= on the value; when it is a tensor, that changes the caller's"),
    ],
    hints=[
        "Make a hole where the field is, then drop the value into it.",
        "Shift the mask of `bits` ones up to the field. & with its opposite makes the hole; | puts the value in.",
        "`~mask` has zeros in the field and ones everywhere else. Shift the value up as well, and & it with the mask, "
        "so that nothing of it lies beside the hole.",
    ],
    explain=how_written,
)

EXERCISES = [GET_FIELD, PUT_FIELD]
