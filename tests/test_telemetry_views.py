"""Telemetry: what it keeps, and how it shows it."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from steprule.services.telemetry import QUANTITIES, Telemetry

SIZES = (4, 6)
SUMS = np.array([[9.0, 9.0, 16.0, 1.0, 2.0, 1.0, 3.0], [16.0, 16.0, 9.0, 3.0, 4.0, 0.5, 2.0]])
A = dict(zip(QUANTITIES, (3.0, 3.0, 4.0, 0.75, 0.25, 2.0, 1.0, 3.0), strict=True))
B = dict(zip(QUANTITIES, (4.0, 4.0, 3.0, 4 / 3, 0.5, 4.0, 0.5, 2.0), strict=True))
TOTAL = dict(zip(QUANTITIES, (5.0, 5.0, 5.0, 1.0, 0.4, 4.0, 1.0, 3.0), strict=True))


def sums_of(*ratios):
    """Sums of parameters with these ratios of update to weight, the weight's norm being 1."""
    return np.array([[1.0, ratio**2, 1.0, 0.0, 1.0, 1.0, 1.0] for ratio in ratios])


def two_parameters():
    telemetry = Telemetry()
    telemetry.add(7, ["layer[red].a", "b"], SIZES, SUMS, 2, 1)
    return telemetry


def test_numbers_worked_by_hand():
    latest = two_parameters().latest
    assert list(latest) == ["step", "clipped_steps", "skipped_steps", "total", "parameters"]
    assert (latest["step"], latest["clipped_steps"], latest["skipped_steps"]) == (7, 2, 1)
    assert latest["parameters"] == {"layer[red].a": pytest.approx(A), "b": pytest.approx(B)}
    assert latest["total"] == pytest.approx(TOTAL)
    assert {type(value) for value in latest["total"].values()} == {float}


def test_the_last_records_are_kept_in_order_and_sums_are_copied():
    telemetry = Telemetry(keep=2)
    sums = np.ones((1, 7))
    for step in (1, 2, 3):
        sums[:, 0] = step**2
        telemetry.add(step, ["a"], [1], sums, 0, 0)
    assert [(record["step"], record["total"]["grad_norm"]) for record in telemetry.records] == [(2, 2.0), (3, 3.0)]
    assert telemetry.records[-1] == telemetry.latest


@pytest.mark.filterwarnings("error")
def test_nan_and_inf_pass_through():
    pytest.importorskip("rich")
    pytest.importorskip("plotly")
    telemetry = Telemetry()
    sums = np.array([[math.nan] * 7, [math.inf] * 7, [4.0, 4.0, 0.0, 0.0, 1.0, 1.0, 0.0], [sys.float_info.max] * 7])
    telemetry.add(1, ["nan", "inf", "no weight", "huge"], [1, 1, 1, 1], sums, 0, 0)
    latest = telemetry.latest
    assert all(map(math.isnan, latest["parameters"]["nan"].values()))
    infinite = {name for name, value in latest["parameters"]["inf"].items() if value == math.inf}
    assert infinite == set(QUANTITIES) - {"update_to_weight"}
    assert math.isnan(latest["parameters"]["inf"]["update_to_weight"])
    assert math.isnan(latest["parameters"]["no weight"]["update_to_weight"])  # not inf
    assert latest["parameters"]["no weight"]["update_norm"] == 2.0
    assert all(map(math.isnan, latest["total"].values()))
    telemetry.table()
    for quantity in QUANTITIES:
        telemetry.picture(quantity)


@pytest.mark.filterwarnings("error")
def test_a_step_without_parameters():
    pytest.importorskip("plotly")
    telemetry = Telemetry()
    telemetry.add(1, [], [], np.empty((0, 7)), 0, 1)
    assert telemetry.latest["parameters"] == {}
    assert telemetry.latest["total"]["grad_norm"] == telemetry.latest["total"]["largest_grad"] == 0.0
    assert telemetry.picture().data[0].z.shape == (0, 1)


