"""The whole chain on a simulated field, through the command line, killed in the middle, and held against the truth.

One short- and one long-wave association with two dithers; grizli as the engine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import yaml
from endtoend import SURVEY, Finished, panoramic
from judging import external_sigma, placement, star_ratios

from panoramic.footprints import inside
from panoramic.observations import parse_rows
from panoramic.survey import ExposureRules, Survey
from resources import tables as t
from resources.home import Home


def test_a_killed_run_is_taken_up_again(finished: Finished) -> None:
    assert "left unfinished" in finished.output
    assert f"{finished.field}: finished" in finished.output, finished.output
    assert not list(finished.home.work.iterdir())
    assert not list(finished.home.storage.root.rglob(".staged-*"))


def test_nothing_is_done_twice(finished: Finished) -> None:
    assert f"{finished.field}: finished" in finished.again
    with finished.home.database.read() as connection:
        made = {r.assoc: r.made for r in connection.execute(sa.select(t.reductions))}
    assert len(made) == 2
    third = panoramic(finished.home.path, "run")
    with finished.home.database.read() as connection:
        assert {r.assoc: r.made for r in connection.execute(sa.select(t.reductions))} == made
    assert "finished" in third.stdout


def test_associations_lie_where_they_should(finished: Finished) -> None:
    truth = finished.truth
    reference, result, folder = finished.reduction("f444w")
    assert result.absolute is not None
    assert result.absolute.reference == "LS_DR9"
    table = truth.references["LS_DR9"]
    here = table[inside(np.asarray(table["ra"]), np.asarray(table["dec"]), reference.footprint)]
    sigma = external_sigma(truth, "LS_DR9", result.absolute.n, here)
    long_wave = placement(folder, result, truth)
    assert long_wave.radial <= max(20.0, 4 * sigma), long_wave
    assert long_wave.between <= 2.0, long_wave

    _, result, folder = finished.reduction("f115w")
    assert result.absolute is not None
    assert result.absolute.kind == "own"
    own = result.absolute.rms * result.absolute.pixel_scale_mas / np.sqrt(result.absolute.n)
    short_wave = placement(folder, result, truth)
    assert short_wave.radial <= max(20.0, 4 * np.hypot(sigma, own)), short_wave
    assert short_wave.between <= 6.0, short_wave
    apart = np.hypot(short_wave.east - long_wave.east, short_wave.north - long_wave.north)
    assert apart <= max(10.0, 4 * own), (short_wave, long_wave)


def test_the_logs_have_realistic_numbers(finished: Finished) -> None:
    _, result, _ = finished.reduction("f444w")
    assert result.absolute is not None
    # the real logs have 5-45; this sky has four times their stars
    assert 12 <= result.absolute.n <= 75
    assert 15 <= result.absolute.rms * result.absolute.pixel_scale_mas <= 60
    assert 300 <= result.n_sources <= 1500


@pytest.mark.parametrize(("element", "scale", "stars"), [("f444w", 0.063, 12), ("f115w", 0.031, 6)])
def test_stars_have_their_fluxes(finished: Finished, element: str, scale: float, stars: int) -> None:
    (mosaic,) = [m for m in finished.home.database.mosaics(finished.field) if m["filter_key"] == f"{element}-clear"]
    folder = finished.home.storage.path(f"{finished.field}/mosaics/{element}-clear")
    ratios = star_ratios(folder, mosaic["stem"], finished.truth, element.upper(), scale)
    assert len(ratios) >= stars, ratios
    assert abs(np.median(ratios) - 1) <= 0.02, ratios
    assert np.mean(np.abs(ratios - 1) <= 0.05) >= 0.9, ratios


def test_the_mosaic_carries_its_provenance(finished: Finished) -> None:
    from astropy.io import fits

    for mosaic in finished.home.database.mosaics(finished.field):
        for product in finished.home.database.products(mosaic["stem"]):
            assert product["provenance"]["inputs"]
            assert product["provenance"]["crds_context"].endswith(".pmap")
        folder = finished.home.storage.path(f"{finished.field}/mosaics/{mosaic['filter_key']}")
        header = fits.getheader(folder / f"{mosaic['stem']}_sci.fits")
        assert header["BUNIT"] == "10nJy"
        assert header["SURVEY"] == "endtoend"
        assert header["PANVERS"]
        assert header["CRDS_CTX"].endswith(".pmap")


def test_a_field_name_that_is_not_there_gets_the_nearest(finished: Finished) -> None:
    wrong = finished.field[:-1] + "9"
    done = panoramic(finished.home.path, "run", "--field", wrong, check=False)
    assert done.returncode == 2
    assert finished.field in done.stdout
    done = panoramic(finished.home.path, "associations", wrong, check=False)
    assert done.returncode == 2
    assert finished.field in done.stdout


def test_another_survey_is_refused(finished: Finished, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(SURVEY | {"name": "other"}))
    done = panoramic(finished.home.path, "run", "--survey", str(other), check=False)
    assert done.returncode == 1
    assert "belongs to the survey" in done.stdout


def test_status_fields_and_explain_speak(finished: Finished) -> None:
    assert finished.field in panoramic(finished.home.path, "fields").stdout
    assert "2 fields" not in panoramic(finished.home.path, "status").stdout
    explained = panoramic(finished.home.path, "explain", finished.field).stdout
    assert "2 mosaics" in explained


def test_the_rows_of_the_archive_can_be_read_back(finished: Finished) -> None:
    rows = finished.home.archive.look().rows
    parsed = parse_rows(rows, "metadata.csv", ExposureRules())
    assert len(parsed.exposures) == 4
    assert not parsed.errors
    assert Survey.load(finished.home.survey_file).name == "endtoend"


def test_a_solution_moved_after_its_fit_is_caught(finished: Finished, tmp_path: Path) -> None:
    """`wrong_success`: the long-wave solution is moved by 0.3 arcsec, the engine's log says nothing."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "archive").symlink_to(finished.home.path / "archive")
    moved = yaml.safe_load(yaml.safe_dump(SURVEY))
    fault = {"kind": "wrong_success", "match": "*f444w*", "shift_arcsec": [0.3, 0.0]}
    moved["archive"]["simulation"]["faults"].append(fault)
    survey = tmp_path / "moved.yaml"
    survey.write_text(yaml.safe_dump(moved))
    done = panoramic(home, "run", "--survey", str(survey), check=False)
    assert done.returncode == 1, done.stdout
    assert f"{finished.field}: blocked" in done.stdout
    # each attempt is measured from the products and refused; what carries the reference is another filter
    house = Home(home)
    (association,) = [a for a in house.database.associations(finished.field) if a.first.element == "f444w"]
    tries = [t for t in house.database.reference_tries(finished.field) if t["assoc"] == association.name]
    refused = [t["outcome"] for t in tries if t["attempt"] in ("first", "second")]
    assert len(refused) >= 2
    assert all("offset from" in outcome for outcome in refused), refused
    assert association.name not in {r["src"] for r in house.database.reference(finished.field)}
    # ties to the other filter may have brought it back; where it lies now is measured again
    stored = house.database.reduction(association.name)
    assert stored is not None and stored.measurement is not None and stored.measurement.absolute is not None
    assert not stored.verdict.accepted or abs(stored.measurement.absolute.dra or 0.0) < 10
    assert house.database.mosaics(finished.field) == []
