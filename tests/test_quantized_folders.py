"""Models in folders: what is loaded computes what was saved; an interrupted or broken save loses nothing."""

import copy
import io
import json
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import safetensors
import safetensors.torch
import torch
import transformers

from course.models import encoder_folder
from qlib import QLinear, Scheme, load_quantized, quantize_checkpoint, quantize_model, save_quantized
from qlib.model import tensors_of
from qlib.report import file_bytes, state_dict_bytes
from tests.tiny_models import MODELS, assert_same_outputs, outputs, tiny_model

SCHEME = Scheme(bits=4, symmetric=False, group_size=32)


@pytest.fixture(autouse=True)
def quiet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.utils.logging, "_tqdm_active", False)
        yield


def quantized(name, scheme=SCHEME):
    model = tiny_model(name)
    quantize_model(model, scheme)
    return model


@pytest.fixture(scope="module")
def llama():
    return quantized("Llama")


@pytest.fixture
def folder(llama, tmp_path):
    save_quantized(llama, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def source(tmp_path):
    """A float checkpoint in several files."""
    tiny_model("Llama").save_pretrained(tmp_path / "source", max_shard_size="100KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    return tmp_path / "source"


def contents(folder):
    """{name: bytes} of all the files of a folder that are not hidden."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def hidden(folder):
    """What saves left in a folder of models and in those."""
    return [path.name for path in (*folder.glob(".*"), *folder.glob("*/.*"))]


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_computes_what_was_saved(name, tmp_path):
    model = quantized(name)
    save_quantized(model, tmp_path / "model")
    loaded = load_quantized(tmp_path / "model")
    assert not any(tensor.is_meta for tensor in tensors_of(loaded).values())
    assert_same_outputs(model, loaded)
    assert state_dict_bytes(tensors_of(loaded)) == state_dict_bytes(tensors_of(model))  # ties are ties again


@pytest.mark.parametrize("name", MODELS)
def test_a_quantized_checkpoint_is_the_quantized_model(name, tmp_path):
    float_model = tiny_model(name)
    float_model.save_pretrained(tmp_path / "float", max_shard_size="100KB")
    streamed = quantize_checkpoint(tmp_path / "float", tmp_path / "model", SCHEME)
    model = copy.deepcopy(float_model)
    report = quantize_model(model, SCHEME)
    assert streamed.quantized == report.quantized
    assert streamed.skipped == report.skipped
    assert_same_outputs(model, load_quantized(tmp_path / "model"))


@pytest.mark.parametrize(
    "scheme",
    [Scheme(), Scheme(axis=None, bits=3), Scheme(axis=1, symmetric=False), Scheme(bits=2, group_size=24)],
    ids=str,
)
def test_every_scheme_comes_back(scheme, source, tmp_path):
    model = quantized("Llama", scheme)
    save_quantized(model, tmp_path / "saved")
    quantize_checkpoint(source, tmp_path / "streamed", scheme)
    for folder in ("saved", "streamed"):
        loaded = load_quantized(tmp_path / folder)
        assert loaded.model.layers[0].mlp.up_proj.scheme == scheme
        assert_same_outputs(model, loaded)


def test_layers_may_have_schemes_of_their_own(tmp_path):
    model = tiny_model("Llama")
    quantize_model(model, Scheme(bits=8), ignore=("lm_head", "*mlp*"))
    quantize_model(model, SCHEME, ignore=())
    save_quantized(model, tmp_path / "model")
    loaded = load_quantized(tmp_path / "model")
    assert loaded.model.layers[0].self_attn.q_proj.scheme.bits == 8
    assert loaded.lm_head.scheme == loaded.model.layers[1].mlp.up_proj.scheme == SCHEME
    assert_same_outputs(model, loaded)


def test_a_large_model_goes_into_several_files(llama, tmp_path):
    save_quantized(llama, tmp_path / "model", max_shard_size="40KB")
    files = list((tmp_path / "model").glob("*.safetensors"))
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {path.name for path in files}
    assert_same_outputs(llama, load_quantized(tmp_path / "model"))


def test_half_precision_stays(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path / "float")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "float", dtype=torch.bfloat16)
    quantize_model(model, SCHEME)
    save_quantized(model, tmp_path / "model")
    loaded = load_quantized(tmp_path / "model")
    assert loaded.model.norm.weight.dtype == torch.bfloat16
    assert loaded.model.layers[0].mlp.up_proj.scale.dtype == torch.float32
    assert_same_outputs(model, loaded)


def test_the_folder_is_about_as_large_as_the_model(folder, llama):
    weights = file_bytes(folder / "model.safetensors")
    in_memory = state_dict_bytes(llama.state_dict())
    assert in_memory <= weights < in_memory + 8000  # the header: names, shapes and places
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"]["quant_method"] == "qlib"
    assert len(config["quantization_config"]["layers"]) == 14
    assert hidden(folder.parent) == []


def test_a_tokenizer_goes_along_and_generation_settings_come_back(llama, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_folder())
    model = copy.deepcopy(llama)
    model.generation_config.max_new_tokens = 7
    save_quantized(model, tmp_path / "model", tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again("a cat")["input_ids"] == tokenizer("a cat")["input_ids"]
    assert load_quantized(tmp_path / "model").generation_config.max_new_tokens == 7


class Net(torch.nn.Module):
    """Not of transformers: a tied head, a buffer in the state dict and one that is in no file."""

    def __init__(self):
        super().__init__()
        self.embedding, self.inner = torch.nn.Embedding(20, 16), torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("shift", torch.arange(16.0))
        self.register_buffer("scale", torch.full((16,), 0.5), persistent=False)

    def forward(self, ids):
        return self.head(self.inner(self.embedding(ids) * self.scale + self.shift))


def test_a_loaded_model_does_not_hang_on_the_file_it_came_from(llama, folder):
    loaded = load_quantized(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    assert_same_outputs(llama, loaded)


def test_empty_tensors_come_back(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(16, 4))
    net.register_buffer("nothing", torch.empty(0, 3))
    structure = copy.deepcopy(net)
    quantize_model(net, SCHEME)
    save_quantized(net, tmp_path / "net")
    loaded = load_quantized(tmp_path / "net", structure)
    assert loaded.nothing.shape == (0, 3)


def test_any_module_will_do_when_its_structure_is_given(tmp_path):
    import accelerate

    net = Net()
    quantize_model(net, SCHEME)
    save_quantized(net, tmp_path / "net")
    with accelerate.init_empty_weights(include_buffers=False):
        empty = Net()
    ids = torch.arange(20)
    for structure in (Net(), empty):  # `empty` has lost its tie on the way to the meta device: the file knows of it
        loaded = load_quantized(tmp_path / "net", structure)
        assert loaded is structure
        assert loaded.head.weight is loaded.embedding.weight
        assert torch.equal(loaded(ids), net(ids))
    with pytest.raises(ValueError, match="names no architecture: give load_quantized the model too"):
        load_quantized(tmp_path / "net")
    with torch.device("meta"):
        nothing = Net()
    with pytest.raises(ValueError, match=r"scale is still on the meta device.*include_buffers=False"):
        load_quantized(tmp_path / "net", nothing)


def test_a_float_model_is_not_saved_as_a_quantized_one(tmp_path):
    with pytest.raises(ValueError, match="no layer of this Net is quantized"):
        save_quantized(Net(), tmp_path / "net")
    with torch.device("meta"):
        empty = Net()
    empty.inner = QLinear(16, 16, SCHEME, device="meta")
    with pytest.raises(ValueError, match="has no values: it is on the meta device"):
        save_quantized(empty, tmp_path / "net")
    assert not (tmp_path / "net").exists()


# ---------------------------------------------------------------- nothing is lost


def test_a_new_save_replaces_the_weights_and_keeps_the_rest(folder, llama):
    (folder / "README.md").write_text("mine")
    save_quantized(llama, folder, max_shard_size="40KB")
    assert not (folder / "model.safetensors").exists()
    assert (folder / "README.md").read_text() == "mine"
    save_quantized(llama, folder)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert_same_outputs(llama, load_quantized(folder))


def test_a_save_that_fails_leaves_the_old_folder_whole(folder, monkeypatch):
    before = contents(folder)
    other = quantized("Llama", Scheme(bits=8))
    written = []

    def disk_is_full(tensors, path, metadata):
        if written:
            raise OSError("No space left on device")
        written.append(path)
        path.write_bytes(b"half")

    monkeypatch.setattr(safetensors.torch, "save_file", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        save_quantized(other, folder, max_shard_size="40KB")
    assert contents(folder) == before
    assert hidden(folder.parent) == []


def killed_in(script, cwd):
    """Run a script that kills itself; True if the kill is what ended it."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return True


KILL_AT = """
    import os, pathlib, signal, sys
    sys.path.insert(0, {root!r})
    from qlib import Scheme, folders, quantize_checkpoint, quantize_model, save_quantized, streaming
    from tests.tiny_models import tiny_model
    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)
    {prepare}
"""


@pytest.fixture
def root(request):
    return str(request.config.rootpath)


def test_quantizing_a_checkpoint_goes_on_where_it_was_killed(source, tmp_path, root, monkeypatch):
    from qlib import streaming

    prepare = f"""
    quantize_file = streaming.quantize_file
    def twice(*arguments, done=[]):
        if len(done) == 2:
            die()
        done.append(arguments)
        return quantize_file(*arguments)
    streaming.quantize_file = twice
    quantize_checkpoint({str(source)!r}, {str(tmp_path / "model")!r}, Scheme(bits=4, symmetric=False, group_size=32))
    """
    assert killed_in(KILL_AT.format(root=root, prepare=prepare), root)
    assert not (tmp_path / "model").exists()
    assert len(list((tmp_path / ".model.unfinished").glob("*.safetensors"))) == 2
    quantize_file, done = streaming.quantize_file, []
    monkeypatch.setattr(streaming, "quantize_file", lambda *a: done.append(a[0].name) or quantize_file(*a))
    quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert len(done) == len(list(source.glob("*.safetensors"))) - 2
    assert_same_outputs(quantized("Llama"), load_quantized(tmp_path / "model"))
    assert hidden(tmp_path) == []


def test_what_was_begun_with_another_scheme_is_begun_anew(source, tmp_path, monkeypatch):
    from qlib import folders

    monkeypatch.setattr(folders, "put_in_place", lambda *_: None)
    quantize_checkpoint(source, tmp_path / "model", Scheme(bits=8))
    monkeypatch.undo()
    quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert_same_outputs(quantized("Llama"), load_quantized(tmp_path / "model"))


def test_a_checkpoint_is_quantized_one_tensor_at_a_time(source, tmp_path, monkeypatch):
    """No tensor that was read is still alive when the next is."""
    import weakref

    from qlib import files

    alive, most, read_tensor = [], [], files.read_tensor

    def watched(file, key):
        most.append(sum(reference() is not None for reference in alive))
        tensor = read_tensor(file, key)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(files, "read_tensor", watched)
    quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert len(most) == 21
    assert max(most) == 0


def test_companions_are_copied_and_pickles_are_not(source, tmp_path):
    (source / "README.md").write_text("a card")
    (source / "training_args.bin").write_bytes(pickle.dumps([1]))
    quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert (tmp_path / "model" / "README.md").read_text() == "a card"
    assert not (tmp_path / "model" / "training_args.bin").exists()


def test_a_tensor_that_the_model_does_not_use_is_left_out_with_a_word(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path / "source")
    rewrite(tmp_path / "source", lambda tensors: tensors.update({"rotary.inv_freq": torch.ones(8)}))
    with pytest.warns(UserWarning, match=r"1 tensors are left out, such as 'rotary\.inv_freq'"):
        quantize_checkpoint(tmp_path / "source", tmp_path / "model", SCHEME)
    assert_same_outputs(quantized("Llama"), load_quantized(tmp_path / "model"))


# ---------------------------------------------------------------- one clear error


def rewrite(folder, change, name="model.safetensors"):
    """Change the tensors of a file."""
    tensors = safetensors.torch.load_file(folder / name)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / name, metadata={"format": "pt"})


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


UP = "model.layers.0.mlp.up_proj"


def retie(folder, ties):
    """Write other ties into the header of a file."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "ties": ties})


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder):
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, buffer)
    (folder / "model.safetensors").write_bytes(buffer.getvalue())


def old_pickle(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "the file is cut off": (cut_off, r"model\.safetensors is not a whole safetensors file"),
    "the file is text": (
        lambda f: (f / "model.safetensors").write_text("hello, world, I am no checkpoint"),
        r"model\.safetensors is not a whole safetensors file",
    ),
    "the file is what torch.save writes": (pickled, r"model\.safetensors is a pickle, which can run code"),
    "the file is a pickle": (old_pickle, r"model\.safetensors is a pickle, which can run code"),
    "there is only a pickle": (only_a_pickle, r"weights in pytorch_model\.bin, a pickle"),
    "a key is missing": (
        lambda f: rewrite(f, lambda t: t.pop(f"{UP}.scale")),
        rf"lacks '{UP}\.scale', which a LlamaForCausalLM needs",
    ),
    "a key is foreign": (
        lambda f: rewrite(f, lambda t: t.update({"visitor": torch.ones(2)})),
        r"model\.safetensors holds 'visitor', for which a LlamaForCausalLM has no place",
    ),
    "a shape is another": (
        lambda f: rewrite(f, lambda t: t.update({f"{UP}.scale": torch.ones(96, 3)})),
        rf"{UP}\.scale is of shape \(96, 3\); the model needs \(96, 2\)",
    ),
    "two shapes are swapped": (
        lambda f: rewrite(f, lambda t: t.update({f"{UP}.packed": t[f"{UP}.packed"].T.contiguous()})),
        rf"{UP}\.packed is of shape \(32, 96\); the model needs \(96, 32\)",
    ),
    "a dtype is another": (
        lambda f: rewrite(f, lambda t: t.update({f"{UP}.packed": t[f"{UP}.packed"].float()})),
        rf"{UP}\.packed is torch\.float32; the model needs torch\.uint8",
    ),
    "the config is cut off": (
        lambda f: (f / "config.json").write_text('{"architectures": ["Lla'),
        r"config\.json is not JSON",
    ),
    "the config is a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json holds no JSON object"),
    "the config speaks of no quantization": (
        lambda f: edit_config(f, lambda c: c.pop("quantization_config")),
        r"config\.json does not say that qlib quantized this model",
    ),
    "the config lists no layers": (
        lambda f: edit_config(f, lambda c: c["quantization_config"].pop("layers")),
        r"config\.json lacks quantization_config\.layers",
    ),
    "a scheme is impossible": (
        lambda f: edit_config(f, lambda c: c["quantization_config"]["layers"][UP].update(bits=9)),
        rf"config\.json: layer '{UP}': bits must be",
    ),
    "a layer is not in the model": (
        lambda f: edit_config(f, lambda c: c["quantization_config"]["layers"].update({"no.such": {"bits": 4}})),
        r"config\.json does not fit the model: .*no",
    ),
    "a layer is not linear": (
        lambda f: edit_config(f, lambda c: c["quantization_config"]["layers"].update({"model.norm": {"bits": 4}})),
        r"config\.json does not fit the model: model\.norm is a LlamaRMSNorm",
    ),
    "the config is nested without end": (
        lambda f: (f / "config.json").write_text('{"a":' * 100_000),
        r"config\.json is not JSON",
    ),
    "the generation settings are cut off": (
        lambda f: (f / "generation_config.json").write_text('{"max_new'),
        r"generation_config\.json is not JSON",
    ),
    "the generation settings are nonsense": (
        lambda f: (f / "generation_config.json").write_text('{"max_new_tokens": -1, "watermarking_config": 3}'),
        r"generation_config\.json makes no sense",
    ),
    "the ties are a list": (lambda f: retie(f, "[1]"), r"model\.safetensors is not .*ties are no names by name"),
    "the ties are nested": (lambda f: retie(f, '{"a": {"b": "c"}}'), r"model\.safetensors is not .*ties are no names"),
    "the ties are nested without end": (lambda f: retie(f, "[" * 100_000), r"model\.safetensors is not a checkpoint"),
    "a float is stored as integers": (
        lambda f: rewrite(f, lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)})),
        r"model\.norm\.weight is torch\.int32; the model needs torch\.float32",
    ),
    "a scale is a float8": (
        lambda f: rewrite(f, lambda t: t.update({f"{UP}.scale": t[f"{UP}.scale"].to(torch.float8_e4m3fn)})),
        rf"{UP}\.scale is torch\.float8_e4m3fn; the model needs torch\.float32",
    ),
    "there are endlessly many layers": (
        lambda f: edit_config(f, lambda c: c.update(num_hidden_layers=10**9)),
        r"config\.json describes no LlamaForCausalLM .*num_hidden_layers is 1000000000, more than the checkpoint has",
    ),
    "there are far more layers than tensors": (
        lambda f: edit_config(f, lambda c: c.update(num_hidden_layers=1100)),
        r"config\.json describes no LlamaForCausalLM .*far more parameters than the checkpoint has tensors",
    ),
    "a size makes no sense": (
        lambda f: edit_config(f, lambda c: c.update(hidden_size=-3)),
        r"config\.json describes no LlamaForCausalLM that can be built",
    ),
    **{
        f"the architecture is {name!r}, no model": (
            lambda f, name=name: edit_config(f, lambda c: c.update(architectures=[name])),
            rf"names the architecture {name!r}, which transformers lacks",
        )
        for name in (5, "pipeline", "Trainer", "PreTrainedModel", "LlamaConfig")
    },
    "the model type is unknown": (
        lambda f: edit_config(f, lambda c: c.update(model_type="abacus")),
        r"names the model type 'abacus', which transformers lacks: give load_quantized the model too$",
    ),
    "the architecture is unknown": (
        lambda f: edit_config(f, lambda c: c.update(architectures=["Abacus"])),
        r"names the architecture 'Abacus', which transformers lacks",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_gives_one_clear_error(what, folder):
    break_it, message = BROKEN[what]
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        load_quantized(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere"):
        load_quantized(tmp_path / "elsewhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*model\.safetensors"):
        load_quantized(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*config\.json"):
        load_quantized(folder)


def test_a_missing_or_cut_off_shard_is_named(llama, tmp_path):
    save_quantized(llama, tmp_path / "model", max_shard_size="40KB")
    shard = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"{shard.name} is not a whole safetensors file"):
        load_quantized(tmp_path / "model")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        load_quantized(tmp_path / "model")


def test_an_index_that_points_outside_its_folder_is_refused(llama, tmp_path):
    save_quantized(llama, tmp_path / "model", max_shard_size="40KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match="weight_map of the names of files beside it"):
        load_quantized(tmp_path / "model")


def test_a_model_is_untouched_by_a_checkpoint_that_does_not_fit(tmp_path):
    net = Net()
    quantize_model(net, SCHEME)
    save_quantized(net, tmp_path / "net")
    rewrite(tmp_path / "net", lambda tensors: tensors.pop("shift"))
    with pytest.raises(ValueError, match="lacks 'shift', which a Net needs"):
        load_quantized(tmp_path / "net", Net())


def test_a_source_that_cannot_be_quantized_leaves_nothing_where_the_model_would_be(source, tmp_path):
    for call, message in (
        (lambda: quantize_checkpoint(source, source, SCHEME), "is the checkpoint itself"),
        (lambda: quantize_checkpoint(tmp_path / "nowhere", tmp_path / "model", SCHEME), r"no folder .*nowhere"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            call()
    head = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    kept = (source / head).read_bytes()
    rewrite(source, lambda tensors: tensors.pop("lm_head.weight"), head)
    with pytest.raises(ValueError, match=r"lacks 'lm_head\.weight', which a LlamaForCausalLM needs"):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    (source / head).write_bytes(kept)
    shard = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"][f"{UP}.weight"]
    rewrite(source, lambda tensors: tensors[f"{UP}.weight"].view(-1)[:1].fill_(float("nan")), shard)
    with pytest.raises(ValueError, match=rf"{shard}: {UP}\.weight cannot be quantized: the value at \[0, 0\] is nan"):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    rewrite(source, lambda tensors: tensors.update({f"{UP}.weight": torch.ones(3, 3)}), shard)
    with pytest.raises(ValueError, match=rf"{UP}\.weight is of shape \(3, 3\); the model needs \(96, 64\)"):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    rewrite(source, lambda tensors: tensors.pop(f"{UP}.weight"), shard)
    with pytest.raises(ValueError, match=rf"lacks '{UP}\.weight', which a LlamaForCausalLM needs"):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert not (tmp_path / "model").exists()


def test_a_quantized_checkpoint_is_not_quantized_again(folder, tmp_path):
    with pytest.raises(ValueError, match="this checkpoint is quantized already"):
        quantize_checkpoint(folder, tmp_path / "again", SCHEME)


def test_nothing_on_the_way_can_unpickle(folder, source, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    load_quantized(folder)
    quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert len(outputs(load_quantized(tmp_path / "model"))) == 1


def test_a_file_where_the_folder_should_be_is_refused(llama, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        save_quantized(llama, tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"
