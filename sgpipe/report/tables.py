"""Metrics as rows of text, the same for the page and for the README."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from sgpipe.errors import DataError
from sgpipe.evaluation.config import HEADLINE, Graph, Prompt
from sgpipe.evaluation.diversity import FEWEST_TRIPLES
from sgpipe.evaluation.published import PUBLISHED
from sgpipe.evaluation.quality import FEWEST_IMAGES, NAMES
from sgpipe.evaluation.sampling_plan import BASE, NO_GRAPH
from sgpipe.evaluation.sensitivity import CHANCE
from sgpipe.evaluation.summary import OWN
from sgpipe.localisation.table import COLUMNS as METHODS


@dataclass(frozen=True)
class Table:
    """A table: caption, column heads, rows whose first cell is their head, and a note below."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    predicates: tuple[str, ...] = ()
    """The class of each row, where rows are of classes: what the page filters by."""

    def markdown(self) -> str:
        """As Markdown; the caption and the note stand before and after."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n\n".join(part for part in (self.caption, body, self.note) if part)


def figure(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def figures(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    """Some figures of a row, each as a number or a dash."""
    return tuple(figure(row[name]) for name in names)


def with_interval(row: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """`value [low, high]`."""
    if row.get(name) is None:
        return "–"
    return f"{row[name]:.{digits}f} [{figure(row[f'{name}_low'], digits)}, {figure(row[f'{name}_high'], digits)}]"


def p_value(value: float | None) -> str:
    """A p value; small ones as a bound."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def conditions(found: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Arm, prompt, graph and figures, in the order in which one asks: the base first, neutral prompts first, g⁺ first."""
    prompts, graphs = get_args(Prompt), (NO_GRAPH, *get_args(Graph))
    rows = [
        (arm, prompt, graph, row)
        for arm, by_prompt in found["arms"].items()
        for prompt, by_graph in by_prompt.items()
        for graph, row in by_graph.items()
    ]
    return sorted(rows, key=lambda row: (row[0] != BASE, row[2] != NO_GRAPH, row[0], prompts.index(row[1]), graphs.index(row[2])))


def headline(found: Mapping[str, Any]) -> Table:
    """Every arm, prompt and graph by the headline judge."""
    rows = [
        (
            arm,
            prompt,
            graph,
            figure(row.get("objects_present")),
            with_interval(row, "direction_accuracy"),
            figure(row["direction_accuracy_corrected"]),
            str(row["direction_accuracy_images"]),
            with_interval(row, "accuracy"),
        )
        for arm, prompt, graph, row in conditions(found)
    ]
    known = found["judges"][found["headline"]["judge"]]
    refused = ", ".join(known["refused"]) or "none"
    return Table(
        f"What the images show, by judge {found['headline']['judge']} (right on {figure(known['ground_truth_accuracy'])} of "
        "ground-truth images)",
        ("arm", "prompt", "graph", "both objects", "direction accuracy of g⁺", "corrected", "images", "any class as g⁺"),
        tuple(rows),
        f"{found['triples']} triples, {found['seeds']} seeds each; intervals by bootstrap over triples with seeds nested. Roles: "
        "images with both objects in the right kind of arrangement, directional classes; under the graph “negative” a low figure "
        "is control, elsewhere a half is chance. Corrected for the judge's own errors (Rogan–Gladen). Classes the judge may "
        f"not judge, left out of the last column: {refused}.",
    )


def comparisons(found: Mapping[str, Any]) -> Table:
    """Paired comparisons of direction accuracy."""
    rows = [
        (
            pair.replace("_", " "),
            prompt,
            with_interval(row, "difference"),
            str(row["pairs"]),
            f"{row['first_only']} : {row['second_only']}",
            p_value(row["p"]),
            p_value(row["p_holm"]),
        )
        for prompt, several in found["comparisons"].items()
        for pair, row in several.items()
    ]
    return Table(
        "Paired comparisons of roles on the same triples, seeds and noise",
        ("first - second", "prompt", "difference", "pairs", "won : lost", "p", "p (Holm)"),
        tuple(rows),
        "McNemar's test with images clustered by triple (Durkalski 2003), adjusted over all comparisons of a prompt.",
    )


