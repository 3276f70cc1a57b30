"""Runs a command to its end and watches its resident memory."""

import dataclasses
import subprocess
import tempfile
import time
from pathlib import Path

INTERVAL = 0.05  # seconds between looks


class Unmeasured(Exception):
    """A measurement that could not be made, and why."""


@dataclasses.dataclass
class Watched:
    """What a process printed, and what it had resident, in bytes: VmHWM, and anonymous and file pages at the peak."""

    stdout: str
    peak: int
    anonymous: int
    file: int


def status(pid):
    """The byte counts in /proc/PID/status; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines)
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields if field[-1:] == ["kB"]}


def watch(argv, env=None):
    """Runs a command. VmHWM only grows, so only the growth within the last interval can be missed."""
    peak = anonymous = file = resident = 0
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        try:
            process = subprocess.Popen([str(part) for part in argv], stdout=stdout, stderr=stderr, env=env)
        except OSError as error:
            raise Unmeasured(f"cannot run `{argv[0]}`: {error.strerror}") from error
        try:
            while process.poll() is None:
                now = status(process.pid)
                peak = max(peak, now.get("VmHWM", 0))
                if now.get("VmRSS", 0) > resident:
                    resident, anonymous, file = now["VmRSS"], now["RssAnon"], now["RssFile"]
                time.sleep(INTERVAL)
        except BaseException:
            process.kill()
            process.wait()
            raise
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode != 0:
            talk = "\n    ".join(stderr.read().splitlines()[-15:])
            line = " ".join(str(part) for part in argv)
            raise Unmeasured(f"`{line}` ended with exit code {process.returncode}:\n    {talk}")
        return Watched(stdout.read(), peak, anonymous, file)
