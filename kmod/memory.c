// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Making allocations fail, for tests of what happens then.
 *
 * Writing n to the parameter fail_allocation makes the n-th allocation from then on
 * fail, and the fail_length - 1 that follow it; whether they were asked for by Lua's
 * allocator, once more after a collection, or by ours, each call counts. Reading it
 * gives how many are left before the first that fails: 0 once that was reached.
 */
#include <linux/atomic.h>
#include <linux/kstrtox.h>
#include <linux/minmax.h>
#include <linux/moduleparam.h>
#include <linux/sysfs.h>

#include "memory.h"

DEFINE_STATIC_KEY_FALSE(lunatik_memory_failing);

static atomic_long_t left;

static unsigned int fail_length = 1;
module_param(fail_length, uint, 0600);
MODULE_PARM_DESC(fail_length, "for tests: how many allocations in a row fail_allocation makes fail (default 1)");

/**
 * lunatik_memory_count() - count an allocation, while some are to fail
 *
 * Context: any.
 * Return: whether it is to fail.
 */
bool lunatik_memory_count(void)
{
	long turn = atomic_long_dec_return(&left);

	return turn <= 0 && turn > -(long)READ_ONCE(fail_length);
}

static int fail_set(const char *text, const struct kernel_param *param)
{
	unsigned int n;
	int errno = kstrtouint(text, 0, &n);

	if (errno)
		return errno;
	atomic_long_set(&left, n);
	if (n)
		static_branch_enable(&lunatik_memory_failing);
	else
		static_branch_disable(&lunatik_memory_failing);
	return 0;
}

static int fail_get(char *text, const struct kernel_param *param)
{
	return sysfs_emit(text, "%ld\n", max(atomic_long_read(&left), 0L));
}

static const struct kernel_param_ops fail_ops = {
	.set = fail_set,
	.get = fail_get,
};

module_param_cb(fail_allocation, &fail_ops, NULL, 0600);
MODULE_PARM_DESC(fail_allocation, "for tests: the allocation of the module, counted from now, that fails (default 0: none)");
