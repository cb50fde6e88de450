"""Carries out the scenarios with the Python client: ``python driver.py CONTROL``. See ``relay.py``."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import traceback
import urllib.request
from typing import Any

from waiting import wait_until

from kernelsvc import AsyncClient, KernelsvcError
from kernelsvc.client import AsyncProgram, AsyncSession, ConnectionLost
from kernelsvc.model import events as ev

Step = dict[str, Any]


def content(size: int) -> bytes:
    return bytes(index % 251 for index in range(size))


def numbers_in(text: str) -> Any:
    """In order from 0, none missing, none twice: then their count says it all."""
    found = [int(word) if word.isdigit() else word for word in text.split()]
    return len(found) if found == list(range(len(found))) else {"wrong": found[:50], "count": len(found)}


def told(events: list[ev.Event]) -> Step:
    text = "".join(event.text for event in events if isinstance(event, ev.Stream))
    last = events[-1] if events else None
    return {
        "text": text if len(text) <= 1000 else None,
        "numbers": numbers_in(text) if text else None,
        "rising": all(one.seq < two.seq for one, two in itertools.pairwise(events)),
        "first": events[0].__struct_config__.tag if events else None,
        "last": last.__struct_config__.tag if last else None,
        "reason": last.reason if isinstance(last, ev.CellFinished) else None,
    }


def of_cell(cell: Any) -> Step:
    ename = cell.error and cell.error.ename
    return {"id": cell.id, "text": cell.text, "reason": cell.reason, "ename": ename, "value": cell.value}


class Driver:
    """One scenario: its client, and everything that its steps name."""

    def __init__(self, control: str, client: AsyncClient) -> None:
        self.control, self.client = control, client
        self.sessions: dict[str, AsyncSession] = {}
        self.programs: dict[str, AsyncProgram] = {}
        self.started: dict[str, asyncio.Task[Any]] = {}
        self.counts: dict[str, int] = {}

    async def cause(self, what: str, **more: Any) -> Any:
        return await asyncio.to_thread(ask, f"{self.control}/fault", {"what": what, **more})

    async def fault(self, _: None, **given: Any) -> Any:
        return await self.cause(**given)

    async def result(self, step: Step) -> Any:
        try:
            given = dict(step)
            given.pop("expect", None)
            session = self.sessions.get(given.pop("in", ""))
            return await getattr(self, given.pop("op").replace("await", "wait"))(session, **given)
        except KernelsvcError as error:
            return {"error": error.code, "message": error.message}

    async def create(self, _: None, **given: Any) -> Step:
        name, options = given["as"], given.get("options", {})
        session = self.sessions[name] = await self.client.create_session(**options)
        return {"state": session.details.state}

    async def run(self, session: AsyncSession, code: str, options: Step | None = None, decide: Any = None) -> Step:
        more = {} if decide is None else {"on_approval": lambda call: decide}
        return of_cell(await session.run(code, **(options or {}), **more))

    async def stream(self, session: AsyncSession, code: str, options: Step | None = None, **given: Any) -> Step:
        stream = session.stream(code, **(options or {}))
        during, answers = list(given.get("during", ())), list(given.get("input", ()))
        pause = given.get("pause", {})
        events: list[ev.Event] = []
        more = {}
        async for event in stream:
            events.append(event)
            while during and len(events) >= during[0]["after"]:
                await self.cause(during.pop(0)["fault"])
            if isinstance(event, ev.InputRequested):
                await answer(session, event, answers.pop(0))
            if len(events) == pause.get("after"):
                before = await self.cause("passed")
                await self.until(session, pause["until"])
                more["passed_in_pause"] = await self.cause("passed") - before
        return {**told(events), **more}

    async def batch(self, session: AsyncSession, cells: list[str]) -> Step:
        return {"reasons": [cell.reason for cell in await session.batch(cells)]}

    async def view(self, session: AsyncSession, cell: int) -> Step:
        return {"text": (await session.view(cell)).text}

    async def variables(self, session: AsyncSession) -> Step:
        return {"names": [each.name for each in await session.variables()]}

    async def value(self, session: AsyncSession, name: str) -> Step:
        return {"value": await session.value(name)}

    async def once(self, _: None, options: Step) -> Step:
        return of_cell(await self.client.execute_once(**options))

    async def find(self, _: None, id: str) -> Step:
        return {"id": (await self.client.session(id)).id}

    async def cells(self, session: AsyncSession) -> Step:
        return {"count": len(await session.cells())}

    async def events(self, session: AsyncSession) -> Step:
        return told([event async for event in session.events(follow=False)])

    async def start(self, _: None, step: Step, **given: Any) -> None:
        self.started[given["as"]] = asyncio.create_task(self.result(step))
        await asyncio.sleep(0)

    async def wait(self, _: None, of: str) -> Any:
        return await self.started[of]

    async def until(self, session: AsyncSession, state: str) -> None:
        async def reached() -> bool:
            return (await session.info()).state == state

        await wait_until(reached, deadline=60, what=f"the state {state}")

    async def reconnects(self, _: None) -> Step:
        return {"some": self.client.reconnects > 0}

    async def interrupt(self, session: AsyncSession) -> None:
        await session.interrupt()

    async def close(self, session: AsyncSession) -> Step:
        return {"state": (await session.close()).state}

    async def upload(self, session: AsyncSession, name: str, size: int) -> Step:
        return {"name": await session.upload(content(size), name)}

    async def download(self, session: AsyncSession, name: str) -> Step:
        data = await session.download(name)
        return {"size": len(data), "whole": data == content(len(data))}

    async def files(self, session: AsyncSession, recursive: bool) -> Step:
        return {"paths": sorted(each.path for each in await session.files(recursive=recursive))}

    async def delete(self, session: AsyncSession, name: str) -> None:
        await session.delete(name)

    async def notebook(self, session: AsyncSession) -> Step:
        return {"text": (await session.notebook()).decode()}

    async def offer(self, session: AsyncSession, names: list[str], options: Step | None = None) -> None:
        def double(x: int) -> int:
            return self.count("double", 2 * x)

        def refuse() -> None:
            self.count("refuse")
            raise ValueError("not this")

        async def cut() -> str:
            await self.cause("cut")
            return self.count("cut", "cut")

        functions = {"double": double, "refuse": refuse, "cut": cut}
        await session.offer(*(functions[name] for name in names), **(options or {}))

    def count(self, name: str, value: Any = None) -> Any:
        self.counts[name] = self.counts.get(name, 0) + 1
        return value

    async def called(self, _: None) -> Step:
        return dict(self.counts)

    async def withdraw(self, session: AsyncSession) -> None:
        await session.withdraw()

    async def calls(self, session: AsyncSession) -> Step:
        return {"tools": [call.tool for call in await session.calls()]}

    async def checkpoint(self, session: AsyncSession, name: str) -> Step:
        return {"name": (await session.checkpoint(name)).name}

    async def rollback(self, session: AsyncSession, to: str) -> None:
        await session.rollback(to)

    async def branch(self, session: AsyncSession, **given: Any) -> None:
        names = given["as"]
        self.sessions |= zip(names, await session.branch(count=len(names)), strict=True)

    async def command(self, session: AsyncSession, command: Any, input: str | None = None) -> Step:
        found = await session.command(command, input=input)
        return {"stdout": found.stdout, "stderr": found.stderr, "exit_code": found.exit_code}

    async def program(self, session: AsyncSession, command: Any, options: Step | None = None, **given: Any) -> Step:
        made = self.programs[given["as"]] = await session.start_program(command, **(options or {}))
        return {"id": made.id}

    async def read(self, _: None, of: str, during: Any = ()) -> Step:
        program, during, found = self.programs[of], list(during), []
        async for piece in program:
            found.append(piece.data)
            while during and len(found) >= during[0]["after"]:
                await self.cause(during.pop(0)["fault"])
        text = b"".join(found).decode()
        ended = {"exit_code": program.details.exit_code, "dropped": program.dropped}
        return {"text": text, "numbers": numbers_in(text), **ended}

    async def write(self, _: None, of: str, text: str) -> None:
        await self.programs[of].write(text)

    async def close_input(self, _: None, of: str) -> None:
        await self.programs[of].close_input()

    async def signal(self, _: None, of: str, signal: int) -> None:
        await self.programs[of].signal(signal)


async def answer(session: AsyncSession, request: ev.InputRequested, text: str) -> None:
    """Answer ``input()``. The client does not send an answer twice, because a second one would be the next line."""
    try:
        await session.input(request.cell, text)
    except ConnectionLost:
        later = [event async for event in session.events(request.seq, follow=False)]
        if not any(isinstance(event, ev.InputGiven) for event in later):
            await session.input(request.cell, text)


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data)) as answer:
        return json.load(answer)


async def carry_out(control: str, scenario: Step) -> Any:
    try:
        options = {"token": scenario["token"], **scenario.get("client", {})}
        async with AsyncClient(scenario["url"], **options) as client:
            driver = Driver(control, client)
            results = []
            for step in scenario["steps"]:
                results.append(await driver.result(step))
                # Later steps may wait without end for one that failed.
                if "error" in (results[-1] or ()) and "error" not in step.get("expect", ()):
                    break
            return results
    except Exception:
        return {"failed": traceback.format_exc()}


def main(control: str) -> None:
    """Carry out scenarios until the test has no more."""
    while (scenario := ask(f"{control}/next")) is not None:
        ask(f"{control}/result", asyncio.run(carry_out(control, scenario)))


if __name__ == "__main__":
    main(sys.argv[1])