def sensitivity(found: Mapping[str, Any]) -> Table:
    """MSE with its control, and the 2×2 by judge; the predecessor's figures in the first row."""
    rows = [("predecessor, 20 epochs", "relational", "8613.7", "not reported", "–", "CLIP", "0.494", "-0.022", *("–",) * 4)]
    for arm, prompts in found["sensitivity"].items():
        for prompt, row in prompts.items():
            changed = (figure(row["mse"], 1), figure(row["mse_other_seed"], 1), with_interval(row, "mse_ratio", 2))
            for judge, of in row["judges"].items():
                rows.append((arm, prompt, *changed, judge, with_interval(of, "accuracy"), *figures(of, "margin", *CHANCE)))
    chance = ", ".join(f"{name} {value:.3f}" for name, value in CHANCE.items())
    return Table(
        "Does the image change with the graph, and towards it",
        ("arm", "prompt", "MSE(I⁺, I⁻)", "MSE other seed", "ratio", "judge", "c⁺ over c⁻ on I⁺", "margin", *CHANCE),
        tuple(rows),
        "MSE on 0–255 pixels; two unrelated images of deviation σ differ by 2σ², so only the ratio to what another seed changes "
        f"says that the graph did something. Chance of the last four: {chance}. No calibration is needed here.",
    )


def diversity(found: Mapping[str, Any]) -> Table:
    """Distances between seeds of one graph beside those of the base, for the graphs that an arm is meant to be given."""
    rows = [
        (
            *(arm, prompt, graph),
            *(figure(row["pixels"], 1), with_interval(row, "pixels_ratio", 2)),
            *(figure(row.get("features")), with_interval(row, "features_ratio", 2)),
            *(str(row["pairs"]), f"{row['compared_triples']} of {row['triples']}"),
        )
        for arm, by_prompt in found["diversity"].items()
        for prompt, by_graph in by_prompt.items()
        for graph, row in by_graph.items()
        if graph in OWN
    ]
    reference = found["diversity"].get(BASE, {}).get("relational", {}).get(NO_GRAPH)
    by = f"1 − cosine of {found['feature_judge']}'s image embeddings" if found["feature_judge"] else "none, no judge gives any"
    return Table(
        "Diversity: do seeds of one graph give different images",
        ("arm", "prompt", "graph", "MSE of seeds", "to base", "features", "to base", "pairs", "triples compared"),
        tuple(rows),
        "Pairs of seeds of one triple whose images both show the whole graph g⁺; MSE on 0–255 pixels; features: "
        f"{by}. To base: ratio to such pairs of the base under the relational prompt, on triples with a pair on both sides; 1 is "
        f"as diverse as the base, 0 the same image from every seed. A dash: fewer than {FEWEST_TRIPLES} such triples; "
        f"the base has pairs on {reference['triples'] if reference else 0}.",
    )


def quality(found: Mapping[str, Any]) -> Table:
    """Quality of each arm's images beside ground-truth ones, and the published figures of other systems."""
    of = found["quality"]
    rows = {"ground-truth images": of["real"], **{f"{arm}, {row['prompt']} prompt": row for arm, row in of["arms"].items()}}
    columns = [name for names in NAMES.values() for name in names if any(name in row for row in rows.values())]

    def cell(row: Mapping[str, Any], name: str) -> str:
        if f"{name}_deviation" in row:
            return f"{figure(row[name])} ± {figure(row[f'{name}_deviation'])}"
        return figure(row.get(name)) + ("*" if row["few_images"] and row.get(name) is not None else "")

    shown = [
        (
            *(label, str(row["images"]), *(cell(row, name) for name in columns), figure(row.get("clip_score"), 1)),
            *(figure(row.get(name), 2) for name in ("pixels_ratio", "features_ratio")),
            figure(row.get("duplicates")),
        )
        for label, row in rows.items()
    ]
    return Table(
        "Quality of the images",
        ("images of", "n", *(name.replace("_", " ") for name in columns), "CLIP score", "MSE of seeds to base", "features to base",
         "duplicates"),
        tuple(shown),
        f"Compared with {of['reference_images']} crops of train triples; of each arm the images that count for it. Figures named "
        "after the tower are Fréchet distance, kernel distance and Inception Score by an open_clip model's features, no FID of "
        f"Inception. * fewer than {FEWEST_IMAGES} images on one side: biased upwards, and comparable only at equal numbers.",
    )  # fmt: skip


def published_quality() -> Table:
    """Published figures, by data set and size."""
    rows = sorted(PUBLISHED, key=lambda row: (row.data != "Visual Genome", row.pixels or 0))
    return Table(
        "Published, other protocols: no row here compares with one above",
        ("system", "data", "pixels", "Inception Score", "FID", "stated in"),
        tuple(
            (*(row.system, row.data, "–" if row.pixels is None else str(row.pixels)), row.inception_score,
             "–" if row.fid is None else str(row.fid), row.source)
            for row in rows
        ),
        "Numbers of images, reference sets and resizing differ or are not stated.",
    )  # fmt: skip


