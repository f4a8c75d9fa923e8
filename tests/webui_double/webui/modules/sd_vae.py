from modules import shared

unspecified = object()


def load_for(model):
    model.vae = None if shared.opts.sd_vae == "None" else shared.opts.sd_vae


def reload_vae_weights(sd_model=None, vae_file=unspecified):
    model = sd_model or shared.sd_model
    if vae_file is unspecified:
        load_for(model)
    else:
        model.vae = vae_file
