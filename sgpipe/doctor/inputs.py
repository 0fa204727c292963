"""What a run reads, before it runs: parameters that the stages accept, DVC's files, the data folder, the model's weights."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import family_of, layout_of, read_layout
from sgpipe.backbones.loading import check_part
from sgpipe.backbones.source import check_source, part_configs, snapshot_folder
from sgpipe.backbones.weights import part_problem, weight_files
from sgpipe.datasets.base import DataSet
from sgpipe.datasets.config import Data
from sgpipe.doctor.findings import Finding, fail, ok, refused, warn
from sgpipe.errors import DataError, ModelError, ParamsError
from sgpipe.fetch.visual_genome import REJECTS, read_rejects
from sgpipe.runs.state import beside_cache, user_dir, writable


def check_parameters(params: Path, sections: Mapping[str, Any]) -> list[Finding]:
    """Block sets against the backbone, every arm, and the models of judges and tower, by the stages' own checks."""
    from sgpipe.arms.kinds.base import Sections
    from sgpipe.arms.resolve import resolve
    from sgpipe.evaluation.extractors import quality_identity
    from sgpipe.evaluation.judge_factory import judge_identity
    from sgpipe.graph_encoder.tower import tower_identity
    from sgpipe.params.show import spelled_out

    arms, read = sections["arms"], Sections.of(sections)
    checks: list[Callable[[], Any]] = [
        partial(spelled_out, dict(sections)),
        *(partial(resolve, name, options, read) for name, options in arms.items()),
        *(partial(judge_identity, *named) for named in sections["judge"].judges.items()),
        partial(tower_identity, sections["graph_encoder"]),
        partial(quality_identity, sections["quality"]),
    ]
    findings = [finding for check in checks for finding in refused(check, "parameters")]
    return findings or [ok("parameters", f"{params}: {len(sections)} sections, {len(arms)} arms")]


def tracked(root: Path) -> dict[Path, dict[str, Any]]:
    """Path and recorded hash, size and file count of every output of the .dvc files in `root`."""
    outs: dict[Path, dict[str, Any]] = {}
    for path in sorted(path for path in root.glob("*.dvc") if path.is_file()):
        for out in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("outs", []):
            if isinstance(out, dict) and "path" in out:
                outs[path.parent / out["path"]] = out
    return outs


def _held(store: Path, md5: str) -> bool:
    """A DVC cache or local remote holds the object (layout of DVC 3: files/md5/ab/cdef…)."""
    return any((store / prefix / md5[:2] / md5[2:]).is_file() for prefix in ("files/md5", "."))


def _tracked_file(path: Path, out: dict[str, Any], cache: Path, remote: Path | None) -> Finding:
    """Whether what a .dvc file tracks is pulled and of the recorded size, or where it is to be had."""
    if path.exists():
        files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        count, size = len(files), sum(each.stat().st_size for each in files)
        recorded = (out.get("nfiles", 1), out.get("size"))
        if recorded[1] is None or recorded == (count, size):
            return ok("dvc", f"{path}: pulled, {count} files, {size / 2**20:.1f} MiB")
        said = f"its .dvc file says {recorded[0]} files, {recorded[1]} bytes"
        remedy = f"dvc status {path}.dvc; then `dvc checkout` or `dvc add` it"
        return warn("dvc", f"{path}: {count} files, {size} bytes; {said}", remedy)
    if _held(cache, out.get("md5", "")):
        return fail("dvc", f"{path}: in the cache, not in the workspace", f"dvc checkout {path}.dvc")
    if remote is None or _held(remote, out.get("md5", "")):
        return fail("dvc", f"{path}: not pulled", f"dvc pull {path}.dvc")
    what = f"{path}: neither in the workspace nor in the cache nor in the remote {remote}"
    return fail("dvc", what, "get the remote's files (`git lfs pull`, a full clone), or make it anew")


def _states(shared: Path) -> list[Finding]:
    """Whether long stages can keep their working state beside the DVC cache, which users may share, and MLflow its record."""
    findings, states = [], shared / "stage-state"
    for folder in (each for each in (shared, states) if each.exists() and not writable(each)):
        what = (
            f"{folder}: not writable by this user; working states and MLflow's record go to {user_dir(folder)}, where nobody "
            "else continues them"
        )
        remedy = f"have its owner run `chmod -R g+rwX {folder}`, or set another `dvc cache dir --local`"
        findings.append(warn("dvc", what, remedy))
    there = sorted(states.iterdir()) if states.exists() and writable(states) else []
    if foreign := [path.name for path in there if not os.access(path, os.W_OK)]:
        what = f"{states}: {len(foreign)} working states of another user (first: {foreign[0]}), which cannot be continued"
        findings.append(warn("dvc", what, f"have their owner run `chmod -R g+rwX {states}`, or remove them"))
    return findings


def check_dvc(root: Path) -> list[Finding]:
    """The repository's DVC configuration, its default remote, and each tracked file or folder."""
    from dvc.config import Config, ConfigError

    folder = root / ".dvc"
    if not folder.is_dir():
        remedy = "run from the repository's folder, or `git clone` it"
        return [fail("dvc", f"{root.resolve()}: no DVC repository", remedy)]
    try:
        config = Config(str(folder))
    except ConfigError as error:
        return [fail("dvc", f"{folder / 'config'}: {error}", "git checkout .dvc/config")]
    name = config["core"].get("remote")
    if name not in config["remote"]:
        return [fail("dvc", "no default remote is configured", "git checkout .dvc/config")]
    url = str(config["remote"][name]["url"])
    local, remote = None if "://" in url else Path(url), ok("dvc", f"remote {name}: {url}")
    if local is not None and not local.is_dir():
        remote = warn("dvc", f"remote {name}: {local} is not a folder", "clone the repository anew, or `dvc remote modify`")
        local = None
    cache = Path(config["cache"].get("dir") or folder / "cache")
    files = [_tracked_file(path, out, cache, local) for path, out in tracked(root).items()]
    return [*_states(beside_cache(root)), remote, *files]


