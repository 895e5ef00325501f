"""Right answers of lesson 1, written differently from the library's."""


def state_dict_bytes_with_a_set_of_addresses(state_dict):
    seen, total = set(), 0
    for tensor in state_dict.values():
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def state_dict_bytes_of_pairs(state_dict):
    unique = {(t.untyped_storage().data_ptr(), len(t.untyped_storage())) for t in state_dict.values()}
    return sum(nbytes for _, nbytes in unique)


ANSWERS = {"01.1": [state_dict_bytes_with_a_set_of_addresses, state_dict_bytes_of_pairs]}
