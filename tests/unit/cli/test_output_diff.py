import pytest

from kernelsvc.cli.output_diff import difference


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def shown(**data):
    names = {"plain": "text/plain", "html": "text/html", "png": "image/png"}
    return {"output_type": "display_data", "data": {names.get(k, k): v for k, v in data.items()}, "metadata": {}}


def error(evalue="no"):
    return {"output_type": "error", "ename": "ValueError", "evalue": evalue, "traceback": ["at 0x1"]}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([], []),
        ([stream("a\n"), stream("b\n")], [stream("a\nb\n")]),
        ([stream(["a\n", "b\n"])], [stream("a\nb\n")]),
        ([stream("o"), stream("e", "stderr")], [stream("e", "stderr"), stream("o")]),
        ([shown(plain="<X at 0x7f0011223344>")], [shown(plain="<X at 0x7fffeeddccbb>")]),
        ([stream("\x1b[31mred\x1b[0m")], [stream("red")]),
        ([shown(png="aGk=\n", plain="<Figure 1>")], [shown(png="aGk=", plain="<Figure 2>")]),
        ([error()], [{**error(), "traceback": ["other"]}]),
        ([{"output_type": "execute_result", "execution_count": 1, "data": {"text/plain": "1"}}],
         [{"output_type": "execute_result", "execution_count": 9, "data": {"text/plain": "1"}}]),
        ([shown(plain="kept\n")], [shown(plain="kept", html="more")]),
    ],
)  # fmt: skip
def test_the_same(before, now):
    assert difference(before, now) is None


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([stream("a\nb\n")], [stream("a\nc\n")], "stdout: line 2: 'b' before, 'c' now"),
        ([stream("a\n")], [], "stdout: line 1: 'a' before, nothing now"),
        ([stream("w", "stderr")], [], "stderr: line 1: 'w' before, nothing now"),
        ([], [error()], "error: none before, ValueError: no now"),
        ([shown(plain="1")], [], "1 results and displays before, 0 now"),
        ([shown(plain="1")], [shown(plain="2")], "text/plain: line 1: '1' before, '2' now"),
        ([shown(png="aGk=")], [shown(png="aG8=")], "image/png: another image"),
        ([shown(html="<b>")], [shown(png="x")], "text/html before, image/png now"),
        ([stream([1, None])], [], "stdout: line 1: '1None' before, nothing now"),
        ([{**shown(), "data": 5}], [shown(png="x")], "nothing before, image/png now"),
    ],
)
def test_different(before, now, said):
    assert difference(before, now) == said
