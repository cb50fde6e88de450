"""``POST /v1/execute``: one request in a session that is created for it and closed after it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec

from kernelsvc.errors import BadRequest
from kernelsvc.model.objects import Call, CellRequest, Principal, SessionRequest
from kernelsvc.protocol import function_call
from kernelsvc.service.api import ServiceApi


async def run_once(service: ServiceApi, who: Principal, call: Call) -> dict[str, Any]:
    """Run code or a function. Safe to cancel: the session is closed anyway.

    Args:
        service: runs the session.
        who: the caller.
        call: the code or the function, its arguments, files and limits.

    Returns:
        The cell as JSON. For a function, ``value`` holds its return value.

    Raises:
        BadRequest: there is neither code nor a function, or both, or a file name has a path in it.
        KernelsvcError: as ``ServiceApi.create`` and ``ServiceApi.execute``.
    """
    if (call.code is None) == (call.function is None):
        raise BadRequest("Give either 'code' or 'function'.")
    source = call.code
    if source is None:
        source = function_call.function_cell(call.function or "", call.args, call.kwargs)
    request = SessionRequest(template=call.template, limits=call.limits, name="execute")
    session = (await service.create(who, request)).id
    files = service.files
    try:
        for name, text in call.files.items():
            if "/" in name:
                raise BadRequest(f"The file name {name!r} has a path in it. Give a plain name.")
            await files.put(who, session, os.fsencode(name), text.encode())
        request_cell = CellRequest(code=source, timeout_seconds=call.timeout_seconds, meta=call.meta)
        cell = await service.execute(who, session, request_cell)
    finally:
        await asyncio.shield(service.close(who, session, reason="executed"))
    result: dict[str, Any] = msgspec.to_builtins(cell)
    if call.function is not None:
        result["code"] = call.function  # the cell around it is kernelsvc's
        result["value"] = function_call.value_of(cell)
    return result