def _shown_images(data_set: DataSet, triples: Path, present: set[int]) -> Finding:
    """Whether the data set has the images that the table `triples` shows."""
    from sgpipe.datasets.tables import TRIPLES, read_table

    try:
        shown = set(read_table(triples, TRIPLES, ["image_id"])["image_id"].to_pylist())
    except DataError as error:
        return fail("data", str(error), "dvc repro curate")
    if missing := len(shown - present):
        what = f"{triples}: {missing} of {len(shown)} images are not in {data_set.root}"
        return fail("data", what, data_set.remedy(triples))
    return ok("data", f"{triples}: all {len(shown)} images are there")


def check_data(data: Data, triples: list[Path], pulled: bool) -> list[Finding]:
    """The annotation files, the images, and what an earlier fetch could not get.

    `pulled` tells whether a .dvc file tracks the folder, so that the remedy is to pull that and not a download.
    """
    from sgpipe.datasets.canonicalize import open_data_set

    try:
        data_set = open_data_set(data)
    except ParamsError as error:
        return [Finding.of(error, "data")]
    root = data_set.root
    remedy = f"dvc pull {root.name}.dvc" if pulled else data_set.remedy()
    if not root.is_dir():
        return [fail("data", f"data.root: {root} is not a folder", remedy)]
    problems, present, findings = data_set.damage(), set[int](), list[Finding]()
    if not problems:
        size = sum(path.stat().st_size for path in data_set.annotations() if path.is_file())
        findings.append(ok("data", f"{root}: annotations, {size / 2**20:.1f} MiB"))
    try:
        present |= set(data_set.files())
        problems += [] if present else [f"{root}: no image, neither loose nor zipped"]
    except DataError as error:
        problems.append(str(error))
    findings += [fail("data", problem, remedy) for problem in problems]
    if present:
        shown = [_shown_images(data_set, path, present) for path in triples if path.is_file()]
        findings += shown or [ok("data", f"{root}: {len(present)} images")]
    again, path = "run the same `sgpipe fetch` again", root / REJECTS
    try:
        if rejects := read_rejects(path):
            what = f"{path}: {len(rejects)} images could not be fetched (first: {rejects[0]['reason']})"
            findings.append(warn("data", what, again))
    except DataError as error:
        findings.append(warn("data", str(error), again))
    return findings


def check_guidance(backbone: Backbone, sections: Mapping[str, Any]) -> list[Finding]:
    """Whether the scales of training, images and maps are such as the pipeline takes; nothing where it is not there."""
    from sgpipe.arms.adapter import check_guidance as check_training

    folder = snapshot_folder(backbone.model, backbone.revision)
    try:
        layout = None if folder is None else layout_of(folder)
    except ModelError:  # `check_pipeline` says so
        layout = None
    if layout is None:
        return []
    sampled = [(f"{name}.guidance", sections[name].guidance) for name in ("saliency", "evaluate")]
    checks: list[Callable[[], Any]] = [
        partial(check_training, layout, sections["train"]),
        *(partial(layout.classifier_free, scale, knob) for knob, scale in sampled),
    ]
    return [finding for check in checks for finding in refused(check, "parameters")]


def check_pipeline(backbone: Backbone) -> list[Finding]:
    """The pipeline folder, or the hub cache's copy of it: pinned, every part with its weights and of the class named, its
    layout as the parameters say.
    """
    folder = snapshot_folder(backbone.model, backbone.revision)
    at = f" --revision {backbone.revision}" if backbone.revision else ""
    here = backbone.model.startswith((".", "/", "models/"))
    remedy = "dvc pull models.dvc" if here else f"hf download {backbone.model}{at}"
    if folder is None:
        return [fail("model", f"{backbone.model}: neither a folder nor in the hub cache", remedy)]
    findings = refused(partial(check_source, backbone), "model")
    try:
        index = part_configs(folder, ("",))[""]
        named = {name for name, kind in index.items() if isinstance(kind, list) and kind[:1] not in ([], [None])}
        parts = sorted({*named, *family_of(folder).text_parts, "transformer", "vae", "scheduler"})
    except ModelError as error:
        return [*findings, Finding.of(error, "model")]
    there = [name for name in parts if (folder / name).is_dir()]
    problems = [f"{name}: no such folder" for name in parts if name not in there]
    problems += [problem for name in parts if (problem := part_problem(folder / name)) is not None]
    checks: list[Callable[[], Any]] = [
        partial(read_layout, folder, backbone),
        *(partial(check_part, folder, name) for name in there),
    ]
    findings += [found for check in checks for found in refused(check, "model")]
    findings += [fail("model", f"{folder}: {problem}", remedy) for problem in problems]
    if not problems:
        size = sum(path.stat().st_size for name in parts for path in weight_files(folder / name))
        findings.append(ok("model", f"{backbone.model}: {len(parts)} parts, {size / 2**30:.2f} GiB of weights"))
    return findings
