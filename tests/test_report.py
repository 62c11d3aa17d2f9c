"""The report: one file from what is released and nothing else, which a browser draws without a network."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from support import Oscillator, Patches, addressed_noise

import simpe
from simpe import report, store
from simpe.errors import InputError

PLANTED = "planted-secret-7f3a"


def flattened(samples):
    return samples.flatten(1).float()


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """A run of two classes of images, with planted secrets in everything of the operator's."""
    folder = tmp_path_factory.mktemp("report") / f"run-{PLANTED}"
    simulator, generator = Patches(), torch.Generator().manual_seed(3)
    labels = torch.arange(300) % 2
    p = {**simulator.space.sample(300, generator), "label": labels}
    private = simpe.PrivateData(
        simulator.render(p), labels.numpy(), budget=simpe.Budget(5, 1e-6), classes=["0", "1"]
    )  # fmt: skip
    simpe.evolve(simulator, flattened, private, samples=90, steps=3, seed=1).save(folder)
    (folder / "private" / store.CONFIG).write_text(f'simulator = "{PLANTED}"\nprivate = ["{PLANTED}"]\n')
    metrics = {"against": PLANTED, "differentially_private": False, "rows": 90, "frechet_distance": 0.123456789}
    (folder / "private" / "metrics.json").write_text(json.dumps(metrics))
    report.write(folder)
    return folder


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "series"
    rows = Oscillator().render(Oscillator.space.sample(120, torch.Generator().manual_seed(1)))
    private = simpe.PrivateData(rows, budget=simpe.Budget(1, 1e-6), units=np.arange(120) // 2, k=2, unit="person")
    simpe.evolve(Oscillator(), None, private, samples=30, steps=2).save(folder)
    ports = {"names": ["dns <53>", "https"], "series": {"synthetic": [0.7, 0.3], "random": [0.5, 0.5]}}
    sizes = {"edges": [1, 10, 100, 1000], "log": True, "series": {"synthetic": [0.2, 0.3, 0.5], "random": [0, 0, 1]}}
    panels = [{"title": "ports", **ports}, {"title": "bytes", **sizes}]
    plotted = folder.with_name("plotted")
    shutil.copytree(folder, plotted)
    (plotted / "release" / "figures.json").write_text(json.dumps(panels))
    steps = {"random": [0.5, 0.5], "step 1": [0.6, 0.4], "step 2": [0.9, 0.1]}
    lengths = {"random": [0.2, 0.3, 0.5], "step 1": [0.3, 0.3, 0.4], "step 2": [0.4, 0.3, 0.3]}
    stepwise = [panels[0] | {"series": steps}, panels[1] | {"series": lengths}]
    (plotted / "release" / "evolution.json").write_text(json.dumps(stepwise))
    report.write(folder)
    report.write(plotted)
    return folder


def page_data(path):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), flags=re.S)
    return json.loads(found[1])


def test_the_report_is_made_from_what_is_released_alone(patches, tmp_path):
    shutil.copytree(patches / "release", tmp_path / "release")
    (tmp_path / "release" / "report.html").unlink()
    assert [path.parent.name for path in report.write(tmp_path)] == ["release"]  # there is no private folder
    ours = (patches / "release" / "report.html").read_text()
    assert ours == (tmp_path / "release" / "report.html").read_text()
    assert PLANTED not in ours
    assert "0.1235" not in ours


def test_the_operator_s_report_holds_the_private_figures_and_says_so(patches):
    path = patches / "private" / "report.html"
    text = path.read_text()
    assert "Not for release" in text
    assert "0.1235" in text
    assert PLANTED in text
    assert path.stat().st_mode & 0o077 == 0


