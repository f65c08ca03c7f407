"""A mosaic's FITS files, written tile by tile beside their place, verified, and moved into it as the last act.

Put here how planes become files. Keep out what the pixels mean.

Rows are written with ``pwrite`` rather than through a memory map: on a full disk a map kills the process, a write
raises an error that can be told.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panoramic.errors import DiskFullError, MosaicError, ProductDamagedError, StorageError
from panoramic.mosaic.exposures import file_sha256
from panoramic.mosaic.grid import FieldGrid, Tile

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU, Header

PLANES = ("sci", "wht", "exp")
_BLOCK = 2880
_RESERVE_BYTES = 64 * 2**20
_STRUCTURE = frozenset(
    ("SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "EXTEND", "END", "BSCALE", "BZERO", "COMMENT", "HISTORY", "")
)


def work_folder(folder: Path, stem: str) -> Path:
    """Where a mosaic lies while it is made: hidden, beside its place, so that the last move is a rename."""
    return folder / f".{stem}.work"


@contextmanager
def working(folder: Path, stem: str) -> Iterator[Path]:
    """A fresh work folder that is gone afterwards, whatever happens; what a killed run left is removed first."""
    work = work_folder(folder, stem)
    folder.mkdir(parents=True, exist_ok=True)
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    try:
        yield work
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{folder}: no room left for {stem}; free some and run it again") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def need_room(folder: Path, n_bytes: int) -> None:
    """Raise `DiskFullError` unless ``n_bytes`` and a small reserve are free below ``folder``."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _RESERVE_BYTES:
        raise DiskFullError(
            f"{folder}: the mosaic needs {n_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; "
            "free some and run it again"
        )


class PlaneFile:
    """One plane of a mosaic as a FITS file that is filled by tiles; tiles never written are holes, and read as 0.

    Parameters
    ----------
    path : a new file in the work folder.
    header : all cards but the structural ones.
    grid, first, shape : the rectangle of whole tiles: its lower left tile, its shape in pixels (rows, columns).
    """

    def __init__(self, path: Path, header: Header, grid: FieldGrid, first: Tile, shape: tuple[int, int]) -> None:
        from astropy.io import fits

        self.path, self._first, self._shape, self._tile_px = path, first, shape, grid.tile_px
        full = fits.Header()
        full["SIMPLE"] = (True, "conforms to FITS standard")
        full["BITPIX"] = (-32, "float32")
        full["NAXIS"] = 2
        full["NAXIS1"], full["NAXIS2"] = shape[1], shape[0]
        full["EXTEND"] = True
        full.extend(header, unique=False, update=False)
        text = full.tostring().encode("ascii")
        self._start = len(text)
        data = shape[0] * shape[1] * 4
        self._end = self._start + data + (-data) % _BLOCK
        self._crc: dict[Tile, int] = {}
        with path.open("wb") as stream:
            stream.write(text)
            stream.truncate(self._end)
        self._descriptor = os.open(path, os.O_RDWR)

    def write(self, tile: Tile, pixels: np.ndarray) -> None:
        """Write the pixels of one tile, shape (tile_px, tile_px)."""
        rows = np.ascontiguousarray(pixels, dtype=">f4")
        self._crc[tile] = zlib.crc32(rows.data)
        for k, offset in enumerate(self._offsets(tile)):
            # a short write means a full disk; the next call says so
            view = memoryview(rows[k]).cast("B")
            while view.nbytes:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def finish(self, table: BinTableHDU) -> None:
        """Append the table of inputs, read every tile back, flush to the disk and close."""
        try:
            for tile, crc in self._crc.items():
                back = b"".join(os.pread(self._descriptor, self._tile_px * 4, offset) for offset in self._offsets(tile))
                if zlib.crc32(back) != crc:
                    raise ProductDamagedError(f"{self.path.name}: tile {tile} reads back unlike what was written")
            with self.path.open("ab") as stream:
                stream.write(_extension_bytes(table))
            os.fsync(self._descriptor)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _offsets(self, tile: Tile) -> range:
        """Byte offset of each row of a tile."""
        column, row = tile[0] - self._first[0], tile[1] - self._first[1]
        x, y = column * self._tile_px, row * self._tile_px
        if x < 0 or y < 0 or x >= self._shape[1] or y >= self._shape[0]:
            raise MosaicError(f"tile {tile} is outside the mosaic")
        stride = self._shape[1] * 4
        start = self._start + y * stride + x * 4
        return range(start, start + self._tile_px * stride, stride)


def _extension_bytes(table: BinTableHDU) -> bytes:
    """An extension as it stands in a file, padding included."""
    from astropy.io import fits

    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(buffer)
    return buffer.getvalue()[_BLOCK:]


def publish(work: Path, folder: Path, names: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Open each finished file once more, take its digest and size, then move all into ``folder``.

    An older science plane goes first and the new one comes last: without it a mosaic is not there, so a kill between
    the renames never leaves planes of two versions that look like one.
    """
    from astropy.io import fits

    digests: dict[str, tuple[str, int]] = {}
    for plane, name in names.items():
        path = work / name
        try:
            with fits.open(path, memmap=True) as hdus:
                hdus.verify("exception")
                if len(hdus) != 2 or path.stat().st_size % _BLOCK:
                    raise StorageError(f"{name}: is not whole after writing")
        except (OSError, fits.VerifyError) as error:
            raise StorageError(f"{name}: can't be read after writing: {error}") from error
        digests[plane] = file_sha256(path), path.stat().st_size
    (folder / names["sci"]).unlink(missing_ok=True)
    for plane in reversed(PLANES):
        os.replace(work / names[plane], folder / names[plane])
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digests


def add_provenance(header: Header, provenance: Mapping[str, str | int | float]) -> None:
    """Add what made the product; long names become HIERARCH cards, long texts are continued.

    Raises
    ------
    MosaicError
        A name would overwrite what the mosaic itself says.
    """
    for name, value in provenance.items():
        key = name.upper()
        if key in _STRUCTURE or key in header:
            raise MosaicError(f"provenance may not set the keyword {key}")
        plain = len(key) <= 8 and all(c.isalnum() or c in "-_" for c in key)
        header[key if plain else f"HIERARCH {key}"] = value
