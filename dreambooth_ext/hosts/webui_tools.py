"""The WebUI's upscalers and captioners."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import HostError

if TYPE_CHECKING:
    from PIL.Image import Image


class WebuiTools:
    """The part of the Host protocol that enlarges and describes pictures."""

    def upscalers(self) -> list[str]:
        from modules import shared

        return [upscaler.name for upscaler in shared.sd_upscalers if upscaler.name != "None"]

    def upscale(self, image: Image, name: str, scale: float) -> Image:
        from modules import shared

        for upscaler in shared.sd_upscalers:
            if upscaler.name == name:
                return upscaler.scaler.upscale(image, scale, upscaler.data_path)
        raise HostError(f"a picture is to be enlarged with {name}", "the WebUI has no such upscaler",
                        "Choose one of: " + ", ".join(self.upscalers()))

    def captioners(self) -> list[str]:
        from modules import shared

        found = ["BLIP"] if getattr(shared, "interrogator", None) is not None else []
        return [*found, *(["deepbooru"] if find_spec("modules.deepbooru") is not None else [])]

    def caption(self, images: list[Image], name: str) -> list[str]:
        from modules import shared

        if name not in self.captioners():
            raise HostError(f"pictures are to be captioned with {name}", "the WebUI has no such captioner",
                            "Write a .txt file beside each picture.")
        if name == "BLIP":
            # not `interrogate`, which resets the job that is running
            shared.interrogator.load()
            try:
                return [shared.interrogator.generate_caption(image) for image in images]
            finally:
                shared.interrogator.unload()
        from modules import deepbooru

        deepbooru.model.start()
        try:
            return [deepbooru.model.tag_multi(image) for image in images]
        finally:
            deepbooru.model.stop()