def test_it_loads_nothing_from_anywhere(patches):
    text = (patches / "release" / "report.html").read_text()
    assert "default-src 'none'" in text
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:)([^"'\s>]+)|@import|url\((?!\$|data:)""", text)
    assert outside == []
    assert len(text) < 500_000


def test_it_says_what_is_promised_in_words(patches, series):
    text = (patches / "release" / "report.html").read_text()
    assert "(5, 10⁻⁶)-differentially private" in text
    assert "99.3&nbsp;%" in text or "99.3 %" in text  # e^5 / (1 + e^5)
    other = (series / "release" / "report.html").read_text()
    assert "one <strong>person</strong>" in other
    assert "at most 2 rows of each" in other
    assert "73.1 %" in other


def test_the_budget_adds_up_to_the_certificate(patches, series):
    for folder in (patches, series):
        certificate = json.loads((folder / "release" / "certificate.json").read_text())
        budget = page_data(folder / "release" / "report.html")["budget"]
        spent = [row["spent"] for row in budget]
        assert len(budget) == len(certificate["charges"])
        assert spent == sorted(spent)
        assert spent[-1] == pytest.approx(certificate["spent_epsilon"], rel=1e-6)


def test_the_history_is_what_the_ledger_released(patches):
    ledger = [json.loads(line) for line in (patches / "private" / "ledger.jsonl").read_text().splitlines()]
    bought = {record["address"]: record["counts"] for record in ledger if record["type"] == "release"}
    with np.load(patches / "release" / "history.npz") as history:
        assert history["class_counts"].tolist() == bought["0/counts"]
        for t in range(3):
            votes = history[f"votes_{t + 1}"].tolist()
            assert len(bought[f"0/{t}/votes"]) == history["candidates"][t]
            assert not set(votes) - set(bought[f"0/{t}/votes"])
            assert len(votes) == len(history[f"labels_{t + 1}"])
        ancestors = history["ancestors"].tolist()
        assert ancestors == sorted(ancestors, reverse=True)  # a line that died out does not come back
        assert 1 <= history["parents"] <= len(votes)


def test_only_noisy_votes_reach_the_history():
    """Whoever knew the exact votes would see other numbers: noise is in every count that is written."""
    rows = Oscillator().render(Oscillator.space.sample(50, torch.Generator().manual_seed(1)))

    def history(noise):
        private = simpe.PrivateData(rows, budget=simpe.Budget(1, 1e-6), noise=noise)
        return simpe.evolve(Oscillator(), None, private, samples=5, steps=1).history

    exact, noisy = history(lambda sigma, n, address: np.zeros(n, np.int64)), history(addressed_noise)
    assert exact["class_counts"].tolist() == [50]
    assert noisy["class_counts"].tolist() != [50]
    assert exact["votes_1"].sum() <= 50
    assert noisy["votes_1"].min() > exact["votes_1"].min()


def test_names_cannot_break_out_of_the_page(patches, tmp_path):
    shutil.copytree(patches / "release", tmp_path / "release")
    path = tmp_path / "release" / "certificate.json"
    certificate = json.loads(path.read_text())
    certificate["unit"] = "</script><script>alert(1)</script>"
    certificate["public_inputs"]["classes"] = ["0", "1"]
    certificate["public_inputs"]["simulator"]["name"] = "x:<img src=x onerror=alert(1)>"
    path.write_text(json.dumps(certificate))
    text = report.of_release(tmp_path / "release")
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def test_the_name_of_a_reference_may_be_no_unicode(patches, tmp_path):
    folder = shutil.copytree(patches, tmp_path / "run")
    for side, against in (("release", ["ref\udcff.npz"]), ("private", "ref\udcff.npz")):
        (folder / side / "metrics.json").write_text(json.dumps({"against": against, "rows": 90}))
    for path in report.write(folder):
        assert "ref?.npz" in path.read_text()


def test_test_noise_is_shouted(tmp_path):
    rows = Oscillator().render(Oscillator.space.sample(50, torch.Generator().manual_seed(1)))
    private = simpe.PrivateData(rows, budget=simpe.Budget(1, 1e-6), noise=addressed_noise)
    simpe.evolve(Oscillator(), None, private, samples=5, steps=1).save(tmp_path / "run")
    text = report.of_release(tmp_path / "run" / "release")
    assert "Not private." in text
    assert "differentially private</strong>" not in text


def test_an_unfinished_run_or_a_damaged_release_is_one_error(patches, tmp_path):
    (tmp_path / "half" / "private").mkdir(parents=True)
    (tmp_path / "half" / "private" / store.CONFIG).write_text("")
    with pytest.raises(InputError, match="not finished; continue it with: simpe resume"):
        report.write(tmp_path / "half")
    with pytest.raises(InputError, match="no run folder"):
        report.write(tmp_path / "nothing")
    for name, content, said in (
        ("history.npz", None, "history.npz: not there"),
        ("history.npz", b"PK\x03\x04 cut", "damaged"),
        ("certificate.json", b"{", "damaged"),
        ("metrics.json", b"[", "damaged"),
    ):
        folder = tmp_path / f"{name}-{content is None}-{said[:4]}"
        shutil.copytree(patches, folder)
        path = folder / "release" / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            report.write(folder)
        assert "\n" not in str(caught.value)


class Codes:
    """Rows of bytes that are no image, or of floats that are not all numbers."""

    space = simpe.ParameterSpace(level=simpe.Continuous(0, 255))

    def __init__(self, dtype):
        self._dtype = dtype

    def render(self, p):
        rows = p["level"][:, None].repeat(1, 16)
        if self._dtype == torch.float32:
            rows[:, 0] = torch.where(rows[:, 1] < 128, torch.inf, torch.nan)
        return rows.to(self._dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "not numbers"])
