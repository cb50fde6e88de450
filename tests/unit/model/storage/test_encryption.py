"""Keys of hexadecimal digits, and settings that go together."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kernelsvc.model.storage.encryption import EncryptionSettings, check, parse_key


@pytest.mark.parametrize("text", ["00" * 32, "Af" * 64 + "\n", "  " + "12" * 40 + "  "])
def test_a_key_of_hexadecimal_digits_is_taken(text: str) -> None:
    assert parse_key(text.encode()) == bytes.fromhex(text.strip())


@pytest.mark.parametrize("text", ["", "00" * 31, "0" * 65, "00" * 65, "zz" * 32, "00 " * 32, "٣" * 64])
def test_another_text_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal digits") as raised:
        parse_key(text.encode())
    assert not text or text not in str(raised.value)


def test_two_sources_of_a_key_are_refused() -> None:
    with pytest.raises(ValueError, match="either"):
        check(EncryptionSettings(key_file=Path("key"), key_command=["print-key"]))


def test_the_settings_have_no_other_field() -> None:
    with pytest.raises(msgspec.ValidationError, match="key_env"):
        msgspec.convert({"key_env": "KEY"}, EncryptionSettings)
