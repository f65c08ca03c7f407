"""The outside world: archive, database, storage, reference catalogues, calibration files.

Put here whatever opens a file of the house, a database or a connection. Keep out science (``panoramic``) and Dagster's
assets (``panoramic_assets``).
"""
