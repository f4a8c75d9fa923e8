"""`train` as `accelerate launch` and torchrun start it: several processes, gloo, on the CPU."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from holding import STEP, UNTIL, hold
from safetensors.torch import load_file
from zygote import start

LIMIT_S = 600
COPIES = "COMPUTE_WITH_COPIES"  # a variable for `forked`: bf16 copies compute in the profile `fast`, as on a GPU
HOLDING = Path(__file__).with_name("holding.py")


def held_after(step, until):
    """Variables with which a run stands still after that step until the file is there."""
    return {STEP: str(step), UNTIL: str(until)}


def free_port():
    """Of those that the system gives to nobody by itself, so that no other process takes it before it is listened to."""
    while True:
        port = random.SystemRandom().randint(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def launch(folder, name, processes, *flags, wait=True, **variables):
    """`train` with the folder's settings; each process takes its share of two pictures a step."""
    program = [str(HOLDING)] if UNTIL in variables else ["-m", "dreambooth_ext"]
    command = [*program, "train", "--config", str(folder / "settings.json"), "--output-name", name,
               "--train-batch-size", str(2 // processes), *flags]
    return started(processes, command, wait, **variables)


def started(processes, command, wait=True, **variables):
    """(exit code, what was said), or the process that is not waited for. `variables` are of the environment."""
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0",
                   "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **variables}
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)
    if not wait:
        return process
    output, _ = process.communicate(timeout=LIMIT_S)
    return process.returncode, output


def wait_for(process, path):
    """Until the path is there, or fail with what the process has said if it ends before."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and not path.exists():
        time.sleep(0.05)
        assert process.poll() is None, process.stdout.read()


def metrics(folder, name):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(folder, name, part="unet"):
    return load_file(next((folder / "runs" / name / "diffusers" / part).glob("*.safetensors")))


# ---- the same without the seconds of the imports: forked by tests/zygote.py, and told who they are as a launcher does


def forked(folder, processes, command, **variables):
    """The command line in so many processes; who waits for them calls `ended`."""
    team = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo",
            "LOCAL_WORLD_SIZE": str(processes)} if processes > 1 else {}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if team else {} for rank in range(processes)]
    return [start(folder, "launching:as_told", json.dumps({**team, **rank, **variables}), *command) for rank in ranks]


def as_told(arguments):
    """In the forked process: its place among the others, then the command line."""
    os.environ.update(json.loads(arguments[0]))
    from dreambooth_ext.cli import run

    if UNTIL in os.environ:
        hold(os.environ)
    if COPIES in os.environ:
        from dreambooth_ext.training import half_copies, memory

        half_copies.COLLECTED_BYTES = 0  # gradients are handed over one by one where they may be
        memory._with_mixed_precision = lambda plan, *rest: replace(plan, autocast="no", half_copies=True)
    return run(arguments[1:])


def ended(processes):
    """What they have said, once all have ended well; if one has not, the others are ended."""
    try:
        for process in processes:
            process.wait(LIMIT_S)
    finally:
        failed = any(process.returncode for process in processes)
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        told = "\n".join(process.communicate(LIMIT_S)[1] for process in processes)
    assert not failed, told
    return told
