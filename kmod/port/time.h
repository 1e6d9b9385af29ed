/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* What the core takes from the clock is in luaconf.h. */
