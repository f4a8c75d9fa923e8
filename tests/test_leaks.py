"""Many short jobs in one process, of every outcome: memory, file handles, threads and the GPU's memory stay as they are."""

import ctypes
import gc
import json
import os
import statistics
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from campaign import SMALLEST, call

from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.jobs import Jobs
from dreambooth_ext.models.family import SD1
from dreambooth_ext.models.specimen import specimen
from dreambooth_ext.progress import Progress
from dreambooth_ext.ram import trim_heap
from dreambooth_ext.service import Service

JOBS_SHORT, JOBS_SOAK = 25, 200  # whole rounds of KINDS: each is compared with its own
MODEL_MIB = 6  # that each job loads
A_PICTURE_MIB = 0.05  # a few pictures of 64 px, or a log of a thousand lines
A_SMALL_OBJECT_BYTES = 64
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
                                reason="handles and memory are counted through /proc and glibc 2.33 or later")
# Settings of their own, the phase in which the job is stopped, and the state that it must end in.
KINDS = {
    "finished": ({}, "", "finished"),
    "stopped": ({"steps": 50}, "training", "cancelled"),
    "diverged": ({"learning_rate": 10.0, "max_grad_norm": 0.0, "steps": 50}, "", "failed"),
    "stopped early": ({"class_noun": "cat"}, "class images", "cancelled"),
    "LoRA": ({"lora_rank": 2}, "", "finished"),
}


class MallocCount(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                                                     "uordblks", "fordblks", "keepcost")]


def in_use_mib() -> float:
    """What was asked for and not given back. The pages that hold it say less: some lie between what is in use, some MiB of them
    more or less from job to job."""
    count = ctypes.CDLL(None).mallinfo2
    count.restype = MallocCount
    found = count()
    return (found.uordblks + found.hblkhd + sys.getallocatedblocks() * A_SMALL_OBJECT_BYTES) / 2**20


@dataclass(frozen=True)
class Holdings:
    """What the process holds. Memory in MiB: its own, for a busy machine takes pages of files away as it likes."""

    in_use: float
    resident: float
    gpu: float
    handles: list[str]
    threads: list[str]

    @classmethod
    def now(cls) -> "Holdings":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        mapped = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
        handles = [f"{path}, mapped" for path in mapped]
        for name in os.listdir("/proc/self/fd"):
            try:
                handles.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:  # the handle of the listing itself
                continue
        gpu = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
        return cls(in_use_mib(), int(status["RssAnon"].split()[0]) / 2**10, gpu / 2**20,
                   sorted(handles), sorted(thread.name for thread in threading.enumerate()))


@pytest.fixture
def service(tmp_path):
    for name in ("models", "runs"):
        (tmp_path / name).mkdir()
    specimen(SD1, size=SMALLEST).write(tmp_path / "models" / "base.safetensors", torch.float16)
    return Service(StandaloneHost(tmp_path / "models", tmp_path / "runs"), jobs=Jobs())


def one_job(service: Service, pictures: Path, kind: str, number: int) -> None:
    changes, stopped_in, end = KINDS[kind]
    job = service.start({
        "base": "base.safetensors", "instance_dir": str(pictures), "token": "rxz", "class_noun": "dog",
        "output_name": f"job-{number}", "steps": 1, "resolution": 64, "num_class_images": 1, "class_steps": 1,
        "preview_steps": 1, "publish_format": "safetensors", **changes})
    job.progress.listen(lambda report: job.progress.cancel() if stopped_in and report.phase == stopped_in else None)
    assert job.done.wait(600) and job.state == end, (kind, job.state, job.message)
    for worker in threading.enumerate():
        if worker.name == "dreambooth":
            worker.join(600)  # it ends when nothing is left to do
    service.delete(f"job-{number}")
    for path in service.host.models_dir.rglob("job-*"):
        path.unlink()


def jobs_in_one_process(given: list[str]) -> None:
    """COUNT, PICTURES: the jobs, in the folder that has the base. A line of what the process held after each goes into "held"."""
    service, kinds = Service(StandaloneHost(Path("models").resolve(), Path("runs").resolve()), jobs=Jobs()), list(KINDS)
    for number in range(int(given[0])):
        one_job(service, Path(given[1]), kinds[number % len(kinds)], number)
        gc.collect()
        with open("held", "a") as stream:
            stream.write(json.dumps(asdict(Holdings.now())) + "\n")


