import typing
from itertools import pairwise

import nbformat
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelsvc.model import events as ev
from kernelsvc.model import hash_chain, outputs
from kernelsvc.model.events import Reason
from kernelsvc.model.limits import CellUsage, Limits
from kernelsvc.model.network.rules import NetworkRules
from kernelsvc.model.notebook import RULES, CellFold, NotebookFold, fold, inherited, nb_id, notebook
from kernelsvc.model.objects import CellState
from kernelsvc.model.view.plain_form import MODEL_MIME

EVENTS = typing.get_args(ev.AnyEvent)


def stamped(*events):
    for n, event in enumerate(events, 1):
        event.session, event.seq, event.at = "s", n, hash_chain.timestamp(n)
    return list(events)


def run(cell, *inside, reason=Reason.OK, code="1", count=1, **finish):
    for event in inside:
        event.cell = cell
    return [
        ev.CellQueued(cell=cell, code=code),
        ev.CellStarted(cell=cell, execution_count=count),
        *inside,
        ev.CellFinished(cell=cell, reason=reason, execution_count=count, **finish),
    ]


def folded(*inside, budget=None, **kw):
    cell = CellFold(budget)
    for event in stamped(*run("c", *inside, **kw)):
        cell.feed(event)
    return cell


def valid(document):
    nb = nbformat.from_dict(document)
    nbformat.validate(nb, relax_add_props=False)
    ids = [c["id"] for c in document["cells"]]
    assert len(set(ids)) == len(ids)
    return document


# --- the union is closed -----------------------------------------------------------


def test_every_event_has_a_rule():
    assert set(RULES) == set(EVENTS)


# --- any sequence gives a valid notebook ----------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
mimes = st.sampled_from(["text/plain", "text/html", "image/png", "application/json", "application/x+json", "", "a/b"])
bundles = st.dictionaries(mimes | st.text(max_size=5), json_values, max_size=3)
cell_ids = st.sampled_from(["a", "b", "c:1", "x" * 100, "kernelsvc-note-2", nb_id("c:1"), "d.e"])
SPECIAL = {
    "arguments": json_values,
    "value": json_values,
    "error": st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=2),
    "data": bundles,
    "metadata": st.dictionaries(st.text(max_size=5), json_values, max_size=2),
    "user_expressions": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    "display_id": st.none() | st.sampled_from(["d1", "d2"]),
    "content": bundles,
    "sandbox": st.just(ev.SandboxReport(enforced=["seccomp"])),
    "usage": st.just(CellUsage(wall_ms=1.0)),
    "network": st.just(NetworkRules(allow=("pypi.org",))),
    "kernel": st.builds(ev.KernelInfo, language=st.text(max_size=3), python=st.text(max_size=3), kind=st.just("cold")),
    "text": st.text(max_size=30),
    "code": st.text(max_size=20),
    "undone": st.lists(cell_ids, max_size=3),
    "limits": st.builds(Limits, output_bytes=st.none() | st.integers(1, 200)),
    "files": st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=2), max_size=3),
    "parent": st.none() | st.just({"session": "p", "seq": 3}),
    "execution_count": st.none() | st.integers(-2, 50),
}


def event_of(cls):
    hints = typing.get_type_hints(cls)
    fields = {}
    for name in cls.__struct_fields__:
        if name in ("session", "seq", "at", "prev", "frame", "cell"):
            continue
        fields[name] = SPECIAL[name] if name in SPECIAL else st.from_type(hints[name])
    if cls is ev.InputGiven:
        fields["text"] = st.none() | st.text(max_size=5)
    return st.builds(cls, cell=st.just(ev.UNSET) | cell_ids, **fields)


sequences = st.lists(st.one_of([event_of(cls) for cls in EVENTS]), max_size=25)
likely = st.lists(
    st.one_of([event_of(c) for c in (ev.CellQueued, ev.CellStarted, ev.Stream, ev.Display, ev.DisplayUpdated)])
    | st.one_of([event_of(c) for c in (ev.OutputCleared, ev.Result, ev.Error, ev.CellFinished, ev.RolledBack)]),
    max_size=40,
)


