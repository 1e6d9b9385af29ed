/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* There are no floats: what the core asks about them is in luaconf.h. */
