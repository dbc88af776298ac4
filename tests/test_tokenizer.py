from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from wmlkit import paths
from wmlkit.data import tokenizer as tokenizer_module
from wmlkit.data.tokenizer import (
    SPECIAL_TOKENS,
    continuing,
    load_tokenizer,
    plain_backend,
    save_tokenizer,
    template_of,
    tokenizer_hash,
    train_tokenizer,
)
from wmlkit.errors import UserError

# Many pairs occur equally often, so that ties between merges are put to the test.
LINES = [
    "The senator hugged Mary.",
    "Mary hugged the senator near the harbour.",
    "abab cdcd efef ghgh abab cdcd efef ghgh",
    "It's Élodie's naïve café, isn't it?",
    "The senators were near the cafés.",
] * 4
SENTENCE = "The Senator hugged Élodie near the Café."

TRAIN_AND_SAVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from transformers import AutoTokenizer
print(AutoTokenizer.from_pretrained(sys.argv[2])(sys.argv[3]).input_ids)
print(AutoTokenizer.from_pretrained(sys.argv[4])(sys.argv[3]).input_ids)
from test_tokenizer import LINES
from wmlkit.data.tokenizer import save_tokenizer, train_tokenizer
save_tokenizer(train_tokenizer(iter(LINES), 320), Path(sys.argv[5]))
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(LINES, 320)


def test_specials_and_shape(tokenizer: PreTrainedTokenizerFast) -> None:
    assert SPECIAL_TOKENS == ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.bos_token_id, tokenizer.cls_token_id) == (0, 0)
    assert (tokenizer.eos_token_id, tokenizer.sep_token_id) == (2, 2)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, 4)
    assert 261 < len(tokenizer) <= 320
    ids = tokenizer(SENTENCE).input_ids
    assert ids[0] == 0 and ids[-1] == 2 and 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == SENTENCE
    assert tokenizer("a <mask> b").input_ids == [*tokenizer("a").input_ids[:-1], 4, *tokenizer(" b").input_ids[1:]]
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


def test_merges_by_hand() -> None:
    # "ab" is the only pair that occurs twice: one merge, whatever room there is.
    tokenizer = train_tokenizer(["ab", "ab", "cd"], 300)
    assert len(tokenizer) == 5 + 256 + 1
    assert tokenizer.tokenize("abcd") == ["ab", "c", "d"]


def test_reload_in_a_new_interpreter(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    lower = train_tokenizer(LINES, 300, lowercase=True, nfkc=True)
    save_tokenizer(tokenizer, tmp_path / "one")
    save_tokenizer(lower, tmp_path / "lower")
    command = [sys.executable, "-c", TRAIN_AND_SAVE, str(Path(__file__).parent), str(tmp_path / "one"), SENTENCE]
    command += [str(tmp_path / "lower"), str(tmp_path / "again")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    same, lowered = map(json.loads, result.stdout.strip().splitlines())
    assert same == tokenizer(SENTENCE).input_ids
    assert lowered == lower(SENTENCE).input_ids == lower(SENTENCE.lower()).input_ids
    assert lower.decode(lowered, skip_special_tokens=True) == SENTENCE.lower()
    for name in ("tokenizer.json", "tokenizer_config.json"):  # same text, same bytes, ties included
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_lower_case_and_nfkc_survive_a_reload(tmp_path: Path) -> None:
    lower = train_tokenizer(LINES, 300, lowercase=True, nfkc=True)
    loaded = load_tokenizer(save_tokenizer(lower, tmp_path), needs_mask=True)
    assert loaded.decode(loaded("The ﬁne CAFÉ", add_special_tokens=False).input_ids) == "the fine café"
    assert loaded("A <mask>").input_ids[-2] == 4  # special tokens are found behind the lower-casing
    assert 4 not in loaded("A <MASK>").input_ids  # but as written, not as lower-cased
    assert tokenizer_hash(loaded) == tokenizer_hash(lower)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "a", "\n", "n't"])).map("".join)))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    backend = plain_backend(tokenizer)
    ids = backend.encode(text, add_special_tokens=False).ids
    assert backend.decode(ids, skip_special_tokens=False) == text
    assert not set(ids) & set(range(5))  # "<mask>" in a text is text


def test_hash_is_of_the_vocabulary_and_not_of_its_last_use(tokenizer: PreTrainedTokenizerFast) -> None:
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(train_tokenizer(LINES, 319)) != before
    assert tokenizer_hash(train_tokenizer(LINES, 320, lowercase=True)) != before


