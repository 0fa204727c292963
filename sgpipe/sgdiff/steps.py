"""The numbers of DDIM steps; apart from the sampler, so that checking a parameter loads no torch."""

from typing import Final

TIMESTEPS: Final = 1000
STEPS: Final = tuple(steps for steps in range(1, TIMESTEPS // 2 + 1) if TIMESTEPS % steps == 0)
"""Those that divide the 1000 timesteps; the official code takes others and then makes more steps than asked, or fails."""
