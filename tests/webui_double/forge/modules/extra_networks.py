"""The LoRAs of the last txt2img are patches of the model: without one there is nothing to take them out of."""

loaded = []
complaints = []  # tracebacks in the console


def activate(p, data):
    from modules import sd_models

    if not hasattr(sd_models.model_data.sd_model, "forge_objects"):
        complaints.append("'FakeInitialModel' object has no attribute 'forge_objects'")
        return
    loaded[:] = list(data)
