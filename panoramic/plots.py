"""Pictures of images and of the survey's sky, for people.

Put here what shows pixels or fields. Keep out pictures of alignments (``alignment_plots.py``) and of footprints
(``footprint_plots.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from panoramic.footprints import mean_position


def plot_image(path: Path, image: np.ndarray, title: str, weight: np.ndarray | None = None) -> None:
    """Save an image (2-D) as a PNG of at most 900 px a side, in an asinh stretch about its own noise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    step = max(1, int(np.ceil(max(image.shape) / 900)))
    small = image[::step, ::step].astype(float)
    good = np.isfinite(small) if weight is None else np.isfinite(small) & (weight[::step, ::step] > 0)
    values = small[good]
    middle, noise = (
        (0.0, 1.0) if not values.size else (np.median(values), 1.48 * np.median(np.abs(values - np.median(values))))
    )
    stretched = np.arcsinh((small - middle) / (3 * max(noise, 1e-12)))
    stretched[~good] = np.nan
    figure = Figure(figsize=(6, 6.3), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(stretched, origin="lower", cmap="gray_r", vmin=-1, vmax=4)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9)
    figure.savefig(path, bbox_inches="tight")


def plot_field_map(path: Path, title: str, fields: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Draw the fields of a survey on the whole sky (Mollweide, RA to the left), by the number of their exposures.

    Parameters
    ----------
    path : the PNG to write.
    fields : footprints of the exposures, (N, 2) RA and Dec in deg each, by field.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection="mollweide")
    axes.grid(color="0.85", lw=0.6)
    axes.set_xticks(np.radians(np.arange(-150, 151, 30)), [f"{(-a) % 360:d}" for a in range(-150, 151, 30)], fontsize=7)
    counts = np.array([len(outlines) for outlines in fields.values()])
    places = np.array([mean_position(np.concatenate(list(outlines))) for outlines in fields.values()]).reshape(-1, 2)
    if len(places):
        longitude = -np.radians((places[:, 0] + 180) % 360 - 180)  # east to the left
        points = axes.scatter(
            longitude, np.radians(places[:, 1]), c=counts, s=12 + 6 * np.log10(counts), cmap="viridis",
            norm=LogNorm(1, max(counts.max(), 2)), edgecolor="k", lw=0.3,
        )  # fmt: skip
        figure.colorbar(points, ax=axes, shrink=0.6, label="exposures in the field")
    axes.set_title(f"{title}: {len(fields)} fields, {counts.sum()} exposures", fontsize=11)
    figure.savefig(path, bbox_inches="tight")