def test_saved_folder_does_not_keep_padding(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=3)
    save_tokenizer(tokenizer, tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert document["padding"] is None and document["truncation"] is None
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_words_without_end_are_learned_from_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_WITHOUT_END", re.compile(r"\S{4}(?=\S)"))
    assert tokenizer_module._broken_up("ab abcd abcde abcdefghi") == "ab abcd abcd e abcd efgh i"
    entries = set(train_tokenizer(["abcdefgh"] * 4, 300).get_vocab()) - set(SPECIAL_TOKENS)
    assert max(map(len, entries)) == 5  # a space and four letters


def test_small_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="261"):
        train_tokenizer(LINES, 260)


def word_tokenizer(folder: Path, **special: str) -> Path:
    words = {word: index for index, word in enumerate(["a", "b", *special.values()])}
    backend = Tokenizer(models.WordLevel(words, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(str(folder))
    return folder


def test_other_tokenizers(tmp_path: Path) -> None:
    bert = word_tokenizer(
        tmp_path / "bert", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", pad_token="[PAD]"
    )
    loaded = load_tokenizer(str(bert), needs_mask=True)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("[CLS]", "[SEP]", "[PAD]")
    gpt = word_tokenizer(tmp_path / "gpt", bos_token="<|end|>", eos_token="<|end|>")
    assert load_tokenizer(gpt).pad_token == "<|end|>"
    with pytest.raises(UserError, match="no mask token"):
        load_tokenizer(gpt, needs_mask=True)
    bare = word_tokenizer(tmp_path / "bare", eos_token="</s>")
    with pytest.raises(UserError, match="no bos and no mask token"):
        load_tokenizer(bare, needs_mask=True)


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="could not be loaded"):
        load_tokenizer(tmp_path)


def test_a_tilde_is_the_home_folder_and_a_hub_s_name_stays(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tokenizer(tokenizer, tmp_path / "own")
    assert tokenizer_hash(load_tokenizer("~/own")) == tokenizer_hash(tokenizer)
    with pytest.raises(UserError, match="no tokenizer folder '~nobody-of-this-name/own'"):
        load_tokenizer("~nobody-of-this-name/own")
    asked = []
    library = SimpleNamespace(from_pretrained=lambda name, **_: asked.append(name) or tokenizer)
    monkeypatch.setattr(tokenizer_module, "AutoTokenizer", library)
    for name in ("gpt2", "owner/a~b"):
        load_tokenizer(name)
    assert asked == ["gpt2", "owner/a~b"]


def test_code_beside_a_tokenizer_is_not_run(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = save_tokenizer(tokenizer, tmp_path / "t")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T:\n    pass\n")
    settings_path = folder / "tokenizer_config.json"
    document = json.loads(settings_path.read_text())
    document["auto_map"] = {"AutoTokenizer": ["evil.T", "evil.T"]}
    document["tokenizer_class"] = "T"
    settings_path.write_text(json.dumps(document))
    with contextlib.suppress(UserError):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("own", [False, True])
def test_a_causal_model_s_tokenizer_leaves_a_text_open(
    own: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The same ids less the end; a pair with one end between; the original is as it was. Also of one from elsewhere."""
    if own:
        tokenizer = make_tokenizer()
    closed = tokenizer(SENTENCE, return_offsets_mapping=True)
    opened = load_tokenizer(save_tokenizer(continuing(tokenizer), tmp_path))
    found = opened(SENTENCE, return_offsets_mapping=True)
    inside = tokenizer(SENTENCE, add_special_tokens=False).input_ids
    assert found.input_ids == [tokenizer.bos_token_id, *inside]
    assert opened(SENTENCE, "a").input_ids == [
        tokenizer.bos_token_id, *inside, tokenizer.eos_token_id, *tokenizer("a", add_special_tokens=False).input_ids,
    ]  # fmt: skip
    if not own:
        assert found.offset_mapping == closed.offset_mapping[:-1]
    assert tokenizer(SENTENCE).input_ids == closed.input_ids
    assert tokenizer_hash(opened) != tokenizer_hash(tokenizer)
    # wmlkit itself goes on with the tokenizer of the training, which may have had no template at all
    paths.write_json(paths.trained_on(tmp_path), {"post_processor": template_of(tokenizer)})
    again = load_tokenizer(tmp_path)
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer) and again(SENTENCE).input_ids == closed.input_ids
    assert AutoTokenizer.from_pretrained(tmp_path)(SENTENCE).input_ids == found.input_ids
    paths.trained_on(tmp_path).write_text('{"post_processor": {"type": "of another age"}}')
    with pytest.raises(UserError, match="could not be loaded"):
        load_tokenizer(tmp_path)
