"""Diagrams of the documentation: how the parts of an arm, a run or the packages hang together."""

import itertools
from pathlib import Path

from benchmarks._drawing import FROZEN, GIVEN, RESULT, TRAINED, Node, curated, diagram


def architecture(out: Path) -> None:
    """The packages from data to report, along the way of a run."""
    nodes = {
        "datasets": Node(1.1, 3.3, "datasets\ntables of a data set", GIVEN, 1.9),
        "graphs": Node(3.6, 3.3, "graphs, relations\ntriples, g⁺ and g⁻", GIVEN, 1.9),
        "arms": Node(6.2, 3.3, "arms, graph_encoder\nhow a graph reaches it", TRAINED, 2.0),
        "training": Node(8.7, 3.3, "training, optim\none engine", TRAINED, 1.7),
        "maps": Node(3.6, 1.95, "attention_maps\nwhere it looks", GIVEN, 1.9),
        "backbones": Node(6.2, 1.95, "backbones\nthe frozen generator", FROZEN, 2.0),
        "evaluation": Node(8.7, 1.95, "evaluation\nimages, verdicts", RESULT, 1.7),
        "probes": Node(3.6, 0.6, "probes\nwhere it can be read", RESULT, 1.9),
        "localisation": Node(6.2, 0.6, "localisation\nwhich blocks use it", RESULT, 2.0),
        "report": Node(8.7, 0.6, "report, tracking\nthe page, MLflow", RESULT, 1.7),
    }
    arrows = [
        ("datasets", "graphs", ""), ("graphs", "arms", ""), ("training", "arms", ""), ("graphs", "maps", ""),
        ("backbones", "arms", ""), ("backbones", "maps", ""), ("backbones", "localisation", ""), ("maps", "probes", ""),
        ("arms", "evaluation", ""), ("evaluation", "report", ""),
    ]  # fmt: skip
    diagram(out, (9.8, 4.0), nodes, arrows)


def extending(out: Path) -> None:
    """What of one's own joins, and the stage that asks it."""
    seams = (
        ("a data set\ndatasets/", "canonicalize"),
        ("a relation class\nrelations/", "curate"),
        ("an arm kind\narms/kinds/", "train_lora"),
        ("a family\nbackbones/families/", "sample_images"),
        ("a judge\nsgpipe.judges", "judge"),
    )
    nodes: dict[str, Node] = {}
    for place, (yours, stage) in enumerate(seams):
        x = 1.1 + 2.1 * place
        nodes |= {yours: Node(x, 1.8, yours, TRAINED, 1.75), stage: Node(x, 0.7, stage, FROZEN, 1.5, 0.5)}
    stages = [stage for _, stage in seams]
    arrows = [(yours, stage, "") for yours, stage in seams]
    arrows += [(a, b, "") for a, b in itertools.pairwise(stages)]
    notes = [
        Node(
            5.3,
            0.2,
            "orange: a file of your own; blue: stages, which stay as they are (a family serves all that use the generator)",
        )
    ]
    diagram(out, (10.6, 2.4), nodes, arrows, notes)


def distributed(out: Path) -> None:
    """One stage in four processes, whose parts are joined to the files of one process."""
    nodes = {
        "stage": Node(1.2, 1.9, "dvc repro saliency", GIVEN, 1.9),
        "launch": Node(4.2, 1.9, "torchrun\n--nproc-per-node 4", FROZEN, 1.7),
    }
    arrows = [("stage", "launch", "compute.launch")]
    for rank in range(4):
        nodes[f"r{rank}"] = Node(6.8, 3.25 - 0.9 * rank, f"process {rank}\nevery 4th shard", TRAINED, 1.5, 0.7)
        arrows += [("launch", f"r{rank}", ""), (f"r{rank}", "out", "")]
    nodes["out"] = Node(9.3, 1.9, "outputs/saliency\nthe bytes that one\nprocess would write", RESULT, 1.9, 1.1)
    diagram(out, (10.4, 3.8), nodes, arrows)


def relation_injection(out: Path) -> None:
    """Two LoRA on the projections of one attention: batches take turns, sampling keeps the relation's."""
    nodes = {
        "batch": Node(1.1, 1.5, "a batch,\nby its number", GIVEN, 1.5),
        "relation": Node(3.6, 2.3, "relation LoRA\non to_q and to_k", TRAINED, 1.8),
        "subject": Node(3.6, 0.7, "subject LoRA\non to_v", TRAINED, 1.8),
        "block": Node(7.2, 1.5, "attention of the\nchosen blocks (frozen)", FROZEN, 1.9),
        "image": Node(10.2, 2.3, "samples: relation LoRA\nand graph tokens", RESULT, 1.9),
        "off": Node(10.2, 0.7, "looks of the training\nimages stay behind", GIVEN, 1.9),
    }
    arrows = [
        ("batch", "relation", "either"), ("batch", "subject", "or"), ("relation", "block", "who attends"),
        ("subject", "block", "what is carried"), ("block", "image", ""), ("block", "off", ""),
    ]  # fmt: skip
    diagram(out, (11.3, 3.0), nodes, arrows)


