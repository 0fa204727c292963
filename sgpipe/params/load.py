"""Read params.yaml strictly: unknown keys, wrong types and impossible values are refused by key, value and remedy."""

import difflib
import math
import re
import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin, overload

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import Node

from sgpipe.errors import ParamsError
from sgpipe.params.blocks import Blocks, LayerGroup
from sgpipe.params.check import check
from sgpipe.params.moved import refuse_moved
from sgpipe.relations.predicates import use_relations

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
PARAMS: Final = Path("params.yaml")
SECTIONS: Final[dict[str, str]] = {
    "data": "sgpipe.datasets.config:Data",
    "canonicalize": "sgpipe.datasets.config:Canonicalize",
    "curate": "sgpipe.graphs.config:Curate",
    "negatives": "sgpipe.graphs.config:Negatives",
    "backbone": "sgpipe.backbones.config:Backbone",
    "cache_prompts": "sgpipe.backbones.config:CachePrompts",
    "cache_latents": "sgpipe.backbones.config:CacheLatents",
    "graph_encoder": "sgpipe.graph_encoder.config:GraphEncoder",
    "maps": "sgpipe.attention_maps.config:Maps",
    "saliency": "sgpipe.attention_maps.config:Saliency",
    "saliency_noised": "sgpipe.attention_maps.config:NoisedMaps",
    "probes": "sgpipe.probes.config:Probes",
    "graph_tokens": "sgpipe.graph_encoder.config:GraphTokens",
    "lora": "sgpipe.arms.config:Lora",
    "sgdiff": "sgpipe.sgdiff.config:SgDiffParams",
    "train": "sgpipe.training.config:Train",
    "arms": "sgpipe.arms.config:Arms",
    "evaluate": "sgpipe.evaluation.config:Evaluate",
    "judge": "sgpipe.evaluation.config:JudgeParams",
    "quality": "sgpipe.evaluation.config:Quality",
    "statistics": "sgpipe.evaluation.config:Statistics",
    "ablation": "sgpipe.evaluation.config:Ablation",
    "localise": "sgpipe.localisation.config:Localise",
    "study": "sgpipe.evaluation.config:Study",
    "report": "sgpipe.report.config:Report",
    "compute": "sgpipe.runs.config:Compute",
    "tracking": "sgpipe.runs.config:Tracking",
}
"""The sections of params.yaml and where each is defined. Named by string, so that a stage imports only what it reads."""
SHOWN = 100
"""Characters of a refused value that an error shows."""
UNUSED = "presets/unused/"
"""Paths that begin so name no file, as null does: DVC needs one that exists where a stage may read a file or not."""
_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`(?P<path>\$[^`]*)`)?$", re.DOTALL)


def section_type(name: str) -> type:
    """What describes section `name`: a struct, or a class that has `decode` of its own (`arms`, whose kinds have theirs)."""
    module, _, attribute = SECTIONS[name].partition(":")
    return getattr(import_module(module), attribute)


class _Constructor(SafeConstructor):
    """Refuses values by line: those that their tag does not fit or that hold themselves, numbers that are not finite, and text
    that UTF-8 cannot hold. Values are made depth first, so an unfinished one that is met again holds itself.
    """

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        problem, value = "a value holds itself", None
        if node not in self.recursive_objects:
            try:
                value = super().construct_object(node, deep=True)
                problem = ""
            except (YAMLError, RecursionError):
                raise
            except Exception as error:  # int(), float(), datetime() and look-ups raise what they like
                problem = f"{_shown(node.value)} is no {str(node.tag).rpartition(':')[2]} ({error})"
        if isinstance(value, float) and not math.isfinite(value):
            problem = f"{_shown(node.value)} is no finite number"
        elif isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            problem = f"{_shown(value)} has half a surrogate pair, which is no character"
        if problem:
            raise ConstructorError(None, None, problem, node.start_mark)
        return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping that `text` holds, read as DVC reads it: YAML 1.2, where `on` is a word and `1e-4` a number.

    DVC writes params.yaml anew for every `-S` and quotes only what YAML 1.2 would misread. Raises `ParamsError`; `source` names
    the text in it.
    """
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            raw = yaml.load(text)
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1]
        raise ParamsError(f"{source}: line {error.problem_mark.line + 1}: key {key!r} is given twice; keep one") from None
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ParamsError(f"{source}: {line}not valid YAML: {error.problem or error.context}") from None
    except (YAMLError, RecursionError, ValueError) as error:  # ValueError: of chr(), for an escape above U+10FFFF
        said = "brackets are nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ParamsError(f"{source}: not valid YAML: {said}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{source}: a mapping of sections is needed, got {type(raw).__name__}")
    return raw


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; anything else is refused."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run from the repository root or give --params") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path}: not valid YAML: no UTF-8 text ({error})") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); give a file with --params") from None


def _at(raw: Any, path: str) -> tuple[str, Any]:
    """Dotted key and the value there, for a msgspec path such as `$.groups[...]` or `$.fractions.train`."""
    key = ""
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]", path):
        if name:
            key += f".{name}"
            raw = raw.get(name) if isinstance(raw, dict) else None
        elif index != "...":
            key += f"[{index}]"
            raw = raw[int(index)] if isinstance(raw, list) else None
        else:
            key += ".*"
    return key.lstrip("."), raw


def _close(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(sorted(valid))}"


def _used(raw: Any) -> Any:
    """`raw` with null in place of the paths that name no file."""
    if isinstance(raw, dict):
        return {key: _used(value) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [_used(value) for value in raw]
    return None if isinstance(raw, str) and raw.startswith(UNUSED) else raw


def decode(section: str, raw: Any, kind: type[T], source: str) -> T:
    """One section from plain values. Raises `ParamsError` with the key's full path, what was given and what is valid."""
    if (own := getattr(kind, "decode", None)) is not None:
        return own(section, raw, source)
    try:
        return msgspec.convert(_used(raw), kind, dec_hook=lambda held, value: held.parse(value))
    except msgspec.ValidationError as error:
        match = _AT.match(str(error))
        assert match is not None
        key, given = _at(raw, match["path"] or "$")
        full, what, expected = f"{section}.{key}".rstrip("."), match["what"], _type_at(kind, key)
        struct = _struct(expected)
        valid = list(struct.__struct_encode_fields__) if struct else []
        named, _, rest = what.partition(": ")
        if match["key"]:
            keys = ", ".join(str(name) for name in given if not isinstance(name, str))
            said = f"{full}: key {keys} is no text{_close(keys, valid)}"
        elif unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what):
            said = f"{full}.{unknown[1]}: unknown key{_close(unknown[1], valid)}"
        else:
            if named in valid:
                full, what = f"{full}.{named}", rest
            if what.startswith("Invalid enum value"):
                what = f"valid: {', '.join(map(str, _choices(expected)))}"
            got = "" if what.startswith("got ") or isinstance(given, dict) else f"got {_shown(given)}; "
            said = f"{full}: {got}{what[:1].lower()}{what[1:]}"
        raise ParamsError(f"{source}: {said}") from None


def _struct(kind: Any) -> Any:
    """The struct in an annotation such as `Annotated[Crop, ...]` or `dict[str, Crop]`, or None."""
    if hasattr(kind, "__struct_fields__"):
        return kind
    return next((found for part in get_args(kind) if (found := _struct(part))), None)


def _type_at(kind: Any, key: str) -> Any:
    """The annotation of the field with this dotted key; places in a list are those of the list."""
    for part in re.sub(r"\[\d+\]|\.\*", "", key).split(".") if key else []:
        kind = {field.name: field.type for field in msgspec.structs.fields(_struct(kind))}[part]
    return kind


def _choices(kind: Any) -> tuple[Any, ...]:
    """The values that an annotation's `Literal` allows."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for part in get_args(kind) for choice in _choices(part))


def read_sections(path: Path, needed: Iterable[str]) -> dict[str, Any]:
    """The sections of a file by name, in the order of `SECTIONS`, checked against one another.

    All are read, so that the first stage of a pipeline refuses what a later one could not do. Raises `ParamsError` for one that is
    unknown, or among `needed` and missing.
    """
    raw = read_yaml(path)
    refuse_moved(raw, str(path))
    for given in raw:
        if given not in SECTIONS:
            raise ParamsError(f"{path}: {given}: unknown section{_close(str(given), list(SECTIONS))}")
    if missing := [name for name in needed if name not in raw]:
        raise ParamsError(f"{path}: sections missing: {', '.join(missing)}; `git checkout {path}` restores the default")
    found: dict[str, Any] = {}
    for name in (name for name in SECTIONS if name in raw):
        found[name] = decode(name, raw[name], section_type(name), str(path))
        if name == "data":  # the sections after it name relation classes
            use_relations(found[name].relations)
    check(found, str(path))
    return found


def read_section(path: Path, name: str, kind: type[T]) -> T:
    """Section `name` of a file, of type `kind`. Raises `ParamsError` as `read_sections` does."""
    return cast(T, read_sections(path, [name])[name])


@overload
def read_params(a: type[A], /) -> A: ...
@overload
def read_params(a: type[A], b: type[B], /) -> tuple[A, B]: ...
@overload
def read_params(a: type[A], b: type[B], c: type[C], /) -> tuple[A, B, C]: ...
@overload
def read_params(a: type[A], b: type[B], c: type[C], d: type[D], /) -> tuple[A, B, C, D]: ...
def read_params(*kinds: type) -> Any:
    """The sections of params.yaml of these types, one or a tuple of them. Raises `ParamsError` as `read_sections` does."""
    names = {at: name for name, at in SECTIONS.items()}
    wanted = [names[f"{kind.__module__}:{kind.__name__}"] for kind in kinds]
    found = read_sections(PARAMS, wanted)
    return found[wanted[0]] if len(wanted) == 1 else tuple(found[name] for name in wanted)


def to_builtins(value: Any) -> Any:
    """A section as plain values in canonical form (block sets spelled one way), for printing and hashing."""
    return msgspec.to_builtins(value, enc_hook=_unhook)


def _unhook(value: Any) -> Any:
    if isinstance(value, Blocks):
        return str(value)
    if isinstance(value, LayerGroup):
        return value.plain()
    raise TypeError(f"params cannot hold {type(value)}")
