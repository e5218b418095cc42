"""What optimizer steps did: recorded, and shown as a table, as TensorBoard scalars or as a heatmap."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steprule.names import did_you_mean

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from torch import Tensor

__all__ = ["QUANTITIES", "Telemetry"]

QUANTITIES = (
    "grad_norm", "update_norm", "weight_norm", "update_to_weight", "lost_share",
    "largest_grad", "largest_update", "largest_weight",
)  # fmt: skip


class _Record(NamedTuple):
    step: int
    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    sums: NDArray[np.float64]
    clipped_steps: int
    skipped_steps: int
    total: tuple[int, NDArray[np.float64]] | None = None

    def quantities(self) -> NDArray[np.float64]:
        """(names + 1, 8): a row for each parameter and one for the total, a column for each quantity."""
        with np.errstate(all="ignore"):  # a run that diverges is to be shown, not to be warned about
            size, total = self.total or (int(self.sizes.sum()), total_of(self.sums))
            rows = np.vstack([self.sums, total])
            norms = np.sqrt(rows[:, :3])
            update_to_weight = np.where(norms[:, 2] == 0, np.nan, norms[:, 1] / norms[:, 2])
            lost_share = rows[:, 3] / np.append(self.sizes, size)
        return np.column_stack([norms, update_to_weight, lost_share, rows[:, 4:]])

    def as_dict(self) -> dict[str, Any]:
        *parameters, total = [dict(zip(QUANTITIES, row, strict=True)) for row in self.quantities().tolist()]
        counts = {"step": self.step, "clipped_steps": self.clipped_steps, "skipped_steps": self.skipped_steps}
        return {**counts, "total": total, "parameters": dict(zip(self.names, parameters, strict=True))}


def total_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same of all parameters: four columns are added up, and of the others the largest are taken."""
    with np.errstate(all="ignore"):
        return np.append(sums[:, :4].sum(axis=0), sums[:, 4:].max(axis=0, initial=0.0))


