"""The world of several relations: images of 2–4 objects in which all 24 classes are drawn, and can be read back exactly.

caption = sample_caption(rng)        # or
caption = Caption(("ball", "cat", "dog"), (("cat", "left of", "dog"), ("dog", "holding", "ball")))
scene = compose(caption, u)          # u: 28 uniforms, see the slots in `specification`
pixels = render(scene)               # [64, 64, 3], 0-255
caption.text(rng)                    # the words, which leave roles open
scene.triples                        # what is drawn, roles included
"""

from sgworld.world.captions import sample_caption
from sgworld.world.compose import compose
from sgworld.world.raster import render
from sgworld.world.specification import SLOTS, Caption, Scene

__all__ = ["SLOTS", "Caption", "Scene", "compose", "render", "sample_caption"]