def test_the_table_has_names_and_numbers():
    pytest.importorskip("rich")
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(two_parameters().table())
    title, *lines = [line.strip() for line in capture.get().splitlines()]
    assert title == "Step 7; so far 2 clipped, 1 skipped"
    cells = [line.split() for line in lines if line]
    assert cells[-3:] == [
        ["layer[red].a", "3", "3", "4", "0.75", "0.25", "2", "1", "3"],  # [red] is no markup
        ["b", "4", "4", "3", "1.33", "0.5", "4", "0.5", "2"],
        ["total", "5", "5", "5", "1", "0.4", "4", "1", "3"],
    ]


def test_the_table_is_printed_as_text(capsys):
    pytest.importorskip("rich")
    print(two_parameters().table())
    output = capsys.readouterr().out
    assert "Step 7" in output and "total" in output and "\x1b" not in output


@pytest.mark.parametrize("columns", [200, 80, 60, 50])
def test_a_narrow_table_cuts_no_name_and_no_number(columns):
    pytest.importorskip("rich")
    from rich.console import Console

    names = ["blocks.11.self_attn.in_proj_weight", "head.bias"]
    telemetry = Telemetry()
    telemetry.add(7, names, SIZES, SUMS, 2, 1)
    console = Console(width=columns)
    with console.capture() as capture:
        console.print(telemetry.table())
    output = capture.get()
    rows = [line.split() for line in output.splitlines() if line.split()[:1] in ([names[0]], [names[1]], ["total"])]
    assert [row[0] for row in rows] == [*names, "total"] and "…" not in output
    numbers = [f"{value:.3g}" for value in TOTAL.values()]
    count = len(rows[0]) - 1
    assert 1 <= count <= 8 and rows[2][1:] == numbers[:count]
    said = " ".join(output.split()).partition("not shown, for want of room: ")[2]
    assert said == ", ".join(QUANTITIES[count:]) and (count == 8) == (columns == 200)


def test_what_it_prints_of_itself():
    assert repr(Telemetry(every=2)) == "Telemetry(every=2, keep=1000)"
    with pytest.raises(ValueError, match="keep=0 must be an int of 1 or more"):
        Telemetry(keep=0)


class Writer:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, tag, value, global_step):
        assert tag not in self.scalars
        self.scalars[tag] = (value, global_step)


def test_scalars():
    writer = Writer()
    two_parameters().write(writer, prefix="adam")
    expected = {f"adam/{quantity}": value for quantity, value in TOTAL.items()}
    expected |= {f"adam/{quantity}/layer[red].a": value for quantity, value in A.items()}
    expected |= {f"adam/{quantity}/b": value for quantity, value in B.items()}
    expected |= {"adam/clipped_steps": 2, "adam/skipped_steps": 1}
    assert {tag: value for tag, (value, _) in writer.scalars.items()} == pytest.approx(expected)
    assert {step for _, step in writer.scalars.values()} == {7}


def test_tensorboard_reads_them_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    telemetry = two_parameters()
    with SummaryWriter(str(tmp_path)) as writer:
        telemetry.write(writer)
        telemetry.add(8, ["b"], [6], SUMS[1:] * math.nan, 3, 1)
        telemetry.write(writer)
    events = EventAccumulator(str(tmp_path)).Reload()

    def read(tag):
        return [(event.step, pytest.approx(event.value, nan_ok=True)) for event in events.Scalars(tag)]

    assert len(events.Tags()["scalars"]) == 3 * len(QUANTITIES) + 2
    assert read("optimizer/lost_share") == [(7, 0.4), (8, math.nan)]
    assert read("optimizer/update_to_weight/b") == [(7, 4 / 3), (8, math.nan)]
    assert [event.step for event in events.Scalars("optimizer/grad_norm/b")] == [7, 8]
    assert read("optimizer/clipped_steps") == [(7, 2), (8, 3)]


