"""Tokenizers built from GGUF metadata, against transformers and against the algorithms themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from shoal.tokenizer.byte_alphabet import CHAR_OF_BYTE, spell_bytes
from shoal.tokenizer.definition import TokenizerDefinition
from shoal.tokenizer.errors import TokenizerError
from shoal.tokenizer.gguf_tokenizer import build_definition
from shoal.tokenizer.loading import load_definition
from shoal.tokenizer.pre_tokenizers import PRE_TOKENIZATIONS, build_pre_tokenizer, find_pre_tokenization
from support.gguf_files import BYTE, CONTROL, LLAMA_KEYS, NORMAL, USER_DEFINED, sentencepiece_keys, write_gguf
from support.texts import TEXTS

BEGIN = "<\uff5cbegin\uff5c>"  # as one family spells it, outside of the byte alphabet


def byte_level_keys(**extra: Any) -> dict[str, Any]:
    """A byte-level vocabulary: all bytes, a few merges, two control tokens and one user-defined one."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "1 2"]
    tokens = ["<|end|>", BEGIN, *CHAR_OF_BYTE, *(m.replace(" ", "") for m in merges), "<tool call>", "hello1"]
    types = [CONTROL, CONTROL, *[NORMAL] * (256 + len(merges)), USER_DEFINED, NORMAL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
    } | {f"tokenizer.{key}": value for key, value in extra.items()}


def encode(definition: TokenizerDefinition, text: str, *, special: bool = False) -> list[str]:
    return definition.tokenizer.encode(text, add_special_tokens=special).tokens


def test_added_tokens_stay_whole_whatever_they_are_spelled_with() -> None:
    definition = build_definition(byte_level_keys())
    assert encode(definition, f"hello{BEGIN}<tool call> wor<|end|>") == [
        "hello", BEGIN, "<tool call>", "Ġwor", "<|end|>",
    ]  # fmt: skip
    tokenizer = definition.tokenizer
    ids = tokenizer.encode(f"{BEGIN}x<tool call>").ids
    assert tokenizer.decode(ids) == "x<tool call>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"{BEGIN}x<tool call>"
    assert definition.eos_token_ids == (0,)
    assert definition.bos_token_id == 1
    assert definition.named_tokens == {"eos_token": "<|end|>", "bos_token": BEGIN}


def test_ignore_merges_comes_from_the_pre_tokenizer_name() -> None:
    assert encode(build_definition(byte_level_keys()), "hello12") == ["hello", "12"]
    llama3 = build_definition(byte_level_keys(**{"ggml.pre": "llama-bpe"}))
    assert encode(llama3, "hello") == ["hello"]
    assert "hello1" in byte_level_keys()["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("pre", "add_bos", "add_eos", "expected"),
    [
        ("gpt-2", None, None, ["hello"]),
        ("llama-bpe", None, None, [BEGIN, "hello"]),
        ("llama-bpe", False, None, ["hello"]),
        ("gpt-2", True, True, [BEGIN, "hello", "<|end|>"]),
    ],
)
def test_bos_and_eos_are_added_as_the_file_says(
    pre: str, add_bos: bool | None, add_eos: bool | None, expected: list[str]
) -> None:
    flags = {"ggml.add_bos_token": add_bos, "ggml.add_eos_token": add_eos}
    keys = byte_level_keys(**{"ggml.pre": pre}, **{name: value for name, value in flags.items() if value is not None})
    definition = build_definition(keys)
    assert encode(definition, "hello", special=True) == expected
    assert encode(definition, "hello", special=False) == ["hello"]


def test_ends_of_turns_are_found() -> None:
    keys = byte_level_keys(**{"ggml.eos_token_id": 1, "ggml.eot_token_id": 2})
    assert build_definition(keys).eos_token_ids == (0, 1, 2), "<|end|> is a control token that ends a turn"


