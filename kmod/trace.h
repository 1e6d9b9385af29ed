/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Tracepoints lunatik:*. Their fields are values, never addresses, and the id of
 * a runtime is the number user space knows it by. Strings are fixed arrays, so
 * that a bcc program can copy a whole record.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM lunatik

#if !defined(_LUNATIK_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _LUNATIK_TRACE_H

#include <linux/preempt.h>
#include <linux/string.h>
#include <linux/tracepoint.h>

#define LUNATIK_TRACE_NAME	32
#define LUNATIK_TRACE_MESSAGE	128

#include "uapi/lunatik.h"

/* A runtime got its number; its body has not run yet. */
TRACE_EVENT(runtime_create,
	TP_PROTO(u32 id, const char *name, bool sleep, u32 netns),
	TP_ARGS(id, name, sleep, netns),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, netns)
		__field(u32, sleep)
		__array(char, name, LUNATIK_TRACE_NAME)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->netns = netns;
		__entry->sleep = sleep;
		strscpy(__entry->name, name, LUNATIK_TRACE_NAME);
	),
	TP_printk("id=%u name=%s sleep=%u netns=%u", __entry->id,
		  __entry->name, __entry->sleep, __entry->netns)
);

/* The body returned or yielded, and the hooks come into force. */
TRACE_EVENT(runtime_arm,
	TP_PROTO(u32 id, u32 hooks),
	TP_ARGS(id, hooks),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, hooks)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->hooks = hooks;
	),
	TP_printk("id=%u hooks=%u", __entry->id, __entry->hooks)
);

/*
 * Somebody resumes the body in a Lua state: that of which CPU, where there are
 * several, else 0. Its runtime_yield follows on the same task.
 */
TRACE_EVENT(runtime_resume,
	TP_PROTO(u32 id, u32 state),
	TP_ARGS(id, state),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, state)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->state = state;
	),
	TP_printk("id=%u state=%u", __entry->id, __entry->state)
);

/* The resumed body gave control back; outcome is an enum lunatik_outcome. */
TRACE_EVENT(runtime_yield,
	TP_PROTO(u32 id, u32 outcome, u32 state),
	TP_ARGS(id, outcome, state),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, outcome)
		__field(u32, state)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->outcome = outcome;
		__entry->state = state;
	),
	TP_printk("id=%u outcome=%u state=%u", __entry->id, __entry->outcome,
		  __entry->state)
);

/* The state is closed. bytes is what it still held: anything but 0 is a leak. */
TRACE_EVENT(runtime_stop,
	TP_PROTO(u32 id, u32 reason, u64 bytes),
	TP_ARGS(id, reason, bytes),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, reason)
		__field(u64, bytes)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->reason = reason;
		__entry->bytes = bytes;
	),
	TP_printk("id=%u reason=%u bytes=%llu", __entry->id,
		  __entry->reason, __entry->bytes)
);

/* New source has taken over: generation counts the scripts the runtime has run. */
TRACE_EVENT(runtime_replace,
	TP_PROTO(u32 id, u32 generation, u32 hooks),
	TP_ARGS(id, generation, hooks),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, generation)
		__field(u32, hooks)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->generation = generation;
		__entry->hooks = hooks;
	),
	TP_printk("id=%u generation=%u hooks=%u", __entry->id,
		  __entry->generation, __entry->hooks)
);

/* Lua is entered for a packet; preempt is preempt_count() in the callback. */
TRACE_EVENT(hook_enter,
	TP_PROTO(u32 id, u32 hook, u32 pf, u32 hooknum, u32 len, u32 preempt),
	TP_ARGS(id, hook, pf, hooknum, len, preempt),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, hook)
		__field(u32, pf)
		__field(u32, hooknum)
		__field(u32, len)
		__field(u32, preempt)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->hook = hook;
		__entry->pf = pf;
		__entry->hooknum = hooknum;
		__entry->len = len;
		__entry->preempt = preempt;
	),
	TP_printk("id=%u hook=%u pf=%u hooknum=%u len=%u preempt=%#x",
		  __entry->id, __entry->hook, __entry->pf, __entry->hooknum,
		  __entry->len, __entry->preempt)
);

/* Lua was left; verdict is what Netfilter gets, failed whether a rule chose it. */
TRACE_EVENT(hook_exit,
	TP_PROTO(u32 id, u32 hook, u32 verdict, u32 failed, u64 duration_ns,
		 u32 preempt),
	TP_ARGS(id, hook, verdict, failed, duration_ns, preempt),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, hook)
		__field(u32, verdict)
		__field(u32, failed)
		__field(u64, duration_ns)
		__field(u32, preempt)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->hook = hook;
		__entry->verdict = verdict;
		__entry->failed = failed;
		__entry->duration_ns = duration_ns;
		__entry->preempt = preempt;
	),
	TP_printk("id=%u hook=%u verdict=%u failed=%u duration_ns=%llu preempt=%#x",
		  __entry->id, __entry->hook, __entry->verdict, __entry->failed,
		  __entry->duration_ns, __entry->preempt)
);

/* A Lua state asked for a block of another size: old bytes, new bytes, held after. */
TRACE_EVENT(runtime_alloc,
	TP_PROTO(u32 id, u64 old_bytes, u64 new_bytes, u64 held, u32 gfp),
	TP_ARGS(id, old_bytes, new_bytes, held, gfp),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, gfp)
		__field(u64, old_bytes)
		__field(u64, new_bytes)
		__field(u64, held)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->gfp = gfp;
		__entry->old_bytes = old_bytes;
		__entry->new_bytes = new_bytes;
		__entry->held = held;
	),
	TP_printk("id=%u old=%llu new=%llu held=%llu gfp=%#x", __entry->id,
		  __entry->old_bytes, __entry->new_bytes, __entry->held,
		  __entry->gfp)
);

/* A callback (hook > 0) or the body (hook = 0) failed with this message. */
TRACE_EVENT(runtime_error,
	TP_PROTO(u32 id, u32 hook, const char *message),
	TP_ARGS(id, hook, message),
	TP_STRUCT__entry(
		__field(u32, id)
		__field(u32, hook)
		__array(char, message, LUNATIK_TRACE_MESSAGE)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->hook = hook;
		strscpy(__entry->message, message, LUNATIK_TRACE_MESSAGE);
	),
	TP_printk("id=%u hook=%u message=%s", __entry->id, __entry->hook,
		  __entry->message)
);

#endif /* _LUNATIK_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
