/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The core mentions these for floats only, and no float value exists, see
 * luaconf.h. Integer stand-ins keep the compiler away from the FPU.
 */
#ifndef _PORT_MATH_H
#define _PORT_MATH_H

#define HUGE_VAL	LLONG_MAX
#define floor(x)	(x)
#define fabs(x)		((x) < 0 ? -(x) : (x))
#define ldexp(x, e)	((long long)(x) + 0 * (e))
#define frexp(x, e)	(*(e) = 0, (x))
#define fmod(a, b)	((a) + 0 * (b))
#define pow(a, b)	((a) + 0 * (b))

#endif
