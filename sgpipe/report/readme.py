"""The headline table, made from the metrics: for the README and for the end of a run."""

from pathlib import Path

from sgpipe.errors import DataError
from sgpipe.evaluation.arms import read_metrics
from sgpipe.evaluation.sampling_plan import NO_GRAPH
from sgpipe.report import tables

END = "<!-- end of table -->"


def begin(name: str) -> str:
    """The line before the table of this name."""
    return f"<!-- table: {name} -->"


def headline_table(evaluation: Path, ablation: Path) -> tables.Table:
    """Arms and epochs, each figure with its interval and beside its controls."""
    found = read_metrics(evaluation)
    rows = [
        (
            f"{arm}, {prompt} prompt" + ("" if graph == NO_GRAPH else f", {graph} graph"),
            tables.figure(row.get("objects_present")),
            tables.with_interval(row, "role_accuracy"),
            tables.with_interval(row, "accuracy"),
        )
        for arm, prompt, graph, row in tables.conditions(found)
    ]
    if ablation.is_file():
        for epoch, row in sorted(read_metrics(ablation)["epochs"].items(), key=lambda item: int(item[0])):
            rows.append(
                (
                    f"after {epoch} epochs, neutral prompt, positive graph",
                    tables.figure(row.get("objects_present")),
                    tables.with_interval(row, "role_accuracy"),
                    tables.with_interval(row, "accuracy"),
                )
            )
    head = ("", "both objects", "roles as g⁺", "any class as g⁺")
    judge = found["headline"]["judge"]
    ceiling = found["judges"][judge]["ceiling"]
    note = (
        f"{found['triples']} triples × {found['seeds']} seeds; judge `{judge}`, right on "
        f"{tables.figure(ceiling)} of ground-truth pictures; 95 % intervals by bootstrap over triples. Of roles, a half is chance."
    )
    return tables.Table("", head, tuple(rows), note)


def replace_table(text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers of `name`. Raises `DataError` without just these two."""
    if text.count(begin(name)) != 1 or END not in text.split(begin(name))[1]:
        raise DataError(
            f"the text needs one line {begin(name)!r} and after it one line {END!r}; put them where the table is to stand"
        )
    before, rest = text.split(begin(name))
    return f"{before}{begin(name)}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}"
