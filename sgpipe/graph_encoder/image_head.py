"""One vector of a picture, pooled by learned queries from the patches of a frozen tower."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageHead(nn.Module):
    """Patch features `[N, P, F]` to vectors `[N, embed]`: attention of `queries` learned queries, then an MLP over their results.

    A tower's own pooled vector is trained to tell captions apart and may drop which of two objects is left; its patches hold it.
    Keys carry learned places, so that a query can ask what is leftmost.
    """

    def __init__(
        self, features: int, patches: int, embed: int, queries: int, width: int = 128, heads: int = 4
    ) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(features)
        self.enter = nn.Linear(features, width)
        self.place = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.leave = nn.Sequential(
            nn.LayerNorm(queries * width),
            nn.Linear(queries * width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, embed),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Vectors of pictures, of any length."""
        x = F.gelu(self.enter(self.norm(patches)) + self.place)
        queries = self.queries.expand(len(x), -1, -1)
        query, key, value = (
            y.unflatten(-1, (self._heads, -1)).transpose(1, 2) for y in (queries, self.key(x), self.value(x))
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.leave(seen.transpose(1, 2).flatten(1))
