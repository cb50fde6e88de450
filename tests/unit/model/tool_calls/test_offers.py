"""Names, filters, redaction and texts of offers."""

from __future__ import annotations

import pytest

from kernelsvc.errors import BadRequest
from kernelsvc.model.tool_calls import offers
from kernelsvc.model.tool_calls.offers import Offer

ORDERS = Offer(
    name="search_orders",
    description="Orders of a customer, newest first.",
    parameters={
        "type": "object",
        "properties": {
            "limit": {"type": "integer", "default": 50},
            "customer": {"type": "integer", "description": "Its number."},
            "password": {"type": "string", "format": "password"},
            "inner": {"type": "object", "properties": {"key": {"type": "string", "writeOnly": True}}},
        },
        "required": ["customer"],
    },
    returns={"type": "array", "items": {"type": "object"}},
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("search_orders", "search_orders"),
        ("fetch-page", "fetch_page"),
        ("github.create-issue", "github.create_issue"),
        ("3d", "_3d"),
        ("class", "class_"),
        ("a.class", "a.class_"),
        ("search", "search_"),
        ("a.search", "a.search"),
        ("a/b", "a_b"),
    ],
)
def test_identifier(name: str, expected: str) -> None:
    assert offers.identifier(name) == expected


def test_two_names_with_one_identifier_are_refused_by_name() -> None:
    with pytest.raises(BadRequest, match=r"'a_b' and 'a-b' are both tools\.a_b"):
        offers.check([Offer(name="a_b"), Offer(name="a-b")])
    with pytest.raises(BadRequest, match=r"tools\.a_b"):
        offers.check([Offer(name="a-b")], others=["a_b"])
    offers.check([Offer(name="a_b")], others=["a_b"])


def test_the_size_and_the_number_of_offers_are_bounded() -> None:
    with pytest.raises(BadRequest, match="may have 65536"):
        offers.check([Offer(name="a", parameters={"x": "y" * 70_000})])
    with pytest.raises(BadRequest, match="1000 offers"):
        offers.check([Offer(name=f"a{n}") for n in range(1001)])


def test_redaction_follows_names_pointers_and_the_schema() -> None:
    offer = Offer(name="a", parameters=ORDERS.parameters, redact=["token", "/list/*/secret"])
    value = {"token": "T", "password": "P", "inner": {"key": "K", "x": 1}, "list": [{"secret": "S"}, {"b": 2}]}
    clean, found = offers.redact(value, offers.redactions(offer))
    assert clean == {
        "token": {"$redacted": 3},
        "password": {"$redacted": 3},
        "inner": {"key": {"$redacted": 3}, "x": 1},
        "list": [{"secret": {"$redacted": 3}}, {"b": 2}],
    }
    assert found == ["/token", "/list/*/secret", "/password", "/inner/key"]
    assert value["password"] == "P", "the original stays"


@pytest.mark.parametrize("value", [None, 5, "text", [], {"inner": 3}, {"list": {}}])
def test_redaction_of_other_shapes_changes_nothing(value: object) -> None:
    assert offers.redact(value, ["/inner/key", "/list/0/x"]) == (value, [])


@pytest.mark.parametrize(
    ("value", "pointers"),
    [
        ({"l": [0] * 50_000}, [f"/l/*/{n}" for n in range(100)]),
        ({"l": [{"a": 1, "b": 2}] * 50_000}, ["/l/*/a", "/l/*/b", "/l/*/c"]),
        ({f"{n}": n for n in range(50_000)}, [f"/{n}" for n in range(1000)]),
        ({"l": [[[[0]]]] * 20_000}, [f"/l/{a}/{b}/{c}/0/x" for a in "*0" for b in "*0" for c in "*0"] * 12),
    ],
)
def test_arguments_that_take_too_long_to_redact_are_left_out_as_a_whole(value: object, pointers: list[str]) -> None:
    shown, found = offers.redact(value, pointers)
    assert (shown, found) == (offers.hidden(value), [""])
    assert offers.redact(value, found) == (shown, found)


