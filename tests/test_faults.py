"""Faults: kills, races, links and broken files cost no model, no file of the user's, and give no mixture."""

import contextlib
import errno
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import time
import warnings

import pytest
import safetensors.torch
import torch

from course.exercises.judge import CORRECT, INCORRECT
from course.exercises.progress import best_outcomes, note_attempt
from qlib import Scheme, folders, load_quantized, quantize_checkpoint, quantize_model, save_quantized
from qlib.files import WeightFile
from tests.tiny_models import assert_same_outputs, tiny_model

SCHEME = Scheme(bits=4, symmetric=False, group_size=32)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the faults of a process need fork and its signals")


def net():
    return torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8), "b": torch.nn.Linear(8, 8)})


def model_of(number):
    """A quantized model all of whose floats are `number`; those of even numbers have other widths than the odd."""
    model = net()
    quantize_model(model, Scheme(bits=8 if number % 2 else 4), progress=False)
    for tensor in model.state_dict().values():
        tensor.fill_(number)
    return model


def number_in(folder):
    """Which `model_of` a folder holds; it must be one, and whole."""
    model = load_quantized(folder, net())
    (number,) = {value for tensor in model.state_dict().values() for value in tensor.flatten().tolist()}
    assert model["a"].scheme.bits == (8 if number % 2 else 4)
    return number


def save(number, folder):
    """In several files, with names that differ from one model to the next."""
    save_quantized(model_of(number), folder, max_shard_size=100 if number % 2 else 300)


def left_behind(folder):
    """The hidden files and folders in a model's folder and beside it."""
    return [path.name for path in (*folder.glob(".*"), *folder.parent.glob(".*"))]


