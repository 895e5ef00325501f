"""Runs the lessons' notebooks and stores their outputs, in a form that only changes when they do.

`make notebooks` calls this with the environment that the tests have.
"""

import hashlib
import json
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    # The version of Python is left out, because it differs between machines.
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
}
KEPT_CELL_METADATA = {"tags", "jupyter", "editable", "deletable"}
WIDGET = "application/vnd.jupyter.widget-view+json"


class CellFailed(Exception):
    """A cell's error, told as a learner or author needs it."""


def load(path):
    """The notebook as nbformat knows it, with ids, which nbformat itself would draw at random."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook |= {"nbformat": 4, "nbformat_minor": 5}
    lesson, seen = path.stem.split("_")[0], set()
    # The ids that are there go first, so that a new cell cannot take one from a later cell.
    new = []
    for cell in notebook["cells"]:
        if re.fullmatch(r"[\w-]{1,64}", cell.get("id", ""), re.ASCII) and cell["id"] not in seen:
            seen.add(cell["id"])
        else:
            new.append(cell)
    for cell in new:
        source = "".join(cell["source"])
        cell_id = stem = f"{lesson}-{hashlib.sha1(source.encode()).hexdigest()[:8]}"
        copies = 1
        while cell_id in seen:
            copies += 1
            cell_id = f"{stem}-{copies}"
        cell["id"] = cell_id
        seen.add(cell_id)
    return nbformat.v4.rwbase.rejoin_lines(nbformat.from_dict(notebook))


def tidy_source(cell):
    """Trims what an editor would; in prose, two spaces at the end of a line are a line break."""
    lines = cell["source"].split("\n")
    if cell["cell_type"] == "code":
        lines = [line.rstrip() for line in lines]
    return "\n".join(lines).strip("\n").rstrip()


def tidy_outputs(outputs, count):
    """Merges streams and drops what names a moment or a machine. Text stays as the kernel sent it,
    because the tests compare it to the letter."""
    tidy, streams = [], {}
    for output in outputs:
        if output["output_type"] == "stream":
            # Which of stdout and stderr comes first between two results is a matter of luck.
            if output["name"] in streams:
                streams[output["name"]]["text"] += output["text"]
            else:
                streams[output["name"]] = dict(output)
            continue
        tidy += [streams[name] for name in sorted(streams, reverse=True)]
        streams = {}
        output = dict(output)
        if "data" in output:
            # A widget's model is gone with its kernel; its text/plain stays.
            output["data"] = {kind: value for kind, value in output["data"].items() if kind != WIDGET}
            output["metadata"] = {}
        if output["output_type"] == "execute_result":
            output["execution_count"] = count
        tidy.append(output)
    return tidy + [streams[name] for name in sorted(streams, reverse=True)]


def normalise(notebook):
    """The text of the notebook's file. Normalising that text again changes nothing."""
    count, cells = 0, []
    for cell in notebook["cells"]:
        kept = {key: value for key, value in cell.get("metadata", {}).items() if key in KEPT_CELL_METADATA}
        cell = {**cell, "source": tidy_source(cell), "metadata": kept}
        if cell["cell_type"] == "code":
            # A cell that did not run (an empty one) has no number, and nbval takes it as not run.
            if cell["execution_count"] is not None:
                count += 1
                cell["execution_count"] = count
            cell["outputs"] = tidy_outputs(cell["outputs"], cell["execution_count"])
        cells.append(cell)
    tidy = nbformat.from_dict({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})
    nbformat.validate(tidy)
    return nbformat.writes(tidy) + "\n"


def execute(notebook, folder):
    """Fills in the outputs by running every cell in a fresh kernel whose working folder is `folder`."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    at = {}
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        record_timing=False,
        # The kernel warns about its unencrypted local connection every time.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=lambda cell, cell_index: at.update(cell=cell, index=cell_index),
    )
    try:
        client.execute()
    except Exception as error:
        if not at:
            raise
        raise CellFailed(f"cell {at['index'] + 1} (id {at['cell']['id']}): {error}") from error


def rerun(path):
    """Runs one notebook and replaces its file in a single step, or leaves the file as it was."""
    start = time.monotonic()
    notebook = load(path)
    execute(notebook, path.parent)
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(normalise(notebook), encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return time.monotonic() - start


def main(paths):
    # Two at a time suits a laptop's memory: each lesson may hold a model.
    with ProcessPoolExecutor(2) as pool:
        jobs = {pool.submit(rerun, path): path for path in paths}
        for done, job in enumerate(as_completed(jobs), 1):
            try:
                seconds = job.result()
            except Exception as error:
                pool.shutdown(wait=False, cancel_futures=True)
                told = error if isinstance(error, CellFailed) else f"{type(error).__name__}: {error}"
                sys.exit(f"{jobs[job]}, {told}\nThe file is as it was.")
            print(f"{done:2}/{len(paths)}  {jobs[job].name}  {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(sorted(Path(argument).resolve() for argument in sys.argv[1:]))