def calibrations(found: Mapping[str, Any]) -> Table:
    """Each judge over all classes."""
    shown = ("ground_truth_accuracy", "abstained", "chance_level", "chance_abstained", "order_bias")
    rows = tuple(
        (name, *figures(row, *shown), str(row["classes_used"]), ", ".join(row["refused"]) or "none")
        for name, row in found["judges"].items()
    )
    neither = ("neither", "chance_level", "neither (chance_level)")
    truth = found.get("ground_truth")
    unread = f" {truth['triples'] - truth['read']} of {truth['triples']} triples have none that can be read." if truth else ""
    return Table(
        "What the judges are worth, on ground-truth validation images",
        ("judge", "ground_truth_accuracy", *neither, "order bias", "classes used", "refused"),
        rows,
        "Ceiling: c⁺ chosen over c⁻ on the triple's own image. Floor: c⁺ chosen on another triple's image, of those where it "
        "chooses; a half is no preference. Order bias: right as told less right as told from the object's side." + unread,
    )


def by_predicate(rows: list[dict[str, Any]], calibration: Mapping[str, Mapping[str, Any]], arms: Mapping[str, str]) -> Table:
    """A row per class: calibration, then accuracy of each arm."""
    graphs = {arm: "positive" if given == "graphs" else "none" for arm, given in arms.items()}
    cells = {(row["predicate"], row["arm"]): row for row in rows if graphs.get(row["arm"]) == row["graph"]}

    def against(row: Mapping[str, Any]) -> str:
        return "–" if row.get("p_holm") is None else f"{row['difference']:+.2f}, p {p_value(row['p_holm'])}"

    made = []
    for predicate in dict.fromkeys(row["predicate"] for row in rows):
        known = figures(calibration[predicate], "ground_truth_accuracy", "chance_level", "abstained")
        of_arms = [cells[predicate, arm] for arm in arms]
        shown = [with_interval(row, "accuracy", 2) if row["used"] else "refused" for row in of_arms]
        made.append((predicate, *known, *shown, *map(against, of_arms[1:])))
    others = [f"{arm} − base" for arm in list(arms)[1:]]
    return Table(
        "By class: the judge's calibration and the share of images as g⁺ has it",
        ("class", "ground_truth_accuracy", "chance_level", "neither", *arms, *others),
        tuple(made),
        "Neutral prompt; g⁺ for arms that are given graphs. Against base: pairs won less pairs lost, as the mean share over "
        "triples, and McNemar's p adjusted over classes (Holm).",
        tuple(row[0] for row in made),
    )


def ablation(found: Mapping[str, Any]) -> Table:
    """Epochs on the same triples and seeds, and each against the one before."""
    tests = {pair.split("-")[0]: row for pair, row in found["comparisons"].items()}
    rows = tuple(
        (
            epoch,
            with_interval(row, "direction_accuracy"),
            with_interval(row, "swap_follow_rate"),
            figure(row.get("objects_present")),
            with_interval(row, "mse_ratio", 2),
            with_interval(tests[epoch], "difference") if epoch in tests else "–",
            p_value(tests[epoch]["p"]) if epoch in tests else "–",
        )
        for epoch, row in sorted(found["epochs"].items(), key=lambda item: int(item[0]))
    )
    return Table(
        "Ablation of epochs",
        ("epochs", "direction accuracy of g⁺", "roles as g⁻", "both objects", "MSE ratio", "against the row above", "p"),
        rows,
        f"{found['triples']} triples, {found['seeds']} seeds, {found['runs']} training run(s); judge {found['judge']}. "
        "The predecessor compared 10 epochs on 10 samples (MSE 6460, CLIP 60 %, margin 1.01) with 20 epochs on 160 samples "
        "(MSE 8613.7, CLIP 49.4 %, margin −0.022): different samples, so its two rows say nothing about epochs. Here all epochs "
        "sample the same triples with the same noise.",
    )


def probes(found: Mapping[str, Any], value: str, caption: str) -> Table:
    """`value` of each probe and feature, a column per layer group."""
    cells = found["cells"]
    groups = list(dict.fromkeys(g for features in cells.values() for row in features.values() for g in row))
    rows = tuple(
        (probe, feature, *(figure(row[group][value]) if group in row else "–" for group in groups))
        for probe, features in cells.items()
        for feature, row in features.items()
    )
    return Table(caption, ("probe", "feature", *groups), rows)


