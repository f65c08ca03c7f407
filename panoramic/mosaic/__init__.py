"""Mosaics: calibrated exposures of a field in, tiles on the field's own grid out, with what the checks measure on them.

Put here what works on pixels and catalogues of a whole field. Keep out the reduction of an exposure
(``panoramic.reduction``) and any verdict on a field (the asset checks).
"""
