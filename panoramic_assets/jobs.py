"""Jobs: what a person or a backfill asks for."""

import dagster as dg

STAGES = ("observations", "associations", "astrometric_reference", "preprocessed_visits", "mosaics")

field_job = dg.define_asset_job(
    "field_job",
    selection=dg.AssetSelection.assets(*STAGES),
    description="All stages of a field; what did not change since its last run is not done again.",
)
