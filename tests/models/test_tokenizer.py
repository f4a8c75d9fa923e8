import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_ext.models.tokenizer import Tokenizer, token_pieces, tokenizer_folder

PROMPTS = st.text(alphabet=st.sampled_from("abcxyzABC 0123'!?,.-_<|>éüß²½漢字🙂\t\n’“ İıÅﬁ​ａ्िहন한\u0301"), max_size=40)


@pytest.fixture(scope="module")
def theirs():
    """transformers' fast tokenizer, on the same vocabulary."""
    import transformers

    newer = int(transformers.__version__.split(".")[0]) >= 5
    kind = transformers.CLIPTokenizer if newer else transformers.CLIPTokenizerFast
    return kind.from_pretrained(str(tokenizer_folder()), local_files_only=True)


@given(PROMPTS)
@settings(max_examples=300, deadline=None)
def test_the_tokens_are_those_of_transformers(theirs, prompt):
    assert Tokenizer().encode(prompt) == theirs(prompt, add_special_tokens=False).input_ids


@pytest.mark.parametrize("prompt", ["a photo of rxz dog's toy", "x <|endoftext|> y", "<|startoftext|>hello<|endoftext|>",
                                    "  spaces   and\nlines ", "3d render, 8k!!", "I'll they've don't", "", "café naïve"])
def test_special_cases_are_those_of_transformers(theirs, prompt):
    assert Tokenizer().encode(prompt) == theirs(prompt, add_special_tokens=False).input_ids


def test_prompts_are_77_tokens_with_the_padding_of_their_encoder():
    short = Tokenizer()("a dog")
    assert short[:4] == [49406, 320, 1929, 49407] and set(short[4:]) == {49407} and len(short) == 77
    assert set(Tokenizer("!")("a dog")[4:]) == {0}
    long = Tokenizer()("dog " * 100)
    assert len(long) == 77 and long[0] == 49406 and long[-1] == 49407 and set(long[1:-1]) == {1929}


def test_pieces_tell_rare_words_from_common_ones():
    assert [piece for piece, _ in token_pieces("rxz")] == ["rx", "z</w>"]
    assert token_pieces("dog") == [("dog</w>", 1929)]
