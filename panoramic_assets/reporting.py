"""From the survey's database into Dagster's event log: partitions of new fields, data versions that Dagster lacks.

What Dagster was told is read from Dagster, so that a kill between the two databases loses nothing. Keep out what is
written into the survey's database (`ingest.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from dagster import AssetKey, AssetMaterialization, DagsterEventType, DagsterInstance
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from panoramic_assets.partitions import FIELDS
from resources.database import Database

MAST_ARCHIVE = AssetKey("mast_archive")


def unreported(database: Database, instance: DagsterInstance) -> list[AssetMaterialization]:
    """Events that Dagster lacks: each field whose stored data version is not the one that it knows last."""
    told = instance.event_log_storage.get_latest_tags_by_partition(
        MAST_ARCHIVE, DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    return [
        AssetMaterialization(MAST_ARCHIVE, partition=name, tags={DATA_VERSION_TAG: stored})
        for name, stored in database.data_versions().items()
        if told.get(name, {}).get(DATA_VERSION_TAG) != stored
    ]


def report(database: Database, instance: DagsterInstance, on_event: Callable[[str], None] | None = None) -> list[str]:
    """Add missing partition keys and report changed fields to Dagster; returns the fields reported."""
    missing = set(database.data_versions()) - set(instance.get_dynamic_partitions(FIELDS))
    if missing:
        instance.add_dynamic_partitions(FIELDS, sorted(missing))
    events = unreported(database, instance)
    for event in events:
        instance.report_runless_asset_event(event)
        if on_event is not None and event.partition is not None:
            on_event(event.partition)
    return [e.partition for e in events if e.partition is not None]
