"""Checkpoints: what is not found is replaced, in silence, by the first."""

import collections
import os
import threading
import types

from modules import safe, sd_vae, shared
from modules.checkpoint_list import CheckpointInfo, checkpoint_aliases, checkpoints_list, list_models, model_path

__all__ = ["CheckpointInfo", "list_models", "model_path"]
checkpoints_loaded = collections.OrderedDict()


def checkpoint_tiles():
    return list(checkpoints_list)


def select_checkpoint():
    info = checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    if info is not None:
        return info
    if not checkpoints_list:
        raise FileNotFoundError("No checkpoints found")
    info = next(iter(checkpoints_list.values()))
    print(f"Checkpoint {shared.opts.sd_model_checkpoint} not found; loading fallback {info.title}")
    return info


class Model:
    """Content of a checkpoint file, on a device. A model that was thrown away must not be used again."""

    def __init__(self, info):
        self.sd_checkpoint_info, self.sd_model_checkpoint = info, info.filename
        self.content = safe.load(info.filename)
        if self.content is None:
            raise TypeError("'NoneType' object is not subscriptable")  # what the loader makes of a rejected file
        self.device = "cuda"
        self.lowvram = False
        self.vae = None
        self.parameterization = "v" if os.path.exists(os.path.splitext(info.filename)[0] + ".yaml") else "eps"

    def to(self, device):
        assert self.device != "meta", "a model on the meta device was used"
        self.device = device

    def parameters(self):
        yield types.SimpleNamespace(device=types.SimpleNamespace(type=self.device))


class ModelData:
    def __init__(self):
        self.sd_model = None
        self.loaded_sd_models = []
        self.was_loaded_at_least_once = False
        self.lock = threading.Lock()

    def get_sd_model(self):
        if not self.was_loaded_at_least_once and checkpoints_list:
            with self.lock:
                if not self.was_loaded_at_least_once:
                    reload_model_weights()
        return self.sd_model


model_data = ModelData()


def send_model_to_cpu(model):
    if model is not None:
        model.to("cpu")


def send_model_to_device(model):
    model.to("cuda")


def send_model_to_trash(model):
    model.device = "meta"


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    info = info or select_checkpoint()
    loaded = model_data.sd_model
    if loaded is not None and loaded.sd_model_checkpoint == info.filename and not forced_reload:
        return loaded  # by its name alone: a file that was written anew is not noticed
    info.calculate_shorthash()
    shared.opts.data["sd_model_checkpoint"] = info.title  # before it is known whether it can be loaded
    if loaded is not None:
        send_model_to_trash(loaded)
    model_data.sd_model = None
    model_data.loaded_sd_models.clear()
    model = Model(info)
    model_data.sd_model = model
    model_data.loaded_sd_models.append(model)
    model_data.was_loaded_at_least_once = True
    sd_vae.load_for(model)
    return model


def for_rendering():
    reload_model_weights()
    return model_data.sd_model


def unload_model_weights(sd_model=None, info=None):
    send_model_to_cpu(sd_model or shared.sd_model)
