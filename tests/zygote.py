"""A process that has imported everything, and forks: each run is a process of its own, without the seconds of the imports.

As a program it is driven over its pipes, one JSON object a line: {"start": ...} answers the new process's id, {"wait": id,
"seconds": s} its exit code, or null while it runs. `start` is the other end.
"""

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent


class Forked:
    """The part of subprocess.Popen that the campaigns use. What it says on stderr is in `told`."""

    def __init__(self, ask, pid: int, told: Path) -> None:
        self._ask, self.pid, self._told = ask, pid, told
        self.returncode = None

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            self.returncode = self._ask(wait=self.pid, seconds=timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:  # else the number may be another process's by now
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 600) -> tuple[None, str]:
        self.wait(timeout)
        told = self._told.read_text(errors="replace") if self._told.exists() else ""
        self._told.unlink(missing_ok=True)
        return None, told


@lru_cache(maxsize=1)
def _zygote():
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}  # as a person has it
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(TESTS / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])})
    atexit.register(process.kill)

    def ask(**question):
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    return ask


def start(folder: Path, function: str, *arguments: str) -> Forked:
    """Run a function ("module:name") of the arguments in `folder`, as a process; its result is the exit code."""
    handle, told = tempfile.mkstemp(prefix="told-")
    os.close(handle)
    ask = _zygote()
    return Forked(ask, ask(start=[str(folder), function, list(arguments), told]), Path(told))


# ---- the program


def _import_all() -> None:
    import accelerate  # noqa: F401
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: F401
    from PIL import Image
    from transformers import CLIPTextModel  # noqa: F401

    for name in ("cli", "dataset.audit", "dataset.class_images", "dataset.prepare", "hosts.standalone", "models.load",
                 "models.publish", "models.sampling", "recipe", "service", "training.loop", "training.preview"):
        importlib.import_module(f"dreambooth_ext.{name}")
    Image.init()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a run collects garbage some times, and need not walk over what was imported


def _become(folder: str, function: str, arguments: list[str], told: str) -> None:
    """In the forked process: be that program, and end."""
    code = 1
    try:
        os.chdir(folder)
        for path, number in ((os.devnull, 0), (os.devnull, 1), (told, 2)):
            handle = os.open(path, os.O_RDWR | os.O_CREAT)
            os.dup2(handle, number)
        module, _, name = function.partition(":")
        code = getattr(importlib.import_module(module), name)(arguments) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  what a program's last line of defence prints
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(pid: int, seconds: float):
    """The exit code as subprocess gives it, or None if it still runs after so long."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def main() -> None:
    _import_all()
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer = os.fork()
            if not answer:
                _become(*question["start"])
        else:
            answer = _ended(question["wait"], question["seconds"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
