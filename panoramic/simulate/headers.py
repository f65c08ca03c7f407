"""Headers of a count rate file and its row in the archive's metadata.

Put here keywords and columns. Keep out pixels. Names and formats are those of the archive's NIRCam files of 2025.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np

from panoramic.simulate.geometry import (
    ARCSEC,
    PRD_VERSION,
    aperture,
    pointing_aperture,
    rotate,
    s_region,
    sky_of,
    unit_vectors,
)
from panoramic.simulate.instrument import DETECTORS, FRAME_TIME, READOUTS, exposure_times
from panoramic.simulate.plan import PlannedExposure, boresight, wheel
from panoramic.simulate.program import Simulation

CONTEXT = "jwst_9001.pmap"
CAL_VERSION = "1.16.1"
CRDS_VERSION = "12.1.11"
SDP_VERSION = "2025_1a"
POINTING_QUALITY = "CALCULATED_TRACK_TR_202111"
TITLE = "Embedded archive: simulated pure-parallel NIRCam imaging"
INVESTIGATOR = "Simulation"


def mjd(moment: datetime) -> float:
    """Modified Julian date of a UTC date."""
    return (moment - datetime(1858, 11, 17, tzinfo=moment.tzinfo)).total_seconds() / 86400.0


def processed_at(simulation: Simulation, plan: PlannedExposure) -> datetime:
    """When the archive processed an exposure: a fixed time after it, so that the same archive has the same bytes."""
    # Fields that start together are processed one after the other, so that no two files have the same number.
    return (plan.start + timedelta(hours=14, minutes=plan.field % len(simulation.fields))).replace(microsecond=0)


def _numbers(simulation: Simulation, plan: PlannedExposure) -> dict[str, str]:
    field = simulation.fields[plan.field]
    program, observation, visit = f"{simulation.program:05d}", f"{field.observation:03d}", f"{field.visit:03d}"
    group = plan.dataset.split("_")[1]
    return {
        "program": program,
        "observation": observation,
        "visit": visit,
        "visit_id": program + observation + visit,
        "visit_group": group[:2],
        "sequence": group[2],
        "activity": group[3:],
        "obs_id": f"V06001001001P{program}{observation}{group}",
    }


def rate_meta(simulation: Simulation, plan: PlannedExposure) -> dict[str, Any]:
    """Metadata of an exposure: path in jwst's ``ImageModel.meta``, value."""
    detector, ap = DETECTORS[plan.detector], aperture(plan.detector)
    readout = simulation.readout
    pattern = READOUTS[readout.readpatt]
    times = exposure_times(readout.readpatt, readout.ngroups, readout.nints)
    number = _numbers(simulation, plan)
    begin, end = plan.start, plan.start + timedelta(seconds=times.duration)
    middle = plan.start + timedelta(seconds=times.duration / 2)
    field = simulation.fields[plan.field]
    filter_wheel, pupil_wheel = wheel(plan.band)
    guide_ra, guide_dec, guide_roll = _guide_star(plan)
    meta: dict[str, Any] = {
        "telescope": "JWST",
        "filename": plan.file_name,
        "origin": "STSCI",
        "time_sys": "UTC",
        "time_unit": "s",
        "data_processing_software_version": SDP_VERSION,
        "prd_software_version": PRD_VERSION,
        "oss_software_version": "10.3",
        "guide_star_catalog_version": "GSC31",
        "calibration_software_version": CAL_VERSION,
        "calibration_software_revision": "RELEASE",
        "hga_move": False,
        "compress": False,
        "program.title": TITLE,
        "program.pi_name": INVESTIGATOR,
        "program.category": "GO",
        "program.science_category": "Galaxies",
        "observation.date": f"{begin:%Y-%m-%d}",
        "observation.time": begin.strftime("%H:%M:%S.%f")[:-3],
        "observation.date_beg": begin.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3],
        "observation.date_end": end.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3],
        "observation.obs_id": number["obs_id"],
        "observation.visit_id": number["visit_id"],
        "observation.program_number": number["program"],
        "observation.observation_number": number["observation"],
        "observation.visit_number": number["visit"],
        "observation.visit_group": number["visit_group"],
        "observation.sequence_id": number["sequence"],
        "observation.activity_id": number["activity"],
        "observation.exposure_number": str(plan.dither),
        "observation.bkgdtarg": False,
        "observation.template": "NIRCam Imaging",
        "visit.engineering_quality": "OK",
        "visit.engdb_pointing_quality": POINTING_QUALITY,
        "visit.type": "PARALLEL_PURE",
        "visit.total_exposures": simulation.dithers * len(simulation.filters),
        "visit.internal_target": False,
        "visit.too_visit": False,
        "visit.tsovisit": False,
        "visit.crowded_field": False,
        "target.proposer_name": "UNKNOWN",
        "target.type": "UNKNOWN",
        "target.ra": field.ra,
        "target.dec": field.dec,
        "target.source_type_apt": "UNKNOWN",
        "instrument.name": "NIRCAM",
        "instrument.detector": detector.name,
        "instrument.module": detector.module,
        "instrument.channel": detector.channel,
        "instrument.filter": filter_wheel,
        "instrument.pupil": pupil_wheel,
        "instrument.pupil_imaging_lens": False,
        "exposure.count": simulation.dithers,
        "exposure.prime_parallel": "PARALLEL_PURE",
        "exposure.type": "NRC_IMAGE",
        "exposure.start_time": mjd(begin),
        "exposure.mid_time": mjd(middle),
        "exposure.end_time": mjd(end),
        "exposure.start_time_mjd": mjd(begin),
        "exposure.mid_time_mjd": mjd(middle),
        "exposure.end_time_mjd": mjd(end),
        "exposure.readpatt": readout.readpatt,
        "exposure.noutputs": 4,
        "exposure.nints": readout.nints,
        "exposure.ngroups": readout.ngroups,
        "exposure.nframes": pattern.nframes,
        "exposure.groupgap": pattern.groupgap,
        "exposure.frame_divisor": pattern.nframes,
        "exposure.nsamples": 1,
        "exposure.sample_time": 10.0,
        "exposure.frame_time": FRAME_TIME,
        "exposure.group_time": times.group,
        "exposure.integration_time": times.integration,
        "exposure.exposure_time": times.exposure,
        "exposure.effective_exposure_time": times.exposure,
        "exposure.measurement_time": times.measurement,
        "exposure.duration": times.duration,
        "exposure.elapsed_exposure_time": times.duration,
        "exposure.drop_frames1": 0,
        "exposure.drop_frames3": 0,
        "exposure.nresets_at_start": 0,
        "exposure.nresets_between_ints": 1,
        "exposure.zero_frame": True,
        "exposure.data_problem": False,
        "exposure.sca_num": detector.sca,
        "exposure.datamode": pattern.datamode,
        "exposure.clock_adjust_rate": 0.0,
        "exposure.gain_factor": 2.0,
        "subarray.name": "FULL",
        "subarray.xstart": 1,
        "subarray.ystart": 1,
        "subarray.xsize": 2048,
        "subarray.ysize": 2048,
        "subarray.fastaxis": detector.fastaxis,
        "subarray.slowaxis": detector.slowaxis,
        "dither.primary_type": "NONE",
        "dither.position_number": plan.dither,
        "dither.total_points": simulation.dithers,
        "dither.x_offset": plan.dither_offset_arcsec[0],
        "dither.y_offset": plan.dither_offset_arcsec[1],
        "aperture.name": detector.aperture,
        "aperture.pps_name": pointing_aperture(tuple(sorted(set(simulation.modules))))[0],
        "aperture.position_angle": (plan.reported.roll_ref + ap.v3_idl_yangle) % 360.0,
        "guidestar.gs_order": 1,
        "guidestar.gs_id": "N0SIM00001",
        "guidestar.gs_ra": guide_ra,
        "guidestar.gs_dec": guide_dec,
        "guidestar.gs_v3_pa_science": guide_roll,
        "guidestar.gs_pcs_mode": "FINEGUIDE",
        "ref_file.crds.sw_version": CRDS_VERSION,
        "ref_file.crds.context_used": CONTEXT,
        "velocity_aberration.scale_factor": plan.reported.va_scale,
        "velocity_aberration.va_ra_ref": plan.reported.ra_ref,
        "velocity_aberration.va_dec_ref": plan.reported.dec_ref,
        "coordinates.reference_frame": "ICRS",
        "bunit_data": "DN/s",
        "bunit_err": "DN/s",
    }
    for step in (
        "dq_init", "saturation", "superbias", "refpix", "linearity", "dark_sub", "jump", "ramp_fit", "gain_scale",
    ):  # fmt: skip
        meta[f"cal_step.{step}"] = "COMPLETE"
    meta["cal_step.gain_scale"] = "SKIPPED"
    meta["cal_step.ipc"] = "SKIPPED"
    return meta | _wcs_meta(plan)


