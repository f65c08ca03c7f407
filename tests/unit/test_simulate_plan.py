"""Names, times and attitudes of the planned exposures."""

import re
from itertools import pairwise

import numpy as np
import pytest

from panoramic.errors import FaultError
from panoramic.simulate.plan import dither_offsets, generator, plan_exposures
from panoramic.simulate.program import Simulation, default_simulation


def changed(**update):
    return Simulation.model_validate(default_simulation().model_dump() | update)


def test_names_and_times():
    plans = plan_exposures(changed(filters=[{"short": "F115W", "long": "F444W"}, {"long": "F470N"}]))
    assert len({p.dataset for p in plans}) == len(plans) == 2 * 2 * (5 + 1)
    assert all(re.fullmatch(r"jw09001\d{6}_0220[12]_0000[12]_nrcb(\d|long)", p.dataset) for p in plans)
    first = [p for p in plans if p.field == 0 and p.detector == "nrcblong"]
    assert [p.band for p in first] == ["F444W", "F444W", "F470N", "F470N"]
    assert all(a.start < b.start for a, b in pairwise(first))


def test_detectors_share_the_visits_error():
    plans = [p for p in plan_exposures(default_simulation()) if p.field == 0]
    assert len({p.visit_error_mas for p in plans}) == 1
    assert len({p.jitter_mas for p in plans}) == 2
    assert len({p.roll_error_deg for p in plans}) == 1
    other = next(p for p in plan_exposures(default_simulation()) if p.field == 1)
    assert other.visit_error_mas != plans[0].visit_error_mas


def test_pointing_error_has_the_asked_size():
    fields = [{"ra": 10.0, "dec": 0.0, "observation": k} for k in range(1, 301)]
    plans = plan_exposures(changed(fields=fields, detectors=["nrcblong"], dithers=1, pointing_error_mas=200))
    errors = np.array([p.visit_error_mas for p in plans])
    assert np.sqrt((errors**2).sum(axis=1).mean()) == pytest.approx(200, rel=0.15)


def test_no_error_means_the_header_is_right():
    plan = plan_exposures(changed(pointing_error_mas=0, roll_error_deg=0, jitter_mas=0))[0]
    assert plan.true == plan.reported


def test_dithers_differ_in_sub_pixel_phase():
    offsets = np.array(dither_offsets(6, 3.0)) / 0.063
    phases = offsets % 1
    assert len(np.unique(np.round(phases, 3), axis=0)) == 6
    assert np.hypot(*(offsets[1] * 0.063)) == pytest.approx(3.0, abs=0.1)
    assert dither_offsets(3, 0.0) == [(0.0, 0.0)] * 3


def test_shift_is_added_to_the_truth_only():
    match = "*001001_*_00002_nrcb3"
    plain = {p.dataset: p for p in plan_exposures(default_simulation())}
    fault = {"kind": "shifted", "match": match, "dx_arcsec": 0.3, "dy_arcsec": -0.1}
    for plan in plan_exposures(changed(faults=[fault])):
        before = plain[plan.dataset]
        assert plan.reported == before.reported
        if plan.dataset == "jw09001001001_02201_00002_nrcb3":
            east = (plan.true.ra_ref - before.true.ra_ref) * np.cos(np.radians(plan.true.dec_ref)) * 3600
            assert east == pytest.approx(0.3, abs=1e-5)
            assert (plan.true.dec_ref - before.true.dec_ref) * 3600 == pytest.approx(-0.1, abs=1e-5)
        else:
            assert plan.true == before.true


def test_fault_that_matches_nothing_is_an_error():
    with pytest.raises(FaultError, match=r"matches none of the 20 exposures"):
        plan_exposures(changed(faults=[{"kind": "missing_exposure", "match": "jw00000*"}]))
    # The engine's fault names associations, which the simulator does not know.
    plan_exposures(changed(faults=[{"kind": "wrong_success", "match": "j100032p0208*"}]))


def test_random_numbers_depend_on_names_alone():
    assert generator(1, "a", 2).normal() == generator(1, "a", 2).normal()
    assert generator(1, "a", 2).normal() != generator(1, "a", 3).normal()
    assert generator(1, "a", 2).normal() != generator(2, "a", 2).normal()
