"""Reduction engines: an association's exposures in, calibrated and aligned exposures, a catalogue and a story out."""
