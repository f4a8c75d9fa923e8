"""What `optimizers.rounding` and `optimizers.quantized` do, number by number, for kernels; random bits are given.

bf16 and FP8 are read and written by their bits: cards before the RTX 30 and the RTX 40 series do not have them.
"""

from __future__ import annotations

import triton.language as tl

from .jit import jit

ROUNDS = tl.constexpr(7)  # of Philox: the fewest that pass all of the tests in Salmon et al. 2011
_LEAST_EXPONENT = tl.constexpr(111)  # quantized's _EXPONENT, its greatest share x its factor, and 2^-9: FP8's smallest
_GREATEST = tl.constexpr(448.0)
_SMALLEST = tl.constexpr(2.0**-9)
_SUBNORMAL = tl.constexpr(2.0**14)  # beside it, a float's last bit is worth FP8's smallest number


@jit
def widened(values: tl.tensor, size: tl.constexpr) -> tl.tensor:
    """fp32 of what is stored in `size` bytes: in 2 the bits of bf16 (int16), in 4 fp32."""
    if size == 2:
        return (values.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return values


@jit
def rounded(values: tl.tensor, noise: tl.tensor, size: tl.constexpr) -> tl.tensor:
    """fp32 as it is stored in `size` bytes: in 2 the bits of bf16 (int16), rounded by 16 random bits (int32).

    What is not a number stays so: a GPU's own NaN has all bits set, and noise would carry out of them.
    """
    if size == 2:
        upper = (values.to(tl.int32, bitcast=True) + noise) >> 16
        return tl.where(values != values, 0x7FFF, upper).to(tl.int16)
    else:
        return values


@jit
def nearest(values: tl.tensor) -> tl.tensor:
    """fp32 -> the bits of the nearest bf16 (int16), of two as near the even one: as torch rounds."""
    bits = values.to(tl.int32, bitcast=True)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(values != values, 0x7FFF, upper).to(tl.int16)


@jit
def root_of(codes: tl.tensor) -> tl.tensor:
    """Codes (uint8) -> fp32 in units of the block's largest / TOP."""
    return ((codes.to(tl.int32) + _LEAST_EXPONENT * 16) << 19).to(tl.float32, bitcast=True)


@jit
def root_code(roots: tl.tensor, noise: tl.tensor) -> tl.tensor:
    """The reverse, of fp32 from 0 to TOP, by 19 random bits (int32)."""
    code = (roots.to(tl.int32, bitcast=True) + noise - (_LEAST_EXPONENT << 23)) >> 19
    return tl.minimum(tl.maximum(code, 0), 255).to(tl.uint8)


@jit
def share_of(codes: tl.tensor) -> tl.tensor:
    """FP8 (e4m3) codes (uint8) -> fp32, `SHARE_FACTOR` times as large as the shares."""
    bits = codes.to(tl.int32)
    size = bits & 0x7F
    normal = ((size << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(size < 8, size.to(tl.float32) * _SMALLEST, normal)
    return tl.where(bits >= 0x80, -value, value)


@jit
def share_code(shares: tl.tensor, noise: tl.tensor) -> tl.tensor:
    """The reverse, of fp32 `SHARE_FACTOR` times as large as the shares, by 20 random bits (int32)."""
    held = tl.minimum(tl.maximum(shares, -_GREATEST), _GREATEST)
    bits = held.to(tl.int32, bitcast=True)
    size = ((bits & 0x7FFFFFFF) + noise) & 0x7FF00000
    tiny = (size.to(tl.float32, bitcast=True) + _SUBNORMAL).to(tl.int32, bitcast=True)
    code = tl.where(size < (121 << 23), tiny & 0xF, (size >> 20) - (120 << 3))
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@jit
def hypotenuse(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    """sqrt(first^2 + second^2) of fp32, whose squares may be too large or too small for fp32."""
    one = tl.abs(first)
    other = tl.abs(second)
    longer = tl.maximum(one, other)
    ratio = tl.minimum(one, other) / tl.maximum(longer, 1e-37)
    return longer * tl.sqrt(1.0 + ratio * ratio)
