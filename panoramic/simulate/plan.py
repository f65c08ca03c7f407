"""Which exposures a simulation makes, and where each of them points, in truth and by its header.

Put here names, times and attitudes. Keep out pixels. Everything follows from the `Simulation` and its seed alone,
so that any worker can plan any exposure.
"""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from panoramic.errors import FaultError
from panoramic.simulate.geometry import Pointing, aperture, attitude_matrix, pointing_aperture, roll_at, sky_of
from panoramic.simulate.instrument import DETECTORS, FILTERS, exposure_times
from panoramic.simulate.program import Fault, Shifted, Simulation, Smeared

LONG_WAVE_PIXEL = 0.063
ACTIVITY_OVERHEAD_S = 95.0
EXPOSURE_OVERHEAD_S = 38.0


@dataclass(frozen=True)
class PlannedExposure:
    """One detector's exposure.

    Parameters
    ----------
    dataset : file stem without product suffix, e.g. ``jw09001001001_02201_00001_nrcblong``.
    field : index of its field in the simulation.
    detector : lower-case name.
    band : the imaging filter's name (of the pupil wheel where it sits there).
    activity, dither : counted from 1.
    start : UTC.
    reported, true : pointing by the header, and the real one.
    visit_error_mas, jitter_mas : the parts of the difference, V2 and V3, *milliarcsec*.
    roll_error_deg : *degrees*.
    fault_shift_arcsec : what a `shifted` fault added, east and north.
    smear : length (*arcsec*) and angle (*degrees* from the x axis) of a drift, or None.
    attitude : the reported attitude matrix, as nine numbers.
    dither_offset_arcsec : of the pattern, V2 and V3.
    """

    dataset: str
    field: int
    detector: str
    band: str
    activity: int
    dither: int
    start: datetime
    reported: Pointing
    true: Pointing
    visit_error_mas: tuple[float, float]
    jitter_mas: tuple[float, float]
    roll_error_deg: float
    fault_shift_arcsec: tuple[float, float]
    smear: tuple[float, float] | None
    attitude: tuple[float, ...]
    dither_offset_arcsec: tuple[float, float]

    @property
    def file_name(self) -> str:
        """Name of its count rate file."""
        return f"{self.dataset}_rate.fits"


def generator(seed: int, *names: object) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone, not on order or process."""
    digest = hashlib.sha256("/".join(str(n) for n in names).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, *np.frombuffer(digest, np.uint32).tolist()]))


def dither_offsets(count: int, step_arcsec: float) -> list[tuple[float, float]]:
    """Offsets, *arcsec*: a spiral of whole long-wave pixels plus sub-pixel phases that differ in both axes."""
    if step_arcsec == 0:
        return [(0.0, 0.0)] * count
    out = []
    for k in range(count):
        radius, angle = step_arcsec * np.sqrt(k), 2.399963 * k + 0.35
        whole = [round(radius * f(angle) / LONG_WAVE_PIXEL) for f in (np.cos, np.sin)]
        phase = [_radical_inverse(k, base) for base in (2, 3)]
        out.append(tuple(float(LONG_WAVE_PIXEL * (w + p)) for w, p in zip(whole, phase, strict=True)))
    return out  # type: ignore[return-value]


def _radical_inverse(k: int, base: int) -> float:
    """The k-th number of van der Corput's sequence: it fills [0, 1) evenly from the start."""
    value, fraction = 0.0, 1.0
    while k:
        fraction /= base
        value += fraction * (k % base)
        k //= base
    return value


def visit_attitude(simulation: Simulation, index: int) -> np.ndarray:
    """The undithered attitude of a field's visit as commanded, shape (3, 3)."""
    field = simulation.fields[index]
    _, v2, v3 = pointing_aperture(tuple(sorted(set(simulation.modules))))
    return attitude_matrix(v2, v3, field.ra, field.dec, field.v3pa)


def field_of_view(simulation: Simulation, margin_arcsec: float = 12.0) -> tuple[float, float, float, float]:
    """V2 and V3 limits, *arcsec*, of all pixels that any dither of the modules can see, plus a margin."""
    v2, v3 = [], []
    for name, entry in DETECTORS.items():
        if entry.module in simulation.modules:
            a, b = aperture(name).pixel_to_v2v3([-1, -1, 2048, 2048], [-1, 2048, 2048, -1])
            v2.append(a)
            v3.append(b)
    offsets = np.array(dither_offsets(simulation.dithers, simulation.dither_step_arcsec))
    reach = float(np.abs(offsets).max()) + margin_arcsec + simulation.pointing_error_mas * 4e-3
    limits = (np.min(v2) - reach, np.max(v2) + reach, np.min(v3) - reach, np.max(v3) + reach)
    return tuple(float(v) for v in limits)  # type: ignore[return-value]


