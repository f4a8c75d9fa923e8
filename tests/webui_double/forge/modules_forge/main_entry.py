"""Forge's quick settings, and what they do."""

import gradio as gr
from modules import processing, sd_models, shared

STORED = {"Automatic": None, "bnb-nf4": "nf4"}


def refresh_model_loading_parameters():
    sd_models.model_data.forge_loading_parameters = {
        "checkpoint_info": sd_models.select_checkpoint(), "additional_modules": shared.opts.forge_additional_modules,
        "unet_storage_dtype": STORED[shared.opts.forge_unet_storage_dtype]}
    processing.need_global_unload = True


def checkpoint_change(name, save=True, refresh=True):
    wanted = sd_models.get_closet_checkpoint_match(name)
    if wanted == sd_models.get_closet_checkpoint_match(shared.opts.data.get("sd_model_checkpoint", "")):
        return False
    shared.opts.set("sd_model_checkpoint", name)
    if save:
        shared.opts.save(shared.config_filename)
    if refresh:
        refresh_model_loading_parameters()
    return True


def refresh_models():
    sd_models.list_models()
    return sd_models.checkpoint_tiles(shared.opts.sd_checkpoint_dropdown_use_short)


def make_checkpoint_manager_ui(root):
    """The checkpoint's dropdown; whoever changes its choices makes it anew, as gradio 4 does."""
    from modules import script_callbacks

    def choices():
        found = refresh_models()
        # outside of any page, and who listens is told of it
        script_callbacks.after_component_callback(gr.Dropdown(**about, choices=found), **about)
        return gr.update(choices=found)

    about = {"label": "Checkpoint", "elem_classes": ["model_selection"]}
    box = gr.Dropdown(value=lambda: shared.opts.sd_model_checkpoint, choices=refresh_models(), **about)
    script_callbacks.after_component_callback(box, **about)
    root.load(choices, [], [box], show_progress=False, queue=False)
    box.change(lambda name: checkpoint_change(name) and None, [box], [], show_progress=False)
