"""The commands that work on model files: converting them, and LoRA files out of them and into them."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from ..errors import ConfigError
from ..files import expanded, gib
from ..progress import Progress
from .command import Command, say

_DTYPES = ("source", "fp32", "fp16", "bf16")
_PREDICTIONS = ("auto", "epsilon", "v_prediction")


def convert(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..models.conversion import Wishes
    from ..models.conversion import convert as convert_model

    if parsed.half and parsed.dtype not in (None, "fp16"):
        raise ConfigError([f"--half: it means --dtype fp16, and --dtype {parsed.dtype} is given as well"], "Give one of the two.")
    dtype = "fp16" if parsed.half else parsed.dtype or "source"
    wishes = Wishes(dtype, expanded(parsed.vae) if parsed.vae else None, parsed.prune, parsed.prediction_type, parsed.overwrite,
                    parsed.zero_terminal_snr)
    written = convert_model(expanded(parsed.source), expanded(parsed.destination), parsed.format or "", wishes, progress)
    size = sum(path.stat().st_size for path in ([written] if written.is_file() else written.rglob("*")) if path.is_file())
    kind = "" if written.is_file() else "a diffusers folder, "
    say(parsed, f"Wrote {written} ({kind}{gib(size)}).", written=str(written), bytes=size)


def extract_lora(parsed: argparse.Namespace, progress: Progress) -> None:
    import torch

    from ..models.checkpoint_file import DTYPE_OF, DTYPES
    from ..models.lora_file import extract_lora as extract

    if parsed.rank < 1 or parsed.conv_rank < 0:
        raise ConfigError(["--rank: must be 1 or more, and --conv-rank 0 or more"])
    destination = _lora_path(parsed.destination, parsed.overwrite)
    dtype: torch.dtype = DTYPES[DTYPE_OF[parsed.dtype]]
    result = extract(expanded(parsed.base), expanded(parsed.tuned), destination, parsed.rank, conv_rank=parsed.conv_rank,
                     dtype=dtype, metadata={"title": destination.stem}, progress=progress)
    say(parsed, f"Wrote {destination} ({gib(destination.stat().st_size)}): {result}.", written=str(destination),
        layers=result.layers, difference=result.difference, error=result.error, least_error=result.bound, beyond=result.beyond)


def merge_lora(parsed: argparse.Namespace, progress: Progress) -> None:
    from ..models.lora_file import merge_lora as merge
    from ..models.publish import require_no_sidecar, require_other_files

    destination = expanded(parsed.destination)
    if not math.isfinite(parsed.weight):
        raise ConfigError([f"--weight: {parsed.weight} is not a finite number"])
    if destination.suffix not in (".ckpt", ".safetensors"):
        raise ConfigError([f"DESTINATION: {destination.name} ends neither in .safetensors nor in .ckpt"])
    form = destination.suffix[1:]
    require_other_files(expanded(parsed.base), destination.parent, destination.stem, form)
    _require_new(destination, parsed.overwrite)
    if not parsed.overwrite:
        require_no_sidecar(destination)
    vae = expanded(parsed.vae) if parsed.vae else None
    progress.start("merging", 0)
    paths = merge(expanded(parsed.base), expanded(parsed.lora), destination.parent, destination.stem, parsed.weight,
                  publish_format=form, dtype=parsed.dtype, vae=vae, metadata={"title": destination.stem}, progress=progress)
    say(parsed, f"Wrote {paths[0]} ({gib(paths[0].stat().st_size)}).", written=str(paths[0]))


def _lora_path(text: str, overwrite: bool) -> Path:
    path = expanded(text)
    if path.suffix != ".safetensors":
        raise ConfigError([f"DESTINATION: {path.name} does not end in .safetensors"])
    return _require_new(path, overwrite)


def _require_new(path: Path, overwrite: bool) -> Path:
    if os.path.exists(path) and not overwrite:
        raise ConfigError([f"DESTINATION: {path.name} is there already"], "Choose another name, or add --overwrite.")
    return path


def _declare_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a .safetensors or .ckpt file, or a diffusers folder")
    parser.add_argument("destination", metavar="DESTINATION", help="file or folder to write; its ending tells which")
    parser.add_argument("--format", choices=("ckpt", "safetensors", "diffusers"), help="instead of what the ending tells")
    parser.add_argument("--dtype", choices=_DTYPES, help="precision of the weights (default: as they are)")
    parser.add_argument("--half", action="store_true", help="the same as --dtype fp16")
    parser.add_argument("--vae", metavar="FILE", help="another VAE to be put in")
    parser.add_argument("--prune", action="store_true", help="leave averaged weights (model_ema.*) out")
    parser.add_argument("--prediction-type", choices=_PREDICTIONS, default="auto",
                        help="what the model predicts, where the file does not tell (default: auto)")
    parser.add_argument("--zero-terminal-snr", action="store_true",
                        help="its last timestep has no signal, where the file does not tell; needs v_prediction")
    parser.add_argument("--overwrite", action="store_true", help="replace what has that name already")


def _declare_extract(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the checkpoint that was trained from")
    parser.add_argument("tuned", metavar="TUNED", help="the checkpoint that came of it")
    parser.add_argument("destination", metavar="DESTINATION", help=".safetensors file to write")
    parser.add_argument("--rank", type=int, default=32, metavar="N", help="rank of the LoRA (default: 32)")
    parser.add_argument("--conv-rank", type=int, default=0, metavar="N", help="rank of 3x3 convolutions; 0 leaves them out")
    parser.add_argument("--dtype", choices=_DTYPES[1:], default="fp16", help="precision of the file (default: fp16)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name")


def _declare_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the checkpoint to merge into; it stays as it is")
    parser.add_argument("lora", metavar="LORA", help="the LoRA's .safetensors file")
    parser.add_argument("destination", metavar="DESTINATION", help=".safetensors or .ckpt file to write")
    parser.add_argument("--weight", type=float, default=1.0, metavar="X", help="how strongly (default: 1)")
    parser.add_argument("--vae", metavar="FILE", help="the VAE to be put in, for a base that has none of its own")
    parser.add_argument("--dtype", choices=_DTYPES, default="source", help="precision of the weights (default: as they are)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of that name")


COMMANDS: dict[str, Command] = {
    "convert": (convert, "Turn a model file into a diffusers folder, or back, or into another format.", _declare_convert),
    "extract-lora": (extract_lora, "Make a LoRA of the difference between two checkpoints.", _declare_extract),
    "merge-lora": (merge_lora, "Make a checkpoint with a LoRA in it.", _declare_merge),
}
