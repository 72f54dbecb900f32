"""``klto report``: the HTML file as a browser shows it, and the trace."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from report_samples import FINDING, sample_record, write_record

from klto.cli import main
from klto.errors import UsageError
from klto.report import page, page_data
from klto.report.side import open_record
from klto.report.trace import encode_trace, pack
from tests.browser import Browser, opened_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as found:
        yield found


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a build of 3,000 modules, compared with a smaller one."""
    folder = tmp_path_factory.mktemp("report")
    small = write_record(folder / "small", sample_record(300))
    large = write_record(folder / "large", sample_record(3000))
    out = folder / "report.html"
    assert main(["report", "-q", str(small), str(large), "-o", str(out)]) == 0
    return out


def test_page_is_one_file_that_draws_everything(browser: Browser, large_page: Path) -> None:
    assert large_page.stat().st_size < 2_000_000
    assert browser.open(large_page) < 2.0
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
    assert browser.run("return document.querySelectorAll('#timeline-chart rect.bar').length") > 2500
    assert browser.run("return document.querySelectorAll('#timeline-chart path.bar').length") == 1
    assert browser.run("return document.querySelectorAll('#treemap .cell').length") >= 9
    assert browser.run("return document.querySelectorAll('#initcall-table tbody tr').length") == 15
    text = browser.run("return document.body.innerText")
    for wanted in ("25 executable sections, expected 1 </script><b>&", "filter CC_FLAGS_LTO out",
                   "cd /home/me/linux && klto build --lto thin", "clang version 19.1.7", "/build/.config"):  # fmt: skip
        assert wanted in text


