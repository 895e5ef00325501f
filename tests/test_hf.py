"""The plug-in: transformers quantizes while it loads, saves and loads again, to the element; on two processes too."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
import transformers

import qlib.hf
from qlib import QLinear, Scheme, load_quantized, quantize_checkpoint, quantize_model, save_quantized
from qlib.checkpoint import entries_of
from qlib.hf import QlibConfig, share_layer
from tests.test_quantized_folders import quiet  # noqa: F401 - a fixture
from tests.tiny_models import MODELS, assert_same_outputs, tiny_model

SCHEME = Scheme(bits=4, symmetric=False, group_size=32)
CONFIG = {"bits": 4, "symmetric": False, "group_size": 32}


def model_class(name):
    return getattr(transformers, MODELS[name][0])


@pytest.fixture
def float_folder(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path / "float")
    return tmp_path / "float"


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_quantizes_and_its_model_round_trips_to_the_element(name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path / "float", max_shard_size="100KB")
    expected = model_class(name).from_pretrained(tmp_path / "float").eval()
    report = quantize_model(expected, SCHEME)
    on_the_fly = model_class(name).from_pretrained(tmp_path / "float", quantization_config=QlibConfig(**CONFIG))
    assert_same_outputs(expected, on_the_fly.eval())
    layers = list(entries_of(on_the_fly))
    assert sorted(layers) == sorted(layer.name for layer in report.quantized)
    assert sorted(on_the_fly.hf_quantizer.report.quantized, key=str) == sorted(report.quantized, key=str)
    assert on_the_fly.hf_quantizer.report.skipped == report.skipped

    on_the_fly.save_pretrained(tmp_path / "saved")
    again = model_class(name).from_pretrained(tmp_path / "saved")
    assert_same_outputs(expected, again.eval())
    assert entries_of(again) == again.config.quantization_config.layers == entries_of(on_the_fly)
    assert_same_outputs(expected, load_quantized(tmp_path / "saved"))


@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_reads_what_qlib_wrote(name, tmp_path):
    tiny_model(name).save_pretrained(tmp_path / "float", max_shard_size="100KB")
    expected = model_class(name).from_pretrained(tmp_path / "float").eval()
    quantize_model(expected, SCHEME)
    save_quantized(expected, tmp_path / "saved")
    quantize_checkpoint(tmp_path / "float", tmp_path / "streamed", SCHEME)
    for folder in ("saved", "streamed"):
        assert_same_outputs(expected, model_class(name).from_pretrained(tmp_path / folder).eval())


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(bits=2, group_size=24), Scheme(bits=3, axis=None)], ids=str)
def test_any_scheme(scheme, float_folder):
    config = QlibConfig(scheme.bits, scheme.symmetric, scheme.axis, scheme.group_size)
    model = transformers.AutoModelForCausalLM.from_pretrained(float_folder, quantization_config=config)
    expected = tiny_model("Llama")
    quantize_model(expected, scheme)
    assert_same_outputs(expected, model.eval())


def test_the_weights_take_the_dtype_that_is_asked_for_and_the_scales_do_not(float_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        float_folder, quantization_config=QlibConfig(bits=4), dtype=torch.bfloat16
    )
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert model.model.layers[0].mlp.up_proj.scale.dtype == torch.float32
    expected = transformers.AutoModelForCausalLM.from_pretrained(float_folder, dtype=torch.bfloat16).eval()
    quantize_model(expected, Scheme(bits=4))
    assert_same_outputs(expected, model.eval())


def test_what_is_ignored_stays_float(float_folder):
    config = QlibConfig(bits=4, ignore=["lm_head", "*.mlp.*"])
    model = transformers.AutoModelForCausalLM.from_pretrained(float_folder, quantization_config=config)
    assert isinstance(model.model.layers[0].mlp.up_proj, torch.nn.Linear)
    assert isinstance(model.model.layers[0].self_attn.q_proj, QLinear)


def test_a_tied_head_is_left_alone_whatever_is_ignored(tmp_path):
    tiny_model("Llama, head tied").save_pretrained(tmp_path / "float")
    config = QlibConfig(bits=4, ignore=())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_accelerate_places_the_layers(float_folder, tmp_path):
    """device_map="auto", and a map that leaves a block's parameters and buffers on the disk until it runs."""
    expected = tiny_model("Llama")
    quantize_model(expected, SCHEME)
    save_quantized(expected, tmp_path / "saved")
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map="auto")
    assert_same_outputs(expected, auto.eval())
    places = {"model.layers.1": "disk", **dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm"), "cpu")}
    offloaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved",
        device_map={**places, "model.rotary_emb": "cpu", "lm_head": "cpu"},
        offload_folder=tmp_path / "offload",
        offload_buffers=True,
    )
    assert offloaded.model.layers[1].mlp.up_proj.packed.is_meta
    assert_same_outputs(expected, offloaded.eval())


