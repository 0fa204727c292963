"""Tiny FLUX.1 and SD3 pipelines of random weights, and a data folder with curated triples, in real formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sgpipe.backbones.config import Backbone
from sgpipe.datasets.tables import TRIPLES, write_table
from sgpipe.graphs.scene_graph import SceneGraph
from sgpipe.relations.predicates import PREDICATES, concepts, neutral_prompt, relational_prompt
from sgworld.language import clip_tokenizer, t5_tokenizer

DOUBLE, SINGLE, SIDE, TOKENS = 3, 1, 32, 12
NAMES = ("dog", "cat", "table", "ball", "tree")


def tiny_vae() -> AutoencoderKL:
    """A VAE of 4 latent channels, factor 2."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.7123456789,
        shift_factor=0.123456789,
    )


def _clip(tokenizer: Any, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def write_pipeline(folder: Path, *, dev: bool = False, seed: int = 0, longest: int | None = None, **scheduler: Any) -> Path:
    """A `FluxPipeline` folder: like FLUX.1-schnell, or with `dev` like FLUX.1-dev (guidance as an input, dynamic shifting).

    `longest` is the most tokens of a text.
    """
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    tokenizer, tokenizer_2 = (
        clip_tokenizer([relational_prompt(name, said, name) for name in NAMES for said in PREDICATES]),
        t5_tokenizer(),
    )
    for each in (tokenizer, tokenizer_2):
        each.model_max_length = longest or each.model_max_length
    t5 = T5Config(d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3, vocab_size=len(tokenizer_2))
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": dev, "shift": 1.0, **scheduler}),
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(_clip(tokenizer, 20)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_sd3_pipeline(folder: Path, *, qk_norm: str | None = "rms_norm", shift: float = 3.0, seed: int = 0) -> Path:
    """A `StableDiffusion3Pipeline` folder like SD3.5-medium: q/k norms, and a second attention of image rows in the first block."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=DOUBLE,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=20 + 22,
        pos_embed_max_size=SIDE // 2,
        dual_attention_layers=(0,),
        qk_norm=qk_norm,
    )
    tokenizer, tokenizer_3 = (
        clip_tokenizer([relational_prompt(name, said, name) for name in NAMES for said in PREDICATES]),
        t5_tokenizer(),
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=tiny_vae(),
        text_encoder=CLIPTextModelWithProjection(_clip(tokenizer, 20)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip(tokenizer, 22)),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(
            T5Config(d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=3, vocab_size=len(tokenizer_3))
        ),
        tokenizer_3=tokenizer_3,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def backbone_of(folder: Path, **changes: Any) -> Backbone:
    """Section `backbone` for a folder that `write_pipeline` wrote."""
    values: dict[str, Any] = {
        "model": str(folder),
        "files": str(folder),
        "double_blocks": DOUBLE,
        "single_blocks": SINGLE,
        "resolution": SIDE,
        "max_sequence_length": TOKENS,
    }
    return Backbone(**{**values, **changes})


def graph_columns(graph: SceneGraph) -> dict[str, Any]:
    """The columns of curated triples that hold a graph."""
    return {
        "objects": list(graph.objects),
        "boxes": [list(box) for box in graph.boxes if box is not None],
        "triples": [{"subject": s, "predicate": p, "object": o} for s, p, o in graph.triples],
    }


def curated_triples(count: int, split: str, first_image: int = 1) -> pa.Table:
    """Triples with prompts and 40 px crops of images `first_image`, `first_image + 1`, … of 60 × 50 pixels."""
    rows = []
    for i in range(count):
        subject, object_ = NAMES[i % len(NAMES)], NAMES[(i // len(NAMES) + i + 1) % len(NAMES)]
        said = subject, PREDICATES[i % len(PREDICATES)], object_
        row: dict[str, Any] = dict.fromkeys(TRIPLES.names, 10.0)
        row |= {
            "triple_id": f"{first_image + i}-{900 + i}",
            "split": split,
            "image_id": first_image + i,
            "relationship_id": 900 + i,
            "subject": subject,
            "predicate": said[1],
            "object": object_,
            "prompt": relational_prompt(*said),
            "neutral_prompt": neutral_prompt(subject, object_),
            "concepts": list(concepts(*said)),
            "source": "annotated",
            "crop_x": float(i % 3),
            "crop_y": 1.5,
            "crop_w": 40.0,
            "crop_h": 40.0,
            **graph_columns(SceneGraph.of(*said)),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=TRIPLES)


def write_images(root: Path, triples: pa.Table) -> None:
    """A random image of 60 × 50 pixels for every image that the triples show, and image_data.json, which says so."""
    (root / "VG_100K").mkdir(parents=True, exist_ok=True)
    ids = triples["image_id"].to_pylist()
    records = [{"image_id": image_id, "width": 60, "height": 50} for image_id in ids]
    (root / "image_data.json").write_text(json.dumps(records))
    for image_id in ids:
        pixels = np.random.default_rng(image_id).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "VG_100K" / f"{image_id}.png")


def write_curated(folder: Path, triples: pa.Table, map_triples: pa.Table) -> None:
    """The two tables of stage `curate`."""
    write_table(triples, folder / "triples.parquet")
    write_table(map_triples, folder / "map_triples.parquet")


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
