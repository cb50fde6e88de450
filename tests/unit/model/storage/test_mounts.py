"""Which directories a principal's session may see."""

from __future__ import annotations

import pytest

from kernelsvc.errors import BadRequest, Forbidden, KernelsvcError
from kernelsvc.model.storage.mounts import Bind, Mount, allowed_mounts, choose_binds, names_of, why_unsafe

MOUNTS = {
    "sales": Mount(path="/srv/sales"),
    "pay": Mount(path="/srv/pay", principals=["hr-*", "boss"]),
}


def test_a_request_gets_each_mount_once_at_its_place() -> None:
    binds = choose_binds(MOUNTS, ["pay", "sales", "pay"], "hr-7")
    assert binds == [
        Bind(source="/srv/pay", target="/data/pay", writable=False),
        Bind(source="/srv/sales", target="/data/sales", writable=False),
    ]
    assert names_of(binds) == ["pay", "sales"]


@pytest.mark.parametrize(
    ("name", "who", "error", "words"),
    [
        ("seles", "ann", BadRequest, "you may use: sales."),
        ("seles", "boss", BadRequest, "you may use: pay, sales."),
        ("pay", "ann", Forbidden, "mounts.pay.principals"),
        ("pay", "xhr-7", Forbidden, "'xhr-7'"),
    ],
)
def test_a_refusal_says_what_to_do(name: str, who: str, error: type[KernelsvcError], words: str) -> None:
    with pytest.raises(error) as caught:
        choose_binds(MOUNTS, ["sales", name], who)
    assert words in caught.value.message


def test_without_mounts_the_message_names_the_settings() -> None:
    assert allowed_mounts({}, "ann") == []
    with pytest.raises(BadRequest, match="none: the server's settings"):
        choose_binds({}, ["sales"], "ann")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", "it holds /var/lib/ks"),
        ("/var/lib", "it holds /var/lib/ks"),
        ("/var/lib/ks", "it holds /var/lib/ks"),
        ("/var/lib/ks/sessions/s_1", "it lies in /var/lib/ks"),
        ("/var/lib/ks2", None),
        ("/srv/sales", None),
    ],
)
def test_private_directories_are_no_mounts(path: str, words: str | None) -> None:
    found = why_unsafe(path, ["/var/lib/ks"])
    assert found is None if words is None else words in str(found)
