"""What the lab boots from: recipe, kernel, initramfs, and the cache around them."""

from __future__ import annotations

import fcntl
import gzip
import lzma
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import EnvironmentLacking, LabError, UsageError
from bridge.lab import image, initramfs, recipe
from bridge.lab.kernel import extract_vmlinux
from bridge.lab.progress import silent

ELF = b"\x7fELF" + bytes(range(200)) * 50


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "lunatik-bridge"
    path.mkdir()
    return path


def bzimage(payload: bytes) -> bytes:
    sectors, offset = 3, 64
    head = bytearray((sectors + 1) * 512 + offset)
    head[0x1F1] = sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + payload + b"what follows the payload"


def sized(compressed: bytes) -> bytes:
    return compressed + struct.pack("<I", len(ELF))


def by_zstd(data: bytes) -> bytes:
    return sized(subprocess.run(["zstd", "-c"], input=data, stdout=-1, check=True).stdout)


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        lambda data: sized(lzma.compress(data, check=lzma.CHECK_CRC32)),
        by_zstd,
        bytes,
    ],
    ids=["gzip", "xz", "zstd", "none"],
)
def test_the_kernel_comes_out_of_every_compression(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(compress(ELF)))
    assert extract_vmlinux(path) == ELF


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"text" * 400, "not a bzImage"),
        (bzimage(b"?" * 64), "unknown kernel compression"),
        (bzimage(gzip.compress(b"no kernel")), "not an ELF"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(LabError, match=complaint):
        extract_vmlinux(path)


def test_a_missing_decompressor_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(by_zstd(ELF)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentLacking, match="zstd") as caught:
        extract_vmlinux(path)
    assert caught.value.cure


def test_an_unknown_suite_is_a_usage_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        recipe.load("no-such-suite")
    assert "trixie" in str(caught.value.cure)


def test_boot_modules_come_after_what_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/a.ko.xz: kernel/b.ko.xz kernel/c-c.ko.xz\n"
        "kernel/b.ko.xz: kernel/c-c.ko.xz\n"
        "kernel/c-c.ko.xz:\n"
        "kernel/unwanted.ko.xz:\n"
    )
    found = initramfs.boot_modules(tmp_path, ["a", "c_c", "built_in"])
    assert [path.name for path in found] == ["c-c.ko.xz", "b.ko.xz", "a.ko.xz"]


def test_the_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    entries = [
        initramfs.Entry("bin", 0o040755),
        initramfs.Entry("bin/tool", 0o100755, b"#!/bin/sh\n"),
        initramfs.Entry("bin/alias", 0o120777, b"tool"),
    ]
    archive = b"".join(initramfs.archive(entries))
    subprocess.run(["busybox", "cpio", "-i"], input=archive, cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/alias").readlink() == Path("tool")


def test_a_build_without_its_programs_says_which(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentLacking, match="mmdebstrap"):
        image.ensure(progress=silent)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_a_failed_build_leaves_nothing_and_shows_why(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "mmdebstrap"
    fake.write_text("#!/bin/sh\necho 'E: no such mirror' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LabError, match="no such mirror"):
        image.ensure(progress=silent)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_what_a_killed_build_left_is_removed(cache: Path) -> None:
    partial = cache / ".building-trixie-0123"
    (partial / "sysroot").mkdir(parents=True)
    (partial / "sysroot").chmod(0o500)
    assert image.clean_leftovers() == [str(partial)]
    assert not partial.exists()
    assert image.clean_leftovers() == []


def test_a_build_under_way_is_no_leftover(cache: Path) -> None:
    partial = cache / ".building-trixie-0123"
    partial.mkdir()
    with (cache / f"{partial.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert image.clean_leftovers() == []
    assert partial.exists()


def test_two_builders_build_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the lock, and then finds what the first has built."""
    wanted = recipe.load()
    notes: list[str] = []

    def build_by_someone_else(line: str) -> None:
        notes.append(line)
        image.image_dir(wanted).mkdir()
        (image.image_dir(wanted) / "release").write_text("6.12-test\n")
        fcntl.flock(lock, fcntl.LOCK_UN)

    with (cache / f".building-{image.image_dir(wanted).name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = image.ensure(wanted, build_by_someone_else)
    assert built.release == "6.12-test"
    assert len(notes) == 1


def test_the_caches_place_follows_the_environment(cache: Path) -> None:
    assert image.cache_dir() == cache
