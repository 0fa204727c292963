"""Arrow schemas of what the evaluation stores: packed pictures, what judges say of them, what they say of real ones."""

from typing import Final

import pyarrow as pa

PICTURES: Final = pa.schema(
    [
        ("triple_id", pa.string()),
        ("prompt", pa.string()),
        ("graph", pa.string()),
        ("seed", pa.int64()),
        ("text", pa.string()),
        ("png", pa.binary()),
    ]
)
"""Pictures of one arm: prompt condition, graph (`none` for an arm that is given no graphs), the words, lossless pixels."""
VERDICTS: Final = pa.schema(
    [
        ("arm", pa.string()),
        ("triple_id", pa.string()),
        ("prompt", pa.string()),
        ("graph", pa.string()),
        ("seed", pa.int64()),
        ("judge", pa.string()),
        ("positive", pa.float32()),
        ("negative", pa.float32()),
    ]
)
"""A judge's scores of the triple's own statement c⁺ and of its negative c⁻ on one picture; null where it abstains."""
ASKED: Final = pa.schema(
    [
        ("judge", pa.string()),
        ("triple_id", pa.string()),
        ("predicate", pa.string()),
        ("question", pa.string()),
        ("positive", pa.float32()),
        ("negative", pa.float32()),
    ]
)
"""A judge's scores on ground-truth pictures, see `certificates.QUESTIONS`."""
SWEEP: Final = pa.schema(
    [
        ("arm", pa.string()),
        ("training_seed", pa.int64()),
        ("triple_id", pa.string()),
        ("predicate", pa.string()),
        ("sampling_seed", pa.int64()),
        ("condition", pa.string()),
        ("present", pa.bool_()),
        ("decided", pa.bool_()),
        ("right", pa.bool_()),
    ]
)
"""A sample of a sweep: both objects seen, whether it counts for roles, and whether those are g⁺'s (null where not)."""
