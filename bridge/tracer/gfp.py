"""Names of the kernel's allocation flags.

The bits are those of include/linux/gfp_types.h; they agree in 6.1 and 6.12 except
0x200, which was __GFP_ATOMIC before 6.4 and is not shown as anything else.
"""

from __future__ import annotations

DIRECT_RECLAIM = 0x400
KSWAPD_RECLAIM = 0x800

_BITS = {
    0x1: "__GFP_DMA",
    0x2: "__GFP_HIGHMEM",
    0x4: "__GFP_DMA32",
    0x8: "__GFP_MOVABLE",
    0x10: "__GFP_RECLAIMABLE",
    0x20: "__GFP_HIGH",
    0x40: "__GFP_IO",
    0x80: "__GFP_FS",
    0x100: "__GFP_ZERO",
    0x200: "__GFP_ATOMIC",
    DIRECT_RECLAIM: "__GFP_DIRECT_RECLAIM",
    KSWAPD_RECLAIM: "__GFP_KSWAPD_RECLAIM",
    0x1000: "__GFP_WRITE",
    0x2000: "__GFP_NOWARN",
    0x4000: "__GFP_RETRY_MAYFAIL",
    0x8000: "__GFP_NOFAIL",
    0x10000: "__GFP_NORETRY",
    0x20000: "__GFP_MEMALLOC",
    0x40000: "__GFP_COMP",
    0x80000: "__GFP_NOMEMALLOC",
    0x100000: "__GFP_HARDWALL",
    0x200000: "__GFP_THISNODE",
    0x400000: "__GFP_ACCOUNT",
    0x800000: "__GFP_ZEROTAGS",
}

_COMPOUND = (
    ("GFP_HIGHUSER", 0xC00 | 0x40 | 0x80 | 0x100000 | 0x2),
    ("GFP_USER", 0xC00 | 0x40 | 0x80 | 0x100000),
    ("GFP_KERNEL_ACCOUNT", 0xC00 | 0x40 | 0x80 | 0x400000),
    ("GFP_KERNEL", 0xC00 | 0x40 | 0x80),
    ("GFP_NOFS", 0xC00 | 0x40),
    ("GFP_NOIO", 0xC00),
    ("GFP_ATOMIC", 0x20 | 0x800 | 0x200),
    ("GFP_ATOMIC", 0x20 | 0x800),
    ("GFP_NOWAIT", 0x800),
)


def may_sleep(flags: int) -> bool:
    """Tell whether an allocation with these flags may wait for memory to be reclaimed."""
    return bool(flags & DIRECT_RECLAIM)


def name(flags: int) -> str:
    """Return the flags as the kernel's sources write them, such as GFP_ATOMIC|__GFP_ZERO."""
    words = []
    for compound, bits in _COMPOUND:
        if flags & bits == bits:
            words.append(compound)
            flags &= ~bits
            break
    for bit, word in _BITS.items():
        if flags & bit:
            words.append(word)
            flags &= ~bit
    if flags or not words:
        words.append(f"{flags:#x}")
    return "|".join(words)
