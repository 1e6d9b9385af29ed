/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
#if !defined(_PORT_STDDEF_H) && !defined(_LINUX_STDDEF_H)
#define _PORT_STDDEF_H

typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
#undef NULL
#define NULL		((void *)0)
#undef offsetof
#define offsetof(t, m)	__builtin_offsetof(t, m)

#endif
