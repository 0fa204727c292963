"""The headline table, made from the metrics: for the README and for the end of a run."""

from pathlib import Path

from sgpipe.errors import DataError
from sgpipe.evaluation.arms import read_metrics
from sgpipe.evaluation.config import HEADLINE
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH
from sgpipe.report import tables

END = "<!-- end of table -->"


def begin(name: str) -> str:
    """The line before the table of this name."""
    return f"<!-- table: {name} -->"


GRAPHS = {"positive": "g⁺", "negative": "g⁻", "empty": "empty graph", "shuffled": "another triple's graph"}


def _shown(arm: str, prompt: str, graph: str) -> bool:
    """Whether a condition stands in the headline: graphs under neutral prompts, words where no graph is given."""
    if graph != NO_GRAPH:
        return prompt == HEADLINE
    return prompt == "relational" or (arm == BASE and prompt == HEADLINE)


def headline_table(evaluation: Path) -> tables.Table:
    """The conditions that answer the question, each figure with its interval; all of them stand in the report."""
    found = read_metrics(evaluation)
    rows = [
        (
            f"{arm}, {prompt} prompt" + ("" if graph == NO_GRAPH else f", {GRAPHS[graph]}"),
            tables.figure(row.get("objects_present")),
            tables.with_interval(row, "direction_accuracy"),
        )
        for arm, prompt, graph, row in tables.conditions(found)
        if _shown(arm, prompt, graph)
    ]
    head = ("arm, prompt, graph", "both objects present", "direction accuracy of g⁺")
    judge = found["headline"]["judge"]
    ground_truth_accuracy = found["judges"][judge]["ground_truth_accuracy"]
    note = (
        f"{found['triples']} val triples × {found['seeds']} seeds; judge `{judge}`, accuracy on ground truth "
        f"{tables.figure(ground_truth_accuracy)}; chance 0.5; 95 % intervals by bootstrap over triples."
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
