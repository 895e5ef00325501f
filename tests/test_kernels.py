"""The kernels compute what the plain formula computes, whatever the shape, the dtype and the way that is chosen."""

import copy
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qlib.linear
from qlib import (
    FP8,
    MXFP4,
    NF4,
    NVFP4,
    QLinear,
    Scheme,
    choose_qparams,
    fake_quantize,
    grids,
    quantize_tensor,
)
from qlib.affine import expand_groups
from qlib.console import word_after
from qlib.kernels import choose as kernels
from qlib.kernels import numba_kernels
from qlib.linear import QEmbedding
from tests.strategies import schemes

numba = pytest.importorskip("numba")

# One scheme for each width and each kind of scale. They share spans, for each length of span compiles a kernel.
SCHEMES = [
    Scheme(8),
    Scheme(8, symmetric=False),
    Scheme(8, symmetric=False, axis=1),
    Scheme(4, symmetric=False, group_size=32),
    Scheme(4, axis=None),
    Scheme(3, group_size=64),
    Scheme(2, symmetric=False, group_size=64),
]


def sizes(plan):
    """What tells one plan's kernels from another's."""
    return plan.bits, plan.octets, plan.span // plan.groups if plan.octets % 4 == 0 else plan.span


COMPILED = {sizes(kernels.plan_for(scheme, 256)) for scheme in SCHEMES}
EACH_SCHEME = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def layer(scheme, inputs=256, outputs=37, bias=True):
    linear = torch.nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-9, 9, inputs * outputs).sin().reshape(outputs, inputs) + 0.1)
        if bias:
            linear.bias.copy_(torch.linspace(-1, 1, outputs))
    return QLinear.from_linear(linear, scheme)


def inputs(*shape, dtype=torch.float32):
    return torch.arange(torch.Size(shape).numel()).mul(0.37).cos().reshape(shape).to(dtype)


def assert_right(quantized, x, of_the_weights=0.0):
    """The layer gives what the formula gives in float64, within the rounding of float32 sums and of x's dtype.

    A sum is rounded by the size of its terms: codes, for the kernels take the zero points off at the end. Factors that
    are rounded themselves may add a share `of_the_weights`.
    """
    found, weight = quantized(x), quantized.qtensor.dequantize().double()
    bias = None if quantized.bias is None else quantized.bias.double()
    right = torch.nn.functional.linear(x.double(), weight, bias)
    codes = expand_groups(quantized.scale, weight, quantized.scheme.group_size).double() * 2**quantized.scheme.bits
    allowed = x.double().abs() @ (1e-6 * codes.expand_as(weight) + of_the_weights * weight.abs()).T
    allowed += 1e-6 + 2 * torch.finfo(x.dtype).eps * right.abs()
    assert found.dtype == x.dtype and found.shape == (*x.shape[:-1], quantized.out_features)
    assert ((found.double() - right).abs() <= allowed).all()


@pytest.fixture
def ways(monkeypatch):
    """The names of the ways that were taken, in order."""
    taken = []
    for module, name in ((kernels, "through_rows"), (kernels, "through_blocks"), (qlib.linear, "plain_linear")):
        way = getattr(module, name)

        def noted(*args, name=name, way=way):
            taken.append(name)
            return way(*args)

        monkeypatch.setattr(module, name, noted)
    return taken


# ---------------------------------------------------------------- against the plain formula


@EACH_SCHEME
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_every_kernel_gives_what_the_formula_gives(scheme, bias, ways):
    quantized = layer(scheme, bias=bias)
    for shape in [(256,), (1, 256), (3, 256), (8, 256), (17, 256), (2, 5, 256), (0, 256), (2, 0, 256)]:
        assert_right(quantized, inputs(*shape))
    assert "plain_linear" not in ways and {"through_rows", "through_blocks"} == set(ways)


@EACH_SCHEME
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_float32_sums_for_a_few_rows(scheme, dtype, ways):
    assert_right(layer(scheme).to(dtype), inputs(3, 256, dtype=dtype))
    assert ways == ["through_rows"]


