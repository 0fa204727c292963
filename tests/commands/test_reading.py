"""Documented commands that read what is there, or change a file or two: run in scratch repositories, in seconds."""

import json
import webbrowser
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from sgpipe.relations.predicates import use_relations
from tests.conftest import ROOT
from tests.documented import commit, dvc, git, project, ran

Says = Mapping[str, tuple[str, ...]]
"""Commands in the order in which they run, each with what it prints."""


def run_each(says: Says, root: Path) -> None:
    for command, texts in says.items():
        printed = ran(command, root)
        assert [text for text in texts if text not in printed] == [], f"{command}:\n{printed}"


HERE: Says = {
    "sgpipe dag": ("train_lora ×2", "← probe_table, evaluate"),
    "sgpipe params show": ("lora:", "blocks: [7, 8, 9, 10, 11, 12]"),
    "sgpipe preset": ("flux-schnell-vg: ", "predecessor-miniature: "),
    "sgpipe preset flux-schnell-vg": ("backbone.resolution", "knobs differ; --apply writes them"),
    "sgpipe preset flux-schnell-vg --settings": ("-S backbone.model=black-forest-labs/FLUX.1-schnell",),
}


def test_what_the_repository_says_of_itself() -> None:
    run_each(HERE, ROOT)


CHANGES = {
    "sgpipe preset flux-schnell-vg --apply": True,
    "git checkout params.yaml": False,
    "git checkout params.yaml dvc.lock": False,
}
"""Whether the parameters differ from the committed ones after it."""


def test_a_preset_is_written_and_taken_back(tmp_path: Path) -> None:
    root = project(tmp_path / "project", "params.yaml", "presets", "dvc.lock")
    before = (root / "params.yaml").read_bytes()
    for command, changed in CHANGES.items():
        ran(command, root)
        assert ((root / "params.yaml").read_bytes() != before) == changed, command
    (root / "dvc.lock").write_text("another run")
    ran("git checkout params.yaml dvc.lock", root)
    assert (root / "dvc.lock").read_bytes() == (ROOT / "dvc.lock").read_bytes()


REPORTED: Says = {"sgpipe report headline": ("graph, neutral prompt, g⁺", "report: outputs/report/index.html")}


def test_the_committed_figures_are_printed(tmp_path: Path) -> None:
    root = project(tmp_path / "project", "metrics")
    (root / "outputs/report").mkdir(parents=True)
    (root / "outputs/report/index.html").touch()
    run_each(REPORTED, root)


COMPARED: Says = {
    "dvc exp show": ("early", "middle", "graph_low"),
    "dvc exp show --only-changed": ("early", "middle", "graph_low", "lora.blocks"),
    "dvc exp show --only-changed --drop 'Created|.*_(low|high)'": ("early", "middle", "lora.blocks"),
    "dvc exp show --sort-by metrics/headline.json:graph --sort-order desc": ("early",),
    "dvc exp show -n 3 --only-changed --md": ("[early]", "report.seed", "0.97222"),
    "dvc metrics diff early middle": ("graph", "0.25", "0.75", "0.5"),
    "dvc metrics diff 'HEAD~1' HEAD --md": ("| Path", "graph_low"),
    "dvc params diff 'HEAD~1'": ("report.seed",),
    "git diff 'HEAD~1' -- metrics params.yaml": ("graph_low", "+report:"),
    "dvc plots diff HEAD early middle --targets 'control losses' 'training losses' -o outputs/plots_diff --open": ("index.html",),
    "dvc queue status": ("No experiment tasks in the queue.",),
    "dvc exp apply early": ("Changes for experiment 'early' have been applied",),
    "git add -A && git commit -m 'Blocks 0–6'": ("Blocks 0–6", "changed"),
}


