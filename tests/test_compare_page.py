"""What the page of `steprule compare` says and draws, from runs made up for it."""

import hashlib
import html
import math
import re
from base64 import b64encode
from dataclasses import replace
from datetime import datetime, timezone

import pytest

pytest.importorskip("rich")

from rich.console import Console

from steprule.charts import Axis, Line
from steprule.compare import Task
from steprule.compare.curves import picture
from steprule.compare.report import page
from steprule.compare.results import Comparison, TaskResult
from steprule.compare.run import Budget, Run
from steprule.compare.summary import answer, leaders, measured, number, rank, rows
from steprule.compare.terminal import table

STEPS = list(range(0, 101, 5))


def falling(start, end, steps=STEPS):
    """Losses that fall fast and then slowly, from one value to another."""
    return [end + (start - end) * math.exp(-step / 8) for step in steps]


def run(optimizer, seed=0, loss=None, **changes):
    """A run with these losses."""
    name, _, settings = optimizer.partition(":")
    settings = settings.split(",") if settings else []
    lr = next((float(one[3:]) for one in settings if one.startswith("lr=")), None)
    label = " ".join([name, *(one for one in settings if not one.startswith("lr="))])
    loss = falling(5.0, 2.0) if loss is None else loss
    steps = STEPS[: len(loss)]
    reached = next((step for step, value in zip(steps, loss, strict=True) if value <= 2.2), None)
    given = {
        "steps": steps,
        "seconds": [step / 100 for step in steps],
        "loss": loss,
        "reached_step": reached,
        "reached_seconds": None if reached is None else reached / 100,
        "step_ms": 0.1234,
        "state_bytes": 8.0,
        "step_count": steps[-1] if steps else 0,
    }
    return Run("toy", optimizer, label, lr, seed, **{**given, **changes})


def result(runs, target=2.2, grid=(), name="toy", description="Learn <nothing>."):
    task = Task(name, abs, abs, abs, abs, target=target, steps=100, eval_every=5, description=description)
    return TaskResult(task, target, Budget(steps=100), grid, 6, 12345, 32, runs)


def comparison(*results, **changes):
    settings = {"optimizers": {one.task.name: ["adam:lr=0.1"] for one in results}, "lr_grid": None, "threads": 1}
    machine = {"Python": "3.12.1", "steprule": "1.2.3", "torch": "2.9.0", "processor": "one & only"}
    command = "steprule compare 'adam:betas=(0.9,0.99)' --task mine:toy --seeds 3"
    date = datetime(2026, 11, 27, 2, 15, 9, tzinfo=timezone.utc)
    return replace(Comparison(settings, machine, list(results), command, date), **changes)


def several(count=4, seeds=3):
    """Optimizers whose curves end close together, none of which is first beyond doubt."""
    names = ("adam", "sgd:lr=0.1,momentum=0.9", "rmsprop", "adamw:weight_decay=0.1", "lion", "mine.AVeryLongOptimizer", "adagrad", "adadelta")  # fmt: skip
    return result(
        [
            run(name, seed, falling(5.0, 2.0 + index / 500 + seed / 100))
            for index, name in enumerate(names[:count])
            for seed in range(seeds)
        ]
    )


def lines(chart, thin):
    return [mark for mark in chart.marks if isinstance(mark, Line) and mark.thin == thin]


# Answers


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ({"a": [8, 10, 12]}, "a reached the target."),
        ({"a": [8, 10, 12], "b": [13, 15, 17]}, "a reached the target first."),
        ({"a": [10], "b": [15]}, "a reached the target first, with one seed."),
        ({"a": [8, 10, 13], "b": [13, 15, 17]}, "a and b cannot be told apart."),
        ({"a": [8, 10, 18], "b": [13, 15, 17], "c": [15, 19, 29]}, "a, b and c cannot be told apart."),
        ({"x c=1": [8, 10, 18], "x c=2": [13, 15, 17]}, "x c=1 and x c=2 cannot be told apart."),
        ({"a": [8, None, None], "b": [None] * 3}, "No optimizer reached the target."),
    ],
    ids=["alone", "first", "one seed", "two", "three", "one name", "nobody"],
)
def test_the_answer_is_one_line(reached, expected):
    runs = [
        Run("toy", label, label, None, seed, loss=[5.0, 1.0], steps=[0, 10], seconds=[0, 1], reached_step=step)
        for label, steps in reached.items()
        for seed, step in enumerate(steps)
    ]
    ranked = rank(rows(runs), "steps", False)
    assert answer(ranked, "steps") == expected
    assert len(leaders(ranked, "steps")) == (expected.count(",") + 2 if "apart" in expected else "No" not in expected)


