/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
#ifndef _PORT_STDLIB_H
#define _PORT_STDLIB_H

#include "luaconf.h"

#define abort()		lunatik_abort()
#define abs(x)		((x) < 0 ? -(x) : (x))
/* For luaL_newstate, which nothing calls. */
#define realloc(p, n)	((void)(p), (void)(n), (void *)0)
#define free(p)		((void)(p))
#define getenv(n)	((void)(n), (char *)0)
#define strerror(e)	((void)(e), "no files in the kernel")

#endif
