import os
import sys
import types

from modules import paths, shared_state
from modules.options import OptionInfo, Options

cmd_opts = types.SimpleNamespace(
    ckpt_dir=None, lora_dir=os.path.join(paths.models_path, "Lora"), freeze_settings=False, api=True, nowebui=False,
    api_auth=None, share=False, listen=False, ngrok=None, server_name=None, hide_ui_dir_config=False,
    enable_insecure_extension_access=False, vae_path=None)
state = shared_state.State()
config_filename = os.path.join(paths.data_path, "config.json")
sd_upscalers = []
interrogator = None
demo = types.SimpleNamespace(server=types.SimpleNamespace(should_exit=False))
total_tqdm = types.SimpleNamespace(clear=lambda: None)
opts = Options({name: OptionInfo(default) for name, default in {
    "sd_model_checkpoint": None, "CLIP_stop_at_last_layers": 2, "sd_vae": "user.vae.pt", "token_merging_ratio": 0.5,
    "sd_vae_overrides_per_model_preferences": True, "tiling": True, "face_restoration": True, "randn_source": "GPU",
    "eta_noise_seed_delta": 31337, "sd_lora": "None", "emphasis": "Original", "dreambooth_free_ram": False, "multiple_tqdm": True,
}.items()}, cmd_opts)


def refresh_checkpoints():
    from modules import sd_models

    return sd_models.list_models()


class _Module(types.ModuleType):
    @property
    def sd_model(self):
        from modules import sd_models

        return sd_models.model_data.get_sd_model()


sys.modules[__name__].__class__ = _Module