@contextlib.contextmanager
def process(function, *arguments):
    """`with process(function, …):` a real process does something meanwhile; it must end well."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    try:
        yield child
        child.join(20)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "home" / "model"
    save_with_companions(folder)
    return folder


def save_with_companions(folder):
    """Save model 1, and lay beside it what its owner keeps there."""
    save(1, folder)
    (folder / "README.md").write_text("mine")
    (folder / "adapter_model.safetensors").write_bytes(safetensors.torch.save({"lora": torch.ones(2)}))
    (folder / "notes").mkdir()
    (folder / "notes" / "model.safetensors").write_text("mine too")


def assert_kept(folder):
    assert (folder / "README.md").read_text() == "mine"
    assert safetensors.torch.load_file(folder / "adapter_model.safetensors")["lora"].tolist() == [1, 1]
    assert (folder / "notes" / "model.safetensors").read_text() == "mine too"


# ---------------------------------------------------------------- what a save leaves alone


def test_a_save_removes_the_older_weights_and_nothing_else(folder):
    old = set(folders.weight_names(folder))
    save_quantized(model_of(2), folder)
    assert number_in(folder) == 2
    assert_kept(folder)
    assert not any((folder / name).exists() for name in (*old, folders.INDEX))
    assert left_behind(folder) == []


def test_a_folder_that_is_there_stays_the_same_folder(folder, monkeypatch):
    """So it may be a mount point, a working folder, or one whose parent is closed to us."""
    monkeypatch.chdir(folder)
    before = folder.stat().st_ino
    save(2, ".")
    assert os.path.samefile(os.getcwd(), folder)
    assert folder.stat().st_ino == before
    assert number_in(".") == number_in(folder) == 2


def test_a_model_is_saved_though_the_parent_is_closed(folder, monkeypatch):
    mkdir, rename = pathlib.Path.mkdir, os.rename

    def refuse(path):
        if path.parent == folder.parent and not path.exists():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", lambda path, *a, **k: refuse(path) or mkdir(path, *a, **k))
    monkeypatch.setattr(os, "rename", lambda path, place: refuse(place) or rename(path, place))
    save(2, folder)
    assert number_in(folder) == 2
    with pytest.raises(PermissionError, match=r"a model cannot be written to .*home: Permission denied"):
        save(2, folder.parent / "new")
    assert left_behind(folder) == []


def test_a_link_to_a_folder_is_written_through(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder)
    save(2, link)
    assert link.is_symlink()
    assert number_in(folder) == number_in(link) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "link"]


def dangling(folder):
    folder.symlink_to(folder.parent / "nowhere")


def loop(folder):
    folder.symlink_to(folder.with_name("other"))
    folder.with_name("other").symlink_to(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (dangling, "model is a link that leads nowhere"),
        (loop, "model is a link that leads nowhere"),
        (lambda f: f.write_text("mine"), "model is a file, not a folder"),
        (
            lambda f: (f / "config.json").mkdir(parents=True),
            r"config\.json is a folder, and a file of the model belongs",
        ),
        (lambda f: (f / "model.safetensors").mkdir(parents=True), r"model\.safetensors is a folder"),
    ],
    ids=["a dangling link", "a loop of links", "a file", "config.json is a folder", "model.safetensors is a folder"],
)
def test_a_place_for_no_model_is_refused_before_any_work(make, message, tmp_path, monkeypatch):
    make(tmp_path / "model")
    monkeypatch.setattr(safetensors.torch, "save_file", lambda *_, **__: pytest.fail("the work was begun"))
    with pytest.raises(ValueError, match=message):
        save_quantized(model_of(1), tmp_path / "model")
    assert left_behind(tmp_path / "model") == []


def test_links_that_lead_nowhere_in_a_models_folder_stay(folder):
    (folder / "gone").symlink_to("nowhere")
    (folder / "round").symlink_to("round")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("nowhere")
    save(2, folder)
    assert number_in(folder) == 2
    assert (folder / "gone").is_symlink() and (folder / "round").is_symlink()
    assert not (folder / "nowhere").exists()


# ---------------------------------------------------------------- kills


def killed_at(step, number, folder):
    """Save a model, and die before the `step`-th time that something on the disk changes its name or is removed."""
    left = [step]

    def dying(function):
        def call(*arguments, **kwargs):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*arguments, **kwargs)

        return call

    os.rename, os.replace, shutil.rmtree = dying(os.rename), dying(os.replace), dying(shutil.rmtree)
    pathlib.Path.unlink, folders.write_json = dying(pathlib.Path.unlink), dying(folders.write_json)
    save(number, folder)


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """For every point of a save of model 2 over model 1: a folder as a kill at that point leaves it."""
    home = tmp_path_factory.mktemp("kills")
    for step in range(60):
        folder = home / f"{step}" / "model"
        save_with_companions(folder)
        child = multiprocessing.get_context("fork").Process(target=killed_at, args=(step, 2, folder))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert 8 < step < 59
    return home


@pytest.fixture
def killed(kills, tmp_path):
    """A copy of them, in the order of the kills."""
    shutil.copytree(kills, tmp_path / "kills")
    return [tmp_path / "kills" / name / "model" for name in sorted(os.listdir(kills), key=int)]


@needs_fork
def test_a_save_that_is_killed_anywhere_leaves_the_old_model_or_the_new(killed):
    found = [number_in(folder) for folder in killed]
    assert found == sorted(found)
    assert set(found) == {1, 2}
    for folder in killed:
        assert_kept(folder)


@needs_fork
def test_a_save_after_a_kill_anywhere_keeps_what_is_not_its_own_and_sweeps_what_was_left(killed):
    for folder in killed:
        save(3, folder)
        assert number_in(folder) == 3
        assert_kept(folder)
        assert left_behind(folder) == []


@needs_fork
def test_where_there_are_no_locks_a_killed_save_is_ended_when_it_has_long_been_still(killed, monkeypatch):
    monkeypatch.setattr(folders, "fcntl", None)
    monkeypatch.setattr(folders, "TRIES", 2)
    halted = [folder for folder in killed if (folder / folders.SAVED).exists()]
    for folder in halted:
        with pytest.raises(ValueError, match="was changed by others"):
            number_in(folder)
        os.utime(folder / folders.SAVED, (0, 0))
        assert number_in(folder) == 2
    assert len(halted) > 3


@needs_fork
def test_a_program_that_knows_nothing_of_saves_finds_no_mixture_after_a_kill(killed):
    """What lies under the files' usual names is the old model, the new one, or none."""
    for folder in killed:
        for hidden in folder.glob(".*"):
            shutil.rmtree(hidden)
    whole = [number_in(folder) for folder in killed if (folder / "config.json").exists()]
    assert set(whole) == {1, 2}
    assert len(whole) < len(killed)


