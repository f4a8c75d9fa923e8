"""The playground's networks as one file of SD 1.x's layout."""

import torch

from dreambooth_ext.models.load import load_checkpoint
from dreambooth_ext.models.networks import tensors_of
from dreambooth_ext.playground import export, networks, train_decoder, train_unet


def test_what_is_exported_is_loaded_again(tmp_path, monkeypatch):
    made = {"unet": networks.build_unet(), "vae": networks.build_vae(), "text_encoder": networks.build_text_encoder()}
    monkeypatch.setattr(train_unet, "load_average", lambda out: (made["unet"], made["text_encoder"]))
    monkeypatch.setattr(train_decoder, "load_vae", lambda out: made["vae"])
    model = load_checkpoint(export.export(tmp_path), dtype=torch.float16)
    for part, module in made.items():
        loaded = tensors_of(model.parts[part])
        own = {name: tensor.half() for name, tensor in tensors_of(module).items()}
        assert loaded.keys() == own.keys() and all(torch.equal(loaded[name], own[name]) for name in own)