@EACH_SCHEME
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_its_rounding_for_many_rows(scheme, dtype):
    # A bfloat16 weight and a bfloat16 input are each off by at most 2**-9; a formula that is wrong is off by more.
    assert_right(layer(scheme).to(dtype), inputs(17, 256, dtype=dtype), of_the_weights=2 * 2**-9)


@EACH_SCHEME
def test_input_that_is_not_contiguous_or_not_aligned(scheme, ways):
    quantized = layer(scheme)
    shifted = torch.frombuffer(bytearray(4 * 256 * 17 + 1), dtype=torch.float32, offset=1, count=256 * 17)
    shifted.copy_(inputs(256 * 17))
    for rows in (1, 17):
        assert_right(quantized, inputs(256, rows).T)
        assert_right(quantized, inputs(rows, 512)[:, ::2])
        assert_right(quantized, inputs(1, 256).expand(rows, 256))
        assert_right(quantized, shifted[: rows * 256].reshape(rows, 256))
    assert "plain_linear" not in ways


@given(schemes(), st.integers(1, 70), st.integers(1, 5), st.sampled_from([0, 1, 3, 17]), st.booleans())
def test_odd_shapes_and_ragged_groups_take_a_way_that_fits(scheme, columns, rows, batch, bias):
    quantized = layer(scheme, columns, rows, bias)
    if quantized.plan is not None and sizes(quantized.plan) not in COMPILED:
        quantized.plan = None  # a kernel of its own would take a second to compile
    assert_right(quantized, inputs(batch, columns))


@pytest.mark.parametrize(
    ("scheme", "columns"),
    [
        (Scheme(4, group_size=64), 250),  # a ragged last group
        (Scheme(2, group_size=6), 60),  # a group that ends inside a byte
        (Scheme(3), 250),  # a row that ends inside three bytes
        (Scheme(8, group_size=2), 64),  # spans too short for a vector
        (Scheme(8), 0),
    ],
    ids=str,
)
def test_what_does_not_fit_is_left_to_the_formula(scheme, columns):
    assert kernels.plan_for(scheme, columns) is None


def test_five_six_and_seven_bits_have_kernels_too(ways):
    for bits in (5, 6, 7):
        for rows in (1, 17):
            assert_right(layer(Scheme(bits)), inputs(rows, 256))
    assert set(ways) == {"through_rows", "through_blocks"}


def test_an_odd_number_of_groups():
    quantized = layer(Scheme(4, symmetric=False, group_size=32), inputs=32 * 7)
    for rows in (1, 17):
        assert_right(quantized, inputs(rows, 32 * 7))


@pytest.mark.parametrize(
    "scheme", [Scheme(4, False, group_size=12), Scheme(2, group_size=24), Scheme(3, False, group_size=40)], ids=str
)
def test_groups_that_do_not_fill_whole_words_are_read_in_bytes(scheme, ways):
    quantized = layer(scheme, inputs=120)
    assert quantized.plan.octets == {4: 1, 2: 1, 3: 3}[scheme.bits]
    for rows in (1, 3, 17):
        assert_right(quantized, inputs(rows, 120))
    assert set(ways) == {"through_rows", "through_blocks"}


