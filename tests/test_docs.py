"""The documentation holds together: links lead somewhere, the index has every page, stages and commands that are named exist."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from benchmarks.pictures import pictures as made

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def pages(root: Path) -> list[Path]:
    return [root / "README.md", root / "NOTICE.md", *sorted((root / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere(repo_root: Path) -> None:
    broken = []
    for page in pages(repo_root):
        for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_index_has_every_page_and_every_stage(repo_root: Path) -> None:
    index = (repo_root / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in LINK.findall(index)}
    assert {path.name for path in (repo_root / "docs").glob("*.md")} - {"README.md"} <= linked
    stages = yaml.safe_load((repo_root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert [name for name in stages if f"`{name}`" not in index] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_starts_with_what_you_get_then_a_picture_then_the_command(page: Path) -> None:
    _, title, first, rest = re.split(r"^(# .*)\n\n(.*)$", page.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)
    assert title and first.startswith("What you get: ")
    head = rest.partition("\n## ")[0]
    picture, block = head.find("!["), re.search(r"^```", head, re.MULTILINE)
    assert picture > 0, "no picture before the first section"
    assert block and picture < block.start(), "the command, or what to write into params.yaml, is missing or comes first"
    assert re.search(r"^```\n(?:sgpipe|sgworld|dvc|make|python -m) |^```(?:python|yaml)\n|^references/", head, re.MULTILINE)


PICTURE = re.compile(r"!\[([^\]]*)\]\(((?:docs/)?images/[^)\s]+)\)")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_has_a_picture_with_alt_text_near_its_top(page: Path) -> None:
    head = "\n".join(page.read_text(encoding="utf-8").splitlines()[:25])
    pictures = PICTURE.findall(head)
    assert pictures, "no picture in the first 25 lines"
    assert [file for alt, file in pictures if len(alt) < 20] == [], "a picture without words that stand in for it"


def test_every_picture_is_used_and_asks_for_nothing_elsewhere(repo_root: Path) -> None:
    used = {Path(file).name for page in pages(repo_root) for _, file in PICTURE.findall(page.read_text(encoding="utf-8"))}
    images = sorted((repo_root / "docs" / "images").iterdir())
    assert {image.name for image in images} == used
    remote = re.compile(r"""@font-face|@import|(?:href|src)=["']https?:|url\(["']?https?:""")
    assert {f"{name}.{ending}" for name, (_, ending) in made().items()} <= used
    assert [image.name for image in images if image.suffix == ".svg" and remote.search(image.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name", ["troubleshooting", "experiments", "distributed", "interpretation"])
def test_knobs_that_a_page_names_exist(repo_root: Path, name: str) -> None:
    """`section.knob` in code, wherever `section` is one of params.yaml, is a row of the reference."""
    reference = (repo_root / "docs" / "parameters.md").read_text(encoding="utf-8")
    known: set[str] = set()
    for section, table in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", reference, re.DOTALL | re.MULTILINE):
        knobs = re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
        known |= {section, *(f"{section}.{knob}" for knob in knobs)}
    sections = {knob for knob in known if "." not in knob}
    files = {"md", "json", "csv", "parquet", "py", "yaml", "db"}
    page = (repo_root / "docs" / f"{name}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/@.])([a-z_]+(?:\.[a-z_]+)+)(?=[=`:\s])", page))
    of_params = {
        re.sub(r"^(arms|evaluate\.adapters)\.[a-z]+", r"\1.<name>", each)  # names that the user gives
        for each in named
        if each.split(".")[0] in sections and each.rsplit(".", 1)[-1] not in files
    }
    known |= {"arms.<name>", "evaluate.adapters.<name>"}
    unknown = {each for each in of_params if each not in known}
    assert unknown == MISSPELT.get(name, set())


MISSPELT = {"troubleshooting": {"lora.rnak", "lora.blokcs", "lora.losses", "lora.arms"}}
"""Knobs that a page shows as refused."""


def test_the_citation_is_of_this_version_and_licence(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((repo_root / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(cited["version"]) == project["version"]
    assert cited["license"] == project["license"] == "Apache-2.0"
    assert "Apache License" in (repo_root / "LICENSE").read_text(encoding="utf-8")