def test_config_json_says_how_the_model_was_quantized(float_folder, tmp_path):
    config = QlibConfig(bits=4, group_size=32)
    model = transformers.AutoModelForCausalLM.from_pretrained(float_folder, quantization_config=config)
    model.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "qlib"
    assert stored["layers"]["model.layers.0.mlp.up_proj"] == {
        "bits": 4,
        "symmetric": True,
        "axis": 0,
        "group_size": 32,
    }


def test_an_impossible_scheme_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="bits must be"):
        QlibConfig(bits=9)


# ---------------------------------------------------------------- tensor parallelism


def test_the_shares_of_a_layer_make_up_the_layer():
    linear = torch.nn.Linear(64, 24)
    x = torch.linspace(-1, 1, 128).reshape(2, 64)
    for scheme in (SCHEME, Scheme(bits=3), Scheme(axis=None), Scheme(axis=1), Scheme(bits=2, group_size=16)):
        whole = QLinear.from_linear(linear, scheme)
        rows, columns = [], []
        for rank in range(2):
            share = QLinear.from_linear(linear, scheme)
            share_layer(share, "layer", "colwise", rank, 2)
            assert share.packed.shape[0] == 12
            rows.append(share(x))
            share = QLinear.from_linear(linear, scheme)
            share_layer(share, "layer", "rowwise", rank, 2)
            columns.append(share(x[:, rank * 32 : rank * 32 + 32]))
        torch.testing.assert_close(torch.cat(rows, -1), whole(x))
        torch.testing.assert_close(sum(columns), whole(x))


@pytest.mark.parametrize(
    ("style", "size", "message"),
    [
        ("rowwise", 4, r"layer: 64 inputs do not share out among 4 by 32"),
        ("colwise", 7, r"layer: 24 outputs do not share out among 7 by 1"),
        ("colwise_gather_output", 2, r"layer: tensor parallelism 'colwise_gather_output' is not for quantized layers"),
    ],
)
def test_a_layer_that_cannot_be_shared_is_named(style, size, message):
    layer = QLinear.from_linear(torch.nn.Linear(64, 24), SCHEME)
    with pytest.raises(ValueError, match=message):
        share_layer(layer, "layer", style, 0, size)


TWO_PROCESSES = """
    import json, os, sys, torch, transformers
    import qlib.hf
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    plan = transformers.distributed.DistributedConfig(tp_plan="auto", tp_size=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], distributed_config=plan).eval()
    with torch.inference_mode():
        scores = model(input_ids=torch.arange(9)[None]).logits
    scores = scores.full_tensor() if hasattr(scores, "full_tensor") else scores
    rank, up = torch.distributed.get_rank(), model.model.layers[0].mlp.up_proj
    found = {"layer": type(up).__name__, "packed": list(up.packed.shape), "scores": scores[0, -1].tolist()}
    with open(f"{sys.argv[1]}/{rank}.json", "w") as file:  # for what two processes print may end up on one line
        json.dump(found, file)
    torch.distributed.barrier()  # the first to leave would break the connection of the other
    os._exit(0)  # gloo's threads now and then abort a process that takes itself down
"""


def test_two_processes_share_a_model_under_transformers_tensor_parallelism(tmp_path, request):
    model = tiny_model("Llama")
    quantize_model(model, Scheme(bits=4, group_size=16))
    save_quantized(model, tmp_path / "model")
    (tmp_path / "run.py").write_text(textwrap.dedent(TWO_PROCESSES))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    done = subprocess.run(
        [*command, "--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", tmp_path / "run.py", tmp_path / "model"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=request.config.rootpath,
    )
    assert done.returncode == 0, done.stderr[:4000]
    with torch.inference_mode():
        expected = model(input_ids=torch.arange(9)[None]).logits[0, -1]
    for rank in (0, 1):
        found = json.loads((tmp_path / "model" / f"{rank}.json").read_text())
        assert found["layer"] == "QLinear" and found["packed"] == [48, 32]  # of (96, 32) packed bytes
        torch.testing.assert_close(torch.tensor(found["scores"]), expected)


def test_a_float_checkpoint_is_not_shared_out_and_quantized_at_once(tmp_path, monkeypatch):
    quantizer = qlib.hf.QlibQuantizer(QlibConfig(bits=4), pre_quantized=False)
    model = tiny_model("Llama")
    monkeypatch.setattr(type(model), "tp_size", 2)
    with pytest.raises(ValueError, match="tensor parallelism takes a model that is quantized already"):
        quantizer._process_model_before_weight_loading(model)
