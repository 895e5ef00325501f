"""The plug-in: transformers quantizes while it loads, saves and loads again, to the element; on two processes too."""

import copy
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
from tests.test_quantized_folders import UP, quiet, rewrite  # noqa: F401 - one is a fixture
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


# ---------------------------------------------------------------- nothing silently wrong


@pytest.mark.parametrize("name", ["Llama", "Llama, head tied", "GPT-2", "ViT", "Whisper", "Mixtral"])
def test_transformers_own_save_pretrained_of_a_model_that_quantize_model_made_comes_back(name, tmp_path):
    model = tiny_model(name)
    quantize_model(model, SCHEME)
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    assert_same_outputs(model, model_class(name).from_pretrained(tmp_path / "model").eval())
    assert_same_outputs(model, load_quantized(tmp_path / "model"))


def test_a_loaded_model_can_be_saved_by_transformers(tmp_path):
    model = tiny_model("Llama")
    quantize_model(model, SCHEME)
    save_quantized(model, tmp_path / "model")
    load_quantized(tmp_path / "model").save_pretrained(tmp_path / "again")
    assert_same_outputs(model, model_class("Llama").from_pretrained(tmp_path / "again").eval())


def test_an_inner_model_of_a_quantized_one_can_be_saved_by_itself(tmp_path):
    model = tiny_model("Llama")
    quantize_model(model, SCHEME)
    model.model.save_pretrained(tmp_path / "inner")
    again = transformers.AutoModel.from_pretrained(tmp_path / "inner").eval()
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        assert torch.equal(again(ids)[0], model.model(ids)[0])


def test_layers_that_are_quantized_after_the_loading_are_saved_as_what_they_are(float_folder, tmp_path):
    config = QlibConfig(bits=4, symmetric=False, group_size=32, ignore=["lm_head", "*.mlp.*"])
    model = transformers.AutoModelForCausalLM.from_pretrained(float_folder, quantization_config=config).eval()
    quantize_model(model, Scheme(bits=8), ignore=())
    model.save_pretrained(tmp_path / "model")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert again.lm_head.scheme == again.model.layers[0].mlp.up_proj.scheme == Scheme(bits=8)
    assert_same_outputs(model, again)


