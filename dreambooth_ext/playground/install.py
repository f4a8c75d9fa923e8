"""The playground base as a checkpoint that a WebUI loads, so that anyone can try the tab on a CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..files import require_writable, write_atomically, write_json
from ..models.tokenizer import tokenizer_folder
from .base import playground_base_path

NAME = "playground"
CLIP_FOLDER = "playground-clip"
PLACEHOLDER = "playground_clip"  # stands in the packaged sidecar for where this function puts CLIP


def install_into(models_dir: Path) -> list[Path]:
    """Write playground.safetensors, its sidecar and the text encoder's folder into `models_dir`. Raises StorageError.

    The sidecar names the text encoder's folder by its full path: the host builds its text encoder from there, offline.
    """
    from ..models.checkpoint_file import open_checkpoint

    require_writable(models_dir)
    source, clip = playground_base_path(), models_dir.resolve() / CLIP_FOLDER
    clip.mkdir(exist_ok=True)
    for path in tokenizer_folder().iterdir():
        shutil.copyfile(path, clip / path.name)
    with open_checkpoint(source) as file:
        write_json(clip / "config.json", clip_config(file.shapes))
    sidecar = models_dir / f"{NAME}.yaml"
    with write_atomically(sidecar, "w") as stream:
        stream.write(source.with_suffix(".yaml").read_text(encoding="utf-8").replace(PLACEHOLDER, clip.as_posix()))
    checkpoint = models_dir / source.name
    with write_atomically(checkpoint) as target, source.open("rb") as stream:
        shutil.copyfileobj(stream, target)
    return [checkpoint, sidecar, clip]


def clip_config(shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """transformers' configuration of the playground's text encoder, read off its tensors."""
    root = "cond_stage_model.transformer.text_model."
    words, width = shapes[f"{root}embeddings.token_embedding.weight"]
    layers = {name.split(".")[5] for name in shapes if name.startswith(f"{root}encoder.layers.")}
    return {
        "model_type": "clip_text_model", "vocab_size": words, "hidden_size": width, "num_hidden_layers": len(layers),
        "intermediate_size": shapes[f"{root}encoder.layers.0.mlp.fc1.weight"][0], "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes[f"{root}embeddings.position_embedding.weight"][0], "hidden_act": "quick_gelu",
        "projection_dim": width, "bos_token_id": 49406, "eos_token_id": 49407, "architectures": ["CLIPTextModel"],
    }
