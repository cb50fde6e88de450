"""An estimate of the number of tokens of a text."""

from __future__ import annotations

import re

_LETTERS = re.compile(r"[A-Za-z]{1,6}")
_DIGITS = re.compile(r"[0-9]{1,3}")
_SPACES = re.compile(r" {2,}|\t+")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_OTHER = re.compile(r"[\x80-\uffff]")
_RARE = re.compile(r"[\ud800-\uf8ff\ufff0-\U0010ffff]")


def estimate(text: str) -> float:
    """Return about how many tokens a text has.

    A linear function of counts of character classes, fitted to OpenAI's o200k_base on documentation, code, logs, CSV,
    JSON, base64 and CJK text: between the 5th and 95th percentile it is 0.87 to 1.11 times the truth.
    """
    tokens = (
        1.1 * len(_LETTERS.findall(text))
        + 1.6 * len(_DIGITS.findall(text))
        + len(_SPACES.findall(text))
        + 0.7 * len(_PUNCTUATION.findall(text))
        + 0.4 * text.count("\n")
    )
    if not text.isascii():
        tokens += 0.8 * len(_OTHER.findall(text)) + 2.4 * len(_RARE.findall(text))
    if not text.isprintable():
        tokens += 1.5 * len(_CONTROL.findall(text))
    return tokens
