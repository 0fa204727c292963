"""Knobs that have moved: an older params.yaml is refused with the new place of each, and means the same once they are there."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from sgpipe.errors import ParamsError
from sgpipe.params.load import decode, read_section, section_type
from sgpipe.params.moved import MOVED, refuse_moved, with_moved
from sgpipe.params.show import load_all
from sgpipe.presets import with_preset
from sgpipe.runs.config import Compute
from sgpipe.training.config import Train

OLD = """
evaluate: {draw: {neutral: [positive, negative]}}
saliency: {pictures: 3}
lora:
  blocks: 7..12
  rank: 4
  arms: [graph, text_only]
  losses: {flow: 1, margin: {weight: 4, margin: 0.6}}
  times: {density: uniform, low: 0.5}
  acts: always
  conditions: {neutral: 0.5, relational: 0.5}
  optimiser: {rate: 1e-3, token_rate: 3, clip: 2}
  epochs: 8
  batch_size: 4
  accumulation: 2
  ema: 0.9
  precision: float32
  attention: math
  compile: true
  checkpointing: true
  guidance: 3.5
  development: 0.1
  validation: {every: 2, pictures: 3, steps: 5}
  keep_epochs: [4, 8]
  save_every: 7
  seed: 5
train: {dev: 0.2}
"""


def test_an_older_file_is_refused_with_the_new_place_of_each_key(repo_root: Path, tmp_path: Path) -> None:
    path, preset = tmp_path / "params.yaml", tmp_path / "preset.yaml"
    plain = yaml.safe_load((repo_root / "params.yaml").read_text())
    del plain["train"], plain["arms"]
    path.write_text(yaml.safe_dump(plain | yaml.safe_load(OLD)))
    preset.write_text("lora: {acts: always}\n")
    reads = {
        path: (lambda: read_section(path, "compute", Compute), lambda: load_all(path)),
        preset: (lambda: with_preset(repo_root / "params.yaml", preset),),
    }
    for source, functions in reads.items():
        for function in functions:
            with pytest.raises(ParamsError) as caught:
                function()
            message = str(caught.value)
            assert message.startswith(f"{source}: ") and "\n" not in message
            named = {"lora.acts"} if source == preset else set(MOVED)
            assert set(re.findall(r"(\w+\.[\w.]+) is now", message)) == named
    with pytest.raises(ParamsError, match=r"lora\.optimiser\.rate is now train\.optimiser\.learning_rate;"):
        load_all(path)
    refuse_moved(yaml.safe_load((repo_root / "params.yaml").read_text()), "x")


def test_what_has_moved_means_the_same() -> None:
    made = with_moved(yaml.safe_load(OLD.replace("1e-3", "0.001")))
    assert made["lora"] == {"blocks": "7..12", "rank": 4}
    train = decode("train", made["train"], Train, "x")
    assert (train.optimiser.learning_rate, train.optimiser.token_lr_multiplier, train.optimiser.clip) == (1e-3, 3, 2)
    assert (train.active_timesteps, train.times.low, train.ema_decay) == ("always", 0.5, 0.9)
    assert (train.gradient_accumulation_steps, train.gradient_checkpointing) == (2, True)
    assert (train.validation.images, train.validation.steps, train.validation.every) == (3, 5, 2)
    assert (train.seed, train.guidance, train.epochs, train.save_every) == (5, 3.5, 8, 7)
    assert train.losses.margin.margin == 0.6 and train.conditions.relational == 0.5


def test_every_new_place_is_a_knob() -> None:
    for old, new in MOVED.items():
        if old == "lora.arms":
            continue
        kind: Any = section_type(new.split(".")[0])
        for name in new.split(".")[1:]:
            fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
            assert name in fields, new
            kind = getattr(fields[name], "__origin__", fields[name])
