import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", minversion="3", reason="Triton 3, whose interpreter computes here, is missing")

from dreambooth_ext.training.kernels.geglu import BLOCK, geglu


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("shape", [(2, 3, 2 * 5), (4, 2 * BLOCK), (1, 2, 2 * (BLOCK + 3))])
def test_output_and_gradient_are_those_of_torch(shape, dtype, near):
    x = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    y = geglu(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wide = x.detach().double().requires_grad_()
    hidden, gate = wide.chunk(2, dim=-1)
    wanted = hidden * F.gelu(gate)
    for ours, theirs in ((y, wanted), (torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(wanted, wide, grad.double())[0])):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() < near * theirs.norm()


def test_of_transposed_rows():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(geglu(x.t().contiguous().t()), geglu(x))
