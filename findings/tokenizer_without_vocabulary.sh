#!/usr/bin/env bash
# transformers 5.23.0: a tokenizer folder whose vocabulary is missing still loads, without an error or a warning.
#
# A well-informed guess: `CLIPTokenizer.from_pretrained(folder)` (or T5's) raises OSError when the folder holds tokenizer_config.json
# and neither tokenizer.json nor vocab.json/merges.txt (spiece.model).
# Seen: both return a tokenizer of special tokens alone. CLIP's has 2 tokens and gives <|endoftext|> for every letter of every text,
# T5's gives <unk>; a text encoder after it runs, and every prompt of equal length has the same encoding.
# Output: CLIP 2 tokens, 'a dog' and 'a cat' alike: True / T5 same ids for 'dog' and 'cat': True
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${FINDINGS_PYTHON:-}" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet transformers==5.23.0
    FINDINGS_PYTHON="$work/venv/bin/python"
fi
cd "$work"
"$FINDINGS_PYTHON" - <<'PYTHON'
import sys
from pathlib import Path

from transformers import CLIPTokenizer, T5Tokenizer

words = ["a</w>", "dog</w>", "cat</w>"]
vocabulary = {token: place for place, token in enumerate(["<|startoftext|>", "<|endoftext|>", *words])}
CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained("clip")
pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0), ("▁dog", -2.0), ("▁cat", -2.0)]
T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained("t5")
assert T5Tokenizer.from_pretrained("t5")("dog").input_ids != T5Tokenizer.from_pretrained("t5")("cat").input_ids
for folder in ("clip", "t5"):
    Path(folder, "tokenizer.json").unlink()
    print(folder, "holds", sorted(path.name for path in Path(folder).iterdir()))

clip = CLIPTokenizer.from_pretrained("clip")
alike = clip("a dog").input_ids == clip("a cat").input_ids
print(f"CLIP {len(clip)} tokens, 'a dog' and 'a cat' alike: {alike}")
t5 = T5Tokenizer.from_pretrained("t5")
same = t5("dog").input_ids == t5("cat").input_ids
print(f"T5 same ids for 'dog' and 'cat': {same}")
sys.exit(0 if alike and same and len(clip) == 2 else 1)
PYTHON
