"""Documented commands of DVC over the real stages, knobs and dependencies; what a stage computes is stood in for (`stand_in`)."""

import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sgpipe.params.show import load_all
from tests.conftest import ROOT
from tests.documented import commit, git, project, ran
from tests.stages.test_pipeline import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MADE = {
    "dvc repro canonicalize": {"code", "canonicalize"},
    "dvc repro curate": {"curate"},
    "dvc repro negatives": {"negatives"},
    "dvc repro cache_prompts cache_negative_prompts": {"cache_prompts", "cache_negative_prompts"},
    "dvc repro cache_latents": {"cache_latents"},
    "dvc repro saliency_sheets": {"saliency", "saliency_noised", "saliency_sheets"},
    "dvc repro probe_table probe_words": {"probe@early", "probe@middle", "probe@late", "probe_table", "probe_words"},
    "dvc repro graph_encoder": {"graph_encoder"},
    "dvc repro localise": {"resolve", "train_lora@graph", "localise"},
    "dvc repro report": {
        "train_lora@text_only", "sample_base", "sample_images@graph", "sample_images@text_only", "judge", "evaluate",
        "sample_epochs@graph-10", "sample_epochs@graph-20", "judge_epochs", "ablation", "report",
    },
    "dvc repro": {"headline"},
}  # fmt: skip
"""In an order in which each has something left to run, and what it runs."""
AFTER_RESOLVE = {
    "resolve", "train_lora@graph", "train_lora@text_only", "sample_images@graph", "sample_images@text_only", "localise",
    "sample_epochs@graph-10", "sample_epochs@graph-20", "judge", "judge_epochs", "evaluate", "ablation", "report", "headline",
}  # fmt: skip
TOLD = {"resolve", "judge", "evaluate"}
EXPERIMENTS: dict[str, set[str]] = {
    "dvc exp run -n early -S 'lora.blocks=[0..6]'": AFTER_RESOLVE,
    "dvc exp run -S 'lora.blocks=[0..6]'": AFTER_RESOLVE,
    "dvc exp run -S curate.train=200 -S curate.seed=1 curate": {"curate"},
    "dvc exp run -S data.kind=gqa -S data.root=GQA -S data.gqa.left_right=0.1": {"canonicalize", "cache_latents", "judge"},
    "dvc exp run -S '+arms.controlnet={kind: controlnet, learning_rate: 2e-3}' -S +evaluate.adapters.controlnet=graphs evaluate": {
        *TOLD, "train_lora@controlnet", "sample_images@controlnet",
    },
    "dvc exp run -S '+arms.t2i={kind: t2i_adapter, learning_rate: 3e-3}' -S +evaluate.adapters.t2i=graphs evaluate": {
        *TOLD, "train_lora@t2i", "sample_images@t2i",
    },
    "dvc exp run -S 'sgdiff.twins=[0]' -S sgdiff.checkpoint=outputs/sgdiff/0 -S '+arms.sgdiff={kind: sgdiff}' "
    "-S +evaluate.adapters.sgdiff=graphs evaluate": {*TOLD, "train_sgdiff@0", "train_lora@sgdiff", "sample_images@sgdiff"},
    "dvc exp run -S sgdiff.checkpoint=models/sgdiff -S '+arms.sgdiff={kind: sgdiff}' "
    "-S +evaluate.adapters.sgdiff=graphs evaluate": {*TOLD, "train_lora@sgdiff", "sample_images@sgdiff"},
    "dvc exp run -S '+arms.graph-1={kind: graph_lora, seed: 1}' -S '+arms.graph-2={kind: graph_lora, seed: 2}' "
    "-S +evaluate.adapters.graph-1=graphs -S +evaluate.adapters.graph-2=graphs -S 'ablation.runs=[graph,graph-1,graph-2]'": {
        "resolve", "train_lora@graph-1", "sample_epochs@graph-2-20", "ablation",
    },
    "dvc exp run -S localise.pairs=72 -S 'localise.rows=[image,text,prompt,graph]' localise": {"localise"},
    "dvc exp run -S 'study.arms=[graph]' study@graph": {"study@graph"},
}  # fmt: skip
"""What each runs, and perhaps more."""
SIDE_BY_SIDE = {
    "sgpipe pipeline why train_lora": ("train_lora@graph:", "resolve, which comes before:", "params: lora.rank 16 -> 8"),
    "sgpipe pipeline why train_lora@graph": ("train_lora@graph:", "nothing changed since it ran"),
    "sgpipe report experiments": ("outputs/experiments/index.html",),
    "sgpipe report experiments early 'mid*' --out outputs/experiments": ("outputs/experiments/index.html",),
    "sgpipe tracking sync": ("runs created",),
}
QUEUED = {
    "dvc exp run --queue -S 'lora.blocks=[0..6],[7..12],[13..18]'": "Queued experiment",
    "dvc queue start -j 1": "Started '1' new experiments task queue worker",
    "dvc queue logs '<name>' -f": "Reproducing experiment '",
}
RUN = (*MADE, *EXPERIMENTS, *SIDE_BY_SIDE, *QUEUED)


