"""The library: from JWST NIRCam exposures to aligned, checked mosaics, in plain Python and astronomy.

Put here what an astronomer could call from a notebook. Keep out Dagster, databases and environment
variables: those live in ``panoramic_assets``, ``sensors`` and ``resources``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("panoramic-assets")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
