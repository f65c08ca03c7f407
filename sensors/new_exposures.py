"""The sensor that looks at the archive. It discovers and reports; conditions and checks decide the rest."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from panoramic.errors import PanoramicError
from panoramic_assets.ingest import ingest, look_since
from panoramic_assets.partitions import FIELDS, fields_partitions
from panoramic_assets.reporting import unreported
from resources.home import HomeResource


@dg.sensor(
    name="new_exposures",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at the archive, adds new fields, and reports the data version of each field that changed.",
)
def new_exposures(context: dg.SensorEvaluationContext, home: HomeResource) -> Iterator[dg.SensorResult | dg.SkipReason]:
    """Ingest what the archive shows, then report the fields whose data version Dagster does not know yet."""
    house = home.open()
    if not house.survey_file.exists():
        yield dg.SkipReason(f"{house.path} has no survey yet: run `panoramic run` or `panoramic ui` with a survey file")
        return
    try:
        at = datetime.now(UTC).replace(tzinfo=None)
        look = house.archive.look(look_since(house.database, house.survey, house.archive.rights, at))
        ingest(house.database, house.survey, look, at)
    except PanoramicError as error:  # nothing was changed; what is stored already may still need its report
        context.log.warning(f"the archive was not read: {error}")
        failure = f"the archive was not read: {error}"
    else:
        failure = ""
    events = unreported(house.database, context.instance)
    missing = sorted(set(house.database.data_versions()) - set(context.instance.get_dynamic_partitions(FIELDS)))
    if not events and not missing:
        yield dg.SkipReason(failure or "nothing new in the archive")
        return
    requests = [fields_partitions.build_add_request(missing)] if missing else []
    yield dg.SensorResult(asset_events=events, dynamic_partitions_requests=requests)
