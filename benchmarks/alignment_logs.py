"""The gates on real alignment logs: what `panoramic.alignment.judge` says of each row, and the number that decided.

``shifts_log.csv`` has a row for each exposure, matched to the others of its association; ``wcs_log.csv`` a row for each
association, matched to a reference catalogue. Both are grizli's own numbers, and are read as the driver reads its logs
(`panoramic.reduction.grizli_logs`): the shift log's RMS is per axis, over the root of the matches; the WCS log's is a
median absolute deviation of radial distances and becomes a deviation per axis. There are no products to these rows, so
the gates have the reported numbers only.

Where an association has rows in one log alone, the other gate has nothing to say and is told as ``not logged``. The
logs name no detector scale: 63 mas px on the long-wave detectors, 31 on the short-wave ones, 65.6 on NIRISS (a row of
another instrument: the survey would not take it; the absolute gate's limits are the same).

One line for each row, then for each association, and one JSON line at the end. The exit status is 0; where a table is
absent, it is skipped with the reason.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from panoramic.alignment import Criterion, judge
from panoramic.errors import InputError
from panoramic.observations import is_long_wave
from panoramic.reduction.base import AbsoluteFit, ReductionResult, RelativeFit
from panoramic.reduction.grizli_logs import WcsRow, absolute_fit, parse_shifts_log
from panoramic.survey import Limits

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "panoramic"
SHIFT_COLUMNS = ("file", "xshift_pix", "yshift_pix", "rot_deg", "scale", "n_matched", "rms_x_pix", "rms_y_pix")
WCS_COLUMNS = (
    "reference_catalog", "product", "xshift_pix", "yshift_pix", "rot_deg", "scale", "rms_pix", "n_matched",
)  # fmt: skip
# how grizli names the file of an external catalogue; any other file is a catalogue of JWST's own sources
EXTERNAL = re.compile(r"(?:^|_)(ls_dr\d+|ps1|(?:des|nsc|gaia)(?:_e?dr\d+)?)\.radec$", re.IGNORECASE)
RATE_FILE = re.compile(r"jw(\d{5})(\d{3})(\d{3})_(\d{5})_\d{5}_(nrc[ab](?:\d|long)|nis)_[a-z]+\.fits")
PRODUCT = re.compile(r"-(\d{5})-(\d{3})-[\d.]+-(nrc[ab](?:\d|long)|nis)-")
SCALES = {"long": 63.0, "short": 31.0, "nis": 65.6}


@dataclass(frozen=True)
class Judged:
    """What the gates say of one row or association: ``accepted``, ``near`` or ``refused``, by which number."""

    name: str
    outcome: str
    decided: str
    cause: str = ""


@dataclass
class Logged:
    """All rows of one association; ``anchor`` rows are part of ``relative``. ``run``: what wrote them."""

    name: str
    detector: str
    run: str = ""
    relative: list[RelativeFit] = field(default_factory=list)
    absolute: AbsoluteFit | None = None


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a table that must have the columns."""
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: no column {', '.join(missing)}; it needs {', '.join(columns)}")
        return list(reader)


def readable(
    rows: Sequence[dict[str, str]], column: str, pattern: re.Pattern[str]
) -> tuple[list[dict[str, str]], list[str]]:
    """Rows whose name tells the detector, and the names of the others (of another instrument, say)."""
    known = [row for row in rows if pattern.search(row[column])]
    return known, [row[column] for row in rows if not pattern.search(row[column])]


def read_shifts(rows: Sequence[dict[str, str]]) -> list[Logged]:
    """Associations of a shift log: exposures of one observation, visit, activity and detector, in the log's order."""
    grouped: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        match = RATE_FILE.fullmatch(row["file"])
        if match is None:
            raise InputError(f"{row['file']!r} is no name of a JWST exposure")
        grouped[(row.get("notebook_version", ""), *match.groups())].append(row)
    found = []
    for (run, *parts), own in grouped.items():
        text = "\n".join(" ".join(row[c] for c in SHIFT_COLUMNS) for row in own)
        names = {row["file"]: row["file"].rsplit("_", 1)[0] for row in own}
        found.append(Logged("-".join(parts), parts[-1].upper(), run, list(parse_shifts_log(text, names))))
    return found


def read_wcs(rows: Sequence[dict[str, str]]) -> list[Logged]:
    """One association for each row of a WCS log; the product's name tells program, observation and detector."""
    found = []
    for row in rows:
        match = PRODUCT.search(row["product"])
        if match is None:
            raise InputError(f"{row['product']!r} does not name program, observation, angle and detector")
        code = match[3]
        detector = f"{code[:4].upper()}LONG" if code.endswith("5") else code.upper()
        scale = SCALES["nis" if code == "nis" else "long" if is_long_wave(detector) else "short"]
        external = EXTERNAL.search(row["reference_catalog"])
        dx, dy, rotation, stretch, rms = (
            float(row[c]) for c in ("xshift_pix", "yshift_pix", "rot_deg", "scale", "rms_pix")
        )
        fit = absolute_fit(
            WcsRow(dx, dy, rotation, stretch, rms, int(row["n_matched"])),
            external[1].upper() if external else row["reference_catalog"].removesuffix(".radec"),
            "external" if external else "own",
            scale,
        )
        name = f"{match[1]}-{match[2]}-{code}"
        found.append(Logged(name, detector, row.get("notebook_version", ""), absolute=fit))
    return found


