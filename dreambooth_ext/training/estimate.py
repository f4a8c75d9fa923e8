def profile_that_fits(config, model):
    return "fast"