def test_the_picture_aligns_parameters_by_name():
    pytest.importorskip("plotly")
    telemetry = Telemetry()
    telemetry.add(10, ["a", "c"], [1, 1], sums_of(0.1, 0.001), 0, 0)
    telemetry.add(20, ["a", "<b>", "c"], [1, 1, 1], sums_of(0.01, 1.0, 0.0), 0, 0)
    telemetry.add(30, ["c", "<b>"], [1, 1], sums_of(math.nan, math.inf), 0, 0)
    figure = telemetry.picture()
    (heatmap,) = figure.data
    assert list(heatmap.x) == [10, 20, 30]
    assert list(heatmap.y) == ["a", "&lt;b&gt;", "c"]
    nan = math.nan
    np.testing.assert_allclose(heatmap.z, [[-1, -2, nan], [nan, 0, nan], [-3, nan, nan]], atol=1e-12)
    assert heatmap.hovertext.tolist() == [
        ["0.1", "0.01", "no record"],
        ["no record", "1", "inf"],
        ["0.001", "0", "nan"],
    ]
    assert all(part in heatmap.hovertemplate for part in ("%{y}", "%{x}", "%{hovertext}"))
    assert (list(heatmap.colorbar.tickvals), list(heatmap.colorbar.ticktext)) == (
        [-3, -2, -1, 0],
        ["0.001", "0.01", "0.1", "1"],
    )
    assert figure.layout.yaxis.type == "category"
    assert list(figure.layout.yaxis.range) == [2.5, -0.5]  # the first on top


def test_a_step_taken_again_has_one_column():
    pytest.importorskip("plotly")
    telemetry = Telemetry()
    for step, ratio in ((1, 1.0), (2, 0.1), (3, 0.1), (2, 0.01)):
        telemetry.add(step, ["a"], [1], sums_of(ratio), 0, 0)
    (heatmap,) = telemetry.picture().data
    assert list(heatmap.x) == [1, 2, 3]
    np.testing.assert_allclose(heatmap.z, [[0, -2, -1]], atol=1e-12)


def test_colors_where_little_or_nothing_is_to_be_seen():
    pytest.importorskip("plotly")
    telemetry = Telemetry()
    telemetry.add(1, ["a"], [1], sums_of(1.0), 0, 0)
    telemetry.add(2, ["a"], [1], sums_of(1.001), 0, 0)
    (heatmap,) = telemetry.picture().data
    assert heatmap.zmax - heatmap.zmin == pytest.approx(0.1)
    assert len(set(heatmap.colorbar.ticktext)) == 5
    blank = telemetry.picture("lost_share")
    assert np.isnan(blank.data[0].z).all()
    assert blank.data[0].showscale is False
    assert "nowhere above zero" in blank.layout.title.text
    assert list(blank.layout.yaxis.categoryarray) == ["a"]


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "2", None])
@pytest.mark.parametrize("name", ["every", "keep"])
def test_arguments_that_make_no_sense(name, value):
    with pytest.raises(ValueError) as error:
        Telemetry(**{name: value})
    assert str(error.value) == f"{name}={value!r} must be an int of 1 or more"


@pytest.mark.parametrize(
    ("names", "sizes", "sums"),
    [
        (["a", "a"], [1, 1], np.ones((2, 7))),
        (["a", "b"], [1], np.ones((2, 7))),
        (["a", "b"], [1, 1], np.ones((1, 7))),
        (["a", "b"], [1, 1], np.ones((2, 6))),
    ],
)
def test_a_record_that_does_not_fit_together_is_refused(names, sizes, sums):
    telemetry = two_parameters()
    with pytest.raises(ValueError, match="names, sizes and sums"):
        telemetry.add(8, names, sizes, sums, 0, 0)
    assert len(telemetry.records) == 1


def test_an_unknown_quantity_names_the_nearest():
    with pytest.raises(ValueError, match="'grad_nrm'; did you mean 'grad_norm'"):
        two_parameters().picture("grad_nrm")
    with pytest.raises(ValueError, match="'%'; did you mean"):  # near to none
        two_parameters().picture("%")


def test_nothing_yet():
    pytest.importorskip("rich")
    pytest.importorskip("plotly")
    telemetry = Telemetry()
    assert telemetry.records == []
    for view in (lambda: telemetry.latest, telemetry.table, lambda: telemetry.write(Writer()), telemetry.picture):
        with pytest.raises(RuntimeError, match="no telemetry yet"):
            view()


@pytest.mark.parametrize(("view", "package"), [("table", "rich"), ("picture", "plotly")])
def test_a_missing_package_says_how_to_get_it(monkeypatch, view, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}: pip install {package}$"):
        getattr(two_parameters(), view)()