class Telemetry:
    """Records what optimizer steps did to each parameter and to all together (the total), and shows it.

    grad_norm, update_norm and weight_norm are Euclidean norms; update_to_weight is the ratio of the last two, nan where
    weight_norm is 0; lost_share is the share of elements, from 0 to 1, whose update was lost to rounding; largest_grad,
    largest_update and largest_weight are absolute values, nan if any of them is nan.

    Args:
        every: how many steps lie between two records; 1 records every step. Default: 1.
        keep: how many records are kept; the oldest are dropped first. Default: 1000.

    Raises:
        ValueError: every or keep is not an int of 1 or more.
    """

    def __init__(self, every: int = 1, keep: int = 1000) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be an int of 1 or more")
        self.every, self.keep = every, keep
        self._kept: deque[_Record] = deque(maxlen=keep)
        self._pending: deque[tuple[Sequence[str], Sequence[int], Tensor, Tensor]] = deque(maxlen=keep)

    def __repr__(self) -> str:
        return f"Telemetry(every={self.every}, keep={self.keep})"

    def add(
        self, step: int, names: Sequence[str], sizes: Sequence[int], sums: NDArray[np.float64],
        clipped_steps: int, skipped_steps: int, total: tuple[int, NDArray[np.float64]] | None = None,
    ) -> None:  # fmt: skip
        """Records a step, whatever its number: the caller leaves out steps that `every` does not ask for.

        Args:
            step: its number.
            names: of the parameters that took part, each once; they may differ from step to step.
            sizes: how many elements each has.
            sums: float64, shape (len(names), 7), copied: the sums of squared gradients, updates and weights, the number
                of elements whose update was lost to rounding, the largest absolute gradient, update and weight.
            clipped_steps, skipped_steps: how many there have been so far.
            total: of all parameters, where other processes have others: how many elements there are, and what sums are
                together. Default: of those that are named.

        Raises:
            ValueError: names, sizes and sums do not fit together, or a name comes twice.
        """
        self._settle()
        of_each = tuple(names), np.array(sizes, np.int64), np.array(sums, np.float64)
        self._keep(_Record(step, *of_each, clipped_steps, skipped_steps, total))

    def _keep(self, record: _Record) -> None:
        count = len(set(record.names))
        if (len(record.names), *record.sizes.shape, *record.sums.shape) != (count, count, count, 7):
            got = f"{len(record.names)} ({count} different), {record.sizes.shape}, {record.sums.shape}"
            raise ValueError(
                f"Invalid names, sizes and sums: they must be n different names, (n,) and (n, 7), not {got}"
            )
        self._kept.append(record)

    def add_later(self, names: Sequence[str], sizes: Sequence[int], sums: Tensor, numbers: Tensor) -> None:
        """Records a step whose numbers are on a GPU, without waiting for them; reading the records waits.

        Args:
            names, sizes, sums: as for `add`, sums on the device.
            numbers: float64, shape (4,): 1 or 0 for whether the step was taken, its number, and how many steps had been
                clipped and skipped.
        """
        self._pending.append((names, sizes, sums, numbers))

    def _settle(self) -> None:
        """Reads what is still on a device."""
        while self._pending:
            names, sizes, sums, numbers = self._pending.popleft()
            taken, step, clipped_steps, skipped_steps = map(int, numbers.tolist())
            if taken:
                of_each = tuple(names), np.array(sizes, np.int64), sums.cpu().numpy()
                self._keep(_Record(step, *of_each, clipped_steps, skipped_steps))

    @property
    def _records(self) -> deque[_Record]:
        self._settle()
        return self._kept

    @property
    def latest(self) -> dict[str, Any]:
        """The latest record; RuntimeError if there is none.

        ``{"step": int, "clipped_steps": int, "skipped_steps": int, "total": {quantity: float}, "parameters": {name:
        {quantity: float}}}``, with all of QUANTITIES.
        """
        return self._some_records()[-1].as_dict()

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records that are kept, each like latest, the oldest first."""
        return [record.as_dict() for record in self._records]

    def table(self) -> Table:
        """The latest record: a row for each parameter and one for the total. RuntimeError if there is none.

        If the terminal is too narrow, the last quantities are left out, and the table says so.
        """
        with _extra("rich"):
            from rich.box import SIMPLE_HEAD
            from rich.console import Console
            from rich.measure import Measurement
            from rich.table import Table
            from rich.text import Text
        latest = self.latest
        title = f"Step {latest['step']}; so far {latest['clipped_steps']} clipped, {latest['skipped_steps']} skipped"

        def made(kind: type[Table], count: int) -> Table:
            shown = kind(title=Text(title), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
            shown.add_column("parameter", overflow="fold")
            for quantity in QUANTITIES[:count]:
                shown.add_column(quantity.replace("_", "\n"), justify="right", no_wrap=True)
            for name, values in (*latest["parameters"].items(), ("total", latest["total"])):
                shown.add_row(Text(name), *(f"{value:.3g}" for value in [*values.values()][:count]))
            if count < len(QUANTITIES):
                shown.caption, shown.caption_justify = (
                    f"not shown, for want of room: {', '.join(QUANTITIES[count:])}",
                    "left",
                )
            return shown

        class Fitting(Table):
            """Leaves out the last columns rather than cut names."""

            def __str__(self) -> str:
                with (console := Console(color_system=None)).capture() as capture:
                    console.print(self)
                return capture.get()

            def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
                for count in range(len(QUANTITIES), 0, -1):
                    one = made(Table, count)
                    if Measurement.get(console, options.update(max_width=10**4), one).maximum <= options.max_width:
                        break
                yield one

        return made(Fitting, len(QUANTITIES))

    def write(self, writer: Any, prefix: str = "optimizer") -> None:
        """Writes the latest record as TensorBoard scalars. RuntimeError if there is none.

        The tags are ``{prefix}/{quantity}`` for the total, ``{prefix}/{quantity}/{name}`` for a parameter,
        ``{prefix}/clipped_steps`` and ``{prefix}/skipped_steps``.

        Args:
            writer: a torch.utils.tensorboard.SummaryWriter, or anything with ``add_scalar(tag, value, global_step)``.
            prefix: what all tags start with. Default: "optimizer".
        """
        latest = self.latest
        scalars = {key: latest[key] for key in ("clipped_steps", "skipped_steps")} | latest["total"]
        for name, values in latest["parameters"].items():
            scalars |= {f"{quantity}/{name}": value for quantity, value in values.items()}
        for tag, value in scalars.items():
            writer.add_scalar(f"{prefix}/{tag}", value, latest["step"])

    def picture(self, quantity: str = "update_to_weight") -> Figure:
        """A heatmap of one quantity: a row for each parameter, a column for each step, colors on a log10 scale.

        Zero, what is not finite and steps without a record of the parameter are blank; hovering tells them apart.

        Args:
            quantity: one of QUANTITIES. Default: "update_to_weight".

        Raises:
            ValueError: there is no such quantity; the message names the nearest.
            RuntimeError: there is no record.
        """
        if quantity not in QUANTITIES:
            raise ValueError(f"Invalid quantity value: {quantity!r}{did_you_mean(str(quantity), QUANTITIES, 0.0)}")
        with _extra("plotly"):
            from plotly.graph_objects import Figure, Heatmap
        # A step that was taken again, after a checkpoint was loaded, counts as it was the last time.
        records = [record for _, record in sorted({record.step: record for record in self._some_records()}.items())]
        # The longest first: a parameter that joins late keeps its place among its neighbors.
        by_length = sorted(records, key=lambda record: len(record.names), reverse=True)
        names = list(dict.fromkeys(name for record in by_length for name in record.names))
        row_by_name = {name: row for row, name in enumerate(names)}
        values = np.zeros((len(names), len(records)))
        hover = np.full(values.shape, "no record", dtype=object)
        for column, record in enumerate(records):
            rows = [row_by_name[name] for name in record.names]
            values[rows, column] = record.quantities()[:-1, QUANTITIES.index(quantity)]
            hover[rows, column] = [f"{value:.4g}" for value in values[rows, column]]
        logs = np.log10(values, out=np.full(values.shape, np.nan), where=np.isfinite(values) & (values > 0))
        labels = [escape(name) for name in names]  # plotly reads them as HTML
        title = quantity.replace("_", " ") + " by parameter and step"
        colors: dict[str, Any] = {"showscale": False}
        if np.isfinite(logs).any():
            low, high, ticks = _scale(np.nanmin(logs), np.nanmax(logs))
            colors = {"zmin": low, "zmax": high, "colorscale": "Viridis"}
            colors["colorbar"] = {"tickvals": ticks, "ticktext": [f"{10.0**tick:.3g}" for tick in ticks.tolist()]}
        else:
            title += ": nowhere above zero and finite"
        where = "%{y}<br>step %{x}<br>" + quantity.replace("_", " ") + " %{hovertext}<extra></extra>"
        steps = [record.step for record in records]
        figure = Figure(Heatmap(x=steps, y=labels, z=logs, hovertext=hover, hovertemplate=where, **colors))
        figure.update_layout(title={"text": title}, height=max(400, 180 + 18 * len(names)))
        # Names may look like numbers, and plotly takes neither labels nor a range from what is blank all over.
        for axis, known in ((figure.layout.xaxis, steps), (figure.layout.yaxis, labels)):
            axis.update(type="category", categoryarray=known, range=[-0.5, len(known) - 0.5], showgrid=False)
        figure.update_xaxes(title={"text": "step"})
        figure.update_yaxes(range=[len(labels) - 0.5, -0.5], automargin=True, dtick=1)  # the first on top
        return figure

    def _some_records(self) -> deque[_Record]:
        if not self._records:
            raise RuntimeError("There is no telemetry yet: no step has been recorded")
        return self._records


def _scale(low: float, high: float) -> tuple[float, float, NDArray[np.float64]]:
    """The ends of a color scale for decimal logarithms and its ticks: whole decades, if it spans two or more."""
    high = min(high, 308.25)  # 10**high is to be a float
    if high - low >= 2:
        return low, high, np.arange(np.ceil(low), np.floor(high) + 1, max(1, round((high - low) / 6)))
    low = min(low, high - 0.1)  # a change of a few percent does not look like much
    return low, high, np.linspace(low, high, 5)


@contextmanager
def _extra(package: str) -> Iterator[None]:
    """Says where an optional package comes from if it is missing."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"This needs {package}: pip install {package}") from error