def _wcs_meta(plan: PlannedExposure) -> dict[str, Any]:
    """Pointing keywords: what ``set_telescope_pointing`` writes, from the reported attitude."""
    ap, reported = aperture(plan.detector), plan.reported
    angle = np.radians(reported.roll_ref - ap.v3_idl_yangle)
    ra_v1, dec_v1, pa_v3 = boresight(plan)
    return {
        "pointing.ra_v1": ra_v1,
        "pointing.dec_v1": dec_v1,
        "pointing.pa_v3": pa_v3,
        "wcsinfo.wcsaxes": 2,
        "wcsinfo.crpix1": ap.x_ref,
        "wcsinfo.crpix2": ap.y_ref,
        "wcsinfo.crval1": reported.ra_ref,
        "wcsinfo.crval2": reported.dec_ref,
        "wcsinfo.ctype1": "RA---TAN",
        "wcsinfo.ctype2": "DEC--TAN",
        "wcsinfo.cunit1": "deg",
        "wcsinfo.cunit2": "deg",
        "wcsinfo.cdelt1": ap.x_scale / 3600,
        "wcsinfo.cdelt2": ap.y_scale / 3600,
        "wcsinfo.pc1_1": float(ap.parity * np.cos(angle)),
        "wcsinfo.pc1_2": float(np.sin(angle)),
        "wcsinfo.pc2_1": float(-ap.parity * np.sin(angle)),
        "wcsinfo.pc2_2": float(np.cos(angle)),
        "wcsinfo.v2_ref": ap.v2_ref,
        "wcsinfo.v3_ref": ap.v3_ref,
        "wcsinfo.vparity": ap.parity,
        "wcsinfo.v3yangle": ap.v3_idl_yangle,
        "wcsinfo.ra_ref": reported.ra_ref,
        "wcsinfo.dec_ref": reported.dec_ref,
        "wcsinfo.roll_ref": reported.roll_ref,
        "wcsinfo.siaf_xref_sci": ap.x_ref,
        "wcsinfo.siaf_yref_sci": ap.y_ref,
        # The speed behind VA_SCALE, as far as it lies along the line of sight.
        "wcsinfo.velosys": round((1 - reported.va_scale) * 299792458.0, 2),
        "wcsinfo.s_region": s_region(ap.footprint(reported)),
    }


