"""The world of several relations: images of 2–4 objects in which all 24 classes are drawn, and can be read back exactly.

    caption = sample_caption(rng)    # captions; or
    caption = Caption(("cat", "dog", "ball"), (("cat", "left of", "dog"), ("dog", "holding", "ball")))    # specification
    scene = compose(caption, u)      # compose; u: 31 uniforms, see the slots in `specification`
    pixels = render(scene)           # raster; [64, 64, 3], 0-255
    caption.text()                   # the words, which leave roles open
    scene.triples                    # what is drawn, roles included
    (reading,) = read(pixels[None])  # reader

The package itself imports nothing: a judge does not depend on how scenes are composed.
"""
