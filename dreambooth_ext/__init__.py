"""Dreambooth for Stable Diffusion: inside the WebUI, on the command line, through an API."""

__version__ = "0.1.0"
