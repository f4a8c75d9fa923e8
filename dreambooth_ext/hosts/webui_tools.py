"""The WebUI's upscalers, captioners, and its list of LoRAs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import Cancelled, DreamboothError, HostError

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
                with _told(f"a picture is to be enlarged with {name}"):
                    return upscaler.scaler.upscale(image, scale, upscaler.data_path)
        raise HostError(f"a picture is to be enlarged with {name}", "the WebUI has no such upscaler",
                        "Choose one of: " + ", ".join(self.upscalers()))

    def captioners(self) -> list[str]:
        from modules import shared

        found = ["BLIP"] if getattr(shared, "interrogator", None) is not None else []
        return [*found, *(["deepbooru"] if find_spec("modules.deepbooru") is not None else [])]

    def caption(self, images: list[Image], name: str) -> list[str]:
        if name not in self.captioners():
            raise HostError(f"pictures are to be captioned with {name}", "the WebUI has no such captioner",
                            "Write a .txt file beside each picture.")
        with _told(f"pictures are to be captioned with {name}"):
            return _by_blip(images) if name == "BLIP" else _by_deepbooru(images)

    @staticmethod
    def refresh_loras() -> None:
        networks = sys.modules.get("networks")  # of the built-in Lora extension
        if networks is not None:
            networks.list_available_networks()


def _by_blip(images: list[Image]) -> list[str]:
    from modules import shared

    # not `interrogate`, which resets the job that is running
    try:
        shared.interrogator.load()
        return [shared.interrogator.generate_caption(image) for image in images]
    finally:
        shared.interrogator.unload()


def _by_deepbooru(images: list[Image]) -> list[str]:
    from modules import deepbooru

    deepbooru.model.start()
    try:
        # Weights and backslashes mean something in the WebUI's prompts only: in a caption they would be learnt as words.
        return [deepbooru.model.tag_multi(image, force_disable_ranks=True).replace("\\", "") for image in images]
    finally:
        deepbooru.model.stop()


@contextmanager
def _told(asked: str) -> Iterator[None]:
    """Whatever a WebUI's tool fails with (no network for its weights, no memory) is said in a sentence."""
    try:
        yield
    except (Cancelled, DreamboothError):
        raise
    except Exception as error:
        raise HostError(asked, f"the WebUI failed ({type(error).__name__}: {error})",
                        "Try the same in the WebUI's Extras or img2img tab; its console says more.") from error
