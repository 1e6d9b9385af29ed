/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* Linux 6.12 moved the header for unaligned access. */
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/unaligned.h>
#else
#include <asm/unaligned.h>
#endif
