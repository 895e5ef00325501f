"""What lesson 13 says holds: the file's bytes, what a load leaves behind, and what loading costs in memory."""

import itertools
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import transformers

from course.figures import lesson_13 as figures
from qlib import INT4, QLinear, Scheme, quantize_tensor, replace_linear
from qlib.affine import block_range, qparam_shape
from qlib.checkpoint import put_tensor, save_quantized
from qlib.files import DTYPES, read_tensor
from qlib.model import still_on_meta
from qlib.report import peak_memory, state_dict_bytes
from tests.lessons import ROOT
from tests.matrices import T

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = transformers.LlamaConfig(**SIZES, intermediate_size=64, tie_word_embeddings=True)
OPT = transformers.OPTConfig(**SIZES, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32)


@pytest.fixture
def small(tmp_path):
    """The file that the lesson draws."""
    qtensor = quantize_tensor(T, Scheme(bits=4))
    safetensors.torch.save_file({"packed": qtensor.packed, "scale": qtensor.scale}, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


# ---------------------------------------------------------------- a file, by hand


def test_the_file_of_the_picture_is_as_long_as_the_lesson_and_its_quiz_say(small):
    data = small.read_bytes()
    assert len(data) == 154 and int.from_bytes(data[:8], "little") == 128 == 0x80
    assert data[148:154] == quantize_tensor(T, Scheme(bits=4)).packed.numpy().tobytes()


def test_a_tensor_of_any_dtype_is_read_as_the_library_reads_it(tmp_path):
    path, numbers = tmp_path / "a.safetensors", torch.tensor([[0, 1, 2], [1, 0, 1]])
    tensors = {str(dtype): numbers.to(dtype) for dtype in DTYPES.values()} | {"before": torch.ones(5)}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    for dtype in DTYPES.values():
        found = read_tensor(path, str(dtype))
        assert found.dtype == dtype and torch.equal(found.float(), tensors[str(dtype)].float())


def test_a_tensor_that_is_not_there_is_named(small):
    with pytest.raises(KeyError, match="bias"):
        read_tensor(small, "bias")


def test_a_tensor_can_be_changed_and_the_file_stays(small):
    before = small.read_bytes()
    read_tensor(small, "scale").zero_()
    assert small.read_bytes() == before


def test_the_picture_of_a_file_says_what_is_where(small):
    caption = repr(figures.safetensors_bytes(small))
    assert "A file of 154 bytes" in caption
    assert "scale, F32 [3, 1], 12 at 136; packed, U8 [3, 2], 6 at 148" in caption


# ---------------------------------------------------------------- pickles


class Surprise:
    def __reduce__(self):
        return print, ("run",)


def test_reading_a_pickle_runs_it_and_todays_torch_refuses_unless_told(tmp_path, capsys):
    torch.save({"weight": Surprise()}, tmp_path / "stranger.bin")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "stranger.bin")
    assert capsys.readouterr().out == ""
    torch.load(tmp_path / "stranger.bin", weights_only=False)
    assert capsys.readouterr().out == "run\n"


# ---------------------------------------------------------------- what load_state_dict leaves behind


def assigned(config):
    original = transformers.AutoModelForCausalLM.from_config(config)
    with torch.device("meta"):
        twin = transformers.AutoModelForCausalLM.from_config(config)
    state = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    assert not any(twin.load_state_dict(state, strict=True, assign=True))
    return original, twin


@pytest.mark.parametrize(
    ("config", "left"), [(LLAMA, ["model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"]), (OPT, [])]
)
def test_all_keys_match_and_the_model_is_not_whole(config, left):
    original, twin = assigned(config)
    assert still_on_meta(twin) == left
    assert original.lm_head.weight is original.get_input_embeddings().weight
    assert twin.lm_head.weight is not twin.get_input_embeddings().weight
    assert state_dict_bytes(twin.state_dict()) - state_dict_bytes(original.state_dict()) == 64 * 32 * 4 == 8192


def test_the_head_of_opt_125m_would_be_154_mb_more():
    assert round(50_272 * 768 * 4 / 1e6) == 154


def test_what_is_put_in_place_stays_tied_and_leaves_nothing_on_meta():
    original, _ = assigned(OPT)
    with torch.device("meta"):
        twin = transformers.AutoModelForCausalLM.from_config(OPT)
    names = {}
    for name, tensor in twin.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for same in names.values():
        put_tensor(twin, same, original.state_dict()[same[0]])
    assert still_on_meta(twin) == []
    assert twin.lm_head.weight is twin.get_input_embeddings().weight
    words = torch.arange(8)[None]
    assert torch.equal(twin.eval()(words).logits, original.eval()(words).logits)


