"""Texts in a chat template: which tokens are their own, what is cut, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sgpipe.backbones.chat import ChatTokenizer
from sgpipe.backbones.config import Backbone
from sgpipe.backbones.families import open_text_encoders, open_tokenizers
from sgpipe.backbones.loading import load_module, load_plain
from sgpipe.backbones.source import _WANTED, identity
from sgpipe.backbones.truncation import describe
from sgpipe.errors import ModelError
from tests.tiny import backbone_of, edit_json
from tests.tiny_flux2 import CHAT_TOKENS, write_flux2_pipeline

CPU = torch.device("cpu")
PROMPT = "a photo of dog above cat on a plain background"


@pytest.fixture(scope="module", params=["klein", "dev"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    return backbone_of(write_flux2_pipeline(folder, dev=request.param == "dev"), max_sequence_length=CHAT_TOKENS)


@pytest.fixture(scope="module")
def chat(backbone: Backbone) -> ChatTokenizer:
    found = open_tokenizers(backbone)
    assert isinstance(found, ChatTokenizer)
    return found


def pieces(chat: ChatTokenizer, text: str, rows: list[int]) -> str:
    ids = chat([text]).input_ids[0][rows].tolist()
    return "".join(chat.tokenizer.convert_ids_to_tokens(ids)).replace("Ġ", " ")


def test_names_are_found_as_whole_words_of_the_prompt_alone(chat: ChatTokenizer) -> None:
    """Not in the template ("user", "object"), not in other words; two mentions are two, and rows are those of the padded prompt."""
    text = "dog and category, a cat, hot dog"
    found = chat.mentions(text, ["dog", "cat", "hot dog", "user", "object", "AI"])
    said = {name: [pieces(chat, text, list(span)).strip() for span in spans] for name, spans in found.items()}
    assert said == {"dog": ["dog", "dog"], "cat": ["cat"], "hot dog": ["hot dog"], "user": [], "object": [], "AI": []}
    assert chat.mentions("(dog)", ["dog"])["dog"] and chat.mentions("a+b", ["a+b"])["a+b"]


def test_concepts_are_the_states_of_a_texts_own_words(backbone: Backbone, chat: ChatTokenizer) -> None:
    encoders = open_text_encoders(backbone, CPU)
    texts = ["dog", "in front of", ""]
    tokens, whole = chat(texts), encoders.prompts(texts).states
    words = chat.words(texts, tokens)
    assert [pieces(chat, text, row.nonzero().flatten().tolist()) for text, row in zip(texts[:2], words, strict=False)] == texts[:2]
    assert words[2].sum() == 1 and pieces(chat, "", words[2].nonzero().flatten().tolist()) in ("<|im_end|>", "[/INST]")
    for states, row, mask in zip(encoders.concepts(texts), whole, words, strict=True):
        assert torch.equal(states, row[mask])


def test_what_is_cut_is_told_with_the_template_counted(backbone: Backbone, chat: ChatTokenizer) -> None:
    (whole,), (short,) = (each.prompts([PROMPT]) for each in (chat, ChatTokenizer(chat.tokenizer, chat.render, chat.encoder, 30)))
    assert (whole.tokens, whole.truncated, whole.kept) == (int(chat([PROMPT]).attention_mask.sum()), False, len(PROMPT))
    before = len(chat.tokenizer(chat.frame[0], add_special_tokens=False).input_ids)
    tight = ChatTokenizer(chat.tokenizer, chat.render, chat.encoder, before + 5)
    (found,) = tight.prompts([PROMPT])
    assert PROMPT[: found.kept] == "a photo of dog above" and found.loses_names and found.tokens == whole.tokens
    said = describe([found])
    assert said is not None and f"raise backbone.max_sequence_length to {whole.tokens}" in said
    assert not ChatTokenizer(chat.tokenizer, chat.render, chat.encoder, before + 7).prompts([PROMPT])[0].loses_names
    assert short.truncated == (whole.tokens > 30)
    none = ChatTokenizer(chat.tokenizer, chat.render, chat.encoder, before)
    with pytest.raises(ModelError, match=rf"got {before}; no token of 'dog' is left .* raise it to \d+"):
        none.words(["dog"], none(["dog"]))


def test_a_template_that_does_not_hold_the_prompt_once_is_refused(chat: ChatTokenizer) -> None:
    for render in (lambda text: "fixed", lambda text: text + text):
        with pytest.raises(ModelError, match=r"its chat template shows a prompt \d times"):
            ChatTokenizer(chat.tokenizer, render, "Qwen3", 8).prompts(["dog"])


def test_placeholders_of_images_are_taken_out_as_by_the_pipeline(tmp_path: Path) -> None:
    backbone = backbone_of(write_flux2_pipeline(tmp_path / "tiny", dev=True), max_sequence_length=CHAT_TOKENS)
    chat: Any = open_tokenizers(backbone)
    assert chat.own("a [IMG]dog") == "a dog" and chat.mentions("a [IMG]dog", ["dog"]) == chat.mentions("a dog", ["dog"])


def test_an_encoding_that_is_not_finite_names_its_text(backbone: Backbone) -> None:
    encoders: Any = open_text_encoders(backbone, CPU)
    encoders._encoder.get_input_embeddings().weight.data.fill_(float("inf"))
    with pytest.raises(ModelError, match="text_encoder: its result for 'ball' is not finite"):
        encoders.prompts(["ball"])


def test_a_chat_model_of_too_few_layers_is_refused(tmp_path: Path) -> None:
    from transformers import Qwen3ForCausalLM

    folder = write_flux2_pipeline(tmp_path / "tiny")
    model = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder")
    model.config.num_hidden_layers, model.config.layer_types = 20, model.config.layer_types[:20]
    model.model.layers = model.model.layers[:20]
    model.save_pretrained(folder / "text_encoder")
    with pytest.raises(ModelError, match="has 20 layers; the states of layers 9, 18, 27 are needed"):
        open_text_encoders(backbone_of(folder, max_sequence_length=CHAT_TOKENS), CPU)


def test_parts_as_they_are_published_are_read(backbone: Backbone) -> None:
    """The VAE's config.json has an entry that its class does not know; the chat template is a file of its own, and counts."""
    folder = Path(backbone.model)
    assert (folder / "tokenizer" / "chat_template.jinja").is_file() and "*.jinja" in _WANTED
    before = identity(backbone, ("tokenizer",))
    template = (folder / "tokenizer" / "chat_template.jinja").read_text()
    (folder / "tokenizer" / "chat_template.jinja").write_text(template + " ")
    assert identity(backbone, ("tokenizer",)) != before
    (folder / "tokenizer" / "chat_template.jinja").write_text(template)
    load_module(backbone, "vae")


def test_an_unknown_entry_and_another_processor_are_refused(tmp_path: Path) -> None:
    folder = write_flux2_pipeline(tmp_path / "tiny", dev=True)
    backbone = backbone_of(folder)
    edit_json(folder / "vae" / "config.json", force_downcast=True)
    with pytest.raises(ModelError, match="force_downcast: unknown to this diffusers' AutoencoderKLFlux2"):
        load_module(backbone, "vae")
    edit_json(folder / "tokenizer" / "tokenizer_config.json", processor_class="LlavaProcessor")
    with pytest.raises(ModelError, match=r"describes a LlavaProcessor, and model_index\.json asks for a PixtralProcessor"):
        load_plain(backbone, "tokenizer")
