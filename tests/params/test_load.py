"""Reading params.yaml: what is accepted, and that every refusal names key, value and remedy."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta, Struct
from typer.testing import CliRunner

from sgpipe.arms.kinds import KINDS
from sgpipe.cli import app
from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks, LayerGroup
from sgpipe.params.load import SECTIONS, decode, parse_yaml, read_section, section_type, to_builtins
from sgpipe.params.show import load_all, resolved
from sgpipe.runs.config import Compute


class Inner(Struct, frozen=True, forbid_unknown_fields=True):
    rate: Annotated[float, Meta(gt=0, le=1)] = 0.5


class Example(Struct, frozen=True, forbid_unknown_fields=True):
    rank: Annotated[int, Meta(ge=1)]
    blocks: Blocks = Blocks(None)
    single_blocks: Blocks = Blocks(())
    kind: Literal["a", "b"] = "a"
    kinds: tuple[Literal["a", "b"], ...] = ()
    inner: Inner = Inner()
    groups: dict[str, LayerGroup] = {}

    def __post_init__(self) -> None:
        if self.kind == "b" and self.rank > 4:
            raise ValueError(f"rank: got {self.rank}; kind b allows at most 4")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"rank": "x"}, ["lora.rank", "got 'x'", "int"]),
        ({"rank": 0}, ["lora.rank", "got 0", ">= 1"]),
        ({}, ["lora", "missing required field `rank`"]),
        ({"rank": 1, "rnak": 2}, ["lora.rnak", "unknown key", "did you mean 'rank'"]),
        ({"rank": 1, "inner": {"rte": 1}}, ["lora.inner.rte", "unknown key", "did you mean 'rate'"]),
        ({"rank": 1, "inner": {"rate": 2.0}}, ["lora.inner.rate", "got 2.0", "<= 1"]),
        ({"rank": 1, "kind": "c"}, ["lora.kind", "got 'c'; valid: a, b"]),
        ({"rank": 1, "kinds": ["a", "c"]}, ["lora.kinds[1]", "got 'c'; valid: a, b"]),
        ({"rank": 1, "inner": {5: 1}}, ["lora.inner", "key 5 is no text; valid: rate"]),
        ({"rank": 1, "blocks": "9..3"}, ["lora.blocks", "got '9..3'", "write 3..9"]),
        ({"rank": 1, "groups": {"early": "6..0"}}, ["lora.groups", "got '6..0'", "write 0..6"]),
        ({"rank": 9, "kind": "b"}, ["params.yaml: lora.rank: got 9; kind b allows at most 4"]),
        ([1], ["lora", "got [1]"]),
        (None, ["lora", "got None"]),
    ],
)
def test_refusals(raw: object, says: list[str]) -> None:
    with pytest.raises(ParamsError) as caught:
        decode("lora", raw, Example, "params.yaml")
    assert str(caught.value).startswith("params.yaml: lora")
    for word in says:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_meanings_have_one_canonical_form() -> None:
    spelled = [{"rank": 1, "blocks": blocks} for blocks in (["7..12"], [7, 8, 9, 10, 11, 12], "[7,8,9..12]")]
    forms = [to_builtins(decode("lora", raw, Example, "p")) for raw in spelled]
    assert forms[0] == forms[1] == forms[2]
    assert forms[0]["blocks"] == "[7..12]"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("compute: {threads: 1}\ncompute: {threads: 2}\n", "line 2: key 'compute' is given twice"),
        ("compute: {threads: 1}\ncompte: {}\n", "compte: unknown section; did you mean 'compute'?"),
        ("compute: {threads: [\n", "not valid YAML"),
        ("- 1\n", "a mapping of sections is needed"),
        ("{}\n", "sections missing: compute"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ParamsError) as caught:
        read_section(write(tmp_path / "params.yaml", text), "compute", Compute)
    assert says in str(caught.value)


BAD_VALUES = [
    ("!!int abc", "'abc' is no int"),
    ("!!int 9:99:99", "'9:99:99' is no int"),
    ("!!int 0x", "'0x' is no int"),
    ("!!int ''", "'' is no int"),
    ("!!float x", "'x' is no float"),
    ("!!bool maybe", "'maybe' is no bool"),
    ("2024-13-45", "'2024-13-45' is no timestamp"),
    ("2001-01-01T99:00:00", "'2001-01-01T99:00:00' is no timestamp"),
    ('"\\ud800"', r"'\ud800' has half a surrogate pair"),
    (".nan", "'.nan' is no finite number"),
    ("1e999", "'1e999' is no finite number"),
]


@pytest.mark.parametrize(("value", "says"), BAD_VALUES)
def test_a_value_that_its_tag_does_not_fit_is_refused_by_line(tmp_path: Path, value: str, says: str) -> None:
    for text in (f"compute:\n  threads: {value}\n", f"compute:\n  {value}: 1\n", f"compute:\n  - [{value}]\n"):
        with pytest.raises(ParamsError) as caught:
            read_section(write(tmp_path / "params.yaml", text), "compute", Compute)
        assert f"params.yaml: line 2: not valid YAML: {says}" in str(caught.value)
    with pytest.raises(ParamsError, match=r"line 2: not valid YAML: '9{99}… is no int") as caught:
        read_section(write(tmp_path / "params.yaml", f"compute:\n  threads: {'9' * 5000}\n"), "compute", Compute)


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "- " * 5000, "? " * 5000, "&x [" * 2000, '"\\U00110000"'])
@pytest.mark.filterwarnings("error")
def test_what_the_parser_itself_stumbles_over_is_one_line(text: str) -> None:
    with pytest.raises(ParamsError, match=r"^p: .*not valid YAML: .+") as caught:
        parse_yaml(f"compute: {text}", "p")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["curate: &a [*a]", "curate: &a {quality: *a}", "&a {curate: {quality: [*a]}}"])
def test_a_value_that_holds_itself_is_refused(text: str) -> None:
    with pytest.raises(ParamsError, match=r"^p: line 1: not valid YAML: a value holds itself"):
        parse_yaml(text, "p")
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: *x}}", "p") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_any_mutation_of_the_parameters_is_read_or_refused_in_one_line(repo_root: Path) -> None:
    """Seeded mutations of some sections: values, tags, brackets and bytes are put in, exchanged and cut out."""
    text = "\n".join(
        part
        for part in (repo_root / "params.yaml").read_text(encoding="utf-8").split("\n\n")
        if part.startswith(("data", "canonicalize", "curate", "compute", "statistics"))
    )
    values = [value for value, _ in BAD_VALUES] + [*"[]{}:,&*!|>%@`\"'#-?~", "&a [*a]", "<<: *x", "!!set {a}", "!!binary x"]
    outcomes = set()
    for seed in range(150):
        draw = random.Random(seed)
        at, cut = draw.randrange(len(text)), draw.choice([0, 0, 1, 5])
        if seed % 2:
            at, end = draw.choice([match.span() for match in re.finditer(r"(?<=: )[^\n,{}\[\]]+", text)])
            cut = end - at
        mutated = text[:at] + draw.choice(values) + text[at + cut :]
        try:
            raw = parse_yaml(mutated, "p")
            for name in raw:
                if name in SECTIONS:
                    decode(name, raw[name], section_type(name), "p")
            outcomes.add("read")
        except ParamsError as error:
            assert "\n" not in str(error) and str(error).encode(), mutated
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="no such file; run from the repository root"):
        read_section(tmp_path / "params.yaml", "compute", Compute)
    with pytest.raises(ParamsError, match=r"cannot be read .*; give a file"):
        read_section(tmp_path, "compute", Compute)


def test_plain_words_and_numbers_are_those_of_yaml_1_2() -> None:
    text = "words: [on, off, yes, no]\nrate: 1e-4\nblocks: [7..12]\ntrue: false\n"
    assert parse_yaml(text, "p") == {"words": ["on", "off", "yes", "no"], "rate": 1e-4, "blocks": ["7..12"], True: False}


def test_what_dvc_writes_for_one_knob_leaves_all_others_alone(repo_root: Path, tmp_path: Path) -> None:
    """`dvc exp run -S` rewrites params.yaml and drops the quotes around "on"."""
    from dvc.utils.serialize import modify_yaml

    path = write(tmp_path / "params.yaml", (repo_root / "params.yaml").read_text(encoding="utf-8"))
    before = resolved(path)
    with modify_yaml(str(path)) as params:
        params["curate"]["seed"] = 41
    assert '"on"' not in path.read_text(encoding="utf-8")
    before["curate"]["seed"] = 41
    assert resolved(path) == before


def test_the_committed_parameters_resolve(repo_root: Path) -> None:
    sections = load_all(repo_root / "params.yaml")
    assert list(sections) == list(SECTIONS)
    shown = resolved(repo_root / "params.yaml")
    assert set(shown) == set(SECTIONS)


@pytest.fixture
def with_blocks(repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the committed parameters with a section `example` of the given text."""
    monkeypatch.setitem(SECTIONS, "example", f"{__name__}:Example")
    text = (repo_root / "params.yaml").read_text(encoding="utf-8")
    return lambda example: write(tmp_path / "params.yaml", f"{text}\nexample: {example}\n")


