"""CLIP's byte-pair encoding (Radford et al. 2021), from the packaged vocabulary.

Our own, so that the same prompt has the same tokens whatever transformers, ftfy or network a host has: transformers'
slow tokenizer strips accents where ftfy is missing. Equal to its fast tokenizer, as tests show.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def tokenizer_folder() -> Path:
    """The packaged vocabulary, in the layout of transformers' CLIPTokenizer."""
    return Path(__file__).parent / "clip_tokenizer"


class Tokenizer:
    """Prompts to tokens; `pad_token` fills a prompt up to 77 tokens."""

    def __init__(self, pad_token: str = END) -> None:
        self.pad_token = pad_token
        self._ids, self._ranks = _vocabulary()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without start, end and padding."""
        return [self._ids[piece] for piece in self.pieces(text)]

    def pieces(self, text: str) -> list[str]:
        """Tokens as texts: "rxz" -> ["rx", "z</w>"]."""
        return [piece for word in _words(text) for piece in _split(word)]

    def __call__(self, text: str) -> list[int]:
        """77 tokens: start, at most 75 of the text, end, padding."""
        body = self.encode(text)[: LENGTH - 2]
        pad = self._ids[self.pad_token]
        return [self._ids[START], *body, self._ids[END], *[pad] * (LENGTH - 2 - len(body))]


def token_pieces(text: str) -> list[tuple[str, int]]:
    """How CLIP splits a text: (piece, number), the lower the number the more common the piece."""
    tokenizer = Tokenizer()
    return list(zip(tokenizer.pieces(text), tokenizer.encode(text), strict=True))


@cache
def _vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    ids = json.loads((tokenizer_folder() / "vocab.json").read_text(encoding="utf-8"))
    lines = (tokenizer_folder() / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines[1:] if line.strip()]  # the first line is a version
    return ids, {(left, right): rank for rank, (left, right) in enumerate(line.split(" ") for line in merges)}


@cache
def _letter_of_byte() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def _words(text: str) -> Iterator[str]:
    """CLIP's pattern: special tokens, contractions, runs of letters, single digits, runs of anything else."""
    text = " ".join(unicodedata.normalize("NFC", text).split()).lower()
    at = 0
    while at < len(text):
        special = next((token for token in (START, END) if text.startswith(token, at)), None)
        contraction = next((end for end in _CONTRACTIONS if text.startswith(end, at)), None)
        kind = _kind(text[at])
        if special or contraction:
            length = len(special or contraction or "")
        elif kind == "N":
            length = 1
        else:
            length = 1
            while at + length < len(text) and _kind(text[at + length]) == kind:
                if kind == "other" and text.startswith((START, END), at + length):
                    break
                length += 1
        if kind != "space":
            yield text[at : at + length]
        at += length


def _kind(letter: str) -> str:
    if letter.isspace():
        return "space"
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else "other"


@lru_cache(maxsize=65536)
def _split(word: str) -> tuple[str, ...]:
    """Byte-pair encoding of one word: merge the pair of lowest rank until none is left."""
    if word in (START, END):
        return (word,)
    ranks = _vocabulary()[1]
    letters = _letter_of_byte()
    parts = [letters[byte] for byte in word.encode("utf-8")]
    parts[-1] += "</w>"
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == best:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
    return tuple(parts)
