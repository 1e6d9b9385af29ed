"""The sanitizer kernel's build: what names it, how it fails, what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge.errors import LabError
from bridge.lab import image, recipe, sanitizer
from bridge.lab.image import Image
from bridge.lab.progress import silent

RELEASE = "6.12.1+deb13-amd64"
STATUS = """\
Package: gcc
Status: install ok installed
Version: {gcc}

Package: linux-image-{release}
Status: install ok installed
Version: {linux}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "lunatik-bridge"
    path.mkdir()
    return path


def _image(gcc: str = "4:14.2.0-1", linux: str = "6.12.1-1") -> Image:
    """Make what is looked at of the default image."""
    built = Image(image.image_dir(recipe.load()), RELEASE)
    status = built.sysroot / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text(STATUS.format(gcc=gcc, linux=linux, release=RELEASE))
    (built.directory / "release").write_text(RELEASE)
    return built


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """A build directory whose root is the image's."""
    sysroot = image.ensure(progress=silent).sysroot
    (tmp_path / "sysroot").symlink_to(sysroot)
    return tmp_path


@pytest.mark.usefixtures("cache")
def test_another_config_source_or_compiler_is_another_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = {sanitizer._directory(_image()).name}
    assert sanitizer._directory(_image()).name in names
    names.add(sanitizer._directory(_image(gcc="4:15.1.0-1")).name)
    names.add(sanitizer._directory(_image(linux="6.12.2-1")).name)
    config = tmp_path / "other.config"
    config.write_text("CONFIG_KASAN=y\n")
    monkeypatch.setattr(sanitizer, "CONFIG", config)
    names.add(sanitizer._directory(_image()).name)
    assert len(names) == 4
    assert all(name.startswith("kernel-sanitizer-") for name in names)


@pytest.mark.usefixtures("cache")
def test_the_source_is_that_of_the_images_kernel() -> None:
    plan = sanitizer._recipe(_image(linux="6.12.7-3"))
    assert "linux-source-6.12=6.12.7-3" in plan.packages


def test_what_a_killed_build_left_is_no_kernel(cache: Path) -> None:
    target = sanitizer._directory(_image())
    left = target.with_name(f".building-{target.name}")
    left.mkdir()
    (left / "release").write_text("6.12.1-sanitizer")
    assert sanitizer.find() is None
    assert image.clean_leftovers() == [str(left)]
    target.mkdir()
    (target / "release").write_text("6.12.1-sanitizer\n")
    assert sanitizer.find() == sanitizer.SanitizerKernel(target, "6.12.1-sanitizer")
    assert sanitizer.ensure(silent).release == "6.12.1-sanitizer"
    assert str(target) in image.remove_all()
    assert not list(cache.glob("kernel-*"))


def test_a_failed_build_leaves_nothing_and_shows_why(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "mmdebstrap"
    fake.write_text("#!/bin/sh\necho \"E: Version '6.12.1-1' was not found\" >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    _image()
    with pytest.raises(LabError, match=r"6\.12\.1-1' was not found"):
        sanitizer.ensure(silent)
    assert not [*cache.glob(".building-kernel*/"), *cache.glob("kernel-*")]


def test_settings_that_the_kernel_does_not_take_are_named() -> None:
    wanted = "# A comment.\nCONFIG_KASAN=y\nCONFIG_NO_SUCH=y\n# CONFIG_VT is not set\n"
    assert sanitizer.not_taken(wanted, "CONFIG_KASAN=y\n# CONFIG_VT is not set\n") == [
        "CONFIG_NO_SUCH=y"
    ]


@pytest.mark.parametrize("text", ["A 1\n", "A 6\nA 6\n", ""])
def test_a_source_that_is_not_what_is_to_be_changed_is_refused(tmp_path: Path, text) -> None:
    (tmp_path / "a.h").write_text(text)
    with pytest.raises(LabError, match=r"a\.h does not say 'A 6' once"):
        sanitizer._change(tmp_path, "a.h", "A 6\n", "A 2\n")
    assert (tmp_path / "a.h").read_text() == text


def test_one_number_of_the_source_is_changed(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("A 6\nB 6\n")
    sanitizer._change(tmp_path, "a.h", "A 6\n", "A 2\n")
    assert (tmp_path / "a.h").read_text() == "A 2\nB 6\n"


def test_a_command_that_fails_shows_the_end_of_its_output(partial: Path) -> None:
    with pytest.raises(LabError, match=r"status 3 in the build root:\n.*a\.c: error: no"):
        sanitizer._run(partial, "sh", "-c", "echo 'a.c: error: no' >&2; exit 3")


def test_the_progress_is_told(partial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "_NEWS_S", 0.2)
    news: list[str] = []
    script = "echo '  CC      a.o'; echo '  CC      b.o'; sleep 1"
    sanitizer._run(partial, "sh", "-c", script, progress=news.append)
    assert "2 files compiled" in news[-1]


def test_the_build_root_has_a_real_null_device(partial: Path) -> None:
    sanitizer._run(partial, "sh", "-c", 'echo x >/dev/null; test -z "$(cat /dev/null)"')


def test_a_build_ends_with_its_tool(partial: Path) -> None:
    script = f"""
from pathlib import Path
from bridge.lab import sanitizer
sanitizer._run(Path({str(partial)!r}), "sleep", "1234.5")
"""
    builder = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert _appears("sleep\x001234.5\x00")
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    assert _disappears("sleep\x001234.5\x00")


def _running(command: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_text() == command:
                return True
        except OSError:
            pass  # it has just ended
    return False


def _appears(command: str) -> bool:
    return _within_seconds(lambda: _running(command))


def _disappears(command: str) -> bool:
    return _within_seconds(lambda: not _running(command))


def _within_seconds(condition, timeout_s: float = 20.0) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
