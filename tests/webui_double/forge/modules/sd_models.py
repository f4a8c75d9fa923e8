"""Forge's: what is selected is loaded by the next picture, and the list calls a file by its bare name."""

import os
import types

from backend import memory_management
from modules import extra_networks, processing, safe, shared
from modules.checkpoint_list import CheckpointInfo, checkpoint_aliases, checkpoints_list, list_models, model_path

__all__ = ["CheckpointInfo", "list_models", "model_path"]


def checkpoint_tiles(use_short=False):
    return [info.short_title if use_short else info.name for info in checkpoints_list.values()]


def get_closet_checkpoint_match(text):
    return checkpoint_aliases.get(text)


def select_checkpoint():
    info = checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    if info is None and not checkpoints_list:
        print("You do not have any model!")
        return None
    return info or next(iter(checkpoints_list.values()))


class FakeInitialModel:
    """Stands where a model will be: almost nothing can be asked of it."""


class SdModelData:
    def __init__(self):
        self.sd_model, self.forge_loading_parameters, self.forge_hash = FakeInitialModel(), {}, ""

    def get_sd_model(self):
        return self.sd_model


model_data = SdModelData()


class Model:
    def __init__(self, parameters):
        info = parameters["checkpoint_info"]
        self.sd_checkpoint_info, self.sd_model_checkpoint = info, info.filename
        self.content = safe.load(info.filename)
        if self.content is None:
            raise ValueError("Failed to recognize model type!")
        self.vae = ", ".join(parameters["additional_modules"]) or None
        self.weights = parameters["unet_storage_dtype"]
        self.device = "cpu"
        told = "v_prediction" if os.path.exists(os.path.splitext(info.filename)[0] + ".yaml") else "epsilon"
        predictor = types.SimpleNamespace(prediction_type=told)
        self.forge_objects = types.SimpleNamespace(
            unet=types.SimpleNamespace(model=types.SimpleNamespace(predictor=predictor)))


def forge_model_reload():
    # A file that was written anew has the same name here: only who clears the hash gets its new content.
    wanted = repr({**model_data.forge_loading_parameters, "checkpoint_info": model_data.forge_loading_parameters[
        "checkpoint_info"] and model_data.forge_loading_parameters["checkpoint_info"].filename})
    if model_data.forge_hash == wanted:
        return model_data.sd_model, False
    model_data.sd_model = None
    memory_management.unload_all_models()
    if model_data.forge_loading_parameters["checkpoint_info"] is None:
        raise ValueError("You do not have any model!")
    model = Model(model_data.forge_loading_parameters)
    extra_networks.loaded.clear()  # they are patches of the model that has gone
    model.sd_checkpoint_info.calculate_shorthash()
    model_data.sd_model, model_data.forge_hash = model, wanted
    return model, True


def for_rendering():
    model, just_loaded = forge_model_reload()
    if processing.need_global_unload and not just_loaded:
        memory_management.unload_all_models()
    processing.need_global_unload = False
    if model.device != "cuda":
        memory_management.moves.append("in")
    model.device = "cuda"
    return model


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    """Does nothing in Forge, and nor do its neighbours."""


def send_model_to_cpu(model):
    pass


def send_model_to_device(model):
    pass


def send_model_to_trash(model):
    pass
