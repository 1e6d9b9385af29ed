/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
#ifndef _PORT_SIGNAL_H
#define _PORT_SIGNAL_H

typedef int sig_atomic_t;

#endif