def _guide_star(plan: PlannedExposure) -> tuple[float, float, float]:
    """A guide star in the middle of FGS1, under the reported attitude: RA, Dec, V3 position angle, *degrees*."""
    matrix = np.array(plan.attitude).reshape(3, 3)
    ra, dec = sky_of(rotate(matrix, unit_vectors(207.0 * ARCSEC, -697.0 * ARCSEC)))
    return float(ra), float(dec), boresight(plan)[2]


def metadata_row(simulation: Simulation, plan: PlannedExposure, size: int, md5: str) -> dict[str, Any]:
    """The archive's row of an exposure's count rate file, with its column names and value formats."""
    meta = rate_meta(simulation, plan)
    number = _numbers(simulation, plan)
    processed = mjd(processed_at(simulation, plan))
    program = str(simulation.program)
    region, (filter_wheel, pupil_wheel) = meta["wcsinfo.s_region"], wheel(plan.band)
    # Ascending with ingestion and the same whenever the archive is written again.
    file_id = 200_000_000 + round((processed - 59000) * 20000) + list(DETECTORS).index(plan.detector)
    uri = f"mast:JWST/product/{plan.file_name}"
    return {
        "ArchiveFileID": file_id,
        "filename": plan.file_name,
        "fileSetName": plan.dataset.rsplit("_", 1)[0],
        "productLevel": "2a",
        "act_id": number["activity"],
        "apername": meta["aperture.name"],
        "category": "GO",
        "datamode": meta["exposure.datamode"],
        "date_obs_mjd": meta["exposure.start_time"],
        "date_beg_mjd": meta["exposure.start_time"],
        "date_end_mjd": meta["exposure.end_time"],
        "detector": meta["instrument.detector"],
        "duration": meta["exposure.duration"],
        "effexptm": meta["exposure.exposure_time"],
        "effinttm": meta["exposure.integration_time"],
        "eng_qual": "OK",
        "exp_type": "NRC_IMAGE",
        "expcount": meta["exposure.count"],
        "expstart": meta["exposure.start_time"],
        "expmid": meta["exposure.mid_time"],
        "expend": meta["exposure.end_time"],
        "exposure": plan.dither,
        "expripar": "PARALLEL_PURE",
        "fastaxis": meta["subarray.fastaxis"],
        "slowaxis": meta["subarray.slowaxis"],
        "frmdivsr": meta["exposure.frame_divisor"],
        "groupgap": meta["exposure.groupgap"],
        "gs_v3_pa": meta["guidestar.gs_v3_pa_science"],
        "instrume": "NIRCAM",
        "nexposur": meta["visit.total_exposures"],
        "nframes": meta["exposure.nframes"],
        "ngroups": meta["exposure.ngroups"],
        "nints": meta["exposure.nints"],
        "numdthpt": simulation.dithers,
        "obs_id": number["obs_id"],
        "observtn": int(number["observation"]),
        "origin": "STSCI",
        "patt_num": plan.dither,
        "patttype": "NONE",
        "pcs_mode": "FINEGUIDE",
        "pi_name": INVESTIGATOR,
        "pps_aper": meta["aperture.pps_name"],
        "program": program,
        "readpatt": meta["exposure.readpatt"],
        "sca_num": meta["exposure.sca_num"],
        "sdp_ver": SDP_VERSION,
        "seq_id": int(number["sequence"]),
        "subarray": "FULL",
        "subsize1": 2048,
        "subsize2": 2048,
        "substrt1": 1,
        "substrt2": 1,
        "targ_ra": meta["target.ra"],
        "targ_dec": meta["target.dec"],
        "targname": "",
        "targprop": "UNKNOWN",
        "targtype": "UNKNOWN",
        "telescop": "JWST",
        "template": meta["observation.template"],
        "tframe": FRAME_TIME,
        "tgroup": meta["exposure.group_time"],
        "title": TITLE,
        "tmeasure": meta["exposure.measurement_time"],
        "visit": int(number["visit"]),
        "visit_id": number["visit_id"],
        "visitgrp": number["visit_group"],
        "visitype": "PARALLEL_PURE",
        "xoffset": meta["dither.x_offset"],
        "yoffset": meta["dither.y_offset"],
        "datamodl": "ImageModel",
        "engqlptg": POINTING_QUALITY,
        "s_region": region,
        "cal_ver": CAL_VERSION,
        "cal_vcs": "RELEASE",
        "crds_ctx": CONTEXT,
        "crds_ver": CRDS_VERSION,
        "fileSize": size,
        "checksum": md5,
        "ingestStartDate_mjd": processed,
        "ingestCompletionDate_mjd": processed + 1 / 1440,
        "FileTypeID": 67,
        "publicReleaseDate_mjd": processed,
        "isRestricted": False,
        "isItar": False,
        "isStale": False,
        "channel": meta["instrument.channel"],
        "module": meta["instrument.module"],
        "pupil": pupil_wheel,
        "pilin": "f",
        "ra": plan.reported.ra_ref,
        "dec": plan.reported.dec_ref,
        "filter": filter_wheel,
        "dataURI": uri,
    }
