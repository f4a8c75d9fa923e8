"""A small Stable Diffusion, trained on a world we can draw and judge, so that every claim can be run in minutes."""
