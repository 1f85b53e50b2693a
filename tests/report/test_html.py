import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from onnxq.errors import DataError, OutputError
from onnxq.passes.step import Change
from onnxq.report import Activation, Entry
from onnxq.report.figures import losses_chart, tradeoff_chart
from onnxq.report.findings import Candidate, LayerLoss, LayerLosses, Tradeoff, read_findings
from onnxq.report.html import render

EVIL = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
VOID = {"meta", "input"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps ids, links, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.addresses += [given[each] for each in ("src", "srcset", "data", "action") if each in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        # HTML lets some end tags out; this page does not.
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


def test_the_page_says_what_was_done_and_why_not(made_report):
    page = Page(render(made_report(20)))
    words = " ".join(page.text.split())
    assert "language.onnx in mixed" in words
    assert "Quantized18of 20 weights" in words
    assert "2 no rule matches" in words
    assert "Warning: rule 2 matches no weight" in words
    assert "calibrated on 128 samples" in words
    assert "model.layers.3.self_attn.o_proj.weight" in words
    assert "fp4_e2m1, groups of 32, fp16 scales" in words
    assert "solve and pack weights10 s" in words
    assert "format: [fp6_e2m3]" in words
    assert "onnx1.23.2" in words
    assert page.headings == [
        "To know",
        "Size",
        "Error of each weight",
        "Weights on their grid",
        "Left as they are",
        "All weights",
        "Time and memory",
        "Recipe",
        "Versions",
    ]


def test_the_page_needs_nothing_beside_itself(made_report):
    text = render(made_report(20))
    page = Page(text)
    assert page.addresses == []
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"url\(|@import|<link|<img|<iframe", text)
    assert "default-src 'none'" in text


def test_every_link_leads_to_a_row(made_report):
    page = Page(render(made_report(30)))
    assert len(page.ids) == len(set(page.ids)) == 30
    assert set(page.links) == {f"#{each}" for each in page.ids}


def test_names_from_a_model_are_text(made_report):
    report = made_report(
        1,
        model=f"/models/{EVIL}.onnx",
        recipe=EVIL,
        notes=(EVIL,),
        warnings=(EVIL,),
        recipe_text=EVIL,
        entries=(Entry(EVIL, EVIL, EVIL, (EVIL,), (1,), 4, 4, reason=EVIL),),
    )
    text = render(report, tradeoff=Tradeoff(EVIL, (Candidate(1, 1.0, EVIL),)))
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert Page(text).text.count(EVIL) >= 7


def test_a_plan_and_an_empty_model_have_a_page_too(made_report):
    plan = made_report(5, output=None, output_bytes=0, seconds=0.0, passes=())
    assert "nothing was written" in Page(render(plan)).text
    empty = Page(render(made_report(0, recipe_text="", versions={}, passes=(), notes=(), warnings=())))
    assert empty.headings == ["Size", "Left as they are", "All weights"]


def test_nothing_lost_is_called_exact(made_report):
    entry = Entry("w", "w", "MatMul", ("n",), (2, 2), 16, 8, "int8", "int8, per channel", float("inf"))
    text = " ".join(Page(render(made_report(1, entries=(entry,)))).text.split())
    assert "Lowest SQNRexact" in text
    assert "inf" not in text


def test_steps_and_activations_are_listed_by_what_became_of_them(made_report):
    changes = (
        Change("smooth", "x", done="scaled 64 channels"),
        Change("smooth", "h", reason="<no> producer"),
        Change("smooth", "y", done="scaled 64 channels"),
    )
    activations = (
        Activation("x", "MatMul", ("n",), "int8", "int8, per tensor"),
        Activation("h", "Add", ("m",), reason="off"),
    )
    page = Page(render(made_report(2, changes=changes, activations=activations)))
    assert {"Rewritten before", "Activations"} <= set(page.headings)
    words = " ".join(page.text.split())
    assert "smooth 2 scaled 64 channels x y 1 <no> producer h" in words.replace("xy", "x y")
    assert "1 int8, per tensor x 1 off h" in words


def test_losses_and_frontier_are_shown_where_they_are_given(made_report):
    report = made_report(4)
    names = [each.weight for each in report.entries]
    losses = LayerLosses("loss, nats", tuple(LayerLoss(name, "int4", 10.0**-at) for at, name in enumerate(names)))
    candidates = (
        Candidate(3, 0.5),
        Candidate(4.5, 0.1),
        Candidate(4.4, 0.2, "mine", "chosen"),
        Candidate(8, 1, "int8", "tried"),
    )
    page = Page(render(report, losses=losses, tradeoff=Tradeoff("nll", candidates)))
    assert {"Sensitivity", "Size against loss"} <= set(page.headings)
    assert "loss, nats" in page.text
    assert "mine: 4.40 bits, loss 0.2" in page.text
    assert f"{names[2]}: 0.01 (int4)" in page.text


def test_labels_that_would_lie_over_each_other_are_left_out_but_never_that_of_the_choice():
    candidates = [Candidate(bits, 1.0, f"at {bits}", "tried") for bits in (2.0, 4.0, 4.1, 8.0)]
    chart = tradeoff_chart(Tradeoff("loss", (*candidates, Candidate(4.05, 1.0, "mine", "chosen"))))
    assert chart is not None
    assert {each.label for each in chart.dots} == {"", "at 2.0", "at 8.0", "mine"}
    assert chart.dots[-1].label == "mine"


def test_losses_of_nothing_lie_at_the_bottom_of_powers_of_ten(made_report):
    report = made_report(4)
    losses = [
        LayerLoss(each.weight, "int4", loss) for each, loss in zip(report.entries, (1.0, 1e-3, 0.0, -1e-9), strict=True)
    ]
    chart = losses_chart(report, LayerLosses("loss", tuple(losses)))
    assert chart is not None
    assert [each.text for each in chart.y_ticks] == ["0.001", "0.01", "0.1", "1"]
    assert [each.y for each in chart.dots] == [0, 100, 100, 100]


def test_findings_of_other_weights_leave_the_section_out(made_report):
    losses = LayerLosses("loss", (LayerLoss("of another model", "int4", 1.0),))
    page = Page(render(made_report(3), losses=losses, tradeoff=Tradeoff("loss", ())))
    assert not {"Sensitivity", "Size against loss"} & set(page.headings)


def test_findings_are_read_from_what_the_commands_print(tmp_path: Path):
    effect = {"weight": "w", "recipe": "int4", "format": "uint4", "kl": 0.5, "loss_change": None}
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"model": "m.onnx", "effects": [effect, effect | {"weight": "v", "kl": None}]}))
    losses, tradeoff = read_findings(path)
    assert (losses.losses, tradeoff) == ((LayerLoss("w", "int4", 0.5),), None)
    tried = [{"name": name, "bits": bits, "predicted": 0.1, "measured": 0.2} for name, bits in (("a", 4), ("b", 5))]
    found = {"effects": [effect], "frontier": [[3.0, 1.0], [6.0, 0.1]], "best": tried[1], "tried": tried}
    path.write_text(json.dumps(found))
    _, tradeoff = read_findings(path)
    assert tradeoff is not None
    assert [(each.bits, each.kind) for each in tradeoff.candidates] == [
        (3.0, "frontier"),
        (6.0, "frontier"),
        (4.0, "tried"),
        (5.0, "chosen"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is no JSON of 'onnxq sensitivity' or 'allocate': effects: Field required"),
        ('{"effects": [{"weight": 3}]}', "effects.0.weight: Input should be a valid string"),
        ("[" * 100_000, "is no JSON"),
        ("\x00", "is no JSON"),
        (None, "cannot read the findings"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str | None, words: str):
    path = tmp_path / "found.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=re.escape(words)):
        read_findings(path)


def test_two_thousand_weights_make_a_page_of_a_few_megabytes(made_report):
    assert len(render(made_report(2000)).encode()) < 3_000_000


def full(descriptor: int) -> None:
    raise OSError(28, "the disk is full")


@pytest.mark.parametrize("form", ["write", "write_html"])
def test_a_report_replaces_what_stood_there_or_leaves_it(
    form: str, made_report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, write = tmp_path / "page.html", getattr(made_report(2), form)
    path.write_text("before")
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"cannot write the report '.*page\.html': the disk is full"):
            write(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write(path)
    assert "self_attn.k_proj" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
