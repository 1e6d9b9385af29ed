/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/* Character classes of ASCII, whatever the byte's value. */
#ifndef _PORT_CTYPE_H
#define _PORT_CTYPE_H

#define isdigit(c)	((unsigned int)(c) - '0' < 10)
#define isupper(c)	((unsigned int)(c) - 'A' < 26)
#define islower(c)	((unsigned int)(c) - 'a' < 26)
#define isalpha(c)	(((unsigned int)(c) | 32) - 'a' < 26)
#define isalnum(c)	(isdigit(c) || isalpha(c))
#define isxdigit(c)	(isdigit(c) || ((unsigned int)(c) | 32) - 'a' < 6)
#define isspace(c)	((c) == ' ' || (unsigned int)(c) - '\t' < 5)
#define iscntrl(c)	((unsigned int)(c) < 32 || (c) == 127)
#define isgraph(c)	((unsigned int)(c) - 33 < 94)
#define isprint(c)	((unsigned int)(c) - 32 < 95)
#define ispunct(c)	(isgraph(c) && !isalnum(c))
#define tolower(c)	(isupper(c) ? (c) + 32 : (c))
#define toupper(c)	(islower(c) ? (c) - 32 : (c))

#endif
