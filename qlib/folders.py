"""A model's folder, read and written whole: old or new, whoever saves, reads or is killed meanwhile."""

import contextlib
import errno
import glob
import json
import os
import pathlib
import secrets
import shutil
import time
import warnings

from qlib.files import READS, WeightFile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
PLAN = ".plan.json"  # in an unfinished folder: what it is going to be
SAVED, STALE = ".qlib-save", ".stale.json"  # in a model's folder: a save that is whole; in that: the files it replaces
TRIES = 100  # of reading a folder that others change all the while
PATIENCE = 10  # seconds without a step, after which a save that holds no lock is taken for a killed one

# ---------------------------------------------------------------- folders: read
#
# A model is several files, and no file system swaps several at once. So a save writes all of them into a hidden folder,
# and then renames that folder to SAVED, inside the model's own: this one rename is what makes it the model. What is in
# SAVED is put in its place afterwards, by the saver, or by whoever comes next if the saver was killed. config.json is
# the first to go and the last to come: a program that knows nothing of SAVED finds no model for a moment, no mixture.


@contextlib.contextmanager
def opened_folder(folder):
    """`with opened_folder(folder) as (config, generation, files):` one model, old or new, whoever saves meanwhile.

    All its files are opened, and then it is asked whether anything has changed since before the first was. Only
    then do they belong together, or is an error the folder's own.

    Args:
        folder: with config.json, and the weights in safetensors files.

    Yields:
        what config.json holds; what generation_config.json holds, or None; a WeightFile for each file of weights.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks a file.
        ValueError: a file is cut off or foreign; or files were changed all the time.
    """
    for _ in range(TRIES):
        folder = whole_folder(folder)
        with contextlib.ExitStack() as held:
            before, error = state_of(folder), None
            try:
                config, generation = read_json(folder / CONFIG), None
                if (folder / GENERATION).exists():
                    generation = read_json(folder / GENERATION)
                files = [held.enter_context(WeightFile(path)) for path in weight_files(folder)]
            except Exception as caught:  # whose fault it is, is seen next
                error = caught
            if SAVED not in before and state_of(folder) == before:
                if error is not None:
                    raise error
                yield config, generation, files
                return
        time.sleep(0.01)
    raise ValueError(f"{folder} was changed by others each of the {TRIES} times that it was read; read it later")


def state_of(folder):
    """What changes when a model is saved: {name: which file it is, its size and time} of what may belong to a model."""
    state = {}
    for name in os.listdir(folder):
        if name in (SAVED, CONFIG, GENERATION, INDEX) or name.endswith(".safetensors"):
            with contextlib.suppress(OSError):  # gone since, or a link that leads nowhere
                status = os.stat(folder / name)
                state[name] = status.st_ino, status.st_size, status.st_mtime_ns
    return state


def whole_folder(folder):
    """`folder` as a path with no links in it; FileNotFoundError if there is none.

    Where a save was killed after it was whole, it is put in place; where one is at it, it is waited for.
    """
    folder = real_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if os.path.lexists(folder / SAVED):
        with locked(folder) as handle:
            try:
                if handle is not None or is_old(folder / SAVED):
                    finish_save(folder)
            except OSError as error:
                raise ValueError(f"{folder}: a save was interrupted, and to end it takes a write: {error}") from None
    return folder