@settings(
    max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None
)
@given(sequences | likely)
@pytest.mark.timeout(180)
def test_any_sequence_of_events_gives_a_valid_notebook(events):
    valid(fold(stamped(*events)))


@settings(
    max_examples=examples(20), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None
)
@given(likely, st.randoms(use_true_random=False))
def test_taking_settled_cells_on_the_way_changes_nothing(events, random):
    whole = fold(stamped(*events))
    piecewise, cells = NotebookFold(), []
    for event in events:
        piecewise.feed(event)
        if random.random() < 0.5:
            cells += piecewise.take()
            by_id = {c["id"]: c for c in cells}
            for patch in piecewise.take_patches():
                patch.apply(by_id[patch.id])
    cells += piecewise.take()
    by_id = {c["id"]: c for c in cells}
    for patch in piecewise.take_patches():
        patch.apply(by_id[patch.id])
    got = notebook(cells + piecewise.rest(), piecewise.metadata())
    assert valid(got) == whole


@given(bundles)
def test_any_bundle_is_made_valid(data):
    valid(fold(stamped(*run("c", ev.Display(data=data), ev.Result(data=data)))))


@given(st.lists(st.text(alphabet="ab:._-X9", min_size=1, max_size=70), unique=True, max_size=20))
def test_cell_ids_stay_different(ids):
    assert len({nb_id(i) for i in ids}) == len(ids)
    assert nb_id("plain-Id_9") == "plain-Id_9"


# --- what a cell looks like ----------------------------------------------------------


def test_streams_are_merged_and_left_as_they_are():
    cell = folded(
        ev.Stream(text="10%\r"), ev.Stream(text="20%\b"), ev.Stream(name="stderr", text="e"), ev.Stream(text="x")
    )
    assert cell.render() == [
        {"output_type": "stream", "name": "stdout", "text": "10%\r20%\b"},
        {"output_type": "stream", "name": "stderr", "text": "e"},
        {"output_type": "stream", "name": "stdout", "text": "x"},
    ]


def test_text_is_what_a_model_wants():
    cell = folded(
        ev.Stream(text="working"),
        ev.Display(data={"image/png": "aGk=", "text/plain": "<Figure>"}),
        ev.Display(data={"image/png": "aGk="}),
        ev.Result(data={"text/plain": "42", "text/html": "<b>42</b>"}, execution_count=1),
        ev.Error(ename="E", evalue="v", traceback=["\x1b[31mTraceback\x1b[0m", "E: v"]),
        reason=Reason.ERROR,
    )
    assert cell.text() == "working\n<Figure>\n[image/png]\n42\nTraceback\nE: v\n"


def test_text_ends_with_a_cause_that_the_outputs_do_not_show():
    cell = folded(ev.Stream(text="…"), reason=Reason.TIMEOUT, message="cell_seconds: 2 s reached")
    assert cell.text() == "…\n[timeout] cell_seconds: 2 s reached\n"


def test_the_api_cell():
    cell = folded(ev.Error(ename="E", evalue="v", traceback=["t"]), reason=Reason.ERROR, code="boom").cell("s")
    assert (cell.id, cell.session, cell.code, cell.state, cell.reason) == ("c", "s", "boom", "finished", "error")
    assert (cell.seq.first, cell.seq.last, cell.error.ename, cell.execution_count) == (1, 4, "E", 1)


def test_states_on_the_way():
    cell, states = CellFold(), []
    for event in stamped(*run("c")):
        cell.feed(event)
        states.append(cell.state)
    assert states == [CellState.QUEUED, CellState.RUNNING, CellState.FINISHED]


def test_clear_output_at_once_and_with_the_next():
    at_once = folded(ev.Stream(text="a"), ev.OutputCleared(), ev.Stream(text="b"))
    assert at_once.text() == "b"
    waits = folded(ev.Stream(text="a"), ev.OutputCleared(wait=True))
    assert waits.text() == "a"
    comes = folded(ev.Stream(text="a"), ev.OutputCleared(wait=True), ev.Stream(text="b"))
    assert comes.text() == "b"


