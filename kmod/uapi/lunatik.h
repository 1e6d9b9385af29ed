/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR MIT) */
/*
 * The generic netlink family "lunatik": create, list, resume and stop runtimes.
 * lunatik.yaml beside this file describes the same family for YNL.
 */
#ifndef _UAPI_LUNATIK_H
#define _UAPI_LUNATIK_H

#define LUNATIK_GENL_NAME	"lunatik"
#define LUNATIK_GENL_VERSION	1

/*
 * The multicast group that tells what happens to runtimes, in this order. Joining it
 * needs CAP_SYS_ADMIN. It tells everything in each network namespace that belongs to
 * the initial user namespace, and nothing in others. Whoever reads too slowly gets
 * ENOBUFS for what is lost.
 */
#define LUNATIK_GENL_EVENTS	"events"

/**
 * enum lunatik_cmd - requests, and the replies that carry the same number
 * @LUNATIK_CMD_INFO_GET: what is loaded; needs no privilege
 * @LUNATIK_CMD_CREATE: run a script's body once and arm its hooks
 * @LUNATIK_CMD_RUNTIME_GET: one runtime by id, or a dump of all
 * @LUNATIK_CMD_RESUME: pass values to a script that yielded
 * @LUNATIK_CMD_STOP: unregister the hooks, close the state, free every byte
 * @LUNATIK_CMD_REPLACE: let new source take over a runtime, with no packet
 *	unfiltered; where it fails the old one stays in charge
 * @LUNATIK_CMD_HOOK_GET: a dump of hooks with what they have counted: those of all
 *	runtimes, or of that with @LUNATIK_A_ID
 * @LUNATIK_CMD_EVENT: no request, but what the multicast group
 *	LUNATIK_GENL_EVENTS tells of a runtime
 *
 * All but INFO_GET need CAP_SYS_ADMIN in the initial user namespace, because a
 * script acts with the kernel's rights.
 */
enum lunatik_cmd {
	/* private: */
	LUNATIK_CMD_UNSPEC,
	/* public: */
	LUNATIK_CMD_INFO_GET,
	LUNATIK_CMD_CREATE,
	LUNATIK_CMD_RUNTIME_GET,
	LUNATIK_CMD_RESUME,
	LUNATIK_CMD_STOP,
	LUNATIK_CMD_REPLACE,
	LUNATIK_CMD_HOOK_GET,
	LUNATIK_CMD_EVENT,
	/* private: */
	__LUNATIK_CMD_MAX
};
#define LUNATIK_CMD_MAX (__LUNATIK_CMD_MAX - 1)

/**
 * enum lunatik_state - where a runtime stands in its life
 * @LUNATIK_STATE_CREATING: the body is running for the first time
 * @LUNATIK_STATE_YIELDED: the body has yielded; a resume continues it
 * @LUNATIK_STATE_FINISHED: the body has returned; armed hooks stay in force
 * @LUNATIK_STATE_FAILED: a resume ended in an error; armed hooks stay in force
 * @LUNATIK_STATE_RUNNING: a resume is running
 * @LUNATIK_STATE_STOPPED: closed; seen only by whoever still holds a reference
 */
enum lunatik_state {
	LUNATIK_STATE_CREATING,
	LUNATIK_STATE_YIELDED,
	LUNATIK_STATE_FINISHED,
	LUNATIK_STATE_FAILED,
	LUNATIK_STATE_RUNNING,
	LUNATIK_STATE_STOPPED,
};

/**
 * enum lunatik_event - what has happened; every event has @LUNATIK_A_EVENT,
 *	@LUNATIK_A_WHEN, @LUNATIK_A_ID and @LUNATIK_A_NAME
 * @LUNATIK_EVENT_CREATED: a runtime has its number, and its body is about to run;
 *	with @LUNATIK_A_SLEEP, @LUNATIK_A_PERCPU and @LUNATIK_A_NETNS_INO
 * @LUNATIK_EVENT_ARMED: the body has run; with @LUNATIK_A_HOOKS
 * @LUNATIK_EVENT_RESUMED: the body goes on, in each Lua state for itself
 * @LUNATIK_EVENT_YIELDED: it gave control back; with @LUNATIK_A_OUTCOME
 * @LUNATIK_EVENT_REPLACED: another script has taken over; with
 *	@LUNATIK_A_GENERATION and @LUNATIK_A_HOOKS
 * @LUNATIK_EVENT_ERROR: a callback or the body failed; with @LUNATIK_A_HOOK,
 *	@LUNATIK_A_MESSAGE and @LUNATIK_A_SUPPRESSED
 * @LUNATIK_EVENT_BUDGET: the same, for having run too long
 * @LUNATIK_EVENT_BROKEN: callbacks have failed @LUNATIK_A_BREAKER times in a row, the
 *	last at @LUNATIK_A_HOOK; hooks are out of force, and the runtime will stop
 * @LUNATIK_EVENT_STOPPED: it is closed; with @LUNATIK_A_REASON and
 *	@LUNATIK_A_SUPPRESSED
 */
