/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* The decimal point is in luaconf.h; nothing else is asked for. */
