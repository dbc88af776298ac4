from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from wmlkit.data import encode
from wmlkit.data import tokenizer as tokenizer_module
from wmlkit.data.tokenizer import tokenizer_hash, train_tokenizer
from wmlkit.errors import UserError

DOCUMENTS = [["the cat sat.", "The cat!"], ["A dog."], ["one", "two", "</s> three"]]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the cat", "a dog sat"] * 3, 280)


@pytest.fixture
def token_file(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    encode.write_documents(tmp_path / "train.tokens", tokenizer, DOCUMENTS)
    return tmp_path / "train.tokens"


def test_documents_by_hand(tokenizer: PreTrainedTokenizerFast, token_file: Path) -> None:
    tokens, header = encode.open_tokens(token_file)
    starts = encode.open_documents(token_file)
    first, second = tokenizer("the cat sat.").input_ids, tokenizer("The cat!").input_ids
    assert tokens[: len(first)].tolist() == first == [0, *first[1:-1], 2]
    assert tokens[len(first) : starts[1]].tolist() == second[1:]  # <s> once, </s> after every line
    assert tokens[starts[1] : starts[2]].tolist() == tokenizer("A dog.").input_ids  # one line: as the tokenizer does it
    assert tokens[starts[2] :].tolist().count(2) == 3  # the "</s>" in the text is not a token
    assert starts.tolist()[0] == 0 and len(starts) == 3
    assert header["count"] == len(tokens) and header["vocab_size"] == len(tokenizer)
    assert header["dtype"] == "uint16" and tokens.dtype == np.uint16
    assert header["tokenizer_hash"] == tokenizer_hash(tokenizer)
    encode.check_tokenizer(header, tokenizer)


@pytest.mark.parametrize("same", [False, True])
def test_documents_come_back(tokenizer: PreTrainedTokenizerFast, same: bool, tmp_path: Path) -> None:
    """Also with a tokenizer that begins and ends a text with one and the same token, as GPT-2's."""
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>" if same else "<s>", eos_token="</s>"
    )
    encode.write_documents(tmp_path / "dev.tokens", own, [*DOCUMENTS, ["<mask> and  all"]])
    assert list(encode.decoded_documents(tmp_path / "dev.tokens", own)) == [*DOCUMENTS, ["<mask> and  all"]]
    with pytest.raises(UserError, match="the tokens were made by tokenizer"):
        list(encode.decoded_documents(tmp_path / "dev.tokens", train_tokenizer(["other"], 270)))


def test_file_layout(token_file: Path) -> None:
    content = token_file.read_bytes()
    header = json.loads(content[len(encode.MAGIC) : encode.HEADER_BYTES])
    assert len(content) == encode.HEADER_BYTES + 2 * header["count"]
    payload = np.frombuffer(content, dtype="<u2", offset=encode.HEADER_BYTES)
    assert np.array_equal(payload, encode.open_tokens(token_file)[0])


def test_dtype_follows_the_vocabulary(tmp_path: Path) -> None:
    assert encode.token_dtype(65536) == "uint16"
    assert encode.token_dtype(65537) == "uint32"
    encode.write_array(tmp_path / "big.tokens", [np.array([70000])], "tokens", "uint32", 70001, "x")
    tokens, _ = encode.open_tokens(tmp_path / "big.tokens")
    assert tokens.dtype == np.uint32 and tokens.tolist() == [70000]


