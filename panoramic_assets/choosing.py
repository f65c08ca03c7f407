"""Which associations carry a field's reference, and what the detectors of a visit tell each other.

Put here questions to the stored results that planning steps ask. Keep out Dagster.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from panoramic.associations import Association
from panoramic.patches import ReferenceCandidate, choose_reference
from panoramic.pointing import KnownPointing, exposure_of, pointing_at, rotation_of, visit_priors
from panoramic.reduction.base import PointingPrior
from panoramic.reduction.moving import SkyCorrection, recorded_correction
from panoramic.verification import correction_of
from panoramic_assets.inputs import made_of_these
from panoramic_assets.storing import association_folder
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


def taken_by_the_reference(home: Home, field: str) -> set[str]:
    """Members that the reference has reduced or could not: no other stage reduces them.

    What takes the place of one that the ties held back is a member from the next run on; until then it is as any other.
    """
    status = {r["assoc_name"]: r["status"] for r in home.database.association_rows(field)}
    return {
        a.name
        for a in members_of(home, field)
        if status[a.name] in (NO_DATA, DO_NOT_RUN)
        or (home.database.reduction(a.name) is not None and made_of_these(home, a))
    }


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


@dataclass(frozen=True)
class VisitWord:
    """What the accepted associations of a visit say of another's pointing: the priors, and who says it.

    ``donors`` are names and fingerprints: as long as these stay, the word is the same.
    """

    priors: tuple[PointingPrior, ...]
    donors: tuple[tuple[str, str], ...]


def word_of_the_visit(home: Home, association: Association, among: Collection[str] | None = None) -> VisitWord:
    """What accepted associations of the same visit say of an association's pointing.

    Parameters
    ----------
    among : names that may speak; None: all. The reference's own associations listen to each other alone, as they are
        before they are tied: what is aligned to the reference must not help to make it.
    """
    rules = home.survey.reduction.visit_priors
    if not rules.enabled:
        return VisitWord((), ())
    known: dict[str, list[KnownPointing]] = {}
    donors: list[tuple[str, str]] = []
    for other in home.database.associations(association.field):
        if other.name == association.name or other.first.visit_id != association.first.visit_id:
            continue
        stored = home.database.reduction(other.name)
        if (among is not None and other.name not in among) or stored is None or not _speaks(home, other, stored):
            continue
        pointings = _known(home, other, stored, before_ties=among is not None)
        if pointings:
            known[other.name] = pointings
            donors.append((other.name, stored.fingerprint))
    priors: list[PointingPrior] = []
    for exposure in association.exposures:
        same = [k for ks in known.values() for k in ks if exposure_of(k.dataset) == exposure_of(exposure.dataset)]
        # exposures of one association share the error of its solution: as many of them know no more than one
        others = [_inflated(k, len(ks)) for ks in known.values() for k in ks]
        wanted = {exposure.dataset: (exposure.ra, exposure.dec)}
        priors += visit_priors(wanted, same or others, rules.offset_error_mas, rules.roll_error_deg)
    return VisitWord(tuple(priors), tuple(sorted(donors)))


def _speaks(home: Home, other: Association, stored: StoredReduction) -> bool:
    """Whether a result tells something of its own: not what others helped to solve, or a person believes."""
    return stored.verdict.accepted and not stored.second_fingerprint and home.database.judgement(other) is None


def _known(home: Home, other: Association, stored: StoredReduction, before_ties: bool) -> list[KnownPointing]:
    """An association's measured pointing corrections."""
    offset = stored.measurement.absolute if stored.measurement else None
    if offset is None or offset.err_ra is None or offset.err_dec is None or offset.rotation_err_deg is None:
        return []
    errors = np.diag([offset.err_ra**2, offset.err_dec**2, offset.rotation_err_deg**2])
    covariance = tuple(tuple(float(v) for v in row) for row in errors)
    undone = None
    if before_ties and any(a["attempt"] == "frame" for a in stored.attempts):
        undone = recorded_move(home, other, stored)
    left = correction_of(offset).matrix if offset.reference == "own" and not before_ties else np.eye(3)
    found = []
    for exposure in stored.result.exposures:
        if exposure.pointing is None:
            continue
        rotation = rotation_of(exposure.pointing)
        rotation = undone.inverse().matrix @ rotation if undone else left @ rotation
        pointing = pointing_at(rotation, exposure.pointing.ra, exposure.pointing.dec)
        found.append(KnownPointing(exposure.dataset, pointing, covariance))
    return found


def recorded_move(home: Home, association: Association, stored: StoredReduction) -> SkyCorrection | None:
    """What moved an association's products since the engine made them; None where nothing did."""
    from astropy.io import fits

    if not stored.result.exposures:
        return None
    first = stored.result.exposures[0].filename
    path = home.storage.path(f"{association_folder(association.name)}/{first}")
    return recorded_correction(fits.getheader(path, "SCI"))


def _inflated(known: KnownPointing, times: int) -> KnownPointing:
    covariance = tuple(tuple(value * times for value in row) for row in known.covariance)
    return KnownPointing(known.dataset, known.pointing, covariance)