def stood_in(stage: dict[str, Any]) -> None:
    """Let a stage of dvc.yaml be `stand_in`."""
    stage = stage.get("do", stage)
    outs = [next(iter(each)) for kind in ("outs", "metrics") for each in stage.get(kind, [])]
    stage["cmd"] = " ".join(["python", "stand_in.py", *stage["deps"], "--", *outs])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's pipeline, stood in for but for stage `code`, with files in the place of data and checkpoints."""
    made = project(
        tmp_path_factory.mktemp("pipeline") / "project", "sgpipe", "sgworld", "stages", "presets", "params.yaml", "dvc.yaml",
        "requirements.lock", "pyproject.toml", "metrics", "plots", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore",
    )  # fmt: skip
    described = yaml.safe_load((made / "dvc.yaml").read_text(encoding="utf-8"))
    for name, stage in described["stages"].items():
        if name != "code":
            stood_in(stage)
    (made / "dvc.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("stand_in.py"), made / "stand_in.py")
    for name in ("metrics", "plots"):
        shutil.copytree(made / name, made / "kept" / name)
    parts = [each.name for each in (ROOT / "models/mini-flux").iterdir() if each.is_dir()]
    models = ("mini-clip", "mini-tower", "sgdiff", *(f"mini-flux/{part}" for part in parts))
    for folder in ("data", "GQA", *(f"models/{model}" for model in models)):
        (made / folder).mkdir(parents=True)
        (made / folder / "stands-in").write_text(folder)
    git(made, "add", "--force", "data", "models")
    commit(made, "stood in")
    return made


def stages_run(printed: str) -> set[str]:
    """Stages that ran, or whose outputs of an equal run before are taken."""
    return set(re.findall(r"^(?:Running stage|Stage) '([^']+)'(?::| is cached)", printed, re.MULTILINE))


def reset(root: Path) -> None:
    git(root, "checkout", ".")
    git(root, "clean", "--quiet", "--force", "-d")
    ran("dvc checkout --quiet", root)


def test_the_pipeline_and_its_experiments(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One repository for all, since each starts where those before it led."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    for command, stages in MADE.items():
        assert stages_run(ran(command, root)) == stages, command
    commit(root, "made")
    for command, stages in EXPERIMENTS.items():
        found = stages_run(ran(command, root))
        assert found == stages if stages is AFTER_RESOLVE else found >= stages, f"{command}: {found}"
        load_all(root / "params.yaml")
        reset(root)
    ran("dvc exp run -n middle -S report.seed=1 report headline", root)
    reset(root)
    params = (root / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(params.replace("  rank: 16\n", "  rank: 8\n"), encoding="utf-8")
    for command, texts in SIDE_BY_SIDE.items():
        printed = ran(command, root)
        assert [text for text in texts if text not in printed] == [], f"{command}: {printed}"
        git(root, "checkout", ".")
    index = (root / "outputs/experiments/index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}/index.html"' in index for name in ("early", "middle", "workspace"))
    queued(root)


def queued(root: Path) -> None:
    """Workers are processes of their own, so these are, too."""
    queue, start, logs = QUEUED
    assert run(root, *shlex.split(queue)).count(QUEUED[queue]) == 3
    assert QUEUED[start] in run(root, *shlex.split(start))
    end = time.monotonic() + 900
    while re.search(r"Queued|Running", status := run(root, "dvc", "queue", "status")) and time.monotonic() < end:
        time.sleep(2)
    assert status.count("Success") == 3, status
    name = re.findall(r"^[0-9a-f]{7}\s+([\w-]+)", status, re.MULTILINE)[0]
    assert QUEUED[logs] in run(root, *shlex.split(logs.replace("'<name>'", name)))