def sweep(found: Mapping[str, Any]) -> Table:
    """Arms over all training seeds."""
    rows = tuple(
        (
            f"{arm}, {row['prompt']} prompt",
            with_interval(row, "direction_accuracy"),
            ", ".join(map(figure, row["direction_accuracy_by_seed"].values())),
            *(with_interval(row, name) for name in ("swap_follow_rate", "shuffled_direction_accuracy", "objects_present")),
            str(row["direction_accuracy_images"]),
        )
        for arm, row in found["arms"].items()
    )
    rates = ("swap-follow rate", "direction accuracy, another's graph", "both objects")
    names = ", ".join(f"{name} ({each['commit'][:7]})" for name, each in found["experiments"].items())
    return Table(
        "",
        ("", "direction accuracy of g⁺", "by training seed", *rates, "images counted"),
        rows,
        f"{found['training_seeds']} training seeds × {found['triples']} triples × {found['seeds']} sampling seeds; judge "
        f"`{found['judge']}`. 95 % intervals over training seeds and triples, which are crossed (Hillis 2007); of a single "
        f"training seed over triples alone. Experiments: {names}.",
    )


def localisation(found: Mapping[str, Any]) -> Table:
    """The table of `rows`, `correlations` and `verdict`, for the page and the README."""
    shown = [name for name in METHODS if any(row.get(name) is not None for row in found["rows"])]
    rows = [
        (
            f"{row['group']} blocks {min(row['blocks'])}–{max(row['blocks'])}",
            *(with_interval(row, name, 2).replace(" [–, –]", "") for name in shown),
        )
        for row in found["rows"]
    ]
    said = found["verdict"]
    rows.append(("“middle layers carry too little”", *(said.get(name, "–") for name in shown)))
    ranks = "; ".join(f"{each['sentence']} (ρ {with_interval(each, 'rho', 2)})" for each in found["correlations"])
    parts = (
        found.get("sentence", ""),
        "95 % intervals by bootstrap over triples or groups of them; of placement over training seeds crossed with triples.",
        f"Ranks of blocks: {ranks}." if ranks else "",
    )
    caption = "Where the relation is read, written and used, by layer group"
    return Table(
        caption, ("layer group", *(METHODS[name] for name in shown)), tuple(rows), " ".join(part for part in parts if part)
    )


GRAPHS = {"positive": "g⁺", "negative": "g⁻", "empty": "empty graph", "shuffled": "another triple's graph"}


def headline_conditions(found: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """The conditions that answer the question: graphs under neutral prompts, words where no graph is given."""
    return [
        (arm, prompt, graph, row)
        for arm, prompt, graph, row in conditions(found)
        if prompt == (HEADLINE if graph != NO_GRAPH else "relational") or (arm == BASE and prompt == HEADLINE)
    ]


def headline_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `short_headline` as a script reads them: names as in the metrics, figures as numbers or None."""
    names = ("objects_present", "direction_accuracy", "direction_accuracy_low", "direction_accuracy_high")
    return [
        {"arm": arm, "prompt": prompt, "graph": graph, **{name: row.get(name) for name in names}}
        for arm, prompt, graph, row in headline_conditions(found)
    ]


def short_headline(found: Mapping[str, Any]) -> Table:
    """`headline_conditions`, for the README and the end of a run; all conditions stand in `headline`."""
    rows = tuple(
        (
            f"{arm}, {prompt} prompt" + ("" if graph == NO_GRAPH else f", {GRAPHS[graph]}"),
            figure(row.get("objects_present")),
            with_interval(row, "direction_accuracy"),
        )
        for arm, prompt, graph, row in headline_conditions(found)
    )
    judge = found["headline"]["judge"]
    return Table(
        "",
        ("arm, prompt, graph", "both objects present", "direction accuracy of g⁺"),
        rows,
        f"{found['triples']} val triples × {found['seeds']} seeds; judge `{judge}`, accuracy on ground truth "
        f"{figure(found['judges'][judge]['ground_truth_accuracy'])}; chance 0.5; 95 % intervals by bootstrap over triples.",
    )


END = "<!-- end of table -->"


def begin(name: str) -> str:
    """The line before the table of this name in a text."""
    return f"<!-- table: {name} -->"


def replace_table(text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers of `name`. Raises `DataError` without just these two."""
    before, start, rest = text.partition(begin(name))
    _, end, after = rest.partition(END)
    if not end or begin(name) in rest:
        raise DataError(
            f"the text needs one line {begin(name)!r} and after it one line {END!r}; put them where the table is to stand"
        )
    return f"{before}{start}\n\n{table}\n\n{END}{after}"
