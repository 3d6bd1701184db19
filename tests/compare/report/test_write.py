"""The files of a report, as a reader opens them."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from melora.compare.report import read_records, write_report
from melora.compare.statistics_interval import METHOD

METHODS = ("head", "LoRA r=8", "MELoRA 8x1", "MELoRA 4x2")
TASKS = ("glue/rte", "glue/cola")


@pytest.fixture(scope="module")
def study(made_up: SimpleNamespace) -> tuple[Any, list[Any]]:
    """Two tasks and four methods, with a failed and a missing run; on one task no curves were logged."""
    records = [run for run in made_up.records() if run.method in METHODS and run.task in TASKS]
    records = [replace(run, points=()) if run.task == TASKS[1] else run for run in records]
    records[0], records[1] = made_up.failed(records[0]), made_up.missing(records[1])
    return made_up.about(tasks=TASKS, methods=METHODS, rates=dict.fromkeys(METHODS, made_up.RATES)), records


@pytest.fixture(scope="module")
def folder(study: tuple[Any, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "a" / "study"
    write_report(path, *study)
    return path


@pytest.fixture(scope="module")
def document(folder: Path, document_of: Callable[[str], Any]) -> Any:
    return document_of((folder / "report.html").read_text(encoding="utf-8"))


def test_all_files_and_nothing_else(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "plots", "results.parquet"}
    kinds = {"glue-rte": ("front", "grid", "rates", "loss", "score", "costs")}
    kinds["glue-cola"] = ("front", "grid", "rates", "costs")
    expected = {f"{kind}-{slug}.png" for slug, of_task in kinds.items() for kind in of_task}
    assert {path.name for path in (folder / "plots").iterdir()} == expected | {"front.png", "grid.png"}
    for path in (folder / "plots").iterdir():
        with Image.open(path) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 2  # drawn on


def test_the_results_come_back(folder: Path, study: tuple[Any, list[Any]]) -> None:
    assert read_records(folder / "results.parquet") == study[1]


def test_the_page_asks_for_nothing_from_outside(folder: Path, document: Any) -> None:
    links = {
        value
        for element in document.elements
        for name, value in element.attributes.items()
        if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster", "background")
    }
    assert links
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= {element.attributes.get("id") for element in document.elements}
    (style,) = document.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    assert not document.all("script", "link", "iframe", "object", "embed", "img", "base", "form")
    assert not [name for element in document.elements for name in element.attributes if name.startswith("on")]
    policy = [e.attributes["content"] for e in document.all("meta") if "http-equiv" in e.attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    # Names of formats, not addresses to fetch, would be all that is left: there are none at all.
    assert "http://" not in (folder / "report.html").read_text(encoding="utf-8")


def test_ids_are_unique_and_what_points_to_them_finds_them(document: Any) -> None:
    ids = [element.attributes["id"] for element in document.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids)) > 100
    for element in document.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((element.attributes.get(name) or "").split()) <= set(ids)
        for target in re.findall(r"url\(#([^)]*)\)", " ".join(filter(None, element.attributes.values()))):
            assert target in ids


def test_each_picture_has_a_name_a_and_a_description(folder: Path, document: Any) -> None:
    svgs = document.all("svg")
    assert len(svgs) == len(list((folder / "plots").iterdir()))
    told = {element.attributes.get("id"): element.text for element in document.all("title", "desc")}
    for svg in svgs:
        assert svg.attributes["role"] == "img"
        assert svg.inside[-1] == "figure"
        assert len(told[svg.attributes["aria-labelledby"]]) > 20
        assert len(told[svg.attributes["aria-describedby"]]) > 20
        assert "width" not in svg.attributes
        assert re.fullmatch(r"0 0 [\d.]+ [\d.]+", svg.attributes["viewbox"])


def test_pictures_take_their_colours_from_the_page(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(svgs) == len(list((folder / "plots").iterdir()))
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    for svg in svgs:
        colours, variables = set(re.findall(r"#[0-9a-f]{6}\b", svg)), set(re.findall(r"var\((--[a-z0-9-]+)\)", svg))
        assert "--ink" in variables
        assert all(style.count(f"{variable}: #") == 2 for variable in variables)  # for a light and a dark page
        # A heat map's cells have the same colours on both.
        assert bool(colours) == ("MELoRA's score over n and r" in svg)


def test_every_table_is_followed_by_its_note(document: Any) -> None:
    tables = [i for i, element in enumerate(document.elements) if element.tag == "table"]
    assert len(tables) == 2 + 1 + 1 + 2 + 2 + 2  # scores, all tasks, n and r, rates, costs, failed and missing
    for i in tables:
        following = next(e for e in document.elements[i:] if "table" not in e.inside and e.tag != "table")
        assert following.attributes.get("class") == "note"
        assert "Seeds: 3 (0, 1, 2)." in following.text
        assert "Learning rates: 0.0005, 0.001, 0.005 for every method." in following.text
        assert METHOD in following.text
    ties = [e.text for e in document.all("p") if "interval contains 0 is called a tie" in e.text]
    assert len(ties) == 1 + 2 + 1  # summary, scores, all tasks


def test_tables_can_be_read_by_machines_and_reached_by_keyboard(document: Any) -> None:
    for element in document.all("th"):
        assert element.attributes["scope"] == ("col" if "thead" in element.inside else "row")
    assert all(element.inside[-1] == "tr" for element in document.all("th", "td"))
    scrolled = [e for e in document.elements if e.attributes.get("class") == "scroll"]
    assert len(scrolled) == len(document.all("caption")) == len(document.all("table"))
    for element in scrolled:
        assert (element.attributes["role"], element.attributes["tabindex"]) == ("region", "0")
    assert all(e.attributes.get("class") != "scroll" and e.attributes["tabindex"] == "0" for e in document.all("pre"))


def test_headings_are_in_order_and_the_first_link_skips_to_the_report(document: Any) -> None:
    levels = [int(element.tag[1]) for element in document.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    first = document.all("a", "button", "summary", "pre")[0]
    assert first.attributes == {"class": "skip", "href": "#main"}
    assert [element.text for element in document.all("h2")] == [
        "Summary",
        "Score against trainable parameters",
        "Scores by task",
        "Over all tasks",
        "n and r",
        "Learning rates",
        "Training curves",
        "Time and memory",
        "Runs",
        "Study file",
    ]
    (html,) = document.all("html")
    assert html.attributes["lang"] == "en"


def test_the_markdown_has_the_same_tables_and_links_each_picture(folder: Path, document: Any) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    rows = [line for block in blocks for line in block.splitlines()]
    assert len(blocks) == len(document.all("table"))
    assert len(rows) == len(document.all("tr")) + len(blocks)  # each has a rule below its head
    cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)[1:-1] if not set(row) <= set("|-:")]
    plain = [re.sub(r"\\(.)", r"\1", cell).replace("&lt;", "<").replace("&gt;", ">") for cell in cells]
    assert plain == [element.text for element in document.all("th", "td")]
    for block in blocks:
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1
        note = text.split(block)[1].strip().split("\n\n")[0]
        assert note.startswith("Seeds: 3 (0, 1, 2).")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert sorted(links) == sorted(f"plots/{path.name}" for path in (folder / "plots").iterdir())


def test_the_order_of_records_plays_no_part(small: Callable[..., Any], written: Callable[..., Any]) -> None:
    about, records = small()
    one, other = written(about, records), written(about, records[::-1])
    assert one.document.html == other.document.html
    assert one.markdown == other.markdown


def test_a_failed_write_leaves_the_earlier_report(
    made_up: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(tmp_path, made_up.about(title="the earlier one"), [])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(path: Path, content: bytes) -> int:
        path.open("wb").close()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path, made_up.about(title="the later one"), [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert b"the earlier one" in before["report.html"]
