"""The sanitizer of HTML and CSS, over hostile inputs and over what libraries put out."""

import base64
import html.parser
import io
import re

import numpy as np
import pandas as pd
import pytest
from hostile_html import HOSTILE

from kernelsvc.store.clean_css import clean_style, clean_stylesheet
from kernelsvc.store.clean_html import HtmlCleaner, TooDeep

ALLOWED_SCHEMES = re.compile(r"(https?:|mailto:|#|[^:]*$)", re.I)


class Page(html.parser.HTMLParser):
    """What could run, load, or reach other parts of the page."""

    def __init__(self, prefix):
        super().__init__()
        self.prefix, self.bad, self.open = prefix, [], []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style", "iframe", "frame", "object", "embed", "form", "base", "meta", "link", "template",
                   "textarea", "select", "button", "video", "audio", "source", "math", "foreignobject", "animate",
                   "set", "noscript", "title", "body", "html"):  # fmt: skip
            self.bad.append(tag)
        if tag == "input" and dict(attrs).get("type") != "checkbox":
            self.bad.append(tag)
        for name, value in attrs:
            value = value or ""
            if name.startswith("on") or name in ("srcset", "ping", "target", "action", "formaction", "background"):
                self.bad.append(name)
            if name in ("href", "xlink:href") and tag == "a" and not ALLOWED_SCHEMES.match(value):
                self.bad.append(value)
            if name in ("href", "xlink:href") and tag != "a" and not value.startswith(("#", "data:image/")):
                self.bad.append(value)
            if name == "src" and not value.startswith("data:image/"):
                self.bad.append(value)
            if name in ("id", "for") and not value.startswith(self.prefix):
                self.bad.append(value)
            if name == "class" and re.search(r"(^|\s)(jp|lm|kernelsvc)-", value):
                self.bad.append(value)
            if name == "style" or name in ("fill", "mask"):
                self.bad += re.findall(r"url\((?!#)|image-set|src\(|position|expression|\\", value)
        if tag not in ("br", "col", "hr", "img", "input", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.bad.append(f"</{tag}>")


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_html_runs_loads_and_reaches_nothing(source):
    fragment = HtmlCleaner().clean(f"<p>before</p>{source}", scope="box-1", prefix="box-1-")
    page = Page("box-1-")
    page.feed(fragment.html)
    page.close()
    assert page.bad == []
    assert page.open == []
    assert "before" in fragment.html
    assert "<" not in fragment.css
    assert not re.search(r"url\(|@import|@font|expression|behavior|position|image-set|-moz-binding", fragment.css)
    for selector in re.findall(r"([^{}\n]+) \{", fragment.css):
        assert selector.startswith(("@media ", ":where(#box-1) ")), selector
        assert not re.match(r":where\(#box-1\) [>+~|]", selector)


def test_what_was_dropped_is_counted():
    source = "<script>'<iframe>'</script><SCRIPT></SCRIPT><iframe></iframe><img src=//x><video></video><form></form>"
    dropped = HtmlCleaner().clean(source, scope="a", prefix="b-").dropped
    assert dropped == {"script": 2, "frame": 1, "picture from elsewhere": 1, "sound or video": 1, "form": 1}


@pytest.mark.parametrize("source", ["<div>" * 5000, "<b>x<font color=1>" * 5000, "<svg><g>" * 5000, "<x></y>" * 5000])
def test_deep_nesting_is_refused(source):
    with pytest.raises(TooDeep):
        HtmlCleaner().clean(source, scope="a", prefix="b-")


@pytest.mark.parametrize("part", ["<style>", "<script ", "<!--", "<", "<svg ", "</p>", "<td>", "<p>x", "&lt", "<style"])
def test_the_cost_is_linear(part):
    # Quadratic, a megabyte would take minutes; the limit is the test's own.
    source = part * (1_000_000 // len(part))
    HtmlCleaner().clean(source, scope="a", prefix="b-")


def clean(source):
    return HtmlCleaner().clean(source, scope="box-1", prefix="n-")


def test_a_dataframe_is_a_table():
    fragment = clean(pd.DataFrame({"amount": [1, 2]})._repr_html_())
    for part in ('<table border="1" class="dataframe">', "<thead>", "<th>amount</th>", "<th>0</th>", "<td>2</td>"):
        assert part in fragment.html
    assert "&lt;" not in fragment.html
    assert ":where(#box-1) .dataframe tbody tr th {vertical-align: top}" in fragment.css
    assert not fragment.dropped
    assert fragment.has_content


def test_a_styler_keeps_its_colours():
    jinja2 = pytest.importorskip("jinja2")
    assert jinja2
    styler = pd.DataFrame(np.eye(2)).style.background_gradient().bar().set_uuid("u").set_caption("words")
    fragment = clean(styler.to_html())
    assert 'id="n-T_u_row0_col0"' in fragment.html
    assert "<caption>words</caption>" in fragment.html
    assert re.search(r":where\(#box-1\) #n-T_u_row0_col0, .*\{.*linear-gradient\(.*\}", fragment.css)


def test_text_elements_and_links_stay():
    source = (
        '<h2 id="top">T</h2><p>a <em>b</em></p><ul><li>c</li></ul>'
        '<ol start="3"><li>d</li></ol><blockquote>q</blockquote>'
        '<details open=""><summary>s</summary>t</details><dl><dt>u</dt><dd>v</dd></dl><pre><code>w</code></pre><hr>'
        '<a href="#top">up</a><a href="https://example.org/?a=1&amp;b=2">out</a><a href="notes/a.txt">file</a>'
        '<td>x</td><span style="color: red; font-weight: bold; width: calc(1px + 2em)">y</span>'
    )
    found = clean(source).html
    expected = source.replace('id="top"', 'id="n-top"').replace('"#top"', '"#n-top"').replace("<td>x</td>", "x")
    assert found.replace(' rel="noopener noreferrer"', "") == expected


def test_folding_boxes_work_without_scripts():
    found = clean(
        '<input type="checkbox" id="a" checked><label for="a">x</label><style>#a:checked ~ pre{display:block}'
    )
    assert 'id="n-a"' in found.html
    assert 'for="n-a"' in found.html
    assert 'type="checkbox"' in found.html


def test_style_sheets_of_the_whole_document_give_variables_alone():
    sheet = ":root, .x { --ink: #333; color: red; } html { font-size: 90px }"
    assert clean_stylesheet(sheet, scope="box-1") == (
        ":where(#box-1) .x {--ink: #333; color: red}\n#box-1 {--ink: #333}"
    )


def test_media_queries_stay():
    sheet = "@media (prefers-color-scheme: dark) { .x { color: white !important } }"
    assert "prefers-color-scheme: dark" in clean_stylesheet(sheet, scope="b")
    assert "{color: white !important}" in clean_stylesheet(sheet, scope="b")


@pytest.mark.parametrize("opener", ["(", "[", "f(", "calc("])
def test_deeply_nested_css_is_dropped(opener):
    assert clean_style("color: " + opener * 10_000) == ""
    assert clean_stylesheet(f"a:not{opener * 10_000} {{color: red}}", scope="b") == ""


def test_matplotlibs_svg_is_a_picture():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.imshow(np.eye(3))
    axes.set_title("é <&>\u00a0x")
    written = io.StringIO()
    figure.savefig(written, format="svg")
    address = HtmlCleaner().svg_address(written.getvalue())
    document = base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()
    for part in (
        "viewBox=",
        "clip-path=",
        '<use xlink:href="#',
        '<image xlink:href="data:image/png;base64,',
        "<style>*",
    ):
        assert part in document
    for part in ("<script", "metadata", "&nbsp;"):
        assert part not in document


@pytest.mark.parametrize(
    "source",
    ["", "no svg", "<svg", "<svg><script>alert(1)</script></svg>",
     "<svg onload=alert(1)><a href='javascript:x'/></svg>",
     "<svg><style>@import '//evil';*{background:url(//evil)}</style></svg>", "<svg>\x01\ud800</svg>",
     "<!DOCTYPE svg [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>"],
)  # fmt: skip
def test_a_hostile_svg_holds_nothing_hostile(source):
    address = HtmlCleaner().svg_address(source)
    if address is not None:
        document = base64.b64decode(address.partition(",")[2]).decode()
        assert not re.search(r"script|onload|import|url\(|ENTITY", document)


def test_pictures_are_data():
    cleaner = HtmlCleaner()
    assert cleaner.picture_address("data:image/png;base64,aGk=") == "data:image/png;base64,aGk="
    assert cleaner.picture_address("data:image/PNG;charset=x;base64,aGk=") == "data:image/png;base64,aGk="
    assert cleaner.picture_address("data:image/svg+xml,%3Csvg onload=%22x%22/%3E").startswith(
        "data:image/svg+xml;base64,"
    )
    for value in ("x.png", "//evil/x", "data:text/html,x", "data:image/svg+xml,x", "data:image/png;base64", "blob:x"):
        assert cleaner.picture_address(value) is None
