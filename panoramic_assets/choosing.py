"""Which associations carry a field's reference, and what the detectors of a visit tell each other.

Put here questions to the stored results that planning steps ask. Keep out Dagster.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from panoramic.associations import Association
from panoramic.patches import ReferenceCandidate, choose_reference
from panoramic.pointing import KnownPointing, visit_priors
from panoramic.reduction.base import PointingPrior
from resources.database import ALIGNMENT_FAILED, DO_NOT_RUN, NO_DATA, StoredReduction
from resources.home import Home

# the first choice, then twice what takes the place of those that were held back
ROUNDS = 3


def carries(stored: StoredReduction | None) -> bool:
    """Whether a result may carry the reference: accepted, and not by our own reference."""
    if stored is None or not stored.verdict.accepted:
        return False
    return stored.measurement is None or stored.measurement.reference_kind != "own"


def choose(home: Home, associations: Sequence[Association], held_back: Collection[str]) -> list[Association]:
    """The associations that carry the reference where some are held back (`panoramic.patches`)."""
    rules = home.survey.reference
    candidates = [ReferenceCandidate(a.name, a.first.element, a.is_long_wave, a.footprint) for a in associations]
    chosen = choose_reference(candidates, rules.filters, held_back, rules.minimum_cover)
    by_name = {a.name: a for a in associations}
    return [by_name[c.name] for c in chosen]


def choice_rounds(home: Home, field: str) -> list[list[Association]]:
    """What is chosen first, then what was added for those that are held back; each association once."""
    associations = home.database.associations(field)
    failed = {ALIGNMENT_FAILED, NO_DATA, DO_NOT_RUN}
    status = {r["assoc_name"]: r["status"] for r in home.database.association_rows(field)}
    rounds: list[list[Association]] = []
    held_back: set[str] = set()
    for _ in range(ROUNDS):
        seen = {a.name for chosen in rounds for a in chosen}
        chosen = [a for a in choose(home, associations, held_back) if a.name not in seen]
        rounds.append(chosen)
        for association in chosen:
            stored = home.database.reduction(association.name)
            if (stored is not None and not carries(stored)) or status[association.name] in failed:
                held_back.add(association.name)
    return rounds


def members_of(home: Home, field: str) -> list[Association]:
    """The field's associations that carry the reference, or were to carry it and are held back."""
    return [a for chosen in choice_rounds(home, field) for a in chosen]


def held_back_in(home: Home, associations: Sequence[Association]) -> list[Association]:
    """Those whose alignment failed: a second attempt may help them."""
    found = []
    for association in associations:
        stored = home.database.reduction(association.name)
        if stored is None or home.database.judgement(association) is not None:
            continue
        # what a second attempt made stands or is made again by what the visit says now
        if not stored.verdict.accepted or stored.second_fingerprint:
            found.append(association)
    return found


def priors_of(home: Home, association: Association) -> tuple[PointingPrior, ...]:
    """What accepted associations of the same visit say of an association's pointing."""
    rules = home.survey.reduction.visit_priors
    if not rules.enabled:
        return ()
    known: list[KnownPointing] = []
    for other in home.database.associations(association.field):
        if other.name == association.name or other.first.visit_id != association.first.visit_id:
            continue
        stored = home.database.reduction(other.name)
        # what was solved with the help of others tells nothing of its own
        if stored is None or not stored.verdict.accepted or stored.second_fingerprint:
            continue
        offset = stored.measurement.absolute if stored.measurement else None
        if offset is None or offset.err_ra is None or offset.err_dec is None or offset.rotation_err_deg is None:
            continue
        errors = np.diag([offset.err_ra**2, offset.err_dec**2, offset.rotation_err_deg**2])
        covariance = tuple(tuple(float(v) for v in row) for row in errors)
        known += [
            KnownPointing(e.dataset, e.pointing, covariance) for e in stored.result.exposures if e.pointing is not None
        ]
    wanted = {e.dataset: (e.ra, e.dec) for e in association.exposures}
    return visit_priors(wanted, known, rules.offset_error_mas, rules.roll_error_deg)
