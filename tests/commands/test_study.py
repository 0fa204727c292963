"""Documented commands on the embedded checkpoint that take a minute or so: many images, many forwards, or the real size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands.test_models import embedded, pixels
from tests.documented import ran

pytestmark = pytest.mark.slow
NAMES = ["bag", "ball", "bed", "bike", "bird", "book", "box", "bus", "cat", "clock", "cup", "dog", "table", "train", "tree"]
TRAINED = {"trained_on": {"names": NAMES, "predicates": ["left of", "right of", "above", "below"], "triples": 1}}
ARMS: dict[str, dict[str, Any]] = {
    "graph": {"kind": "graph_lora"},
    "one": {"kind": "graph_lora"},
    "controlnet": {"kind": "controlnet"},
    "t2i": {"kind": "t2i_adapter"},
    "arrows": {"kind": "t2i_adapter", "arrows": True},
}
BOXES = '{"objects": ["dog", "cat"], "triples": [[0, "left of", 1]], "boxes": [[0.1, 0.3, 0.3, 0.4], [0.6, 0.3, 0.3, 0.3]]}'
LAID_OUT = {
    f"sgpipe generate --adapter outputs/lora/controlnet/adapter --out dog.png --graph '{BOXES}'": "dog.png",
    "sgpipe generate --adapter outputs/lora/t2i/adapter --graph 'dog, left of, cat' --out dog.png": "dog.png",
    "sgpipe compose outputs/lora/t2i/adapter=0.6 outputs/lora/arrows/adapter=0.5 --out outputs/both": "outputs/both",
}
"""What each writes."""
PATCHED = {
    "sgpipe localise --graph 'dog, left of, cat' --adapter outputs/lora/graph/adapter --rows image,text,graph --out dog.png": (
        "dog.png"
    ),
    "sgpipe localise --graph 'dog, left of, cat' --size 64 --rows image,text,relation,object,pooled --out words.png": "words.png",
}
STUDIED = {
    "sgpipe study --adapter outputs/lora/graph/adapter": {"base", "graph", "changed graph"},
    "sgpipe study --known outputs/curated/triples.parquet": {"base"},
    "sgpipe study --known outputs/curated/triples.parquet --one-sample outputs/lora/one/adapter": {
        "base",
        "one sample",
        "without one sample",
    },
}
"""What is sampled in each."""
SHOWN = {"sgworld sheet": "outputs/sheet.png"}
PLANNED = {
    "sgpipe doctor --model black-forest-labs/FLUX.1-schnell --batch-size 2 --gpu 16 --gpu 24": (
        "11,891,178,560 parameters", "batch 2 ×", "16", "24",
    ),
}  # fmt: skip
RUN = (*LAID_OUT, *PATCHED, *STUDIED, *SHOWN, *PLANNED)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With adapters of random weights, and a table that knows a few names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.test_examples import write_adapter

    made = embedded(tmp_path_factory.mktemp("study") / "project")
    for name, options in ARMS.items():
        write_adapter(made / "outputs/lora" / name / "adapter", made / "params.yaml", options, TRAINED)
    (made / "outputs/curated").mkdir()
    pq.write_table(pa.table({"objects": [NAMES]}), made / "outputs/curated/triples.parquet")
    return made


def test_arms_that_are_told_boxes_draw_and_are_composed(root: Path) -> None:
    images = []
    for command, out in LAID_OUT.items():
        assert f"{out}\n" in ran(command, root), command
        if (root / out).is_file():
            images.append(pixels(root / out))
    assert len(images) == 2 and not np.array_equal(*images)
    about = json.loads((root / "outputs/both/adapter.json").read_text())
    assert about["kind"] == "t2i_adapter"


def test_a_relation_is_followed_through_the_blocks(root: Path) -> None:
    for command, out in PATCHED.items():
        assert out in ran(command, root), command
        assert pixels(root / out).std() > 20


def test_the_studys_prompts_are_sampled_and_judged(root: Path) -> None:
    for command, given in STUDIED.items():
        printed = ran(command, root)
        assert "judge: exact" in printed and "outputs/study/claims.png" in printed, printed
        found = json.loads((root / "outputs/study/study.json").read_text(encoding="utf-8"))
        assert found["names_checked"] and set(found["prompts"]) == given, command
        assert {"consistency", "complexity", "objects_present"} <= set(found["claims"])


def test_a_sheet_of_the_classes_is_sampled(root: Path) -> None:
    for command, out in SHOWN.items():
        assert out in ran(command, root), command
        with Image.open(root / out) as sheet:
            assert sheet.size[0] > 2 * 6 * 64


def test_the_memory_of_the_real_size_is_planned(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scratch repository lacks the data, so the doctor ends with 1; the plan is there all the same."""
    monkeypatch.setenv("COLUMNS", "200")
    for command, texts in PLANNED.items():
        printed = ran(command, root, code=1)
        assert [text for text in texts if text not in printed] == [], printed