def joined(shifts: Sequence[Logged], wcs: Sequence[Logged]) -> list[Logged]:
    """Associations with what both logs of one run say of them, where it is plain which rows belong together."""
    joint = list(shifts)
    for one in wcs:
        same = [
            k for k, s in enumerate(joint)
            if s.relative and s.absolute is None and s.run == one.run and s.detector == one.detector
            and s.name.split("-")[:2] == one.name.split("-")[:2]
        ]  # fmt: skip
        if len(same) == 1:
            joint[same[0]] = replace(joint[same[0]], absolute=one.absolute)
        else:
            joint.append(one)
    return joint


def nearness(criterion: Criterion) -> float:
    """A number in units of its limit, above 1 where it fails."""
    if criterion.value is None or not criterion.limit:
        return float("inf") if criterion.passed is False else 0.0
    if criterion.at_least:
        return criterion.limit / criterion.value if criterion.value > 0 else float("inf")
    return criterion.value / criterion.limit


def judged(one: Logged, limits: Limits, gates: Sequence[str]) -> Judged:
    """The verdict of the gates on an association, or on one row of it, and the number that decided."""
    result = ReductionResult(
        one.name, "grizli", "", (), tuple(one.relative), one.absolute, None, None, None, 0, "",
        one.absolute.pixel_scale_mas if one.absolute else SCALES["long" if is_long_wave(one.detector) else "short"],
    )  # fmt: skip
    verdict = judge(result, one.detector, limits, "required", one.absolute is not None)
    criteria = [c for gate in gates for c in verdict.of(gate)]
    failed = [c for c in criteria if c.passed is False]
    if failed:
        return Judged(one.name, "refused", "; ".join(map(str, failed)), ", ".join(dict.fromkeys(map(short, failed))))
    near = [c for c in criteria if c.near]
    told = [c for c in criteria if c.passed is not None]
    decided = max(near or told, key=nearness, default=None)
    if decided is None:
        return Judged(one.name, "accepted", "judged by the others' fits to it")
    return Judged(one.name, "near" if near else "accepted", str(decided))


def short(criterion: Criterion) -> str:
    """A criterion's kind: ``N``, ``RMS``, ``error``, ``scatter``; of which gate."""
    gate = criterion.gate.split("_")[0]
    words = criterion.name.split()
    kind = next((w for w in words if w in ("N", "RMS", "error", "scatter")), criterion.note or criterion.name)
    return f"{gate} {kind}"


def judge_rows(associations: Sequence[Logged], limits: Limits) -> list[Judged]:
    """Every row of both logs alone, held against its own gate."""
    found = []
    for one in associations:
        anchor = RelativeFit("", "anchor")
        for fit in one.relative:
            # an anchor's own row proves nothing: it stands or falls with the fits to it
            others = one.relative if fit.role == "anchor" else [anchor, fit]
            row = judged(Logged(one.name, one.detector, relative=list(others)), limits, ["relative_alignment"])
            if fit.role == "anchor":
                row = Judged(fit.dataset, row.outcome, f"anchor, by the others' fits: {row.decided}", row.cause)
            found.append(Judged(fit.dataset, row.outcome, row.decided, row.cause))
        if one.absolute is not None:
            row = judged(Logged(one.name, one.detector, absolute=one.absolute), limits, ["absolute_alignment"])
            found.append(row)
    return found


def judge_associations(associations: Sequence[Logged], limits: Limits) -> list[Judged]:
    """Every association by all gates of which the logs have the numbers."""
    found = []
    for one in associations:
        gates = [
            g for g, there in (("relative_alignment", one.relative), ("absolute_alignment", one.absolute)) if there
        ]
        verdict = judged(one, limits, gates)
        missing = {"relative_alignment", "absolute_alignment"} - set(gates)
        unsaid = f" ({missing.pop().replace('_', ' ')} not logged)" if missing else ""
        found.append(Judged(verdict.name, verdict.outcome, verdict.decided + unsaid, verdict.cause))
    return found


def summary(rows: Sequence[Judged], associations: Sequence[Judged]) -> dict[str, object]:
    """Counts of outcomes and of causes."""

    def counts(some: Sequence[Judged]) -> dict[str, object]:
        causes = Counter(cause for j in some if j.cause for cause in j.cause.split(", "))
        outcomes = {outcome: sum(j.outcome == outcome for j in some) for outcome in ("accepted", "near", "refused")}
        return {**outcomes, "causes": dict(sorted(causes.items()))}

    return {"rows": len(rows), **counts(rows), "associations": {"number": len(associations), **counts(associations)}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shifts", type=Path, default=FOLDER / "shifts_log.csv", help="exposures against each other")
    parser.add_argument("--wcs", type=Path, default=FOLDER / "wcs_log.csv", help="associations against references")
    options = parser.parse_args(arguments)
    tables: dict[str, list[dict[str, str]]] = {}
    for path, columns in ((options.shifts, SHIFT_COLUMNS), (options.wcs, WCS_COLUMNS)):
        if path.is_file():
            tables[str(path)] = read_table(path, columns)
        else:
            print(f"skipped: {path} is absent")
    shifts, strange = readable(tables.get(str(options.shifts), []), "file", RATE_FILE)
    wcs, odd = readable(tables.get(str(options.wcs), []), "product", PRODUCT)
    for name in (*strange, *odd):
        print(f"not judged: {name!r} does not tell program, observation and a detector of NIRCam or NIRISS")
    associations = joined(read_shifts(shifts), read_wcs(wcs))
    limits = Limits()
    rows, whole = judge_rows(associations, limits), judge_associations(associations, limits)
    for title, some in (("rows", rows), ("associations", whole)):
        print(f"# {title}")
        for one in some:
            print(f"{one.outcome:<9} {one.name:<38} {one.decided}")
    print(json.dumps({**summary(rows, whole), "not_judged": len(strange) + len(odd)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
