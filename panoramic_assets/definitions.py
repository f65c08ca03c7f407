"""The code location: all assets, checks, jobs and sensors, on the home that the environment names.

Tests and the command line call `build_definitions` with another home.
"""

from __future__ import annotations

import dagster as dg

from panoramic_assets import associations, astrometry, mosaics, observations, visits
from panoramic_assets.jobs import field_job as field_job_definition
from resources.home import HomeResource, home_from_environment
from sensors.automation import automation
from sensors.new_exposures import new_exposures
from sensors.stuck_runs import stuck_runs

# imported once by the fork server, so that a step starts in a second
PRELOAD = ["panoramic_assets.definitions", "astropy.table", "astropy.io.fits", "sqlalchemy.dialects.sqlite"]


def build_definitions(
    home: HomeResource | None = None, executor: dg.ExecutorDefinition | None = None
) -> dg.Definitions:
    """Assemble the platform.

    Parameters
    ----------
    home : where the survey lives; by default what PANORAMIC_HOME says.
    executor : by default two steps at once in processes of their own.
    """
    home = home or home_from_environment()
    return dg.Definitions(
        assets=[
            observations.mast_archive,
            observations.observations,
            associations.associations,
            astrometry.astrometric_reference,
            visits.preprocessed_visits,
            mosaics.mosaics,
        ],
        asset_checks=[
            *observations.checks,
            *associations.checks,
            *astrometry.checks,
            *visits.checks,
            *mosaics.checks,
        ],
        jobs=[field_job_definition],
        sensors=[automation, new_exposures, stuck_runs],
        resources={"home": home},
        executor=executor
        or dg.multiprocess_executor.configured(
            {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": PRELOAD}}}
        ),
    )


defs = build_definitions()


def field_job() -> dg.JobDefinition:
    """The job of all stages, as a function that another process can call to rebuild it."""
    return defs.resolve_job_def("field_job")