def sgdiff(out: Path) -> None:
    """From a graph to an image: CGIP's vectors, sixteen tokens, a U-Net, the decoder."""
    nodes = {
        "graph": Node(1.0, 1.2, "man, riding, horse;\nhorse, on, grass", GIVEN, 1.7),
        "cgip": Node(3.1, 1.2, "CGIP\ngraph encoder", FROZEN, 1.3),
        "tokens": Node(5.1, 1.2, "16 tokens:\n15 edges, the graph", FROZEN, 1.6),
        "unet": Node(7.2, 1.2, "U-Net\n200 DDIM steps", FROZEN, 1.4),
        "vq": Node(9.1, 1.2, "VQ decoder", FROZEN, 1.2),
        "image": Node(10.8, 1.2, "image\n256 × 256", RESULT, 1.1),
    }
    names = list(nodes)
    notes = [Node(7.2, 0.4, "no prompt, no boxes: the graph alone; noise by seed")]
    diagram(out, (11.5, 2.0), nodes, [(a, b, "") for a, b in itertools.pairwise(names)], notes)


def t2i_adapter(out: Path) -> None:
    """A layout image through a small network; its features are added behind chosen blocks."""
    from sgpipe.graphs.layouts import layout_image
    from sgpipe.graphs.scene_graph import SceneGraph

    row, _ = curated("train", ("left of",), 1)[0]
    words = f"layout image of\n“{row['subject']} {row['predicate']} {row['object']}”"
    nodes = {
        "layout": Node(1.0, 1.8, words, image=layout_image(SceneGraph.of_row(row), 192), width=1.4, height=1.4),
        "net": Node(3.3, 1.8, "T2IAdapter\n(trained)", TRAINED, 1.5),
        **{f"c{n}": Node(5.4, 3.0 - 0.8 * n, "1×1 convolution", TRAINED, 1.5, 0.5) for n in range(4)},
        **{f"b{n}": Node(8.3, 3.0 - 0.8 * n, f"behind chosen block {n + 1}", FROZEN, 2.0, 0.5) for n in range(4)},
    }
    arrows = [("layout", "net", "")]
    arrows += [each for n in range(4) for each in (("net", f"c{n}", ""), (f"c{n}", f"b{n}", "× ω, added"))]
    diagram(out, (9.5, 3.5), nodes, arrows)


def feature_injection(out: Path) -> None:
    """A reference and a sample go through the same blocks at the same noise; attention outputs are blended."""
    row, crop = curated("train", ("left of",), 1)[0]
    reference = f"reference of “{row['predicate']}”:\n{row['prompt'].removesuffix(' on a plain background')}"
    nodes = {
        "ref": Node(1.2, 2.6, reference, image=crop, width=1.2, height=1.2),
        "sample": Node(1.2, 0.7, "sample at t\nits own prompt", GIVEN, 1.6),
        "h": Node(4.4, 2.6, "attention output of the\nreference  h_ref", FROZEN, 2.0),
        "own": Node(4.4, 0.7, "attention output of the\nsample  h", FROZEN, 2.0),
        "blend": Node(7.1, 1.65, "(1 − w) h + w h_ref\nimage rows, t ≥ low", TRAINED, 1.9),
        "on": Node(9.4, 1.65, "the block\ngoes on", RESULT, 1.2),
    }
    arrows = [("ref", "h", "same noise"), ("sample", "own", ""), ("h", "blend", ""), ("own", "blend", ""), ("blend", "on", "")]
    diagram(out, (10.2, 3.4), nodes, arrows)


def one_sample(out: Path) -> None:
    """One triple is trained on; graphs of four kinds are asked of the arm."""
    (row, crop), (_, same) = curated("train", ("left of",), 2)
    (_, inverse), (_, other) = curated("val", ("right of", "above"), 1)
    said = f"trained on this alone:\n{row['subject']} {row['predicate']} {row['object']}"
    nodes = {
        "one": Node(1.2, 2.0, said, image=crop, width=1.6, height=1.6),
        "arm": Node(4.0, 2.0, "an arm\nof any kind", TRAINED, 1.5),
        "trained": Node(6.7, 3.5, "its own graph (trained)", RESULT, 2.2, 0.5),
    }
    kinds = (
        ("same_relation", "left of, other names", same),
        ("inverse_relation", "right of", inverse),
        ("other_relations", "above, …", other),
    )
    arrows = [("one", "arm", "as many steps"), ("arm", "trained", "")]
    for n, (name, words, image) in enumerate(kinds):
        nodes[name] = Node(6.7, 2.6 - n, f"{name}:\n{words}", RESULT, 2.2, 0.6)
        nodes[f"{name} image"] = Node(8.6, 2.62 - n, "", image=image, width=0.8, height=0.8)
        arrows.append(("arm", name, ""))
    diagram(out, (9.4, 4.0), nodes, arrows)


DIAGRAMS = (architecture, distributed, extending, feature_injection, one_sample, relation_injection, sgdiff, t2i_adapter)
