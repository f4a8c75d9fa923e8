"""The command that measures everything in one go, whatever its parts do."""

import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import bench_kernels
from benchmarks.attention import attention_by
from benchmarks.bench_clipping import Watched
from benchmarks.bench_kernels import kind_of
from dreambooth_ext.training.optimizers.adamw import AdamW

REPOSITORY = Path(command.__file__).parents[1]

# A part that writes a temporary file and starts another process; then it fails, or never ends.
PART = """
import subprocess, sys, tempfile, time
open(tempfile.mkstemp(prefix="left-by-a-part-")[1], "w").close()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
if sys.argv[1] == "fails":
    sys.exit(7)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def parts(tmp_path, monkeypatch):
    """The processes that the command starts find such a part in a package of its name."""
    package = tmp_path / "package" / "benchmarks"
    package.mkdir(parents=True)
    (package / "part.py").write_text(PART, encoding="utf-8")
    monkeypatch.chdir(package.parent)


def told(capfd):
    return [line for line in capfd.readouterr().out.splitlines() if line]


def is_gone(process):
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def require_gone(process):
    deadline = time.monotonic() + 60
    while not is_gone(process):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_part_that_fails_is_told_and_what_it_started_is_ended(tmp_path, capfd):
    command._run("part", ("fails",), {}, tmp_path, time.monotonic() + 600)
    first, child, last = told(capfd)
    assert (first, last) == ("$ python -m benchmarks.part fails", "failed with code 7")
    assert len(list(tmp_path.glob("left-by-a-part-*"))) == 1  # where the command removes it
    require_gone(int(child.split()[1]))


def test_no_part_runs_beyond_the_time_that_was_given(tmp_path, capfd):
    command._run("part", ("never ends",), {}, tmp_path, time.monotonic() + 1.5)
    command._run("part", ("is not begun",), {}, tmp_path, time.monotonic())
    lines = [line for line in told(capfd) if not line.startswith("child")]
    assert lines == ["$ python -m benchmarks.part never ends", "cut off: no time was left",
                     "$ python -m benchmarks.part is not begun", "no time was left"]


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_a_part_that_is_stopped_takes_along_what_it_started(tmp_path):
    call = [sys.executable, "-m", "benchmarks.part", "never ends"]
    process = subprocess.Popen(call, start_new_session=True, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline().split()[1])
    command._stop(process)
    process.stdout.close()
    assert process.returncode is not None
    require_gone(child)


def test_a_base_that_cannot_be_written_is_told(tmp_path, capfd):
    base = Future()
    base.set_exception(OSError("no space left"))
    command._run("bench_memory", ("--base", command.SD1_BASE), {command.SD1_BASE: base}, tmp_path, time.monotonic() + 60)
    assert told(capfd)[-1] == "failed: no base could be written (no space left)"


def test_the_commands_know_the_flags_that_they_get_on_a_gpu():
    """What they do not know would only be found on a GPU."""
    for name in dict(command.ON_A_GPU):
        known = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--help"], capture_output=True, text=True, check=True,
                               cwd=Path(command.__file__).parents[1])
        asked = {flag for part, flags in command.ON_A_GPU if part == name for flag in flags if flag.startswith("--")}
        assert {flag for flag in asked if flag in known.stdout} == asked, name


@pytest.mark.parametrize(("kernel", "kind"), [
    ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6", "attention"),
    ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
    ("nvjet_tst_128x256_64x4_1x2_h_bz_coopB_TNN", "matrix product"),
    ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>", "norm"),
    ("triton_red_fused_native_group_norm_silu_7", "norm"),
    ("void at::native::multi_tensor_apply_kernel<..., FusedAdamMathFunctor<float, 4>>", "optimizer"),
    ("void cudnn::engines_precompiled::nchwToNhwcKernel<...>", "layout"),
    ("void at::native::elementwise_kernel<128, 4, gpu_kernel_impl_nocast<direct_copy_kernel_cuda>>", "strided"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel>", "elementwise")])
def test_kernels_are_told_by_their_kind(kernel, kind):
    assert kind_of(kernel) == kind


def test_the_steps_that_are_watched_are_whole_ones(capsys, monkeypatch):
    """On a CPU: the packaged base has 98 convolutions, each of which goes backward once a step."""
    monkeypatch.setattr(sys, "argv", ["bench_kernels", "--top", "1000"])
    bench_kernels.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("playground.safetensors, 64 px, none, batch 1 + 1, speed-up none, attention torch, on CPU: ")
    assert [line.split()[1] for line in lines if line.endswith("aten::convolution_backward")] == ["98"]
    kinds = {line[:16].strip(): float(line[27:35].rstrip("%")) for line in lines[2:lines.index("")]}
    assert sum(kinds.values()) == pytest.approx(100, abs=1) and kinds["convolution"] > 0


def orders_attention():
    return hasattr(torch._C, "_get_sdp_priority_order")


@pytest.mark.skipif(orders_attention(), reason="this torch orders them")
def test_a_torch_that_cannot_order_attention_kernels_is_told():
    with pytest.raises(SystemExit, match="cannot order attention kernels"):
        attention_by("efficient")
    with attention_by("torch"):
        pass


@pytest.mark.skipif(not orders_attention(), reason="torch has but one order of attention kernels before 2.6")
def test_attention_is_torchs_own_again_after_it_was_another():
    def order():
        return torch._C._get_sdp_priority_order()

    usual = order()
    with attention_by("efficient"):
        assert order() != usual and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert order() == usual
    with attention_by("torch"):
        assert order() == usual


@pytest.mark.parametrize(("room", "ram", "in_ram"), [(50, 100, True), (30, 100, False), (50, 60, False)])
def test_temporary_files_lie_in_ram_where_there_is_much_of_it(room, ram, in_ram, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "IN_RAM", tmp_path)
    monkeypatch.setattr(command.shutil, "disk_usage", lambda place: SimpleNamespace(free=room * 10**9))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=ram * 10**9))
    assert command._roomiest() == (tmp_path if in_ram else None)


def test_clipping_is_compared_with_that_by_the_true_norm(monkeypatch):
    monkeypatch.setattr(Watched, "errors", [])
    monkeypatch.setattr(Watched, "norms", [])
    weights = [torch.nn.Parameter(torch.ones(count)) for count in (5000, 7000, 10)]
    hooks = Watched(AdamW([{"params": weights, "lr": 0.0}], 0.0, (0.9, 0.999), 1e-8, 0.0), 1.0)
    for _ in range(2):
        sum((weight * 2).sum() for weight in weights).backward()
        assert float(hooks.finish()) == pytest.approx(2 * 12_010**0.5)
    (first, second), norms = Watched.errors, Watched.norms  # at first nobody knows what the others will have
    assert first > second and second < 0.01
    assert norms[1] == pytest.approx(1.0, abs=1e-3) and norms[0] <= 1.001


@pytest.mark.full_size
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, whose memory is measured then")
def test_ultra_trains_the_full_size_model_in_3_gib_of_a_cpus_memory(tmp_path):
    call = [sys.executable, "-m", "benchmarks.bench_memory", "--profiles", "ultra", "--resolution", "64", "--folder", str(tmp_path)]
    table = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    assert 2.0 < float(table[table.index("ultra") + 6]) <= 3.0
