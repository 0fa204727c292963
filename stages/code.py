"""The code that each stage runs, as one small file per stage that DVC compares."""

from pathlib import Path

from sgpipe.errors import CodeError
from sgpipe.runs.closure import keep, recall
from sgpipe.runs.code import FOLDER, code_file, code_of, stage_modules, write_code
from sgpipe.runs.command import run


def main() -> None:
    """Hash the syntax trees of what every stage imports, with the versions of its libraries."""
    root = Path()
    recall(root)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    found = {module: code_of(module, root) for module in stage_modules(root) if module != "stages.code"}
    keep(root)
    for module, code in found.items():
        write_code(code_file(module, root), code)
    if edited := [module for module, code in found.items() if code != code_of(module, root)]:
        raise CodeError(f"code changed while it was hashed ({edited[0]}): run the same command again")


if __name__ == "__main__":
    run(main)
