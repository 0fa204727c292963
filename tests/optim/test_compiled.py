"""Blocks are compiled in as many forms as a training has batches."""

import torch
from diffusers import FluxTransformer2DModel

from sgpipe.optim.compiled import compile_blocks


def test_a_training_may_have_more_batch_sizes_than_torch_allows_by_itself() -> None:
    own = 8
    """torch's limit, which a test before this one may have raised in this process."""
    torch._dynamo.reset()
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=0, attention_head_dim=8, num_attention_heads=1, joint_attention_dim=8,
        pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    model.set_attention_backend("_native_math")
    model.transformer_blocks[0].requires_grad_(False)

    def velocity(batch: int) -> torch.Tensor:
        return model(
            hidden_states=torch.ones(batch, 4, 4), encoder_hidden_states=torch.ones(batch, 3, 8),
            pooled_projections=torch.ones(batch, 8), timestep=torch.ones(batch),
            img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(3, 3),
        ).sample  # fmt: skip

    plain = velocity(1)
    with torch._dynamo.config.patch(recompile_limit=own):
        compile_blocks(model, backend="eager")
        for batch in range(1, own + 3):
            found = velocity(batch)
            assert torch.allclose(found, plain.expand_as(found), atol=1e-6)
            with torch.no_grad():
                velocity(batch)
