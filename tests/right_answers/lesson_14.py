"""Right answers of lesson 14, written differently from the library's."""


def get_by_arithmetic(word, offset, bits):
    return word // 2**offset % 2**bits


def get_with_the_mask_in_place(word, offset, bits):
    mask = ((1 << bits) - 1) << offset
    # A 32-bit word that begins with a 1 is negative, and stays so when shifted: mask once more.
    return ((word & mask) >> offset) & (mask >> offset)


def get_bit_by_bit(word, offset, bits):
    return sum(((word >> (offset + place)) & 1) << place for place in range(bits))


def put_by_taking_away(word, value, offset, bits):
    old = (word >> offset) % 2**bits
    return word - (old << offset) + (value % 2**bits << offset)


def put_with_xor(word, value, offset, bits):
    old = word >> offset
    return word ^ (((old ^ value) & ((1 << bits) - 1)) << offset)


ANSWERS = {
    "14.1": [get_by_arithmetic, get_with_the_mask_in_place, get_bit_by_bit],
    "14.2": [put_by_taking_away, put_with_xor],
}
