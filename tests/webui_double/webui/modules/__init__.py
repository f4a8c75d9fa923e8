"""A small double of the WebUI's slice that we touch, with the behaviours that have hurt others.

Beside the plain ones: a first-come-first-served lock that is not re-entrant, handlers that reset the state when they
end, half-sampled pictures after an interrupt, None for a rejected file, titles that change once the hash is known, and
the first checkpoint taken in silence for one that is not found. Told to, it is Forge instead (the folder beside it).
"""

import sys
from pathlib import Path

FORGE = Path(__file__).resolve().parents[2] / "forge"


def as_forge():
    """Forge's own modules are found before ours. To be called first of all."""
    sys.path.insert(0, str(FORGE))
    __path__.insert(0, str(FORGE / "modules"))


def start():
    from modules import sd_models, shared
    from modules.call_queue import wrap_queued_call

    sd_models.list_models()
    if str(FORGE) in sys.path:
        from modules.options import OptionInfo

        for name, default in (("forge_additional_modules", ["user.vae.pt"]), ("forge_unet_storage_dtype", "bnb-nf4"),
                              ("sd_checkpoint_dropdown_use_short", False)):
            shared.opts.add_option(name, OptionInfo(default))
        from modules_forge import main_entry

        shared.opts.data["sd_model_checkpoint"] = next(iter(sd_models.checkpoint_tiles()), None)
        main_entry.refresh_model_loading_parameters()
        return
    shared.opts.data_labels["sd_model_checkpoint"].onchange = wrap_queued_call(lambda: sd_models.reload_model_weights())
