"""Messages between a node and the fronts of its cluster: a ``Hello``, reports, questions and answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from kernelsvc.model.cluster.ids import NODE_DIGITS

#: Version of the protocol between nodes and fronts.
PROTOCOL = 1
#: Seconds between two reports, and of silence until a node gets no new requests, and until its connections are cut. A
#: busy machine may delay reports for some seconds, so a silent node is not cut immediately.
REPORT_SECONDS, SILENT_SECONDS, CUT_SECONDS = 1.0, 3.0, 10.0
#: Most sessions whose ids do not name their node, in one report.
MAX_GUESTS = 100_000
#: Most nodes that a drained node may give its sessions to.
MAX_TARGETS = 100


class Hello(Struct, kw_only=True):
    """The first message of a node.

    Attributes:
        protocol: Version of the protocol.
        node: The node's name.
        instance: Random text that differs for each process.
        url: Address for requests. The host 0.0.0.0 or [::] stands for the address that the node connects from.
        version: Version of kernelsvc.
        public_key: The node's key for signatures.
    """

    protocol: int
    node: Annotated[str, Meta(pattern=rf"^[0-9a-f]{{{NODE_DIGITS}}}$(?!\n)")]
    instance: Annotated[str, Meta(max_length=64)]
    url: Annotated[str, Meta(max_length=300)]
    version: Annotated[str, Meta(max_length=64)]
    public_key: Annotated[str, Meta(max_length=1000)] = ""


class NodeReport(Struct, kw_only=True):
    """The state of a node.

    Attributes:
        sessions: Open sessions.
        max_sessions: The node's limit on them.
        promised_bytes: Memory that they may use.
        memory_bytes: Memory of all sessions together, if it is limited.
        cells: Unfinished cells.
        ready: Whether sessions can be created.
        draining: Whether the node refuses new sessions until its server has restarted.
        templates: Names of the templates.
        principals: Number of open sessions by the name of the principal.
        tokens: Digest of the node's tokens (``digest_of``).
        guests: Open sessions whose ids do not name this node. None: as in the report before.
    """

    sessions: int = 0
    max_sessions: int = 1
    promised_bytes: int = 0
    memory_bytes: int | None = None
    cells: int = 0
    ready: bool = False
    draining: bool = False
    templates: list[str] = []
    principals: dict[str, int] = {}
    tokens: str = ""
    guests: Annotated[list[str], Meta(max_length=MAX_GUESTS)] | None = None


class FrontQuestion(Struct, kw_only=True):
    """A question of a front to a node, on the node's connection.

    Attributes:
        id: Number of the question.
        key: A principal and an idempotency key: is it known?
        signed: A signed address (signature, path, operation, user, expiry): which session's is it?
        drain: Whether the node should drain.
        targets: For a drain: the nodes that should get its sessions, name and address. Empty: they stay.
    """

    id: int
    key: tuple[str, str] | None = None
    signed: tuple[str, str, str, str, int | None] | None = None
    drain: bool = False
    targets: Annotated[list[tuple[str, str]], Meta(max_length=MAX_TARGETS)] = []


class NodeMessage(Struct, kw_only=True, omit_defaults=True):
    """A message of a node.

    Attributes:
        hello: Sent first.
        report: Sent each second.
        answer: The id of a question.
        found: The answer, or None.
    """

    hello: Hello | None = None
    report: NodeReport | None = None
    answer: int | None = None
    found: str | None = None


#: Both directions are JSON, one object in a message. Unknown fields are skipped, so that releases can differ.
decode_message = msgspec.json.Decoder(NodeMessage).decode
decode_question = msgspec.json.Decoder(FrontQuestion).decode


def digest_of(hashes: Iterable[str]) -> str:
    """Return a digest of the hashes of tokens: it differs where a server accepts other tokens."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()[:16]
