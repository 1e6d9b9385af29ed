/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* For the file functions of lauxlib.c, which nothing calls. */
#define errno		lunatik_errno
static int lunatik_errno __attribute__((unused));
