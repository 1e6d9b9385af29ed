/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * What became of the packets at a slot: counted in plain words, under the lock of
 * the instance in charge, and added up by whoever reads them.
 */
#ifndef _LUNATIK_STATISTICS_H
#define _LUNATIK_STATISTICS_H

#include <linux/jump_label.h>
#include <linux/log2.h>
#include <linux/minmax.h>
#include <linux/netfilter.h>
#include <linux/types.h>

#include "uapi/lunatik.h"

struct netlink_callback;
struct sk_buff;

/* NF_DROP, NF_ACCEPT, NF_STOLEN and NF_QUEUE, without a queue's number. */
#define LUNATIK_VERDICTS	4

/**
 * struct lunatik_statistics - counters, all of them u64
 * @verdict: packets by verdict; together all packets
 * @errors: callbacks that failed, so that the failure rule gave the verdict
 * @budget_hits: those of them that were ended for running too long
 * @reentered: packets that came while their CPU was in the instance
 * @time_ns: time in callbacks, while it is taken
 * @histogram: callbacks by the binary logarithm of their time in ns, while it is taken
 */
struct lunatik_statistics {
	u64 verdict[LUNATIK_VERDICTS];
	u64 errors;
	u64 budget_hits;
	u64 reentered;
	u64 time_ns;
	u64 histogram[LUNATIK_BUCKETS];
};

DECLARE_STATIC_KEY_FALSE(lunatik_timing);

/* Whether the time of callbacks is to be taken. Any context. */
static inline bool lunatik_is_timing(void)
{
	return static_branch_unlikely(&lunatik_timing);
}

static inline void
lunatik_statistics_verdict(struct lunatik_statistics *statistics,
			   unsigned int verdict)
{
	statistics->verdict[verdict % LUNATIK_VERDICTS]++;
}

static inline void
lunatik_statistics_time(struct lunatik_statistics *statistics, u64 ns)
{
	statistics->time_ns += ns;
	statistics->histogram[min(ilog2(ns | 1), LUNATIK_BUCKETS - 1)]++;
}

void lunatik_statistics_add(struct lunatik_statistics *sum,
			    const struct lunatik_statistics *part);
u64 lunatik_statistics_packets(const struct lunatik_statistics *statistics);
int lunatik_statistics_dump(struct sk_buff *msg, struct netlink_callback *cb);

#endif /* _LUNATIK_STATISTICS_H */
