"""Ids that name a node, and their forms in other APIs."""

from __future__ import annotations

import pytest

from kernelsvc.answers.answers import item_id, new_id
from kernelsvc.model.cluster import ids
from kernelsvc.protocol import e2b
from kernelsvc.protocol.anthropic import container_file_id
from kernelsvc.protocol.openai.responses import container_id
from kernelsvc.service.loading.background_loading import ids_in
from kernelsvc.session import new_session_id

PLAIN, OF_NODE = "s_0123456789abcdef", "s_a1b2c30123456789abcdef"


@pytest.mark.parametrize(("session", "node"), [(PLAIN, None), (OF_NODE, "a1b2c3")])
def test_a_session_names_its_node_or_none(session: str, node: str | None) -> None:
    assert ids.node_of(session) == node
    assert ids.session_of(session) == session
    assert ids.session_of(e2b.shown_id(session)) == session
    assert ids.session_of(e2b.shown_id(session).upper()) == session
    assert ids.session_of_kernel(ids.kernel_id(session)) == session
    assert e2b.session_id(e2b.shown_id(session)) == session
    assert ids_in(f"/v1/sessions/{session}/cells and {e2b.shown_id(session)}") == [session, session]


def test_a_new_session_without_a_node_names_none() -> None:
    assert ids.node_of(new_session_id()) is None


def test_a_new_session_on_a_node_has_its_name() -> None:
    made = new_session_id("a1b2c3")
    assert ids.node_of(made) == "a1b2c3"
    assert len(made) == len(OF_NODE)


def test_kernel_ids_have_the_shape_of_a_uuid() -> None:
    assert ids.kernel_id(PLAIN) == "6b737663-0000-8000-0123-456789abcdef"
    assert ids.kernel_id(OF_NODE) == "6b737663-01a1-b2c3-0123-456789abcdef"
    assert ids.session_of_kernel(PLAIN) == PLAIN
    assert ids.kernel_id("other") == "other"


@pytest.mark.parametrize("text", ["", "s_", "s_0123", "s_0123456789abcdefab", "x_0123456789abcdef", "../s_x"])
def test_other_texts_name_no_session(text: str) -> None:
    assert ids.session_of(text) is None
    assert ids.node_of(text) is None


def test_objects_of_openais_api_hint_at_their_node() -> None:
    response = new_id("resp", "a1b2c3")
    assert len(response) == len(new_id("resp"))
    assert ids.node_hint(response) == "a1b2c3"
    assert ids.node_hint(new_id("file", "a1b2c3").replace("_", "-")) == "a1b2c3"
    assert ids.node_hint(item_id(response, "msg")) == "a1b2c3"
    assert ids.node_hint("gpt-4") is None


@pytest.mark.parametrize("session", [PLAIN, OF_NODE])
def test_a_container_names_its_session(session: str) -> None:
    assert ids.session_of_container(container_id(session)) == session
    assert ids.session_of_container(f"{container_id(session)}-cfile_p00") == session
    assert ids.session_of_container(container_file_id(container_id(session), "cfile_p00")) == session
    assert ids.session_of_container(f"{container_id(session)}00") is None