def is_old(path):
    """Whether nothing has happened in a folder for so long that whoever was at it must be dead, where no lock tells."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - os.stat(path).st_mtime > PATIENCE
    return False


def real_path(folder):
    """Where a folder is, or will be: the links on the way are followed; ValueError if one of them leads nowhere."""
    path = pathlib.Path(os.path.realpath(folder))
    if path.is_symlink() or (pathlib.Path(folder).is_symlink() and not path.exists()):
        raise ValueError(f"{folder} is a link that leads nowhere")
    return path


# ---------------------------------------------------------------- folders: written


@contextlib.contextmanager
def locked(folder, wait=True):
    """`with locked(folder) as handle:` nobody else has the folder locked. The lock ends when its process does.

    Where there are no such locks (Windows, some network file systems) `handle` is None and nothing is locked. Saves to
    one folder must then come one after the other; a reader is still never given a mixture.

    Raises:
        BlockingIOError: somebody has it locked, and we do not `wait`.
    """
    if fcntl is None:
        yield None
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        is_locked = True
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        is_locked = False
    try:
        yield handle if is_locked else None
    finally:
        os.close(handle)


@contextlib.contextmanager
def folder_in_one_piece(folder):
    """`with folder_in_one_piece(folder) as new:` what is written to `new` is in `folder` at the end, or nothing is.

    Of a folder that is there already the weights are replaced, and other files only by those of the same name. Of two
    saves at a time both end whole, and what is there then is the later one's.
    """
    folder = checked_target(folder)
    remove_leftovers(folder)
    with made_folder(hidden(folder, f"{secrets.token_hex(8)}.unfinished")) as new:
        try:
            yield new
            put_in_place(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def begun_folder(folder, plan):
    """As `folder_in_one_piece`, but `new` stays when the work is interrupted: the files of weights that are whole in it
    are there again for the next call with the same plan, a dict; what else was begun is not.

    Raises:
        ValueError: another process is at it.
    """
    folder = checked_target(folder)
    with made_folder(hidden(folder, "unfinished"), wait=False) as new:
        same = is_plan(new / PLAN, plan)
        for path in new.iterdir():
            if not (same and (path.name == PLAN or path.suffix == ".safetensors")):
                remove(path)
        if not same:
            write_json(new / PLAN, plan)
        yield new
        put_in_place(new, folder)


def is_plan(path, plan):
    """Whether a file holds this plan; one that is cut off holds none."""
    try:
        return read_json(path) == plan
    except (FileNotFoundError, ValueError):
        return False


def checked_target(folder):
    """`folder` as a path with no links in it, once it is sure that a model may be put there.

    Raises:
        ValueError: it is a link that leads nowhere, or a file; or a folder has the name of a file of the model.
    """
    folder = real_path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder")
    check_places(folder, [CONFIG, WEIGHTS, INDEX])
    return folder


def check_places(folder, names):
    """Raise one clear error unless files of these names, "sub/file" too, can be put into a folder and nowhere else."""
    for name in names:
        place = folder / name
        if place.is_dir():
            raise ValueError(f"{place} is a folder, and a file of the model belongs there")
        if not pathlib.Path(os.path.realpath(place.parent)).is_relative_to(folder):
            raise ValueError(f"{place.parent} is a link to a folder outside the model's; nothing is written through it")


def hidden(folder, name):
    """A hidden folder on the file system of `folder`: in it, or beside it where it is not there yet.

    Always beside it would not do: a mount point is another file system, and the parent of a folder may be closed to us.
    """
    return folder / f".{name}" if folder.exists() else folder.with_name(f".{folder.name}.{name}")


@contextlib.contextmanager
def made_folder(path, wait=True):
    """`with made_folder(path) as path:` the folder is there, made if need be, and locked.

    Raises:
        OSError: it cannot be made.
        ValueError: somebody has it locked, and we do not `wait`.
    """
    with contextlib.ExitStack() as held:
        while True:
            try:
                path.mkdir(parents=True, exist_ok=True)
                handle = held.enter_context(locked(path, wait))
                if handle is None or os.path.samestat(os.fstat(handle), os.stat(path)):
                    break
            except BlockingIOError:
                raise ValueError(f"another process is writing to {path}; wait until it has ended") from None
            except FileNotFoundError:
                pass  # put in its place, or swept away, before we had the lock: it is made anew
            except OSError as error:
                raise OSError(error.errno, f"a model cannot be written to {path.parent}: {error.strerror}") from None
            held.close()
        yield path


def remove_leftovers(folder):
    """Remove what killed saves to a folder left: the hidden folders of theirs that nobody has locked any more."""
    for parent, prefix in ((folder, "."), (folder.parent, f".{folder.name}.")):
        for path in parent.glob(f"{glob.escape(prefix)}{'[0-9a-f]' * 16}.unfinished"):
            with contextlib.suppress(OSError), locked(path, wait=False) as handle:
                if handle is not None:
                    shutil.rmtree(path)


def put_in_place(new, folder):
    """Make a finished folder the model that `folder` holds. What was there and is none of its files or weights stays.

    Raises:
        ValueError: a folder has the name of one of its files. Nothing is changed then.
    """
    for path in [*new.rglob("*"), new]:
        sync(path)
    if not folder.exists():
        (new / PLAN).unlink(missing_ok=True)
        try:
            os.rename(new, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            sync(folder.parent)
            return
    with locked(folder):
        finish_save(folder)  # of one that was killed
        names = files_in(new)
        check_places(folder, names)
        write_json(new / STALE, {"files": sorted(old_weights(folder) - set(names))})
        sync(new / STALE)
        sync(new)
        # Here it becomes the model: a kill before this line leaves the old one, a kill after it this one.
        os.rename(new, folder / SAVED)
        sync(folder)
        finish_save(folder)


def finish_save(folder):
    """Put what is in SAVED in its place; `folder` is locked. It may be interrupted, and done again, anywhere."""
    saved = folder / SAVED
    if not os.path.lexists(saved):
        return
    if saved.is_symlink() or not saved.is_dir():
        raise ValueError(f"{saved} is no folder that a save left; remove it")
    stale = stale_files(saved)
    names = [name for name in files_in(saved) if name != CONFIG]
    check_places(folder, [*names, *stale])
    if (saved / CONFIG).exists():
        (folder / CONFIG).unlink(missing_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        move(saved / name, folder / name)
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    sync(folder)
    move(saved / CONFIG, folder / CONFIG)
    sync(folder)
    shutil.rmtree(saved, ignore_errors=True)


def move(path, place):
    """Rename a file, unless it was moved before: by a save that was killed, or by others where nothing locks."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, place)


