"""NIRCam's constants: detectors, imaging filters, readout patterns, and what a readout's noise is.

Put here numbers of the instrument. Keep out the user's choices (`program.py`) and the geometry, which is pysiaf's.

Sources: readout definitions from the NIRCam detector readout pages of JDox; flux scales are close to those of
CRDS context jwst_1293 (module B1 per filter, times a factor per detector); backgrounds are typical zodiacal and
telescope light at high ecliptic latitude (JWST background tool).
"""

from __future__ import annotations

from typing import NamedTuple

NPIX = 2048
REFERENCE_BORDER = 4
FRAME_TIME = 10.73677


class Detector(NamedTuple):
    """One detector as the archive describes it; ``efficiency`` scales PHOTMJSR relative to B1 or BLONG."""

    name: str
    module: str
    channel: str
    aperture: str
    sca: int
    fastaxis: int
    slowaxis: int
    efficiency: float


def _detector(name: str, aperture: str, sca: int, fastaxis: int, efficiency: float) -> Detector:
    channel = "LONG" if name.endswith("LONG") else "SHORT"
    return Detector(name, name[3], channel, aperture, sca, fastaxis, 2 if fastaxis < 0 else -2, efficiency)


DETECTORS: dict[str, Detector] = {
    d.name.lower(): d
    for d in (
        _detector("NRCA1", "NRCA1_FULL", 481, -1, 0.943),
        _detector("NRCA2", "NRCA2_FULL", 482, 1, 0.985),
        _detector("NRCA3", "NRCA3_FULL", 483, -1, 0.928),
        _detector("NRCA4", "NRCA4_FULL", 484, 1, 0.868),
        _detector("NRCALONG", "NRCA5_FULL", 485, -1, 1.085),
        _detector("NRCB1", "NRCB1_FULL", 486, 1, 1.0),
        _detector("NRCB2", "NRCB2_FULL", 487, -1, 0.956),
        _detector("NRCB3", "NRCB3_FULL", 488, 1, 0.966),
        _detector("NRCB4", "NRCB4_FULL", 489, -1, 0.845),
        _detector("NRCBLONG", "NRCB5_FULL", 490, 1, 1.0),
    )
}


class Filter(NamedTuple):
    """One imaging filter: wheel positions, pivot wavelength (*micron*), MJy/sr per DN/s, background (*MJy/sr*)."""

    channel: str
    filter: str
    pupil: str
    pivot: float
    photmjsr: float
    background: float


def _filters(channel: str, rows: str) -> dict[str, Filter]:
    out = {}
    for row in rows.split("\n"):
        if row.strip():
            name, host, pivot, photmjsr, background = row.split()
            wheel, pupil = (name, "CLEAR") if host == "-" else (host, name)
            out[name] = Filter(channel, wheel, pupil, float(pivot), float(photmjsr), float(background))
    return out


# name, filter wheel's element behind which the pupil wheel's filter sits, pivot, PHOTMJSR, background
FILTERS: dict[str, Filter] = _filters(
    "SHORT",
    """
    F070W  -      0.704   4.608  0.22
    F090W  -      0.901   3.637  0.24
    F115W  -      1.154   3.360  0.23
    F140M  -      1.404   5.510  0.21
    F150W  -      1.501   2.447  0.20
    F150W2 -      1.671   0.677  0.19
    F162M  F150W2 1.626   5.099  0.19
    F164N  F150W2 1.644  51.354  0.19
    F182M  -      1.845   3.820  0.17
    F187N  -      1.874  45.453  0.17
    F200W  -      1.990   2.056  0.16
    F210M  -      2.093   4.822  0.15
    F212N  -      2.120  44.100  0.15
    """,
) | _filters(
    "LONG",
    """
    F250M  -      2.503   1.688  0.12
    F277W  -      2.786   0.420  0.11
    F300M  -      2.996   0.963  0.10
    F322W2 -      3.247   0.202  0.11
    F323N  F322W2 3.237   9.820  0.10
    F335M  -      3.365   0.848  0.10
    F356W  -      3.563   0.379  0.11
    F360M  -      3.621   0.877  0.11
    F405N  F444W  4.055   9.712  0.16
    F410M  -      4.092   0.867  0.17
    F430M  -      4.280   1.705  0.21
    F444W  -      4.421   0.371  0.27
    F460M  -      4.624   2.103  0.35
    F466N  F444W  4.654  12.466  0.37
    F470N  F444W  4.707  13.735  0.40
    F480M  -      4.834   1.456  0.48
    """,
)


