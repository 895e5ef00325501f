"""The learner's progress, in a small file that git ignores."""

import json
import os
import pathlib

from course.exercises.judge import CORRECT, NOT_ATTEMPTED


def record_file():
    """Where progress is kept: .progress.json beside the qlib folder, or where QLIB_PROGRESS_FILE says."""
    default = pathlib.Path(__file__).parent.parent.parent / ".progress.json"
    return pathlib.Path(os.environ.get("QLIB_PROGRESS_FILE") or default)


def read_record():
    """{exercise id: outcome of the best attempt}; empty where there is no file yet, or none that can be read."""
    try:
        record = json.loads(record_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(exercise_id, outcome):
    """Note an attempt. What was once correct stays so, and a blank stub leaves no trace."""
    record = read_record()
    if outcome == NOT_ATTEMPTED or record.get(exercise_id) in (CORRECT, outcome):
        return
    path = record_file()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(json.dumps(record | {exercise_id: outcome}, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError:
        pass  # A read-only checkout is no reason to fail a right answer.
