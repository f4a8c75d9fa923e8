"""A stand-in for CUDA's graphs, and the model to play them with."""

import dataclasses


class PlayedGraph:
    """What a CUDA graph does, on a CPU: the same work again, into the places of the recording."""

    def __init__(self, parameters):
        self.parameters, self.plays, self.playing = parameters, 0, True

    def record(self, work):
        self.work = work
        self.losses = work()
        self.gradients = [parameter.grad for parameter in self.parameters]
        for place in (*self.losses.values(), *self.gradients):
            if place is not None:
                place.detach().fill_(float("nan"))  # recording does none of the work
        self.playing = False
        return self.losses

    def play(self):
        self.plays, self.playing = self.plays + 1, True
        for parameter in self.parameters:
            parameter.grad = None
        losses = self.work()
        for name, loss in losses.items():
            self.losses[name].detach().copy_(loss.detach())
        for parameter, place in zip(self.parameters, self.gradients, strict=True):
            if place is not None:
                place.copy_(parameter.grad)
        self.playing = False


def fresh(tiny, former):
    unet, vae, text_encoder = tiny.modules()
    return dataclasses.replace(former, unet=unet, vae=vae, text_encoders=(text_encoder,))
