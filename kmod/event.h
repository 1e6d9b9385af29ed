/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * What happens to runtimes, told to whoever has joined the multicast group "events".
 *
 * An event may be posted in any context, also with an instance's lock held: it is
 * put in line, and a work item sends what is in line, in this order. Without a
 * listener posting costs a look.
 */
#ifndef _LUNATIK_EVENT_H
#define _LUNATIK_EVENT_H

#include <linux/types.h>

#include "uapi/lunatik.h"

struct lunatik_runtime;

/**
 * struct lunatik_event_limit - bounds the failures that a runtime tells of
 * @begin: of the running second, in jiffies
 * @told: in that second
 * @suppressed: since the one that was told last
 */
struct lunatik_event_limit {
	unsigned long begin;
	u32 told;
	u32 suppressed;
};

void lunatik_event_created(const struct lunatik_runtime *rt);
void lunatik_event_armed(const struct lunatik_runtime *rt, u32 hooks);
void lunatik_event_resumed(const struct lunatik_runtime *rt);
void lunatik_event_yielded(const struct lunatik_runtime *rt,
			   enum lunatik_outcome outcome);
void lunatik_event_replaced(const struct lunatik_runtime *rt);
void lunatik_event_failed(struct lunatik_runtime *rt, u32 hook,
			  const char *message, bool exceeded);
void lunatik_event_broken(const struct lunatik_runtime *rt, u32 hook);
void lunatik_event_stopped(struct lunatik_runtime *rt,
			   enum lunatik_stop_reason reason);
void lunatik_event_flush(void);

#endif /* _LUNATIK_EVENT_H */