def test_a_folder_from_elsewhere_cannot_pose_as_a_save_and_write_outside(folder, tmp_path):
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "file").write_text("mine")
    saved = folder / folders.SAVED
    (folder / "sub").symlink_to(outside / "sub")

    def pose(name, text):
        (saved / name).parent.mkdir(parents=True)
        (saved / name).write_text(text)

    for make, message in (
        (lambda: saved.symlink_to(outside), "is no folder that a save left"),
        (lambda: pose("sub/file", "x"), "sub is a link to a folder outside the model's"),
        (lambda: pose(folders.STALE, '{"files": ["../../outside/file"]}'), "a folder outside the model's"),
        (lambda: pose(folders.STALE, '{"files": [5]}'), "lists no files"),
    ):
        make()
        with pytest.raises(ValueError, match=message):
            load_quantized(folder, net())
        folders.remove(saved)
    assert (outside / "file").read_text() == "mine"
    assert list((outside / "sub").iterdir()) == []
    assert number_in(folder) == 1


# ---------------------------------------------------------------- races


def save_often(numbers, folder):
    for number in numbers:
        save(number, folder)


@needs_fork
@pytest.mark.parametrize("there", [True, False], ids=["over a model", "where there is none"])
def test_of_two_saves_at_once_both_end_and_one_is_there_whole(there, folder):
    folder = folder if there else folder.parent / "new"
    with process(save_often, [3, 5, 7] * 4, folder):
        save_often([2, 4, 6] * 4, folder)
    assert number_in(folder) in (6, 7)
    assert left_behind(folder) == []


@needs_fork
@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "without locks"])
def test_a_load_during_saves_gives_the_old_model_or_the_new(locks, folder, monkeypatch):
    if not locks:
        monkeypatch.setattr(folders, "fcntl", None)
    found = []
    with process(save_often, [2, 3] * 10, folder) as child:
        while child.is_alive():
            found.append(number_in(folder))
    assert len(found) > 5
    assert set(found) <= {1, 2, 3} and len(set(found)) > 1


def test_a_load_ends_on_the_files_that_it_began_on(folder, monkeypatch):
    read, done = WeightFile.read, []

    def save_between(file, key):
        if len(done) == 1:
            save(2, folder)
        done.append(key)
        return read(file, key)

    monkeypatch.setattr(WeightFile, "read", save_between)
    assert number_in(folder) == 1
    monkeypatch.undo()
    assert number_in(folder) == 2


def test_a_folder_that_never_rests_is_refused_in_words(folder, monkeypatch):
    monkeypatch.setattr(folders, "TRIES", 3)
    read = folders.read_json

    def touch(path):
        os.utime(folder / "config.json", ns=(0, time.monotonic_ns()))
        return read(path)

    monkeypatch.setattr(folders, "read_json", touch)
    with pytest.raises(ValueError, match="was changed by others each of the 3 times that it was read"):
        load_quantized(folder, net())


def test_what_another_save_is_writing_is_not_taken_for_a_leftover(folder):
    with pytest.raises(KeyboardInterrupt), folders.folder_in_one_piece(folder) as new:
        save(2, folder)
        assert new.is_dir()
        raise KeyboardInterrupt
    assert number_in(folder) == 2
    assert left_behind(folder) == []


