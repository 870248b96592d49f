from __future__ import annotations

from shoal.kv_store.policy.lru import Lru
from shoal.kv_store.policy.tenants import Tenants


def key(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def always(_: bytes) -> bool:
    return True


def filled(quotas: dict[str, int]) -> Tenants:
    tenants = Tenants(Lru, quotas)
    for number in range(6):
        tenants.insert("a", key(f"a{number}"), 10, 1.0, None)
    for number in range(3):
        tenants.insert("b", key(f"b{number}"), 10, 1.0, None)
    return tenants


def test_whoever_is_above_their_quota_gives_way_first() -> None:
    tenants = filled({"a": 40, "b": 40})
    tenants.touch("a", [key("a0")] * 9)
    assert [tenants.victim(always) for _ in range(2)] == [("a", key("a1")), ("a", key("a2"))]
    assert (tenants.used_bytes("a"), tenants.used_bytes("b")) == (40, 30)
    assert tenants.victim(always) == ("b", key("b0"))  # within their quotas, what was reused stays


def test_the_one_furthest_above_in_proportion_goes_first() -> None:
    tenants = filled({"a": 50, "b": 10})
    assert tenants.victim(always) == ("b", key("b0"))  # 30 of 10 before 60 of 50


def test_tenants_without_a_quota_have_no_guarantee() -> None:
    tenants = filled({"a": 100})
    assert [tenants.victim(always) for _ in range(3)] == [("b", key(f"b{number}")) for number in range(3)]
    assert tenants.victim(always) == ("a", key("a0"))


def test_pinned_tenants_are_passed_over() -> None:
    tenants = filled({"a": 40, "b": 40})
    assert tenants.victim(lambda each: each.startswith(b"b")) == ("b", key("b0"))
    assert tenants.victim(lambda each: False) is None
    assert tenants.victim(always, only="b") == ("b", key("b1"))
    assert tenants.victim(always, only="nobody") is None


def test_bytes_follow_inserts_and_removes() -> None:
    tenants = filled({})
    tenants.insert("a", key("a0"), 10, 1.0, None)  # held already
    assert tenants.used_bytes("a") == 60
    tenants.remove("a", key("a0"))
    tenants.remove("a", key("a0"))
    tenants.remove("nobody", key("a0"))
    assert tenants.used_bytes("a") == 50
    assert tenants.admit("c", key("c"), 10, 1.0)
    assert tenants.used_bytes("nobody") == 0