def campaign(count: int, service: Service, pictures: Path, score) -> list[Holdings]:
    """What a process held after each job: one of its own, for what other tests left is none of the jobs'."""
    kinds, folder = list(KINDS), service.host.models_dir.parent
    score.start("leaks", "jobs in one process")
    process = call(folder, str(count), str(pictures), function="test_leaks:jobs_in_one_process")
    _, told = process.communicate(timeout=3600)
    lines = (folder / "held").read_text().splitlines() if (folder / "held").exists() else []
    seen = [Holdings(**json.loads(line)) for line in lines]
    for number in range(count):
        with score.trial():
            assert number < len(seen), told
    first, last = seen[2 * len(kinds) - 1], seen[-1]
    gpu = f"{first.gpu:.1f} to {last.gpu:.1f} MiB" if torch.cuda.is_available() else "not measured, torch sees none"
    score.how = (f"{len(kinds)} outcomes in turn; from job {2 * len(kinds)} to {count}: in use {first.in_use:.2f} to "
                 f"{last.in_use:.2f} MiB, memory {first.resident:.1f} to {last.resident:.1f} MiB, handles {len(first.handles)} "
                 f"to {len(last.handles)}, threads {len(first.threads)} to {len(last.threads)}; GPU: {gpu}")
    return seen


def require_flat(seen: list[Holdings]) -> None:
    """The last jobs, against the first that came after the warm-up, one of each kind; memory by what a round of them adds. A leak
    adds in each round: what is added in one alone is none, like Python's own table of names, which doubles (by 3.7 MiB)."""
    kinds = len(KINDS)
    early, late = seen[2 * kinds - 1], seen[-1]
    for kind in ("handles", "threads"):
        assert not Counter(getattr(late, kind)) - Counter(getattr(early, kind)), kind
    warm = [held.in_use for held in seen[kinds:]]
    added = statistics.median(after - before for before, after in zip(warm, warm[kinds:], strict=False))
    assert added < kinds * A_PICTURE_MIB, [round(held.in_use, 2) for held in seen]
    assert late.gpu <= early.gpu


def test_twenty_five_jobs_leave_nothing_behind(service, inputs, score):
    require_flat(campaign(JOBS_SHORT, service, inputs[1], score))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_jobs_leave_nothing_behind(service, inputs, score):
    seen = campaign(JOBS_SOAK, service, inputs[1], score)
    require_flat(seen)
    halfway, end = (statistics.median(held.resident for held in seen[number - len(KINDS) : number])
                    for number in (JOBS_SOAK // 2, JOBS_SOAK))
    assert end - halfway < JOBS_SOAK // 2 * A_PICTURE_MIB, [round(held.resident, 1) for held in seen]


def test_a_job_gives_its_freed_memory_back(service):
    """The allocator keeps what lies below a block still in use, unless it is asked."""
    trim_heap()  # what other tests have freed would be used first, and be no growth
    before, progress = Holdings.now().resident, Progress()
    with service.host.job("x", progress):
        blocks = [bytes(4000) for _ in range(25_000)]
        assert Holdings.now().resident > before + 80
        last = blocks[-1]
        del blocks
    assert Holdings.now().resident < before + 20 and len(last) == 4000


@pytest.mark.parametrize("leak", ["handle", "thread", "memory", "small objects"])
def test_a_leak_would_be_seen(leak, tmp_path):
    """Else the campaign would prove nothing: each of these is what careless jobs of one kind would leave."""
    kept, over, kinds = [], threading.Event(), len(KINDS)
    seen = [Holdings.now() for _ in range(2 * kinds)]
    try:
        for number in range(JOBS_SHORT - 2 * kinds):
            if number % kinds:
                pass
            elif leak == "handle":
                kept.append((tmp_path / str(number)).open("w"))
            elif leak == "thread":
                kept.append(threading.Thread(target=over.wait, args=(60,), name=f"left {number}", daemon=True))
                kept[-1].start()
            else:
                kept.append(torch.ones(MODEL_MIB * 2**18) if leak == "memory" else [object() for _ in range(20_000)])
            seen.append(Holdings.now())
        with pytest.raises(AssertionError):
            require_flat(seen)
    finally:
        over.set()
        for thing in kept:
            thing.close() if leak == "handle" else thing.join() if leak == "thread" else None


def test_what_is_added_once_is_no_leak():
    seen = [Holdings.now() for _ in range(2 * len(KINDS))]
    table = torch.ones(MODEL_MIB * 2**18)
    seen += [Holdings.now() for _ in range(JOBS_SHORT - len(seen))]
    assert seen[-1].in_use > seen[0].in_use + MODEL_MIB - 0.1 and table.numel()
    require_flat(seen)
