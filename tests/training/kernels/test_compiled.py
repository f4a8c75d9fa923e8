"""Every kernel compiles for real cards. The interpreter, which the other tests use, knows few of the compiler's rules."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

COMPILE = """
import triton

from dreambooth_ext.training.kernels import adafactor, adamw, copied_adamw, geglu, group_norm

if triton.__version__.startswith("2."):
    from triton.compiler import compiler

    compiler.make_stub = compiler.CompiledKernel = lambda *_: None  # what launches, which is built with a driver at hand

    def compiled_for(capability, kernel, types, constants):
        types = {kernel.arg_names.index(name): kind for name, kind in types.items()}
        constants = {kernel.arg_names.index(name): value for name, value in constants.items()}
        triton.compile(kernel, signature=types, constants=constants, device_type="cuda", cc=capability)
else:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compiled_for(capability, kernel, types, constants):
        types = types | dict.fromkeys(constants, "constexpr")
        triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))

def compiled(kernel, types, **constants):
    assert set(kernel.fn.__annotations__) == set(constants)  # see `jit`
    names = [name for name in kernel.arg_names if name not in constants]
    for capability in (75, 80, 90):
        if capability < 80 and "*bf16" in types:
            continue  # no run has such tensors there: `precision.has_bf16`
        compiled_for(capability, kernel, dict(zip(names, types.split(), strict=True)), constants)

for size in (2, 4):
    compiled(adamw._step, "*i64 *fp32" + 7 * " fp32", scaled=True, weight_bytes=size, gradient_bytes=size, copied=False,
             aligned=True, rows=adamw.ROWS, many=adamw.MANY)
    compiled(adamw._step, "*i64 *fp32" + 7 * " fp32", scaled=True, weight_bytes=4, gradient_bytes=2, copied=True,
             aligned=size == 2, rows=adamw.ROWS, many=adamw.MANY)
    constants = dict(scaled=True, gradient_bytes=size, aligned=True, many=adamw.MANY, tile=adafactor.TILE)
    compiled(adafactor._squares, "*i64 *fp32", **constants)
    compiled(adafactor._norms, "*i64 *fp32", **constants)
    compiled(adafactor._apply, "*i64 *fp32 fp32", weight_bytes=size, **constants)
compiled(adafactor._averages, "*i64 fp32 fp32", tile=adafactor.TILE, parts=adafactor.PARTS, many=adamw.MANY)
compiled(adafactor._factors, "*i64 fp32 fp32", tile=adafactor.TILE, many=adamw.MANY)
for aligned in (True, False):
    compiled(copied_adamw._copied_adamw, "*i64 *fp32" + 7 * " fp32", scaled=True, aligned=aligned, block=copied_adamw.BLOCK,
             many=copied_adamw.MANY)
    compiled(copied_adamw._norm_of_gradients, "*i64 *fp32", aligned=aligned, blocks=copied_adamw.BLOCKS,
             block=copied_adamw.BLOCK, many=copied_adamw.MANY)
tile = {"places": group_norm.PLACES, "width": group_norm.CHANNELS}
for kind in ("*bf16", "*fp16", "*fp32"):
    compiled(group_norm._norm_moments, f"{kind} *fp32 *fp32 i32 i32", **tile)
    for silu in (True, False):
        compiled(group_norm._norm_apply, f"{kind} *fp32 {kind} {kind} {kind} i32 i32 i32", silu=silu, **tile)
        compiled(group_norm._norm_sums, f"{kind} {kind} *fp32 {kind} {kind} *fp32 i32 i32 i32", silu=silu, **tile)
        compiled(group_norm._norm_input_gradient, f"{kind} {kind} *fp32 *fp32 {kind} {kind} {kind} i32 i32 i32", silu=silu, **tile)
    compiled(group_norm._norm_joined_sums, f"*fp32 {kind} *fp32 *fp32 i32 i32", many=32, width=16)
    compiled(geglu._geglu, f"{kind} {kind} i32", block=geglu.BLOCK)
    compiled(geglu._geglu_gradient, f"{kind} {kind} {kind} i32", block=geglu.BLOCK)
for many in (1, 128):
    compiled(group_norm._norm_statistics, "*fp32 *fp32 *fp32 i32 i32 i32 fp32", places=group_norm.PLACES, many=many, width=64)
"""


def test_kernels_compile_without_a_gpu():
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=variables, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