def test_nothing_but_failures_is_no_result():
    failed = [run("adam", seed, [], status="failed", error="ValueError: odd") for seed in range(2)]
    assert result(failed).failure == "ValueError: odd"
    assert result([*failed, run("sgd")]).failure is None
    assert result([failed[0], replace(failed[1], error="ValueError: other")]).failure is None
    assert result(failed).answer() == "No run finished."
    assert result([]).failure is None


@pytest.mark.parametrize(
    ("value", "digits", "told", "exact"),
    [(0.0448, 2, "0.045", "0.045"), (0.05, 2, "0.05", "0.050"), (99.6, 2, "100", "100"), (2.0, 3, "2", "2.00"),
     (1234.4, 3, "1234", "1234"), (4.87e30, 3, "4.87e+30", "4.87e+30"), (9.96, 2, "10", "10")],
)  # fmt: skip
def test_numbers_have_as_many_digits_as_asked_for(value, digits, told, exact):
    assert (number(value, digits=digits), measured(value, digits)) == (told, exact)


# Charts


def test_a_thin_line_is_a_seed_and_a_thick_one_their_median():
    losses = [falling(5.0, end) for end in (2.0, 2.1, 2.4)]
    for chart in picture(result([run("adam", seed, loss) for seed, loss in enumerate(losses)])).charts:
        assert [list(line.y) for line in lines(chart, thin=True)] == losses
        target, middle = lines(chart, thin=False)
        assert (target.name, list(target.y)) == ("target 2.2", [2.2, 2.2])
        assert (middle.name, list(middle.y)) == ("adam", losses[1])


def test_one_seed_has_no_thin_line():
    assert lines(picture(result([run("adam")])).charts[0], thin=True) == []


def test_the_axis_begins_where_the_curves_have_left_the_untrained_loss():
    drawn = picture(several())
    axis = drawn.charts[0].y
    assert not axis.log and axis.low < 2.0 and 2.3 < axis.high < 4
    assert "The loss of the first steps lies above the axis." in drawn.note


def test_an_axis_over_more_than_a_factor_of_eight_is_logarithmic_with_full_numbers():
    drawn = picture(result([run("adam", loss=falling(2.3, 0.04)), run("sgd", loss=falling(2.3, 0.4))], target=0.1))
    axis = drawn.charts[0].y
    assert axis.log and axis.label == "validation loss (log scale)"
    assert [axis.text(tick) for tick in axis.ticks()] == ["0.05", "0.1", "0.2", "0.5", "1"][: len(axis.ticks())]
    assert len(axis.ticks()) >= 4


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.04, 2.1, ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        (3, 60, ["5", "10", "20", "50"]),
        (1e-4, 2, ["0.0001", "0.001", "0.01", "0.1", "1"]),
        (3e-8, 1.5e-6, ["5e-8", "1e-7", "2e-7", "5e-7", "1e-6"]),
    ],
    ids=["loss", "large", "decades", "tiny"],
)
def test_ticks_are_full_numbers(low, high, expected):
    from steprule.compare.curves import _log_ticks

    assert list(_log_ticks(low, high).values()) == [text.replace("-", "\u2212") for text in expected]


def test_what_is_worse_than_no_training_is_beyond_the_axis():
    bad = [5.0, *[1e30] * (len(STEPS) - 1)]
    chart = picture(result([run("adam"), run("sgd:lr=1e9", loss=bad)])).charts[0]
    assert chart.y.high < 6
    assert next(line for line in chart.marks if line.name.startswith("sgd")).short == "sgd \u2191"


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_axis_hides_no_run_that_got_better(seeds):
    """The median of two seeds is their mean, and the worse one lay above the axis from its first step to its last."""
    runs = [run(f"a{one}", 0, falling(5.0, 1.0)) for one in range(4)] + [run("slow", 0, falling(5.0, 4.8))]
    runs += [run(one.optimizer, 1, falling(5.0, 4.9 if one.optimizer == "a0" else 1.0)) for one in runs] * (seeds - 1)
    axis = picture(result(runs)).charts[0].y
    assert axis.high >= max(one.loss[-1] for one in runs)


