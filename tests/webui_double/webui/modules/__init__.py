"""A small double of the WebUI's slice that we touch, with the behaviours that have hurt others.

Beside the plain ones: a first-come-first-served lock that is not re-entrant, handlers that reset the state when they
end, half-sampled pictures after an interrupt, None for a rejected file, titles that change once the hash is known, and
the first checkpoint taken in silence for one that is not found.
"""


def start():
    from modules import sd_models, shared
    from modules.call_queue import wrap_queued_call

    sd_models.list_models()
    shared.opts.data_labels["sd_model_checkpoint"].onchange = wrap_queued_call(lambda: sd_models.reload_model_weights())