def test_show_spells_blocks_out_by_stream(with_blocks: Callable[[str], Path]) -> None:
    path = with_blocks("{rank: 1, single_blocks: all, groups: {early: 0..2, late: [16..17, 18]}}")
    done = CliRunner().invoke(app, ["params", "show", "example", "--params", str(path)], catch_exceptions=False)
    shown = parse_yaml(done.output, "shown")["example"]
    assert shown["blocks"] == list(range(19))
    assert shown["single_blocks"] == [0, 1]
    assert shown["groups"] == {"early": [0, 1, 2], "late": [16, 17, 18]}
    groups = "{single: 0..2, end: {single_blocks: all, blocks: 18}}"
    shown = resolved(with_blocks(f"{{rank: 1, groups: {groups}}}"))["example"]
    assert shown["groups"] == {"single": [0, 1, 2], "end": {"blocks": [18], "single_blocks": [0, 1]}}
    assert shown["inner"] == {"rate": 0.5}


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("{rank: 1, blocks: 18..19}", r"example\.blocks: block 19 is out of range; valid: 0\.\.18"),
        ("{rank: 1, single_blocks: 2}", r"example\.single_blocks: block 2 is out of range; valid: 0\.\.1"),
        ("{rank: 1, groups: {late: 30}}", r"example\.groups\.late: block 30 is out of range"),
        ("{rank: 1, groups: {late: {single_blocks: 2}}}", r"example\.groups\.late\.single_blocks: block 2 .*valid: 0\.\.1"),
        ("{rank: 1, groups: {late: {singles: 2}}}", r"example\.groups\.\*: got singles; valid: blocks, single_blocks"),
    ],
)
def test_blocks_outside_the_model_are_refused(with_blocks: Callable[[str], Path], example: str, says: str) -> None:
    with pytest.raises(ParamsError, match=says):
        resolved(with_blocks(example))


def structs_of(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.StructType]:
    """The structs that a type is made of, itself first."""
    if isinstance(kind, msgspec.inspect.StructType):
        yield kind
        parts = [field.type for field in kind.fields]
    else:
        names = ("type", "types", "item_type", "item_types", "value_type")
        found = [getattr(kind, name, ()) for name in names]
        parts = [part for each in found for part in (each if isinstance(each, tuple) else (each,))]
    for part in parts:
        yield from structs_of(part)


@pytest.mark.parametrize("name", list(SECTIONS))
def test_every_knob_is_described(name: str) -> None:
    """Each field carries a description, from which the parameter reference is made; sections of sections describe themselves."""
    kinds = [kind.options for kind in KINDS.values()] if name == "arms" else [section_type(name)]
    for struct in (each for kind in kinds for each in structs_of(msgspec.inspect.type_info(kind))):
        assert struct.cls.__doc__, f"{struct.cls.__name__} has no docstring"
        for field in struct.fields:
            schema = getattr(field.type, "extra_json_schema", None) or {}
            nested = isinstance(field.type, msgspec.inspect.StructType)
            assert nested or schema.get("description"), f"{struct.cls.__name__}.{field.name} has no description"
