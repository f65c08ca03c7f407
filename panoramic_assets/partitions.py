"""The one partitioning of the house: a field is a partition, found by the sensor, never deleted."""

from dagster import DynamicPartitionsDefinition

FIELDS = "fields"
fields_partitions = DynamicPartitionsDefinition(name=FIELDS)
