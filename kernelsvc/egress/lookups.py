"""Name look-ups of one session: answered here, from the rules alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from kernelsvc.egress.synthetic_names import SyntheticNames, TooManyNames
from kernelsvc.egress.token_bucket import TokenBucket
from kernelsvc.model.network.hosts import clean_name
from kernelsvc.model.network.policy import NetworkPolicy
from kernelsvc.protocol.egress import dns

#: Look-ups of one session in a second, and at once. More get no answer, and the resolver asks again.
RATE, BURST = 200.0, 400
#: Seconds for a query over TCP, and its largest size in bytes.
TCP_SECONDS, MAX_QUERY = 10.0, 1500
_AT_ONCE = 16
_IP_PKTINFO = 8  # ip(7); Python has no name for it

#: Called with a name that was refused, as it may be shown, and the reason.
OnRefused = Callable[[str, str], None]


class NameServer:
    """Answers the look-ups of one session. No query leaves this process, so no data leaves in a name.

    Args:
        sock: a UDP socket in the session's network namespace, which the caller closes.
        policy: the rules.
        names: gives each allowed name its address.
        on_refused: called for each refusal.
    """

    def __init__(
        self, sock: socket.socket, policy: NetworkPolicy, names: SyntheticNames, on_refused: OnRefused
    ) -> None:
        self._sock = sock
        self._policy = policy
        self._names = names
        self._on_refused = on_refused
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(RATE, BURST, self._loop.time())
        sock.setblocking(False)
        # The answer must come from the address that was asked, which may be any.
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Answer no more."""
        self._loop.remove_reader(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _, peer = self._sock.recvmsg(MAX_QUERY, 64)
            except OSError:
                return
            answer = self._answer(data)
            if answer is None or not ancillary:
                continue
            # struct in_pktinfo: interface, address to send from, address of the packet.
            asked = struct.unpack_from("=I4s4s", ancillary[0][2])[2]
            info = struct.pack("=I4s4s", 0, asked, b"\0" * 4)
            with contextlib.suppress(OSError):
                self._sock.sendmsg([answer], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, peer)

    async def serve_tcp(self, sock: socket.socket) -> None:
        """Answer one query over TCP (RFC 7766: two bytes of length come first)."""
        async with asyncio.timeout(TCP_SECONDS):
            size = struct.unpack("!H", await self._read(sock, 2))[0]
            if size > MAX_QUERY:
                return
            answer = self._answer(await self._read(sock, size))
            if answer is not None:
                await self._loop.sock_sendall(sock, struct.pack("!H", len(answer)) + answer)

    async def _read(self, sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = await self._loop.sock_recv(sock, size - len(data))
            if not chunk:
                raise ConnectionResetError("the query ended early")
            data += chunk
        return data

    def _answer(self, data: bytes) -> bytes | None:
        if self._bucket.take(self._loop.time()):
            return None
        try:
            question = dns.parse_query(data)
        except dns.InvalidQuery:
            return None
        if question.kind == dns.TYPE_PTR:
            return self._reverse(question)
        try:
            name = clean_name(question.name)
            if not self._policy.may_look_up(name):
                raise ValueError("no rule")
            address = self._names.address_of(name)
        except (ValueError, TooManyNames) as error:
            why = "too many names" if isinstance(error, TooManyNames) else str(error)
            self._on_refused(question.name, why)
            return dns.build_answer(question, dns.NAME_ERROR)
        if question.kind == dns.TYPE_A:
            return dns.build_answer(question, dns.NO_ERROR, socket.inet_aton(address))
        # No AAAA record, and no HTTPS record: its keys would encrypt the server name (RFC 9848).
        return dns.build_answer(question, dns.NO_ERROR)

    def _reverse(self, question: dns.Question) -> bytes:
        address = dns.reverse_address(question.name)
        name = self._names.name_of(address) if address else None
        if name is None:
            return dns.build_answer(question, dns.NAME_ERROR)
        return dns.build_answer(question, dns.NO_ERROR, dns.encode_name(name))
