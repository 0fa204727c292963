"""Two captions and a generator of a few blocks."""

from sgworld.world.specification import Caption

POOL = [Caption(("cat", "dog"), (("cat", "left of", "dog"),)), Caption(("ball", "cat", "dog"))]
BEHIND = {"heard": 0, "link": 1, "frame": 2, "place": 3}
