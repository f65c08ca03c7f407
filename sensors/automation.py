"""Automation: decides, from the assets' own conditions, what to materialize next."""

import dagster as dg

automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Materializes what new data, or a stage that passed its blocking checks, makes due.",
)