def test_secrets_of_a_large_list_are_redacted() -> None:
    shown, found = offers.redact({"l": [{"a": 1, "b": 2}] * 20_000}, ["/l/*/a", "/l/*/b", "/l/*/c"])
    assert found == ["/l/*/a", "/l/*/b"]
    assert shown["l"][19_999] == {"a": {"$redacted": 1}, "b": {"$redacted": 1}}


def test_pointers_to_secrets_are_limited() -> None:
    def schema(name: str, count: int) -> dict[str, object]:
        return {"properties": {name: {"properties": {f"p{n}": {"writeOnly": True} for n in range(count)}}}}

    assert len(offers.redactions(Offer(name="a", parameters=schema("n", 1000)))) == 1000
    with pytest.raises(BadRequest, match="secret"):
        offers.redactions(Offer(name="a", parameters=schema("n" * 30_000, 1000)))


def test_a_signature_does_not_search_the_required_names_for_each_parameter() -> None:
    class Required(list[str]):
        def __contains__(self, _: object) -> bool:
            raise AssertionError("searched")

    parameters = {"properties": {"a": {"type": "integer"}, "b": {}}, "required": Required(["a", [1]])}  # type: ignore[list-item]
    assert offers.signature(Offer(name="f", parameters=parameters)) == "f(a: int, b: Any = ...)"


def test_the_signature_has_required_arguments_first() -> None:
    text = offers.signature(ORDERS)
    assert text == "search_orders(customer: int, limit: int = 50, password: str = ..., inner: dict = ...) -> list[dict]"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "str"),
        ({"type": ["string", "null"]}, "str | None"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "int | None"),
        ({"enum": ["a", 1]}, "Literal['a', 1]"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "dict[str, float]"),
        ({"type": "string", "contentEncoding": "base64"}, "bytes"),
        ({"$ref": "#/$defs/Order"}, "Order"),
        ({"type": 7}, "Any"),
        ("nonsense", "Any"),
    ],
)
def test_type_text(schema: object, expected: str) -> None:
    assert offers.type_text(schema) == expected


def test_a_schema_that_is_nested_without_end_is_read_to_a_depth() -> None:
    schema: dict[str, object] = {}
    schema["items"] = schema
    schema["type"] = "array"
    assert offers.type_text(schema).count("list") == offers.MAX_SCHEMA_DEPTH + 1


def test_the_documentation_names_arguments_and_approval() -> None:
    text = offers.docstring(Offer(name="a", parameters=ORDERS.parameters, approval="always", effects="write"))
    assert "customer: Its number." in text
    assert "A person approves" in text
    assert "changes something" in text


def test_nearest_names() -> None:
    assert offers.nearest("serch_orders", ["search_orders", "send_mail"])[0] == "search_orders"


@pytest.mark.parametrize(
    ("allow", "deny", "tool", "permitted"),
    [
        (None, [], "a.b", True),
        ([], [], "a.b", False),
        (["a.*"], [], "a.b", True),
        (["a.*"], ["*.b"], "a.b", False),
        (["a"], [], "a.b", False),
        (None, ["a.?"], "a.b", False),
        (None, ["A.B"], "a.b", True),
    ],
)
def test_a_filter_permits(allow: list[str] | None, deny: list[str], tool: str, permitted: bool) -> None:
    assert offers.ToolFilter(allow=allow, deny=deny).permits(tool) is permitted


def test_all_filters_of_a_session_have_few_patterns() -> None:
    half = offers.ToolFilter(deny=[f"*.{n}" for n in range(offers.MAX_WILDCARDS // 2)])
    names = offers.ToolFilter(allow=[f"a.{n}" for n in range(1000)])
    filters = offers.narrowed(offers.narrowed([half], names), half)
    assert filters == [half, names, half]
    assert offers.narrowed(filters, None) == filters
    with pytest.raises(BadRequest, match="may have 64"):
        offers.narrowed(filters, offers.ToolFilter(allow=["a?"]))
