"""Labelled text to train on and to evaluate on, by the name of a task."""

from pathlib import Path

from watch import Unmeasured

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 1000  # rows to evaluate on, at most


def files_of(task, data):
    """The files of a task: the glosses lie in examples/, the others where public_tasks.py wrote them."""
    folder = ROOT / "examples" if task == "glosses" else data
    files = folder / f"{task}.train.jsonl", folder / f"{task}.test.jsonl"
    for file in files:
        if not file.is_file():
            raise Unmeasured(f"there is no `{file}`: python benches/public_tasks.py {data}")
    return files


def held_out(file):
    """The lines to evaluate on; the files are shuffled."""
    return file.read_text().splitlines(keepends=True)[:HELD_OUT]
