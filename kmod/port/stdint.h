/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
#ifndef _PORT_STDINT_H
#define _PORT_STDINT_H

#ifndef _LINUX_TYPES_H
typedef unsigned long uintptr_t;
#endif
#define intptr_t	long
#define uintmax_t	unsigned long long
#define INTPTR_MAX	LONG_MAX

#endif
