"""Faces, where the host has an OpenCV to find them with; nothing is installed for it, since a second one would replace its own.

The cascade is the one that OpenCV's package brings along (Viola and Jones 2001; Lienhart and Maydt 2002). Of those it brings,
"alt2" takes the least for a face that is none.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
CASCADE = "haarcascade_frontalface_alt2.xml"
ANALYSIS_PX = 180  # shorter side
_LEAST_PX = 20  # of a face, there: smaller ones are passers-by
_SCALE_STEP = 1.2
_AGREEING = 6  # detections that are one face
_LOOKING = threading.Lock()


def detector() -> str:
    """What finds faces here, by name and version; "" if nothing does. Part of the key of whatever it shapes."""
    return _probed()[0]


def faces(image: Image.Image) -> list[Box]:
    """The faces that look at the camera, in the picture's pixels, from left to right; none without a detector."""
    cascade = _probed()[1]
    if cascade is None or min(image.size) < 32:
        return []
    scale = min(1.0, ANALYSIS_PX / min(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX, reducing_gap=3.0))
    with _LOOKING:  # a cascade keeps the picture that it looks at in itself: two threads would find each other's faces
        found = cascade.detectMultiScale(grey, _SCALE_STEP, _AGREEING, minSize=(_LEAST_PX, _LEAST_PX))
    boxes = ((x, y, x + width, y + height) for x, y, width, height in np.asarray(found).tolist())
    return sorted(tuple(round(edge / scale) for edge in box) for box in boxes)  # type: ignore[misc]


@cache
def _probed() -> tuple[str, Any]:
    """The detector's name, and the detector. Whatever is wrong with a host's OpenCV, there are no faces then, and no error."""
    try:
        if find_spec("cv2") is None:
            return "", None
        cv2: Any = import_module("cv2")
        path = Path(cv2.data.haarcascades) / CASCADE
        cascade = cv2.CascadeClassifier(str(path))
        if not path.is_file() or cascade.empty():
            return "", None
        cascade.detectMultiScale(np.zeros((40, 40), np.uint8))  # some builds lack the module and say so only when it is used
        return f"OpenCV {cv2.__version__}", cascade
    except Exception:  # noqa: BLE001  a broken OpenCV is as good as none
        return "", None
