"""The ground truth of BFCL v4's multi-turn categories, called from code in a session, beside a direct run.

Usage: ``bfcl.py URL TOKEN [ENTRIES]`` with the package bfcl_eval on the path. Prints how many calls and entries had the
same results and end states in each form: blocking, awaited, and from a thread.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import bfcl_eval
from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING, STATELESS_CLASSES

from kernelsvc import Client
from kernelsvc.client.offered import offered
from kernelsvc.model.tool_calls.offers import identifier

DATA = Path(bfcl_eval.__file__).parent / "data"
CATEGORIES = ("base", "long_context", "miss_func", "miss_param")
CALLS = re.compile(r"^(\w+)\((.*)\)$", re.DOTALL)
#: How one call is written in each form. The function ``note`` keeps its result or error.
FORMS = {
    "blocking": "try: note(tools.{0})\nexcept Exception as e: note(str(e))\n",
    "awaited": "try: note(await tools.{0})\nexcept Exception as e: note(str(e))\n",
    "threaded": "try: note(pool.submit(lambda: tools.{0}).result())\nexcept Exception as e: note(str(e))\n",
}
HEAD = (
    "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(4)\nfound = []\nnote = found.append\n"
)


def entries(category: str) -> list[tuple[dict[str, Any], list[str]]]:
    """Return the entries of a category with their calls in order."""
    name = f"BFCL_v4_multi_turn_{category}.json"
    questions = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    answers = {}
    for line in (DATA / "possible_answer" / name).read_text().splitlines():
        found = json.loads(line)
        answers[found["id"]] = [call for turn in found["ground_truth"] for call in turn]
    return [(each, answers[each["id"]]) for each in questions]


def instances(entry: dict[str, Any], category: str) -> dict[str, Any]:
    """Return new objects of an entry, by class."""
    made = {}
    for name in entry["involved_classes"]:
        made[name] = getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name)()
        if name not in STATELESS_CLASSES:
            config = copy.deepcopy(entry["initial_config"].get(name, {}))
            made[name]._load_scenario(config, long_context=category == "long_context")
    return made


def methods(objects: dict[str, Any]) -> dict[str, Any]:
    """Return the public methods of an entry's objects."""
    return {
        name: method
        for each in objects.values()
        for name, method in inspect.getmembers(each, predicate=inspect.ismethod)
        if not name.startswith("_")
    }


def states(objects: dict[str, Any]) -> str:
    """Return the public state of objects as text. Private fields are times and generators of random numbers."""
    return json.dumps({name: _public(each) for name, each in objects.items()}, default=_public)


def _public(value: Any) -> Any:
    # A directory names the one that holds it.
    fields = vars(value) if hasattr(value, "__dict__") else None
    return str(value) if fields is None else {k: v for k, v in fields.items() if k[0] != "_" and k != "parent"}


def directly(call: str, names: dict[str, Any]) -> Any:
    """Return the result of a call as code in a session gets it: JSON, or the text of the error."""
    try:
        return json.loads(json.dumps(eval(call, dict(names)), default=str))
    except Exception as error:
        return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def main() -> None:
    """Run all entries in all forms and print the counts."""
    url, token, *more = sys.argv[1:]
    most = int(more[0]) if more else 200
    current: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    with Client(url, token) as client, client.create_session() as session:
        known: dict[str, list[str]] = {}
        for category in CATEGORIES:
            for entry, _ in entries(category):
                for name, method in methods(instances({**entry, "initial_config": {}}, "")).items():
                    known.setdefault(name, [*inspect.signature(method).parameters])

        def forward(name: str) -> Any:
            async def call(**arguments: Any) -> Any:
                return json.loads(json.dumps(current[name](**arguments), default=str))

            return call

        session.offer(*(
            offered(forward(name), name=name, effects="read",
                    parameters={"type": "object", "properties": {each: {} for each in parameters}})
            for name, parameters in known.items()
        ))  # fmt: skip
        for form, text in FORMS.items():
            for category in CATEGORIES:
                for entry, calls in entries(category)[:most]:
                    plain, offers = instances(entry, category), instances(entry, category)
                    expected = [directly(call, methods(plain)) for call in calls]
                    current.clear()
                    current.update(methods(offers))
                    code = HEAD
                    for call in calls:
                        name, arguments = CALLS.match(call.strip()).groups()  # type: ignore[union-attr]
                        code += text.format(f"{identifier(name)}({arguments})")
                    cell = session.run(code + "import json\nprint(json.dumps(found))", timeout=120)
                    got = json.loads(cell.raise_for_error().text)
                    same = sum(a == b for a, b in zip(got, expected, strict=True))
                    counts[f"{form} calls"] += same
                    counts[f"{form} other calls"] += len(calls) - same
                    counts[f"{form} states"] += states(plain) == states(offers)
                    counts[f"{form} other states"] += states(plain) != states(offers)
                    if same < len(calls) and counts["shown"] < 5:
                        counts["shown"] += 1
                        print([p for p in zip(calls, got, expected, strict=True) if p[1] != p[2]][:2], file=sys.stderr)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
