"""One address for each name."""

import ipaddress

import pytest

from kernelsvc.egress.synthetic_names import MAX_NAMES, SyntheticNames, TooManyNames


def test_an_address_stands_for_one_name():
    names = SyntheticNames()
    addresses = {name: names.address_of(name) for name in (f"a{n}.test" for n in range(MAX_NAMES))}
    assert len(set(addresses.values())) == MAX_NAMES
    for name, address in addresses.items():
        assert names.name_of(address) == name
        assert names.address_of(name) == address
        assert ipaddress.ip_address(address) in ipaddress.ip_network("198.18.0.0/15")
    with pytest.raises(TooManyNames):
        names.address_of("one.too.many.test")
    assert names.name_of("198.18.0.2") is None
