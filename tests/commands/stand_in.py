"""A stage of which only inputs and outputs are real: `python stand_in.py DEP … -- OUT …` writes outputs that the inputs decide.

The resolved arms also hang on the parameters, so that a knob has the consequences for DVC that it has in the pipeline. Metrics,
with the inputs' digest beside them, and curves are those in folder `kept`.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import yaml


def contents(path: Path) -> bytes:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return b"".join(each.read_bytes() for each in files)


def within(out: str, params: dict, digest: str) -> dict[str, str]:
    """Files of a folder that stages read one by one, with their text."""
    groups = [f"{group}.parquet" for group in params["maps"]["groups"]]
    if out == "outputs/resolved":
        read = params["lora"], params["train"]
        return {f"{name}.json": json.dumps([arm, read]) for name, arm in params["arms"].items()}
    if out == "outputs/report":
        return {"index.html": f"<html><body><header></header>{digest}</body></html>"}
    if out.startswith("outputs/lora/"):
        names = ["adapter/adapter.json", *(f"epoch-{epoch}/adapter.json" for epoch in params["ablation"]["epochs"])]
    else:
        names = {
            "outputs/canonical": ["images.parquet", "objects.parquet", "relations.parquet"],
            "outputs/curated": ["triples.parquet", "map_triples.parquet"],
            "outputs/negatives": ["negatives.parquet"],
            "outputs/saliency": groups,
            "outputs/saliency_noised": groups,
            "outputs/word_probes": ["gains.parquet"],
        }.get(out, ["stands-in"])
    return {name: f"{name} of {digest}" for name in names}


def main(deps: list[str], outs: list[str]) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    digest = hashlib.md5(b"".join(contents(Path(dep)) for dep in deps)).hexdigest()
    for out in map(Path, outs):
        out.parent.mkdir(parents=True, exist_ok=True)
        kept = Path("kept") / out
        if kept.is_file() and out.suffix == ".json" and out.name != "headline.json":  # on which nothing depends
            found = json.loads(kept.read_text(encoding="utf-8"))
            out.write_text(json.dumps({**found, "stand_in": digest}), encoding="utf-8")
        elif kept.is_file():
            shutil.copyfile(kept, out)
        elif out.suffix:
            out.write_text("{}" if out.suffix == ".json" else "step\n", encoding="utf-8")
        else:
            for name, text in within(str(out), params, digest).items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cut = sys.argv.index("--")
    main(sys.argv[1:cut], sys.argv[cut + 1 :])
