"""Whole runs of lstc as a user types them: rewrite, train, eval; each is measured once and cached."""

import json
import shutil

from watch import watch


def measured(build, folder, rewrite, train, test):
    """The results of a run: accuracies of the side network after the last epoch, seconds, and the loss of each step.

    `rewrite` is the model and what `lstc rewrite` is given, `train` the data and what `lstc train` is given. A run that was
    measured before with the same arguments is not repeated: remove the folder when lstc has changed.
    """
    asked = [str(part) for part in (*rewrite, "--", *train, "--", test)]
    results = folder / "results.json"
    if results.is_file():
        found = json.loads(results.read_text())
        if found["asked"] == asked:
            return found, False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tuned = folder / "tuned"
    run = lambda *command: json.loads(watch([build.binary, *command, "--format", "json"]).stdout)
    model, *options = rewrite
    run("rewrite", model, "-o", tuned, *options)
    data, *options = train
    trained = run("train", tuned, "--train", data, "--threads", build.threads, *options)
    metrics = run("eval", tuned, "--data", test, "--threads", build.threads)
    log = [json.loads(line) for line in (tuned / "run/metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(tuned)
    found = {
        "asked": asked, "accuracy": metrics["accuracy"], "generated": metrics["generated"],
        "seconds": trained["seconds"], "losses": [entry["loss"] for entry in log if "lr" in entry],
    }
    results.write_text(json.dumps(found) + "\n")
    return found, True
