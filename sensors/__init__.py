"""Sensors find new data and dead runs; they discover and report, and decide nothing else."""
