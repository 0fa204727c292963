"""Digest of the code that a stage runs: its modules' syntax trees, the files they name, and the versions of its libraries.

Stage `code` writes one JSON per stage, on which DVC lets that stage depend: an edit, or an upgrade in `requirements.lock`,
reruns the stages that it concerns and no other; a comment or a docstring reruns none. A stage compares the code with that file
at its start, and with itself at its end, since DVC hashes dependencies only after the command.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from sgpipe.errors import CodeError
from sgpipe.params.load import PARAMS, UNUSED, read_yaml
from sgpipe.runs.atomic import write_json
from sgpipe.runs.closure import import_closure, keep, recall, source_at

FOLDER = Path("outputs/code")
LOCK = "requirements.lock"
RELATIONS = "sgpipe/relations/predicates.py"
"""A stage that runs this reads the file of own relation classes, where there is one."""
AROUND = frozenset({"dvc", "filelock", "mlflow", "rich", "tqdm", "typer"})
"""Libraries that start, lock or show a run and touch none of its numbers: an upgrade of these reruns nothing."""
COMPANIONS = {
    "diffusers": ("safetensors", "transformers"),
    "open-clip-torch": ("ftfy", "regex", "timm", "torchvision"),
    "peft": ("accelerate", "safetensors"),
    "polars": ("polars-runtime-32",),
    "scikit-learn": ("scipy",),
    "transformers": ("safetensors", "sentencepiece", "tokenizers"),
}
"""Libraries that change numbers without being imported here: those in which a library of ours computes. torch pins its own."""
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Code:
    """The code of one stage: 16 hex digits per file by path, and the version of each library by distribution name."""

    modules: dict[str, str]
    libraries: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def changes(self, now: "Code") -> list[str]:
        """What differs in `now`, one line each: modules changed, added or removed, and libraries with both versions."""
        modules, libraries = _differing(self.modules, now.modules), _differing(self.libraries, now.libraries)
        return [
            *(f"{path} {'added' if not old else 'changed' if new else 'no longer used'}" for path, old, new in modules),
            *(f"{name} {old or 'not used'} -> {new or 'not used'}" for name, old, new in libraries),
        ]


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, str | None, str | None]]:
    """Key, old and new value of each entry that is not the same in both."""
    pairs = [(key, before.get(key), after.get(key)) for key in sorted(before.keys() | after.keys())]
    return [(key, old, new) for key, old, new in pairs if old != new]


def canonical(distribution: str) -> str:
    """A distribution's name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def _distributions() -> dict[str, list[str]]:
    return {name: [canonical(each) for each in found] for name, found in packages_distributions().items()}


def pinned(root: Path) -> dict[str, str]:
    """Version of each distribution in `requirements.lock`; empty where there is no such file."""
    path = root / LOCK
    pins = _PIN.findall(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {canonical(name): found for name, found in pins}


def _libraries(foreign: frozenset[str], pins: dict[str, str]) -> dict[str, str]:
    """Pinned versions of the distributions that bring these import names, and of their companions."""
    imported = foreign - sys.stdlib_module_names
    names = {each for name in imported for each in _distributions().get(name, [canonical(name)])} - AROUND
    if missing := sorted(names - pins.keys()) if pins else []:
        raise CodeError(
            f"{LOCK} pins no version of {', '.join(missing)}, which the code imports; add it to pyproject.toml and "
            f"{LOCK}, or remove the import"
        )
    while beside := {each for name in names for each in COMPANIONS.get(name, ())} & pins.keys() - names:
        names |= beside
    return {name: pins[name] for name in sorted(names & pins.keys())}


def code_of(module: str, root: Path) -> Code:
    """The code that `module` runs in the repository at `root`, as its files are now. Raises `CodeError`."""
    closure = import_closure(module, root)
    modules = {}
    for name in closure.files:
        path = root / name
        try:
            digest = source_at(path).digest if path.suffix == ".py" else hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            raise CodeError(f"{name} went away while it was read; run the same command again") from None
        modules[name] = digest[:16]
    if RELATIONS in modules and (own := own_classes(root)) is not None:
        modules[str(own)] = hashlib.sha256((root / own).read_bytes()).hexdigest()[:16]
    return Code(modules, _libraries(closure.foreign, pinned(root)))


def own_classes(root: Path) -> Path | None:
    """The file of own relation classes that params.yaml in `root` names and that is there."""
    path = root / PARAMS
    named = read_yaml(path).get("data") if path.is_file() else None
    own = named.get("relations") if isinstance(named, dict) else None
    return Path(own) if isinstance(own, str) and not own.startswith(UNUSED) and (root / own).is_file() else None


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """Version of each of these distributions in this environment; None where there is none."""

    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: of(name) for name in names}


def not_as_locked(pins: Mapping[str, str]) -> dict[str, str]:
    """Of distributions with their pinned versions, those installed in another, with that; a build `+…` is the same version."""
    found = installed(pins)
    return {name: there for name, there in found.items() if there and there.partition("+")[0] != pins[name].partition("+")[0]}


def stage_modules(root: Path) -> list[str]:
    """The modules that are stages: those in `stages/` whose name starts with a letter."""
    return [f"stages.{path.stem}" for path in sorted((root / "stages").glob("[a-z]*.py"))]


def code_file(module: str, root: Path) -> Path:
    """Where stage `code` keeps the code of a stage's module."""
    return root / FOLDER / f"{module.removeprefix('stages.')}.json"


def write_code(path: Path, code: Code) -> None:
    """Write what `read_code` reads."""
    write_json({"digest": code.digest, **asdict(code)}, path)


def read_code(text: str) -> Code:
    """From what `write_code` wrote."""
    plain: dict[str, Any] = json.loads(text)
    return Code(plain["modules"], plain["libraries"])


_running: tuple[str, Path, Code] | None = None
"""Module, root and code of the stage that this process runs."""


def _shown(changes: list[str]) -> str:
    return ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")


def begin_stage(module: str, root: Path) -> None:
    """Remember the code of the stage that this process runs.

    Raises `CodeError` where it differs from what stage `code` recorded, or where a library is installed in another version than
    `requirements.lock` says.
    """
    global _running
    recall(root)
    now, recorded = code_of(module, root), code_file(module, root)
    keep(root)
    if different := not_as_locked(now.libraries):
        said = [f"{name} {there} is installed and {LOCK} has {now.libraries[name]}" for name, there in different.items()]
        raise CodeError(f"{_shown(said)}: install what the lock says (`make venv`), or pin what is installed and run `dvc repro`")
    if recorded.is_file() and (changes := read_code(recorded.read_text(encoding="utf-8")).changes(now)):
        raise CodeError(
            f"code changed since {recorded} was written ({_shown(changes)}): run `dvc repro` again; to run a stage by hand, "
            "first `python -m stages.code`"
        )
    _running = module, root, now


def check_unchanged() -> None:
    """Raise `CodeError` where the code of this process's stage is no longer what it was at `begin_stage`."""
    if _running is None:
        return
    module, root, before = _running
    if changes := before.changes(code_of(module, root)):
        raise CodeError(
            f"code changed while {module} ran ({_shown(changes)}), so its outputs are not accepted; the work is kept: run "
            "`dvc repro` again, it goes on from there if the code is as it was"
        )
