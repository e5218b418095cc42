"""Numbers in texts are those of the records, and the scripts that measure still run."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import MODULES, forked

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "benchmarks")]

import fill  # noqa: E402
import record  # noqa: E402
from figures import FIGURES  # noqa: E402
from tables import ratio, source, span, table  # noqa: E402

RECORDS = record.Records()
NAMES = sorted(RECORDS)
SCRIPTS = (
    "bench",
    "low_memory",
    "services",
    "rules",
    "formats",
    "training",
    "training_matrices",
    "subsets",
    "gpu_code",
    "sharded",
    "matrix",
    "kronecker",
    "many_ranks",
)


def made():
    """Every figure whose records are there."""
    found = {}
    for name, figure in FIGURES.items():
        try:
            found[name] = figure(RECORDS)
        except KeyError as error:
            assert "there is no record" in str(error)
    return found


def altered(name, change):
    """The records, one of them changed."""
    found = json.loads(json.dumps(RECORDS[name]))
    change(found)
    return {**RECORDS, name: found}


def test_texts_have_the_numbers_of_the_records():
    stale = [str(path.relative_to(ROOT)) for path in fill.stale(RECORDS)]
    assert not stale, "run: python docs/fill.py"


def test_a_new_run_makes_texts_stale():
    def slower(found):
        for row in found["rows"]:
            row["ms"] *= 2 if row["states"] else 1

    assert ROOT / "README.md" in fill.stale(altered("low_memory", slower))


MEASURED = re.compile(r"(?<![\w.-])(?!100%)\d[\d.,]* ?(?:%|x|ms|us|ns|MB|GB/s|times as)(?!\w)")
REGIONS = re.compile(r"^<!-- (?:figures|code):.*?^<!-- end -->|^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "path",
    [path for path in fill.texts() if path.name != "decisions.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_measured_number_is_typed_by_hand(path):
    """The page of optimizers is generated as a whole; decisions keep the numbers of their date."""
    assert MEASURED.findall(REGIONS.sub("", path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("number", ["54 ms", "1.02x", "103%", "111 GB/s", "5.1 times as", "52 MB"])
def test_numbers_typed_by_hand_are_seen(number):
    text = "Takes 0.1.2, 24bit, 8x8x.\n<!-- figures: speed -->\n9 ms\n<!-- end -->\n"
    assert not MEASURED.findall(REGIONS.sub("", text))
    assert MEASURED.findall(REGIONS.sub("", f"{text}Takes {number} long.")) == [number]


def test_a_piece_that_has_changed_is_filled_anew():
    text = "<!-- code: texts.pieces -->\n\n| `ema(avg, value)` | An average. |\n\n<!-- end -->\n"
    assert "| `ema(avg, value, beta)` | One step of" in fill.filled(text, RECORDS)


def test_a_reader_of_the_repository_sees_nothing_that_only_the_site_fills():
    for path in fill.texts():
        seen = re.sub(r"^<!-- site\n.*?^-->$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^(\{\{ |::: )", seen, re.MULTILINE), path


@pytest.mark.parametrize("change", ["a number", "the source", "an empty line"])
def test_a_changed_text_is_seen(change):
    text = fill.filled("# Title\n\n<!-- figures: speed -->\n<!-- end -->\n\nText.\n", RECORDS)
    assert fill.filled(text, RECORDS) == text
    first = next(cell for cell in text.split() if cell.endswith("x"))
    hurt = {"a number": (first, "9.99x"), "the source": ("commit", "comit"), "an empty line": ("-->\n\n", "-->\n")}
    broken = text.replace(*hurt[change], 1)
    assert broken != text and fill.filled(broken, RECORDS) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- figures: sped -->\n<!-- end -->\n", "line 1: there is no figure 'sped'; choose from "),
        ("<!-- code: texts.peaces -->\n<!-- end -->\n", "line 1: tools/site has no function 'texts.peaces'"),
        ("Text\n\n<!-- figures: speed -->\n", "line 3: '<!-- figures: speed -->' has no end"),
        (
            "<!-- figures: speed -->\n<!-- figures: rules -->\n<!-- end -->\n",
            "line 1: '<!-- figures: speed -->' has no end",
        ),
        ("Text\n<!-- end -->\n", "line 2: '<!-- end -->' ends nothing"),
    ],
    ids=["unknown", "no function", "without an end", "one in another", "an end alone"],
)
def test_regions_that_cannot_be_filled_are_refused(text, told):
    with pytest.raises(ValueError, match="^" + told.replace("(", r"\(")):
        fill.filled(text, RECORDS)


@pytest.mark.parametrize("name", NAMES)
def test_every_record_has_the_same_head(name):
    found = RECORDS[name]
    assert tuple(found) == (*record.HEAD, "facts", "rows")
    assert set(found["machine"]) == {"processor", "cores", "memory_gib", "gpu"}
    assert set(found["commit"]) == {"hash", "dirty"}
    compiler = {"llvmlite", "numba"} & set(found["versions"])  # the second until 2026-11-28
    assert len(compiler) == 1 and set(found["versions"]) - compiler == {"python", *record.PACKAGES} - {"llvmlite"}
    assert found["date"] and found["rows"]


@pytest.mark.parametrize("name", sorted(made()))
def test_every_figure_says_where_it_is_from(name):
    text = made()[name]
    last = text.splitlines()[-1]
    assert last.startswith("*") and last.endswith(".*") and "commit " in last and "2026-" in last
    ours = re.sub(
        r"(?ms)^ *```.*?^ *```|^\*\*[^\n]*What happens[^\n]*", "", text
    )  # without programs, and what these say
    for wrong in ("None", "nan", "inf", "{", "}"):
        assert wrong not in ours.replace("max_grad_norm=None", "").replace("isfinite", "").replace(
            "information", ""
        ).replace("infinite", "")


def test_a_table_has_one_machine():
    with pytest.raises(ValueError, match="one table needs one machine, and these are 2"):
        source(RECORDS["bench"], RECORDS["gpu"])


def test_a_source_says_what_is_not_known_and_what_was_changed():
    found = {
        "machine": {"processor": "P", "cores": 1, "memory_gib": 7.6, "gpu": None},
        "date": "2026-01-02T03:04:05+00:00",
        "commit": {"hash": "0123456789abcdef", "dirty": False},
        "versions": dict.fromkeys(("python", *record.PACKAGES)) | {"torch": "2.9"},
        "load": 1.0,
    }
    assert source(found) == "*P, 1 core, 8 GiB; torch 2.9; 2026-01-02; commit 012345678.*"
    found["commit"]["dirty"], found["load"] = True, 1.6
    assert (
        source(found) == "*P, 1 core, 8 GiB; torch 2.9; 2026-01-02; commit 012345678 with changes; on a busy machine.*"
    )
    found["commit"], found["machine"]["processor"], found["load"] = {"hash": None, "dirty": None}, None, None
    assert source(found) == "*machine not recorded; torch 2.9; 2026-01-02; commit not recorded.*"


def test_tables_and_numbers():
    columns = {"": lambda x: f"x{x}", "n": lambda x: str(x) if x > 1 else "", "text": lambda x: "yes"}
    assert table([1, 2], columns) == "|  | n | text |\n| --- | ---: | --- |\n| x1 |  | yes |\n| x2 | 2 | yes |"
    assert [ratio(x) for x in (0.5, 1.004, 1.999, 2, 9.94, 15.8)] == ["0.50", "1.00", "2.00", "2.0", "9.9", "16"]
    assert [span(x) for x in (1.051, 0.0544, 7.8e-6, 1e-3, 5e-10)] == ["1.05 s", "54 ms", "7.8 us", "1.0 ms", "0.5 ns"]


@pytest.mark.long
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run(script, tmp_path):
    """One round over tiny models, in a folder of its own."""
    environment = {**os.environ, "STEPRULE_BENCH_QUICK": "1", "STEPRULE_BENCH_FOLDER": str(tmp_path)}
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{script}.py"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    found = record.Records(tmp_path)
    assert list(found) == [script] and tuple(found[script]) == (*record.HEAD, "facts", "rows")


def test_steps_to_a_loss_are_read_off_between_two_lengths():
    import training_matrices as script

    def loss(steps):
        return -math.log(steps)

    for steps in (101, 180, 240, 399, 401, 565):
        assert script.crossing(loss, -math.log(steps)) == pytest.approx(steps)
    assert script.crossing(loss, -math.log(50)) == script.LADDER[0]
    assert script.crossing(loss, -math.log(600)) is None
    best = script.tuned(
        lambda given: abs(math.log(given["lr"] / 0.09)) + abs(math.log(given["rest_lr"] / 2)) + given["b"],
        script.Tuning(0.01, {"b": (1, 0)}, {}),
        {"lr": 0.01, "rest_lr": 16, "b": 1},
    )
    assert best == {"lr": 0.08, "rest_lr": 2, "b": 0}


def test_without_a_gpu_its_script_says_what_else_there_is():
    (done,) = forked([[ROOT / "benchmarks" / "gpu.py"]], MODULES, {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1 and "gpu_code.py" in done.stderr
