"""The field's own reference: the sources of the associations that carry it, and what is published of them.

Put here how our own sources are gathered and read. Keep out which associations carry the reference (``choosing.py``)
and the selection and merging of sources (`panoramic.reference`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from astropy.table import Table

from panoramic.associations import Association
from panoramic.footprints import parse_s_region
from panoramic.reference import centroid_errors_mas, merge_own, select_own
from panoramic_assets.candidates import OwnReference
from panoramic_assets.choosing import carries
from panoramic_assets.storing import association_folder
from resources.home import Home


def own_sources(home: Home, members: Sequence[Association]) -> Table:
    """Selected sources of those among some associations that carry the reference, one row per object."""
    tables = {}
    for association in members:
        stored = home.database.reduction(association.name)
        if stored is None or not carries(stored) or stored.result.catalog is None:
            continue
        catalog = Table.read(home.storage.path(f"{association_folder(association.name)}/{stored.result.catalog}"))
        catalog["error_mas"] = centroid_errors_mas(catalog, stored.result.pixel_scale_mas)
        tables[association.name] = select_own(catalog, home.survey.reference.selection)
    return merge_own(tables)


def as_reference(sources: Table, members: Sequence[Association]) -> OwnReference:
    """Own sources in the form that a reduction takes."""
    names = set(sources["src"])
    outlines = tuple(a.footprint for a in members if a.name in names)
    ra, dec, mag, error = (np.asarray(sources[c], float) for c in ("ra", "dec", "mag", "error_mas"))
    return OwnReference(ra, dec, mag, error, outlines)


def published_reference(home: Home, field: str) -> OwnReference:
    """The field's reference as it stands in the database."""
    rows = home.database.reference(field)
    if not rows:
        return OwnReference.empty()
    sources = {r["src"] for r in rows}
    outlines = [
        parse_s_region(r["footprint"]) for r in home.database.association_rows(field) if r["assoc_name"] in sources
    ]
    column = {
        c: np.array([np.nan if r[c] is None else r[c] for r in rows], float) for c in ("ra", "dec", "mag", "error_mas")
    }
    version = home.database.reference_version(field)
    return OwnReference(column["ra"], column["dec"], column["mag"], column["error_mas"], tuple(outlines), version)