def dataset_name(simulation: Simulation, field: int, activity: int, dither: int, detector: str) -> str:
    """The archive's name of an exposure: program, observation, visit, group, sequence, activity, exposure, detector."""
    f = simulation.fields[field]
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    visit = f"{simulation.program:05d}{f.observation:03d}{f.visit:03d}"
    # A pure parallel's sequence number is 2: its prime has 1.
    group = f"022{digits[activity // 36]}{digits[activity % 36]}"
    return f"jw{visit}_{group}_{dither:05d}_{detector}"


def plan_exposures(simulation: Simulation) -> list[PlannedExposure]:
    """All exposures of a simulation in the order of their time, those that a fault makes missing included.

    Raises
    ------
    FaultError
        A fault's pattern matches no exposure.
    """
    out: list[PlannedExposure] = []
    times = exposure_times(simulation.readout.readpatt, simulation.readout.ngroups, simulation.readout.nints)
    modules = tuple(sorted(set(simulation.modules)))
    _, v2, v3 = pointing_aperture(modules)
    offsets = dither_offsets(simulation.dithers, simulation.dither_step_arcsec)
    for index, field in enumerate(simulation.fields):
        rng = generator(simulation.seed, "visit", simulation.program, field.observation, field.visit)
        # The radial error is what users know; each axis has 1 / sqrt(2) of it.
        error = rng.normal(0.0, simulation.pointing_error_mas / np.sqrt(2), 2)
        roll_error = float(rng.normal(0.0, simulation.roll_error_deg))
        va_scale = 1.0 + float(rng.uniform(-9e-5, 9e-5))
        clock = datetime.fromisoformat(field.start).replace(tzinfo=UTC)
        for activity, pair in enumerate(simulation.filters, start=1):
            for dither, offset in enumerate(offsets, start=1):
                jitter = generator(simulation.seed, "jitter", index, activity, dither).normal(
                    0.0, simulation.jitter_mas, 2
                )
                reported = attitude_matrix(v2 + offset[0], v3 + offset[1], field.ra, field.dec, field.v3pa)
                wrong = [v + o + (e + j) / 1000 for v, o, e, j in zip((v2, v3), offset, error, jitter, strict=True)]
                true = attitude_matrix(wrong[0], wrong[1], field.ra, field.dec, field.v3pa + roll_error)
                for detector in simulation.active_detectors():
                    band = pair.short if DETECTORS[detector].channel == "SHORT" else pair.long
                    if band is None:
                        continue
                    ap = aperture(detector)
                    dataset = dataset_name(simulation, index, activity, dither, detector)
                    truth = ap.reference_pointing(true, va_scale)
                    shift, smear = _pointing_faults(simulation.faults, dataset)
                    out.append(
                        PlannedExposure(
                            dataset=dataset,
                            field=index,
                            detector=detector,
                            band=band,
                            activity=activity,
                            dither=dither,
                            start=clock,
                            reported=ap.reference_pointing(reported, va_scale),
                            true=truth.moved(*shift),
                            visit_error_mas=(float(error[0]), float(error[1])),
                            jitter_mas=(float(jitter[0]), float(jitter[1])),
                            roll_error_deg=roll_error,
                            fault_shift_arcsec=shift,
                            smear=smear,
                            attitude=tuple(reported.ravel().tolist()),
                            dither_offset_arcsec=offset,
                        )
                    )
                clock += timedelta(seconds=times.duration + EXPOSURE_OVERHEAD_S)
            clock += timedelta(seconds=ACTIVITY_OVERHEAD_S)
    _check_faults(simulation.faults, [e.dataset for e in out])
    return out


def _pointing_faults(faults: tuple[Fault, ...], dataset: str) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """The sum of the shifts and the last smear that match a dataset."""
    dx = dy = 0.0
    smear = None
    for fault in faults:
        if isinstance(fault, Shifted) and fnmatch.fnmatch(dataset, fault.match):
            dx, dy = dx + fault.dx_arcsec, dy + fault.dy_arcsec
        elif isinstance(fault, Smeared) and fnmatch.fnmatch(dataset, fault.match):
            smear = (fault.length_arcsec, fault.angle_deg)
    return (dx, dy), smear


def _check_faults(faults: tuple[Fault, ...], datasets: list[str]) -> None:
    for fault in faults:
        pattern = getattr(fault, "match", None)
        # `wrong_success` may name an association, which the simulator does not know.
        if pattern is None or fault.kind == "wrong_success":
            continue
        if not fnmatch.filter(datasets, pattern):
            raise FaultError(
                f"fault {fault.kind}: {pattern!r} matches none of the {len(datasets)} exposures, e.g. {datasets[0]}"
            )


def boresight(plan: PlannedExposure) -> tuple[float, float, float]:
    """RA_V1, DEC_V1 and PA_V3 of the reported attitude, *degrees*."""
    matrix = np.array(plan.attitude).reshape(3, 3)
    ra, dec = sky_of(matrix[:, 0])
    return float(ra), float(dec), roll_at(matrix, 0.0, 0.0)


def wheel(band: str) -> tuple[str, str]:
    """FILTER and PUPIL of an imaging filter."""
    return FILTERS[band].filter, FILTERS[band].pupil