def stale_files(saved):
    """The names of the older weights that go when the folder `saved` comes."""
    if not (saved / STALE).exists():  # the last of `saved` was just being removed
        return []
    names = read_json(saved / STALE).get("files")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{saved / STALE} lists no files; remove {saved}, it is none that a save left")
    return names


def files_in(folder):
    """The names of the files of a folder, "sub/file" for those of its folders, but for our own notes."""
    paths = [pathlib.Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return [path.relative_to(folder).as_posix() for path in paths if path.name not in (PLAN, STALE)]


def old_weights(folder):
    """The names of the files of the model in a folder that are its weights: what its index names, and no others."""
    names = {WEIGHTS, INDEX}
    with contextlib.suppress(FileNotFoundError, ValueError):
        names |= {name for name in weight_names(folder) if name.endswith(".safetensors")}
    return {name for name in names if os.path.lexists(folder / name) and not (folder / name).is_dir()}


def remove(path):
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path):
    """Have a file, or the names in a folder, on the disk, and not only on the way there."""
    if fcntl is None:  # Windows opens no folder, and syncs no file that is open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs no folders
            raise
    finally:
        os.close(handle)


def copy_companions(source, target, but):
    """Copy what a checkpoint has beside its weights: its other files and folders, links in them followed with care.

    What a link leads to is copied if it is a file that lies in `source` or among the blobs of the Hub's cache, whose
    snapshots are made of links. Other links, and what is no file, are left out with a warning: a folder that came from
    elsewhere could give away a file of yours.

    Args:
        source: a folder, as a path with no links in it.
        target: another.
        but: suffixes of files that are weights too, or may run code.
    """
    left_out = []
    for root, folders, names in os.walk(source):
        root = pathlib.Path(root)
        left_out += [root / name for name in folders if (root / name).is_symlink()]
        folders[:] = [name for name in folders if name != SAVED and not name.endswith(".unfinished")]
        for path in [root / name for name in names]:
            is_weights = path.suffix in {*but, ".safetensors"} or path.name.endswith(".index.json")
            if root == source and (is_weights or path.name in (CONFIG, PLAN, STALE)):
                continue
            if is_own_file(path, source):
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
            else:
                left_out.append(path)
    if left_out:
        warnings.warn(
            f"{source}: {len(left_out)} links that lead elsewhere, or other things that are no files, are left out, "
            f"such as {left_out[0].relative_to(source)}",
            stacklevel=3,
        )


def is_own_file(path, source):
    """Whether a path is a file that belongs to a checkpoint's folder, maybe by a link: see `copy_companions`."""
    real = pathlib.Path(os.path.realpath(path))
    blobs = [parent.parent / "blobs" for parent in source.parents if parent.name == "snapshots"]
    return real.is_file() and any(real.is_relative_to(home) for home in (source, *blobs))


def weight_files(folder):
    """The safetensors files of a checkpoint, in the order of its index."""
    files = [folder / name for name in (weight_names(folder) if (folder / INDEX).exists() else [WEIGHTS])]
    absent = [path for path in files if not path.is_file()]
    pickles = [path.name for path in folder.iterdir() if path.suffix in PICKLES]
    if absent and pickles:
        raise ValueError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code when it is read; {READS}"
        )
    if absent:
        raise FileNotFoundError(f"no file {absent[0]}")
    return files


def weight_names(folder):
    """The names of the files of weights that a checkpoint's index gives, in its order."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or any(pathlib.Path(str(name)).name != name for name in weight_map.values()):
        raise ValueError(f"{folder / INDEX} lacks a weight_map of the names of files beside it")
    return list(dict.fromkeys(weight_map.values()))


def read_json(path):
    """What a JSON file holds, a dict; one clear error when it is missing or broken."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