def edited(root: Path, graph: float, low: float, section: str, **knobs: object) -> None:
    """Figures and a section of the parameters as another run leaves them."""
    headline, params = root / "metrics/headline.json", root / "params.yaml"
    figures = json.loads(headline.read_text(encoding="utf-8"))
    headline.write_text(json.dumps({**figures, "graph": graph, "graph_low": low}), encoding="utf-8")
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    values[section] |= knobs
    params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """Two commits and two experiments after them; DVC knows the metrics, parameters and plots of the pipeline, and no stage."""
    root = project(
        tmp_path / "project", "params.yaml", "metrics", "plots", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"
    )
    described = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    shown = {"params": ["params.yaml"], "metrics": ["metrics/headline.json"], "plots": described["plots"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump(shown), encoding="utf-8")
    commit(root, "earlier")
    edited(root, 0.5, 0.4, "report", seed=7)
    commit(root, "later")
    for name, graph, blocks in (("early", 0.25, "0..6"), ("middle", 0.75, "7..12")):
        edited(root, graph, graph - 0.1, "lora", blocks=blocks, rank=2)
        code, printed = dvc_in(root, "exp", "save", "-n", name)
        assert code == 0, printed
        git(root, "checkout", ".")
    (root / "outputs").mkdir()
    return root


def dvc_in(root: Path, *words: str) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return dvc(list(words))


def test_experiments_stand_side_by_side_and_one_is_kept(experiments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    monkeypatch.setenv("COLUMNS", "400")
    run_each(COMPARED, experiments)
    page = experiments / "outputs/plots_diff/index.html"
    assert opened == [page.as_uri()] and "control_losses" in page.read_text(encoding="utf-8")
    values = yaml.safe_load(git(experiments, "show", "HEAD:params.yaml"))
    assert values["lora"]["blocks"] == "0..6" and values["report"]["seed"] == 7


FETCHED: Says = {"dvc pull world_start.dvc": ("added",), "dvc checkout": ("world_start",)}


def test_what_the_own_remote_holds_is_had_and_had_again(tmp_path: Path) -> None:
    root = project(tmp_path / "project", "world_start.dvc", ".dvc/config", ".dvc/.gitignore")
    assert dvc_in(root, "remote", "modify", "--local", "storage", "url", str(ROOT / "dvc-remote"))[0] == 0
    for command, texts in FETCHED.items():
        printed = ran(command, root)
        assert all(text in printed for text in texts), printed
        assert (root / "world_start/model_index.json").is_file(), command
        (root / "world_start/model_index.json").unlink()


CHECKED: Says = {
    "sgpipe data check GQA --kind gqa": ("GQA: 20 images, 80 objects, 88 relations are sound; 32 problems", "left of 40"),
    "sgpipe data sgdiff-vocabulary VG --splits vg_splits.json --out vocab.json": ("vocab.json: ", "cannot be compared"),
}


@pytest.fixture
def built_in_classes() -> Iterator[None]:
    yield
    use_relations(None)


@pytest.mark.usefixtures("built_in_classes")
def test_data_sets_are_looked_at(tmp_path: Path) -> None:
    """Files made up; those of GQA hold texts without a class, so that the first ends with 1."""
    from tests.datasets.kinds import KINDS
    from tests.datasets.test_sgdiff_vocabulary import SPLITS, made, write

    (tmp_path / "GQA").mkdir()
    KINDS["gqa"].write(tmp_path / "GQA", KINDS["gqa"].files(20))
    write(tmp_path / "VG", made())
    (tmp_path / "vg_splits.json").write_text(json.dumps(SPLITS))
    for (command, texts), code in zip(CHECKED.items(), (1, 0), strict=True):
        printed = ran(command, tmp_path, code)
        assert [text for text in texts if text not in printed] == [], printed
    assert {path.name for path in tmp_path.glob("*.json")} == {"vocab.json", "vocab_splits.json", "vg_splits.json"}


DRAWN: Says = {"python -m sgworld.world sheet": ("outputs/world.png",)}


def test_the_world_of_several_relations_is_shown(tmp_path: Path) -> None:
    from PIL import Image

    run_each(DRAWN, tmp_path)
    with Image.open(tmp_path / "outputs/world.png") as sheet:
        assert min(sheet.size) > 64


ABSENT: Says = {"sgpipe doctor": ("missing", "dvc pull data.dvc", "dvc pull models.dvc")}


def test_the_doctor_says_what_a_clone_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    names = ("params.yaml", "presets", "data.dvc", "models.dvc", "requirements.lock", "pyproject.toml", ".dvc/config")
    root = project(tmp_path / "project", *names)
    for command, texts in ABSENT.items():
        printed = ran(command, root, code=1)
        assert [text for text in texts if text not in printed] == [], printed


RUN = (*HERE, *CHANGES, *REPORTED, *COMPARED, *FETCHED, *CHECKED, *DRAWN, *ABSENT)
