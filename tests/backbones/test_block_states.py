"""Rows of blocks, read and replaced: the same identities in every family."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from benchmarks._families import RELEASES, Random
from sgpipe.backbones.base import TextCondition
from sgpipe.backbones.block_states import Around, Block, BlockRows, block_states, blocks_of, reading, resuming, text_places
from sgpipe.backbones.rectified_flow import euler_step, noise

TOKENS, BATCH = 24, 2


@pytest.fixture(scope="module", params=[name for name in RELEASES if name != "FLUX.2-dev"])
def random(request: pytest.FixtureRequest) -> Random:
    """A narrow transformer of few blocks; the two of FLUX.2 differ in the guidance input alone."""
    release = RELEASES[request.param]
    return Random.open(release, torch.device("cpu"), torch.float32, TOKENS, {**release.few, **release.narrow(128)})


@pytest.fixture(scope="module")
def side(random: Random) -> int:
    return 4 * random.layout.pixels_per_token


@pytest.fixture(scope="module")
def told(random: Random) -> list[TextCondition]:
    """Two runs of one pooled vector, the last rows before their prompts' own."""
    found = [random.text((TOKENS,) * BATCH, seed=seed) for seed in (1, 2)]
    return [replace(each, pooled=found[0].pooled, prepended=3) for each in found]


def velocity(random: Random, latents: Tensor, t: float, condition: TextCondition) -> Tensor:
    with torch.no_grad():
        return random.denoiser.velocity(latents, torch.full([len(latents)], t), condition)


def start(random: Random, side: int) -> Tensor:
    return noise(range(BATCH), random.layout.latent_shape(side))


def record(random: Random, side: int, latents: Tensor, condition: TextCondition, t: float = 1.0) -> tuple[Tensor, list[BlockRows]]:
    states: list[BlockRows] = []
    everywhere = dict.fromkeys(range(len(blocks_of(random.denoiser))), reading(states))
    with block_states(random.denoiser, side, everywhere):
        return velocity(random, latents, t, condition), states


def written(rows: BlockRows, image: bool = True, text: bool = True) -> Around:
    """Replaces what a block hands on, or a part of it."""

    def around(block: Block, given: BlockRows) -> BlockRows:
        made = block(given)
        return BlockRows(rows.image if image else made.image, rows.text if text else made.text)

    return around


def test_reading_changes_nothing_and_a_forward_resumes_from_any_block(random: Random, side: int, told: list[TextCondition]) -> None:
    latents = start(random, side)
    plain = velocity(random, latents, 1.0, told[0])
    read, states = record(random, side, latents, told[0])
    assert torch.equal(plain, read) and len(states) == random.layout.double_blocks + random.layout.single_blocks
    for block, rows in enumerate(states):
        with block_states(random.denoiser, side, resuming(block, rows)):
            assert torch.equal(plain, velocity(random, latents, 1.0, told[1]))
    assert torch.equal(plain, velocity(random, latents, 1.0, told[0]))


def test_all_rows_of_a_donor_give_the_donors_sample_and_ones_own_rows_ones_own(
    random: Random, side: int, told: list[TextCondition]
) -> None:
    times = [1.0, 0.6, 0.3, 0.0]
    ends = []
    for recipient, donor in ((0, 0), (1, 1), (0, 1)):
        latents = start(random, side)
        for t, t_next in pairwise(times):
            _, states = record(random, side, latents, told[donor], t)
            with block_states(random.denoiser, side, {block: written(rows) for block, rows in enumerate(states)}):
                v = velocity(random, latents, t, told[recipient])
            assert recipient != donor or torch.equal(v, velocity(random, latents, t, told[donor]))
            latents = euler_step(latents, v, t, t_next)
        ends.append(latents)
    assert torch.equal(ends[2], ends[1]) and not torch.equal(ends[0], ends[1])


def test_image_and_text_are_a_partition_of_a_blocks_rows(random: Random, side: int, told: list[TextCondition]) -> None:
    latents = start(random, side)
    (plain, _), (donors, states) = (record(random, side, latents, each) for each in told)
    for block, rows in enumerate(states):
        found = []
        for image, text in ((True, False), (False, True), (True, True), (False, False)):
            with block_states(random.denoiser, side, {block: written(rows, image, text)}):
                found.append(velocity(random, latents, 1.0, told[0]))
        assert torch.equal(found[2], donors) and torch.equal(found[3], plain)
        last = block == len(states) - 1 or rows.text is None
        assert torch.equal(found[0], donors) == last and torch.equal(found[1], plain) == last  # nobody reads text behind it


def test_a_row_of_a_condition_is_found_among_a_blocks(random: Random, side: int, told: list[TextCondition]) -> None:
    """Where prompts differ in length, too: the second has nine rows less."""
    length = told[0].states.shape[1]
    mask = torch.ones(BATCH, length, dtype=torch.bool)
    mask[1, -9:] = False
    given = replace(told[0], mask=mask) if not random.release.family.fixed_length else told[0]
    places = text_places(random.release.family, given)
    seen: list[BlockRows] = []

    def enter(block: Block, rows: BlockRows) -> BlockRows:
        seen.append(rows)
        return block(rows)

    with block_states(random.denoiser, side, {0: enter}):
        for row in (None, 1, 5, length - 10):
            states = given.states.clone()
            if row is not None:
                states[:, row] *= -1
            velocity(random, start(random, side), 1.0, replace(given, states=states))
            if row is not None:
                first, now = (rows.text for rows in (seen[0], seen[-1]))
                assert first is not None and now is not None
                moved = (now - first).square().sum(-1)  # Z-Image and Krea 2 mix text rows before their blocks
                assert moved.argmax(1).tolist() == places[:, row].tolist()