@pytest.fixture(scope="module")
def small_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the large one, with everything in it that the large one has."""
    folder = tmp_path_factory.mktemp("report")
    for name, modules in (("a", 30), ("b", 40)):
        write_record(folder / name, sample_record(modules))
    out = folder / "report.html"
    assert main(["report", "-q", str(folder / "a"), str(folder / "b"), "-o", str(out)]) == 0
    return out


@pytest.mark.parametrize(("width", "theme"), [(400, "dark"), (1280, "light")])
def test_page_is_accessible(browser: Browser, small_page: Path, width: int, theme: str) -> None:
    browser.open(small_page, width, theme)
    assert browser.accessibility_faults() == []


@pytest.mark.parametrize("width", [400, 1280])
def test_page_is_no_wider_than_the_window(browser: Browser, large_page: Path, width: int) -> None:
    browser.open(large_page, width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_a_long_name_in_a_finding_is_no_wider_than_the_window(browser: Browser, tmp_path: Path) -> None:
    finding = {**FINDING, "message": "x" * 120, "remedies": ["y" * 120]}
    write_record(tmp_path / "a", sample_record(3, findings=[finding]))
    assert main(["report", "-q", str(tmp_path / "a"), "-o", str(tmp_path / "out.html")]) == 0
    browser.open(tmp_path / "out.html", 400)
    assert browser.run("return document.documentElement.scrollWidth") <= 400


def test_theme_button(browser: Browser, large_page: Path) -> None:
    browser.open(large_page, theme="dark")
    shade = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.run(shade)
    browser.run("document.getElementById('theme').click()")
    assert browser.run(shade) != dark


def test_treemap_goes_down_and_up_by_keyboard(browser: Browser, large_page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(large_page)
    crumbs = "return [...document.querySelectorAll('#crumbs button')].map(b => b.textContent)"
    browser.run("document.querySelector('#treemap .cell').focus()")
    browser.press(Keys.ENTER)
    assert browser.run(crumbs) == ["vmlinux", "drivers"]
    browser.press(Keys.ENTER)
    deeper = browser.run(crumbs)
    assert deeper[:2] == ["vmlinux", "drivers"]
    assert len(deeper) == 3
    browser.press(Keys.ESCAPE)
    assert browser.run(crumbs) == ["vmlinux", "drivers"]
    browser.run("document.querySelector('#crumbs button').click()")
    assert browser.run(crumbs) == ["vmlinux"]
    # By mouse, and what it shows adds up.
    browser.run(
        "document.querySelector('#treemap .cell').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert browser.run("return klto.tree.here().name") == "drivers"
    assert browser.run(
        "const h = klto.tree.here(); return klto.tree.size(h) - "
        "[...h.children.values()].reduce((sum, c) => sum + klto.tree.size(c), 0)"
    ) == 0  # fmt: skip


def test_tables_sort_filter_and_show_all(browser: Browser, large_page: Path) -> None:
    browser.open(large_page)
    rows = "return document.querySelectorAll('#backends tbody tr').length"
    assert browser.run(rows) == 12
    browser.run("const i = document.querySelector('#backends input'); i.value = 'fs/ext4'; "
                "i.dispatchEvent(new Event('input'))")  # fmt: skip
    assert (
        browser.run("return document.querySelector('#backends [role=status]').textContent")
        == "200 of 3000 rows"
    )
    browser.run("[...document.querySelectorAll('#backends button')].pop().click()")
    assert browser.run(rows) == 200
    browser.run("document.querySelectorAll('#backends thead button')[1].click()")
    assert browser.run("return document.querySelectorAll('#backends thead th')[1].ariaSort") == "descending"


def test_page_prints_without_controls(browser: Browser, large_page: Path) -> None:
    browser.open(large_page)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.run("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_page_of_a_failed_build_says_what_is_not_known(browser: Browser, tmp_path: Path) -> None:
    record = sample_record(
        3, status="failed", message="ld.lld was killed <b>", stages=[], links=[], memory=[], sizes=None,
        artifacts=[], boots=[], initcalls=[], findings=[], verification=None, tree=None, config=None, toolchain=None,
    )  # fmt: skip
    write_record(tmp_path / "b", record)
    out = tmp_path / "r.html"
    assert main(["report", "-q", "-b", str(tmp_path / "b"), "-o", str(out)]) == 0
    browser.open(out, 400)
    assert browser.complaints() == []
    text = browser.run("return document.body.innerText")
    assert "ld.lld was killed <b>" in text
    assert text.count("Not measured") + text.count("not measured") >= 2


def test_huge_kernel_stays_below_two_megabytes(tmp_path: Path) -> None:
    from klto.record import ObjectSize

    record = sample_record(6000)
    objects = [
        ObjectSize(path=f"drivers/some/folder_{i % 700}/some_object_{i}.o", text=9000 - i // 4)
        for i in range(30_000)
    ]
    assert record.sizes is not None
    import msgspec

    record = msgspec.structs.replace(record, sizes=msgspec.structs.replace(record.sizes, objects=objects))
    side = open_record(write_record(tmp_path / "b", record))
    text = page.render([side])
    assert len(text.encode()) < 2_000_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert sum(row[1] for row in data["objects"]) == sum(o.text for o in objects)


def test_initcall_times_come_from_the_console(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text(
        "[    0.1] calling  init_1+0x0/0x10 @ 1\n[    0.2] initcall init_1+0x0/0x10 returned 0 after 1234 usecs\n"
        "[    0.3] initcall init_2.llvm.77+0x0/0x10 [mod] returned -19 after 5 usecs\n[    0.4] initcall torn+0x"
    )
    from klto.record import Boot

    boot = Boot(image="i", accelerator="tcg", seconds=1.0, console=str(console), proofs=[])
    assert page_data.initcall_times(sample_record(3, boots=[boot])) == {"init_1": 1234, "init_2": 5}


def test_trace_nests_and_agrees_with_the_record(tmp_path: Path) -> None:
    record = sample_record(200)
    build = write_record(tmp_path / "b", record)
    linker = {"beginningOfTime": int((record.started + 300) * 1e6), "traceEvents": [
        {"ph": "X", "name": "LTO", "ts": 0, "dur": 900, "tid": 7, "pid": 9},
        {"ph": "X", "name": "Total LTO", "ts": 0, "dur": 900, "tid": 8, "pid": 9},
    ]}  # fmt: skip
    (build / ".klto" / "time-trace.json").write_text(json.dumps(linker))
    out = tmp_path / "trace.json"
    assert main(["report", "-q", "-b", str(build), "--trace", str(out)]) == 0
    events = json.loads(out.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert all(isinstance(e["ts"], int) and e["dur"] >= 0 and e["name"] for e in spans)
    _assert_nested(spans)
    stages = [e for e in spans if e["cat"] == "stage"]
    assert [e["name"] for e in stages] == [s.name for s in record.stages]
    assert sum(e["dur"] for e in stages) == pytest.approx(
        sum(s.wall_seconds or 0 for s in record.stages) * 1e6, abs=9
    )
    backends = [e for e in spans if e["cat"] == "backend"]
    wanted = sum(m.seconds or 0 for link in record.links for m in link.modules)
    assert sum(e["dur"] for e in backends) == pytest.approx(wanted * 1e6, abs=400)
    assert {e["tid"] for e in backends} == {1000, 1001}
    assert [e["name"] for e in spans if e["cat"] == "proof"] == ["init", "kexec"]
    assert [(e["name"], e["ts"]) for e in spans if e["cat"] == "linker"] == [("LTO", 300_000_000)]
    assert sum(e["ph"] == "C" for e in events) == len(record.memory)


def _assert_nested(spans: list[dict[str, int]]) -> None:
    """Spans of one thread are within one another or apart."""
    for tid in {e["tid"] for e in spans}:
        open_ends: list[int] = []
        of_thread = [e for e in spans if e["tid"] == tid]
        for event in sorted(of_thread, key=lambda e: (e["ts"], -e["dur"])):
            while open_ends and open_ends[-1] <= event["ts"]:
                open_ends.pop()
            assert not open_ends or event["ts"] + event["dur"] <= open_ends[-1], event
            open_ends.append(event["ts"] + event["dur"])


def test_d3_is_what_its_list_says() -> None:
    folder = resources.files("klto.report").joinpath("web", "d3")
    listed = dict(re.findall(r"\| (\S+\.min\.js) \|.*`(\w+)`", folder.joinpath("README.md").read_text()))
    found = {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.name.endswith(".js")
    }
    assert found == listed


def test_spans_at_once_go_to_lanes_of_their_own() -> None:
    assert pack([(0.0, 2.0), (1.0, 2.0), (2.0, 1.0), (2.5, 1.0)]) == [0, 1, 0, 2]


def test_damaged_linker_trace_is_left_out(tmp_path: Path) -> None:
    build = write_record(tmp_path / "b", sample_record(3))
    (build / ".klto" / "time-trace.json").write_text("{")
    side = open_record(build)
    assert json.loads(encode_trace(side))["traceEvents"]
    assert "damaged" in side.notes[-1]


@pytest.mark.parametrize(
    "arguments", [["a", "-b", "b"], ["a", "b", "--trace", "t"], ["a", "--trace", "t", "-o", "x"]]
)
def test_contradictions_are_refused(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_record(tmp_path / name, sample_record(3))
    assert main(["report", *arguments]) == UsageError.exit_status
    assert capsys.readouterr().err.startswith("klto: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