class Readout(NamedTuple):
    """Frames averaged in a group, frames skipped after it, and the archive's code of the mode."""

    nframes: int
    groupgap: int
    datamode: int


READOUTS: dict[str, Readout] = {
    "RAPID": Readout(1, 0, 33),
    "BRIGHT1": Readout(1, 1, 32),
    "BRIGHT2": Readout(2, 0, 31),
    "SHALLOW2": Readout(2, 3, 30),
    "SHALLOW4": Readout(4, 1, 29),
    "MEDIUM2": Readout(2, 8, 28),
    "MEDIUM8": Readout(8, 2, 27),
    "MEDIUMDEEP2": Readout(2, 13, 35),
    "MEDIUMDEEP8": Readout(8, 7, 34),
    "DEEP2": Readout(2, 18, 26),
    "DEEP8": Readout(8, 12, 25),
}


class Times(NamedTuple):
    """Durations of an exposure, all in *seconds*."""

    group: float
    integration: float
    exposure: float
    measurement: float
    duration: float
    first_group: float


def exposure_times(readpatt: str, ngroups: int, nints: int) -> Times:
    """Times of a full-frame exposure, by the archive's definitions.

    Parameters
    ----------
    readpatt : name of the readout pattern, a key of `READOUTS`.
    ngroups, nints : groups per integration, integrations per exposure.

    Returns
    -------
    Times
        ``integration`` and ``exposure`` are EFFINTTM and EFFEXPTM; ``first_group`` is the mean time of the first
        group's frames, after which a pixel must be saturated to have no slope at all.
    """
    pattern = READOUTS[readpatt]
    per_group = pattern.nframes + pattern.groupgap
    frames = (ngroups - 1) * per_group + pattern.nframes
    return Times(
        group=round(per_group * FRAME_TIME, 3),
        integration=round(frames * FRAME_TIME, 3),
        exposure=round(nints * frames * FRAME_TIME, 3),
        measurement=round(nints * (ngroups - 1) * per_group * FRAME_TIME, 3),
        duration=round((nints * frames + nints - 1) * FRAME_TIME, 3),
        first_group=0.5 * (pattern.nframes + 1) * FRAME_TIME,
    )


# electrons per DN; single-frame read noise in electrons (correlated double sampling: 16 and 13); full well in electrons
GAIN = {"SHORT": 2.05, "LONG": 1.82}
READ_NOISE = {"SHORT": 11.3, "LONG": 9.4}
FULL_WELL = {"SHORT": 105000.0, "LONG": 83000.0}
DARK_RATE = {"SHORT": 0.0019, "LONG": 0.027}
"""Dark current, electrons per second: subtracted by the pipeline, its noise is not."""


def photmjsr(detector: str, band: str) -> float:
    """Flux scale of a detector (lower-case name) in a filter, *MJy/sr* per *DN/s*."""
    return FILTERS[band].photmjsr * DETECTORS[detector].efficiency


def slope_variances(channel: str, readpatt: str, ngroups: int, nints: int, rate: float = 1.0) -> tuple[float, float]:
    """Variance of a fitted slope from Poisson noise at a given rate, and from read noise.

    Parameters
    ----------
    channel : ``SHORT`` or ``LONG``.
    readpatt, ngroups, nints : the readout.
    rate : count rate, *DN/s*.

    Returns
    -------
    (float, float)
        In *(DN/s)^2*. The read noise is that of an unweighted fit of ``ngroups`` averaged groups, the Poisson
        noise that of the first and last group (Robberto 2009; jwst's ramp fitting documents both).
    """
    gain, group = GAIN[channel], exposure_times(readpatt, ngroups, nints).group
    poisson = rate / (gain * group * (ngroups - 1) * nints)
    sigma2 = (READ_NOISE[channel] / gain) ** 2 / READOUTS[readpatt].nframes
    return poisson, 12.0 * sigma2 / (ngroups * (ngroups**2 - 1) * group**2 * nints)
