"""The embedded archive: simulated NIRCam exposures that the unmodified jwst and grizli packages calibrate.

Put here the sky, the detectors, the reference files and the faults of the simulation. Keep out whatever reads or
reduces exposures: the pipeline must not know that its data are simulated. Heavy packages are imported inside the
functions that need them, so that a survey file with a ``simulation`` section loads in milliseconds.
"""
