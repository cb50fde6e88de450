"""What a forked kernel adds for models: forms of values, changes, and the options of libraries as in Jupyter."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from kernel_processes import Answer, Client, Template

MIME = "text/vnd.kernelsvc.model"
OPTIONS = (
    "import json, pandas\nfound = {}\nfor name in sorted(pandas._config.config._registered_options):\n"
    "    value = pandas.get_option(name)\n"
    "    found[name] = repr(value) if not callable(value) else 'callable'\nprint(json.dumps(found))"
)


@pytest.fixture(scope="session")
def template(preloaded_template: Template) -> Template:
    return preloaded_template


def shown(answer: Answer) -> list[dict[str, Any]]:
    """Return the MIME bundles of a cell."""
    results = [m.content["data"] for m in answer.messages("execute_result")]
    return [*answer.displays, *results]


async def test_a_value_has_a_form_for_models_and_a_number_has_none(k: Client) -> None:
    assert shown(await k.run("1 + 1")) == [{"text/plain": "2"}]
    (bundle,) = shown(await k.run("import pandas as pd\npd.DataFrame({'a': [1], 'b': ['x']})"))
    assert bundle[MIME] == "DataFrame, 1 rows x 2 columns\na,b\n1,x"
    assert "text/html" in bundle
    (bundle,) = shown(await k.run("display({'text/plain': 'Figure()', 'text/markdown': '# a'}, raw=True)"))
    assert MIME not in bundle
    (bundle,) = shown(await k.run("from IPython.display import Markdown; display(Markdown('# a'))"))
    assert bundle[MIME] == "# a"


async def test_what_a_plot_returns_is_not_shown_beside_its_picture(k: Client) -> None:
    code = "import matplotlib.pyplot as plt\nplt.figure()\nplt.title('T')\nplt.plot([1, 2, 4], label='n')"
    picture, result = shown(await k.run(code))
    assert picture[MIME] == "[picture: 'T'; line 'n' 3 points, y 1 … 4]"
    assert "image/png" in picture
    assert result[MIME] == ""


async def test_for_models_the_library_of_plotly_is_left_out(k: Client) -> None:
    code = "display({'text/html': '<script>/** plotly.js v3.1.0 */' + ' ' * 2_000_000}, raw=True)"
    assert shown(await k.run(code, changes=True)) == []
    assert len(shown(await k.run(code))) == 1


async def test_an_exception_that_ends_a_thread_has_the_form_of_a_cells_error(k: Client) -> None:
    code = "import threading\ndef work(n):\n    return 1 / n\nt = threading.Thread(target=work, args=(0,))\n"
    code += "t.start(); t.join()"
    text = (await k.run(code, changes=True)).stderr
    assert text.startswith("Exception in thread Thread-"), text
    assert "  Cell [" in text
    assert "where n = 0" in text
    assert text.endswith("ZeroDivisionError: division by zero\n")
    assert "/" not in text.replace("1 / n", "")
    assert "threading.py" in (await k.run(code)).stderr


async def test_changes_are_reported_to_who_asks(k: Client) -> None:
    code = "import pathlib\nn = 3\npathlib.Path('data.csv').write_text('1,2')\nNone"
    assert "changes" not in (await k.run(code)).reply.metadata["kernelsvc"]
    answer = await k.run("del n; m = [1]; pathlib.Path('more.csv').write_text('1,2'); None", changes=True)
    assert answer.reply.metadata["kernelsvc"]["changes"] == {
        "new": ["m: list 1 items"],
        "gone": ["n"],
        "files": ["+more.csv (3 bytes)"],
    }
    answer = await k.run("1 / 0", changes=True)
    assert answer.reply.content["model"][-1] == "ZeroDivisionError: division by zero"
    assert answer.reply.metadata["kernelsvc"]["changes"] == {}


async def test_the_options_of_pandas_are_those_of_jupyter(k: Client) -> None:
    stock = (
        "import sys\nfrom ipykernel.ipkernel import IPythonKernel\n"
        "kernel = IPythonKernel.instance()\nprint('ready')\nkernel.shell.run_cell(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", stock, OPTIONS], capture_output=True, text=True, timeout=60, check=True
    )
    expected = json.loads(done.stdout.splitlines()[-1])
    assert len(expected) > 30
    assert json.loads((await k.run(OPTIONS)).stdout) == expected