def test_templates_by_name() -> None:
    keys = byte_level_keys(
        chat_template="plain", chat_templates=["tool_use", "absent"], **{"chat_template.tool_use": "tools"}
    )
    definition = build_definition(keys)
    assert definition.chat_templates == {"default": "plain", "tool_use": "tools"}
    assert definition.template_for(has_tools=True) == "tool_use"
    assert definition.template_for(has_tools=False) == "default"
    assert build_definition(byte_level_keys()).template_for(has_tools=True) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ggml.model": "t5"}, r"tokenizer\.ggml\.model = 't5'"),
        ({"ggml.pre": "unheard-of"}, "'unheard-of' is not supported; known: .*smollm"),
        ({"ggml.token_type": [1]}, "token_type must have one entry"),
        ({"ggml.eos_token_id": 10_000}, "eos_token_id = 10000: the vocabulary has"),
        ({"ggml.merges": ["nospace"]}, "'nospace' is not two tokens"),
        ({"ggml.merges": ["zz yy"]}, "do not fit"),
        ({"ggml.tokens": ["a", "a"], "ggml.token_type": [1, 1], "ggml.merges": [], "ggml.bos_token_id": 0}, "2 tokens"),
        ({"ggml.add_bos_token": "yes"}, "expected bool"),
        ({"ggml.tokens": []}, "no tokenizer"),
    ],
)
def test_what_cannot_be_served_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(TokenizerError, match=named):
        build_definition(byte_level_keys(**change))


def test_pre_tokenizers_split_as_those_of_transformers() -> None:
    from tokenizers import Regex
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    compared = 0
    for name, pattern in GGUF_PRE_TOKENIZER_SPLITS.items():
        if name not in PRE_TOKENIZATIONS:
            continue
        expected = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        ours = build_pre_tokenizer(find_pre_tokenization(name))
        for text in TEXTS:
            assert ours.pre_tokenize_str(text) == expected.pre_tokenize_str(text), (name, text)
        compared += 1
    assert compared >= 15


def test_gpt2_and_smollm_split_as_the_models_own_files() -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    smollm = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    for name, expected in (("gpt-2", gpt2), ("smollm", smollm)):
        ours = build_pre_tokenizer(find_pre_tokenization(name))
        for text in TEXTS:
            assert ours.pre_tokenize_str(text) == expected.pre_tokenize_str(text), (name, text)


def load_with_transformers(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("kind", ["sentencepiece", "gpt2", "qwen2"])
def test_ids_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    if kind == "sentencepiece":
        keys = sentencepiece_keys()
    else:
        keys = byte_level_keys(**{"ggml.pre": "gpt-2" if kind == "gpt2" else kind})
        # transformers takes tokens of other alphabets for mistakes, and adds <|endoftext|> where it is missing.
        other_spelling = {BEGIN: "<|begin|>", "<|end|>": "<|endoftext|>", "<tool call>": "<tool_call>"}
        keys["tokenizer.ggml.tokens"] = [other_spelling.get(t, t) for t in keys["tokenizer.ggml.tokens"]]
    path = write_gguf(tmp_path / "model.gguf", keys | LLAMA_KEYS)
    ours, theirs = load_definition(path).tokenizer, load_with_transformers(path)
    for text in TEXTS:
        for special in (False, True):
            got = ours.encode(text, add_special_tokens=special).ids
            assert got == theirs.encode(text, add_special_tokens=special), (text, special)
        for skip in (False, True):
            assert ours.decode(got, skip_special_tokens=skip) == theirs.decode(
                got, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def test_gemma_ranks_merges_by_id_and_keeps_spaces(tmp_path: Path) -> None:
    keys = sentencepiece_keys()
    tokens, scores = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"]
    keys["tokenizer.ggml.scores"] = [0.0] * len(scores)
    keys["tokenizer.ggml.tokens"] = [*tokens, "  ", "   "]
    keys["tokenizer.ggml.scores"] += [0.0, 0.0]
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], NORMAL, NORMAL]
    gemma = {key.replace("llama.", "gemma2."): value for key, value in LLAMA_KEYS.items()}
    extra = {"gemma2.attention.key_length": 8, "gemma2.attention.sliding_window": 8}
    path = write_gguf(tmp_path / "model.gguf", keys | gemma | extra, architecture="gemma2")
    ours, theirs = load_definition(path).tokenizer, load_with_transformers(path)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False), text