def test_blocks_hold_to_the_bit_what_the_formula_dequantizes(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_SIZE", 256 * 10)  # 37 rows: three blocks and a rest
    for scheme in SCHEMES:
        quantized = layer(scheme, bias=False)
        if scheme.axis != 1:  # there the scale goes to the input
            assert torch.equal(quantized(torch.eye(256)), quantized.qtensor.dequantize().T)
        assert_right(quantized, inputs(20, 256))


@EACH_SCHEME
def test_where_pytorch_has_no_onednn_its_own_product_does_it(scheme, monkeypatch):
    quantized, x = layer(scheme), inputs(17, 256)
    product = kernels.product(x, quantized.weight)
    monkeypatch.setattr(kernels, "ONEDNN", None)
    assert torch.allclose(kernels.product(x, quantized.weight), product, rtol=1e-4, atol=1e-3)
    assert_right(quantized, x)


def test_a_layer_without_outputs():
    quantized = QLinear(256, 0, Scheme(4, group_size=32))
    for rows in (1, 17):
        assert quantized(inputs(rows, 256)).shape == (rows, 0)


def test_nan_and_infinity_do_not_get_lost():
    quantized = layer(Scheme(4, symmetric=False, group_size=32))
    for rows in (1, 17):
        x = inputs(rows, 256)
        x[0, 5] = torch.nan
        assert quantized(x)[0].isnan().all() and quantized(x)[1:].isfinite().all()
        x[0, 5] = torch.inf
        assert not quantized(x)[0].isfinite().any()


# ---------------------------------------------------------------- precision


@EACH_SCHEME
@pytest.mark.parametrize("batch", [1, 4, 40])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_row_that_is_not_finite_gives_what_the_formula_gives_and_spoils_no_other(scheme, batch, value):
    quantized, x = layer(scheme), inputs(batch, 256)
    x[0, 7] = value
    with torch.no_grad():
        out = quantized(x)
        right = qlib.linear.plain_linear(x, quantized.qtensor, quantized.bias)
    torch.testing.assert_close(out, right, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert out[1:].isfinite().all() and not out[0].isfinite().any()


def everything(scheme):
    """What the public operations give for a small and a large tensor, and layers for few rows and many: tensors."""
    made = []
    for rows in (37, 1200):
        weight = torch.linspace(-9, 9, rows * 256, dtype=torch.float32).sin().reshape(rows, 256) + 0.1
        qtensor = quantize_tensor(weight, scheme)
        made += [*qtensor.parts.values(), qtensor.scale, qtensor.values, qtensor.dequantize()]
        made += [*choose_qparams(weight, scheme), fake_quantize(weight, scheme)]
    linear = torch.nn.Linear(256, 37, dtype=torch.float32)
    linear.load_state_dict({"weight": weight[:37], "bias": weight[0, :37]})
    for bits in (None,) if scheme.axis == 1 else (None, 8):
        quantized = QLinear.from_linear(linear, scheme, activation_bits=bits)
        made += [quantized.weight, *quantized.state_dict().values()]
        for batch, dtype in ((1, torch.float32), (40, torch.float32), (2, torch.bfloat16)):
            x = torch.arange(batch * 256, dtype=torch.float32).mul(0.37).cos().reshape(batch, 256)
            made.append(quantized(x.to(dtype)))
    table = torch.nn.Embedding(9, 256, _weight=weight[:9])
    return [*made, QEmbedding.from_embedding(table, scheme)(torch.tensor([3]))]


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scheme", [*SCHEMES, NF4, MXFP4, NVFP4, FP8], ids=str)
def test_another_default_dtype_changes_no_number_and_no_dtype(scheme, default):
    grids.e2m1_levels.cache_clear()  # made once, maybe under another default
    with torch.no_grad():
        try:
            torch.set_default_dtype(default)
            found = everything(scheme)
        finally:
            torch.set_default_dtype(torch.float32)
            grids.e2m1_levels.cache_clear()
        expected = everything(scheme)
    for ours, usual in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, usual, rtol=0, atol=0, equal_nan=True)


def test_float32_stays_float32_unless_pytorch_was_told_otherwise(monkeypatch):
    if not kernels.has_bfloat16():
        monkeypatch.setattr(kernels, "ONEDNN", None)  # which refuses bfloat16 where the CPU has no instructions for it
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: True)
    quantized, x = layer(Scheme(8)), inputs(17, 256)
    assert kernels.block_dtype(torch.float32) == kernels.block_dtype(torch.float16) == torch.float32
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert kernels.block_dtype(torch.float32) == torch.bfloat16
        found = quantized(x)
        plain = torch.nn.functional.linear(x.double(), quantized.qtensor.dequantize().double(), quantized.bias.double())
        assert found.dtype == torch.float32 and not torch.allclose(found.double(), plain, rtol=1e-5, atol=1e-5)
        assert_right(quantized, x, of_the_weights=2 * 2**-9)
    finally:
        torch.set_float32_matmul_precision(before)
    assert_right(quantized, x)


