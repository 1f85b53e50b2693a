"""The page in Chromium: laid out at two widths, light and dark, on paper, with its script."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from onnxq.report.findings import Candidate, LayerLoss, LayerLosses, Tradeoff
from onnxq.report.html import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

# A window has a least width, a frame in it has none.
FRAME = """<!doctype html><iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<script>addEventListener("message", event => document.documentElement.dataset.probe = event.data)</script></html>"""
# Added to a copy of the page whose policy is taken out: tells the frame around it what the layout came to.
PROBE = """<script>
const overlong = [...document.querySelectorAll("main *")].filter(each => {
  const box = each.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1) && !each.closest("pre");
});
parent.postMessage(JSON.stringify({
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  overlong: overlong.slice(0, 3).map(each => each.outerHTML.slice(0, 80)),
  paper: getComputedStyle(document.documentElement).backgroundColor,
  ink: getComputedStyle(document.body).color,
  dots: document.querySelectorAll(".dot").length,
  plots: [...document.querySelectorAll(".plot")].map(each => each.getBoundingClientRect().height),
  smallest: Math.min(...[...document.querySelectorAll("main span, main td, main small")].map(
    each => parseFloat(getComputedStyle(each).fontSize))),
}), "*");
</script></html>"""


def chromium(folder: Path, page: str, *options: str, name: str = "page") -> subprocess.CompletedProcess[str]:
    (folder / f"{name}.html").write_text(page, "utf-8")
    # Chromium refuses to run as root in its sandbox, and opens files outside the home only without a profile there.
    alone = [f"--user-data-dir={folder / 'profile'}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    command = [str(CHROMIUM), "--headless", "--disable-gpu", "--enable-logging=stderr", *alone, *options]
    return subprocess.run([*command, f"file://{folder / name}.html"], capture_output=True, text=True, timeout=60)


@pytest.fixture
def page(made_report) -> str:
    report = made_report(40)
    losses = tuple(LayerLoss(each.weight, "int4", 1.0 - abs(at - 18) / 40) for at, each in enumerate(report.entries))
    candidates = tuple(Candidate(at + 1.0, 1.0 / (at + 1), "mine" if at == 3 else "") for at in range(8))
    return render(report, losses=LayerLosses("loss", losses), tradeoff=Tradeoff("loss", candidates))


def probed(folder: Path, page: str, option: str, *, width: int) -> dict:
    (folder / "page.html").write_text(re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</html>", PROBE), "utf-8")
    dom = chromium(
        folder, FRAME.format(width=width), "--dump-dom", "--virtual-time-budget=5000", option, name="frame"
    ).stdout
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found, dom[:500]
    return json.loads(found[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def brightness(color: str) -> int:
    return sum(int(each) for each in re.findall(r"\d+", color)[:3])


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_everything_fits_and_can_be_read(page, tmp_path, width, scheme):
    found = probed(tmp_path, page, f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", width=width)
    assert found["width"] == width
    assert found["overlong"] == []
    assert found["scroll"] <= found["width"]
    assert len(found["plots"]) == 3
    assert min(found["plots"]) > 200
    assert found["dots"] == 36 + 40 + 8
    assert found["smallest"] >= 11
    paper, ink = brightness(found["paper"]), brightness(found["ink"])
    assert paper > 700 > 200 > ink if scheme == "light" else ink > 600 > 100 > paper


def test_its_own_script_may_run_and_nothing_is_complained_about_with_two_thousand_weights(made_report, tmp_path):
    done = chromium(tmp_path, render(made_report(2000)), "--dump-dom")
    assert done.stdout.count('aria-label="Sort by ') == 7
    assert '<p class="filter">' in done.stdout
    assert "CONSOLE" not in done.stderr


def test_it_prints_light_on_few_pages(page, tmp_path):
    chromium(tmp_path, page, f"--print-to-pdf={tmp_path / 'page.pdf'}", "--blink-settings=preferredColorScheme=0")
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6