def test_a_target_far_below_does_not_press_the_curves_together():
    drawn = picture(result([run("adam")], target=1e-6))
    assert drawn.charts[0].y.low > 1
    assert not any(mark.name.startswith("target") for mark in drawn.charts[0].marks)
    assert "The target lies below the axis." in drawn.note


@pytest.mark.parametrize(
    "loss", [[5.0], [5.0] * 4, [0.0] * 4, [-3.0, -4.0], [1e-300, 1e-301]], ids=["point", "flat", "zero", "negative", "tiny"]
)  # fmt: skip
def test_odd_losses_can_be_drawn(loss):
    for target in (1.0, loss[0]):
        for chart in picture(result([run("adam", loss=loss)], target=target)).charts:
            assert chart.y.low < chart.y.high and chart.x.low < chart.x.high
            assert chart.elements()


def test_no_evaluation_means_no_chart():
    assert picture(result([run("adam", loss=[], status="failed")])) is None
    assert picture(result([])) is None


def test_six_have_a_color_and_the_others_are_gray():
    drawn = picture(several(8))
    chart = drawn.charts[0]
    thick = [line for line in lines(chart, thin=False) if line.style != "target"]
    assert sorted(line.style for line in thick if line.name) == [0, 1, 2, 3, 4, 5]
    assert [line.style for line in thick if not line.name] == ["faint"] * 2
    assert "Gray lines are optimizers further down in the table." in drawn.note


def test_other_learning_rates_are_gray():
    runs = [run(f"{name}:lr={lr}", seed, falling(5.0, 2 + lr)) for name in ("adam", "sgd") for lr in (0.1, 0.5) for seed in (0, 1)]  # fmt: skip
    drawn = picture(result(runs, grid=(0.1, 0.5)))
    assert [line.name for line in lines(drawn.charts[0], thin=False)] == [
        "target 2.2",
        "",
        "",
        "adam lr=0.1",
        "sgd lr=0.1",
    ]
    assert "Gray lines are other learning rates." in drawn.note


def test_labels_are_short_and_differ():
    runs = [
        run("adamw:states=8bit"),
        run("adamw:weight_decay=0.1"),
        run("torch.AdamW"),
        run("torch.Adam"),
        run("mine.AVeryLongOptimizer"),
    ]
    named = {line.name: line.short for line in picture(result(runs)).charts[0].marks if line.name}
    assert named == {
        "target 2.2": "target",
        "adamw 1: adamw states=8bit": "adamw 1",
        "adamw 2: adamw weight_decay=0.1": "adamw 2",
        "AdamW 3: torch.AdamW": "AdamW 3",
        "torch.Adam": "Adam",
        "AVeryLon\u2026: mine.AVeryLongOptimizer": "AVeryLon\u2026",
    }


def test_labels_that_fit_stay_where_their_lines_end():
    from steprule.charts import Chart

    chart = Chart(
        "", Axis("x", 0, 1), Axis("y", 0, 1), [Line(str(end), [0, 1], [0.5, end]) for end in (0.9, 0.01, 0.0)]
    )
    y = {one.text: float(one.attributes["y"]) for one in chart.elements() if "label" in one.attributes["class"]}
    ends = {one: float(re.findall(r" ([\d.]+)$", path)[0]) for one, path in zip(y, (e.attributes["d"] for e in chart.elements() if e.attributes["class"].startswith("line")), strict=True)}  # fmt: skip
    assert y["0.9"] == ends["0.9"]
    assert abs(y["0.01"] - y["0.0"]) >= 14 and max(y.values()) < ends["0.0"]


# The page


def text_of(shown):
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]+>", "", shown)))


def test_the_page_answers_first_and_says_what_was_run():
    shown = page(comparison(several(), result([run("sgd")], name="other", description="")))
    body = shown[shown.index("<body>") :]
    assert re.search(
        r'<strong><a href="#task0">toy</a>: adam, sgd, rmsprop and adamw cannot be told apart.</strong>', body
    )
    assert body.index("cannot be told apart") < body.index("<h2")
    text = text_of(body)
    for expected in (
        "Optimizers on toy and other", "2026-11-27 02:15 UTC, steprule 1.2.3, torch 2.9.0", "Learn <nothing>.",
        "The model has 12,345 elements in 6 parameters, a batch has 32 examples, a run is 100 steps. The target is a "
        "validation loss of 2.2.", "steprule compare 'adam:betas=(0.9,0.99)' --task mine:toy --seeds 3", "one & only",
        "toy's optimizers adam:lr=0.1", "2026-11-27 02:15:09 UTC",
    ):  # fmt: skip
        assert expected in text or expected.replace(" adam:lr", "adam:lr") in text, expected