# ---------------------------------------------------------------- a checkpoint that is quantized in pieces


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float") / "source"
    tiny_model("Llama").save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def source(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.model").write_text("companion " * 100)
    (tmp_path / "source" / "1_Pooling").mkdir()
    (tmp_path / "source" / "1_Pooling" / "config.json").write_text("{}")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def expected():
    model = tiny_model("Llama")
    quantize_model(model, SCHEME)
    return model


@pytest.fixture
def interrupted(source, tmp_path, monkeypatch):
    """The hidden folder that a call left which was interrupted at its very end."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "put_in_place", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    monkeypatch.undo()
    return tmp_path / ".model.unfinished"


def cut_a_shard(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size - 1)


def another_plan(folder):
    (folder / folders.PLAN).write_text(json.dumps({"process": os.getpid()}))
    stranger = {"stranger": torch.ones(2)}
    for shard in folder.glob("*.safetensors"):
        safetensors.torch.save_file(stranger, shard)


LEFT = {
    "a companion is half copied": lambda f: (f / "tokenizer.model").write_text("comp"),
    "a companion in a folder is half copied": lambda f: (f / "1_Pooling" / "config.json").write_text(""),
    "a companion is not in the source any more": lambda f: (f / "old.txt").write_text("old"),
    "a folder of companions is half copied": lambda f: (f / "1_Pooling" / "config.json").unlink(),
    "a shard is cut off": cut_a_shard,
    "the plan is empty": lambda f: (f / folders.PLAN).write_text(""),
    "the plan is cut off": lambda f: (f / folders.PLAN).write_text('{"model-00001'),
    "the plan is no object": lambda f: (f / folders.PLAN).write_text("[]"),
    "the plan is missing": lambda f: (f / folders.PLAN).unlink(),
    "it is of a stranger with our process id": another_plan,
    "its config is half written": lambda f: (f / "config.json").write_text("{"),
}


@pytest.mark.parametrize("what", LEFT)
def test_whatever_an_interrupted_call_left_the_next_one_ends_right(what, interrupted, source, expected, tmp_path):
    LEFT[what](interrupted)
    quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert_same_outputs(expected, load_quantized(tmp_path / "model"))
    assert (tmp_path / "model" / "tokenizer.model").read_text() == "companion " * 100
    assert (tmp_path / "model" / "1_Pooling" / "config.json").read_text() == "{}"
    assert not (tmp_path / "model" / "old.txt").exists()
    assert left_behind(tmp_path / "model") == []


def test_a_save_does_not_go_on_with_what_a_checkpoint_left(interrupted, tmp_path):
    save(1, tmp_path / "model")
    assert number_in(tmp_path / "model") == 1
    assert interrupted.is_dir()  # nor takes it away


@needs_fork
def test_a_second_process_that_quantizes_to_the_same_folder_is_refused(source, tmp_path):
    context = multiprocessing.get_context("fork")
    other = context.Process(target=hold, args=(tmp_path / ".model.unfinished", begun := context.Event()))
    other.start()
    begun.wait(20)
    with pytest.raises(ValueError, match=r"another process is writing to .*\.model\.unfinished"):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    other.kill()
    other.join()
    quantize_checkpoint(source, tmp_path / "model", SCHEME)  # its lock has died with it
    assert left_behind(tmp_path / "model") == []


def hold(folder, begun):
    with folders.made_folder(folder):
        begun.set()
        time.sleep(60)


def test_a_checkpoint_is_quantized_into_a_folder_that_is_there(folder, source, expected):
    quantize_checkpoint(source, folder, SCHEME)
    assert_same_outputs(expected, load_quantized(folder))
    assert_kept(folder)
    assert left_behind(folder) == []


def test_a_target_in_the_source_is_refused(source):
    before = sorted(source.rglob("*"))
    (source.parent / "link").symlink_to(source)
    for target in (source / "int4", source / "1_Pooling" / "int4", source.parent / "link" / "int4"):
        with pytest.raises(ValueError, match=r"lies in the checkpoint .*to another folder, outside it"):
            quantize_checkpoint(source, target, SCHEME)
    assert sorted(source.rglob("*")) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 8),
        lambda path: os.truncate(path, 4),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ],
    ids=["cut off", "cut off in its header", "written over"],
)
def test_a_file_that_changes_while_it_is_read_is_named_with_the_key(damage, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(1000)}, path)
    with WeightFile(path) as file:
        assert file.read("w").tolist() == [1.0] * 1000
        damage(path)
        with pytest.raises(ValueError, match=r"model\.safetensors: w: the file was cut off or written to while it was"):
            file.read("w")


def test_a_source_that_is_cut_off_meanwhile_leaves_no_shard_that_counts(source, tmp_path, monkeypatch):
    first = sorted(source.glob("*.safetensors"))[0]
    read = WeightFile.read

    def cut(file, key):
        if file.path == first:
            os.truncate(first, first.stat().st_size // 2)
        return read(file, key)

    monkeypatch.setattr(WeightFile, "read", cut)
    with pytest.raises(ValueError, match=rf"{first.name}: .*: the file was cut off"):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / ".model.unfinished" / first.name).exists()


def test_integers_in_the_place_of_a_weight_are_named(source, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    shard = source / json.loads((source / folders.INDEX).read_text())["weight_map"][name]
    tensors = safetensors.torch.load_file(shard)
    safetensors.torch.save_file(tensors | {name: torch.ones(96, 64, dtype=torch.int32)}, shard, {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"{shard.name}: {name} is torch\.int32; a weight to quantize must be of float"
    ):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    assert left_behind(tmp_path / "model") == []


# ---------------------------------------------------------------- links and code in a source


def test_only_what_belongs_to_a_checkpoint_is_copied(source, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secrets").mkdir()
    (source / "inside").symlink_to("tokenizer.model")
    (source / "outside").symlink_to(tmp_path / "secret")
    (source / "1_Pooling" / "outside").symlink_to(tmp_path / "secret")
    (source / "folder").symlink_to(tmp_path / "secrets")
    (source / "round").symlink_to(source)
    (source / "gone").symlink_to("nowhere")
    (source / "loop").symlink_to("loop")
    os.mkfifo(source / "pipe")
    with pytest.warns(
        UserWarning, match="7 links that lead elsewhere, or other things that are no files, are left out"
    ):
        quantize_checkpoint(source, tmp_path / "model", SCHEME)
    names = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*")}
    assert {"inside", "tokenizer.model", "1_Pooling/config.json"} <= names
    assert not names & {"outside", "1_Pooling/outside", "folder", "round", "gone", "loop", "pipe"}
    assert not (tmp_path / "model" / "inside").is_symlink()


def test_a_snapshot_of_the_hubs_cache_is_quantized_whole(source, tmp_path, expected):
    cache = tmp_path / "models--me--tiny"
    snapshot, blobs = cache / "snapshots" / "abc", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(path for path in source.rglob("*") if path.is_file()):
        place = snapshot / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        path.rename(blobs / str(number))
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_checkpoint(snapshot, tmp_path / "model", SCHEME)
    assert_same_outputs(expected, load_quantized(tmp_path / "model"))
    assert (tmp_path / "model" / "1_Pooling" / "config.json").read_text() == "{}"
    assert not any(path.is_symlink() for path in (tmp_path / "model").rglob("*"))


@pytest.mark.parametrize("call", [load_quantized, lambda f: quantize_checkpoint(f, f.parent / "out", SCHEME)])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(call, source, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    (source / "configuration_mine.py").write_text("raise SystemExit('code was run')")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.Mine"}}
    if call is load_quantized:
        config["quantization_config"] = {"quant_method": "qlib", "layers": {}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model type 'mine', which transformers lacks.*trust_remote_code=True if you"):
        call(source)


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    ("scheme", "part", "dtype", "loads"),
    [
        (Scheme(), "scale", torch.bfloat16, True),
        (Scheme(), "scale", torch.float8_e4m3fn, False),
        (Scheme(group_size=4, scales="float16"), "scale", torch.float32, False),
        (Scheme(), "bias", torch.float16, True),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_a_scale_is_loaded_in_a_dtype_that_its_layer_calculates_with(scheme, part, dtype, loads, tmp_path):
    model = net()
    quantize_model(model, scheme, progress=False)
    model["a"]._buffers[part] = getattr(model["a"], part).to(dtype)
    save_quantized(model, tmp_path / "model")
    if loads:
        assert load_quantized(tmp_path / "model", net())["a"](torch.ones(1, 8)).isfinite().all()
    else:
        with pytest.raises(ValueError, match=rf"a\.{part} is {dtype}; the model needs"):
            load_quantized(tmp_path / "model", net())


# ---------------------------------------------------------------- the progress of the exercises


@pytest.fixture
def progress_file(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_PROGRESS_FILE", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


def note_all(ids):
    for exercise_id in ids:
        note_attempt(exercise_id, CORRECT)


@needs_fork
def test_kernels_that_note_progress_at_once_lose_nothing(progress_file):
    kernels = [[f"{kernel}.{n}" for n in range(60)] for kernel in range(3)]
    with process(note_all, kernels[0]), process(note_all, kernels[1]):
        note_all(kernels[2])
    assert best_outcomes() == {exercise_id: CORRECT for kernel in kernels for exercise_id in kernel}


def test_a_progress_file_that_is_cut_off_is_kept_aside(progress_file):
    for text in ('{"03.1": "corr', "[1"):
        progress_file.write_text(text)
        note_attempt("04.1", INCORRECT)
        assert best_outcomes() == {"04.1": INCORRECT}
    broken = {path.name: path.read_text() for path in progress_file.parent.glob("*.broken")}
    assert broken == {"progress.json.broken": '{"03.1": "corr', "progress.json.2.broken": "[1"}


def test_a_linked_progress_file_is_written_through(progress_file):
    real = progress_file.with_name("real.json")
    progress_file.symlink_to(real)
    note_attempt("04.1", CORRECT)
    assert progress_file.is_symlink()
    assert json.loads(real.read_text()) == {"04.1": CORRECT}
