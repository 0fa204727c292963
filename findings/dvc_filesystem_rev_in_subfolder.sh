#!/usr/bin/env bash
# DVC 3.67.1: DVCFileSystem(project) and DVCFileSystem(project, rev="HEAD") have different roots when the DVC project lies in a
# subfolder of a git repository (`dvc init --subdir`).
#
# Without `rev` paths are relative to the project that was named. With `rev`, even with HEAD in a clean checkout, the root is
# that of the *git* repository, the project's outputs are not known there, and a search is empty instead of an error:
#
#   no rev:                        ['outputs/a/x.txt']
#   rev, path in the project:      []
#   rev, path in the repository:   []
#   repository switched to commit: ['outputs/a/x.txt']
#
# So code that reads an experiment's outputs at its commit works in every repository but a larger one. What works in both is a
# `Repo` switched to the commit.
#
# Exits non-zero if the behaviour changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet "dvc==3.67.1"
fi

git init -q "$folder/mono"
git -C "$folder/mono" config user.email a@example.org
git -C "$folder/mono" config user.name a
mkdir -p "$folder/mono/studies/pipeline"
cd "$folder/mono/studies/pipeline"
export DVC_NO_ANALYTICS=1
"$python" -m dvc init -q --subdir
cat >dvc.yaml <<'YAML'
stages:
  a:
    cmd: mkdir -p outputs/a && echo 1 > outputs/a/x.txt
    outs: [outputs/a]
YAML
"$python" -m dvc repro -q
git add -A
git commit -qm "result"

"$python" - "$PWD" <<'PY'
import sys

from dvc.api import DVCFileSystem
from dvc.repo import Repo

project = sys.argv[1]


def found(files, path):
    return sorted(name for name in files.find(path) if not name.endswith(".gitignore"))


workspace = found(DVCFileSystem(project), "outputs")
at_commit = DVCFileSystem(project, rev="HEAD")
relative, prefixed = found(at_commit, "outputs"), found(at_commit, "studies/pipeline/outputs")
with Repo(project) as repo, repo.switch("HEAD"):
    switched = found(DVCFileSystem(repo), "outputs")
print("no rev:                       ", workspace)
print("rev, path in the project:     ", relative)
print("rev, path in the repository:  ", prefixed)
print("repository switched to commit:", switched)
expected = (["outputs/a/x.txt"], [], [], ["outputs/a/x.txt"])
if (workspace, relative, prefixed, switched) != expected:
    sys.exit(f"the behaviour has changed; expected {expected}")
PY
