"""Which stores there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.kv_store.remote.addresses import Addresses, split_address

OWN = "10.0.0.1:50064"


def test_a_list_holds_the_store_itself_once() -> None:
    assert Addresses(f" b:2, {OWN},a:1,", OWN).hosts == (OWN, "a:1", "b:2")
    assert Addresses("", OWN).hosts == (OWN,)
    assert not Addresses("a:1", OWN).refresh()


def test_a_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    path.write_text("# stores\na:1 # the first\n\n")
    addresses = Addresses(f"file:{path}", OWN)
    assert addresses.hosts == (OWN, "a:1")
    assert not addresses.refresh()
    (tmp_path / "fresh").write_text("a:1\nb:2\n")
    (tmp_path / "fresh").rename(path)
    assert addresses.refresh()
    assert list(addresses.hosts) == [OWN, "a:1", "b:2"]


@pytest.mark.parametrize("content", ["a:1\nnonsense\n", "x" * (2 << 20), "\n".join(f"h{n}:1" for n in range(2000))])
def test_a_file_that_makes_no_sense_leaves_the_hosts_of_before(tmp_path: Path, content: str) -> None:
    path = tmp_path / "peers"
    path.write_text("a:1")
    addresses = Addresses(f"file:{path}", OWN)
    (tmp_path / "fresh").write_text(content)
    (tmp_path / "fresh").rename(path)
    assert not addresses.refresh()
    assert addresses.hosts == (OWN, "a:1")
    assert addresses.problem
    path.unlink()
    assert not addresses.refresh()
    assert "No such file" in addresses.problem
    path.write_text("c:3")
    assert addresses.refresh()
    assert (addresses.hosts, addresses.problem) == ((OWN, "c:3"), "")


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:0", "host:65536", "host:1x", "host:²"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_addresses_of_both_kinds() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert split_address("store-0.stores.example:50064") == ("store-0.stores.example", 50064)