def test_ids_outside_the_vocabulary_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        encode.write_array(tmp_path / "x.tokens", [np.array([1, 10])], "tokens", "uint16", 10, "x")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_stream_leaves_no_file(tmp_path: Path) -> None:
    def chunks() -> Iterator[np.ndarray]:
        yield np.array([1])
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        encode.write_array(tmp_path / "x.tokens", chunks(), "tokens", "uint16", 10, "x")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(chunks=st.lists(st.lists(st.integers(0, 999), max_size=9), max_size=6))
def test_arrays_come_back(tmp_path_factory: pytest.TempPathFactory, chunks: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("arrays") / "x.tokens"
    arrays = [np.array(chunk, dtype=np.int64) for chunk in chunks]
    encode.write_array(path, arrays, "tokens", "uint16", 1000, "x")
    tokens, header = encode.open_tokens(path)
    assert tokens.tolist() == [number for chunk in chunks for number in chunk]
    assert header["count"] == len(tokens)


def test_batches_do_not_change_the_result(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [ids.tolist() for ids in encode.encode_documents(tokenizer, DOCUMENTS)]
    lines = [line for document in DOCUMENTS for line in document]
    assert encode.count_tokens(tokenizer, lines) == sum(map(len, whole)) - len(DOCUMENTS) - len(lines)
    monkeypatch.setattr(tokenizer_module, "CHARACTERS_A_BATCH", 20)
    assert [ids.tolist() for ids in encode.encode_documents(tokenizer, iter(DOCUMENTS))] == whole
    assert encode.count_tokens(tokenizer, lines) == sum(map(len, whole)) - len(DOCUMENTS) - len(lines)


def set_header(content: bytes, **changes: object) -> bytes:
    header = json.loads(content[len(encode.MAGIC) : encode.HEADER_BYTES])
    header.update(changes)
    text = encode.MAGIC + json.dumps(header).encode()
    return text.ljust(encode.HEADER_BYTES) + content[encode.HEADER_BYTES :]


DAMAGE: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda content: b"[12, 345]" * 400, "does not begin"),  # the released code's "tokens"
    (lambda content: b"", "does not begin"),
    (lambda content: content[:100], "ends inside its header"),
    (lambda content: content[:20] + b"\xff" + content[21:], "header"),
    (lambda content: content[:-1], "bytes; expected"),
    (lambda content: content + b"\0\0", "bytes; expected"),
    (lambda content: set_header(content, dtype="uint32"), "says dtype uint32"),
    (lambda content: set_header(content, dtype="float32"), "header"),
    (lambda content: set_header(content, vocab_size=70000), "says dtype uint16"),
    (lambda content: set_header(content, count=-1), "header"),
    (lambda content: set_header(content, count="7"), "header"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_found(token_file: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    token_file.write_bytes(damage(token_file.read_bytes()))
    with pytest.raises(UserError, match=message):
        encode.open_tokens(token_file)


def test_missing_file_and_wrong_tokenizer(token_file: Path) -> None:
    with pytest.raises(UserError, match="there is no token file"):
        encode.open_tokens(token_file.with_name("dev.tokens"))
    other = train_tokenizer(["xyz xyz"] * 3, 300)
    header = encode.open_tokens(token_file)[1]
    with pytest.raises(UserError) as error:
        encode.check_tokenizer(header, other)
    assert header["tokenizer_hash"] in str(error.value) and tokenizer_hash(other) in str(error.value)


def test_a_wrong_tokenizer_of_the_same_size_is_refused(tokenizer: PreTrainedTokenizerFast, token_file: Path) -> None:
    """Its ids all exist, so nothing else would tell; and a header of another size is refused whatever its hash."""
    other = train_tokenizer([line.upper() for line in ["the cat sat on the cat", "a dog sat"] * 3], 280)
    assert len(other) == len(tokenizer) and tokenizer_hash(other) != tokenizer_hash(tokenizer)
    header = encode.open_tokens(token_file)[1]
    for refused, given_tokenizer in ((header, other), ({**header, "vocab_size": len(tokenizer) + 1}, tokenizer)):
        with pytest.raises(UserError, match="the tokens were made by tokenizer"):
            encode.check_tokenizer(refused, given_tokenizer)


def test_documents_of_another_file_are_refused(token_file: Path) -> None:
    documents = token_file.with_suffix(".documents")
    _, header = encode.open_tokens(documents)
    encode.write_array(documents, [np.array([0, 9999])], "documents", "uint64", 280, header["tokenizer_hash"])
    with pytest.raises(UserError, match="does not belong"):
        encode.open_documents(token_file)
