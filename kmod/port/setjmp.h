/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* luaconf.h says how the core jumps. */
