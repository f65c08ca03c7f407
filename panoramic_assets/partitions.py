"""The one partitioning of the house: a field is a partition, found by the sensor, never deleted."""

import warnings

import dagster as dg

# checks by partition and data versions of outputs are a preview in this Dagster; the pinned version was tried with them
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
warnings.filterwarnings("ignore", category=dg.BetaWarning)

FIELDS = "fields"
fields_partitions = dg.DynamicPartitionsDefinition(name=FIELDS)