KEYS = sentencepiece_keys()
TOKENS: list[str] = KEYS["tokenizer.ggml.tokens"]
ID_OF = {token: token_id for token_id, token in enumerate(TOKENS)}
SCORES: list[float] = KEYS["tokenizer.ggml.scores"]
NORMALS = {t for t, kind in zip(TOKENS, KEYS["tokenizer.ggml.token_type"], strict=True) if kind == NORMAL}
SENTENCEPIECE = build_definition(KEYS).tokenizer


def sentencepiece_bpe(text: str) -> list[int]:
    """SentencePiece's BPE by definition: join the best-scoring adjacent pair, leftmost first, until none is a piece.

    A space goes before texts that do not begin with one, as in transformers (SentencePiece itself always adds one).
    """
    symbols = list(text.replace(" ", "▁") if text.startswith(" ") else "▁" + text.replace(" ", "▁"))
    while True:
        pairs = [
            (-SCORES[ID_OF[joined]], position)
            for position in range(len(symbols) - 1)
            if (joined := symbols[position] + symbols[position + 1]) in NORMALS
        ]
        if not pairs:
            break
        _, position = min(pairs)
        symbols[position : position + 2] = [symbols[position] + symbols[position + 1]]
    ids: list[int] = []
    for symbol in symbols:
        ids += [ID_OF[symbol]] if symbol in ID_OF else [ID_OF[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("thequickbrownfxjmpsvlazydg '1230ïé é日\n"), min_size=1, max_size=40))
def test_sentencepiece_ids_follow_the_definition(text: str) -> None:
    assert SENTENCEPIECE.encode(text, add_special_tokens=False).ids == sentencepiece_bpe(text)


def test_a_file_without_space_prefix_adds_and_strips_none() -> None:
    tokenizer = build_definition(sentencepiece_keys() | {"tokenizer.ggml.add_space_prefix": False}).tokenizer
    ids = tokenizer.encode(" hello", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == " hello"
    assert tokenizer.decode(tokenizer.encode("hello", add_special_tokens=False).ids) == "hello"
    assert tokenizer.encode("hello", add_special_tokens=False).tokens[0] != "▁hello"


def test_the_byte_alphabet_is_gpt2s() -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert {byte: CHAR_OF_BYTE[byte] for byte in range(256)} == bytes_to_unicode()
    assert spell_bytes(" \n!é".encode()) == "ĠĊ!Ã©"


def test_digests_tell_definitions_apart() -> None:
    base = build_definition(byte_level_keys()).compute_digest()
    assert base == build_definition(byte_level_keys()).compute_digest()
    assert len(base) == 64
    others: list[dict[str, Any]] = [
        {"chat_template": "x"},
        {"ggml.pre": "qwen2"},
        {"ggml.bos_token_id": 0},
        {"ggml.add_bos_token": True},
    ]
    digests = {build_definition(byte_level_keys(**change)).compute_digest() for change in others}
    assert len(digests | {base}) == 5


def test_a_folder_must_say_which_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json and no GGUF file among no files"):
        load_definition(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match=r"convert it to tokenizer\.json"):
        load_definition(tmp_path)
    write_gguf(tmp_path / "a.gguf", byte_level_keys())
    assert load_definition(tmp_path).bos_token_id == 1
    write_gguf(tmp_path / "b.gguf", byte_level_keys())
    with pytest.raises(TokenizerError, match=r"several GGUF files; name one of a.gguf, b.gguf"):
        load_definition(tmp_path)
    with pytest.raises(TokenizerError, match="neither a GGUF file"):
        load_definition(tmp_path / "tokenizer.model")


def test_byte_tokens_are_no_added_tokens() -> None:
    assert SENTENCEPIECE.encode("<0x41>", add_special_tokens=False).tokens != ["<0x41>"]
    assert BYTE == 6


@pytest.mark.parametrize(("keep", "problem"), [(0, "cannot be mapped"), (5, "too short"), (200, "truncated")])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, keep: int, problem: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", byte_level_keys())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TokenizerError, match=rf"m\.gguf: .*{problem}") as caught:
        load_definition(tmp_path)
    assert str(caught.value).count("m.gguf") == 1
