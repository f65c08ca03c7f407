"""Pictures that people look at to believe an alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from panoramic.alignment import Verdict
from panoramic.footprints import mean_position, to_tangent_plane


def plot_alignment(
    path: Path,
    verdict: Verdict,
    sources: np.ndarray,
    reference: np.ndarray,
    reference_name: str,
    attempts: Sequence[str] = (),
    radius_mas: float = 500.0,
) -> None:
    """Draw what an alignment left: offsets to the reference, where on the detector they are, and the gates' numbers.

    Parameters
    ----------
    path : the PNG to write.
    sources, reference : (N, 2) and (M, 2) RA, Dec in deg; either may be empty.
    attempts : one line for each attempt.
    radius_mas : pairs closer than this are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.3), dpi=100)
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    place, offset = _pairs(sources, reference, radius_mas)
    left.axhline(0, color="0.7", lw=0.8)
    left.axvline(0, color="0.7", lw=0.8)
    left.plot(offset[:, 0], offset[:, 1], ".", color="#0b4f8a", ms=4, alpha=0.7)
    left.set(xlim=(radius_mas, -radius_mas), ylim=(-radius_mas, radius_mas), aspect="equal")
    left.set_xlabel("east [mas]")
    left.set_ylabel("north [mas]")
    left.set_title(f"source - {reference_name}: {len(offset)} pairs", fontsize=10)
    if len(place):
        arrows = middle.quiver(
            place[:, 0], place[:, 1], offset[:, 0], offset[:, 1], angles="xy", width=0.004, color="#b3402a"
        )
        middle.quiverkey(arrows, 0.85, 1.03, 100, "100 mas", labelpos="E", fontproperties={"size": 8})
    middle.invert_xaxis()
    middle.set_aspect("equal", adjustable="datalim")
    middle.set_xlabel("east of centre [arcmin]")
    middle.set_ylabel("north [arcmin]")
    middle.set_title("on the sky", fontsize=10, loc="left")
    right.axis("off")
    accepted = verdict.accepted
    right.text(
        0,
        1.0,
        "ACCEPTED" if accepted else "HELD BACK",
        color="#1a7f37" if accepted else "#b3261e",
        weight="bold",
        va="top",
    )
    lines = [("  " if c.passed else "- " if c.passed is None else "X ") + str(c) for c in verdict.criteria]
    lines += ["", *attempts]
    text = "\n".join(line if len(line) < 66 else line[:63] + "..." for line in lines[:24])
    right.text(0, 0.92, text, va="top", fontsize=7.5, family="monospace")
    figure.suptitle(verdict.association, fontsize=11)
    figure.tight_layout()
    figure.savefig(path)


def _pairs(sources: np.ndarray, reference: np.ndarray, radius_mas: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (arcmin) and offsets (mas) of sources minus their nearest reference, within the radius."""
    from scipy.spatial import cKDTree

    if not len(sources) or not len(reference):
        return np.empty((0, 2)), np.empty((0, 2))
    centre = mean_position(sources)
    own, other = to_tangent_plane(sources, centre), to_tangent_plane(reference, centre)
    distance, nearest = cKDTree(own).query(other, distance_upper_bound=radius_mas / 60000)
    found = np.isfinite(distance)
    place = own[nearest[found]]
    return place, (place - other[found]) * 60000


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
