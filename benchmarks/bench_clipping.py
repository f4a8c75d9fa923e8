"""How near the memory profiles with a fused backward pass come to clipping by the true global norm, in the demo's training.

    python -m benchmarks.bench_clipping [--profile low] [--seed 0] [--folder DIR]

"error": the length of the difference between the gradient as it was clipped and as the true norm would have clipped it, as a
share of the latter's length. Class images that DIR holds are not made again.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch

from dreambooth_ext import recipe
from dreambooth_ext.demo import demo_config, draw_pictures
from dreambooth_ext.hosts.standalone import StandaloneHost
from dreambooth_ext.progress import Progress
from dreambooth_ext.training import session
from dreambooth_ext.training.optimizers.fused import FusedBackward


class Watched(FusedBackward):
    """Remembers for each step how far its clipping was off, and the norm of what it left."""

    errors: ClassVar[list[float]] = []
    norms: ClassVar[list[float]] = []
    _seen: ClassVar[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def _scale(self) -> torch.Tensor:
        square = torch.stack([self._norm_of[parameter] for parameter in self._held]).square().sum()
        scale = super()._scale()
        self._seen.append((square, scale))
        return scale

    def finish(self) -> torch.Tensor:
        norm = super().finish()
        squares, scales = (torch.stack(column) for column in zip(*self._seen, strict=True))
        self._seen.clear()
        true = (self._limit**0.5 / norm).clamp(max=1.0)
        self.errors.append(float((squares * (scales - true) ** 2).sum().sqrt() / (true * norm)))
        self.norms.append(float((squares * scales**2).sum().sqrt()))
        return norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="low")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = parsed.folder or Path(name)
        host = StandaloneHost(folder / "models", folder / "runs", batch_size=20)
        draw_pictures(folder / "pictures")
        config = replace(demo_config(folder, parsed.seed), memory_profile=parsed.profile, output_name="clipping",
                         preview_steps=0, auto_select=False)
        session.FusedBackward = Watched  # type: ignore[misc]
        recipe.train(config, host, Progress())
    errors = torch.tensor(Watched.errors)
    clipped = sum(norm > 0.9 * config.max_grad_norm for norm in Watched.norms)
    print(f"{len(errors)} steps, {clipped} of them near the limit of {config.max_grad_norm:g}; largest norm that was left: "
          f"{max(Watched.norms):.3f}")
    print(f"error: mean {errors.mean():.1%}, median {errors.median():.1%}, 95 % of the steps below {errors.quantile(0.95):.1%}")


if __name__ == "__main__":
    main()
