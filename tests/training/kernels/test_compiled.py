"""Every kernel compiles for real cards. The interpreter, which the other tests use, knows few of the compiler's rules."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dreambooth_ext.training.kernels import adafactor, adamw
from dreambooth_ext.training.kernels.doubling import _double

def compiled(kernel, types, **constants):
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    for capability in (80, 90):
        triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))

compiled(_double, "*fp32 *fp32 i32", block=16)
for size in (2, 4):
    compiled(adamw._step, "*i64 *fp32" + 7 * " fp32", scaled=True, weight_bytes=size, gradient_bytes=size, aligned=True,
             rows=adamw.ROWS, many=adamw.MANY)
    constants = dict(scaled=True, gradient_bytes=size, aligned=True, many=adamw.MANY, tile=adafactor.TILE)
    compiled(adafactor._squares, "*i64 *fp32", **constants)
    compiled(adafactor._norms, "*i64 *fp32", **constants)
    compiled(adafactor._apply, "*i64 *fp32 fp32", weight_bytes=size, **constants)
compiled(adafactor._averages, "*i64 fp32 fp32", tile=adafactor.TILE, parts=adafactor.PARTS, many=adamw.MANY)
compiled(adafactor._factors, "*i64 fp32 fp32", tile=adafactor.TILE, many=adamw.MANY)
"""


def test_kernels_compile_without_a_gpu():
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=variables, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
