"""Sides of images that a pipeline takes, asked of its configuration before anything is loaded."""

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import layout_of
from sgpipe.backbones.source import locate
from sgpipe.errors import ParamsError


def check_size(backbone: Backbone, size: int, option: str = "--size") -> None:
    """Raises `ParamsError` naming the option for a side in pixels that is no multiple of what one token stands for."""
    token = layout_of(locate(backbone, ("transformer", "vae"))).pixels_per_token
    if size % token:
        near = " or ".join(str(each) for each in (size - size % token, size - size % token + token) if each)
        raise ParamsError(f"{option}: got {size}; {backbone.model} takes multiples of {token} pixels: give {near}")