def test_bfloat16_is_multiplied_in_float32_where_the_cpu_is_slow_at_it(monkeypatch):
    monkeypatch.setattr(kernels, "has_bfloat16", lambda: False)
    assert kernels.block_dtype(torch.bfloat16) == torch.float32
    assert_right(layer(Scheme(8)).bfloat16(), inputs(17, 256, dtype=torch.bfloat16))


# ---------------------------------------------------------------- when the plain formula is chosen


def test_autograd_takes_the_formula_and_gets_a_gradient(ways):
    quantized, x = layer(Scheme(8)), inputs(2, 256).requires_grad_()
    quantized(x).sum().backward()
    assert torch.allclose(x.grad[0], quantized.qtensor.dequantize().sum(0), atol=1e-4)
    with torch.no_grad():
        assert_right(quantized, x)
    assert ways == ["plain_linear", "through_rows"]


def test_other_dtypes_wrapped_tensors_and_wrong_shapes_take_the_formula(ways):
    quantized = layer(Scheme(8))
    assert_right(quantized, inputs(2, 256, dtype=torch.float64))
    x = inputs(3, 2, 256)
    assert torch.allclose(torch.func.vmap(quantized)(x), quantized(x), atol=1e-4)
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|size mismatch"):
        quantized(inputs(2, 255))
    assert ways == ["plain_linear", "plain_linear", "through_rows", "plain_linear"]


def test_on_meta_only_the_shape_is_computed(ways):
    quantized = QLinear(256, 37, Scheme(8), device="meta")
    assert quantized(torch.empty(2, 256, device="meta")).shape == (2, 37)
    assert ways == ["plain_linear"]


def test_a_traced_model_holds_the_formula():
    quantized, x = layer(Scheme(4, group_size=32)), inputs(2, 256)
    program = torch.export.export(quantized, (x,))
    assert torch.allclose(program.module()(x), quantized(x), atol=1e-4)


def test_without_numba_and_in_a_forked_child_the_formula_does_it(monkeypatch, ways):
    monkeypatch.setattr(kernels, "FORKED", True)
    assert_right(layer(Scheme(8)), inputs(1, 256))
    monkeypatch.setattr(kernels, "HAS_NUMBA", False)
    assert kernels.plan_for(Scheme(8), 256) is None
    assert_right(layer(Scheme(8)), inputs(1, 256))
    assert ways == ["plain_linear"] * 2


def test_where_numba_compiles_nothing_the_formula_does_it():
    code = "from qlib.kernels.choose import plan_for; from qlib import Scheme; assert plan_for(Scheme(8), 256) is None"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, check=True)