def test_the_page_is_small_and_needs_nothing():
    shown = page(comparison(several(8), several(8)))
    assert len(shown.encode()) < 200_000
    style = re.search("<style>(.*?)</style>", shown, re.DOTALL)[1]
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'" in shown
    assert "<script" not in shown and "style=" not in shown and "http" not in shown.replace("http-equiv", "")


def test_tables_and_charts_can_be_heard():
    shown = page(comparison(several()))
    assert shown.count('<th scope="col">optimizer</th>') == shown.count("<caption>") == shown.count("<table>") == 2
    assert shown.count('<th scope="row">') == 8
    for found in re.findall(r"<svg viewBox=\"0 0 400.*?</desc>", shown, re.DOTALL):
        assert 'role="img" aria-label="Validation loss by ' in found
        assert re.search(
            r'aria-describedby="(about\d)"><desc id="\1">The target is 2.2. The curves end: adam at 2.01; ', found
        )
    assert shown.count("<desc") == 2
    assert shown.count('<ul class="legend">') == 1  # for both charts
    names = re.findall(r' id="([^"]+)"', shown)
    assert len(names) == len(set(names))


def test_who_is_level_with_the_first_is_marked():
    runs = [run("adam"), run("sgd"), run("slow", loss=falling(5.0, 3.0))]
    assert re.findall(r'<tr class="first"><th scope="row">(\w+)', page(comparison(result(runs)))) == ["adam", "sgd"]


def test_everything_is_escaped():
    evil = "<img src=x onerror=alert(1)>&"
    one = result([run(f"mine.{evil}:lr=1"), run("sgd", status="failed", error=evil)], name=evil, description=evil)
    shown = page(comparison(one, command=evil, machine={"steprule": evil, evil: evil}))
    assert evil not in shown and "<img" not in shown and "&&" not in shown
    assert shown.count(html.escape(evil)) >= 8


# The table in the terminal


def rendered(one, width=80):
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table(one, width))
    return capture.get().splitlines()


def test_the_table_fits_80_columns_and_breaks_no_word():
    runs = [
        run(name, seed, falling(2.3, 0.0123 + seed / 150), accuracy=[0.1, 0.98765], reached_step=135 + 15 * seed, reached_seconds=12.3 + seed)
        for name in ("adamw:lr=0.0003,weight_decay=0.1", "torch.NAdam:lr=0.01,momentum_decay=0.9")
        for seed in range(3)
    ]  # fmt: skip
    shown = rendered(result(runs))
    assert max(map(len, shown)) <= 80
    for word in [
        "optimizer",
        "seconds",
        "accuracy",
        "state",
        "bytes",
        "weight_decay=0.1",
        "momentum_decay=0.9",
        "lr=0.0003",
        "torch.NAdam",
        "135-165",
        "0.012-0.026",
        "98.8%",
    ]:
        assert word in " ".join(shown).split(), word
    assert not any("\u2026" in line for line in shown)


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("name", ["adam", "schedulefreeadamw", "torch.NAdam"])
def test_a_narrow_terminal_breaks_no_word_either(width, name):
    runs = [
        run(
            f"{name}:lr=0.0003,decoupled_weight_decay=True",
            seed,
            falling(2.3, 0.0123 + seed / 150),
            reached_step=135 + 15 * seed,
            reached_seconds=12.3 + seed,
        )
        for seed in range(3)
    ]
    shown = rendered(result(runs), width)
    assert max(map(len, shown)) <= width and "\u2026" not in "".join(shown)
    words = " ".join(shown).split()
    for word in [name, "lr=0.0003", "135-165", "0.012-0.026", "12-14"]:
        assert any(word in one for one in words), word
    parts = {"decoupled_", "weight_", "decay=", "True"}
    assert "".join(word for word in words if any(part in word for part in parts)) == "decoupled_weight_decay=True"


def test_accuracy_is_shown_where_a_task_has_it():
    assert "accuracy" in " ".join(rendered(result([run("adam", accuracy=[0.5]), run("sgd")])))
    assert "accuracy" not in " ".join(rendered(result([run("adam")])))
    assert "accuracy" not in page(comparison(result([run("adam")])))
