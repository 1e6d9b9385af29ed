// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * lunatik.ko: isolated Lua runtimes in the kernel, attached to Netfilter hooks.
 *
 * This file brings the layers up, each relying on those before it, and takes
 * them down.
 */
#include <linux/init.h>
#include <linux/module.h>
#include <net/genetlink.h>

#include "control.h"
#include "hook.h"
#include "library.h"
#include "object.h"
#include "runtime.h"
#include "watchdog.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

EXPORT_TRACEPOINT_SYMBOL_GPL(hook_enter);
EXPORT_TRACEPOINT_SYMBOL_GPL(hook_exit);

static int __init lunatik_init(void)
{
	int errno;

	lunatik_watchdog_init();
	errno = lunatik_object_init();
	if (errno)
		return errno;
	errno = lunatik_runtime_init();
	if (errno)
		goto exit_object;
	errno = lunatik_slot_init();
	if (errno)
		goto exit_runtime;
	errno = lunatik_control_init();
	if (errno)
		goto exit_slot;
	return 0;

exit_slot:
	lunatik_slot_exit();
exit_runtime:
	lunatik_runtime_exit();
exit_object:
	lunatik_object_exit();
	return errno;
}

/* No runtime is alive: each holds a reference to the module. */
static void __exit lunatik_exit(void)
{
	lunatik_control_exit();
	lunatik_slot_exit();
	lunatik_runtime_exit();
	lunatik_object_exit();
	lunatik_reject_exit();
	lunatik_watchdog_exit();
}

module_init(lunatik_init);
module_exit(lunatik_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_AUTHOR("The lunatik-bridge developers");
MODULE_DESCRIPTION("Lua runtimes in the kernel, attached to Netfilter hooks");
MODULE_VERSION(LUNATIK_VERSION);
MODULE_ALIAS_GENL_FAMILY("lunatik");