enum lunatik_event {
	LUNATIK_EVENT_CREATED,
	LUNATIK_EVENT_ARMED,
	LUNATIK_EVENT_RESUMED,
	LUNATIK_EVENT_YIELDED,
	LUNATIK_EVENT_REPLACED,
	LUNATIK_EVENT_ERROR,
	LUNATIK_EVENT_BUDGET,
	LUNATIK_EVENT_BROKEN,
	LUNATIK_EVENT_STOPPED,
};

/**
 * enum lunatik_outcome - how a resumed body gave control back
 * @LUNATIK_OUTCOME_RETURNED: it has ended
 * @LUNATIK_OUTCOME_YIELDED: it can be resumed again
 * @LUNATIK_OUTCOME_ERROR: it has failed
 */
enum lunatik_outcome {
	LUNATIK_OUTCOME_RETURNED,
	LUNATIK_OUTCOME_YIELDED,
	LUNATIK_OUTCOME_ERROR,
};

/**
 * enum lunatik_stop_reason - why a runtime was stopped
 * @LUNATIK_STOP_REQUESTED: somebody asked for it
 * @LUNATIK_STOP_NETNS_GONE: its network namespace has gone
 * @LUNATIK_STOP_CREATE_FAILED: its body failed, or a hook could not be registered
 * @LUNATIK_STOP_COLLECTED: the Lua object that stood for it was collected
 * @LUNATIK_STOP_BROKEN: callbacks have failed too often in a row
 */
enum lunatik_stop_reason {
	LUNATIK_STOP_REQUESTED,
	LUNATIK_STOP_NETNS_GONE,
	LUNATIK_STOP_CREATE_FAILED,
	LUNATIK_STOP_COLLECTED,
	LUNATIK_STOP_BROKEN,
};

/**
 * enum lunatik_attr - attributes of every message
 * @LUNATIK_A_ID: u32, a runtime's number, never used twice
 * @LUNATIK_A_NAME: string, the script's name below the Lua root, or the name
 *	that messages give to @LUNATIK_A_SOURCE
 * @LUNATIK_A_SOURCE: binary, the script's text; the script is not looked up
 * @LUNATIK_A_SLEEP: u8, 1 (default) for a sleepable runtime, 0 for one whose
 *	hooks run in atomic context
 * @LUNATIK_A_NETNS_FD: u32, file descriptor of the network namespace the
 *	runtime lives in (default: the caller's)
 * @LUNATIK_A_NETNS_INO: u32, inode number of that namespace, 0 once it is gone
 * @LUNATIK_A_STATE: u32, enum lunatik_state
 * @LUNATIK_A_VALUES: nest of @LUNATIK_A_VALUE: arguments, or results
 * @LUNATIK_A_VALUE: nest of one enum lunatik_value_attr
 * @LUNATIK_A_MEMORY: u64, bytes the Lua states of the runtime hold now; of the
 *	module: bytes that all of them have taken
 * @LUNATIK_A_MEMORY_LIMIT: u64, bytes each state may hold; of the module: bytes
 *	all of them may take
 * @LUNATIK_A_BUDGET: u64, Lua instructions a call from atomic context may run
 * @LUNATIK_A_HOOKS: u32, hooks registered
 * @LUNATIK_A_CALLS: u64, callbacks run
 * @LUNATIK_A_ERRORS: u64, callbacks that failed
 * @LUNATIK_A_LAST_ERROR: string, message of the latest failure
 * @LUNATIK_A_VERSION: string, version of the module
 * @LUNATIK_A_LUA_VERSION: string, release of the Lua core
 * @LUNATIK_A_LUA_ROOT: string, directory that scripts are looked up in
 * @LUNATIK_A_RUNTIMES: u32, runtimes alive
 * @LUNATIK_A_PAD: alignment of u64
 * @LUNATIK_A_PERCPU: u8, 1 for a runtime with one Lua state per CPU
 * @LUNATIK_A_GENERATION: u32, scripts the runtime has run: 1, and 1 more for each
 *	that has taken over
 * @LUNATIK_A_HOOK: u32, a hook's number, never used twice; it stays when a script
 *	with a hook at the same place takes over, and so does what was counted
 * @LUNATIK_A_PF: u32, NFPROTO_* that the hook is for
 * @LUNATIK_A_HOOKNUM: u32, hook of that family
 * @LUNATIK_A_PRIORITY: s32, order among the hooks there
 * @LUNATIK_A_IFINDEX: u32, device, where the hook is at one
 * @LUNATIK_A_MARK: u32, where the hook sees only packets with that mark
 * @LUNATIK_A_ONERROR: u32, verdict for a packet whose callback failed: NF_ACCEPT
 *	or NF_DROP
 * @LUNATIK_A_PACKETS: u64, packets that the hook has given a verdict for, on all CPUs
 * @LUNATIK_A_ACCEPTED: u64, those of them with NF_ACCEPT
 * @LUNATIK_A_DROPPED: u64, those with NF_DROP
 * @LUNATIK_A_QUEUED: u64, those with NF_QUEUE
 * @LUNATIK_A_BUDGET_HITS: u64, those of @LUNATIK_A_ERRORS that were ended for running
 *	too long
 * @LUNATIK_A_REENTERED: u64, packets that came while their CPU was in the Lua state
 *	that should see them: no callback can, so @LUNATIK_A_ONERROR decided
 * @LUNATIK_A_TIME: u64, ns spent in callbacks while the module's parameter timing
 *	was on
 * @LUNATIK_A_HISTOGRAM: nest of LUNATIK_BUCKETS times @LUNATIK_A_BUCKET, where
 *	callbacks were timed
 * @LUNATIK_A_BUCKET: u64, callbacks that took at least 2^n ns and less than 2^(n+1),
 *	for n from 0; the first also has those of 0 ns, the last all longer ones
 * @LUNATIK_A_BREAKER: u32, callbacks that may fail in a row in one Lua state before
 *	the runtime is stopped, 0 (default) for any number; not with @LUNATIK_A_SLEEP
 * @LUNATIK_A_EVENT: u32, enum lunatik_event
 * @LUNATIK_A_WHEN: u64, ns of CLOCK_MONOTONIC at which it happened
 * @LUNATIK_A_OUTCOME: u32, enum lunatik_outcome
 * @LUNATIK_A_REASON: u32, enum lunatik_stop_reason
 * @LUNATIK_A_MESSAGE: string, what Lua said, perhaps its beginning only
 * @LUNATIK_A_SUPPRESSED: u32, failures of the runtime that no event has told of since
 *	the last that one has, because there were too many
 */
