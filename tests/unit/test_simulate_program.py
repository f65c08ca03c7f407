"""The description of a simulated archive: what it accepts, and what it costs to load."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from panoramic.simulate.instrument import DETECTORS, FILTERS, READOUTS, exposure_times, slope_variances
from panoramic.simulate.program import FieldPointing, Simulation, default_simulation


def changed(**update):
    return Simulation.model_validate(default_simulation().model_dump() | update)


def test_default_is_the_archive_of_make_run():
    simulation = default_simulation()
    assert len(simulation.fields) == 2
    assert simulation.active_detectors() == ("nrcb1", "nrcb2", "nrcb3", "nrcb4", "nrcblong")
    assert Simulation.model_validate(simulation.model_dump(mode="json")) == simulation


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"filters": [{"short": "F444W"}]}, "no short-wave imaging filter"),
        ({"filters": [{"long": "F999W"}]}, "no long-wave imaging filter"),
        ({"filters": [{}]}, "needs a short-wave or a long-wave"),
        ({"detectors": ["nrcc1"]}, "unknown detectors"),
        ({"detectors": ["nrca1"]}, "none of detectors"),
        ({"dithers": 0}, "greater than or equal to 1"),
        ({"readout": {"readpatt": "FAST"}}, "unknown readout pattern"),
        ({"wisp": 1}, "Extra inputs"),
        ({"faults": [{"kind": "earthquake"}]}, "earthquake"),
        ({"faults": [{"kind": "reference_sparse", "keep": 3, "field": 7}]}, "no field number 7"),
        ({"fields": [{"ra": 10, "dec": 95, "observation": 1}]}, "less than or equal to 90"),
        ({"fields": [{"ra": 1, "dec": 1, "observation": 1}] * 2}, "same observation and visit"),
    ],
)
def test_bad_description_is_refused(update, message):
    with pytest.raises(ValidationError, match=message):
        changed(**update)


def test_digest_follows_what_decides_the_bytes():
    base = default_simulation().digest()
    assert base == default_simulation().digest()
    assert changed(seed=1).digest() != base
    assert changed(faults=[{"kind": "truncated_file", "match": "*"}]).digest() != base
    # Applied after the engine's fit: the archive is the same.
    assert changed(faults=[{"kind": "wrong_success", "match": "*"}]).digest() == base


def test_unquoted_yaml_date_is_a_date():
    import datetime

    moment = datetime.datetime(2025, 5, 2, 8, 21, tzinfo=datetime.UTC)
    assert FieldPointing(ra=1, dec=1, observation=1, start=moment).start == "2025-05-02T08:21:00"


def test_program_loads_nothing_heavy():
    code = (
        "import sys, panoramic.simulate.program; "
        "print([m for m in ('numpy', 'astropy', 'scipy', 'poppy', 'stdatamodels', 'jwst') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("readpatt", "ngroups", "nints", "expected"),
    [
        # EFFINTTM, EFFEXPTM, DURATION, TMEASURE, TGROUP of real exposures
        ("MEDIUM2", 5, 1, (450.944, 450.944, 450.944, 429.471, 107.368)),
        ("DEEP8", 7, 1, (1374.307, 1374.307, 1374.307, 1288.412, 214.735)),
        ("MEDIUMDEEP2", 8, 2, (1148.834, 2297.669, 2308.406, 2254.722, 161.052)),
        ("SHALLOW4", 8, 1, (418.734, 418.734, 418.734, 375.787, 53.684)),
    ],
)
def test_times_are_the_archives(readpatt, ngroups, nints, expected):
    times = exposure_times(readpatt, ngroups, nints)
    got = (times.integration, times.exposure, times.duration, times.measurement, times.group)
    assert got == pytest.approx(expected, abs=1.1e-3)


def test_noise_falls_with_groups_and_integrations():
    for channel in ("SHORT", "LONG"):
        few, many = slope_variances(channel, "SHALLOW4", 5, 1), slope_variances(channel, "SHALLOW4", 10, 1)
        assert many[0] < few[0]
        assert many[1] < few[1]
        assert slope_variances(channel, "SHALLOW4", 5, 2)[1] == pytest.approx(few[1] / 2)


def test_tables_are_complete():
    assert len(DETECTORS) == 10
    assert {f.channel for f in FILTERS.values()} == {"SHORT", "LONG"}
    assert FILTERS["F470N"].filter == "F444W"
    assert FILTERS["F470N"].pupil == "F470N"
    assert all(f.photmjsr > 0 and f.background > 0 for f in FILTERS.values())
    assert all(r.nframes >= 1 for r in READOUTS.values())
