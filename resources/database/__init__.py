"""The survey's own database: the questions that assets ask of it, and what they write into it.

One class for the callers; one module for each group of tables. ``core.py`` has connections and transactions.
"""

from __future__ import annotations

from resources.database.associations import AssociationTables
from resources.database.core import (
    ALIGNMENT_FAILED,
    DEFINED,
    DO_NOT_RUN,
    DONE,
    NO_DATA,
    QUEUED,
    RUNNING,
    is_disk_full,
    now,
)
from resources.database.exposures import Known
from resources.database.products import ProductTables, StoredReduction

__all__ = [
    "ALIGNMENT_FAILED",
    "DEFINED",
    "DONE",
    "DO_NOT_RUN",
    "NO_DATA",
    "QUEUED",
    "RUNNING",
    "Database",
    "Known",
    "StoredReduction",
    "is_disk_full",
    "now",
]


class Database(AssociationTables, ProductTables):
    """The survey's database behind one URL.

    Parameters
    ----------
    url : e.g. ``sqlite:////home/me/data/survey.db`` or ``postgresql+psycopg2://...``.
    """