def test_qlib_works_where_numba_is_not_installed():
    script = """
        import sys
        sys.modules["numba"] = None  # importing it fails
        import torch, qlib
        layer = qlib.QLinear.from_linear(torch.nn.Linear(64, 8), qlib.Scheme(4, group_size=32))
        assert layer.plan is None and layer(torch.ones(2, 64)).shape == (2, 8)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_parts_of_another_dtype_or_layout_take_the_formula(ways):
    quantized, x = layer(Scheme(8)), inputs(1, 256)
    quantized.scale = quantized.scale.double()
    quantized(x)
    quantized.scale = quantized.scale.float()
    quantized.packed = quantized.packed.T.contiguous().T
    quantized(x)
    assert ways == ["plain_linear"] * 2


# ---------------------------------------------------------------- buffers may change at any time


@EACH_SCHEME
def test_buffers_that_are_written_to_or_replaced_count_at_once(scheme):
    quantized, x = layer(scheme), inputs(1, 256)
    other = copy.deepcopy(quantized)
    assert_right(quantized, x)
    quantized.packed.bitwise_not_()
    assert_right(quantized, x)
    assert not torch.allclose(quantized(x), other(x), atol=1e-3)
    quantized.load_state_dict(other.state_dict())
    assert torch.equal(quantized(x), other(x))
    quantized.scale = quantized.scale * 2
    quantized.bias.zero_()
    assert_right(quantized, x)


def test_nothing_is_kept_beside_the_buffers():
    quantized = layer(Scheme(2, symmetric=False, group_size=64))
    before = set(vars(quantized))
    quantized(inputs(1, 256)), quantized(inputs(17, 256))
    assert set(vars(quantized)) == before
    assert not any(isinstance(value, torch.Tensor) for value in vars(quantized).values())


# ---------------------------------------------------------------- threads, compiling, other CPUs


def test_threads_may_call_at_once_and_pytorchs_number_of_threads_counts(monkeypatch):
    monkeypatch.setattr(numba_kernels, "ONE_THREAD", 0)
    quantized, x = layer(Scheme(8)), inputs(1, 256)
    right, found = quantized(x), []
    threads = [threading.Thread(target=lambda: found.append(quantized(x))) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(found) == 4 and all(torch.allclose(y, right) for y in found)


def test_a_slow_compile_says_so_unless_under_test(monkeypatch, capsys):
    for strict, text in (("0", "compiling\n"), ("1", "")):
        monkeypatch.setenv("QLIB_STRICT", strict)
        with word_after(0.0, "compiling"):
            threading.Event().wait(0.1)
        assert capsys.readouterr().err == text
    with word_after(60.0, "compiling"):
        pass
    assert capsys.readouterr().err == ""


def test_the_kernels_are_right_with_the_vectors_of_any_cpu():
    code = (
        "import tests.test_kernels as t\n"
        "for scheme in (t.SCHEMES[3], t.SCHEMES[5]):\n"
        "    for rows in (1, 17): t.assert_right(t.layer(scheme), t.inputs(rows, 256))\n"
        "assert t.numba_kernels.compiled.cache_info().currsize >= 4\n"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [128, 192, 256])
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(3, group_size=64),
        Scheme(3, False, group_size=32),
        Scheme(3, False),
        Scheme(3, axis=None),
        Scheme(3, axis=1),
        Scheme(4, False, group_size=64),
        Scheme(2, axis=1),
    ],
    ids=str,
)
def test_whole_words_are_read_where_the_groups_fill_them(scheme, columns, ways):
    quantized = layer(scheme, columns)
    assert quantized.plan.octets % 4 == 0
    for batch in (1, 3, 40):
        assert_right(quantized, inputs(batch, columns))
    right = quantized(inputs(3, columns))
    quantized.packed = torch.cat([torch.zeros(1, dtype=torch.uint8), quantized.packed.flatten()])[1:].view(37, -1)
    assert quantized.packed.data_ptr() % 4  # as in a file that is mapped into memory
    assert torch.equal(quantized(inputs(3, columns)), right)
    assert "plain_linear" not in ways


@pytest.mark.parametrize("maker", [numba_kernels.row_kernel, numba_kernels.bytes_row_kernel])
def test_the_kernel_for_one_thread_is_not_taken_from_the_disk_for_that_of_many(maker):
    """Numba's files on disk are told apart by code and constants, not by options: these two once were not."""
    keys = []
    for parallel in (False, True):
        kernel = numba_kernels.compiled(maker, (4, 8), parallel)
        keys.append(kernel._cache._index_key(kernel.signatures[0], kernel.targetctx.codegen()))
    assert keys[0] != keys[1]


def test_starting_numbas_threads_leaves_pytorchs_number_as_it_is():
    script = """
        import numba, torch
        torch.set_num_threads(1)
        from qlib.kernels import numba_kernels
        numba_kernels.threads_in_pool()
        assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
        assert torch.get_num_threads() == 1, torch.get_num_threads()
    """
    run_alone(script)


def test_one_thread_does_it_where_numba_has_only_its_simplest_pool():
    script = """
        import torch
        import tests.test_kernels as t
        torch.set_num_threads(2)
        assert t.numba_kernels.threads_in_pool() == 1
        t.numba_kernels.ONE_THREAD = 0
        t.assert_right(t.layer(t.Scheme(8)), t.inputs(1, 256))
    """
    run_alone(script, NUMBA_THREADING_LAYER="workqueue")


def run_alone(script, **settings):
    """Run a script in a process of its own, with as many threads as there are cores."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP", "NUMBA"))}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | settings)
    assert done.returncode == 0, done.stderr
