"""E2B's Python SDK: every kind of chart, deserialised by the SDK's own classes. Arguments: address, token."""

import os
import sys

os.environ.update(E2B_API_URL=sys.argv[1], E2B_SANDBOX_URL=sys.argv[1], E2B_API_KEY=sys.argv[2])

from e2b_code_interpreter import Sandbox, charts

BEGIN = """
import datetime
import matplotlib.pyplot as plt
days = [datetime.date(2026, 1, day) for day in (1, 2, 3)]
"""


def chart(code):
    execution = sandbox.run_code(BEGIN + code + "\nplt.show()")
    assert execution.error is None, execution.error
    (result,) = execution.results
    assert result.png
    assert result.formats().count("chart") == 1
    return result.chart


def lines():
    found = chart("plt.plot([1, 2, 3], [4, 5, 6], label='a'); plt.title('T'); plt.xlabel('t (s)'); plt.ylabel('v [m]')")
    assert isinstance(found, charts.LineChart)
    assert (found.title, found.x_label, found.x_unit, found.y_label, found.y_unit) == ("T", "t (s)", "s", "v [m]", "m")
    (line,) = found.elements
    assert (line.label, [tuple(point) for point in line.points]) == ("a", [(1, 4), (2, 5), (3, 6)])
    assert (found.x_scale, found.y_scale) == (charts.ScaleType.LINEAR, charts.ScaleType.LINEAR)
    logged = chart("plt.loglog([1, 10, 100], [1, 2, 3])")
    assert (logged.x_scale, logged.y_scale) == (charts.ScaleType.LOG, charts.ScaleType.LOG)
    dated = chart("plt.plot(days, [1, 2, 3])")
    assert dated.x_scale is charts.ScaleType.DATETIME
    assert str(dated.elements[0].points[0][0]).startswith("2026-01-01"), dated.elements[0].points
    assert chart("plt.plot(['p', 'q'], [1, 2])").x_scale is charts.ScaleType.CATEGORICAL
    assert chart("plt.yscale('symlog'); plt.plot([1, 2], [-1, 1])").y_scale is charts.ScaleType.SYMLOG
    errors = chart("plt.errorbar([1, 2], [3, 4], yerr=[0.1, 0.2], xerr=0.5)")
    assert isinstance(errors, charts.LineChart)
    (raw,) = errors.to_dict()["elements"]
    assert [[round(each, 6) for each in pair] for pair in raw["y_errors"]] == [[0.1, 0.1], [0.2, 0.2]]
    assert [[round(each, 6) for each in pair] for pair in raw["x_errors"]] == [[0.5, 0.5], [0.5, 0.5]]


def points():
    found = chart("plt.scatter([1, 2], [3, 4], label='a'); plt.scatter([5], [6], label='b')")
    assert isinstance(found, charts.ScatterChart)
    told = [(one.label, [tuple(point) for point in one.points]) for one in found.elements]
    assert told == [("a", [(1, 3), (2, 4)]), ("b", [(5, 6)])]


def bars():
    found = chart("plt.bar(['p', 'q'], [1, 2], yerr=[0.1, 0.2], label='g')")
    assert isinstance(found, charts.BarChart)
    assert [(bar.label, bar.group, float(bar.value)) for bar in found.elements] == [("p", "g", 1), ("q", "g", 2)]
    raw = [[round(each, 6) for each in bar["error"]] for bar in found.to_dict()["elements"]]
    assert raw == [[0.1, 0.1], [0.2, 0.2]], raw
    lying = chart("plt.barh(['p', 'q'], [1, 2])")
    assert [(bar.label, float(bar.value)) for bar in lying.elements] == [("p", 1), ("q", 2)]


def pies():
    found = chart("plt.pie([1, 3], labels=['p', 'q'])")
    assert isinstance(found, charts.PieChart)
    assert [(one.label, round(one.angle), one.radius) for one in found.elements] == [("p", 90, 1), ("q", 270, 1)]


def boxes():
    found = chart("plt.boxplot([[1, 2, 3, 4, 5, 20], [2, 3, 4]], tick_labels=['p', 'q'])")
    assert isinstance(found, charts.BoxAndWhiskerChart)
    first, second = found.elements
    assert (first.label, first.median, first.outliers) == ("p", 3.5, [20])
    assert (second.min, second.first_quartile, second.median, second.third_quartile, second.max) == (2, 2.5, 3, 3.5, 4)


def several():
    found = chart("_, (a, b) = plt.subplots(1, 2); a.plot([1, 2]); b.bar(['p'], [1]); plt.suptitle('both')")
    assert isinstance(found, charts.SuperChart)
    assert [type(each) for each in found.elements] == [charts.LineChart, charts.BarChart]
    assert found.title == "both", found.title


with Sandbox.create() as sandbox:
    for kind in (lines, points, bars, pies, boxes, several):
        kind()
print("ok")
