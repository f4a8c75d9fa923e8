"""What the last txt2img loaded stays loaded until the next activation."""

loaded = []


def activate(p, data):
    loaded[:] = list(data)


def deactivate(p, data):
    pass
