"""Forge's own: weights come with a picture, and go when somebody asks."""

moves = []  # "in" and "out" of the device


def unload_all_models():
    from modules import sd_models

    if getattr(sd_models.model_data.sd_model, "device", "cpu") == "cuda":
        sd_models.model_data.sd_model.device = "cpu"
        moves.append("out")


def soft_empty_cache():
    pass
