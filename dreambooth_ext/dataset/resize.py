"""Resizing in linear light: averaging display values would darken fine detail."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """An RGB picture of exactly width x height, by Lanczos; made smaller, on linear values (IEC 61966-2-1).

    Made larger, on display values: there is no detail to average, and on linear ones Lanczos rings where the dark begins.
    """
    if image.size == (width, height):
        return image
    if width >= image.width and height >= image.height:
        return image.resize((width, height), Image.Resampling.LANCZOS)
    channels = [_resized_channel(channel.point(_TO_LINEAR, "I"), width, height) for channel in image.split()]
    return Image.fromarray(_to_display(np.stack(channels, axis=2)))


def _resized_channel(channel: Image.Image, width: int, height: int) -> np.ndarray:
    """int32 (height, width): one channel's linear values, whole numbers up to _LIGHT."""
    # Far larger pictures are first averaged to near twice the target: as good, and many times as fast.
    factor = min(channel.width // (2 * width), channel.height // (2 * height))
    if factor > 1:
        channel = channel.reduce(factor)
    return np.asarray(channel.resize((width, height), Image.Resampling.LANCZOS))


def _to_display(linear: np.ndarray) -> np.ndarray:
    """uint8 of whole numbers up to _LIGHT; what Lanczos overshot is cut."""
    return _TO_DISPLAY[linear.clip(0, _LIGHT) >> _FINER]


_LIGHT = 1 << 24  # full light as a whole number: Pillow looks those up five times as fast as numpy does floats
_LEVELS = np.arange(256) / 255.0
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)
_FINER = 8  # bits: 16 of the 24 tell apart all that eight bits can show
_LIGHTS = np.arange((_LIGHT >> _FINER) + 1) / (_LIGHT >> _FINER)
_DISPLAY = np.where(_LIGHTS <= 0.0031308, _LIGHTS * 12.92, 1.055 * np.power(_LIGHTS, 1 / 2.4) - 0.055)
_TO_DISPLAY = (_DISPLAY * 255.0 + 0.5).astype(np.uint8)
_TO_LINEAR = [round(light * _LIGHT) for light in _LINEAR.tolist()]
