"""Scenes as pixels."""

import numpy as np

from sgworld.world.specification import Scene
from sgworld.world.sprites import BACKGROUNDS, CELL, SIDE, Pixels, mark_sprite, sprite


def _paste(canvas: Pixels, pixels: Pixels, x: int, y: int) -> None:
    h, w = pixels.shape[:2]
    under = canvas[y : y + h, x : x + w]
    alpha = pixels[..., 3:].astype(np.uint16)
    under[...] = (pixels[..., :3] * alpha + under * (255 - alpha) + 127) // 255


def render(scene: Scene) -> Pixels:
    """Pixels `[64, 64, 3]`, 0–255."""
    canvas = np.empty((SIDE, SIDE, 3), np.uint8)
    canvas[...] = BACKGROUNDS[scene.background]
    for index in scene.order:
        placed = scene.objects[index]
        _paste(canvas, sprite(placed.name, placed.facing), placed.x * CELL, placed.y * CELL)
    for mark in scene.marks:
        _paste(canvas, mark_sprite(mark.kind, mark.w, mark.h, mark.mirrored), mark.x * CELL, mark.y * CELL)
    return canvas
