/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Numbers that tracepoints carry.
 */
#ifndef _LUNATIK_TRACE_ENUMS_H
#define _LUNATIK_TRACE_ENUMS_H

/* How a resumed body gave control back. */
enum lunatik_outcome {
	LUNATIK_OUTCOME_RETURNED,
	LUNATIK_OUTCOME_YIELDED,
	LUNATIK_OUTCOME_ERROR,
};

/* Why a runtime was stopped. */
enum lunatik_stop_reason {
	LUNATIK_STOP_REQUESTED,
	LUNATIK_STOP_NETNS_GONE,
	LUNATIK_STOP_CREATE_FAILED,
	LUNATIK_STOP_COLLECTED,
};

#endif /* _LUNATIK_TRACE_ENUMS_H */