def test_input_is_on_record_and_a_password_is_not():
    cell = folded(
        ev.InputRequested(prompt="name? "),
        ev.InputGiven(text="Ada"),
        ev.InputRequested(prompt="key? ", password=True),
        ev.InputGiven(),
    )
    assert cell.text() == "name? Ada\nkey? ········\n"


def test_an_update_reaches_displays_of_other_cells():
    show, update = (
        ev.Display(data={"text/plain": "1"}, display_id="d"),
        ev.DisplayUpdated(data={"text/plain": "2"}, display_id="d"),
    )
    document = fold(stamped(*run("a", show), *run("b"), *run("c", update)))
    assert document["cells"][0]["outputs"][0]["data"] == {"text/plain": "2"}
    assert document["cells"][2]["outputs"] == []


# --- the budget ------------------------------------------------------------------


@settings(max_examples=examples(100))
@given(st.text(alphabet="abc", max_size=400), st.integers(2, 100), st.lists(st.integers(0, 400), max_size=10))
def test_head_and_tail_do_not_depend_on_how_text_is_split(text, budget, cuts):
    places = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    outputs = folded(*(ev.Stream(text=p) for p in pieces), budget=budget).render()
    if len(text) <= budget:
        assert "".join(o["text"] for o in outputs) == text
        return
    head, marker, *tail = outputs
    assert head["text"] == text[: budget // 2]
    assert "".join(t["text"] for t in tail) == text[len(text) - (budget - budget // 2) :]
    assert marker["metadata"]["kernelsvc"]["cut"] == len(text) - budget


def test_the_marker_says_how_much_and_where():
    cell = folded(ev.Stream(text="x" * 3000), budget=1000)
    assert "2,000 characters of output left out here; the log has all of it" in cell.text()


def test_a_large_table_keeps_its_text():
    big = ev.Result(data={"text/html": "<td>" * 10_000, "text/plain": "a b\n1 2"}, execution_count=1)
    text = folded(big, budget=2000).text()
    assert text.startswith("a b\n1 2\n[left out, over the output budget: text/html (40,000 characters)]")


def test_a_long_value_keeps_head_and_tail():
    text = folded(ev.Result(data={"text/plain": "a" * 5000 + "z" * 5000}, execution_count=1), budget=2000).text()
    assert text.startswith("a" * 250 + "\n[… 9,500 characters left out …]\n" + "z" * 250 + "\n")


def test_an_output_that_keeps_a_form_that_shows_all_of_it_has_no_note():
    figure = {"application/vnd.plotly.v1+json": {"data": []}, "text/html": "<script>x</script>" * 1000}
    cell = folded(ev.Result(data=figure, execution_count=1), budget=2000)
    assert set(cell.render()[0]["data"]) == {"application/vnd.plotly.v1+json"}
    assert "left out" not in cell.text()


@pytest.mark.parametrize(("shown", "text"), [("", ""), ("<b>seen</b>", "left out")])
def test_a_library_that_a_page_loads_is_no_output(shown, text):
    library = f"<script type='x'>{'x' * 5000}</script>{shown}<style>y</style>"
    cell = folded(ev.Display(data={"text/html": library}), ev.Stream(text="after"), budget=2000)
    assert text in cell.text()
    assert (len(cell.render()) == 1) == (not shown)


def test_a_library_is_no_output_if_it_has_a_form_for_models():
    library = {"text/html": f"<script>{'x' * 5000}</script>", MODEL_MIME: "[HTML without text]"}
    assert folded(ev.Display(data=library), budget=2000).render() == []


def test_a_value_without_plain_text_is_its_form_for_models():
    figure = {"application/vnd.plotly.v1+json": {"data": []}, MODEL_MIME: "[Plotly chart]"}
    assert folded(ev.Display(data=figure)).text() == "[Plotly chart]\n"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("tag", ["<script>", "<script ", "<style>", "</script", "<", "<script></style>"])
def test_tags_without_end_are_read_once(tag):
    """Each one could search the whole rest: 64 kB took 5 s, and 4 MB would take hours."""
    cell = folded(ev.Display(data={"text/html": tag * (4_000_000 // len(tag))}), budget=2000)
    assert len(cell.render()) <= 2


@pytest.mark.parametrize("piece", ["<a>", "<a> ", "<head></head>"])
def test_large_html_is_not_searched_for_something_to_see(piece):
    """60 MB took 3 to 4 s."""
    few, many = (ev.Display(data={"text/html": piece * count}) for count in (1000, (8 << 20) // len(piece) + 1))
    assert folded(few, budget=2000).render() == []
    assert "left out, over the output budget: text/html" in folded(many, budget=2000).text()


@pytest.mark.timeout(30)
def test_many_forms_of_one_output_are_measured_once():
    """Each dropped form could measure all that were left: 100,000 forms took hours."""
    forms = {f"a/{number}": "x" * 9 for number in range(100_000)}
    cell = folded(ev.Display(data={**forms, "text/plain": "kept"}), budget=2000)
    assert cell.text().startswith("kept")


def test_new_content_is_cleaned_once_for_all_displays_with_one_id(monkeypatch):
    cleaned = []
    for name in ("clean_bundle", "clean_metadata"):
        clean = getattr(outputs, name)
        monkeypatch.setattr(outputs, name, lambda value, clean=clean: cleaned.append(value) or clean(value))
    fold = NotebookFold()
    for name in "ab":
        for event in run(name, *(ev.Display(data={"text/plain": "old"}, display_id="d") for _ in range(70))):
            fold.feed(event)
    cleaned.clear()
    update = ev.DisplayUpdated(data={f"a/{number}": "new" for number in range(1000)}, metadata={"m": 1}, display_id="d")
    fold.feed(update)
    assert cleaned == [update.data, update.metadata]
    for cell in fold.rest():
        changed = [each for each in cell["outputs"] if "a/0" in each["data"]]
        assert len(changed) == outputs.SAME_ID
        assert all(len(each["data"]) == outputs.MAX_FORMS and each["metadata"] == {"m": 1} for each in changed)


def test_a_hostile_cell_stays_bounded():
    cell = CellFold(10_000)
    for n in range(12_000):
        cell.feed(ev.Stream(name=("stdout", "stderr")[n % 2], text="x"))
        cell.feed(ev.Display(data={"text/plain": ""}, display_id="d"))
    for _ in range(2_000):
        cell.feed(ev.DisplayUpdated(data={"text/plain": "y" * 9000}, display_id="d"))
    for _ in range(100):
        cell.feed(ev.Display(data={}, metadata={"m": "z" * 10**6}, display_id="i" * 10**6))
    cell.feed(ev.Error(ename="E" * 10**6, evalue="v" * 10**6, traceback=["t" * 10**6] * 50))
    outputs = cell.render()
    assert len(outputs) <= 10_001
    assert sum(len(str(o)) for o in outputs) < 3_000_000
    assert len(cell.error.traceback) == 21
    assert len(cell.outputs._by_id) <= 1


def test_a_hostile_session_stays_bounded():
    fold = NotebookFold()
    fold.feed(ev.SessionStarted(limits=Limits(output_bytes=10_000)))
    for event in [*run("a", ev.Display(data={"text/plain": "1"}, display_id="d")), *run("b"), *run("c")]:
        fold.feed(event)
    taken = fold.take()
    for n in range(5000):
        fold.feed(ev.Stream(cell="ab"[n % 2], text="late"))
    assert len(fold.rest()) == 2
    asked = 0
    for _ in range(2000):
        fold.feed(ev.DisplayUpdated(data={"text/plain": "y" * 10**6}, display_id="d"))
        if fold.heavy:
            asked += 1
            (patch,) = fold.take_patches()
            patch.apply(taken[0])
            assert len(str(taken[0])) < 20_000
    fold.feed(ev.DisplayUpdated(data={"text/plain": "2"}, display_id="d"))
    fold.take_patches()[-1].apply(taken[0])
    assert taken[0]["outputs"][0]["data"] == {"text/plain": "2"}


# --- the notebook --------------------------------------------------------------------


def test_metadata_tells_an_auditor_what_ran_where():
    started = ev.SessionStarted(template="data", principal="ada", versions={"python": "3.11.9"}, limits=Limits())
    document = valid(fold(stamped(started, *run("a", code="1+1"), ev.SessionClosed(reason="idle"))))
    own = document["metadata"]["kernelsvc"]
    assert (own["session"], own["template"], own["closed"], own["last_seq"]) == ("s", "data", "idle", 5)
    assert document["metadata"]["language_info"]["version"] == "3.11.9"
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    cell = document["cells"][0]["metadata"]["kernelsvc"]
    assert (cell["reason"], cell["seq"]) == ("ok", {"first": 2, "last": 4})


def test_a_cold_kernel_of_another_language():
    started = ev.SessionStarted(template="bash", kernel=ev.KernelInfo(kind="cold", language="bash"))
    metadata = valid(fold(stamped(started)))["metadata"]
    assert (metadata["kernelspec"]["name"], metadata["language_info"]["name"]) == ("bash", "bash")


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            ev.KernelDied(cause="signalled", message="SIGSEGV <script>"),
            "the kernel died (signalled). SIGSEGV &lt;script&gt;",
        ),
        (ev.KernelRestored(after_cell="a"), "the variables are back as they were after cell a"),
        (ev.KernelRestarted(why="asked"), "the kernel was restarted"),
        (ev.RolledBack(to="k", after_cell=None, undone=["a"]), "rolled back"),
        (ev.LimitReached(limit="disk_bytes", message="full"), "limit reached: disk\\_bytes"),
        (ev.FilesChanged(files=[{"path": "a.csv"}]), "files changed through the API: a.csv."),
        (ev.Hibernated(saved=3, lost={"f": "open file"}), "Not saved: f."),
        (ev.Woken(), "woken"),
        (ev.Branched(sessions=["t"]), "branched into 1 sessions: t."),
    ],
)
def test_what_an_auditor_must_see_is_a_note(event, words):
    cells = valid(fold(stamped(*run("a"), event, *run("b"))))["cells"]
    assert [c["cell_type"] for c in cells] == ["code", "markdown", "code"]
    assert words in cells[1]["source"]


def test_a_death_stands_after_the_cell_that_ran_and_before_those_that_waited():
    events = [
        ev.CellQueued(cell="a"),
        ev.CellQueued(cell="b"),
        ev.CellStarted(cell="a"),
        ev.KernelDied(cause="memory"),
        ev.CellFinished(cell="a", reason=Reason.KERNEL_DIED, message="gone"),
        ev.CellStarted(cell="b"),
    ]
    cells = fold(stamped(*events))["cells"]
    assert [c["id"] for c in cells] == ["a", "kernelsvc-note-4", "b"]
    assert cells[1]["source"] == "> **kernelsvc:** the cell above ended: kernel_died. gone"


SUCCESSORS = [
    (ev.KernelRestored(after_cell="a"), "A checkpoint was woken: the variables are back as they were after cell a."),
    (ev.KernelRestarted(why="died: SIGSEGV"), "The kernel was restarted; its variables are empty."),
]


@pytest.mark.parametrize(("successor", "words"), SUCCESSORS)
@pytest.mark.parametrize("running", [True, False])
def test_a_crash_has_one_note_which_says_what_followed(successor, words, running):
    died = ev.KernelDied(cause="signalled", message="SIGSEGV.")
    started = [ev.CellQueued(cell="b"), ev.CellQueued(cell="c"), ev.CellStarted(cell="b")]
    end = ev.CellFinished(cell="b", reason=Reason.KERNEL_DIED, message="SIGSEGV; variables are gone.")
    waited = ev.CellFinished(cell="c", reason=Reason.CANCELLED, message="b failed.")
    events = [*started, died, end, waited, successor] if running else [died, successor]
    cells = valid(fold(stamped(*run("a"), *events, *run("d"))))["cells"]
    notes = [c["source"].removeprefix("> **kernelsvc:** ") for c in cells if c["cell_type"] == "markdown"]
    if running:
        cell = f"the cell above ended: kernel_died. SIGSEGV; variables are gone. {words}"
        assert notes == [cell, "the cell above ended: cancelled. b failed."]
    else:
        assert notes == [f"the kernel died (signalled). SIGSEGV. {words}"]


def test_undone_cells_are_marked_and_stay():
    cells = valid(fold(stamped(*run("a"), *run("b"), ev.RolledBack(to="k", after_cell="a", undone=["b"]))))["cells"]
    assert cells[1]["metadata"]["kernelsvc"]["undone"]["to"] == "k"
    assert cells[1]["metadata"]["tags"] == ["undone"]
    assert "tags" not in cells[0]["metadata"]


def test_what_a_checkpoint_brings_back_is_not_marked_any_more():
    undo, redo = (ev.RolledBack(to="", undone=["a"]), ev.RolledBack(to="k", after_cell="a", redone=["a"]))
    cells = valid(fold(stamped(*run("a"), undo, redo)))["cells"]
    assert "tags" not in cells[0]["metadata"]
    assert "undone" not in cells[0]["metadata"]["kernelsvc"]
    assert "stand again" in cells[2]["source"]


def test_silent_cells_are_not_in_the_notebook():
    quiet = [ev.CellQueued(cell="q", silent=True), ev.CellStarted(cell="q"), ev.Stream(cell="q", text="x")]
    end = ev.CellFinished(cell="q", reason=Reason.INTERRUPTED, message="m")
    cells = fold(stamped(*run("a"), *quiet, end, *run("b"), ev.Stream(cell="q", text="late")))["cells"]
    assert [c["id"] for c in cells] == ["a", "b"]


def test_late_output_goes_to_its_cell_until_the_next_ends_and_then_stands_alone():
    soon, later = ev.Stream(cell="a", text="soon "), ev.Stream(cell="a", text="later")
    nobody = ev.Stream(text="nobody's")
    cells = valid(fold(stamped(*run("a"), soon, *run("b"), later, nobody)))["cells"]
    assert cells[0]["outputs"][0]["text"] == "soon "
    assert cells[2]["outputs"][0]["text"] == "laternobody's"
    assert cells[2]["metadata"]["kernelsvc"]["late_output_of"] == ["a"]
    assert cells[2]["source"] == "# output that came after its cell had ended: a"


def test_running_and_waiting_cells_are_shown():
    cells = valid(fold(stamped(*run("a")[:2], ev.CellQueued(cell="b", code="2"))))["cells"]
    assert [(c["id"], c["metadata"]["kernelsvc"]["state"]) for c in cells] == [("a", "running"), ("b", "queued")]


def test_a_cell_that_raised_may_raise_again_when_the_notebook_is_executed():
    cells = fold(stamped(*run("a", reason=Reason.ERROR)))["cells"]
    assert cells[0]["metadata"]["tags"] == ["raises-exception"]


def test_a_branch_begins_with_its_parents_cells():
    parent = [inherited(c, "p") for c in fold(stamped(*run("a")))["cells"]]
    document = valid(fold(stamped(*run("a")), parent=parent))
    assert [c["metadata"]["kernelsvc"].get("parent") for c in document["cells"]] == ["p", None]


def test_undoing_a_silent_cell_changes_no_cell_that_was_given():
    piecewise = NotebookFold()
    events = stamped(
        ev.CellQueued(cell="a", silent=True),
        ev.CellStarted(cell="a"),
        ev.CellFinished(cell="a"),
        ev.RolledBack(undone=["a"]),
    )
    for event in events:
        piecewise.feed(event)
    assert piecewise.take_patches() == []
