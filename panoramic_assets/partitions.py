"""The one partitioning of the house: a field is a partition, found by the sensor, never deleted."""

import warnings

import dagster as dg

# checks by partition are a preview in this Dagster; the pinned version is the one that was tried
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

FIELDS = "fields"
fields_partitions = dg.DynamicPartitionsDefinition(name=FIELDS)