enum lunatik_attr {
	/* private: */
	LUNATIK_A_UNSPEC,
	/* public: */
	LUNATIK_A_ID,
	LUNATIK_A_NAME,
	LUNATIK_A_SOURCE,
	LUNATIK_A_SLEEP,
	LUNATIK_A_NETNS_FD,
	LUNATIK_A_NETNS_INO,
	LUNATIK_A_STATE,
	LUNATIK_A_VALUES,
	LUNATIK_A_VALUE,
	LUNATIK_A_MEMORY,
	LUNATIK_A_MEMORY_LIMIT,
	LUNATIK_A_BUDGET,
	LUNATIK_A_HOOKS,
	LUNATIK_A_CALLS,
	LUNATIK_A_ERRORS,
	LUNATIK_A_LAST_ERROR,
	LUNATIK_A_VERSION,
	LUNATIK_A_LUA_VERSION,
	LUNATIK_A_LUA_ROOT,
	LUNATIK_A_RUNTIMES,
	LUNATIK_A_PAD,
	LUNATIK_A_PERCPU,
	LUNATIK_A_GENERATION,
	LUNATIK_A_HOOK,
	LUNATIK_A_PF,
	LUNATIK_A_HOOKNUM,
	LUNATIK_A_PRIORITY,
	LUNATIK_A_IFINDEX,
	LUNATIK_A_MARK,
	LUNATIK_A_ONERROR,
	LUNATIK_A_PACKETS,
	LUNATIK_A_ACCEPTED,
	LUNATIK_A_DROPPED,
	LUNATIK_A_QUEUED,
	LUNATIK_A_BUDGET_HITS,
	LUNATIK_A_REENTERED,
	LUNATIK_A_TIME,
	LUNATIK_A_HISTOGRAM,
	LUNATIK_A_BUCKET,
	LUNATIK_A_BREAKER,
	LUNATIK_A_EVENT,
	LUNATIK_A_WHEN,
	LUNATIK_A_OUTCOME,
	LUNATIK_A_REASON,
	LUNATIK_A_MESSAGE,
	LUNATIK_A_SUPPRESSED,
	/* private: */
	__LUNATIK_A_MAX
};
#define LUNATIK_A_MAX (__LUNATIK_A_MAX - 1)

/* How many times LUNATIK_A_BUCKET is in a LUNATIK_A_HISTOGRAM. */
#define LUNATIK_BUCKETS	32

/**
 * enum lunatik_value_attr - one Lua value
 * @LUNATIK_V_NIL: flag
 * @LUNATIK_V_BOOLEAN: u8, 0 or 1
 * @LUNATIK_V_INTEGER: s64
 * @LUNATIK_V_STRING: binary, any bytes, may be empty
 * @LUNATIK_V_PAD: alignment of s64
 */
enum lunatik_value_attr {
	/* private: */
	LUNATIK_V_UNSPEC,
	/* public: */
	LUNATIK_V_NIL,
	LUNATIK_V_BOOLEAN,
	LUNATIK_V_INTEGER,
	LUNATIK_V_STRING,
	LUNATIK_V_PAD,
	/* private: */
	__LUNATIK_V_MAX
};
#define LUNATIK_V_MAX (__LUNATIK_V_MAX - 1)

#endif /* _UAPI_LUNATIK_H */