def test_a_parameter_stays_one_and_a_buffer_stays_one():
    layer = QLinear(8, 2, INT4, device="meta")
    put_tensor(layer, ["packed"], torch.ones(2, 4, dtype=torch.uint8))
    assert "packed" in dict(layer.named_buffers()) and "packed" not in dict(layer.named_parameters())
    linear = torch.nn.Linear(3, 2, device="meta").requires_grad_(False)
    put_tensor(linear, ["weight"], torch.ones(2, 3))
    assert isinstance(linear.weight, torch.nn.Parameter) and not linear.weight.requires_grad
    assert still_on_meta(linear) == ["bias"]


# ---------------------------------------------------------------- a model without memory


def test_the_shapes_of_scales_need_no_matrix():
    schemes = [Scheme(axis=None), Scheme(axis=0), Scheme(axis=1), Scheme(group_size=4), Scheme(group_size=64)]
    for scheme, rows, columns in itertools.product(schemes, (0, 1, 3), (0, 1, 4, 10)):
        assert qparam_shape(rows, columns, scheme) == tuple(block_range(torch.zeros(rows, columns), scheme)[0].shape)


def test_a_model_of_70_billion_weighs_what_the_lesson_says():
    # Two of the 80 layers tell the rest: all are alike.
    def nbytes(layers, scheme=None):
        sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=layers, **sizes))
        if scheme:
            assert len(replace_linear(model, scheme)) == 7 * layers
        return sum(tensor.nbytes for tensor in model.state_dict().values())

    for scheme, gigabytes in ((None, 275.9), (INT4, 41.7)):
        one, two = nbytes(1, scheme), nbytes(2, scheme)
        assert round((one + 79 * (two - one)) / 1e9, 1) == gigabytes


# ---------------------------------------------------------------- memory


def test_the_peak_of_a_process_counts_its_own_memory_and_not_its_parents():
    code = (
        "from qlib.report import peak_memory; a = peak_memory(); b = bytearray(b'1' * 10**8); print(a, peak_memory())"
    )
    ballast = torch.ones(10**8)  # 400 MB that the child must not count
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 10**8 <= after - before < 3 * 10**8
    assert before < 10**9
    assert peak_memory() > ballast.nbytes


PROGRAM = """
import os, sys, torch
from safetensors.torch import load_file
from qlib import INT4, replace_linear
from qlib.checkpoint import load_quantized
from qlib.report import peak_memory

def load(way):
    with torch.device("meta" if way == "streamed" else "cpu"):
        model = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096, bias=False) for _ in range(2)))
    if way == "streamed":
        return load_quantized(sys.argv[1], model)
    replace_linear(model, INT4)
    model.load_state_dict(load_file(sys.argv[1] + "/model.safetensors"))
    return model

for way in ("4-bit", "streamed"):
    if os.fork() == 0:
        before = peak_memory()
        for tensor in load(way).state_dict().values():
            tensor.flatten().view(torch.uint8)[::4096].sum()
        print(peak_memory() - before, flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_streamed_load_peaks_near_the_file_and_a_naive_one_near_the_float_model(tmp_path):
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096, bias=False) for _ in range(2)))
    replace_linear(model, INT4)
    for name, tensor in model.state_dict().items():
        put_tensor(model, [name], torch.randint(8, tensor.shape, dtype=tensor.dtype))
    save_quantized(model, tmp_path / "4-bit")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "4-bit")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    naive, streamed = map(int, done.stdout.split())
    file, floats = (tmp_path / "4-bit" / "model.safetensors").stat().st_size, 2 * 4096 * 4096 * 4
    assert naive > floats
    assert file * 0.9 < streamed < file + file / 2 + 20 * 10**6 < floats  # the file, and one of its two tensors


def test_the_picture_of_peaks_says_only_what_does_not_vary():
    files = {"the large file": 268_000_000, "the small file": 38_800_000}
    good = repr(figures.peak_bars({"whole": 541_000_000, "in\nparts": 42_000_000}, files, "Peaks"))
    ends = "the most to the least: whole; in parts. The least is {}less than a quarter of the most."
    assert good.endswith(". From " + ends.format(""))
    assert good == repr(figures.peak_bars({"whole": 500_000_000, "in\nparts": 57_000_000}, files, "Peaks"))
    bad = repr(figures.peak_bars({"whole": 42_000_000, "in\nparts": 54_000_000}, files, "Peaks"))
    assert bad.endswith(". NOT from " + ends.format("NOT "))