WITHOUT_THE_PLUG_IN = """
    import sys, transformers
    assert "qlib" not in sys.modules
    transformers.utils.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


@pytest.mark.parametrize("writer", ["save_quantized", "save_pretrained", "by hand", "quantize_checkpoint"])
def test_without_the_plug_in_transformers_fails_instead_of_going_on_with_random_weights(writer, float_folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(float_folder)
    if writer == "by hand":  # nothing of config.json says that a layer is quantized
        model.model.layers[0].mlp.up_proj = QLinear.from_linear(model.model.layers[0].mlp.up_proj, SCHEME)
        model.save_pretrained(tmp_path / "model")
        assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    elif writer == "quantize_checkpoint":
        quantize_checkpoint(float_folder, tmp_path / "model", SCHEME)
    else:
        quantize_model(model, SCHEME)
        save_quantized(model, tmp_path / "model") if writer == "save_quantized" else model.save_pretrained(
            tmp_path / "model"
        )
    script = [sys.executable, "-c", textwrap.dedent(WITHOUT_THE_PLUG_IN), tmp_path / "model"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "mlp.up_proj.weight" in done.stderr and "MISMATCH" in done.stderr


def test_a_base_model_is_loaded_from_the_folder_of_a_head_and_a_head_from_that_of_a_base_model(tmp_path):
    model, ids = tiny_model("Llama"), torch.arange(3, 12)[None]
    quantize_model(model, SCHEME, ignore=())  # the head, too
    save_quantized(model, tmp_path / "head")
    base = transformers.AutoModel.from_pretrained(tmp_path / "head").eval()
    save_quantized(base, tmp_path / "base")
    with torch.inference_mode():
        expected = model.model(ids)[0]
        assert torch.equal(base(ids)[0], expected)
        for folder in ("head", "base"):
            classes = transformers.LlamaForCausalLM, transformers.LlamaForTokenClassification
            for model_class in classes:
                loaded = model_class.from_pretrained(tmp_path / folder).eval()
                assert torch.equal(loaded.model(ids)[0], expected)
        float_base = transformers.AutoModel.from_pretrained(tmp_path / "base").eval()
        assert torch.equal(float_base(ids)[0], expected)


def test_a_base_model_is_quantized_while_it_loads_from_the_folder_of_a_head(float_folder):
    expected = transformers.AutoModel.from_pretrained(float_folder).eval()
    quantize_model(expected, SCHEME)
    model = transformers.AutoModel.from_pretrained(float_folder, quantization_config=QlibConfig(**CONFIG)).eval()
    with torch.inference_mode():
        assert torch.equal(model(torch.arange(9)[None])[0], expected(torch.arange(9)[None])[0])


@pytest.mark.parametrize("name", ["ViT", "Whisper", "BERT", "DETR"])
def test_biases_are_the_files_whatever_a_models_own_initialization_does(name, tmp_path, monkeypatch):
    """As SigLIP, Gemma 3, Mamba and wav2vec 2 do, a parent fills the biases of its layers anew."""
    tiny_model(name).save_pretrained(tmp_path / "float")
    cls = model_class(name)

    def fill(self, module):
        for child in module.children():
            if isinstance(child, (torch.nn.Linear, QLinear)):
                transformers.initialization.constant_(child.weight, 7.0)
                if child.bias is not None:
                    transformers.initialization.constant_(child.bias, 7.0)

    monkeypatch.setattr(cls, "_init_weights", fill)
    expected = cls.from_pretrained(tmp_path / "float").eval()
    quantize_model(expected, SCHEME)
    model = cls.from_pretrained(tmp_path / "float", quantization_config=QlibConfig(**CONFIG)).eval()
    assert_same_outputs(expected, model)
    model.save_pretrained(tmp_path / "again")
    assert_same_outputs(expected, cls.from_pretrained(tmp_path / "again").eval())


def test_two_models_of_one_configuration_are_not_both_called_quantized(tmp_path):
    config = copy.deepcopy(MODELS["Mixtral"][1])
    one, other = (transformers.MixtralForCausalLM(config) for _ in range(2))
    quantize_model(one, SCHEME)
    one.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    assert "quantization_config" not in json.loads((tmp_path / "other" / "config.json").read_text())
    assert one.config._experts_implementation == "qlib" != other.config._experts_implementation


@pytest.mark.parametrize("part", ["packed", "scale", "zero_point"])
def test_a_part_that_no_file_holds_is_named(part, tmp_path):
    model = tiny_model("Llama")
    quantize_model(model, SCHEME)
    save_quantized(model, tmp_path / "model")
    rewrite(tmp_path / "model", lambda tensors: tensors.pop(f"{UP}.{part}"))
    with pytest.raises(ValueError, match=rf"model lacks {UP}\.{part}, a part of a quantized layer"):
        model_class("Llama").from_pretrained(tmp_path / "model")


def test_a_float_weight_of_another_shape_is_not_quantized(float_folder):
    rewrite(float_folder, lambda tensors: tensors.update({f"{UP}.weight": torch.ones(3, 3)}))
    with pytest.raises(ValueError, match=rf"{UP}\.weight is of shape \(3, 3\); the model needs \(96, 64\)"):
        model_class("Llama").from_pretrained(float_folder, quantization_config=QlibConfig(**CONFIG))


def test_a_weight_that_is_not_finite_is_named_while_it_loads(float_folder):
    rewrite(float_folder, lambda tensors: tensors[f"{UP}.weight"].view(-1)[:1].fill_(float("nan")))
    with pytest.raises(ValueError, match=rf"{UP}\.weight cannot be quantized: the value at \[0, 0\] is nan"):
        model_class("Llama").from_pretrained(float_folder, quantization_config=QlibConfig(**CONFIG))


def test_a_head_that_no_file_holds_stays_float_and_the_report_says_why(tmp_path):
    base = tiny_model("Llama").model
    base.save_pretrained(tmp_path / "base")
    config = QlibConfig(**CONFIG, ignore=())
    model = transformers.LlamaForTokenClassification.from_pretrained(tmp_path / "base", quantization_config=config)
    assert type(model.score) is torch.nn.Linear and model.score.weight.isfinite().all()
    assert [(layer.name, layer.why) for layer in model.hf_quantizer.report.skipped][-1] == (
        "score",
        "its weight was in no file",
    )


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


def test_packed_experts_are_not_shared_out(tmp_path, monkeypatch):
    model = tiny_model("Mixtral")
    quantize_model(model, SCHEME)
    quantizer = qlib.hf.QlibQuantizer(QlibConfig(layers=entries_of(model)))
    monkeypatch.setattr(type(model), "tp_size", 2)
    with pytest.raises(ValueError, match=r"experts\.gate_up_proj: tensor parallelism shares out no packed experts"):
        quantizer._process_model_before_weight_loading(tiny_model("Mixtral"))


def test_a_float_checkpoint_is_not_shared_out_and_quantized_at_once(tmp_path, monkeypatch):
    quantizer = qlib.hf.QlibQuantizer(QlibConfig(bits=4), pre_quantized=False)
    model = tiny_model("Llama")
    monkeypatch.setattr(type(model), "tp_size", 2)
    with pytest.raises(ValueError, match="tensor parallelism takes a model that is quantized already"):
        quantizer._process_model_before_weight_loading(model)
