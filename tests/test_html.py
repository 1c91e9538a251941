"""The HTML page: what is text stays text, nothing is fetched, nothing runs, and a phone shows it whole."""

import base64
import html.parser
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_result import four_arms, make_arm, make_result
from test_report import NAMES, NASTY, WORDS, acts

from eqx_slm.study.blocks import Code, Folded, Heading, Mono, Paragraph, Picture, Strong, Table, shown
from eqx_slm.study.html import page
from eqx_slm.study.report import PAIR
from eqx_slm.study.saved import write_report
from eqx_slm.visible import visible

VOID = {"meta", "img", "source", "br"}
PNG = b"\x89PNG\r\n\x1a\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="99pt"><path style="fill: #ffffff; stroke: #0072b2"/></svg>'


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and the text in them; a tag that is not closed where it should be fails."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip("\n"):
            self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(data)


def everywhere(text):
    """The text in every place that a block has."""
    return [
        Heading(text, 1),
        Paragraph(text),
        Paragraph(["a ", Strong(text), Mono(text), text], bullet=True),
        Paragraph(text, bullet=True),
        Table((text, "b"), [[text, Mono(text)], [Strong(text), text]]),
        Folded(text, [Code(text, text), Heading(text, 3)]),
        Picture(text, text),
        Picture("p", text, {"png": PNG}),
    ]


def check(text):
    said, plain = Reader(page(everywhere(text))), Reader(page(everywhere("x")))

    def without_text(tags):
        return [(tag, tuple((name, value) for name, value in attrs if name != "alt")) for tag, attrs in tags]

    # As many tags, of the same kinds, whatever the text is; and all of the text is there to read.
    if len(text) <= 24 and not isinstance(text, Strong):
        assert without_text(said.tags) == without_text(plain.tags)
    assert [tag for tag, _ in said.tags] == [tag for tag, _ in plain.tags]
    whole = "".join(said.texts)
    assert whole.count(visible(text)) >= 10 if text.strip() else True
    assert shown(text) in whole
    assert all(value == visible(text) for _, attrs in said.tags for name, value in attrs if name == "alt")


@given(st.text(max_size=24))
def test_text_is_only_text_wherever_it_stands(text):
    check(text)


@pytest.mark.parametrize(
    "text", [*NASTY, *NAMES, '"><img src=x onerror=alert(1)>', "</title></style><script>", "&amp;lt;"]
)
def test_text_that_would_act_is_only_text(text):
    check(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_report_with_a_hostile_name_fetches_and_runs_nothing(name):
    result = make_result({name: make_arm(0.0, 0.0), "other " + name: make_arm(0.1, 0.0)})
    text = page([block for section in WORDS for block in section(result)])
    reader, known = Reader(text), {"html", "head", "meta", "title", "style", "body", "main", "p", "strong", "code"}
    known |= {"h1", "h2", "ul", "li", "div", "pre", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
    assert {tag for tag, _ in reader.tags} <= known
    names = {attribute for _, attrs in reader.tags for attribute, _ in attrs}
    assert names <= {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "scope",
        "class",
        "role",
        "aria-label",
        "tabindex",
    }
    assert not acts(text) and "url(" not in text and "@import" not in text
    assert visible(name) in "".join(reader.texts)


def test_the_page_says_verdicts_first_then_shows_pictures():
    result = make_result(four_arms())
    pictures = [Picture("curves", "curves", {"svg": SVG}, narrow=SVG)]
    order = [PAIR[0], lambda results: pictures, *PAIR[5:]]
    text = page([block for section in order for block in section(result)])
    places = [text.index(part) for part in ("<h1>", 'class="better"', "<picture>", "<h2>", "<table>", "<details>")]
    assert places == sorted(places)
    assert "<title>quick: leviathan, leviathan-deep" in text
    assert '<td class="figure">393,' in text or '<td class="figure">1,000,' in text


def sources(text):
    """The bytes of every picture, with its kind."""
    found = re.findall(r'(?:src|srcset)="data:image/([a-z+]+);base64,([^"]*)"', text)
    assert len(found) == len(re.findall("src(?:set)?=", text))
    return [(kind, base64.b64decode(data)) for kind, data in found]


def test_pictures_are_in_the_page_and_follow_the_dark():
    assert sources(page([Picture("a", "alt", {"png": PNG})])) == [("png", PNG)]
    text = page([Picture("a", "alt", {"png": PNG, "svg": SVG}, narrow=SVG)])
    (narrow, wide) = sources(text)
    assert narrow == wide and 'media="(max-width: 42rem)"' in text and "max-width: 132px" in text
    style, path = ElementTree.fromstring(wide[1])
    assert path.attrib["style"] == "fill: var(--gff); stroke: #0072b2"  # a colour stays what it is
    assert re.fullmatch(r":root \{ --gff: #ffffff; \} @media .*dark\) \{ :root \{ --gff: #16181b; \} \}", style.text)
    assert sources(page([Picture("a", "only words")])) == [] and "only words" in page([Picture("a", "only words")])


def browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# In a frame of a width, the page tells what its browser made of it; the page around writes down what it is told.
MEASURE = """<script>onload = () => {
const root = document.documentElement;
const wide = [...document.querySelectorAll("p, li, h1, h2, summary, figure, .box, img")]
.filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).length;
const images = [...document.images], loaded = images.filter(i => i.naturalWidth > 0);
parent.postMessage([innerWidth, root.scrollWidth - root.clientWidth, wide, document.scripts.length, images.length,
loaded.length].join(" "), "*") }</script></body>"""
AROUND = """<script>onmessage = e => document.body.append(e.data + ";")</script>
<iframe src="measured.html" width="390" height="900"></iframe>
<iframe src="measured.html" width="1280" height="900"></iframe>"""


@pytest.mark.skipif(browser() is None, reason="no Chromium here")
def test_in_a_real_browser_nothing_is_wider_than_a_phone_and_no_name_acts(tmp_path, monkeypatch):
    """The browser's own parser finds no script but the one that measures, and no image but the report's."""
    monkeypatch.setattr("eqx_slm.study.plot.render", lambda *arguments: {"svg": SVG})
    monkeypatch.setattr("eqx_slm.study.plot._drawn", lambda *arguments: {"svg": SVG})
    names = ["dense", "<script>document.title = 1</script>", "x" * 300, "</title><img src=x onerror=alert(1)>"]
    result = make_result({name: make_arm(0.1 * index, 0.0) for index, name in enumerate(names)})
    write_report([block for section in PAIR for block in section(result)], tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert len(policy.findall(text)) == 1
    (tmp_path / "measured.html").write_text(policy.sub("", text).replace("</body>", MEASURE), "utf-8")
    (tmp_path / "around.html").write_text(AROUND, "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom"]
    command = [browser(), *flags, (tmp_path / "around.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = sorted(tuple(map(int, each)) for each in re.findall(r"(\d+) (\d+) (\d+) (\d+) (\d+) (\d+);", done.stdout))
    assert found == [(390, 0, 0, 1, 4, 4), (1280, 0, 0, 1, 4, 4)]
