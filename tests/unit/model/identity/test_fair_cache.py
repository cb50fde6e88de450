"""A cache that several owners share."""

from kernelsvc.model.identity.fair_cache import FairCache


def keys(cache: FairCache[str, int], owner: str) -> list[str]:
    return [key for key, _ in cache.of(owner)]


def test_an_owner_loses_its_own_oldest_entries() -> None:
    cache = FairCache[str, int](3, 100)
    cache.put("bob", "b", 0)
    for number in range(5):
        cache.put("alice", f"a{number}", number)
    assert keys(cache, "alice") == ["a2", "a3", "a4"]
    assert [cache.get(key) for key in ("b", "a1", "a4")] == [0, None, 4]


def test_over_the_limit_of_all_the_one_that_has_most_loses() -> None:
    cache = FairCache[str, int](100, 4)
    for key in ("b0", "b1"):
        cache.put("bob", key, 0)
    for number in range(50):
        cache.put("mallory", f"m{number}", number)
    assert (keys(cache, "bob"), keys(cache, "mallory")) == (["b0", "b1"], ["m48", "m49"])
    for name in ("c", "d"):
        cache.put(name, name, 0)
    assert [keys(cache, name) for name in ("bob", "mallory", "c", "d")] == [["b1"], ["m49"], ["c"], ["d"]]


def test_an_entry_that_is_put_again_is_the_newest() -> None:
    cache = FairCache[str, int](2, 100)
    for key in ("a", "b", "a", "c"):
        cache.put("alice", key, 1)
    assert keys(cache, "alice") == ["a", "c"]
    cache.put("bob", "a", 2)
    assert (keys(cache, "alice"), keys(cache, "bob"), len(cache)) == (["c"], ["a"], 2)


def test_sizes_count_and_are_given_back() -> None:
    cache = FairCache[str, int](10, 100)
    cache.put("alice", "large", 0, size=11)
    assert (len(cache), cache.pop("large"), "large" in cache) == (0, None, False)
    cache.put("alice", "a", 1, size=6)
    assert cache.pop("a") == 1
    cache.put("alice", "b", 2, size=6)
    cache.put("alice", "c", 3, size=4)
    assert keys(cache, "alice") == ["b", "c"]
