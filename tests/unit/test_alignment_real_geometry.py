"""The measurement on real geometry: what 60 real exposures were corrected by is found again.

The reference sources of the survey's field are put on each detector through its real gwcs with the correction that was
measured for it, with centroid noise, gaps of a mask, and false detections. The catalogue is what the same gwcs says
without the correction.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from panoramic.alignment_solution import Cause, Refusal, Solution, measure_solution

CEERS = Path(__file__).parents[2].parent / "shared" / "data" / "ceers"
FILES = sorted((CEERS / "wcs").glob("*.asdf"))
SIDE = 2048
NOISE_MAS = 5.0
# of the catalogue less 1; the inverse of the correction's in measured_corrections.csv
LONG_SCALES = {"nrcalong": -1.1e-4, "nrcblong": 1.0e-4}

pytestmark = [
    pytest.mark.skipif(not FILES, reason=f"no real geometry in {CEERS}"),
    pytest.mark.filterwarnings("ignore"),
]


@cache
def reference() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RA, Dec (deg) and magnitude of the field's reference."""
    import pandas as pd

    table = pd.read_csv(CEERS / "egs_reference.ecsv", sep=" ", comment="#")
    return tuple(table[name].to_numpy(float) for name in ("RA", "DEC", "MAG"))


def real_wcs(path: Path):
    """The corrected transform to the sky, and the one with the correction taken out."""
    import asdf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with asdf.open(path, lazy_load=False) as opened:
            wcs = opened.tree["wcs"]
        wcs.bounding_box = None
        corrected = wcs.get_transform("detector", "world")
        plain = wcs.get_transform("detector", "v2v3vacorr") | wcs.get_transform("v2v3corr", "world")
    return corrected, plain


def on_detector(corrected, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of sky positions, by Newton's method from a linear guess; exact to 1e-6 px inside the detector."""
    cos = np.cos(np.radians(np.mean(dec)))
    x, y = np.full(ra.size, SIDE / 2.0), np.full(ra.size, SIDE / 2.0)
    for _ in range(5):
        here, east, north = (np.array(corrected(x + a, y + b)) for a, b in ((0, 0), (1, 0), (0, 1)))
        d = np.array([(ra - here[0]) * cos, dec - here[1]])
        jx, jy = (np.array([(v[0] - here[0]) * cos, v[1] - here[1]]) for v in (east, north))
        det = jx[0] * jy[1] - jx[1] * jy[0]
        x = x + (d[0] * jy[1] - d[1] * jy[0]) / det
        y = y + (jx[0] * d[1] - jx[1] * d[0]) / det
    return x, y


def scene(path: Path, noise_mas: float = NOISE_MAS):
    """Catalogue by the uncorrected geometry, and both transforms."""
    rng = np.random.default_rng(FILES.index(path))
    corrected, plain = real_wcs(path)
    ra, dec, magnitude = reference()
    middle = np.array(corrected(SIDE / 2, SIDE / 2))
    close = (np.abs(ra - middle[0]) * np.cos(np.radians(middle[1])) < 0.05) & (np.abs(dec - middle[1]) < 0.05)
    # what an exposure of the survey's depth detects
    close &= magnitude < 26.5
    x, y = on_detector(corrected, ra[close], dec[close])
    seen = (x > 4) & (x < SIDE - 5) & (y > 4) & (y < SIDE - 5) & (rng.random(x.size) < 0.9)
    # a masked corner and a masked strip, as wisps and hot columns leave
    seen &= ~((x < 300) & (y > 1700)) & ~((x > 900) & (x < 960))
    pixel = 3600e3 * np.hypot(
        (corrected(SIDE / 2 + 1, SIDE / 2)[0] - middle[0]) * np.cos(np.radians(middle[1])),
        corrected(SIDE / 2 + 1, SIDE / 2)[1] - middle[1],
    )
    x, y = (v[seen] + rng.normal(0, noise_mas / pixel, seen.sum()) for v in (x, y))
    false = rng.uniform(4, SIDE - 5, (2, seen.sum() // 5))
    return plain(np.r_[x, false[0]], np.r_[y, false[1]]), corrected, plain


def residual_mas(solution: Solution, corrected, plain) -> np.ndarray:
    """Corrected by the solution less the truth, mas, on a 16 x 16 grid of pixels."""
    x, y = (v.ravel() for v in np.meshgrid(*[np.linspace(0, SIDE - 1, 16)] * 2))
    ra, dec = solution.corrected(*plain(x, y))
    true_ra, true_dec = corrected(x, y)
    return 3600e3 * np.array([(ra - true_ra) * np.cos(np.radians(true_dec)), dec - true_dec])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:31])
def test_the_correction_is_found_again(path: Path) -> None:
    (ra, dec), corrected, plain = scene(path)
    ref_ra, ref_dec, _ = reference()
    found = measure_solution(ra, dec, ref_ra, ref_dec)
    assert isinstance(found, Solution), found
    difference = residual_mas(found, corrected, plain)
    assert np.sqrt((difference**2).sum(axis=0).mean()) < 2.0
    assert 0.02 < abs(found.rotation_deg) < 0.08
    assert found.chance < 1e-6
    # the long-wave corrections hold a scale of 1e-4 as well, the short-wave ones hold none
    length = LONG_SCALES.get(next((name for name in LONG_SCALES if name in path.name), ""), 0.0)
    assert found.scale == pytest.approx(length, abs=2e-5)


def test_another_field_of_the_same_sky_is_refused() -> None:
    """Half a degree away in the reference there is as much structure, and nothing to agree with."""
    (ra, dec), _, _ = scene(FILES[0])
    ref_ra, ref_dec, _ = reference()
    for shift in (0.02, -0.03, 0.04):
        found = measure_solution(ra + shift, dec, ref_ra, ref_dec)
        assert isinstance(found, Refusal), found
        assert found.cause in (Cause.NO_PEAK, Cause.TOO_FEW_REFERENCES)