def test_samples_of_any_kind_are_drawn(tmp_path, dtype):
    rows = torch.arange(60)[:, None].repeat(1, 16).to(dtype)
    private = simpe.PrivateData(rows, budget=simpe.Budget(1, 1e-6))
    release = simpe.evolve(Codes(dtype), lambda x: x[:, 1:].float(), private, samples=5, steps=1)
    release.save(tmp_path / "run")
    report.write(tmp_path / "run")
    curves = page_data(tmp_path / "run" / "release" / "report.html")["gallery"]["curves"]
    assert len(curves) == 5
    assert all(0 <= value <= 1 for curve in curves for value in curve)


# ---------------------------------------------------------------------------------------------- in a real browser


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a file; afterwards nothing may have been said on the console or asked of the network."""
    said, pages = [], []

    def open_page(path, **options):
        page = browser.new_page(**{"viewport": {"width": 1100, "height": 900}, **options})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url)
        )
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("html[data-drawn=true]", state="attached")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


def visible(page, selector):
    return page.eval_on_selector_all(selector, "found => found.filter(one => one.offsetParent !== null).length")


def test_plots_are_drawn_and_classes_filter(opened, patches):
    page = opened(patches / "release" / "report.html")
    for chart in ("belief", "budget", "votes", "counts"):
        box = page.locator(f'[data-chart="{chart}"] svg')
        assert box.count() == 1
        assert box.bounding_box()["height"] > 100
    assert page.locator('[data-chart="budget"] .bar').count() == 4
    assert page.locator('[data-chart="votes"] path.series').count() == 3
    assert page.locator('[data-chart="evolution"] .tile').count() > 3
    everything = visible(page, ".gallery .tile")
    labels = page_data(patches / "release" / "report.html")["gallery"]["labels"]
    assert everything == len(labels)
    page.locator('[data-filter="gallery"] [data-class="1"]').click()
    assert visible(page, ".gallery .tile") == labels.count(1) < everything
    curve = page.locator('[data-chart="votes"] path.series').first
    before = curve.get_attribute("d")
    page.locator('[data-filter="votes"] [data-class="0"]').click()
    assert page.locator('[data-chart="votes"] path.series').first.get_attribute("d") != before


def test_a_sample_is_shown_large_with_its_parameters(opened, patches):
    page = opened(patches / "release" / "report.html")
    page.locator(".gallery .tile").first.click()
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert {"level", "edge"} <= set(dialog.locator("dt").all_inner_texts())
    first = dialog.locator("dd").first.inner_text()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("dd").first.inner_text() != first
    # What is drawn is the sample: black and white pixels are not all alike.
    assert len(set(dialog.locator(".large").screenshot())) > 10
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_hovering_tells_numbers(opened, patches):
    page = opened(patches / "release" / "report.html")
    tip = page.locator("#tip")
    for chart, said in (("belief", "after:"), ("budget", "ε so far"), ("votes", "step 3"), ("counts", "2 σ")):
        page.locator(f'[data-chart="{chart}"]').scroll_into_view_if_needed()
        page.locator(f'[data-chart="{chart}"] svg').hover()
        assert said in tip.inner_text()


def test_panels_of_other_domains_are_drawn_and_series_switch_off(opened, series):
    page = opened(series.with_name("plotted") / "release" / "report.html")
    shown = page.locator('[data-chart="figures"]')
    assert shown.locator(".chart").count() == 2
    assert shown.locator("path.series").count() == 4
    assert page.locator(".gallery").count() == 0
    assert page.locator("[data-legend] button").all_inner_texts() == ["synthetic", "random"]
    page.locator("[data-legend] button").nth(1).click()
    assert shown.locator("path.series").count() == 2
    shown.locator("svg").first.hover()
    assert "synthetic" in page.locator("#tip").inner_text()
    curves = opened(series / "release" / "report.html")
    assert curves.locator(".gallery .tile path").count() == 30


def test_populations_are_drawn_step_by_step(opened, series):
    page = opened(series.with_name("plotted") / "release" / "report.html")
    ports, sizes = page.locator('[data-chart="stepwise"] .chart').all()
    assert page.locator("[data-stepwise] span").all_inner_texts() == ["random", "step 1", "step 2"]
    bars = ports.locator("path.series")
    assert bars.count() == sizes.locator("path.series").count() == 3
    # Bars of the steps stand side by side, and each step has a colour of its own.
    boxes = [bar.bounding_box() for bar in bars.all()]
    assert [box["x"] for box in boxes] == sorted({box["x"] for box in boxes})
    assert len({bar.get_attribute("fill") for bar in bars.all()}) == 3
    assert {line.get_attribute("fill") for line in sizes.locator("path.series").all()} == {"none"}
    ports.locator("svg").hover()
    assert "step 2: 90 %" in page.locator("#tip").inner_text() or "step 2: 10 %" in page.locator("#tip").inner_text()
    without = opened(series / "release" / "report.html")
    assert without.locator('[data-chart="stepwise"]').count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_colour_scheme(opened, patches, scheme):
    page = opened(
        patches / "release" / "report.html", viewport={"width": 360, "height": 740}, color_scheme=scheme
    )  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper)[:3])) > 3 * 128
    assert light == (scheme == "light")


def test_it_prints_on_paper(opened, patches):
    page = opened(patches / "release" / "report.html", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert visible(page, ".chips") == 0
    assert page.pdf()[:4] == b"%PDF"


def test_the_operator_s_report_opens_too(opened, patches):
    page = opened(patches / "private" / "report.html")
    assert page.locator(".banner").is_visible()
    assert "0.1235" in page.locator("#metrics").inner_text()


def test_the_check_sees_what_a_page_must_not_do(browser, tmp_path):
    """The broken twin: an error, a message and a request from outside are all noticed."""
    path = tmp_path / "bad.html"
    path.write_text('<html data-drawn="true"><img src="http://127.0.0.1:9/x.png"><script>nothing()</script></html>')
    said = []
    page = browser.new_page()
    page.on("pageerror", lambda error: said.append("error"))
    page.on("request", lambda request: said.append(request.url))
    page.goto(path.as_uri())
    page.close()
    assert "error" in said
    assert "http://127.0.0.1:9/x.png" in said
