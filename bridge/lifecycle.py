"""Names of the numbers that tell of a runtime's life, in events and in traces."""

OUTCOMES = ("returned", "yielded", "error")
"""enum lunatik_outcome: how a resumed body gave control back."""

STOP_REASONS = ("requested", "netns gone", "create failed", "collected", "broken")
"""enum lunatik_stop_reason: why a runtime was stopped."""
