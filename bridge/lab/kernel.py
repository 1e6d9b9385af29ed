"""The uncompressed kernel inside a bzImage.

A guest that starts from an uncompressed ELF through the PVH entry skips the
decompressor, which under emulation costs more than the rest of the boot.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

from bridge.errors import EnvironmentLacking, LabError

_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD = 0x248
_ELF = b"\x7fELF"


def extract_vmlinux(bzimage: Path) -> bytes:
    """Return the ELF kernel inside ``bzimage``.

    Raises LabError where the file is no bzImage or holds no ELF, and
    EnvironmentLacking where its compression needs a program that is missing.
    Source: Documentation/arch/x86/boot.rst, fields setup_sects, payload_offset.
    """
    image = bzimage.read_bytes()
    if image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise LabError(f"{bzimage} is not a bzImage")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (image[_SETUP_SECTORS] + 1) * 512 + offset
    kernel = _decompress(image[start : start + length])
    if not kernel.startswith(_ELF):
        raise LabError(f"the payload of {bzimage} is not an ELF kernel")
    return kernel


def _decompress(payload: bytes) -> bytes:
    # The build appends the uncompressed size, four bytes, to formats that do not
    # carry it themselves; a decompressor would take it for trailing garbage.
    if payload.startswith(b"\x1f\x8b"):
        return gzip.decompress(payload)
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"BZh"):
        return bz2.BZ2Decompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _by_program("zstd", payload[:-4])
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return _by_program("lz4", payload[:-4])
    if payload.startswith(_ELF):
        return payload
    raise LabError(f"unknown kernel compression (starts with {payload[:6].hex()})")


def _by_program(program: str, payload: bytes) -> bytes:
    if shutil.which(program) is None:
        raise EnvironmentLacking(
            f"the guest's kernel is compressed with {program}, which is not installed",
            cure=f"install the package {program} (make setup does)",
        )
    done = subprocess.run([program, "-dc"], input=payload, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{program} could not decompress the kernel: {done.stderr.decode()}")
    return done.stdout
